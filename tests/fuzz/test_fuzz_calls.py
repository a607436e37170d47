"""Whatever a caller passes: it is stored and comes back, or one of our errors says what is wrong; nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import PostgresSaver
from checkpoint_store.errors import InvalidConfig
from tests.fuzz.odd import MOST, anything, nested, outcome, scalars, storable, texts

keys = st.sampled_from(["thread_id", "checkpoint_ns", "checkpoint_id", "user", "__pregel_x"]) | texts | st.integers()
plausible = st.fixed_dictionaries(
    {
        "configurable": st.fixed_dictionaries(
            {"thread_id": storable},
            optional={
                "checkpoint_ns": storable | st.sampled_from(["", None]),
                "checkpoint_id": storable | st.sampled_from(["", None]),
                "user": scalars,
            },
        )
    },
    optional={"metadata": st.dictionaries(storable, scalars, max_size=2)},
)
configurables = st.fixed_dictionaries(
    {"thread_id": texts | anything}, optional={"checkpoint_ns": texts | anything, "checkpoint_id": texts | anything}
)
hostile = (
    anything
    | st.fixed_dictionaries({"configurable": configurables | anything}, optional={"metadata": anything})
    | st.fixed_dictionaries({"configurable": st.dictionaries(keys, anything, max_size=4)})
)
configs = st.booleans().flatmap(lambda is_hostile: hostile if is_hostile else plausible)


def rows(sql: psycopg.Connection) -> int:
    """How many rows there are; fails if a table has gone."""
    return sum(
        sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
    )


def own(**more: Any) -> dict[str, Any]:
    return {"configurable": {"thread_id": str(uuid.uuid4()), "checkpoint_ns": "", **more}}


def test_any_config(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """Ids of every plane and size, mappings that are none, objects that raise when touched: stored, or refused."""

    @fuzz(configs)
    def _(config: Any) -> str:
        before = rows(sql)
        ending, stored = outcome(lambda: sync_saver.put(config, empty_checkpoint(), {}, {}))
        if stored is None:
            assert rows(sql) == before
        else:
            assert sync_saver.get_tuple(stored).config == stored  # type: ignore[union-attr]
            assert rows(sql) == before + 1
            outcome(lambda: sync_saver.put_writes(stored, [("a", 1)], "task"))
            assert len(sync_saver.get_tuple(stored).pending_writes) == 1  # type: ignore[union-attr, arg-type]
        outcome(lambda: sync_saver.put_writes(config, [("a", 1)], "task"))
        outcome(lambda: sync_saver.get_tuple(config))
        outcome(lambda: list(sync_saver.list(config, limit=3)))
        outcome(lambda: list(sync_saver.list(None, before=config, limit=3)))
        outcome(lambda: sync_saver.get_delta_channel_history(config=config, channels=["a"]))
        configurable = config.get("configurable") if isinstance(config, dict) else None
        thread_id = configurable.get("thread_id") if isinstance(configurable, dict) else config
        outcome(lambda: sync_saver.delete_thread(thread_id))
        assert stored is None or sync_saver.get_tuple(stored) is None
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


checkpoint_parts = st.fixed_dictionaries(
    {},
    optional={
        "v": anything,
        "id": texts | anything,
        "ts": anything,
        "channel_values": st.dictionaries(texts, anything, max_size=3) | anything,
        "channel_versions": st.dictionaries(texts, scalars | texts, max_size=3) | anything,
        "versions_seen": anything,
        "updated_channels": anything,
        "more": anything,
    },
)


def test_any_checkpoint(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """A checkpoint of any shape, with any channel names, versions and metadata: stored whole, or not at all."""
    names = st.dictionaries(storable, scalars | nested, max_size=3)
    sound = names.map(lambda values: {"channel_values": values, "channel_versions": dict.fromkeys(values, "1")})
    metadata = st.dictionaries(storable, storable | st.booleans(), max_size=2)
    fresh = st.dictionaries(storable, storable, max_size=2)

    @fuzz(sound | checkpoint_parts | anything, metadata | metadata | anything, fresh | fresh | anything)
    def _(parts: Any, metadata: Any, new_versions: Any) -> str:
        checkpoint = {**empty_checkpoint(), **parts} if isinstance(parts, Mapping) else parts
        before = rows(sql)
        ending, stored = outcome(lambda: sync_saver.put(own(), checkpoint, metadata, new_versions))
        if stored is None:
            assert rows(sql) == before
        else:
            assert sync_saver.get_tuple(stored) is not None
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_channel_value(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """What put takes, get returns: no value is stored that can't be read again, however deep it is."""

    @fuzz(texts, anything)
    def _(channel: str, value: Any) -> str:
        checkpoint: Any = {**empty_checkpoint(), "channel_values": {channel: value}, "channel_versions": {channel: "1"}}
        before = rows(sql)
        ending, stored = outcome(lambda: sync_saver.put(own(), checkpoint, {}, {channel: "1"}))
        if stored is None:
            assert rows(sql) == before
        else:
            assert channel in sync_saver.get_tuple(stored).checkpoint["channel_values"]  # type: ignore[union-attr]
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_metadata(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """Metadata of any shape: stored so that it can be read and found by a filter, or refused."""

    @fuzz(
        st.dictionaries(texts, anything, max_size=3) | anything, st.dictionaries(texts, scalars, max_size=2) | anything
    )
    def _(metadata: Any, more: Any) -> str:
        before = rows(sql)
        config = {**own(), "metadata": more}
        ending, stored = outcome(lambda: sync_saver.put(config, empty_checkpoint(), metadata, {}))
        if stored is None:
            assert rows(sql) == before
        else:
            found = sync_saver.get_tuple(stored)
            assert [found] == list(sync_saver.list(own(**stored["configurable"]), filter=found.metadata))  # type: ignore[union-attr, arg-type]
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_writes(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """Pending writes that are none, to channels that are none, by tasks that are none: stored, or refused."""
    sound = st.lists(st.tuples(storable, scalars), max_size=3)
    pairs = st.lists(st.tuples(texts | anything, anything) | anything, max_size=3)

    @fuzz(sound | pairs | anything, storable | storable | texts | anything, storable | storable | texts | anything)
    def _(writes: Any, task_id: Any, task_path: Any) -> str:
        config = own(checkpoint_id="1")
        before = rows(sql)
        ending, _ = outcome(lambda: sync_saver.put_writes(config, writes, task_id, task_path))
        if ending == "refused":
            assert rows(sql) == before
            return ending
        sync_saver.put(
            {"configurable": {**config["configurable"], "checkpoint_id": None}},
            {**empty_checkpoint(), "id": "1"},
            {},
            {},
        )
        assert len(sync_saver.get_tuple(config).pending_writes) == rows(sql) - before - 1  # type: ignore[union-attr, arg-type]
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_criteria(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """Filters, limits and `before` of any shape: an answer, or a refusal before the server is asked."""
    kept = sync_saver.put(own(), empty_checkpoint(), {"source": "input"}, {})

    @fuzz(
        st.dictionaries(texts, anything, max_size=3) | anything,
        st.none() | st.integers() | anything,
        st.none() | configs,
        st.lists(texts | anything, max_size=3) | anything,
    )
    def _(filter: Any, limit: Any, before: Any, channels: Any) -> str:
        ending, _ = outcome(lambda: list(sync_saver.list(own(), filter=filter)))
        for criteria in ({"limit": limit}, {"before": before}, {"filter": filter, "limit": limit, "before": before}):
            outcome(lambda criteria=criteria: list(sync_saver.list(None, **criteria)))
        outcome(lambda: sync_saver.get_delta_channel_history(config=own(), channels=channels))
        assert rows(sql) == 1
        return ending

    assert sync_saver.get_tuple(kept) is not None
    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_a_refusal_shows_no_more_than_it_needs(sync_saver: PostgresSaver) -> None:
    """A megabyte of thread id is named by its beginning and end."""
    with pytest.raises(InvalidConfig, match=r"xxx\.\.\.xxx.* has 1,000,000 bytes") as caught:
        sync_saver.get_tuple({"configurable": {"thread_id": "x" * 1_000_000}})

    assert len(str(caught.value)) < MOST
