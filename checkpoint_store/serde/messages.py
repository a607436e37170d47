"""LangGraph's serializer, with a short way for LangChain's messages: the same bytes, and the same objects.

LangGraph has Pydantic make a dict of each message before it packs it, and validate each one that it reads. A message is
plain if neither would change anything: its fields are packed as they are, and become a message again as they are. All
else goes LangGraph's way, and so does every message of a class that is not as it is described here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import fields as fields_of
from functools import lru_cache
from itertools import chain, combinations
from typing import Any, Literal, NotRequired, get_type_hints

import ormsgpack
from langchain_core import messages as langchain
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, EXT_PYDANTIC_V2, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel

try:
    from langchain_core.messages import InputTokenDetails, InvalidToolCall, OutputTokenDetails, ToolCall, UsageMetadata
except ImportError:  # older versions lack some of them: then no class that refers to one is as described here
    InputTokenDetails = InvalidToolCall = OutputTokenDetails = ToolCall = UsageMetadata = type(None)  # type: ignore[assignment, misc]

_BLOCKS = frozenset({str, dict})
_COUNT = frozenset({int})

# A node may be changing a message's containers in another thread. Nothing of them is plain that Python code would be
# called for, and there is no `default`: so one is packed in one go, without another thread's turn.
_EXACT = (
    ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

# Names that LangGraph and Pydantic may change: where one is missing, no class is taken the short way.
_PRIVATE = ("_option", "_msgpack_default")
_HOOK = getattr(getattr(JsonPlusSerializer(), "_unpack_ext_hook", None), "__code__", None)
_SAFE: frozenset[Any] = getattr(getattr(jsonplus, "_lg_msgpack", None), "SAFE_MSGPACK_TYPES", frozenset())

_Ext, _packb, _unpackb = ormsgpack.Ext, ormsgpack.packb, ormsgpack.unpackb
# LangGraph packs a tuple of four: module, name, fields and this.
_METHOD = "model_validate_json"

_new = object.__new__
_SLOTS = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
_SETTERS: list[Any] = [getattr(BaseModel.__dict__.get(name), "__set__", None) for name in _SLOTS]
_set_dict, _set_fields, _set_extra, _set_private = _SETTERS

_Fields = dict[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A class of messages."""

    cls: type[BaseModel]
    module: str
    name: str
    names: list[str]
    """Those of its fields, in order."""
    given: set[str]
    """The same, as a message has them that was made with all of them."""
    tag: str
    """The value of the field `type`."""
    are_plain: Callable[[dict[str, Any]], bool] | None
    """Whether the fields that not every message has are plain."""
    serializer: object
    """Pydantic's; another one once the class was built anew."""


def writes(serde: SerializerProtocol) -> bool:
    """Return whether a serializer writes as LangGraph's own plain one does, so that `dumps_typed` may stand in."""
    return getattr(getattr(serde, "dumps_typed", None), "__func__", None) is JsonPlusSerializer.dumps_typed


def reads(serde: SerializerProtocol) -> bool:
    """Return whether a serializer reads as LangGraph's own plain one does, so that `loads_typed` may stand in."""
    return (
        bool(_KINDS)
        and getattr(getattr(serde, "loads_typed", None), "__func__", None) is JsonPlusSerializer.loads_typed
        and getattr(getattr(serde, "_unpack_ext_hook", None), "__code__", None) is _HOOK
    )


def dumps_typed(serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
    """Return what `serde.dumps_typed` does, of a serializer that `writes`."""
    if type(value) in _HOLDERS:
        try:
            return "msgpack", _packed(value)
        except Exception:  # noqa: S110 - LangGraph's way has the same error, or a way out of it
            pass
    return serde.dumps_typed(value)


def loads_typed(serde: SerializerProtocol, kind: str, blob: bytes) -> Any:
    """Return what `serde.loads_typed` does, of a serializer that `reads`."""
    if kind != "msgpack":
        return serde.loads_typed((kind, blob))
    return _unpacked(blob, _ext_hook(serde._unpack_ext_hook))  # type: ignore[attr-defined]


def _packed(value: Any) -> bytes:
    # A node may be changing it in another thread, which gets a turn wherever `default` is called, and ormsgpack would
    # go on in the memory of a list that has shrunk: LangGraph's own way ends the process then.
    if type(value) is list or type(value) is dict:
        value = value.copy()
    return _packb(value, default=_default, option=jsonplus._option)


def _default(value: Any) -> Any:
    """Return what LangGraph's own `default` does for a value that msgpack does not know."""
    kind = _KINDS.get(type(value))
    if kind is not None:
        try:
            fields = value.__dict__.copy()
            if (
                len(fields) == len(kind.names)
                and not value.__pydantic_extra__
                and value.__pydantic_serializer__ is kind.serializer
                and _is_plain(fields, kind)
            ):
                return _Ext(EXT_PYDANTIC_V2, _packb((kind.module, kind.name, fields, _METHOD), None, _EXACT))
        except Exception:  # noqa: S110 - whatever it is, LangGraph says so
            pass
    elif type(value) is _DeltaSnapshot:
        return _Ext(EXT_DELTA_SNAPSHOT, _packed(value.value))
    return jsonplus._msgpack_default(value)


def _unpacked(blob: bytes, ext_hook: Callable[[int, bytes], Any]) -> Any:
    return _unpackb(blob, ext_hook=ext_hook, option=ormsgpack.OPT_NON_STR_KEYS)


@lru_cache(maxsize=16)
def _ext_hook(langgraph: Callable[[int, bytes], Any]) -> Callable[[int, bytes], Any]:
    """Return LangGraph's `ext_hook` with the short way."""
    kinds = {kind.name: kind for kind in _KINDS.values()}
    modules = sys.modules

    def ext_hook(code: int, data: bytes) -> Any:
        if code == EXT_PYDANTIC_V2:
            try:
                # Without a hook, or keys that are no strings: what needs them is not plain.
                module, name, fields, _ = _unpackb(data)
                kind = kinds[name]
                message = _new(kind.cls)
                if (
                    module == kind.module
                    and [*fields] == kind.names
                    and getattr(modules[kind.module], kind.name) is kind.cls
                    and message.__pydantic_serializer__ is kind.serializer
                    and _is_plain(fields, kind)
                ):
                    _set_dict(message, fields)
                    _set_fields(message, kind.given.copy())
                    _set_extra(message, {})
                    _set_private(message, None)
                    return message
            except Exception:  # noqa: S110 - whatever it is, LangGraph says so
                pass
        elif code == EXT_DELTA_SNAPSHOT:
            return _DeltaSnapshot(_unpacked(data, ext_hook))
        return langgraph(code, data)

    return ext_hook


def _is_plain(fields: dict[str, Any], kind: _Kind) -> bool:
    """Return whether neither dumping nor validating a message with these fields would change one.

    Raises:
        KeyError: If one is missing.
    """
    content, name, id_ = fields["content"], fields["name"], fields["id"]
    return (
        (type(content) is str or (type(content) is list and _BLOCKS.issuperset(map(type, content))))
        and type(fields["additional_kwargs"]) is dict
        and type(fields["response_metadata"]) is dict
        and fields["type"] == kind.tag
        and (name is None or type(name) is str)
        and (id_ is None or type(id_) is str)
        and (kind.are_plain is None or kind.are_plain(fields))
    )


def _of_ai(fields: dict[str, Any]) -> bool:
    calls, invalid, usage = fields["tool_calls"], fields["invalid_tool_calls"], fields["usage_metadata"]
    return (
        type(calls) is list
        and type(invalid) is list
        and not invalid
        # Without calls, those that a model's provider has made are parsed.
        and (all(map(_is_call, calls)) if calls else "tool_calls" not in fields["additional_kwargs"])
        and (usage is None or _is_usage(usage))
    )


def _is_call(call: Any) -> bool:
    return (
        type(call) is dict
        and [*call] == _CALL
        and type(call["name"]) is str
        and type(call["args"]) is dict
        and (call["id"] is None or type(call["id"]) is str)
        and call["type"] == "tool_call"
    )


def _is_usage(usage: Any) -> bool:
    return (
        type(usage) is dict
        and ([*usage] == _COUNTS or _has_details(usage))
        and type(usage["input_tokens"]) is int
        and type(usage["output_tokens"]) is int
        and type(usage["total_tokens"]) is int
    )


def _has_details(usage: dict[str, Any]) -> bool:
    return (
        (*usage,) in _DETAILED
        and _are_details(usage.get("input_token_details", {}), _INPUT_DETAILS)
        and _are_details(usage.get("output_token_details", {}), _OUTPUT_DETAILS)
    )


def _are_details(details: Any, orders: frozenset[tuple[str, ...]]) -> bool:
    return type(details) is dict and tuple(details) in orders and _COUNT.issuperset(map(type, details.values()))


def _of_tool(fields: dict[str, Any]) -> bool:
    return "artifact" in fields and type(fields["tool_call_id"]) is str and fields["status"] in ("success", "error")


def _of_chat(fields: dict[str, Any]) -> bool:
    return type(fields["role"]) is str


def _of_function(fields: dict[str, Any]) -> bool:
    return type(fields["name"]) is str


def _of_removal(fields: dict[str, Any]) -> bool:
    return bool(fields["content"] == "")


def _orders(*names: str) -> frozenset[tuple[str, ...]]:
    """Return every choice of names, in order."""
    return frozenset(chain.from_iterable(combinations(names, size) for size in range(len(names) + 1)))


_INPUT_DETAILS = _orders("audio", "cache_creation", "cache_read")
_OUTPUT_DETAILS = _orders("audio", "reasoning")
_CALL = ["name", "args", "id", "type"]
_COUNTS = ["input_tokens", "output_tokens", "total_tokens"]
_DETAILED = frozenset((*_COUNTS, *details) for details in _orders("input_token_details", "output_token_details"))

# What follows is checked before a class is taken the short way: another version's may have a field more.
_REQUIRED: Any = ...
_FIELDS: _Fields = {
    "content": (str | list[str | dict[Any, Any]], _REQUIRED),
    "additional_kwargs": (dict[Any, Any], {}),
    "response_metadata": (dict[Any, Any], {}),
    "type": (str, _REQUIRED),
    "name": (str | None, None),
    "id": (str | None, None),
}
_AI: _Fields = {
    "tool_calls": (list[ToolCall], []),
    "invalid_tool_calls": (list[InvalidToolCall], []),
    "usage_metadata": (UsageMetadata | None, None),
}
_TOOL: _Fields = {
    "tool_call_id": (str, _REQUIRED),
    "artifact": (Any, None),
    "status": (Literal["success", "error"], "success"),
}
_CHAT: _Fields = {"role": (str, _REQUIRED)}
_FUNCTION: _Fields = {"name": (str, _REQUIRED)}
_DICTS: Mapping[Any, dict[str, Any]] = {
    ToolCall: {"name": str, "args": dict[str, Any], "id": str | None, "type": NotRequired[Literal["tool_call"]]},
    InputTokenDetails: {"audio": int, "cache_creation": int, "cache_read": int},
    OutputTokenDetails: {"audio": int, "reasoning": int},
    UsageMetadata: {
        "input_tokens": int,
        "output_tokens": int,
        "total_tokens": int,
        "input_token_details": NotRequired[InputTokenDetails],
        "output_token_details": NotRequired[OutputTokenDetails],
    },
}
_TEXTS = {"content", "id", "name", "tool_call_id", "role"}
_CLASSES: list[tuple[str, str, _Fields, list[str], Callable[[dict[str, Any]], bool] | None]] = [
    ("HumanMessage", "human", {}, [], None),
    ("SystemMessage", "system", {}, [], None),
    ("AIMessage", "ai", _AI, ["_backwards_compat_tool_calls"], _of_ai),
    ("ToolMessage", "tool", _TOOL, ["coerce_args"], _of_tool),
    ("ChatMessage", "chat", _CHAT, [], _of_chat),
    ("FunctionMessage", "function", _FUNCTION, [], _of_function),
    ("RemoveMessage", "remove", {}, [], _of_removal),
    ("HumanMessageChunk", "HumanMessageChunk", {}, [], None),
    ("SystemMessageChunk", "SystemMessageChunk", {}, [], None),
    ("ToolMessageChunk", "ToolMessageChunk", _TOOL, ["coerce_args"], _of_tool),
    ("ChatMessageChunk", "ChatMessageChunk", _CHAT, [], _of_chat),
    ("FunctionMessageChunk", "FunctionMessageChunk", _FUNCTION, [], _of_function),
]


def known_kinds() -> dict[type, _Kind]:
    """Return the classes that are as they are described here, as far as LangGraph trusts them."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return {}  # other threads would have their turn while a message is packed
    if _HOOK is None or not all(_SETTERS) or not all(hasattr(jsonplus, name) for name in _PRIVATE):
        return {}
    kinds = {}
    for name, tag, own, validators, are_plain in _CLASSES:
        cls = getattr(langchain, name, None)
        fields = _FIELDS | {"type": (Literal[tag], tag)} | own
        if cls is not None and _is_as_described(cls, fields, validators):
            path, names = (cls.__module__, cls.__name__), [*fields]
            kind = _Kind(cls, *path, names, {*names}, tag, are_plain, cls.__pydantic_serializer__)
            if _is_packed_as_here(kind):
                kinds[cls] = kind
    return kinds


def _is_packed_as_here(kind: _Kind) -> bool:
    """Return whether LangGraph packs an example of a class as is done here."""
    example = kind.cls(**dict.fromkeys(kind.given & _TEXTS, ""))
    here = _Ext(EXT_PYDANTIC_V2, _packb((kind.module, kind.name, example.__dict__, _METHOD), None, _EXACT))
    return _packb(here) == JsonPlusSerializer().dumps_typed(example)[1]


def _is_as_described(cls: type[BaseModel], fields: _Fields, validators: list[str]) -> bool:
    found = cls.model_fields
    decorators = cls.__pydantic_decorators__
    return (
        [(name, _described(field)) for name, field in found.items()] == list(fields.items())
        and all(_is_bare(field) for name, field in found.items())
        and list(chain.from_iterable(getattr(decorators, each.name) for each in fields_of(decorators))) == validators
        and cls.model_config == {"extra": "allow"}
        and not (cls.__private_attributes__ or cls.__pydantic_post_init__)
        and cls.model_dump is BaseModel.model_dump
        and (cls.__module__, cls.__name__) in _SAFE
        and (fields.keys().isdisjoint(_AI) or all(map(_is_dict_as_described, _DICTS)))
    )


def _described(field: Any) -> tuple[Any, Any]:
    return field.annotation, _REQUIRED if field.is_required() else field.get_default(call_default_factory=True)


def _is_bare(field: Any) -> bool:
    return not (field.alias or field.validation_alias or field.serialization_alias or field.exclude)


def _is_dict_as_described(cls: Any) -> bool:
    return bool(get_type_hints(cls, include_extras=True) == _DICTS[cls])


_KINDS = known_kinds()
_HOLDERS = frozenset({list, dict, tuple, _DeltaSnapshot, *_KINDS} if _KINDS else ())
