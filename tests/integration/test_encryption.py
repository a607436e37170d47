"""Encryption at rest: keys that follow each other, rows in clear refused, a database encrypted while it is in use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypedDict

import ormsgpack
import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_CONSTRUCTOR_SINGLE_ARG, JsonPlusSerializer
from langgraph.checkpoint.serde.types import TASKS, _DeltaSnapshot
from langgraph.graph import START, StateGraph
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, conversion
from checkpoint_store.encryption import KeyRing, Reencryption, Unencrypted, count_unencrypted, reencrypt
from checkpoint_store.errors import InvalidOption, NotEncrypted, NotSetUp, UnreadableValue
from checkpoint_store.schema import Tables
from checkpoint_store.tools import reencryption

OLD, NEW = b"old key of 32 bytes, never to use", b"new key of 32 bytes, never to use"
OLD, NEW = OLD[:32], NEW[:32]
Saver = BaseCheckpointSaver[str]


def aes(key: bytes) -> EncryptedSerializer:
    return EncryptedSerializer.from_pycryptodome_aes(key=key)


def named(thread_id: str = "t1", checkpoint_id: str | None = None, namespace: str = "") -> RunnableConfig:
    configurable = {"thread_id": thread_id, "checkpoint_ns": namespace}
    return {"configurable": configurable if checkpoint_id is None else {**configurable, "checkpoint_id": checkpoint_id}}


VALUES: dict[str, Any] = {
    "text": "in clear",
    "number": 7,
    "real": 1e16,
    "nothing": None,
    "yes": True,
    "messages": [HumanMessage("hello", id="1")],
    "bytes": b"\x00\xff",
    "snapshot": _DeltaSnapshot(["a", "b"]),
    "long": [f"line {line} " * 30 for line in range(200)],
}


def store(saver: Saver, thread_id: str = "t1", steps: int = 3) -> list[RunnableConfig]:
    """Store a thread of a few steps, of which all have values of every kind and the second changes but some."""
    config, configs = named(thread_id), []
    for step in range(steps):
        changed = VALUES if step % 2 == 0 else {"text": f"in clear {step}", "messages": []}
        versions = {name: f"{step + 1 if name in changed else 1:032}.0" for name in VALUES}
        values = {**VALUES, **changed} if step % 2 else VALUES
        checkpoint: Any = {**empty_checkpoint(), "v": 4, "id": f"{step}", "channel_values": values}
        checkpoint["channel_versions"] = versions
        config = saver.put(config, checkpoint, {"step": step}, {name: versions[name] for name in changed})  # type: ignore[typeddict-item]
        saver.put_writes(config, [("text", "pending"), ("messages", [1])], "task")
        saver.put_writes(config, [("__interrupt__", "asked")], "task")
        configs.append(config)
    return configs


def read(saver: Saver, configs: list[RunnableConfig]) -> list[CheckpointTuple | None]:
    return [saver.get_tuple(config) for config in configs]


@pytest.fixture
def make(url: str) -> Iterator[Callable[..., PostgresSaver]]:
    """Makes savers for sync code on `url`."""
    savers = []

    def make(serde: Any = None, **options: Any) -> PostgresSaver:
        opened = PostgresSaver.from_conn_string(url, serde=serde, **options)
        savers.append(opened)
        return opened.__enter__()

    yield make
    for saver in savers:
        saver.__exit__(None, None, None)


@pytest.fixture
def sql(url: str) -> Iterator[psycopg.Connection]:
    """A connection of the test's own."""
    with psycopg.connect(url, autocommit=True) as conn:
        yield conn


def types(sql: psycopg.Connection) -> set[str]:
    rows = sql.execute("SELECT type FROM checkpoint_blobs UNION SELECT type FROM checkpoint_writes").fetchall()
    return {kind for (kind,) in rows} - {"empty"}


# --- keys that follow each other ---


def test_a_ring_reads_with_old_keys_and_writes_with_the_new_one(make: Any, url: str) -> None:
    """What it writes is bound to its place, which a ring of the new key alone knows; the stock saver does not."""
    before = store(make(aes(OLD)), "before")
    ring = EncryptedSerializer(KeyRing.aes(NEW, OLD))
    with_ring = make(ring)
    during = store(with_ring, "during")

    assert read(with_ring, before) == read(make(aes(OLD)), before)
    only_new = make(EncryptedSerializer(KeyRing.aes(NEW)))
    assert read(only_new, during) == read(with_ring, during)
    with pytest.raises(UnreadableValue, match="Unsupported cipher: aes-bound"):
        make(aes(NEW)).get_tuple(during[0])
    with pytest.raises(UnreadableValue, match=r"'before', .*EncryptedSerializer can't decode .*MAC check failed"):
        only_new.get_tuple(before[0])
    stranger = make(EncryptedSerializer(KeyRing.aes(b"0" * 16, b"1" * 16)))
    with pytest.raises(UnreadableValue, match=r"none of 2 keys fits.*one of the serializer's: .*aes\(new_key, old_key"):
        stranger.get_tuple(during[0])
    with pytest.raises(UnreadableValue, match=r"It is encrypted: pass serde=EncryptedSerializer\(KeyRing.aes\(key\)\)"):
        make(None).get_tuple(during[0])


made: list[str] = []


def make_something(argument: str) -> str:
    """What somebody would like us to call."""
    made.append(argument)
    return argument


EVIL = ormsgpack.packb(ormsgpack.Ext(EXT_CONSTRUCTOR_SINGLE_ARG, ormsgpack.packb((__name__, "make_something", "x"))))
MOVED = {
    "another type": "UPDATE {} SET type = replace(type, 'bytes', 'msgpack') WHERE channel = 'evil'",
    "another type, unbound": "UPDATE {} SET type = 'msgpack+aes' WHERE channel = 'evil'",
    "another channel": "UPDATE {} a SET blob = b.blob, type = b.type FROM {} b "
    "WHERE a.channel = 'evil' AND b.channel = 'text' AND a.thread_id = b.thread_id",
    "another namespace": "UPDATE {} a SET blob = b.blob FROM {} b "
    "WHERE a.channel = b.channel AND a.channel = 'evil' AND a.thread_id = b.thread_id "
    "AND a.checkpoint_ns = '' AND b.checkpoint_ns = 'sub'",
}
"""What somebody who can write rows does to a value of a user's."""


@pytest.mark.parametrize("table", ["checkpoint_blobs", "checkpoint_writes"])
@pytest.mark.parametrize("moved", MOVED)
def test_a_value_is_opened_only_as_what_it_is_and_where_it_belongs(
    make: Any, sql: psycopg.Connection, table: str, moved: str
) -> None:
    """A user's bytes are not taken for an object, nor a value for that of another channel or namespace."""
    made.clear()
    saver = make(EncryptedSerializer(KeyRing.aes(NEW)), require_encryption=True)
    versions: Any = {"evil": "1", "text": "1"}
    checkpoint: Any = {**empty_checkpoint(), "channel_versions": versions}
    checkpoint["channel_values"] = {"evil": EVIL, "text": b"text"} if table == "checkpoint_blobs" else {}
    for namespace in ("", "sub"):
        stored = saver.put(named(namespace=namespace), checkpoint, {}, versions)
        if table == "checkpoint_writes":
            saver.put_writes(stored, [("evil", EVIL), ("text", b"text")], "task")
    assert saver.get_tuple(named()) is not None
    assert sql.execute(MOVED[moved].format(table, table)).rowcount > 0

    with pytest.raises(UnreadableValue, match=r"channel 'evil'.*MAC check failed"):
        saver.get_tuple(named())
    assert made == []


def test_a_value_is_not_opened_under_another_version_or_at_another_checkpoint(
    make: Any, sql: psycopg.Connection
) -> None:
    """An older value of the channel, or another step's write, is not put in the place of what is there."""
    saver = make(EncryptedSerializer(KeyRing.aes(NEW)))
    configs = store(saver)
    older, newer = f"{1:032}.0", f"{3:032}.0"
    sql.execute(
        "UPDATE checkpoint_blobs a SET blob = b.blob FROM checkpoint_blobs b "
        "WHERE a.channel = 'messages' AND b.channel = 'messages' AND a.version = %s AND b.version = %s",
        [newer, older],
    )
    sql.execute(
        "UPDATE checkpoint_writes a SET blob = b.blob FROM checkpoint_writes b "
        "WHERE a.idx = 0 AND b.idx = 0 AND a.checkpoint_id = '1' AND b.checkpoint_id = '0'"
    )

    assert saver.get_tuple(configs[0]) is not None
    with pytest.raises(UnreadableValue, match="task 'task', channel 'text'"):
        saver.get_tuple(configs[1])
    with pytest.raises(UnreadableValue, match="channel 'messages'"):
        saver.get_tuple(configs[2])


def test_copies_and_histories_of_bound_values_are_read(make: Any) -> None:
    """The thread is not part of the place, since copies are made on the server; ancestors' values have theirs."""
    saver = make(EncryptedSerializer(KeyRing.aes(NEW)), require_encryption=True)
    configs = store(saver)
    saver.copy_thread("t1", "copy")

    for config in configs:
        copy = saver.get_tuple(named("copy", config["configurable"]["checkpoint_id"]))
        assert copy.checkpoint == saver.get_tuple(config).checkpoint
    history = saver.get_delta_channel_history(config=configs[2], channels=["messages", "long"])
    assert history["messages"]["seed"] == []
    assert history["long"]["seed"] == VALUES["long"]
    assert [value for _, _, value in history["messages"]["writes"]] == [[1]]


async def test_what_was_not_bound_is_read_until_it_is_refused(
    engine: AsyncEngine, make: Any, sql: psycopg.Connection
) -> None:
    """After `reencrypt` nothing needs it any more: then an old row that somebody puts back is not opened either."""
    configs = store(make(aes(OLD)))
    ring = EncryptedSerializer(KeyRing.aes(NEW, OLD))
    before = read(make(ring), configs)
    kept = sql.execute("SELECT channel, version, type, blob FROM checkpoint_blobs").fetchall()
    strict = EncryptedSerializer(KeyRing.aes(NEW, OLD, bound_only=True))
    with pytest.raises(UnreadableValue, match="not bound to its place"):
        make(strict).get_tuple(configs[0])

    done = await reencrypt(engine, ring, ring)

    assert (done.blobs, done.writes, done.current, done.unreadable) == (20, 9, 0, 0)
    assert types(sql) == {"msgpack+aes-bound", "null+aes-bound", "bytes+aes-bound"}
    assert read(make(strict), configs) == before
    again = await reencrypt(engine, ring, ring)
    assert (again.blobs, again.writes, again.current) == (0, 0, 29)
    channel, version, kind, blob = kept[0]
    put_back = "UPDATE checkpoint_blobs SET type = %s, blob = %s WHERE channel = %s AND version = %s"
    sql.execute(put_back, [kind, blob, channel, version])
    with pytest.raises(UnreadableValue, match="not bound to its place"):
        read(make(strict), configs)


async def test_the_way_back_is_a_cipher_that_does_not_bind(engine: AsyncEngine, make: Any, url: str) -> None:
    """After it the stock saver reads what a ring had written."""
    ring = EncryptedSerializer(KeyRing.aes(NEW))
    configs = store(make(ring))
    before = read(make(ring), configs)
    await reencrypt(engine, ring, aes(NEW))

    assert read(make(aes(NEW)), configs) == before
    with StockSaver.from_conn_string(url, pipeline=False) as stock:
        stock.serde = aes(NEW)
        for config, known in zip(configs, before, strict=True):
            assert known is not None
            found = stock.get_tuple(config)
            assert found is not None
            assert found.checkpoint["channel_values"] == known.checkpoint["channel_values"]


@pytest.mark.parametrize("keys", [(), (b"short",), (b"x" * 32, "x" * 32), (None,)])
def test_a_ring_without_usable_keys_is_refused(keys: Any) -> None:
    """At once, not at the first put."""
    with pytest.raises(InvalidOption, match="key"):
        KeyRing.aes(*keys)


def test_a_ring_takes_any_cipher(make: Any) -> None:
    """One that asks a key management service, say; the names that ciphers give are kept."""

    class Reversing:
        def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
            return "rev+2", plaintext[::-1]

        def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
            assert ciphername == "rev+2"
            return ciphertext[::-1]

    aes_first = EncryptedSerializer(KeyRing(aes(NEW).cipher, Reversing()))
    other_first = EncryptedSerializer(KeyRing(Reversing(), aes(NEW).cipher))
    configs = [*store(make(aes_first), "one"), *store(make(other_first), "other")]

    assert read(make(aes_first), configs) == read(make(other_first), configs)


class State(TypedDict):
    items: list[int]


class Context(TypedDict):
    api_key: str


async def test_what_a_config_holds_is_in_clear_and_what_a_context_holds_is_not_stored(
    engine: AsyncEngine, sql: psycopg.Connection
) -> None:
    """LangGraph copies plain values of a config into metadata; the page on encryption says how to keep them out."""
    keys = [f"planted{number}" for number in range(5)]
    saver = AsyncPostgresSaver(engine, serde=aes(NEW))
    builder = (
        StateGraph(State, context_schema=Context).add_node("node", lambda _: {"items": [1]}).add_edge(START, "node")
    )
    config: Any = {
        "configurable": {"thread_id": "t1", "key": keys[0], "__key": keys[1], "wrapped": {"key": keys[2]}},
        "metadata": {"tag": keys[3]},
    }
    await builder.compile(checkpointer=saver).ainvoke({"items": []}, config, context={"api_key": keys[4]})
    stored = str([sql.execute(f"SELECT * FROM {table}").fetchall() for table in Tables().metadata.tables])

    assert [key in stored for key in keys] == [True, False, False, True, False]


# --- rows in clear refused ---


def test_what_is_encrypted_is_read(make: Any) -> None:
    """With `require_encryption` nothing changes for what an encrypting saver has stored, snapshots included."""
    lenient, strict = make(aes(NEW)), make(aes(NEW), require_encryption=True)
    configs = store(strict)

    assert read(strict, configs) == read(lenient, configs)
    assert len(list(strict.list(named()))) == 3
    history = strict.get_delta_channel_history(config=configs[2], channels=["text", "snapshot"])
    assert history == lenient.get_delta_channel_history(config=configs[2], channels=["text", "snapshot"])
    assert history["text"]["seed"] == "in clear 1"


@pytest.mark.parametrize("writer", ["ours", "paged", "stock"])
def test_values_in_clear_are_refused(make: Any, url: str, writer: str) -> None:
    """Inline scalars, blobs, pages, pending writes: each by the name of its channel; the rest of the thread is read."""
    encrypting = make(aes(NEW))
    strict = make(aes(NEW), require_encryption=True)
    (good,) = store(encrypting, steps=1)
    checkpoint = {**empty_checkpoint(), "v": 4, "id": "1"}
    for channel, value in (("scalar", 7), ("items", ["a"] * 9000)):
        checkpoint |= {"channel_values": {channel: value}, "channel_versions": {channel: "2"}}
        if writer == "stock":
            with StockSaver.from_conn_string(url) as stock:
                bad = stock.put(good, checkpoint, {}, checkpoint["channel_versions"])  # type: ignore[arg-type]
        else:
            bad = make(share_pages=writer == "paged").put(good, checkpoint, {}, checkpoint["channel_versions"])
        with pytest.raises(NotEncrypted, match=f"thread 't1', .* checkpoint '1', channel '{channel}': .*not encrypted"):
            strict.get_tuple(bad)
        with pytest.raises(NotEncrypted, match=f"channel '{channel}'"):
            strict.get_delta_channel_history(
                config=strict.put(bad, {**empty_checkpoint(), "id": "2"}, {}, {}), channels=[channel]
            )
        encrypting.delete_thread("t1")
        store(encrypting, steps=1)
    make().put_writes(good, [("items", 1)], "another task")
    with pytest.raises(NotEncrypted, match="task 'another task', channel 'items'"):
        strict.get_tuple(good)


def test_old_sends_in_clear_are_refused(make: Any) -> None:
    """Those that were stored with the parent, before format 4."""
    strict = make(aes(NEW), require_encryption=True)
    parent = strict.put(named(), {**empty_checkpoint(), "v": 1, "id": "1"}, {}, {})
    child = strict.put(parent, {**empty_checkpoint(), "v": 1, "id": "2"}, {}, {})
    make(aes(NEW)).put_writes(parent, [(TASKS, "x")], "task")
    assert strict.get(child)["channel_values"] == {TASKS: ["x"]}
    make().put_writes(parent, [(TASKS, "x")], "another task")

    with pytest.raises(NotEncrypted, match="channel '__pregel_tasks'"):
        strict.get_tuple(child)


def test_it_survives_what_langgraph_makes_of_a_saver(make: Any) -> None:
    """A copy with an allowlist has another serializer, and refuses as before."""
    plain = store(make(), steps=1)
    strict = make(
        EncryptedSerializer(aes(NEW).cipher, JsonPlusSerializer(allowed_msgpack_modules=None)), require_encryption=True
    )
    copy = strict.with_allowlist([("some.module", "Type")])

    assert copy.serde is not strict.serde
    with pytest.raises(NotEncrypted):
        copy.get_tuple(plain[0])


def test_it_needs_a_serializer_that_encrypts(make: Any) -> None:
    """Otherwise nothing it writes could be read again."""
    for serde in (None, JsonPlusSerializer()):
        with pytest.raises(
            InvalidOption, match=r"require_encryption needs .* serde is a JsonPlusSerializer. Pass serde="
        ):
            make(serde, require_encryption=True)


# --- a whole database ---


@pytest.mark.parametrize("share_pages", [False, True])
@pytest.mark.parametrize("batch_size", [1, 1000])
async def test_a_database_in_clear_is_encrypted(
    engine: AsyncEngine, make: Any, sql: psycopg.Connection, share_pages: bool, batch_size: int
) -> None:
    """Scalars become blobs, pages values, the strict saver reads what the plain one did; a second call has nothing."""
    plain = make(share_pages=share_pages)
    configs = [config for thread in ("t1", "t2", "t3") for config in store(plain, thread)]
    before = read(plain, configs)
    assert sum(await count_unencrypted(engine)) > 0
    reports: list[Reencryption] = []
    done = await reencrypt(engine, None, aes(NEW), batch_size=batch_size, on_progress=reports.append)

    assert await count_unencrypted(engine) == Unencrypted(0, 0, 0)
    assert types(sql) == {"msgpack+aes", "null+aes", "bytes+aes"}
    assert read(make(aes(NEW), require_encryption=True), configs) == before
    assert sql.execute("SELECT count(*) FROM checkpoint_pages").fetchone() == (0,)
    assert (done.blobs, done.writes, done.scalars) == (3 * (4 + 1 + 4), 3 * 9, 3 * 3 * 5)
    assert (done.unreadable, done.busy) == (0, 0)
    assert reports[-1] == done
    again = await reencrypt(engine, None, aes(NEW))
    assert (again.blobs, again.writes, again.scalars) == (0, 0, 0)
    assert again.current > 0


async def test_a_key_is_replaced(engine: AsyncEngine, make: Any, sql: psycopg.Connection) -> None:
    """Old and new key, with rings or without; afterwards the new one is enough."""
    configs = store(make(aes(OLD)), "t1")
    before = read(make(aes(OLD)), configs)
    newer = store(make(aes(NEW)), "t2")
    ring = EncryptedSerializer(KeyRing.aes(NEW, OLD))
    done = await reencrypt(engine, ring, ring)

    only_new = make(EncryptedSerializer(KeyRing.aes(NEW)))
    assert read(only_new, configs) == before
    assert read(only_new, newer) == read(make(ring), newer)
    # What the new key had encrypted by itself is bound to its place now, too.
    assert (done.blobs, done.writes) == (40, 18)
    with pytest.raises(UnreadableValue):
        make(aes(OLD)).get_tuple(configs[0])
    back = await reencrypt(engine, ring, aes(OLD))
    assert (back.blobs, back.writes, back.current) == (40, 18, 0)
    assert read(make(aes(OLD)), configs) == before


async def test_what_no_key_opens_is_left_and_counted(engine: AsyncEngine, make: Any, sql: psycopg.Connection) -> None:
    """One row that can't be helped does not stop the rest."""
    configs = store(make(aes(OLD)), "t1", steps=1)
    store(make(aes(b"lost key, 16 b.."[:16])), "t2", steps=1)
    rows = "SELECT * FROM checkpoint_blobs WHERE thread_id = 't2' ORDER BY channel"
    before = sql.execute(rows).fetchall()
    done = await reencrypt(engine, aes(OLD), aes(NEW))

    assert done.unreadable == len(before) + 3
    assert sql.execute(rows).fetchall() == before
    assert read(make(aes(NEW)), configs)[0] is not None


async def test_it_goes_on_where_it_was_interrupted(engine: AsyncEngine, make: Any) -> None:
    """Cancelled after any batch: what is done stays done, and the next call finishes."""
    plain = make()
    configs = store(plain, steps=9)
    before = read(plain, configs)

    for batches in range(1, 5):
        reports: list[Reencryption] = []

        def stop(report: Reencryption, reports: list[Reencryption] = reports, batches: int = batches) -> None:
            reports.append(report)
            if len(reports) == batches:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            await reencrypt(engine, None, aes(NEW), batch_size=9, on_progress=stop)
    left = await count_unencrypted(engine)
    done = await reencrypt(engine, None, aes(NEW))

    assert 0 < sum(left) < sum((done.blobs, done.writes, done.scalars, done.current))
    assert (done.blobs, done.writes) == left[:2]
    assert await count_unencrypted(engine) == (0, 0, 0)
    assert read(make(aes(NEW), require_encryption=True), configs) == before


async def test_nothing_written_meanwhile_is_overwritten(engine: AsyncEngine, make: Any) -> None:
    """Threads grow, writes are replaced and threads deleted while the whole is encrypted, by two at once."""
    plain, secret = make(), make(aes(NEW))
    for number in range(6):
        store(plain, f"t{number}")
    replaced = named("t1", "0")

    async def rewrite() -> None:
        for _ in range(4):
            await reencrypt(engine, None, aes(NEW), batch_size=3)

    async def work() -> str:
        answer = ""
        for turn in range(60):
            answer = f"answer {turn} {uuid.uuid4()}"
            await secret.aput_writes(replaced, [("__resume__", answer)], "task")
            await asyncio.to_thread(store, secret, f"new {turn}", 1)
            if turn == 30:
                await secret.adelete_thread("t2")
        return answer

    answer, *_ = await asyncio.gather(work(), rewrite(), rewrite())
    await reencrypt(engine, None, aes(NEW))

    strict = make(aes(NEW), require_encryption=True)
    found = strict.get_tuple(replaced)
    assert found is not None
    assert ("task", "__resume__", answer) in (found.pending_writes or [])
    assert strict.get_tuple(named("t2")) is None
    for thread in [*[f"t{number}" for number in (0, 1, 3, 4, 5)], *[f"new {turn}" for turn in range(60)]]:
        for checkpoint in strict.list(named(thread)):
            assert checkpoint.checkpoint["channel_values"]["long"] == VALUES["long"]


async def test_a_row_changed_between_reading_and_writing_stays(
    engine: AsyncEngine, make: Any, sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write replaced in just that moment, or a checkpoint, is the newer one, and done the next time."""
    secret = make(aes(NEW))
    (config,) = store(make(), steps=1)
    reencrypted, blobs_of = reencryption._Encrypter.reencrypted, reencryption._Encrypter.blobs_of

    def late_write(self: Any, rows: Any, place: Any) -> Any:
        if place is reencryption._of_write:
            secret.put_writes(config, [("__interrupt__", "asked anew")], "task")
        return reencrypted(self, rows, place)

    def late_checkpoint(self: Any, rows: Any) -> Any:
        sql.execute("UPDATE checkpoints SET checkpoint = jsonb_set(checkpoint, '{channel_values,number}', '8')")
        return blobs_of(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(reencryption._Encrypter, "reencrypted", late_write)
        patch.setattr(reencryption._Encrypter, "blobs_of", late_checkpoint)
        done = await reencrypt(engine, None, aes(NEW))
    assert (done.writes, done.scalars, done.busy) == (2, 0, 2)
    last = await reencrypt(engine, None, aes(NEW))

    assert (last.writes, last.scalars, last.busy) == (0, 5, 0)
    found = make(aes(NEW), require_encryption=True).get_tuple(config)
    assert ("task", "__interrupt__", "asked anew") in found.pending_writes
    assert found.checkpoint["channel_values"]["number"] == 8


async def test_it_comes_after_conversion_and_in_any_schema(engine: AsyncEngine, make: Any, url: str) -> None:
    """A schema of its own, on the caller's sync engine; pages made of plain blobs go too."""
    plain = make(schema="agents", share_pages=False)
    plain.setup()
    configs = store(plain)
    before = read(plain, configs)
    assert await conversion.share(engine, schema="agents") > 0
    sync_engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    await reencrypt(sync_engine, None, aes(NEW), schema="agents")

    assert await count_unencrypted(sync_engine, schema="agents") == (0, 0, 0)
    sync_engine.dispose()
    assert read(make(aes(NEW), schema="agents", require_encryption=True), configs) == before


async def test_what_is_wrong_is_told(engine: AsyncEngine, make_database: Callable[[], str]) -> None:
    """Serializers that don't encrypt, and tables that aren't there."""
    for old, new in ((None, JsonPlusSerializer()), (JsonPlusSerializer(), aes(NEW)), (aes(OLD), None)):
        with pytest.raises(InvalidOption, match="must be an EncryptedSerializer"):
            await reencrypt(engine, old, new)  # type: ignore[arg-type]
    async with AsyncPostgresSaver.from_conn_string(make_database()) as empty:
        with pytest.raises(NotSetUp):
            await reencrypt(empty._backend._engine, None, aes(NEW))  # type: ignore[attr-defined]
