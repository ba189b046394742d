"""The WSGI middleware: each request counted once, whatever happens to it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import pytest

from gpuscale.publish.publication import Publication
from gpuscale.wsgi import MetricsMiddleware
from tests.middleware.mounted import counts


def environ(path: str = "/x", method: str = "GET") -> dict[str, Any]:
    given: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    setup_testing_defaults(given)
    return given


def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
    return lambda data: None


def consume(body: Iterable[bytes]) -> bytes:
    """As a server does."""
    try:
        return b"".join(body)
    finally:
        close = getattr(body, "close", None)
        if close is not None:
            close()


def test_a_list_counts_once_and_keeps_its_length(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [("Content-Type", "text/plain")])
        return [b"hello"]

    body = MetricsMiddleware(app, publication=publication)(environ(), start_response)
    assert len(body) == 1  # type: ignore[arg-type]
    assert publication.accounting.in_flight == 1
    assert consume(body) == b"hello"
    assert counts(publication) == {("GET", "unmatched", "200"): 1}


def test_it_keeps_to_the_protocol(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> list[bytes]:
        start("404 Not Found", [("Content-Type", "text/plain")])
        return [b"no"]

    checked = validator(MetricsMiddleware(validator(app), publication=publication))
    assert consume(checked(environ(), start_response)) == b"no"
    assert counts(publication) == {("GET", "unmatched", "404"): 1}


def test_a_generator_that_starts_late(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> Iterator[bytes]:
        start("201 Created", [])
        yield b"a"
        assert publication.accounting.in_flight == 1
        yield b"b"

    assert consume(MetricsMiddleware(app, publication=publication)(environ(), start_response)) == b"ab"
    assert counts(publication) == {("GET", "unmatched", "201"): 1}


def test_a_body_closed_early_is_a_499(publication: Publication) -> None:
    closed: list[bool] = []

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [])
        try:
            yield b"a"
            yield b"b"
        finally:
            closed.append(True)

    body = MetricsMiddleware(app, publication=publication)(environ(), start_response)
    assert next(iter(body)) == b"a"
    body.close()  # type: ignore[attr-defined]
    body.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert counts(publication) == {("GET", "unmatched", "499"): 1}


def test_a_head_whose_body_is_not_read_keeps_its_status(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [])
        return [b"not sent"]

    body = MetricsMiddleware(app, publication=publication)(environ(method="HEAD"), start_response)
    body.close()  # type: ignore[attr-defined]
    assert counts(publication) == {("HEAD", "unmatched", "200"): 1}


@pytest.mark.parametrize("late", [False, True])
def test_an_exception_is_a_500(publication: Publication, late: bool) -> None:
    def lately(start: Any) -> Iterator[bytes]:
        start("200 OK", [])
        yield b"a"
        raise RuntimeError

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        if not late:
            raise RuntimeError
        return lately(start)

    with pytest.raises(RuntimeError):
        consume(MetricsMiddleware(app, publication=publication)(environ(), start_response))
    assert counts(publication) == {("GET", "unmatched", "500"): 1}


def test_what_cannot_be_iterated_is_a_500(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [])

    with pytest.raises(TypeError):
        MetricsMiddleware(app, publication=publication)(environ(), start_response)
    assert counts(publication) == {("GET", "unmatched", "500"): 1}


def test_a_server_that_never_closes_leaks_nothing(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [])
        return [b"x"]

    body: Any = MetricsMiddleware(app, publication=publication)(environ(), start_response)
    # The garbage collector may come while the thread counts another request.
    with publication.accounting._lock:
        del body
    assert counts(publication) == {("GET", "unmatched", "499"): 1}


def test_the_servers_file_wrapper_stays_itself(publication: Publication) -> None:
    """A server sends its own wrapper's file by sendfile; another iterable around it would end that."""
    file = io.BytesIO(b"content")

    def app(environ: Any, start: Any) -> Any:
        start("200 OK", [])
        return environ["wsgi.file_wrapper"](file)

    given = environ()
    given["wsgi.file_wrapper"] = FileWrapper
    body = MetricsMiddleware(app, publication=publication)(given, start_response)
    assert isinstance(body, FileWrapper)
    assert consume(body) == b"content"
    assert file.closed
    assert counts(publication) == {("GET", "unmatched", "200"): 1}


def test_probes_and_a_second_middleware_are_not_counted(publication: Publication) -> None:
    def app(environ: Any, start: Any) -> list[bytes]:
        start("200 OK", [])
        return [b""]

    inner = MetricsMiddleware(app, publication=publication)
    outer = MetricsMiddleware(inner, publication=publication)
    consume(outer(environ("/readyz"), start_response))
    assert counts(publication) == {}
    consume(outer(environ(), start_response))
    assert counts(publication) == {("GET", "unmatched", "200"): 1}
