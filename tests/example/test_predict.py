"""The contract of /predict: exact bytes and headers, negotiation, and what a wrong request is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bert_intent.query import MAX_BODY_BYTES
from bert_intent.settings import MAX_CHARACTERS, MAX_QUERIES
from starlette.testclient import TestClient

from .conftest import INTENTS, FakeClassifier, eventually, make_app

JSON = {"accept": "application/json"}


def test_the_walks_answer_to_the_byte(client: TestClient) -> None:
    answer = client.get("/predict?query=music")
    assert answer.status_code == 200
    assert answer.content == b"PlayMusic"
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-length"] == "9"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["vary"] == "Accept"


def test_every_request_reaches_the_model(client: TestClient, classifier: FakeClassifier) -> None:
    before = len(classifier.batches)
    for _ in range(5):
        client.get("/predict?query=music")
    assert len(classifier.batches) == before + 5


def test_json_has_the_probability_of_each_intent(client: TestClient) -> None:
    answer = client.get("/predict?query=GetWeather", headers=JSON)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["intent"] == "GetWeather"
    assert set(body["probabilities"]) == set(INTENTS)
    assert body["probabilities"]["GetWeather"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("play+some%20music", "play some music"),
        ("m%C3%BAsica", "música"),
        ("%F0%9F%8E%B5", "🎵"),
        ("a%26b%3Dc", "a&b=c"),
        ("100%25", "100%"),
        ("x&other=1", "x"),
        ("%20music%20", " music "),
        ("y" * MAX_CHARACTERS, "y" * MAX_CHARACTERS),
    ],
)
def test_the_query_is_decoded(client: TestClient, classifier: FakeClassifier, query: str, text: str) -> None:
    assert client.get(f"/predict?query={query}").status_code == 200
    assert classifier.batches[-1] == [text]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", "query is missing"),
        ("?", "query is missing"),
        ("?Query=music", "query is missing"),
        ("?query=", "query is empty"),
        ("?query", "query is empty"),
        ("?query=%20%09+", "query is empty"),
        ("?query=%C2%A0%E2%80%83", "query is empty"),
        (f"?query={'x' * (MAX_CHARACTERS + 1)}", "at most 512"),
        (f"?query={'%C3%A9' * (MAX_CHARACTERS + 1)}", "at most 512"),
        ("?query=%FF", "UTF-8"),
        ("?query=%ED%A0%80", "UTF-8"),
        ("?query=music%C3", "UTF-8"),
        ("?query=a&query=b", "twice"),
    ],
)
def test_a_wrong_query_is_told_what_is_wanted(client: TestClient, query: str, wanted: str) -> None:
    as_text = client.get(f"/predict{query}")
    assert as_text.status_code == 400
    assert as_text.headers["content-type"] == "text/plain; charset=utf-8"
    assert wanted in as_text.text
    as_json = client.get(f"/predict{query}", headers=JSON)
    assert as_json.status_code == 400
    assert as_json.json() == {"detail": as_text.text}


def test_one_text_posted(client: TestClient) -> None:
    answer = client.post("/predict", json={"query": "RateBook"})
    assert answer.status_code == 200
    assert answer.json()["intent"] == "RateBook"


def test_several_texts_posted_are_answered_in_their_order(client: TestClient) -> None:
    queries = [INTENTS[index * 5 % 7] for index in range(MAX_QUERIES)]
    answer = client.post("/predict", json={"queries": queries})
    assert [prediction["intent"] for prediction in answer.json()["predictions"]] == queries


@pytest.mark.parametrize(
    ("body", "status", "wanted"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"query": "\xff"}', 400, "not JSON"),
        (rb'{"query": "\ud800"}', 400, "not JSON"),
        (b"[]", 422, "{"),
        (b"null", 422, "{"),
        (b"{}", 422, "query"),
        (b'{"query": 5}', 422, "query: "),
        (b'{"query": ""}', 422, "query: "),
        (b'{"query": " \\t"}', 422, "blank"),
        (b'{"query": "%s"}' % (b"x" * (MAX_CHARACTERS + 1)), 422, "at most 512"),
        (b'{"queries": []}', 422, "queries: "),
        (b'{"queries": ["a", null]}', 422, "queries.1: "),
        (json.dumps({"queries": ["a"] * (MAX_QUERIES + 1)}).encode(), 422, "at most 64"),
        (b'{"query": "a", "queries": ["b"]}', 422, "query"),
        (b" " * (MAX_BODY_BYTES + 1), 413, "larger"),
    ],
)
def test_a_wrong_body_is_told_what_is_wanted(client: TestClient, body: bytes, status: int, wanted: str) -> None:
    headers = {"content-type": "application/json"}
    as_json = client.post("/predict", content=body, headers=headers)
    assert (as_json.status_code, wanted in as_json.json()["detail"]) == (status, True), as_json.text
    as_text = client.post("/predict", content=body, headers={**headers, "accept": "text/plain"})
    assert as_text.status_code == status
    assert as_text.text == as_json.json()["detail"]


def test_a_body_that_is_not_json_by_its_type(client: TestClient) -> None:
    answer = client.post("/predict", data={"query": "music"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


@pytest.mark.parametrize("method_and_path", ["DELETE /predict", "GET /nowhere", "GET /static/..%2fpages.py"])
def test_the_frameworks_own_errors_are_negotiated_too(client: TestClient, method_and_path: str) -> None:
    method, path = method_and_path.split()
    answer = client.request(method, path, headers=JSON)
    assert answer.status_code in (404, 405)
    assert set(answer.json()) == {"detail"}
    assert client.request(method, path).headers["content-type"] == "text/plain; charset=utf-8"


def test_a_text_that_the_model_fails_on(client: TestClient) -> None:
    answer = client.get("/predict?query=poison", headers=JSON)
    assert answer.status_code == 500
    assert "log" in answer.json()["detail"]
    assert client.get("/predict?query=music").content == b"PlayMusic"


def test_a_label_is_no_markup() -> None:
    app = make_app(FakeClassifier(["<b>", "other"]))
    with TestClient(app) as client:
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/predict?query=%3Cb%3E").content == b"&lt;b&gt;"


def test_figures_and_series_count_what_was_answered(client: TestClient) -> None:
    client.get("/predict?query=music")
    figures: dict[str, Any] = client.get("/figures").json()
    assert figures["state"] == "ready"
    assert figures["model"] == FakeClassifier.description
    assert figures["gpus"]["devices"] == []
    assert figures["requests"]["ended"] >= 1
    assert figures["batches"]["texts"] >= figures["batches"]["ended"] >= 1
    assert figures["batches"]["waiting"] == 0
    before = figures["requests"]["ended"]
    assert client.get("/figures").json()["requests"]["ended"] == before  # the page's own refresh is no load


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.js", "/static/docs.js", "/static/style.css"])
def test_pages_load_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
