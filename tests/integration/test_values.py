"""What JSONB can't hold: a channel value comes back equal and of the same type, or put raises and writes nothing."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import asyncpg
import msgpack
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import UnreadableValue, UnstorableValue


class Colour(str, enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


def config(thread_id: str = "t1", **more: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", **more}}


def checkpoint_with(**values: Any) -> Any:
    return {
        **empty_checkpoint(),
        "v": 4,
        "channel_values": values,
        "channel_versions": {channel: f"1.{uuid4()}" for channel in values},
    }


async def stored(saver: BaseCheckpointSaver[str], value: Any) -> Any:
    checkpoint = checkpoint_with(channel=value)
    written = await saver.aput(config(), checkpoint, {}, checkpoint["channel_versions"])
    read = await saver.aget(written)
    assert read is not None
    return read["channel_values"]["channel"]


async def row_count(url: str) -> int:
    conn = await asyncpg.connect(url)
    try:
        return await conn.fetchval(
            "SELECT (SELECT count(*) FROM checkpoints) + (SELECT count(*) FROM checkpoint_blobs)"
            " + (SELECT count(*) FROM checkpoint_writes)"
        )
    finally:
        await conn.close()


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, 1, 2**63, -(2**63) - 1, 2**70, 10**300,
        0.5, 1.0, 1e16, 1e22, -1e300, 1.7976931348623157e308, 5e-324, 1e-5, math.inf, -math.inf,
        "", "text", "\x00", "a\x00b", "\\u0000", "\U0001f600\u200d", "\ufffe", "x" * 100_000,
        b"", b"\x00\xff", bytearray(b"x"), Colour.RED, Size.LARGE,
        [], {}, [1, [2.5, None]], {"a": {"b": "\x00"}}, {1: "int key"}, {1, 2}, ["?", {"a": "\U0001f600?"}],
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
async def test_a_channel_value_comes_back_equal_and_of_the_same_type(saver: AsyncPostgresSaver, value: Any) -> None:
    """Inline or as a blob, nobody can tell from what is read."""
    read = await stored(saver, value)

    assert read == value
    assert type(read) is type(value)


async def test_nan_and_negative_zero_come_back_as_they_were(saver: AsyncPostgresSaver) -> None:
    """The two floats that equality can't vouch for."""
    assert math.isnan(await stored(saver, math.nan))
    assert math.copysign(1, await stored(saver, -0.0)) == -1


@pytest.mark.parametrize(
    "value",
    [10**5000, {"big": 2**70}, object(), lambda: None],
    ids=["huge int", "nested big int", "object", "function"],
)
async def test_what_nothing_can_hold_is_refused_before_anything_is_written(
    saver: AsyncPostgresSaver, url: str, value: Any
) -> None:
    """The error names thread, namespace and channel, has its cause, and the database stays empty."""
    with pytest.raises(
        UnstorableValue, match=r"thread 't1', namespace '', channel 'channel': \w+ is not serializable by JsonPlus"
    ) as caught:
        await stored(saver, value)

    assert caught.value.__cause__ is not None
    assert await row_count(url) == 0


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_lone_surrogate_becomes_what_langgraphs_serializer_makes_of_it(
    engine: AsyncEngine, encrypted: bool
) -> None:
    """It stores "?" for it, as in memory: nobody looks for one in values that a node may be changing meanwhile."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef") if encrypted else None
    saver = AsyncPostgresSaver(engine, serde=serde)
    for value in ("\ud800", ["a", {"b": ["\udfff?"]}], HumanMessage(content="x\ud800")):
        memory = InMemorySaver()
        assert await stored(saver, value) == await stored(memory, value)
        written = []
        for each in (saver, memory):
            at = await each.aput(config(), checkpoint_with(), {}, {})
            await each.aput_writes(at, [("channel", value)], "task")
            found = await each.aget_tuple(at)
            assert found is not None
            written.append(found.pending_writes)
        assert written[0] == written[1]


async def test_an_unstorable_write_is_refused_with_all_writes_of_its_call(saver: AsyncPostgresSaver, url: str) -> None:
    """Pending writes are all or nothing, and the error names the task too."""
    with pytest.raises(UnstorableValue, match="thread 't1', namespace '', task 'task', channel 'bad': function"):
        await saver.aput_writes(config(checkpoint_id="1"), [("good", 1), ("bad", lambda: None)], "task")

    assert await row_count(url) == 0


async def test_pickle_fallback_is_the_way_out_that_the_error_names(engine: AsyncEngine) -> None:
    """A serializer that takes the value stores it."""
    saver = AsyncPostgresSaver(engine, serde=JsonPlusSerializer(pickle_fallback=True))

    assert await stored(saver, 10**5000) == 10**5000
    assert await stored(saver, {"big": 2**70}) == {"big": 2**70}


@pytest.mark.parametrize("name", ["chan\x00nel", "chan\ud800nel"])
async def test_a_channel_name_that_text_cannot_hold_is_refused(saver: AsyncPostgresSaver, url: str, name: str) -> None:
    """Names are keys; there is no serializer to save them. Inline, as a blob, as a write: all refused by name."""
    for value in (1, [1]):
        checkpoint = checkpoint_with(**{name: value})
        with pytest.raises(UnstorableValue, match="thread 't1', namespace ''"):
            await saver.aput(config(), checkpoint, {}, checkpoint["channel_versions"])
    with pytest.raises(UnstorableValue, match="has a name that PostgreSQL's text can't hold"):
        await saver.aput_writes(config(checkpoint_id="1"), [(name, 1)], "task")

    assert await row_count(url) == 0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"score": math.nan}, r"thread 't1', namespace '': metadata\['score'\] is not finite"),
        ({"a": {"b": {1, 2}}}, r"metadata\['a'\]\['b'\] is a set"),
        ({"s": ["\ud800"]}, r"metadata\['s'\]\[0\] is a string with a lone surrogate"),
    ],
)
async def test_metadata_that_json_cannot_hold_is_refused(
    saver: AsyncPostgresSaver, url: str, metadata: Any, message: str
) -> None:
    """It says which part, instead of dropping it or storing null."""
    with pytest.raises(UnstorableValue, match=message):
        await saver.aput(config(), checkpoint_with(), metadata, {})

    assert await row_count(url) == 0


async def test_metadata_comes_back_as_it_was_less_its_nuls(saver: AsyncPostgresSaver) -> None:
    """Numbers of any size keep value and type; NUL is stripped, as LangGraph's contract has it."""
    metadata: Any = {"big": 2**70, "e": 1e16, "huge": 1e300, "deep": {"list": [None, True, "a\x00b"]}, "top": "\x00x"}
    written = await saver.aput(config(), checkpoint_with(), metadata, {})
    read = await saver.aget_tuple(written)

    assert read is not None
    assert read.metadata == {**metadata, "deep": {"list": [None, True, "ab"]}, "top": "x"}
    assert repr(read.metadata["e"]) == "1e+16"  # type: ignore[typeddict-item]


async def test_metadata_takes_in_the_configs_as_langgraph_does(saver: AsyncPostgresSaver) -> None:
    """Scalars of config metadata and configurable are added, ids and private keys are not."""
    full: Any = {
        "configurable": {"thread_id": "t1", "checkpoint_ns": "", "user": "ann", "__private": 1, "obj": {"x": 1}},
        "metadata": {"tag": "a\x00", "score": 0.5, "list": [1]},
    }
    written = await saver.aput(full, checkpoint_with(), {"source": "input", "step": -1, "writes": {"x": 1}}, {})  # type: ignore[typeddict-unknown-key]
    read = await saver.aget_tuple(written)

    assert read is not None
    assert read.metadata == {"source": "input", "step": -1, "user": "ann", "tag": "a", "score": 0.5}


async def test_a_value_without_any_version_is_refused(saver: AsyncPostgresSaver, url: str) -> None:
    """A blob is found by its channel's version; without one it would be stored for nobody, or dropped in silence."""
    checkpoint = {**checkpoint_with(), "channel_values": {"messages": ["hello"]}}
    with pytest.raises(UnstorableValue, match="neither new_versions nor channel_versions has a version"):
        await saver.aput(config(), checkpoint, {}, {})

    assert await row_count(url) == 0


@pytest.mark.parametrize(
    "version", [1, 2.0, 1.5, 1e16, 1.2345678901234568e17, 5e-324, -0.0, 2**70, 'a"b\\', "\U0001f600"]
)
async def test_a_value_is_found_under_any_version(saver: AsyncPostgresSaver, version: Any) -> None:
    """LangGraph's contract allows numbers as versions; JSONB must not change them on the way."""
    checkpoint = {**checkpoint_with(a=[1]), "channel_versions": {"a": version}}
    written = await saver.aput(config(), checkpoint, {}, {"a": version})
    read = await saver.aget(written)

    assert read is not None
    assert read["channel_values"] == {"a": [1]}
    assert read["channel_versions"] == {"a": version}


async def test_an_unchanged_channel_keeps_its_blob(saver: AsyncPostgresSaver, url: str) -> None:
    """A step that did not touch a channel stores nothing for it and still reads its value."""
    first = checkpoint_with(messages=["hello"], nan=math.inf)
    parent = await saver.aput(config(), first, {}, first["channel_versions"])
    before = await row_count(url)
    written = await saver.aput(parent, {**first, "id": first["id"] + "x"}, {}, {})
    read = await saver.aget(written)

    assert read is not None
    assert read["channel_values"] == {"messages": ["hello"], "nan": math.inf}
    assert await row_count(url) == before + 1


async def test_a_parent_is_asked_for_values_only_where_that_it_has_none_is_not_known(engine: AsyncEngine) -> None:
    """Every step has empty channels: in a run they cost nothing, since it has read or stored what it goes on from."""
    seen: list[bool] = []
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *call: seen.append("jsonb_object_agg" in call[2]))
    empty = {"empty": "1"}

    async def step(saver: AsyncPostgresSaver, parent: Any, **values: Any) -> Any:
        checkpoint = {**checkpoint_with(**values), "channel_versions": {**empty, "vip": "1", "count": f"{uuid4()}"}}
        seen.clear()
        return await saver.aput(parent, checkpoint, {}, {"count": checkpoint["channel_versions"]["count"]})

    first, other, late = (AsyncPostgresSaver(engine) for _ in range(3))
    at = await step(first, config(), vip=True, count=1)
    at = await step(first, at, vip=True, count=2)
    assert seen == [False]
    await other.aget_tuple(config())
    at = await step(other, at, vip=True, count=3)
    assert seen == [False]
    at = await step(late, at, count=4)
    assert seen == [True]
    at = await step(late, at, count=5)
    assert seen == [True], "a value that it does not know came along"
    found = await first.aget(at)
    assert found is not None
    assert found["channel_values"] == {"vip": True, "count": 5}


async def test_blobs_are_plain_msgpack_that_any_reader_opens(saver: AsyncPostgresSaver, url: str) -> None:
    """What is stored is LangGraph's format and no envelope of ours around it."""
    await stored(saver, ["hello", {"n": 1}])
    conn = await asyncpg.connect(url)
    row = await conn.fetchrow("SELECT type, blob FROM checkpoint_blobs")
    await conn.close()

    assert (row["type"], msgpack.unpackb(row["blob"])) == ("msgpack", ["hello", {"n": 1}])


async def test_an_encrypting_serializer_gets_every_value(engine: AsyncEngine, url: str) -> None:
    """With encryption no channel value is in clear, scalars included, which the stock saver leaves inline."""
    saver = AsyncPostgresSaver(engine, serde=EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef"))
    checkpoint = checkpoint_with(text="planted-secret", number=987654321, none=None, list=["planted-secret"])
    written = await saver.aput(config(), checkpoint, {}, checkpoint["channel_versions"])
    await saver.aput_writes(written, [("text", "planted-secret")], "task")
    read = await saver.aget(written)
    assert read is not None
    assert read["channel_values"] == checkpoint["channel_values"]

    conn = await asyncpg.connect(url)
    rows = [
        str([bytes(v) if isinstance(v, memoryview) else v for v in row.values()])
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
        for row in await conn.fetch(f"SELECT * FROM {table}")
    ]
    await conn.close()
    assert len(rows) == 6
    assert not [row for row in rows if "planted-secret" in row or "987654321" in row]


async def test_encryption_can_be_turned_on_for_a_thread_that_has_inline_values(engine: AsyncEngine) -> None:
    """A scalar that was stored inline and does not change is not lost when a serializer begins to want it."""
    plain = AsyncPostgresSaver(engine)
    checkpoint = checkpoint_with(name="ann", items=[1])
    parent = await plain.aput(config(), checkpoint, {}, checkpoint["channel_versions"])

    secret = AsyncPostgresSaver(engine, serde=EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef"))
    before = await secret.aget(parent)
    assert before is not None
    written = await secret.aput(parent, {**before, "id": before["id"] + "x"}, {}, {})
    after = await secret.aget(written)

    assert after is not None
    assert after["channel_values"] == {"name": "ann", "items": [1]}


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("checkpoint_blobs", "blob = '\\xc1'", "thread 't1', namespace '', checkpoint '.*', channel 'items'"),
        ("checkpoint_blobs", "type = 'parquet'", "can't decode the stored value of type 'parquet'"),
        ("checkpoint_writes", "blob = '\\xc1'", "checkpoint '.*', task 'task', channel 'items'"),
    ],
)
async def test_a_value_that_cannot_be_decoded_is_named_and_the_rest_stays_readable(
    saver: AsyncPostgresSaver, url: str, table: str, change: str, message: str
) -> None:
    """One broken row does not take its thread with it."""
    good = checkpoint_with(items=[0])
    parent = await saver.aput(config(), good, {}, good["channel_versions"])
    bad = {**good, "id": good["id"] + "x", "channel_versions": {"items": "2"}, "channel_values": {"items": [1]}}
    written = await saver.aput(parent, bad, {}, {"items": "2"})
    await saver.aput_writes(written, [("items", [2])], "task")
    conn = await asyncpg.connect(url)
    await conn.execute(
        f"UPDATE {table} SET {change} WHERE {'version' if 'blobs' in table else 'task_id'} IN ('2', 'task')"
    )
    await conn.close()

    with pytest.raises(UnreadableValue, match=message):
        await saver.aget(written)
    assert await saver.aget(parent) is not None


async def test_a_copy_with_an_allowlist_shares_the_saver(
    saver: AsyncPostgresSaver, monkeypatch: pytest.MonkeyPatch, make_database: Callable[[], str]
) -> None:
    """LangGraph copies a saver to narrow its serializer; the copy works on the same engine with the new serializer."""
    strict = AsyncPostgresSaver(saver._backend._engine, serde=JsonPlusSerializer(allowed_msgpack_modules=None))  # type: ignore[attr-defined]
    copy = strict.with_allowlist([(Colour.__module__, "Colour")])

    assert copy is not strict
    assert await stored(copy, Colour.RED) == Colour.RED  # type: ignore[arg-type]
    assert copy._backend is strict._backend  # type: ignore[attr-defined]
