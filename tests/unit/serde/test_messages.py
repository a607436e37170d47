"""Messages by the short way, against LangGraph's serializer: the same bytes, the same objects, the same refusals."""

from __future__ import annotations

import contextlib
import copy
import enum
import math
import os
import pickle
import random
import subprocess
import sys
import uuid
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import langchain_core.messages as langchain
import ormsgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel, PrivateAttr, model_validator

from checkpoint_store.errors import safe_str
from checkpoint_store.serde import messages

CASES = int(os.environ.get("CHECKPOINT_STORE_FUZZ_CASES", "500"))
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


def agree(value: Any, serde: Any = PLAIN) -> None:
    """Check that a value is written, and read again, as by LangGraph."""
    theirs = outcome(serde.dumps_typed, value)
    assert outcome(messages.dumps_typed, serde, value) == theirs
    if type(theirs[0][0]) is str:
        agree_on_bytes(*theirs[0], serde)


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


def is_short(message: Any) -> bool:
    """Return whether a message goes the short way, both ways."""
    asked: list[Any] = []

    def default(value: Any) -> Any:
        asked.append(value)
        return theirs(value)

    with pytest.MonkeyPatch.context() as patch:
        theirs = jsonplus._msgpack_default
        patch.setattr(jsonplus, "_msgpack_default", default)
        _, blob = messages.dumps_typed(PLAIN, message)

    def hook(code: int, data: bytes) -> Any:
        asked.append(data)

    ormsgpack.unpackb(blob, ext_hook=messages._ext_hook(hook), option=ormsgpack.OPT_NON_STR_KEYS)
    return not asked


USAGE = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
CALL = {"name": "search", "args": {"q": ["x", {"y": None}]}, "id": "c", "type": "tool_call"}

RAW_CALL = {"id": "1", "function": {"name": "f", "arguments": "{}"}}

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
    fields = {name: draw(FIELDS[name]) for name in names if draw(st.integers(0, 7))}
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
        message.__dict__[name] = draw(FIELDS[name])
    if draw(st.integers(0, 15)) == 0:
        message.__dict__ = dict(draw(st.permutations(list(message.__dict__.items()))))
    if draw(st.integers(0, 15)) == 0:
        message.__dict__.pop(draw(st.sampled_from(sorted(cls.model_fields))), None)
    return message


def _many(test: Any) -> Any:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return settings(max_examples=max(CASES // 10, 1), deadline=None, suppress_health_check=checks)(test)


@_many
@given(made())
def test_any_message_is_written_and_read_as_by_langgraph(message: Any) -> None:
    """Bytes, objects, warnings and errors, alone and in containers."""
    agree([message])
    agree({"messages": [message, {"x": (message,)}], "delta": _DeltaSnapshot([message])})


@_many
@given(st.sampled_from(KINDS), st.data())
def test_any_stored_fields_are_read_as_by_langgraph(cls: Any, data: Any) -> None:
    """Rows may hold anything: fields that are missing, in another order, of other types, of an older version."""
    fields = {name: data.draw(FIELDS[name]) for name in cls.model_fields if name != "type"}
    tag = cls.model_fields["type"].default if data.draw(st.integers(0, 9)) else data.draw(values)
    fields = {name: tag if name == "type" else fields[name] for name in cls.model_fields}
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=1)):
        if data.draw(st.booleans()):
            del fields[name]
    if data.draw(st.integers(0, 9)) == 0:
        fields["extra"] = 1
    if data.draw(st.integers(0, 9)) == 0:
        fields = dict(data.draw(st.permutations(list(fields.items()))))
    try:
        packed = jsonplus._msgpack_enc((cls.__module__, cls.__name__, fields, "model_validate_json"))
    except Exception:
        return
    agree_on_bytes("msgpack", ormsgpack.packb(ormsgpack.Ext(5, packed)))


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
    *[{Colour.RED: 1}, {None: 1}, {"a": {"b": {2: 3}}}, [("a",)], [["a"]], "ai", "human", "AIMessageChunk"],
]


def _spoilt(chance: random.Random, value: Any) -> Any:
    """Return a value with an odd one somewhere inside, or in its place."""
    if isinstance(value, dict) and value and chance.random() < 0.7:
        name = chance.choice(list(value))
        return {**value, name: _spoilt(chance, value[name])}
    if isinstance(value, list) and value and chance.random() < 0.7:
        place = chance.randrange(len(value))
        return [*value[:place], _spoilt(chance, value[place]), *value[place + 1 :]]
    return chance.choice(ODD)


def _random_message(chance: random.Random) -> Any:
    cls = chance.choice([*KINDS, AIMessage, AIMessage, ToolMessage, AIMessageChunk, Extended])
    fields = {name: chance.choice(COMMON[name]) for name in cls.model_fields if name in COMMON}
    if cls is RemoveMessage and chance.random() < 0.9:
        fields["content"] = ""
    if chance.random() < 0.5:
        name = chance.choice(list(cls.model_fields))
        fields[name] = _spoilt(chance, fields.get(name))
    if chance.random() < 0.1:
        fields.pop(chance.choice(list(fields)))
    if chance.random() < 0.05:
        fields["extra"] = chance.choice(ODD)
    with contextlib.suppress(Exception):
        if chance.random() < 0.6:
            return cls(**fields)
    message = cls.model_construct(**fields)
    if chance.random() < 0.05:
        message.__dict__ = dict(chance.sample(list(message.__dict__.items()), len(message.__dict__)))
    return message


def test_random_messages_are_written_and_read_as_by_langgraph() -> None:
    """Common fields, with an odd value somewhere in every second message; fast enough for any number of them."""
    for seed in range(CASES):
        message = _random_message(random.Random(seed))
        agree([message])
        fields = {**message.__dict__, **(message.__pydantic_extra__ or {})}
        try:
            packed = jsonplus._msgpack_enc((type(message).__module__, type(message).__name__, fields, "m"))
        except Exception:  # noqa: S112 - both raise, which `agree` has seen
            continue
        agree_on_bytes("msgpack", ormsgpack.packb(ormsgpack.Ext(5, packed)))


def test_plain_messages_of_each_class_go_the_short_way() -> None:
    """With content as text and as blocks, metadata, tool calls, usage and artifacts."""
    assert set(messages._KINDS) == set(KINDS)
    nested = {"model": "m", "usage": {"a": [1, 2.5, None, True]}, "output_version": "v1"}
    for cls in KINDS:
        own = {name: "x" for name in ("tool_call_id", "role", "name") if name in cls.model_fields}
        if cls is RemoveMessage:
            examples = [RemoveMessage("i"), RemoveMessage("i", name="n", response_metadata=nested)]
        else:
            contents = ["text", ["a", {"type": "text", "text": "b"}], []]
            examples = [cls(content=content, **own, additional_kwargs=nested) for content in contents]
        for message in examples:
            assert is_short(message), message
            agree(message)
    details = {"input_token_details": {"cache_read": 1}, "output_token_details": {"audio": 1, "reasoning": 2}}
    for usage in (None, USAGE, {**USAGE, **details}, {**USAGE, "output_token_details": {}}):
        message = AIMessage("", id="i", tool_calls=[CALL], usage_metadata=usage, response_metadata=nested)
        assert is_short(message)
        agree(message)
    assert is_short(ToolMessage("x", tool_call_id="c", artifact=nested, status="error"))


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage("x", extra=1),
        HumanMessage("\ud800"),
        HumanMessage("x", additional_kwargs={"n": 2**70}),
        HumanMessage("x", additional_kwargs={1: 2}),
        HumanMessage("x", additional_kwargs={"p": Point(1)}),
        HumanMessage("x", additional_kwargs={"m": Model()}),
        HumanMessage("x", additional_kwargs={"d": OrderedDict(a=1)}),
        HumanMessage.model_construct(content=Text("x")),
        HumanMessage.model_construct(additional_kwargs={}),
        HumanMessage.model_construct(content=None),
        AIMessage.model_construct(content="x", additional_kwargs={"tool_calls": [RAW_CALL]}),
        AIMessage.model_construct(content="", tool_calls=[{**CALL, "other": 1}]),
        AIMessage.model_construct(content="", usage_metadata={**USAGE, "input_token_details": None}),
        AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{", "id": "1", "error": None}]),
        AIMessageChunk("x", tool_call_chunks=[{"name": "f", "args": "{}", "id": "1", "index": 0}]),
        ToolMessage("x", tool_call_id="c", artifact=Document(page_content="x")),
        ToolMessage("x", tool_call_id="c", artifact=HumanMessage("x")),
        Extended("x"),
    ],
    ids=repr,
)
def test_what_is_odd_goes_langgraphs_way(message: Any) -> None:
    """Something is asked of LangGraph, and all is as it says."""
    with contextlib.suppress(ormsgpack.MsgpackEncodeError):
        assert not is_short(message)
    agree([message])


def test_nan_and_bytes_and_depth_are_as_langgraph_has_them() -> None:
    """Values of any depth: at some depth both raise."""
    agree(HumanMessage("x", additional_kwargs={"n": math.nan, "i": -math.inf, "z": -0.0, "b": b"\xff", "l": [b""]}))
    for depth in range(1, 300):
        nested: Any = 1
        for level in range(depth):
            nested = [nested] if level % 2 else {"x": nested}
        agree([HumanMessage("x", additional_kwargs={"n": nested})])
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    agree([HumanMessage.model_construct(content=cyclic)])


def test_what_is_read_is_independent_of_what_else_is_read() -> None:
    """No container or set of names is shared between messages."""
    blob = messages.dumps_typed(PLAIN, [HumanMessage("x"), HumanMessage("y")])
    first, second = messages.loads_typed(PLAIN, *blob)
    first.additional_kwargs["x"] = 1
    first.content = "z"
    first.__pydantic_extra__["e"] = 1
    first.__pydantic_fields_set__.clear()
    assert shape(second) == shape(PLAIN.loads_typed(blob)[1])
    assert shape(messages.loads_typed(PLAIN, *blob)) == shape(PLAIN.loads_typed(blob))


@pytest.mark.parametrize("change", ["field", "default", "validator", "private", "config", "dump", "order"])
def test_a_class_that_is_not_as_described_goes_langgraphs_way(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a version of langchain-core may have it: another field, default, validator, and the like."""
    namespace: dict[str, Any] = {"__module__": HumanMessage.__module__, "__annotations__": {}}
    if change == "field":
        namespace |= {"__annotations__": {"mood": "str"}, "mood": "good"}
    elif change == "default":
        namespace |= {"__annotations__": {"name": "str | None"}, "name": "me"}
    elif change == "validator":
        namespace["check"] = model_validator(mode="before")(classmethod(lambda _, values: values))
    elif change == "private":
        namespace["_seen"] = PrivateAttr(default=1)
    elif change == "config":
        namespace["model_config"] = {"extra": "ignore"}
    elif change == "dump":
        namespace["model_dump"] = lambda _, **__: {"content": "dumped"}
    elif change == "order":
        namespace |= {"__annotations__": {"id": "int | None"}, "id": None}
    patched = type(HumanMessage)("HumanMessage", (HumanMessage,), namespace)
    monkeypatch.setattr(langchain, "HumanMessage", patched)
    monkeypatch.setattr("langchain_core.messages.human.HumanMessage", patched)

    assert len(messages.known_kinds()) == len(messages._KINDS) - 1
    assert patched not in messages.known_kinds()
    for message in (patched("x"), HumanMessage("x")):
        agree([message, SystemMessage("y")])


def test_a_class_built_anew_goes_langgraphs_way() -> None:
    """Also if that happens after the first message: in a process of its own, since it can't be undone."""
    program = """
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import Field
from checkpoint_store.serde import messages

serde = JsonPlusSerializer()
before = messages.dumps_typed(serde, HumanMessage("x"))
HumanMessage.model_fields["name"].exclude = True
HumanMessage.model_rebuild(force=True)
after = messages.dumps_typed(serde, HumanMessage("x"))
assert after == serde.dumps_typed(HumanMessage("x")) != before
assert HumanMessage not in messages.known_kinds()
assert messages.loads_typed(serde, *before) == serde.loads_typed(before)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_langgraph_that_packs_otherwise_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example of each class is compared before one goes the short way."""
    theirs = jsonplus._msgpack_default
    monkeypatch.setattr(jsonplus, "_msgpack_enc", lambda value: ormsgpack.packb([1, value], default=theirs))

    assert messages.known_kinds() == {}


class Other(JsonPlusSerializer):
    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return super().dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed(data)


class Derived(JsonPlusSerializer):
    pass


@pytest.mark.parametrize(
    ("serde", "writes", "reads"),
    [
        (JsonPlusSerializer(), True, True),
        (JsonPlusSerializer(pickle_fallback=True), True, True),
        (JsonPlusSerializer(allowed_msgpack_modules=None), True, True),
        (Derived(), True, True),
        (Other(), False, False),
        (JsonPlusSerializer(__unpack_ext_hook__=lambda *_: None), True, False),
        (EncryptedSerializer(None, JsonPlusSerializer()), False, False),  # type: ignore[arg-type]
    ],
)
def test_only_langgraphs_plain_serializer_is_stood_in_for(serde: Any, writes: bool, reads: bool) -> None:
    """A serializer with its own say, or its own hook, has it."""
    assert (messages.writes(serde), messages.reads(serde)) == (writes, reads)


@pytest.mark.parametrize("allowed", [None, [], [("x", "y")], [Model], True])
def test_types_are_refused_as_by_langgraph(allowed: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Beside messages, inside of them, and named like one from elsewhere."""
    serde = JsonPlusSerializer(allowed_msgpack_modules=allowed)
    named = jsonplus._msgpack_enc(("langchain_core.messages", "HumanMessage", {"content": "x"}, "m"))
    inside = jsonplus._msgpack_enc(
        ("langchain_core.messages.human", "HumanMessage", {"content": [Model(x=1)]}, "model_validate_json")
    )
    agree([HumanMessage("x"), Model(x=1), {"a": Point(1)}, _DeltaSnapshot([Model(x=1), HumanMessage("y")])], serde)
    for packed in (named, inside):
        agree_on_bytes("msgpack", ormsgpack.packb([ormsgpack.Ext(5, packed)]), serde)
    ours = messages.loads_typed(serde, *serde.dumps_typed([HumanMessage("x"), Model(x=1)]))
    assert type(ours[0]) is HumanMessage
    assert type(ours[1]) is (Model if allowed in (True, [Model]) else dict)


def test_pickle_stays_the_way_out() -> None:
    """A value that only pickle can hold, beside a message."""
    serde = JsonPlusSerializer(pickle_fallback=True)
    agree([HumanMessage("x"), 1j], serde)
    assert messages.dumps_typed(serde, [HumanMessage("x"), 1j])[0] == "pickle"


def test_packing_calls_no_python_code() -> None:
    """So that no other thread has a turn while what a node may be changing is gone through."""
    called: list[str] = []

    class Loud(dict[str, Any]):
        def __getattribute__(self, name: str) -> Any:
            called.append(name)
            return super().__getattribute__(name)

        def __iter__(self) -> Any:
            called.append("iter")
            return super().__iter__()

    class Word(str):
        def __hash__(self) -> int:
            called.append("hash")
            return 1

    class Case(enum.Enum):
        ONE = 1

    odd = [Loud(a=1), Case.ONE, Point(1), uuid.UUID(int=1), Pair(1, 2), Word("x"), Model(), object(), {1}, 1j]
    for value in odd:
        fields = {"content": "x", "additional_kwargs": {"a": [1, {"b": value}]}}
        called.clear()
        sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
        try:
            messages._packb(fields, None, messages._EXACT)
        except ormsgpack.MsgpackEncodeError:
            pass
        else:
            called.append(f"{type(value)} was packed")
        finally:
            sys.setprofile(None)
        assert called == []


def test_a_private_name_that_is_gone_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """LangGraph and Pydantic may change theirs at any release: then all goes LangGraph's way."""
    assert messages.known_kinds()
    with monkeypatch.context() as patch:
        patch.delattr(jsonplus, "_option")
        assert not messages.known_kinds()
    monkeypatch.setattr(messages, "_SETTERS", [None])
    assert not messages.known_kinds()


def test_a_serializer_with_a_hook_of_its_own_is_asked() -> None:
    """Also where it has set the hook itself, which LangGraph's constructor takes too."""

    class Own(JsonPlusSerializer):
        def __init__(self) -> None:
            super().__init__()
            self._unpack_ext_hook = lambda *_: "mine"

    assert messages.reads(JsonPlusSerializer())
    assert messages.reads(JsonPlusSerializer(allowed_msgpack_modules=[("builtins", "object")]))
    assert not messages.reads(Own())
