"""The texts of a request, checked: from the query string of a GET, from the JSON of a POST."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from bert_intent.problems import Problem, bad_query
from bert_intent.settings import MAX_CHARACTERS, MAX_QUERIES

MAX_BODY_BYTES = 512 * 1024
"""64 queries of 512 characters, each written as ``\\ud83d\\ude00``, are 384 KiB."""
EXAMPLE = "/predict?query=play%20some%20music"

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS, pattern=r"\S")]


class OneQuery(BaseModel):
    """One text."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"query": "play some music"}]})
    query: Text


class ManyQueries(BaseModel):
    """Several texts."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"queries": ["music", "weather"]}]})
    queries: Annotated[list[Text], Field(min_length=1, max_length=MAX_QUERIES)]


def read_query(query_string: bytes) -> str:
    """The text of ``?query=…``. Raises Problem 400 for a query that is missing, repeated, empty or too long, or
    not UTF-8."""
    given = []
    for pair in query_string.split(b"&"):
        name, _, value = pair.partition(b"=")
        if unquote_to_bytes(name) == b"query":
            given.append(value)
    if not given:
        raise bad_query(f"the parameter query is missing; ask for {EXAMPLE}")
    if len(given) > 1:
        raise bad_query('the parameter query is given twice; for several texts POST {"queries": [...]} as JSON')
    try:
        text = unquote_to_bytes(given[0].replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise bad_query("query must be UTF-8, percent-encoded; these bytes are not") from None
    if not text.strip():
        raise bad_query(f"query is empty; give a sentence, such as {EXAMPLE}")
    if len(text) > MAX_CHARACTERS:
        raise bad_query(f"query has {len(text)} characters; give at most {MAX_CHARACTERS}")
    return text


def read_body(content_type: str, body: bytes) -> tuple[list[str], bool]:
    """``(texts, whether they came as a list)`` of a POST. Raises Problem 400, 415 or 422."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, 'send JSON with Content-Type: application/json, such as {"query": "play some music"}')
    try:
        parsed = _parse(body)
    except ValidationError as error:
        raise _explain(error) from None
    texts = parsed.queries if isinstance(parsed, ManyQueries) else [parsed.query]
    if not all(text.strip() for text in texts):
        raise Problem(422, "a query of nothing but blanks has no intent")
    return texts, isinstance(parsed, ManyQueries)


def _parse(body: bytes) -> OneQuery | ManyQueries:
    # Whichever of the two it tries to be explains best what is wrong with it.
    try:
        return OneQuery.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] == "json_invalid" or b'"queries"' not in body:
            raise
    return ManyQueries.model_validate_json(body)


def _explain(error: ValidationError) -> Problem:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON in UTF-8: {first['msg']}")
    wanted = (
        f'send {{"query": text}} or {{"queries": [1 to {MAX_QUERIES} texts]}}, '
        f"each text of 1 to {MAX_CHARACTERS} characters and not blank"
    )
    return Problem(422, f"{where + ': ' if where else ''}{first['msg']}; {wanted}")
