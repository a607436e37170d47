"""What fuzzing has found, and what is too large for it: a case each, whatever the generator draws next time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum
from numbers import Integral
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, partitioning
from checkpoint_store.conversion import share
from checkpoint_store.encryption import KeyRing, count_unencrypted, reencrypt
from checkpoint_store.errors import (
    InvalidConfig,
    InvalidOption,
    InvalidURL,
    NotSetUp,
    ThreadExists,
    ThreadNotFound,
    TransferError,
    UnreadableValue,
    UnstorableValue,
    UnusableConnection,
)
from checkpoint_store.schema import Tables
from checkpoint_store.serde import encoder
from checkpoint_store.transfer import copy_threads
from checkpoint_store.url import pooler_options

THREAD: Any = {"configurable": {"thread_id": "t1", "checkpoint_ns": ""}}


class Rude:
    """Raises when it is asked for a repr, as a broken model may."""

    def __repr__(self) -> str:
        raise RuntimeError


class Channel(str, Enum):
    ITEMS = "items"
    COUNT = "count"


class Special(str, Enum):
    ERROR = "__error__"


class Whole:
    """A whole number that is none of Python's, as NumPy's are."""

    def __index__(self) -> int:
        return 1


Integral.register(Whole)


def deep(depth: int) -> Any:
    value: Any = "leaf"
    for _ in range(depth):
        value = {"k": value}
    return value


def checkpoint_with(channel_values: Any, **parts: Any) -> Any:
    versions = dict.fromkeys(channel_values, "1") if isinstance(channel_values, dict) else {}
    return {**empty_checkpoint(), "channel_values": channel_values, "channel_versions": versions, **parts}


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


def rows(sql: psycopg.Connection) -> int:
    tables = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    return sum(sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables)  # type: ignore[index]


# --- what callers pass ---


@pytest.mark.parametrize(
    "config",
    [
        {"configurable": {"thread_id": Rude()}},
        {"configurable": {"thread_id": deep(3000)}},
        {"configurable": {"thread_id": 10**5000}},
        {"configurable": {"thread_id": "t" * 2000 + "\ud800"}},
        {"configurable": {"thread_id": "t", "checkpoint_ns": 0}},
        {"configurable": {"thread_id": "t", "checkpoint_id": 0}},
        deep(3000),
        Rude(),
    ],
    ids=["rude id", "deep id", "long number", "long with a surrogate", "namespace 0", "checkpoint 0", "deep", "rude"],
)
def test_a_config_is_refused_whatever_it_does_when_it_is_shown(sync_saver: PostgresSaver, config: Any) -> None:
    """The message about a bad config can't itself go wrong."""
    calls: list[Callable[[], Any]] = [
        lambda: sync_saver.get_tuple(config),
        lambda: sync_saver.list(config),
        lambda: sync_saver.put(config, empty_checkpoint(), {}, {}),
        lambda: sync_saver.put_writes(config, [("a", 1)], "task"),
    ]
    for call in calls:
        with pytest.raises(InvalidConfig) as caught:
            call()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("config", [0, [], "", False])
def test_only_none_and_an_empty_config_list_all_threads(sync_saver: PostgresSaver, config: Any) -> None:
    """What is falsy by mistake does not list what belongs to others."""
    assert list(sync_saver.list({})) == list(sync_saver.list(None)) == []  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=r'config must have a "configurable" dict'):
        sync_saver.list(config)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ([], "checkpoint must be a dict with an id, not a list"),
        ({}, "checkpoint must be a dict with an id, not a dict"),
        (checkpoint_with([]), r"checkpoint\['channel_values'\] must be a dict by channel, not a list"),
        (
            checkpoint_with({}, channel_versions=None),
            r"checkpoint\['channel_versions'\] must be a dict by channel, not a NoneType",
        ),
        (checkpoint_with({1: "a"}), r"checkpoint\['channel_\w+'\] must have strings as keys, not 1"),
        (
            checkpoint_with({"a": [1]}, channel_versions={"a": ["1"]}),
            "its version must be a string or a number, not ",
        ),
        (checkpoint_with({}, versions_seen=deep(400)), "checkpoint.* is nested too deeply"),
        (checkpoint_with({}, more=deep(3000)), "checkpoint.* is nested too deeply"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(
    sync_saver: PostgresSaver, sql: psycopg.Connection, checkpoint: Any, message: str
) -> None:
    """By name, before anything is written; never by an AttributeError from inside."""
    new_versions = checkpoint.get("channel_versions") if isinstance(checkpoint, dict) else None
    with pytest.raises(UnstorableValue, match=f"thread 't1', namespace ''.*{message}"):
        sync_saver.put(THREAD, checkpoint, {}, new_versions or {})

    assert rows(sql) == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "metadata can't be merged with the config's"),
        ([1], "metadata can't be merged with the config's"),
        ({"a": deep(400)}, "metadata.* is nested too deeply"),
        ({"a": deep(3000)}, "metadata.* is nested too deeply"),
        ({"a": Rude()}, r"metadata\['a'\] is a Rude"),
    ],
)
def test_metadata_of_another_shape_is_refused(sync_saver: PostgresSaver, metadata: Any, message: str) -> None:
    """And what is in it, by its path."""
    with pytest.raises(UnstorableValue, match=message):
        sync_saver.put(THREAD, empty_checkpoint(), metadata, {})


@pytest.mark.parametrize("new_versions", [None, [], "1"])
def test_new_versions_of_another_shape_are_refused(sync_saver: PostgresSaver, new_versions: Any) -> None:
    """They are a dict, if only an empty one."""
    with pytest.raises(UnstorableValue, match="new_versions must be a dict by channel"):
        sync_saver.put(THREAD, checkpoint_with({"a": [1]}), {}, new_versions)


@pytest.mark.parametrize("writes", [None, 7, "ab", [1], [("a",)], [(1, 2)], [("a", 1, 2)], [([], 1)], {"a": 1}])
async def test_writes_that_are_no_pairs_are_refused(saver: AsyncPostgresSaver, writes: Any) -> None:
    """Also those that look like some, as a string of two letters does."""
    with pytest.raises(UnstorableValue, match="writes must be pairs of a channel's name and a value"):
        await saver.aput_writes({"configurable": {"thread_id": "t", "checkpoint_id": "1"}}, writes, "task")


def test_lists_that_raise_when_they_are_gone_through_are_refused(sync_saver: PostgresSaver) -> None:
    """With what they raised as the cause: it may be a mistake of the caller's."""

    def broken() -> Iterator[Any]:
        yield "a"
        raise KeyError("a mistake")

    written: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}}
    for refusal, call in (
        (UnstorableValue, lambda: sync_saver.put_writes(written, broken(), "task")),  # type: ignore[arg-type]
        (InvalidConfig, lambda: sync_saver.get_delta_channel_history(config=THREAD, channels=broken())),  # type: ignore[arg-type]
        (InvalidConfig, lambda: sync_saver.prune(broken())),  # type: ignore[arg-type]
        (InvalidConfig, lambda: sync_saver.delete_for_runs(broken())),  # type: ignore[arg-type]
    ):
        with pytest.raises(
            refusal, match="must be a list; this generator raises KeyError when it is iterated over"
        ) as caught:
            call()
        assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("filter", [[], [1], "ab", 0, Rude(), {"a": deep(400)}, {"a": Rude()}, {"a": {1: 2}}])
def test_a_filter_of_another_shape_is_refused(sync_saver: PostgresSaver, filter: Any) -> None:
    """Also one that would match nothing, or everything, in silence."""
    with pytest.raises(InvalidConfig, match="filter"):
        sync_saver.list(None, filter=filter)


@pytest.mark.parametrize("limit", [True, -1, "1", 1.0, Rude(), deep(3000)])
def test_a_limit_of_another_kind_is_refused(sync_saver: PostgresSaver, limit: Any) -> None:
    """It is a number of checkpoints."""
    with pytest.raises(InvalidConfig, match="limit must be"):
        sync_saver.list(None, limit=limit)


def test_a_limit_may_be_a_number_of_another_library(sync_saver: PostgresSaver) -> None:
    """So it is counted out where it is an item of an array; the stock saver takes those too."""
    three(sync_saver)
    one: Any = Whole()

    assert len(list(sync_saver.list(None, limit=one))) == 1
    assert sync_saver.sweep(keep_last=one).checkpoints == 2


@pytest.mark.parametrize("channels", ["messages", 7, [7], ["\x00"]])
def test_channels_of_another_kind_are_refused(sync_saver: PostgresSaver, channels: Any) -> None:
    """A single name is no list of names: its letters would be."""
    with pytest.raises(InvalidConfig, match="channel"):
        sync_saver.get_delta_channel_history(config=THREAD, channels=channels)


def test_channels_may_be_named_by_an_enum(sync_saver: PostgresSaver) -> None:
    """A `str` Enum as a channel's name is its value, inline and as a blob."""
    checkpoint = checkpoint_with({Channel.ITEMS: [1], Channel.COUNT: 1})
    stored = sync_saver.put(THREAD, checkpoint, {}, checkpoint["channel_versions"])

    assert sync_saver.get(stored)["channel_values"] == {"items": [1], "count": 1}  # type: ignore[index]


def test_writes_may_name_their_channels_by_an_enum(sync_saver: PostgresSaver) -> None:
    """A node may return a dict of them, which LangGraph hands on as they are; also to its special channels."""
    stored = sync_saver.put(THREAD, empty_checkpoint(), {}, {})
    for value in (1, 2):
        sync_saver.put_writes(stored, [(Channel.ITEMS, value)], "task")
        sync_saver.put_writes(stored, [(Special.ERROR, value)], "task")

    found = sync_saver.get_tuple(stored)
    assert found is not None
    assert found.pending_writes == [("task", "__error__", 2), ("task", "items", 1)]


# --- what callers set ---


class Undecided:
    """Is neither true nor false nor equal to anything, and shows nothing of itself, as some arrays don't."""

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise RuntimeError

    __eq__ = __lt__ = __repr__ = __bool__  # type: ignore[assignment]


@pytest.mark.parametrize("value", ["false", 0, 1, Undecided()])
def test_a_flag_is_true_or_false(sync_saver: PostgresSaver, sql: psycopg.Connection, value: Any) -> None:
    """A setting that comes as text would always be true, and a dry run that isn't would remove something."""
    three(sync_saver)
    before = rows(sql)
    engine: Any = create_async_engine("postgresql+asyncpg://")
    calls: dict[str, Callable[[], Any]] = {
        "dry_run": lambda: sync_saver.sweep(keep_last=1, dry_run=value),
        "spare_active": lambda: sync_saver.sweep(older_than=timedelta(0), spare_active=value),
        "replace": lambda: sync_saver.copy_thread("t1", "t2", replace=value),
        "count": lambda: sync_saver.list_threads(count=value),
        "share_pages": lambda: AsyncPostgresSaver(engine, share_pages=value),
        "refuse_forks": lambda: AsyncPostgresSaver(engine, refuse_forks=value),
        "require_encryption": lambda: AsyncPostgresSaver(engine, require_encryption=value),
    }
    calls["pipeline"] = PostgresSaver.from_conn_string("postgresql:///app", pipeline=value).__enter__
    for name, call in calls.items():
        with pytest.raises((InvalidOption, InvalidConfig), match=f"{name} must be True or False, not "):
            call()

    assert rows(sql) == before


@pytest.mark.parametrize("value", [Undecided(), [], "oldest", 0])
def test_a_choice_is_one_of_those_that_there_are(sync_saver: PostgresSaver, value: Any) -> None:
    """Whether it can be compared to them or not."""
    engine: Any = create_async_engine("postgresql+asyncpg://")
    for wanted, call in (
        ("strategy must be 'keep_latest' or 'delete', not ", lambda: sync_saver.prune(["t1"], strategy=value)),
        ("order must be 'newest' or 'thread_id', not ", lambda: sync_saver.list_threads(order=value)),
        ("pooler must be 'transaction'", lambda: AsyncPostgresSaver(engine, pooler=value)),
        ("driver must be 'asyncpg' or 'psycopg', not ", lambda: pooler_options(value)),
    ):
        with pytest.raises((InvalidOption, InvalidConfig), match=wanted):
            call()


@pytest.mark.parametrize("number", [2**31, 2**63, 10**5000], ids=["2**31", "2**63", "10**5000"])
async def test_a_number_past_what_statements_count_is_any_number(
    sync_saver: PostgresSaver, engine: AsyncEngine, number: int
) -> None:
    """To keep so many checkpoints is to keep all; a batch of so many is one of all."""
    three(sync_saver)

    assert sync_saver.prune(["t1"], keep=number).checkpoints == 0
    assert sync_saver.sweep(keep_last=number).checkpoints == 0
    assert len(list(sync_saver.list_threads(limit=number))) == 1
    ring = EncryptedSerializer(KeyRing.aes(bytes(16)))
    assert (await reencrypt(engine, None, ring, batch_size=number)).writes == 3
    assert await share(engine, batch_size=number) == 0
    assert sync_saver.sweep(keep_last=1, batch_size=number).checkpoints == 2


async def test_a_number_is_one(sync_saver: PostgresSaver, engine: AsyncEngine, sql: psycopg.Connection) -> None:
    """Of another kind, or out of range, it is refused by name, whatever it does when it is compared."""
    ring = EncryptedSerializer(KeyRing.aes(bytes(16)))
    three(sync_saver)
    before = rows(sql)
    for value in (Undecided(), True, "1", 0, -(10**5000)):
        odd: Any = value
        for name, call in (
            ("keep", lambda odd=odd: sync_saver.prune(["t1"], keep=odd)),
            ("keep_last", lambda odd=odd: sync_saver.sweep(keep_last=odd)),
            ("batch_size", lambda odd=odd: sync_saver.sweep(keep_last=1, batch_size=odd)),
            ("flushes", lambda odd=odd: AsyncPipeline(engine, flushes=odd)),
            ("partitions", lambda odd=odd: partitioning.sql(partitions=odd)),
        ):
            with pytest.raises(InvalidOption, match=f"{name} must be a number"):
                call()
        for rewriting in (reencrypt(engine, None, ring, batch_size=odd), share(engine, batch_size=odd)):
            with pytest.raises(InvalidOption, match=r"batch_size must be a number, 1 or more, not "):
                await rewriting

    assert rows(sql) == before


@pytest.mark.parametrize("seconds", [10**400, -(10**5000), float("nan"), Undecided(), True, "1"], ids="abcdef")
def test_a_time_is_a_number_of_seconds(sync_saver: PostgresSaver, seconds: Any) -> None:
    """A whole number may be too large for a float."""
    engine: Any = create_async_engine("postgresql+asyncpg://")
    with pytest.raises(InvalidOption, match="timeout must be a time in seconds, 0 to try once, or None for ever, not "):
        sync_saver.thread_lock("t1", timeout=seconds)
    with pytest.raises(InvalidOption, match="retry_timeout must be a time in seconds, 0 for no second try"):
        AsyncPostgresSaver(engine, retry_timeout=seconds)


@pytest.mark.parametrize("age", [Undecided(), 30, "30d", timedelta(-1)])
def test_an_age_is_a_timedelta(sync_saver: PostgresSaver, age: Any) -> None:
    """Of days gone by."""
    with pytest.raises(InvalidOption, match="older_than must be"):
        sync_saver.sweep(older_than=age)


@pytest.mark.parametrize(
    "schema", [[], Undecided(), 0, "a\ud800", "x" * 1_000_000], ids=["list", "undecided", "0", "surrogate", "long"]
)
async def test_a_schema_has_a_name(engine: AsyncEngine, schema: Any) -> None:
    """Which PostgreSQL can have: what can't be hashed is none, and neither is what can't be encoded."""
    calls: list[Callable[[], Any]] = [
        lambda: Tables(schema),
        lambda: AsyncPostgresSaver(engine, schema=schema),
        lambda: partitioning.sql(schema),
    ]
    for call in calls:
        with pytest.raises(InvalidOption, match=r"schema must (be the name of|have at most) .*") as caught:
            call()
        assert len(str(caught.value)) < 500
    with pytest.raises(InvalidOption, match=r"schema must (be|have)"):
        await count_unencrypted(engine, schema=schema)


def test_a_schema_whose_name_has_several_lines_is_named(url: str) -> None:
    """The first line of what the server says would end in the middle of it."""
    with (
        PostgresSaver.from_conn_string(url, schema="a\nb") as saver,
        pytest.raises(NotSetUp, match=r'"a\\nb\.checkpoints" does not exist'),
    ):
        saver.get_tuple(THREAD)


async def test_what_is_of_another_kind_is_refused_when_it_is_passed(
    sync_saver: PostgresSaver, engine: AsyncEngine
) -> None:
    """Not when it is called for the first time, with some of the work done."""
    odd: Any = Undecided()
    ring = EncryptedSerializer(KeyRing.aes(bytes(16)))
    calls: dict[str, Callable[[], Any]] = {
        "serde must be a serializer, with dumps_typed and loads_typed, not ": lambda: AsyncPostgresSaver(
            engine, serde=odd
        ),
        "serde must be a serializer, .*, not .*JsonPlusSerializer": lambda: AsyncPostgresSaver(
            engine,
            serde=JsonPlusSerializer,  # type: ignore[arg-type]
        ),
        "a cipher must have encrypt and decrypt, as those of KeyRing.aes.. have; ": lambda: KeyRing(odd),
        "metadata must be a MetaData of SQLAlchemy's or None, not .*": lambda: Tables(metadata=odd),
        "on_progress must be a function, or None, not ": lambda: sync_saver.sweep(keep_last=1, on_progress=odd),
        "source must be a LangGraph saver, with list or alist, not ": lambda: copy_threads(odd, sync_saver),
        "on_error must be a function, or None, not ": lambda: copy_threads(InMemorySaver(), sync_saver, on_error=odd),
    }
    for message, call in calls.items():
        with pytest.raises(InvalidOption, match=message):
            call()
    with pytest.raises(InvalidOption, match="on_progress must be a function"):
        await reencrypt(engine, None, ring, on_progress=odd)
    with pytest.raises(InvalidOption, match="a cipher must have encrypt and decrypt"):
        await reencrypt(engine, None, EncryptedSerializer(odd))
    with pytest.raises(UnusableConnection, match=r"engine is .*Undecided; it must be an AsyncEngine or Engine"):
        await reencrypt(odd, None, ring)
    with pytest.raises(UnusableConnection, match=r"conn must be an open .*, not a .*Undecided\. .* conn\.run_sync"):
        partitioning.partition(odd)


@pytest.mark.parametrize("thread_id", ["", "a\x00", "x" * 1_000_000, [], None, Undecided(), Rude()], ids="abcdefg")
def test_a_transfer_is_refused_for_one_id_that_can_be_none(
    sync_saver: PostgresSaver, sql: psycopg.Connection, thread_id: Any
) -> None:
    """Before the threads in front of it are copied."""
    source = InMemorySaver()
    source.put(THREAD, empty_checkpoint(), {}, {})

    with pytest.raises(InvalidConfig, match="a thread's id") as caught:
        copy_threads(source, sync_saver, ["t1", thread_id])
    assert len(str(caught.value)) < 500
    assert rows(sql) == 0


@pytest.mark.parametrize("thread_ids", ["t1", 7, Undecided(), (1 / 0 for _ in "a")], ids=["a", "b", "c", "d"])
def test_what_is_no_list_of_threads_is_not_copied(sync_saver: PostgresSaver, thread_ids: Any) -> None:
    """One id is no list of ids."""
    with pytest.raises(InvalidConfig, match="thread_ids"):
        copy_threads(InMemorySaver(), sync_saver, thread_ids)


def test_a_prefix_that_is_no_text_is_refused(sync_saver: PostgresSaver) -> None:
    """What is falsy by mistake does not list all threads."""
    for prefix in (0, [], False, Undecided()):
        odd: Any = prefix
        with pytest.raises(InvalidConfig, match="prefix must be"):
            sync_saver.list_threads(prefix=odd)
    for cursor in (0, [], Undecided(), "x" * 1_000_000):
        odd = cursor
        with pytest.raises(InvalidConfig, match=r"cursor must be the `cursor` of a thread listed before, not "):
            sync_saver.list_threads(cursor=odd)


def test_what_is_said_of_a_thread_is_short_whatever_its_id(sync_saver: PostgresSaver) -> None:
    """A control character is shown by four."""
    long = "\x01" * 2000
    sync_saver.put({"configurable": {"thread_id": long, "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})
    calls: list[Callable[[], Any]] = [
        lambda: sync_saver.copy_thread("\x02" * 2000, "t1"),
        lambda: sync_saver.copy_thread(long, long + "2") or sync_saver.copy_thread(long, long + "2"),  # type: ignore[func-returns-value]
        lambda: copy_threads(InMemorySaver(), sync_saver, [long + "3"]),
    ]
    for call in calls:
        with pytest.raises((ThreadNotFound, ThreadExists, TransferError)) as caught:
            call()
        assert len(str(caught.value)) < 600


def test_what_is_said_of_a_value_is_short_whatever_it_belongs_to(
    sync_saver: PostgresSaver, sql: psycopg.Connection
) -> None:
    """A task's id of control characters, and a type that somebody has written by hand."""
    _, second, _ = three(sync_saver)
    with pytest.raises(UnstorableValue, match=r"task '\\x01") as unstorable:
        sync_saver.put_writes(second, [("a", object())], "\x01" * 2000)
    sql.execute("UPDATE checkpoint_writes SET type = repeat('x', 100000)")
    with pytest.raises(UnreadableValue, match="type 'xxx") as unreadable:
        sync_saver.get_tuple(second)
    with (
        pytest.raises(InvalidURL, match="port must be a whole number, not 'xxx") as invalid,
        PostgresSaver.from_conn_string(f"postgresql:///app?host=a,b&port={'x' * 100_000}"),
    ):
        pass
    for caught in (unstorable, unreadable, invalid):
        assert len(str(caught.value)) < 1000


def test_the_id_that_is_none_is_named_by_its_list(sync_saver: PostgresSaver) -> None:
    """There is no `thread_id` in the call."""
    with pytest.raises(InvalidConfig, match="an id in thread_ids is empty"):
        sync_saver.prune(["t1", ""])


# --- what is large ---


def test_a_value_past_a_gigabyte_is_refused_unsent(sync_saver: PostgresSaver, sql: psycopg.Connection) -> None:
    """PostgreSQL would close the connection in the middle of the message."""
    huge = bytes(2**30 + 1)
    checkpoint = checkpoint_with({"small": [1], "huge": huge})
    with pytest.raises(UnstorableValue, match=r"thread 't1', namespace '', channel 'huge': .* 1,073,741,825 bytes"):
        sync_saver.put(THREAD, checkpoint, {}, checkpoint["channel_versions"])
    with pytest.raises(
        UnstorableValue, match=r"thread 't', namespace '', task 'x', channel 'huge': .* PostgreSQL takes"
    ):
        sync_saver.put_writes({"configurable": {"thread_id": "t", "checkpoint_id": "1"}}, [("huge", huge)], "x")

    assert rows(sql) == 0


def test_values_that_are_too_large_together_are_refused(
    sync_saver: PostgresSaver, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They travel in one message, and come back in one row; what just fits is stored."""
    monkeypatch.setattr(encoder, "MAX_BYTES", 3000)
    fitting = checkpoint_with(dict.fromkeys("abc", b"x" * 1000))
    sync_saver.put(THREAD, fitting, {}, fitting["channel_versions"])
    before = rows(sql)
    checkpoint = checkpoint_with({"a": b"x" * 1000, "b": b"x" * 1001, "c": b"x" * 1000})
    with pytest.raises(UnstorableValue, match=r"channel 'b': its value has 1,001 bytes, and all .* at once 3,001"):
        sync_saver.put(THREAD, checkpoint, {}, checkpoint["channel_versions"])

    assert rows(sql) == before


def test_a_long_string_is_stored_as_a_blob(url: str, sync_saver: PostgresSaver, sql: psycopg.Connection) -> None:
    """JSONB's strings end at 256 MB, and every step would store it anew; the stock saver reads it all the same."""
    text = "\U0001f600" * (encoder.INLINE_CHARACTERS + 1)
    checkpoint = checkpoint_with({"long": text, "short": text[:-1]})
    parent = sync_saver.put(THREAD, checkpoint, {}, checkpoint["channel_versions"])
    stored = sync_saver.put(parent, {**checkpoint, "id": checkpoint["id"] + "x"}, {}, {})

    assert sql.execute("SELECT channel, version FROM checkpoint_blobs").fetchall() == [("long", "1")]
    assert sync_saver.get(stored)["channel_values"] == checkpoint["channel_values"]  # type: ignore[index]
    with StockSaver.from_conn_string(url) as stock:
        assert stock.get(stored)["channel_values"] == checkpoint["channel_values"]  # type: ignore[index]


def test_metadata_past_jsonb_is_refused(sync_saver: PostgresSaver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is measured before it is sent."""
    monkeypatch.setattr("checkpoint_store.serde.jsonb.MAX_BYTES", 1000)
    with pytest.raises(UnstorableValue, match=r"metadata has 1,\d\d\d bytes as JSON"):
        sync_saver.put(THREAD, empty_checkpoint(), {"a": "x" * 1000}, {})  # type: ignore[typeddict-unknown-key]


@pytest.mark.slow
@pytest.mark.parametrize("share_pages", [False, True])
async def test_200_megabytes_come_back(engine: AsyncEngine, share_pages: bool) -> None:
    """As one string, as one blob of bytes, and as a list, whole or in pages."""
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    lines = [f"{number} " + "x" * 1990 for number in range(100_000)]
    for number, value in enumerate(["".join(lines), bytes(200_000_000), lines]):
        checkpoint = checkpoint_with({"huge": value})
        config: Any = {"configurable": {"thread_id": str(number), "checkpoint_ns": ""}}
        found = await saver.aget(await saver.aput(config, checkpoint, {}, checkpoint["channel_versions"]))
        assert found is not None
        came_back = found["channel_values"]["huge"] == value
        assert came_back


# --- what is in the rows ---


def three(saver: PostgresSaver) -> list[Any]:
    """A thread of three checkpoints; returns their configs."""
    config, configs = THREAD, []
    for number in ("1", "2", "3"):
        checkpoint = {**checkpoint_with({"items": [number], "count": 1}), "id": number}
        checkpoint["channel_versions"] = {"items": number, "count": number}
        config = saver.put(config, checkpoint, {"step": int(number)}, checkpoint["channel_versions"])
        saver.put_writes(config, [("items", [number])], "task")
        configs.append(config)
    return configs


def merged(parts: str) -> str:
    return f"checkpoints SET checkpoint = checkpoint || '{parts}'"


def change_second(sql: psycopg.Connection, change: str) -> None:
    sql.execute(f"UPDATE {change} WHERE {'version' if 'blobs' in change else 'checkpoint_id'} = '2'")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("checkpoints SET checkpoint = '[]'", "the checkpoint must be a JSON object, not a list"),
        ("checkpoints SET checkpoint = checkpoint - 'channel_versions'", "must be JSON objects"),
        (merged('{"channel_versions": [1]}'), "channel_versions and channel_values must be JSON objects"),
        (merged('{"channel_values": [1]}'), "channel_versions and channel_values must be JSON objects"),
        ("checkpoints SET checkpoint = jsonb_build_object('n', repeat('9', 5000)::numeric)", "that Python can't hold"),
        ("checkpoints SET metadata = 'null'", "the metadata must be a JSON object, not a NoneType"),
        ("checkpoint_writes SET type = NULL", "task 'task', channel 'items'"),
        ("checkpoint_blobs SET blob = NULL", "channel 'items': the stored value of type 'msgpack', .* is missing"),
        ("checkpoint_blobs SET type = 'bytes', blob = NULL", "'bytes', .* is missing"),
        ("checkpoint_blobs SET type = 'pages', blob = NULL", "a page of it, is missing"),
        ("checkpoint_blobs SET type = 'pages', blob = '\\x01'", "a page of it, is missing"),
    ],
)
def test_a_broken_row_is_named_and_a_list_goes_on_behind_it(
    sync_saver: PostgresSaver, sql: psycopg.Connection, change: str, message: str
) -> None:
    """A list ends where it meets one; the error has the config to go on with."""
    first, second, third = three(sync_saver)
    change_second(sql, change)

    with pytest.raises(UnreadableValue, match=f"thread 't1', namespace '', checkpoint '2'.*{message}"):
        sync_saver.get_tuple(second)
    found = []
    with pytest.raises(UnreadableValue, match="checkpoint '2'") as caught:
        found.extend(sync_saver.list(THREAD))
    assert caught.value.config == second
    found.extend(sync_saver.list(THREAD, before=caught.value.config))  # type: ignore[arg-type]
    assert [item.config for item in found] == [third, first]


@pytest.mark.parametrize("version", ['"x"', '{"a": 1}', "null", "[]", '"3"'])
def test_a_format_that_is_no_number_fails_no_list(
    sync_saver: PostgresSaver, sql: psycopg.Connection, version: str
) -> None:
    """Only what is below 4 is looked at for sends of old; anything else is what it is."""
    _, second, _ = three(sync_saver)
    change_second(sql, merged(f'{{"v": {version}}}'))

    assert len(list(sync_saver.list(THREAD))) == 3
    assert sync_saver.get(second)["v"] == json.loads(version)  # type: ignore[index]


def test_a_delta_channel_does_not_skip_a_checkpoint_without_versions(
    sync_saver: PostgresSaver, sql: psycopg.Connection
) -> None:
    """Its value would be an older one, in silence."""
    _, second, third = three(sync_saver)
    change_second(sql, merged('{"channel_versions": [1]}'))

    with pytest.raises(UnreadableValue, match="checkpoint '2': channel_versions and channel_values must be JSON"):
        sync_saver.get_delta_channel_history(config=third, channels=["items"])
    assert sync_saver.get_delta_channel_history(config=second, channels=["items"])["items"]["seed"] == ["1"]


def test_a_channel_whose_blob_is_gone_has_no_value(sync_saver: PostgresSaver, sql: psycopg.Connection) -> None:
    """A row that is missing looks like that of a channel without a value, as with the stock saver."""
    _, second, _ = three(sync_saver)
    sql.execute("DELETE FROM checkpoint_blobs WHERE version = '2'")

    assert sync_saver.get(second)["channel_values"] == {"count": 1}  # type: ignore[index]


def test_versions_that_do_not_compare_are_named(sync_saver: PostgresSaver, sql: psycopg.Connection) -> None:
    """The newest of them would have been the version of the sends."""
    _, second, _ = three(sync_saver)
    change_second(sql, merged('{"v": 1, "channel_versions": {"a": 1, "b": "2"}}'))
    sync_saver.put_writes({"configurable": {"thread_id": "t1", "checkpoint_id": "1"}}, [("__pregel_tasks", "x")], "t")

    with pytest.raises(UnreadableValue, match="checkpoint '2': channel_versions has both strings and numbers"):
        sync_saver.get_tuple(second)


def test_a_version_that_is_none_is_named(sync_saver: PostgresSaver) -> None:
    """LangGraph asks for the version after the one that is stored."""
    with pytest.raises(UnreadableValue, match="'x' is not a channel's version: it must begin with a number"):
        sync_saver.get_next_version("x", None)
