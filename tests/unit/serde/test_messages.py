"""Messages by the short way, against LangGraph's serializer: which of them take it, and that it is as safe."""

from __future__ import annotations

import contextlib
import enum
import math
import subprocess
import sys
import uuid
from collections import OrderedDict
from typing import Any

import langchain_core.messages as langchain
import ormsgpack
import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import PrivateAttr, model_validator

from checkpoint_store.serde import messages
from tests.fuzz.random_messages import (
    CALL,
    KINDS,
    PLAIN,
    RAW_CALL,
    USAGE,
    Extended,
    Model,
    Pair,
    Point,
    Text,
    agree,
    agree_on_bytes,
    shape,
)


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


def test_fields_in_any_order_are_written_in_that_order() -> None:
    """As they are after one was deleted and set again."""
    for message in (AIMessage("x", usage_metadata=USAGE), ToolMessage("x", tool_call_id="c"), HumanMessage("x")):
        for name in [*message.__dict__]:
            message.__dict__[name] = message.__dict__.pop(name)
            agree([message])
        del message.__dict__["id"]
        message.__dict__["cached"] = None
        agree([message])
    message = ToolMessage("x", tool_call_id="c")
    del message.__dict__["artifact"]
    message.__dict__["cached"] = None
    agree([message])


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


def test_a_langchain_without_some_of_the_names_is_asked() -> None:
    """As an older one is: what has a field of a class that is not there goes LangGraph's way."""
    program = """
import langchain_core.messages as langchain

lazy = getattr(langchain, "__getattr__", None)

def without(name):
    if name == "InputTokenDetails":
        raise AttributeError(name)
    return lazy(name)

langchain.__getattr__ = without
vars(langchain).pop("InputTokenDetails", None)

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from checkpoint_store.serde import messages

assert AIMessage not in messages.known_kinds()
assert HumanMessage in messages.known_kinds()
serde, chat = JsonPlusSerializer(), [HumanMessage("x"), AIMessage("y")]
stored = messages.dumps_typed(serde, chat)
assert stored == serde.dumps_typed(chat)
assert messages.loads_typed(serde, *stored) == chat
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
    with monkeypatch.context() as patch:
        patch.setattr(messages, "_SETTERS", [None])
        assert not messages.known_kinds()
    monkeypatch.setattr(messages, "_HOOK", None)
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
