"""Whatever somebody writes into the tables by hand: it is read, or named; the rest of the thread stays readable."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checkpoint_store import PostgresSaver
from checkpoint_store.errors import UnreadableValue
from checkpoint_store.serde import pages

CHANNEL = "items"
VALUE = ["some", {"kind": "of", "value": list(range(40))}, "that is long enough to have pages" * 20]
PACKED = JsonPlusSerializer().dumps_typed(VALUE)[1]

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts | st.just(CHANNEL), inner, max_size=3),
    max_leaves=5,
).map(json.dumps)
odd_json = st.sampled_from(
    [
        "1e400",
        "-1e-400",
        "1" + "0" * 5000,
        "[" * 3000 + "]" * 3000,
        '["items"]',
        '{"items": null}',
        '{"items": {}}',
        "{}",
    ]
)
jsons = any_json | odd_json
parts = st.sampled_from(["channel_values", "channel_versions", "v", "id", "ts", "versions_seen", "updated_channels"])


def damaged(value: bytes) -> st.SearchStrategy[bytes]:
    """Bytes as they were but for one place, cut off, or nothing like it."""
    flipped = st.tuples(st.integers(0, len(value) - 1), st.integers(0, 255)).map(
        lambda flip: value[: flip[0]] + bytes([flip[1]]) + value[flip[0] + 1 :]
    )
    bombs = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000, b"\xc1", b""]
    return flipped | st.integers(0, len(value)).map(lambda end: value[:end]) | st.binary() | st.sampled_from(bombs)


kinds = st.sampled_from(
    ["msgpack", "json", "bytes", "bytearray", "null", "pickle", "empty", "pages", "msgpack+aes", "", "'; --"]
)
recipes = damaged(pages.cut(PACKED * 30).recipe)
chosen = {"channel": CHANNEL}
changes = st.one_of(
    st.tuples(st.just("checkpoints SET checkpoint = %s::jsonb"), st.tuples(jsons)),
    st.tuples(
        st.just("checkpoints SET checkpoint = jsonb_set(checkpoint, ARRAY[%s::text], %s::jsonb)"),
        st.tuples(parts, jsons),
    ),
    st.tuples(st.just("checkpoints SET checkpoint = checkpoint - %s::text"), st.tuples(parts)),
    st.tuples(st.just("checkpoints SET metadata = %s::jsonb"), st.tuples(jsons)),
    st.tuples(
        st.just("checkpoints SET parent_checkpoint_id = %s"),
        st.tuples(st.sampled_from(["1", "2", "3", "", None, "unknown"]) | texts),
    ),
    st.tuples(st.just("checkpoint_blobs SET type = %s, blob = %s"), st.tuples(kinds, damaged(PACKED) | st.none())),
    st.tuples(st.just("checkpoint_blobs SET type = 'pages', blob = %s"), st.tuples(recipes | st.none())),
    st.tuples(st.just("checkpoint_blobs SET version = %s"), st.tuples(texts)),
    st.tuples(
        st.just("checkpoint_writes SET type = %s, blob = %s"), st.tuples(kinds | texts | st.none(), damaged(PACKED))
    ),
    st.tuples(st.just("checkpoint_writes SET channel = %s"), st.tuples(texts)),
)


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


def named(thread_id: str, checkpoint_id: str | None = None) -> dict[str, Any]:
    configurable = {"thread_id": thread_id, "checkpoint_ns": ""}
    return {"configurable": configurable if checkpoint_id is None else {**configurable, "checkpoint_id": checkpoint_id}}


def stored(saver: PostgresSaver) -> str:
    """Store a thread of three checkpoints, with values inline and as blobs, and a pending write each."""
    thread_id = str(uuid.uuid4())
    config = named(thread_id)
    for identity in ("1", "2", "3"):
        checkpoint: Any = {
            "v": 4,
            "id": identity,
            "ts": "",
            "channel_values": {CHANNEL: VALUE, "count": 1},
            "channel_versions": {CHANNEL: identity, "count": identity},
            "versions_seen": {},
        }
        config = saver.put(config, checkpoint, {"step": int(identity)}, checkpoint["channel_versions"])
        saver.put_writes(config, [(CHANNEL, VALUE)], "task")
    return thread_id


def changed(sql: psycopg.Connection, thread_id: str, change: tuple[str, tuple[Any, ...]]) -> None:
    """Change what belongs to the second checkpoint, unless PostgreSQL refuses that: then nobody could have."""
    statement, values = change
    own = "version = '2'" if statement.startswith("checkpoint_blobs") else "checkpoint_id = '2'"
    with suppress(psycopg.DataError, psycopg.IntegrityError):
        sql.execute(f"UPDATE {statement} WHERE thread_id = %s AND {own}", [*values, thread_id])


def listed(saver: PostgresSaver, config: dict[str, Any] | None) -> list[str]:
    """The ids of a list, which goes on behind what can't be read."""
    ids: list[str] = []
    before: dict[str, Any] | None = None
    while True:
        try:
            ids.extend(found.config["configurable"]["checkpoint_id"] for found in saver.list(config, before=before))
        except UnreadableValue as error:
            before = error.config
        else:
            return ids
        assert before is not None


def reading(call: Callable[[], Any], *names: str) -> Any:
    """What a call returns, or None where a value can't be read; the message then has all these names."""
    try:
        return call()
    except UnreadableValue as error:
        message = str(error)
    assert all(name in message for name in names), message
    assert len(message) < 2000
    return None


def is_whole(found: CheckpointTuple | None) -> bool:
    return found is not None and found.checkpoint["channel_values"][CHANNEL] == VALUE


def test_any_row(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """One row of the second checkpoint is anything: the first and the third are read as if nothing were."""

    @fuzz(st.lists(changes, min_size=1, max_size=2))
    def _(damage: list[Any]) -> str:
        sql.execute("TRUNCATE checkpoints, checkpoint_blobs, checkpoint_writes")
        thread_id = stored(sync_saver)
        for change in damage:
            changed(sql, thread_id, change)

        found = reading(lambda: sync_saver.get_tuple(named(thread_id, "2")), thread_id, "checkpoint '2'")
        assert is_whole(sync_saver.get_tuple(named(thread_id, "1")))
        assert is_whole(sync_saver.get_tuple(named(thread_id)))
        expected = ["3", "2", "1"] if found else ["3", "1"]
        assert listed(sync_saver, named(thread_id)) == expected
        assert listed(sync_saver, {"configurable": {"thread_id": thread_id}}) == expected
        assert listed(sync_saver, None) == expected
        for identity in ("1", "2", "3", None):
            config = named(thread_id, identity)
            reading(
                lambda config=config: sync_saver.get_delta_channel_history(config=config, channels=[CHANNEL, "no"]),
                thread_id,
            )
        sync_saver.delete_thread(thread_id)
        assert sync_saver.get_tuple(named(thread_id)) is None
        return "read" if found else "named"

    assert min(fuzz.endings["read"], fuzz.endings["named"]) > 3


def test_parents_may_form_any_graph(sync_saver: PostgresSaver, sql: psycopg.Connection, fuzz: Any) -> None:
    """Cycles of any length, checkpoints that are their own parents, parents that are nowhere: walks come to an end."""
    parents = st.sampled_from(["1", "2", "3", "nowhere", "", None])

    @fuzz(st.tuples(parents, parents, parents))
    def _(of_each: tuple[str | None, ...]) -> str:
        thread_id = stored(sync_saver)
        sql.execute("DELETE FROM checkpoint_blobs WHERE thread_id = %s AND version <> '1'", [thread_id])
        for identity, parent in enumerate(of_each, 1):
            sql.execute(
                "UPDATE checkpoints SET parent_checkpoint_id = %s WHERE thread_id = %s AND checkpoint_id = %s",
                [parent, thread_id, str(identity)],
            )
        for identity in ("1", "2", "3"):
            config = named(thread_id, identity)
            history = sync_saver.get_delta_channel_history(config=config, channels=[CHANNEL])[CHANNEL]
            assert len(history["writes"]) <= 3
        sync_saver.delete_thread(thread_id)
        return "walked"
