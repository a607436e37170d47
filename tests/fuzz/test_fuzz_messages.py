"""Messages by the short way, against LangGraph's serializer: the same bytes, the same objects, the same refusals."""

from __future__ import annotations

import os
import random
import uuid
from collections import OrderedDict
from typing import Any

import ormsgpack
import pytest
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from tests.fuzz.conftest import CASES, Fuzz
from tests.fuzz.random_messages import (
    KINDS,
    USAGE,
    Colour,
    Extended,
    Model,
    Pair,
    Point,
    Text,
    agree,
    agree_on_bytes,
    change,
    held,
    random_message,
)

PARTS = 4
"""The tests that share the random messages, for as many processes."""

VALUES = 4
"""The messages of a case; each is five values."""

texts = st.text(max_size=8) | st.sampled_from(["", "\ud800", "a\x00b", Text("x"), Colour.RED, "success", "ai", "human"])
integers = st.integers(-(2**66), 2**66) | st.booleans()
atoms = st.none() | texts | integers | st.floats() | st.binary(max_size=4)
oddities = st.builds(
    lambda make, value: make(value),
    st.sampled_from(
        [
            Point,
            lambda value: Model(x=value),
            lambda value: Pair(value, value),
            lambda value: OrderedDict(a=value),
            lambda value: (value,),
            lambda value: {1: value, None: value},
            lambda value: {Colour.RED: value},
            lambda value: {Text("x"): value},
            lambda value: Document(page_content="", metadata={"x": value}),
            lambda _: bytearray(b"x"),
            lambda _: {1, 2},
            lambda _: uuid.UUID(int=1),
            lambda _: HumanMessage("inside"),
            lambda _: 1j,
        ]
    ),
    atoms,
)
values = st.recursive(
    st.one_of(atoms, atoms, atoms, oddities),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
plain_values = st.recursive(
    st.none() | st.text(max_size=8) | st.integers(-(2**63), 2**64 - 1) | st.booleans() | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
plain_dicts = st.dictionaries(st.text(max_size=5), plain_values, max_size=3)
counts = st.integers(0, 2**64 - 1)


def mostly(plain: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mix the values that a field is for with others."""
    return st.integers(0, 11).flatmap(lambda chance: plain if chance else values)


blocks = st.fixed_dictionaries({"type": st.sampled_from(["text", "tool_call", "reasoning"])}) | plain_dicts
calls = st.fixed_dictionaries(
    {"name": mostly(st.text(max_size=5)), "args": mostly(plain_dicts), "id": mostly(st.none() | st.text(max_size=5))},
    optional={"type": mostly(st.just("tool_call")), "extras": plain_dicts, "index": counts},
)
raw_calls = st.fixed_dictionaries(
    {"id": st.text(max_size=3), "function": st.fixed_dictionaries({"name": texts, "arguments": st.just("{}") | texts})}
)
details = st.dictionaries(
    st.sampled_from(["audio", "cache_creation", "cache_read", "reasoning", "other"]), mostly(counts), max_size=3
)
usages = st.fixed_dictionaries(
    dict.fromkeys(USAGE, mostly(counts)),
    optional={"input_token_details": mostly(details), "output_token_details": mostly(details), "other": counts},
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "content": mostly(st.text(max_size=20) | st.lists(mostly(st.text(max_size=5) | blocks), max_size=3)),
    "additional_kwargs": mostly(
        plain_dicts | st.fixed_dictionaries({"tool_calls": mostly(st.lists(raw_calls, max_size=2))})
    ),
    "response_metadata": mostly(plain_dicts | st.fixed_dictionaries({"output_version": st.just("v1")})),
    "name": mostly(st.none() | st.text(max_size=5)),
    "id": mostly(st.none() | st.text(max_size=5)),
    "tool_calls": mostly(st.lists(calls, max_size=2)),
    "invalid_tool_calls": mostly(st.lists(calls, max_size=1)),
    "tool_call_chunks": mostly(st.lists(calls, max_size=1)),
    "usage_metadata": mostly(st.none() | usages),
    "tool_call_id": mostly(st.text(max_size=5)),
    "artifact": mostly(plain_values),
    "status": mostly(st.sampled_from(["success", "error"])),
    "role": mostly(st.text(max_size=5)),
    "chunk_position": mostly(st.sampled_from([None, "last"])),
    "type": values,
    "mood": values,
}


@st.composite
def made(draw: Any) -> Any:
    """Draw a message: of any class, validated, or made, changed or filled without, or of any fields at all."""
    cls = draw(st.sampled_from([*KINDS, AIMessage, AIMessage, ToolMessage, AIMessageChunk, Extended]))
    names = [name for name in cls.model_fields if name != "type" or draw(st.integers(0, 20)) == 0]
    fields = {name: draw(FIELDS.get(name, values)) for name in names if draw(st.integers(0, 7))}
    if draw(st.integers(0, 9)) == 0:
        fields[draw(st.sampled_from(["extra", "content_blocks", "tool_call_chunks"]))] = draw(values)
    message = None
    if draw(st.booleans()):
        try:
            message = cls(**{**{name: "" for name in ("content", "id") if name not in fields}, **fields})
        except Exception:
            message = None
    if message is None:
        message = cls.model_construct(**fields)
    if draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from(sorted(cls.model_fields)))
        message.__dict__[name] = draw(FIELDS.get(name, values))
    if draw(st.integers(0, 15)) == 0:
        message.__dict__ = dict(draw(st.permutations(list(message.__dict__.items()))))
    if draw(st.integers(0, 15)) == 0:
        message.__dict__.pop(draw(st.sampled_from(sorted(cls.model_fields))), None)
    return message


def test_any_message_is_written_and_read_as_by_langgraph(fuzz: Fuzz) -> None:
    """Bytes, objects, warnings and errors, alone and in containers."""

    @fuzz(made())
    def one(message: Any) -> str:
        agree({"messages": [message, {"x": (message,)}], "delta": _DeltaSnapshot([message])})
        return agree([message])

    assert set(fuzz.endings) <= {"stored", "refused"}


@st.composite
def stored_fields(draw: Any) -> Any:
    """Draw a class and the fields of a row: missing ones, in another order, of other types, of an older version."""
    cls = draw(st.sampled_from(KINDS))
    fields = {name: draw(FIELDS.get(name, values)) for name in cls.model_fields if name != "type"}
    tag = cls.model_fields["type"].default if draw(st.integers(0, 9)) else draw(values)
    fields = {name: tag if name == "type" else fields[name] for name in cls.model_fields}
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=1)):
        if draw(st.booleans()):
            del fields[name]
    if draw(st.integers(0, 9)) == 0:
        fields["extra"] = 1
    if draw(st.integers(0, 9)) == 0:
        fields = dict(draw(st.permutations(list(fields.items()))))
    return cls, fields


def test_any_stored_fields_are_read_as_by_langgraph(fuzz: Fuzz) -> None:
    """Rows may hold anything."""

    @fuzz(stored_fields())
    def one(stored: Any) -> str:
        return _agree_on_fields(*stored)

    assert set(fuzz.endings) <= {"read", "not packed"}


def _agree_on_fields(cls: type, fields: dict[Any, Any]) -> str:
    try:
        packed = jsonplus._msgpack_enc((cls.__module__, cls.__name__, fields, "model_validate_json"))
    except Exception:
        return "not packed"
    agree_on_bytes("msgpack", ormsgpack.packb(ormsgpack.Ext(5, packed)))
    return "read"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(PARTS))
def test_random_messages_are_written_and_read_as_by_langgraph(part: int, fuzz: Fuzz) -> None:
    """Each message and its fields, what holds it, and the same once it was changed in place: 20 values for each case.

    With the 5,000 cases of `make fuzz` these are more than 100,000.
    """
    for seed in range(part, int(os.environ.get(CASES, "100")) * VALUES, PARTS):
        chance = random.Random(seed)
        message = random_message(chance)
        fuzz.endings[_agree_on_fields(type(message), {**message.__dict__, **(message.__pydantic_extra__ or {})})] += 1
        for _ in range(2):
            fuzz.endings[agree(message)] += 1
            fuzz.endings[agree(held(chance, message))] += 1
            change(chance, message)

    assert set(fuzz.endings) <= {"stored", "refused", "read", "not packed"}
    assert fuzz.endings["stored"] + fuzz.endings["read"] > sum(fuzz.endings.values()) / 2
