"""Stored values are looked at without being made: nothing is imported, nothing is called, whatever a row contains."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send

from checkpoint_store.cli import values
from checkpoint_store.cli.safe_decode import Call, Mapping, Sealed, safe_decode
from checkpoint_store.cli.values import UNLIMITED, Limits, as_json, lines

SERDE = JsonPlusSerializer(pickle_fallback=True)


def ext(code: int, *content: Any) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb(content))


def text(value: Any, limits: Limits = UNLIMITED) -> str:
    return "\n".join(lines(value, limits))


class Colour(str, Enum):
    RED = "red"


@dataclass
class Order:
    item: str
    amount: Decimal


class Bomb:
    def __reduce__(self) -> Any:
        return eval, ("1/0",)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "None"),
        ([1, 2.5, True, None, "a"], "[1, 2.5, True, None, 'a']"),
        ({"a": {"b": []}}, "{'a': {'b': []}}"),
        ({1: "a", (2, 3): "b"}, "{1: 'a', [2, 3]: 'b'}"),
        (b"\x00\x01\xff", "<3 B of bytes: 00 01 ff>"),
        (UUID(int=7), "uuid.UUID('00000000000000000000000000000007')"),
        (datetime(2026, 3, 2, tzinfo=UTC), "datetime.datetime.fromisoformat('2026-03-02T00:00:00+00:00')"),
        (timedelta(days=3), "datetime.timedelta(3, 0, 0)"),
        (Decimal("1.50"), "decimal.Decimal('1.50')"),
        ({"x"}, "set(['x'])"),
        (deque([1]), "collections.deque([1])"),
        ([Colour.RED], f"[{__name__}.Colour('red')]"),
        (Order("tea", Decimal(2)), f"{__name__}.Order(item='tea', amount=decimal.Decimal('2'))"),
        (Send("node", {"n": 1}), "langgraph.types.Send('node', {'n': 1})"),
        (_DeltaSnapshot(["a"]), "langgraph._DeltaSnapshot(['a'])"),
        (float("nan"), "nan"),
        (["é🙂"], "['é🙂']"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_langgraph_stores_is_shown_as_what_it_is(value: Any, shown: str) -> None:
    """Each value that the serializer takes, as the call that makes it."""
    assert text(safe_decode(*SERDE.dumps_typed(value))) == shown


def test_messages_read_like_messages() -> None:
    """Without their modules, and without what goes without saying; whole on demand."""
    value = safe_decode(*SERDE.dumps_typed([HumanMessage("Hi", id="1"), AIMessage("Hello " * 200, id="2")]))

    assert lines(value, Limits(characters=10)) == [
        "[",
        "  HumanMessage(content='Hi', type='human', id='1'),",
        "  AIMessage(content='Hello Hell'... 1,190 characters more, type='ai', id='2'),",
        "]",
    ]
    assert "langchain_core.messages.ai.AIMessage(" in text(value)
    assert "additional_kwargs={}" in text(value)
    assert ("Hello " * 200).strip() in text(value)


def test_numpy_arrays_are_described() -> None:
    """As LangGraph stores them: its fields, not its numbers."""
    array = ext(6, "<f8", [2, 3], "C", b"\0" * 48)

    assert text(safe_decode("msgpack", msgpack.packb(array))) == (
        "numpy.ndarray(dtype='<f8', shape=[2, 3], order='C', bytes=48)"
    )


@pytest.mark.parametrize(
    ("kind", "blob", "shown"),
    [
        ("pickle", pickle.dumps({"a": 1}, 4), "<pickle, 21 B, not loaded: 80 04 95"),
        ("msgpack+aes", b"secret", "<msgpack, 6 B, encrypted (aes)>"),
        ("pages", b"\xff" * 17, "<pages, 17 B, not loaded: ff ff"),
        ("yaml", b"a: 1", "<yaml, 4 B, not loaded: 61 3a 20 31>"),
        ("", b"x", "<unknown, 1 B, not loaded: 78>"),
        (None, b"x", "<unknown, 1 B, not loaded: 78>"),
        ("msgpack", None, "<msgpack, 0 B, a page of it is missing>"),
        ("empty", None, "<empty, 0 B, no value>"),
        ("msgpack", b"", "<msgpack, 0 B, damaged: "),
        ("msgpack", b"\x92\x01", "<msgpack, 2 B, damaged: "),
        ("msgpack", b"\x01\x02", "<msgpack, 2 B, damaged: ExtraData"),
        ("msgpack", b"\xdd\xff\xff\xff\xff\x01", "<msgpack, 6 B, damaged: "),
        ("json", b"{", "<json, 1 B, damaged: "),
        ("json", b"[" * 100_000, "<json, 100.0 kB, damaged: RecursionError"),
        ("json", b"9" * 5000, "<json, 5.0 kB, damaged: "),
        ("json", b"\xff", "<json, 1 B, damaged: UnicodeDecodeError"),
    ],
)
def test_what_can_not_be_read_says_what_it_is(kind: str | None, blob: bytes | None, shown: str) -> None:
    """Encrypted, pickled, damaged or unknown: a kind, a size and a reason."""
    value = safe_decode(kind, blob)

    assert isinstance(value, Sealed)
    assert text(value).startswith(shown)
    assert as_json(value)["$sealed"]["size"] == len(blob or b"")


def test_encrypted_values_of_the_serializer_stay_closed() -> None:
    """Not a byte of them is shown."""
    kind, blob = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef").dumps_typed(["secret"])

    assert text(safe_decode(kind, blob)) == f"<msgpack, {len(blob)} B, encrypted (aes)>"


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that leaves a mark when it is imported, and another when it is called."""
    mark = tmp_path / "mark"
    (tmp_path / "trap_module.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).write_text('imported')\n"
        f"class Trap:\n    def __init__(self, *a, **k): Path({str(mark)!r}).write_text('called')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    assert "trap_module" not in sys.modules
    assert not mark.exists()


def hostile(mark: Path) -> dict[str, tuple[str, bytes]]:
    """Payloads that import or call something once they are deserialised."""
    touch = f"touch {mark}"
    calls = {
        "one argument": ext(0, "os", "system", touch),
        "arguments": ext(1, "subprocess", "call", ["touch", str(mark)]),
        "keywords": ext(2, "trap_module", "Trap", {"a": 1}),
        "method": ext(3, "trap_module", "Trap", "a", "__init__"),
        "pydantic 1": ext(4, "trap_module", "Trap", {"a": 1}),
        "pydantic 2": ext(5, "trap_module", "Trap", {"a": 1}, "model_validate_json"),
        "eval": ext(0, "builtins", "eval", f"__import__('os').system({touch!r})"),
        "within": {"deep": [ext(1, "builtins", "list", [ext(0, "trap_module", "Trap", 1)])]},
        "as a key": ext(1, "builtins", "dict", [{"a": ext(0, "trap_module", "Trap", 1)}]),
        "in a snapshot": msgpack.ExtType(7, msgpack.packb(ext(0, "trap_module", "Trap", 1))),
    }
    payloads = {name: ("msgpack", msgpack.packb(value)) for name, value in calls.items()}
    constructor = {"type": "constructor", "id": ["trap_module", "Trap"], "kwargs": {"a": 1}}
    payloads["json, lc 1"] = ("json", json.dumps({"lc": 1, **constructor}).encode())
    payloads["json, lc 2"] = ("json", json.dumps([{"lc": 2, **constructor, "args": [touch]}]).encode())
    payloads["pickle"] = ("pickle", f"cos\nsystem\n(S'{touch}'\ntR.".encode())
    return payloads


@pytest.mark.parametrize("name", hostile(Path("mark")))
def test_a_hostile_payload_is_inert(trap: Path, name: str) -> None:
    """It is shown as the call that it would be, and neither imports the module nor leaves its mark."""
    value = safe_decode(*hostile(trap)[name])

    shown, document = text(value), json.dumps(as_json(value))
    assert ("trap_module.Trap" in shown) or str(trap) in shown or name == "pickle"
    assert isinstance(json.loads(document), (dict, list))


@pytest.mark.parametrize("name", ["one argument", "keywords", "json, lc 2", "pickle"])
def test_the_payloads_are_dangerous(tmp_path: Path, name: str) -> None:
    """The test above would prove nothing otherwise: a serializer that trusts the database does what they say."""
    mark = tmp_path / "mark"
    (tmp_path / "trap_module.py").write_text(f"open({str(mark)!r}, 'w').close()\nTrap = print")
    kind, blob = hostile(mark)[name]
    code = (
        "from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer as S;"
        f"S(pickle_fallback=True, allowed_json_modules=True).loads_typed(({kind!r}, {blob!r}))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)

    assert mark.exists()


def test_objects_within_objects_end_somewhere() -> None:
    """A thousand extensions within each other are no more than a long line."""
    value: Any = 1
    for _ in range(1000):
        value = ext(0, "m", "C", value)
    blob = msgpack.packb(value)

    shown = text(safe_decode("msgpack", blob))

    assert shown.count("m.C(") == 32
    assert "<Ext 0" in shown


def test_nested_lists_end_somewhere() -> None:
    """Deeper than any display: what can be read is cut short, what can't be says so."""
    deep = b"\x91" * 500 + b"\x01"
    deeper = b"\x91" * 100_000 + b"\x01"

    assert "..." in text(safe_decode("msgpack", deep))
    assert json.dumps(as_json(safe_decode("msgpack", deep))).count("[") < 50
    assert text(safe_decode("msgpack", deeper)).startswith("<msgpack, 100.0 kB, damaged")


def test_maps_keep_keys_that_no_dict_has() -> None:
    """Equal keys, lists and maps as keys: nothing of a hostile map is lost, and nothing fails."""
    pairs = b"\x83\x01\xa1a\x01\xa1b\x91\x02\x81\xa1x\x80"
    value = safe_decode("msgpack", pairs)

    assert isinstance(value, Mapping)
    assert text(value) == "{1: 'a', 1: 'b', [2]: {'x': {}}}"
    assert as_json(value) == {"$map": [[1, "a"], [1, "b"], [[2], {"x": {}}]]}


def test_names_are_strings_or_the_object_stays_closed() -> None:
    """What is no call of LangGraph's is not taken for one."""
    for content in (ext(0, 1, 2, 3), ext(0), ext(2, "m"), msgpack.ExtType(0, b"\xff\xff"), msgpack.ExtType(99, b"x")):
        value = safe_decode("msgpack", msgpack.packb(content))
        assert isinstance(value, Sealed), value
    assert safe_decode("msgpack", msgpack.packb(ext(2, "m", "C", [1]))) == Call("m.C", [[1]])


def test_nothing_reaches_the_terminal_as_it_is() -> None:
    """Escapes, titles, direction marks, line ends and broken UTF-8, in texts, keys, names and kinds."""
    evil = "\x1b]0;title\x07\x1b[2J\u202e\r\n\x9b31m\u2028"
    value = {evil: [evil, {"a": evil.encode()}], "call": ext(5, evil, evil, {evil: evil}), "raw": ext(99, 1)}
    blobs = [
        ("msgpack", msgpack.packb(value)),
        (evil, b"x"),
        (f"msgpack+{evil}", b"x"),
        ("msgpack", b"\xa3\xff\x1b\x07"),
    ]

    for kind, blob in blobs:
        for limits in (UNLIMITED, Limits(), Limits(characters=3, items=1, width=10)):
            assert all(line.isprintable() for line in lines(safe_decode(kind, blob), limits))


def test_long_values_are_cut_short() -> None:
    """By items and by characters, and it is said how much is missing."""
    value = safe_decode("msgpack", msgpack.packb({"many": list(range(1000)), "text": "x" * 1000}))

    shown = text(value, Limits(items=3, characters=5))

    assert shown == "{'many': [0, 1, 2, ... 997 more], 'text': 'xxxxx'... 995 characters more}"


integers = st.integers(-(2**63), 2**64 - 1)
scalars = st.none() | st.booleans() | integers | st.floats() | st.text() | st.binary()
contents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text() | integers, inner)
        | st.builds(lambda code, value: msgpack.ExtType(code, msgpack.packb(value)), st.integers(0, 127), inner)
    ),
    max_leaves=30,
)


def check(kind: str, blob: bytes) -> None:
    value = safe_decode(kind, blob)
    for limits in (UNLIMITED, Limits(items=2, characters=2, width=20)):
        shown = lines(value, limits)
        assert shown
        assert all(line.isprintable() for line in shown)
    assert json.loads(json.dumps(as_json(value), allow_nan=False)) is not ...


@given(contents.map(msgpack.packb))
@example(msgpack.packb(msgpack.ExtType(3, msgpack.packb("abc"))))
def test_any_msgpack_can_be_shown(blob: bytes) -> None:
    """As text, in lines that a terminal may see, and as JSON."""
    check("msgpack", blob)


damaged = contents.map(msgpack.packb).flatmap(
    lambda blob: st.integers(0, len(blob)).map(lambda place: blob[:place] + blob[place + 1 :])
)


@given(st.binary() | damaged)
def test_any_bytes_can_be_shown(blob: bytes) -> None:
    """Also those that are no value at all, or a damaged one."""
    check("msgpack", blob)
    check("json", blob)


def test_looking_imports_no_langgraph() -> None:
    """Nor anything else that a value names."""
    code = (
        "import sys, msgpack; from checkpoint_store.cli import values;"
        "from checkpoint_store.cli.safe_decode import safe_decode;"
        "call = msgpack.packb(['langchain_core.messages.human', 'HumanMessage', {}, '']);"
        "b = msgpack.packb(msgpack.ExtType(5, call));"
        "print(values.lines(safe_decode('msgpack', b), values.UNLIMITED));"
        "print([m for m in sys.modules if m.startswith(('langgraph', 'langchain', 'pydantic'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "['langchain_core.messages.human.HumanMessage()']\n[]\n"
    assert values.MAX_DEPTH > 10
