"""Messages of any class and in any state, and the comparison of how they are written and read with LangGraph's way."""

from __future__ import annotations

import contextlib
import copy
import enum
import math
import pickle
import random
import uuid
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import langchain_core.messages as langchain
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel, PrivateAttr

from checkpoint_store.errors import safe_str
from checkpoint_store.serde import messages

PLAIN = JsonPlusSerializer()
KINDS = [cls for name, *_ in messages._CLASSES if (cls := getattr(langchain, name, None))]


class Colour(str, enum.Enum):
    RED = "red"


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Point:
    x: Any


class Model(BaseModel):
    x: Any = None


class Extended(HumanMessage):
    mood: str = "good"


class Same(AIMessage):
    """A class without a field of its own."""


class Secretive(HumanMessage):
    _seen: int = PrivateAttr(default=1)


class Speaking(SystemMessage):
    """A class with another way to dump itself."""

    def model_dump(self, **_: Any) -> dict[str, Any]:
        return {"content": "dumped"}


def outcome(call: Any, *args: Any) -> Any:
    """Return what a call returns, or the kind and text of its error; and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = call(*args)
        except Exception as error:
            result = type(error), safe_str(error)
    # Each once: a value that is refused has been tried twice.
    return result, sorted({str(each.message) for each in caught})


def shape(value: Any) -> Any:
    """Return all that can be seen of a value: types, order, NaN and the state of models."""
    if isinstance(value, BaseModel):
        state = [value.__dict__, value.__pydantic_extra__, value.__pydantic_private__]
        return type(value), [shape(each) for each in state], value.model_fields_set, value.__pydantic_fields_set__
    if isinstance(value, dict):
        return type(value), [(shape(name), shape(part)) for name, part in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [shape(part) for part in value]
    if isinstance(value, _DeltaSnapshot):
        return type(value), shape(value.value)
    return type(value), repr(value)


def agree(value: Any, serde: Any = PLAIN) -> str:
    """Check that a value is written, and read again, as by LangGraph. Returns whether it is stored or refused."""
    theirs = outcome(serde.dumps_typed, value)
    assert outcome(messages.dumps_typed, serde, value) == theirs
    if type(theirs[0][0]) is not str:
        return "refused"
    agree_on_bytes(*theirs[0], serde)
    return "stored"


def agree_on_bytes(kind: str, blob: bytes, serde: Any = PLAIN) -> None:
    """Check that bytes are read as by LangGraph, and that what is read can be used as its can."""
    theirs, their_warnings = outcome(serde.loads_typed, (kind, blob))
    ours, our_warnings = outcome(messages.loads_typed, serde, kind, blob)
    assert (shape(ours), our_warnings) == (shape(theirs), their_warnings)
    assert shape(copy.deepcopy(ours)) == shape(theirs)
    if isinstance(ours, BaseModel):
        assert shape(pickle.loads(pickle.dumps(ours))) == shape(theirs)  # noqa: S301 - our own
        assert shape(outcome(ours.model_dump)) == shape(outcome(theirs.model_dump))
        assert ours == theirs or "nan" in repr(shape(ours))


USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
CALL = {"name": "search", "args": {"q": ["x", {"y": None}]}, "id": "c", "type": "tool_call"}

RAW_CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
NESTED: list[Any] = [{}, {"a": [1, {"b": None}], "c": 2.5}, {"output_version": "v1", "n": 2**63}]
COMMON: dict[str, list[Any]] = {
    "content": ["", "text", ["a", {"type": "text", "text": "b"}], [{"type": "tool_call", **CALL}], []],
    "additional_kwargs": [*NESTED, {"tool_calls": [RAW_CALL]}, {"tool_calls": []}],
    "response_metadata": NESTED,
    "name": [None, "n"],
    "id": [None, "i"],
    "tool_calls": [[], [CALL], [CALL, {**CALL, "id": None}], [{**CALL, "args": {}}]],
    "invalid_tool_calls": [[], [], [{"name": "f", "args": "{", "id": "1", "error": None, "type": "invalid_tool_call"}]],
    "usage_metadata": [
        None,
        USAGE,
        {**USAGE, "input_token_details": {"audio": 1, "cache_read": 2}, "output_token_details": {"reasoning": 3}},
        {**USAGE, "output_token_details": {}},
    ],
    "tool_call_id": ["c", ""],
    "artifact": [None, "x", 1, *NESTED],
    "status": ["success", "error"],
    "role": ["r"],
    "tool_call_chunks": [[]],
    "chunk_position": [None],
}
ODD: list[Any] = [
    *[None, True, 0, -1, 2**64, 1.5, math.nan, "", "\ud800", "a\x00", b"x", [], {}, (), [1], {"x": 1}, {1: 2}, 1j, {1}],
    *[Colour.RED, Text("x"), bytearray(b"x"), Point(1), Model(x=1), Pair(1, 2), OrderedDict(a=1), uuid.UUID(int=1)],
    *[HumanMessage("in"), Document(page_content="d"), [[]], [b""], ["a", 1], [{"a": Point(1)}], {Text("a"): 1}, [CALL]],
    *[{**CALL, "x": 1}, [{**CALL, "x": 1}], [{**CALL, "args": {1: 2}}], [{"name": "n", "args": {}, "id": 1}], [USAGE]],
    *[{**USAGE, "total_tokens": True}, {**USAGE, "x": 1}, {"total_tokens": 1}, {**USAGE, "input_token_details": None}],
    *[{**USAGE, "input_token_details": {"cache_read": 1, "audio": 1}}, {**USAGE, "output_token_details": {"x": 1}}],
    *[
        dict(reversed(USAGE.items())),
        dict(reversed(CALL.items())),
        [dict(reversed(CALL.items()))],
        {"tool_calls": [RAW_CALL]},
    ],
    *[{Colour.RED: 1}, {None: 1}, {"a": {"b": {2: 3}}}, [("a",)], [["a"]], "ai", "human", "AIMessageChunk"],
]


DERIVED = [Extended, Same, Secretive, Speaking]


def _spoilt(chance: random.Random, value: Any) -> Any:
    """Return a value with an odd one somewhere inside, or in its place."""
    if isinstance(value, dict) and value and chance.random() < 0.7:
        name = chance.choice(list(value))
        return {**value, name: _spoilt(chance, value[name])}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], _spoilt(chance, value[place]), *value[place + 1 :]]
    return chance.choice(ODD)


def random_message(chance: random.Random) -> Any:
    """Return a message of any class: common fields, in every second one an odd value somewhere."""
    cls = chance.choice([*KINDS, AIMessage, AIMessage, ToolMessage, AIMessageChunk, *DERIVED])
    fields = {name: chance.choice(COMMON[name]) for name in cls.model_fields if name in COMMON}
    if cls is RemoveMessage and chance.random() < 0.9:
        fields["content"] = ""
    if chance.random() < 0.5:
        name = chance.choice(list(cls.model_fields))
        fields[name] = _spoilt(chance, fields.get(name))
    if type(fields.get("usage_metadata")) is dict and chance.random() < 0.1:
        fields["usage_metadata"] = dict(reversed(fields["usage_metadata"].items()))
    if chance.random() < 0.1:
        fields.pop(chance.choice(list(fields)))
    if chance.random() < 0.05:
        fields["extra"] = chance.choice(ODD)
    fields = copy.deepcopy(fields)  # it may be changed in place
    with contextlib.suppress(Exception):
        if chance.random() < 0.6:
            return cls(**fields)
    message = cls.model_construct(**fields)
    if chance.random() < 0.05:
        message.__dict__ = dict(chance.sample(list(message.__dict__.items()), len(message.__dict__)))
    return message


def held(chance: random.Random, message: Any) -> Any:
    """Return a value that holds a message, on any level: as channels do, as tasks do, and as nothing should."""
    return chance.choice(
        [
            lambda: message,
            lambda: [message],
            lambda: [HumanMessage("x"), message, AIMessage("y"), message],
            lambda: {"messages": [message, {"x": (message,)}]},
            lambda: ("node", {"messages": [message]}),
            lambda: _DeltaSnapshot([message]),
            lambda: [_DeltaSnapshot({"a": _DeltaSnapshot([message])})],
            lambda: Point([message]),
            lambda: Model(x=message),
            lambda: Pair(message, [message]),
            lambda: {1: message, None: [message]},
            lambda: HumanMessage("x", additional_kwargs={"m": message}),
            lambda: ToolMessage("x", tool_call_id="c", artifact=[message]),
            lambda: ToolMessage("x", tool_call_id="c", artifact=Point(message)),
        ]
    )()


def change(chance: random.Random, message: Any) -> None:
    """Change a message in place, by what its user may do, and by what nobody should."""
    fields = message.__dict__
    name = chance.choice(list(fields) or ["content"])
    kind, odd = chance.randrange(8), copy.deepcopy(chance.choice(ODD))
    if kind == 0:
        fields[name] = odd
    elif kind == 1:
        fields[name] = fields.pop(name, None)
    elif kind == 2:
        fields.pop(name, None)
    elif kind == 3:
        fields["cached"] = 1
    elif kind == 4:
        object.__setattr__(message, "__pydantic_extra__", chance.choice([None, {}, {"extra": odd}]))
    elif kind == 5:
        message.__pydantic_fields_set__.clear()
    elif kind == 6:
        object.__setattr__(message, "__pydantic_private__", chance.choice([None, {}, {"_seen": 2}]))
    else:
        container = chance.choice([fields.get(name), fields.get("additional_kwargs")])
        if type(container) is list:
            container.append(odd)
        elif type(container) is dict:
            container[chance.choice(["a", "tool_calls", 1])] = odd
