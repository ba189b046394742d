"""What the emitter writes, any YAML reader reads back."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpuscale.hpa.emit import Because, documents, plain

_TEXT = st.text(max_size=30) | st.sampled_from(
    [
        "yes",
        "on",
        "null",
        "1e3",
        "0x1f",
        "0o7",
        "-",
        "#no",
        "a: b",
        "a #b",
        "line\nline\n",
        "a\n b\n\nc",
        "\n",
        " x\ny",
        "~",
        "=",
        "",
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | _TEXT
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(min_size=1, max_size=10), _VALUES, min_size=1, max_size=4))
def test_yaml_reads_back_what_was_written(manifest: dict[str, Any]) -> None:
    assert list(yaml.safe_load_all(documents([manifest, manifest]))) == [manifest, manifest]


@given(_VALUES, st.sampled_from(["why", "two\nlines"]))
def test_comments_change_nothing(value: Any, reason: str) -> None:
    told = {"a": Because(reason, value), "b": [Because(reason, value), [Because(reason, value)]]}
    text = documents([told], "header")
    assert yaml.safe_load(text) == plain(told)
    assert text.startswith("# header\n")
    assert text.count(f"# {reason.splitlines()[0]}") >= 2


def test_only_what_manifests_hold_can_be_written() -> None:
    with pytest.raises(TypeError, match="set"):
        documents([{"a": {1, 2}}])
