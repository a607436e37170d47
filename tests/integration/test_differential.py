"""Our saver and the stock saver on one database: each reads what the other wrote, and sees the same."""

from __future__ import annotations

import enum
import math
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, timedelta, timezone
from itertools import count
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.base import WRITES_IDX_MAP, BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import RESUME, TASKS, _DeltaSnapshot
from langgraph.types import Interrupt, Send
from pydantic import BaseModel

from checkpoint_store import PostgresSaver
from checkpoint_store.errors import UnstorableValue

Saver = BaseCheckpointSaver[str]

EXAMPLES = 60
"""Threads per test, of three to five checkpoints each: the three tests below store 540 at least."""

generated = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)


class Colour(str, enum.Enum):
    RED = "red"
    FOX = "\U0001f98a"


class Size(enum.IntEnum):
    SMALL = 1


class Plain(enum.Enum):
    ONE = (1, "one")


@dataclass
class Point:
    x: Any
    y: Any


class Order(BaseModel):
    item: str
    price: float
    lines: list[int]


def told(value: Any) -> Any:
    """A value with all its types told: 1, 1.0 and True differ in it, and so do 0.0 and -0.0; dicts have no order."""
    if isinstance(value, dict):
        return dict, frozenset((told(key), told(item)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(told, value))
    if isinstance(value, (list, tuple, deque)):
        return type(value), tuple(map(told, value))
    if isinstance(value, Send):  # its repr has the order of sets in it
        return type(value), value.node, told(value.arg)
    if isinstance(value, enum.Enum) or not hasattr(value, "__dict__"):
        return type(value), repr(value)
    return type(value), told(vars(value))


# --- values ---

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
texts_without_nul = texts.filter(lambda text: "\x00" not in text)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [-0.0, 1e16, 1e17, 1e300, 5e-324, 1e-7, 0.1, 2.0**53, 123456789012345680.0]
)
scalars = st.none() | st.booleans() | integers | floats | texts
hashables = scalars | st.binary(max_size=8) | st.uuids()
objects = (
    st.binary(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.datetimes(timezones=st.sampled_from([UTC, timezone(timedelta(hours=-5, minutes=-30))]))
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False, places=3)
    | st.sampled_from([*Colour, *Size, *Plain])
    | st.sets(hashables, max_size=3)
    | st.frozensets(hashables, max_size=3)
    | st.builds(Point, hashables, hashables)
    | st.builds(Order, item=texts, price=floats, lines=st.lists(integers, max_size=3))
    | st.builds(HumanMessage, texts, id=texts)
    | st.builds(AIMessage, texts, additional_kwargs=st.dictionaries(texts, floats, max_size=2))
    | st.builds(ToolMessage, texts, tool_call_id=texts, artifact=st.tuples(texts, integers))
    | st.builds(SystemMessage, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=2))
    | st.builds(Send, texts, hashables)
    | st.builds(Interrupt, hashables, id=texts)
)
nested = st.recursive(
    scalars | objects,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(texts, inner, max_size=4)
        | st.dictionaries(integers, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=3).map(deque)
    ),
    max_leaves=8,
)
written_values = scalars | st.sampled_from([math.inf, -math.inf]) | nested
# Only JSONB holds integers past 64 bits, the serializer does not.
long_integers = st.integers(-(10**40), 10**40)
channel_values = written_values | long_integers | nested.map(_DeltaSnapshot)


def stock_can_write(value: Any) -> bool:
    """The stock saver puts every `str` and `float` into JSONB, which refuses NUL and infinities."""
    return not (isinstance(value, str) and "\x00" in value) and not (isinstance(value, float) and math.isinf(value))


def stock_keeps(value: Any) -> bool:
    """The stock saver also puts `str` and `int` Enums there, without their type, and zeros without their sign."""
    return not isinstance(value, (Colour, Size)) and repr(value) != "-0.0"


def kept(value: Any) -> Any:
    """A value as the serializer keeps it: the serializer, not the saver, turns a tuple into a list."""
    if value is None or type(value) in {bool, int, float}:
        return value
    serde = JsonPlusSerializer()
    return serde.loads_typed(serde.dumps_typed(value))


# --- threads ---


@dataclass
class Writes:
    """One call of `put_writes`."""

    task_id: str
    task_path: str
    writes: list[tuple[str, Any]]


@dataclass
class Put:
    """One call of `put`, and the calls of `put_writes` that follow it."""

    namespace: str
    parent: str | None
    checkpoint: dict[str, Any]
    metadata: dict[str, Any]
    config_metadata: dict[str, Any]
    new_versions: dict[str, str]
    pending: list[Writes] = field(default_factory=list)


channel_names = st.sampled_from(
    ["messages", "count", "branch:to:x", "__start__", "ключ", 'it\'s "q"', "a.b", "\U0001f98a"]
)
task_paths = st.sampled_from(["", "~__pregel_pull, a", "~__pregel_pull, b", "~__pregel_push, 0000000001, a"])
metadata_values = st.recursive(
    st.none() | st.booleans() | long_integers | floats.filter(bool) | texts_without_nul,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts_without_nul, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def pending_writes(draw: st.DrawFn, channels: st.SearchStrategy[str]) -> list[Writes]:
    """A few tasks' writes: ordinary ones, special ones, both in one call, and some calls made twice.

    None has a special write after another one of its task and channel: there the stock saver keeps the first, or the
    last, as the rest of the call has it.
    """
    calls = []
    for task_id in draw(st.lists(st.uuids().map(str), max_size=3, unique=True)):
        path = draw(task_paths)
        ordinary = st.lists(st.tuples(channels, written_values), max_size=3)
        sends = st.lists(st.builds(Send, st.just("node"), written_values).map(lambda send: (TASKS, send)), max_size=2)
        special = st.lists(st.tuples(st.sampled_from([*WRITES_IDX_MAP]), written_values), max_size=2)
        once = special.filter(lambda writes: len(dict(writes)) == len(writes))
        mixed = st.tuples(ordinary, once).map(lambda parts: [*parts[0], *parts[1]])
        calls.append(Writes(task_id, path, draw(ordinary | sends | special | mixed)))
        again = st.lists(ordinary | sends | special, max_size=1)
        calls.extend(Writes(task_id, path, writes) for writes in draw(again))
    return calls


@st.composite
def threads(
    draw: st.DrawFn,
    values: st.SearchStrategy[Any] = channel_values,
    channels: st.SearchStrategy[str] = channel_names,
) -> list[Put]:
    """A thread of a few checkpoints in one or two namespaces: chains and forks, of any format, ids in any order."""
    ids = [str(identity) for identity in draw(st.lists(st.uuids(), min_size=3, max_size=5, unique=True))]
    namespaces = draw(st.sampled_from([[""], ["", "sub:1"], ["sub", "sub|inner:2"]]))
    puts: list[Put] = []
    unique = count()

    def next_version(current: str | None) -> str:
        """A version as both savers make it, but for the part that is random there."""
        return f"{int(current.partition('.')[0]) + 1 if current else 1:032}.0.{next(unique):014}"

    for identity in ids:
        namespace = draw(st.sampled_from(namespaces))
        known = [put for put in puts if put.namespace == namespace]
        parent = draw(st.sampled_from([None, *known])) if known else None
        current = dict(parent.checkpoint["channel_values"]) if parent else {}
        # Never without any version: a checkpoint with sends of an old format would get a random one at every reading.
        versions = dict(parent.checkpoint["channel_versions"]) if parent else {"__start__": next_version(None)}
        new_versions = {}
        for channel, value in draw(st.dictionaries(channels, values, max_size=4)).items():
            current[channel] = value
            versions[channel] = new_versions[channel] = next_version(versions.get(channel))
        for channel in draw(st.lists(channels, max_size=1)):
            # Written and left without a value, as ephemeral channels are.
            current.pop(channel, None)
            versions[channel] = new_versions[channel] = next_version(versions.get(channel))
        checkpoint = {
            "v": draw(st.integers(1, 4)),
            "id": identity,
            "ts": draw(st.datetimes()).isoformat(),
            "channel_values": current,
            "channel_versions": versions,
            "versions_seen": {"__input__": {}, "node": dict(versions)},
            **draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "updated_channels": st.none() | st.lists(channels, max_size=2),
                        "pending_sends": st.just([]),
                        "key of a later format": st.dictionaries(texts_without_nul, integers, max_size=2),
                    },
                )
            ),
        }
        metadata = {
            "source": draw(st.sampled_from(["input", "loop", "update", "fork"])),
            "step": draw(st.integers(-1, 3)),
            "parents": draw(st.dictionaries(st.sampled_from(["", "sub"]), st.uuids().map(str), max_size=1)),
            **draw(st.dictionaries(texts_without_nul, metadata_values, max_size=2)),
        }
        metadata.pop("writes", None)
        config_metadata = draw(st.dictionaries(texts_without_nul, scalars.filter(bool) | st.binary(), max_size=2))
        unknown = draw(st.sampled_from([None, None, "00000000-0000-0000-0000-000000000000"]))
        puts.append(
            Put(
                namespace,
                parent.checkpoint["id"] if parent else unknown,
                checkpoint,
                metadata,
                config_metadata,
                new_versions,
                draw(pending_writes(channels)),
            )
        )
    return puts


def config(thread_id: str, namespace: str | None = None, checkpoint_id: str | None = None) -> dict[str, Any]:
    named = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id}
    return {"configurable": {key: value for key, value in named.items() if value is not None}}


def write(saver: Saver, thread_id: str, puts: list[Put]) -> None:
    """Store a thread."""
    for put in puts:
        stored = saver.put(
            {**config(thread_id, put.namespace, put.parent), "metadata": put.config_metadata},
            put.checkpoint,
            put.metadata,
            put.new_versions,
        )
        for call in put.pending:
            saver.put_writes(stored, call.writes, call.task_id, call.task_path)


def readings(saver: Saver, thread_id: str, puts: list[Put]) -> Iterator[list[CheckpointTuple | None]]:
    """A thread read in every way there is: by id, newest, and lists by namespace, filter, `before` and `limit`."""
    for put in puts:
        yield [saver.get_tuple(config(thread_id, put.namespace, put.checkpoint["id"]))]
    for namespace in ["", "sub", "nowhere"]:
        yield [saver.get_tuple(config(thread_id, namespace))]
        yield list(saver.list(config(thread_id, namespace)))
    yield list(saver.list(config(thread_id)))
    first, last = puts[0], puts[-1]
    before = config(thread_id, checkpoint_id=last.checkpoint["id"])
    yield list(saver.list(config(thread_id), before=before))
    yield list(saver.list(config(thread_id), limit=2))
    yield list(saver.list(config(thread_id), limit=1, before=before, filter={"source": first.metadata["source"]}))
    yield list(saver.list(config(thread_id), filter={"parents": first.metadata["parents"], "step": 1}))
    yield list(saver.list(config(thread_id, first.namespace, first.checkpoint["id"])))
    extra = [key for key in first.metadata if key not in {"source", "step", "parents"}]
    yield list(saver.list(config(thread_id), filter={key: first.metadata[key] for key in extra}))


@pytest.fixture
def stock(url: str) -> Iterator[StockSaver]:
    """The stock saver on `url`, for sync code."""
    with StockSaver.from_conn_string(url) as saver:
        yield saver


def test_the_stock_saver_reads_what_ours_wrote(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """Both read the same from a hundred and eighty checkpoints or more of ours, and each value as it was written."""
    checkpoints = 0

    @generated
    @given(threads())
    def check(puts: list[Put]) -> None:
        nonlocal checkpoints
        thread_id = f"thread {uuid.uuid4()} \U0001f98a"
        write(sync_saver, thread_id, puts)

        for put in puts:
            found = sync_saver.get_tuple(config(thread_id, put.namespace, put.checkpoint["id"]))
            values = {channel: kept(value) for channel, value in put.checkpoint["channel_values"].items()}
            stored = {key: value for key, value in found.checkpoint["channel_values"].items() if key != TASKS}
            assert told(stored) == told(values)
        for ours, theirs in zip(readings(sync_saver, thread_id, puts), readings(stock, thread_id, puts), strict=True):
            assert told(ours) == told(theirs)
        checkpoints += len(puts)

    check()

    assert checkpoints >= 3 * EXAMPLES


def test_ours_reads_what_the_stock_saver_wrote(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """Both read the same from a hundred and eighty checkpoints or more of the stock saver's."""
    checkpoints = 0

    @generated
    @given(threads(channel_values.filter(stock_can_write)))
    def check(puts: list[Put]) -> None:
        nonlocal checkpoints
        thread_id = f"thread {uuid.uuid4()} \U0001f98a"
        write(stock, thread_id, puts)

        for ours, theirs in zip(readings(sync_saver, thread_id, puts), readings(stock, thread_id, puts), strict=True):
            assert told(ours) == told(theirs)
        checkpoints += len(puts)

    check()

    assert checkpoints >= 3 * EXAMPLES


def test_both_take_turns_on_one_thread(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """A service that moves to our saver and back, checkpoint by checkpoint, loses nothing: both see one thread."""
    checkpoints = 0

    @generated
    @given(threads(channel_values.filter(stock_can_write)), st.data())
    def check(puts: list[Put], data: st.DataObject) -> None:
        nonlocal checkpoints
        thread_id = f"thread {uuid.uuid4()}"
        for put in puts:
            write(data.draw(st.sampled_from([sync_saver, stock])), thread_id, [put])

        for ours, theirs in zip(readings(sync_saver, thread_id, puts), readings(stock, thread_id, puts), strict=True):
            assert told(ours) == told(theirs)
        checkpoints += len(puts)

    check()

    assert checkpoints >= 3 * EXAMPLES


def test_both_write_the_same_rows(sync_saver: PostgresSaver, stock: StockSaver, url: str) -> None:
    """One thread written twice, by each saver under its own id: the tables hold the same, column by column.

    Left out are the values of which the stock saver's row is the one that is wrong.
    """
    tables = {
        "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata",
        "checkpoint_blobs": "checkpoint_ns, channel, version, type, blob",
        "checkpoint_writes": "checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path",
    }
    rows = 0

    @generated
    @given(threads(channel_values.filter(stock_can_write).filter(stock_keeps)))
    def check(puts: list[Put]) -> None:
        nonlocal rows
        ours, theirs = f"ours {uuid.uuid4()}", f"theirs {uuid.uuid4()}"
        write(sync_saver, ours, puts)
        write(stock, theirs, puts)

        for table, columns in tables.items():
            # Compared by the server: 1e16 and 10000000000000000 are one number in JSONB, though not in Python.
            rows_of = f"SELECT {columns} FROM {table} WHERE thread_id = %s"
            for one, other in ((ours, theirs), (theirs, ours)):
                assert conn.execute(f"{rows_of} EXCEPT {rows_of}", [one, other]).fetchall() == []
            rows += len(conn.execute(rows_of, [ours]).fetchall())

    with psycopg.connect(url, autocommit=True) as conn:
        check()

    assert rows >= 6 * EXAMPLES


def test_lists_of_all_threads_are_the_same(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """`list(None)`, whole and cut: three threads with forty checkpoints each, written by turns, newest first."""
    ids = [str(uuid6(clock_seq=n)) for n in range(120)]
    for n, identity in enumerate(ids):
        saver = (sync_saver, stock)[n % 2]
        checkpoint = {**empty_checkpoint(), "v": 4, "id": identity, "channel_values": {"n": n, "l": [n]}}
        versions = checkpoint["channel_versions"] = {"n": f"{n:032}.0", "l": f"{n:032}.0"}
        metadata = {"source": "loop", "step": n // 3, "tags": {"even": n % 2 == 0, "by": [n % 3]}}
        saver.put(config(f"thread {n % 3}", ("", "sub")[n % 5 == 0]), checkpoint, metadata, versions)
    cuts: list[dict[str, Any]] = [
        {},
        {"limit": 0},
        {"limit": 1},
        {"limit": 100},
        {"filter": {"tags": {"even": True}}},
        {"filter": {"tags": {"by": [2]}, "source": "loop"}},
        {"filter": {}},
        {"before": config("any", checkpoint_id=ids[60])},
        {"before": config("any", checkpoint_id=ids[60]), "limit": 33, "filter": {"tags": {"even": False}}},
    ]

    for cut in cuts:
        for named in (None, config("thread 1"), config("thread 2", "sub"), config("nobody")):
            ours, theirs = list(sync_saver.list(named, **cut)), list(stock.list(named, **cut))
            assert told(ours) == told(theirs)
    assert [found.checkpoint["id"] for found in sync_saver.list(None)] == ids[::-1]


def test_old_sends_stay_with_their_own_thread_and_namespace(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """Before format 4 they were the parent's; where ids repeat, the stock saver mixes threads and namespaces up."""
    places = [(thread_id, namespace) for thread_id in ("one", "two") for namespace in ("", "sub")]
    for number, place in enumerate(places):
        for saver, parent, identity, version in ((stock, None, "1", 4), (sync_saver, "1", "2", 3)):
            checkpoint = {**empty_checkpoint(), "v": version, "id": identity, "channel_versions": {"c": "7"}}
            saver.put(config(*place, parent), checkpoint, {}, {})
        sends = [(TASKS, Send("node", f"{number} first")), (TASKS, Send("node", f"{number} second"))]
        stock.put_writes(config(*place, "1"), sends, "task", "path")

    listed = {tuple(found.config["configurable"].values()): found for found in sync_saver.list(None)}
    for number, place in enumerate(places):
        child = sync_saver.get_tuple(config(*place, "2"))
        assert child.checkpoint["channel_values"][TASKS] == [
            Send("node", f"{number} first"),
            Send("node", f"{number} second"),
        ]
        assert child.checkpoint["channel_versions"] == {"c": "7", TASKS: "7"}
        assert listed[(*place, "2")] == child
        assert TASKS not in sync_saver.get(config(*place, "1"))["channel_values"]


delta_channels = st.sampled_from(["messages", "files", "rare"])


@st.composite
def delta_threads(draw: st.DrawFn) -> list[Put]:
    """A thread as above, in which at least one checkpoint needs both a stored value and a write that came after it.

    Ids grow from parent to child, and no stored value is None, since both are where the stock saver goes wrong.
    """
    values = channel_values.filter(lambda value: value is not None and stock_can_write(value))
    puts = draw(threads(values, delta_channels))
    ids = [put.checkpoint["id"] for put in puts]
    ascending = dict(zip(ids, sorted(ids), strict=True))
    for put in puts:
        put.checkpoint["id"], put.parent = ascending[put.checkpoint["id"]], ascending.get(put.parent)
        put.checkpoint["v"] = 4
    # Any checkpoint but the last may be the one, the rest of the thread being as it may.
    channel, place = draw(delta_channels), draw(st.integers(0, len(puts) - 2))
    stored, child = puts[place], puts[-1]
    stored.checkpoint["channel_values"][channel] = draw(values)
    stored.checkpoint["channel_versions"][channel] = stored.new_versions[channel] = f"{99:032}.0"
    stored.pending.append(Writes(str(uuid.UUID(int=0)), "", [(channel, draw(written_values))]))
    child.namespace, child.parent = stored.namespace, stored.checkpoint["id"]
    return puts


def test_delta_channels_have_the_same_history(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """For each checkpoint of a tree both collect the same writes and end at the same stored value."""
    histories = 0

    @generated
    @given(delta_threads(), st.data())
    def check(puts: list[Put], data: st.DataObject) -> None:
        nonlocal histories
        thread_id = f"thread {uuid.uuid4()}"
        for put in puts:
            write(data.draw(st.sampled_from([sync_saver, stock])), thread_id, [put])
        sought = [*data.draw(st.permutations(["messages", "files", "rare"])), "unknown"]
        both = 0

        for put in puts:
            for target in (config(thread_id, put.namespace, put.checkpoint["id"]), config(thread_id, put.namespace)):
                ours = sync_saver.get_delta_channel_history(config=target, channels=sought)
                assert told(ours) == told(stock.get_delta_channel_history(config=target, channels=sought))
                both += any("seed" in entry and entry["writes"] for entry in ours.values())
        assert both, "no channel had a stored value and writes after it"
        histories += both

    check()

    assert histories >= EXAMPLES


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Size.SMALL, 1e16, -1e300, -0.0, math.inf, -math.inf, "nul\x00inside", "\x00",
    ],
    ids=repr,
)  # fmt: skip
def test_what_the_stock_saver_loses_ours_keeps(sync_saver: PostgresSaver, stock: StockSaver, value: Any) -> None:
    """The stock saver refuses the value or returns another type or sign; ours returns it, to both savers."""
    checkpoint = {**empty_checkpoint(), "channel_values": {"c": value}, "channel_versions": {"c": "1"}}

    def stored_by(saver: Saver) -> Any:
        stored = saver.put(config(str(uuid.uuid4()), ""), checkpoint, {}, {"c": "1"})
        return [told(reader.get(stored)["channel_values"]["c"]) for reader in (sync_saver, stock)]

    with suppress(psycopg.Error):  # it refuses the value
        assert told(value) not in stored_by(stock)

    assert stored_by(sync_saver) == [told(value)] * 2


def test_a_value_whose_channel_a_step_does_not_know_is_kept(sync_saver: PostgresSaver, stock: StockSaver) -> None:
    """As in memory, where a value is found by its version; also if the stock saver has stored it, inline."""
    versions = {"vip": "1", "orders": "1", "old": "1", "log": "2"}

    def left_by(first: Saver, then: Saver) -> dict[str, Any]:
        thread_id = str(uuid.uuid4())
        values = {"vip": True, "orders": [1], "old": "gone", "log": 1}
        parent = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions | {"log": "1"}}
        stored = first.put(config(thread_id, ""), parent, {}, parent["channel_versions"])
        child = {**empty_checkpoint(), "channel_values": {"log": 2}, "channel_versions": versions | {"old": "2"}}
        return then.get(then.put(stored, child, {}, {"log": "2", "old": "2"}))["channel_values"]

    memory = InMemorySaver()
    assert left_by(memory, memory) == {"vip": True, "orders": [1], "log": 2}
    for first in (sync_saver, stock):
        assert left_by(first, sync_saver) == {"vip": True, "orders": [1], "log": 2}
    assert left_by(stock, stock) == {"orders": [1], "log": 2}


def test_a_value_that_was_kept_stays_when_the_parent_is_gone_and_the_put_is_made_again(url: str) -> None:
    """As after an answer to COMMIT that was lost; by processes that know nothing of each other."""
    old = {"vip": "1"}
    parent = {**empty_checkpoint(), "channel_values": {"vip": True}, "channel_versions": old}
    child = {**empty_checkpoint(), "channel_values": {"log": 1}, "channel_versions": {**old, "log": "1"}}
    with PostgresSaver.from_conn_string(url) as saver:
        first = saver.put(config("t", ""), parent, {}, old)
    for pipeline in (False, True):
        with PostgresSaver.from_conn_string(url, pipeline=pipeline) as saver:
            at = saver.put(first, child, {}, {"log": "1"})
            saver.prune(["t"], keep=1)
            assert saver.get_tuple(first) is None
            assert saver.get(at)["channel_values"] == {"vip": True, "log": 1}


def test_a_special_write_among_ordinary_ones_replaces_as_in_memory(
    sync_saver: PostgresSaver, stock: StockSaver
) -> None:
    """An answer that comes with an update replaces the earlier one, also within a call; the update stays as it was."""
    calls = [
        [(RESUME, "no"), ("log", "first")],
        [("log", "second"), (RESUME, "maybe"), ("log", "new"), (RESUME, "yes")],
    ]

    def stored_by(saver: Saver) -> list[Any]:
        stored = saver.put(config(str(uuid.uuid4()), ""), empty_checkpoint(), {}, {})
        for call in calls:
            saver.put_writes(stored, call, "task")
        return [(channel, value) for _, channel, value in saver.get_tuple(stored).pending_writes]

    assert stored_by(sync_saver) == stored_by(InMemorySaver())
    assert stored_by(sync_saver) == [(RESUME, "yes"), ("log", "second"), ("log", "first"), ("log", "new")]
    assert (RESUME, "no") in stored_by(stock)


odd_texts = st.text(st.characters() | st.sampled_from("\x00\ud800\udfff\uffff?"), max_size=5)
odd_values = st.recursive(
    odd_texts
    | st.floats()
    | st.integers(-(2**70), 2**70)
    | st.binary(max_size=3)
    | st.complex_numbers()
    | st.sampled_from([object(), object, len, Ellipsis, range(3), ValueError("x")])
    | st.builds(Send, odd_texts, odd_texts)
    | st.builds(HumanMessage, odd_texts),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(odd_texts | st.integers() | st.tuples(st.integers(0, 9)), inner, max_size=2)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=4,
)


def test_any_value_comes_back_or_is_refused_before_anything_is_written(sync_saver: PostgresSaver, url: str) -> None:
    """NaN, long integers, objects of any kind, nested: never stored as what the serializer would not make of them."""
    kept_values = refused = 0

    def rows(thread_id: str) -> int:
        counts = "SELECT count(*) FROM {} WHERE thread_id = %s"
        return sum(
            conn.execute(counts.format(table), [thread_id]).fetchone()[0]
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
        )

    @settings(generated, max_examples=400)
    @given(odd_values)
    def check(value: Any) -> None:
        nonlocal kept_values, refused
        thread_id = str(uuid.uuid4())
        checkpoint = {**empty_checkpoint(), "channel_values": {"c": value}, "channel_versions": {"c": "1"}}
        try:
            stored = sync_saver.put(config(thread_id, ""), checkpoint, {}, {"c": "1"})
        except UnstorableValue as error:
            named = thread_id in str(error) and "'c'" in str(error)
            assert (named, rows(thread_id)) == (True, 0)
            refused += 1
        else:
            assert told(sync_saver.get(stored)["channel_values"]["c"]) == told(kept(value))
            kept_values += 1

    with psycopg.connect(url, autocommit=True) as conn:
        check()

    assert min(kept_values, refused) > 50
