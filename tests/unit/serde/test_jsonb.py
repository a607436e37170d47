"""Values <-> JSON text that JSONB returns unchanged, without a database (integration tests ask a real one)."""

from __future__ import annotations

import enum
import json
import math
import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint_store.errors import UnstorableValue
from checkpoint_store.serde import jsonb


class Colour(str, enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, -1, 2**63, -(2**70), 0.0, 1.5, 1e16, -1e300, 5e-324, "", "text", "\U0001f600", "\\u0000"],
)
def test_plain_scalars_are_held(value: Any) -> None:
    """Exactly these types go inline."""
    assert jsonb.holds(value)


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        -0.0,
        "a\x00b",
        "\ud800",
        b"bytes",
        Colour.RED,
        Size.LARGE,
        [],
        {},
        (),
        10**4000,
        1j,
    ],
    ids=repr,
)
def test_what_jsonb_would_change_or_refuse_is_not_held(value: Any) -> None:
    """These would come back changed, as another type, or not at all."""
    assert not jsonb.holds(value)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()))
def test_a_held_scalar_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    """Our own reader and a plain JSON reader, such as the stock saver's, both get the value that was stored."""
    if not jsonb.holds(value):
        return
    text = jsonb.encode([jsonb.scalar(value)])

    for read in (jsonb.decode(text)[0], json.loads(text)[0]):
        assert read == value
        assert type(read) is type(value)


@given(st.integers(min_value=-(10**40), max_value=10**40))
def test_integers_of_any_size_are_read_as_integers(number: int) -> None:
    """The stock saver writes big integers inline too; no reader of ours may turn them into floats."""
    for text in (f'{{"a": {number}}}', f"[{number}, 1]", str(number), f'[["x"], {number}]'):
        read = jsonb.decode(text)
        assert read == json.loads(text)
        assert repr(read) == repr(json.loads(text))


def test_no_float_is_written_in_exponential_notation() -> None:
    """JSONB turns 1e16 into an integer, but leaves 10000000000000000.0 alone."""
    text = jsonb.encode(jsonb.document({"big": 1e16, "huge": 1.5e300, "small": 5e-324}, "metadata"))

    assert "e" not in text.replace('"huge"', "")
    assert jsonb.decode(text) == {"big": 1e16, "huge": 1.5e300, "small": 5e-324}


def test_nul_is_taken_out_of_metadata_strings_at_any_depth() -> None:
    """LangGraph's contract strips NUL from metadata strings; nested ones and keys would fail in PostgreSQL as well."""
    assert jsonb.document({"a\x00": ["b\x00", {"c": "\x00d"}]}, "metadata") == {"a": ["b", {"c": "d"}]}


def test_nul_is_taken_out_of_filters_as_it_is_of_metadata() -> None:
    """So that a filter finds what was stored with the same text."""
    assert jsonb.filter_text({"a\x00": "b\x00"}) == '{"a":"b"}'


def test_enums_in_metadata_are_stored_as_the_json_they_are() -> None:
    """Metadata is JSON: a str or int by inheritance is stored as a plain one, as the stock saver does."""
    stored = jsonb.document({"colour": Colour.RED, "size": Size.LARGE, "pair": (1, 2)}, "metadata")

    assert jsonb.encode(stored) == '{"colour":"red","size":3,"pair":[1,2]}'


odd = st.sampled_from(
    [
        *[Colour.RED, Size.LARGE, "a\x00b", "\\u0000", "\ud800", b"x", (1, (2.5,)), datetime(2026, 1, 1), {1: 2}, 1j],
        *[math.nan, -math.inf, -0.0, 1e16, 5e-324, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**4000, True],
    ]
)


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), odd),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.one_of(st.text(), st.sampled_from([Colour.RED, "a\x00", "\ud800", 1])), inner, max_size=4
            )
        ),
    )
)
def test_the_text_of_a_value_is_that_of_its_document(value: Any) -> None:
    """Also where the value is so plain that none is made."""
    try:
        expected = jsonb.encode(jsonb.document(value, "metadata"))
    except UnstorableValue as error:
        with pytest.raises(UnstorableValue, match=f"^{re.escape(str(error))}$"):
            jsonb.text_of(value, "metadata")
    else:
        assert jsonb.text_of(value, "metadata") == expected


def test_a_value_that_contains_itself_is_refused() -> None:
    """As is one that is nested too deeply."""
    cyclic: list[Any] = []
    cyclic.append({"a": cyclic})
    deep: Any = 1
    for _ in range(500):
        deep = [deep]
    for value in (cyclic, deep):
        with pytest.raises(UnstorableValue, match="nested too deeply"):
            jsonb.text_of(value, "metadata")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": [1, math.nan]}}, r"metadata\['a'\]\['b'\]\[1\] is not finite; JSON has no such number"),
        ({"a": math.inf}, r"metadata\['a'\] is not finite"),
        ({"when": datetime(2026, 1, 1)}, r"metadata\['when'\] is a datetime; it must be JSON"),
        ({"raw": b"x"}, r"metadata\['raw'\] is a bytes"),
        ({"set": {1}}, r"metadata\['set'\] is a set"),
        ({"s": "\ud800"}, r"metadata\['s'\] is a string with a lone surrogate"),
        ({1: "x"}, r"metadata has the key 1 \(int\); JSON keys must be strings"),
        ({"n": 10**4000}, "metadata.*JSON has no such number"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_path(value: Any, message: str) -> None:
    """Nothing is dropped in silence: the message says which part it is."""
    with pytest.raises(UnstorableValue, match=message):
        jsonb.document(value, "metadata")
