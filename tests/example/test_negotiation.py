"""Accept headers: weights, wildcards, specificity."""

from __future__ import annotations

import pytest
from bert_intent.negotiation import prefers_json
from hypothesis import given
from hypothesis import strategies as st

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        (BROWSER, False),
        ("application/json", True),
        ("APPLICATION/JSON", True),
        ("application/*", True),
        ("application/json, text/plain, */*", False),
        ("application/json, */*;q=0.5", True),
        ("application/json;q=0.4, text/html;q=0.5", False),
        ("application/json;q=0.5, text/html;q=0.4", True),
        ("text/html;q=0, */*", True),
        ("text/*;q=0, application/*;q=0.1", True),
        ("application/json;q=0, */*", False),
        ("application/json;charset=utf-8;q=0.9, text/html;q=0.8", True),
        ("application/json ; q = 0.9 , text/html ; q=0.8", True),
        ("application/json;q=nan", False),
        ("application/json;q=7, text/html;q=0.1", False),
        ("image/png", False),
        (";;;,,/,json", False),
    ],
)
def test_what_a_client_prefers(accept: str, json: bool) -> None:
    assert prefers_json(accept) is json


def test_the_default_decides_only_ties() -> None:
    assert prefers_json("*/*", True)
    assert prefers_json("", True)
    assert not prefers_json("text/html", True)
    assert prefers_json("application/json", False)


@given(st.text())
def test_no_header_is_an_error(accept: str) -> None:
    assert prefers_json(accept) in (True, False)


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_higher_weight_wins(json: int, text: int) -> None:
    accept = f"text/html;q={text / 1000:.3f}, application/json;q={json / 1000:.3f}"
    assert prefers_json(accept, False) is (json > text)
    assert prefers_json(accept, True) is (json >= text)
