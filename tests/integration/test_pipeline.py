"""Calls that share commits leave what they would have left one by one, whoever is refused, cancelled or cut off."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver
from checkpoint_store.database import group_commit
from checkpoint_store.errors import AccessDenied, Closed, LimitReached, NotSetUp, Refused, Unavailable
from checkpoint_store.serde import pages
from checkpoint_store.storage import shared_pages
from checkpoint_store.storage.write_batch import Change, Writes

TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")

TASKS = 200

VERSION = "1"

REFUSAL = """
    ALTER TABLE checkpoints ADD CHECK (NOT metadata ? 'poison');
    ALTER TABLE checkpoint_writes ADD CHECK (channel <> 'poison');
"""
"""Has the server refuse rows that nothing in the client would."""

# In a transaction pg_stat_activity shows what it has shown before. A lock that is waited for may have no database, but
# whoever waits holds others.
WAITING = """
SELECT count(*) FROM pg_locks AS waiting WHERE NOT granted AND EXISTS (
    SELECT FROM pg_locks AS held JOIN pg_database AS d ON d.oid = held.database
    WHERE held.pid = waiting.pid AND d.datname = current_database()
)
"""


def config_of(thread_id: str, checkpoint_id: str | None = None) -> Any:
    config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
    if checkpoint_id is not None:
        config["configurable"]["checkpoint_id"] = checkpoint_id
    return config


def checkpoint_of(checkpoint_id: str, version: str = VERSION, **values: Any) -> Any:
    versions = dict.fromkeys(values, version)
    return {
        **empty_checkpoint(),
        "id": checkpoint_id,
        "ts": "now",
        "channel_values": values,
        "channel_versions": versions,
    }


async def put(saver: AsyncPostgresSaver, thread_id: str, checkpoint_id: str, **metadata: Any) -> None:
    checkpoint = checkpoint_of(checkpoint_id, checkpoint_id, a=[thread_id])
    await saver.aput(config_of(thread_id), checkpoint, metadata, checkpoint["channel_versions"])


async def put_writes(saver: AsyncPostgresSaver, thread_id: str, task_id: str, channel: str = "a") -> None:
    await saver.aput_writes(config_of(thread_id, "1"), [(channel, [task_id])], task_id)


def statements_on(engine: AsyncEngine) -> list[str]:
    """The statements that are executed on an engine from now on, without the question whether there is Citus."""
    seen: list[str] = []
    event.listen(
        engine.sync_engine,
        "before_cursor_execute",
        lambda *args: None if "pg_extension" in args[2] else seen.append(args[2]),
    )
    return seen


@asynccontextmanager
async def held(pipe: AsyncPipeline) -> AsyncIterator[None]:
    """Keep a commit under way that has no end before the block has."""
    end = asyncio.Event()

    async def wait(_: Sequence[Change]) -> None:
        await end.wait()

    commit = asyncio.create_task(pipe.submit(wait, None, Writes({"thread_id": "held", "task_id": "", "blobs": []})))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        end.set()
        await commit


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Let nobody store anything before the end of the block."""
    conn = await asyncpg.connect(url)
    async with conn.transaction():
        await conn.execute(f"LOCK TABLE {', '.join(TABLES)} IN SHARE MODE")
        yield
    await conn.close()


async def until(condition: Callable[[], Any]) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail("it has not come about")


async def queued(pipe: AsyncPipeline, *calls: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    """Make calls in this order; returns once all of them wait for the next commit."""
    there = len(pipe._waiting)
    tasks = [asyncio.ensure_future(call) for call in calls]
    await until(lambda: len(pipe._waiting) == there + len(tasks))
    return tasks


async def rows(url: str, table: str, schema: str = "public") -> list[str]:
    """The rows of a table as text, sorted."""
    conn = await asyncpg.connect(url)
    found = await rows_on(conn, table, schema)
    await conn.close()
    return found


async def rows_on(conn: Any, table: str, schema: str, thread_ids: str = "%") -> list[str]:
    query = f'SELECT t::text FROM "{schema}".{table} t WHERE thread_id LIKE $1 ORDER BY t::text COLLATE "C"'
    return [row[0] for row in await conn.fetch(query, thread_ids)]


async def fetch(url: str, query: str) -> Any:
    conn = await asyncpg.connect(url)
    found = await conn.fetch(query)
    await conn.close()
    return found


async def execute(url: str, script: str) -> None:
    conn = await asyncpg.connect(url)
    await conn.execute(script)
    await conn.close()


async def reaches(conn: Any, query: str, number: int) -> None:
    """Wait until a query returns a number."""
    for _ in range(1000):
        if await conn.fetchval(query) == number:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{query} has not reached {number}")


async def deadlocks(url: str) -> int:
    """How many deadlocks the database has seen, once everybody has left: it is then that they report."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    conn = await asyncpg.connect(url)
    await reaches(conn, others, 0)
    found: int = await conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    await conn.close()
    return found


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages are shared, they are made of every value that can be cut."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)


@pytest.fixture
async def schema(url: str, engine: AsyncEngine) -> str:
    """A PostgreSQL schema with tables of its own, for what a plain saver makes of the same calls."""
    await execute(url, "CREATE SCHEMA plain")
    await AsyncPostgresSaver(engine, schema="plain").setup()
    return "plain"


@pytest.fixture
def role(url: str) -> Iterator[str]:
    """A database role without any rights."""
    name = f"role_{uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name}".encode())
        yield name
        admin.execute(f"DROP OWNED BY {name}".encode())
        admin.execute(f"DROP ROLE {name}".encode())


class Call(NamedTuple):
    """A call that can be made on any saver, any number of times."""

    key: tuple[str, ...]
    """Of the checkpoint, or of the checkpoint and the task."""
    arguments: tuple[Any, ...]

    async def on(self, saver: AsyncPostgresSaver) -> None:
        """Make it."""
        if len(self.key) == 3:
            await saver.aput(*self.arguments)
        else:
            await saver.aput_writes(*self.arguments)


def call_for(key: tuple[str, ...], chance: random.Random, *, bad: bool = False) -> Call:
    """A call that stores something under a key, be it new or not."""
    thread_id, _, checkpoint_id, *task = key
    size = chance.choice([1, 1, 10, 100])
    value = [f"{thread_id}: message {number}" for number in range(size)] + [chance.random()]
    if not task:
        checkpoint = checkpoint_of(checkpoint_id, checkpoint_id, inline=chance.random(), messages=value)
        metadata = {"poison": 1} if bad else {"n": chance.random()}
        parent = chance.choice([None, "parent"])
        return Call(key, (config_of(thread_id, parent), checkpoint, metadata, checkpoint["channel_versions"]))
    channels = chance.choice(
        [["a"], ["a", "b", "c"], ["__error__"], ["__interrupt__", "__resume__"], ["a", "__error__"]]
    )
    if bad:
        channels = [*channels, "poison"]
    writes = [(channel, [*value, channel]) for channel in channels]
    return Call(key, (config_of(thread_id, checkpoint_id), writes, task[0], chance.choice(["", "path"])))


class Fray:
    """Tasks that call a saver while calls are cancelled and refused, and connections killed.

    Args:
        url: The database.
        saver: The saver.
        calls: How many calls to make in all.
    """

    def __init__(self, url: str, saver: AsyncPostgresSaver, calls: int) -> None:
        self.url = url
        self.saver = saver
        self.calls = calls
        self.made = 0
        self.counts: Counter[str] = Counter()
        self.acknowledged: list[list[Call]] = [[] for _ in range(TASKS)]
        self.unknown: list[list[Call]] = [[] for _ in range(TASKS)]

    async def fight(self) -> None:
        """Make all the calls."""
        disturbers = [asyncio.create_task(self._kill()), asyncio.create_task(self._collect())]
        await asyncio.gather(*map(self._work, range(TASKS)))
        for disturber in disturbers:
            disturber.cancel()
        await asyncio.gather(*disturbers, return_exceptions=True)

    async def _work(self, number: int) -> None:
        chance, acknowledged, unknown = random.Random(number), self.acknowledged[number], self.unknown[number]
        for step in range(self.calls // TASKS):
            self.made += 1
            key = (f"thread-{number % 40}", "", f"{number:03}-{step:04}")
            if chance.random() < 0.5:
                key = (*key, f"task-{number}")
            draw = chance.random()
            if draw < 0.2 and acknowledged:
                call = call_for(chance.choice(acknowledged).key, chance)
                await self._insist(call)
                acknowledged.append(call)
                self.counts["repeated"] += 1
            elif draw < 0.25:
                await self._be_refused(call_for(key, chance, bad=True))
            else:
                call = call_for(key, chance)
                task = asyncio.create_task(call.on(self.saver))
                if draw < 0.4:
                    await asyncio.sleep(chance.choice([0, 0.001, 0.01, 0.02]))
                    task.cancel()
                try:
                    await task
                    acknowledged.append(call)
                    self.counts["acknowledged"] += 1
                except asyncio.CancelledError:
                    unknown.append(call)
                    self.counts["cancelled"] += 1
                except Unavailable:
                    unknown.append(call)
                    self.counts["unavailable"] += 1

    async def _insist(self, call: Call) -> None:
        while True:
            try:
                await call.on(self.saver)
                return
            except Unavailable:
                self.counts["unavailable"] += 1

    async def _be_refused(self, call: Call) -> None:
        try:
            await call.on(self.saver)
            pytest.fail("a bad value was acknowledged")
        except Refused:
            self.counts["refused"] += 1
        except Unavailable:
            self.counts["unavailable"] += 1

    async def _kill(self) -> None:
        conn = await asyncpg.connect(self.url)
        victim = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
            "ORDER BY state = 'idle', random() LIMIT 1"
        )
        try:
            while True:
                self.counts["killed"] += await conn.fetchval(victim) is True
                # A commit that is lost takes many calls with it; so the next is not lost before as many are made.
                await until(lambda made=self.made: self.made > made + 60)
        finally:
            conn.terminate()

    async def _collect(self) -> None:
        """Delete pages, so that those who count on them have to send them again."""
        while True:
            with suppress(Unavailable):
                await self.saver._backend.run(shared_pages.collect_pages, f"thread-{random.randrange(40)}")
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize("calls", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("share_pages", [False, True], ids=["blobs", "pages"])
async def test_the_database_has_exactly_what_was_acknowledged_and_maybe_what_was_cancelled(
    url: str, engine: AsyncEngine, schema: str, calls: int, share_pages: bool
) -> None:
    """200 tasks, cancellations, refused rows and killed connections: row by row what a plain saver makes of it."""
    await execute(url, REFUSAL)
    pipe = AsyncPipeline(engine)
    # Killed calls shall stay unknown; tests/faults has those that are made again.
    saver = AsyncPostgresSaver(engine, pipe, share_pages=share_pages, retry_timeout=0)
    fray = Fray(url, saver, calls)
    await fray.fight()
    await pipe.aclose()
    # What was cancelled on its way to the server may arrive there later.
    await engine.dispose()
    assert await deadlocks(url) == 0

    keys = "thread_id, checkpoint_ns, checkpoint_id"
    stored = set(map(tuple, await fetch(url, f"SELECT {keys} FROM checkpoints")))
    stored |= set(map(tuple, await fetch(url, f"SELECT {keys}, task_id FROM checkpoint_writes")))
    commits = set(await fetch(url, " UNION ".join(f"SELECT xmin::text FROM {table}" for table in TABLES)))
    plain = AsyncPostgresSaver(engine, schema=schema, share_pages=share_pages)

    async def replay(number: int) -> None:
        for call in fray.acknowledged[number]:
            await call.on(plain)
        for call in fray.unknown[number]:
            if call.key in stored:
                fray.counts["stored nonetheless"] += 1
                await call.on(plain)

    await asyncio.gather(*map(replay, range(TASKS)))

    for table in TABLES:
        assert await rows(url, table) == await rows(url, table, schema)
    by_key = {str(found.config): found async for found in saver.alist(None)}
    assert by_key == {str(found.config): found async for found in plain.alist(None)}
    if share_pages:
        assert await fetch(url, "SELECT 1 FROM checkpoint_blobs WHERE type = 'pages'")
    told = dict(fray.counts)
    for outcome in ("acknowledged", "repeated", "refused", "cancelled", "unavailable", "killed"):
        assert fray.counts[outcome] >= 5, told
    assert fray.counts["acknowledged"] > calls / 4, told
    assert len(commits) < calls / 4, told


thread_ids = st.sampled_from(["x", "y"])
checkpoint_ids = st.sampled_from(["1", "2"])
some_values = st.sampled_from([1, [1], ["long" * 50], ["long" * 50, "er"], {"a": [1, 2]}])
some_puts = st.tuples(
    st.just("put"),
    thread_ids,
    checkpoint_ids,
    st.sampled_from([None, "0", "1"]),
    st.dictionaries(st.sampled_from(["a", "b"]), some_values),
    st.integers(0, 3),
)
some_writes = st.tuples(
    st.just("writes"),
    thread_ids,
    checkpoint_ids,
    st.sampled_from(["task-1", "task-2"]),
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "__error__", "__interrupt__", "__resume__"]), some_values),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["", "path"]),
)
some_calls = st.lists(some_puts | some_writes, max_size=8)

numbers = count()


async def make(saver: AsyncPostgresSaver, run: int, call: Any) -> None:
    """Make a generated call, on threads of this run's own."""
    kind, thread_id, checkpoint_id, *rest = call
    thread_id = f"{run}-{thread_id}"
    if kind == "writes":
        task_id, writes, path = rest
        await saver.aput_writes(config_of(thread_id, checkpoint_id), writes, task_id, path)
    else:
        parent, values, number = rest
        checkpoint = checkpoint_of(checkpoint_id, **values)
        await saver.aput(config_of(thread_id, parent), checkpoint, {"n": number}, checkpoint["channel_versions"])


@pytest.mark.usefixtures("paged")
@pytest.mark.parametrize("share_pages", [False, True], ids=["blobs", "pages"])
async def test_a_batch_leaves_what_its_calls_leave_one_after_the_other(
    url: str, engine: AsyncEngine, schema: str, share_pages: bool
) -> None:
    """Whichever keys they have in common, with each other and with what is there already: first, last or merged."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe, share_pages=share_pages)
    plain = AsyncPostgresSaver(engine, schema=schema, share_pages=share_pages)
    seen = statements_on(engine)
    conn = await asyncpg.connect(url)
    loop = asyncio.get_running_loop()

    async def compare(before: list[Any], batch: list[Any]) -> None:
        run = next(numbers)
        for call in before:
            await make(saver, run, call)
        async with held(pipe):
            tasks = await queued(pipe, *[make(saver, run, call) for call in batch])
            seen.clear()
        await asyncio.gather(*tasks)
        # Where a page was there already, whether it can be seen is asked behind it.
        assert len([statement for statement in seen if "INSERT" in statement]) == 1
        assert len(seen) <= 1 + share_pages
        for call in [*before, *batch]:
            await make(plain, run, call)
        for table in TABLES:
            left, expected = [await rows_on(conn, table, place, f"{run}-%") for place in ("public", schema)]
            assert left == expected, table
        for thread_id in ("x", "y"):
            config = config_of(f"{run}-{thread_id}")
            assert [item async for item in saver.alist(config)] == [item async for item in plain.alist(config)]

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(before=some_calls, batch=some_calls.filter(bool))
    def property_(before: list[Any], batch: list[Any]) -> None:
        asyncio.run_coroutine_threadsafe(compare(before, batch), loop).result()

    await asyncio.to_thread(property_)
    await conn.close()


@pytest.mark.usefixtures("paged")
async def test_a_thread_whose_pages_were_deleted_meanwhile_is_stored_whole_again(url: str, engine: AsyncEngine) -> None:
    """Another process has deleted what this one counts on: that thread goes a second time, its batch-mates once."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe, share_pages=True)
    seen = statements_on(engine)

    async def store(thread_id: str, checkpoint_id: str) -> None:
        value = ["the same " * 20] * 100 + [checkpoint_id]
        checkpoint = checkpoint_of(checkpoint_id, checkpoint_id, a=value)
        await saver.aput(config_of(thread_id), checkpoint, {}, checkpoint["channel_versions"])

    for thread_id in ("deleted", "kept"):
        await store(thread_id, "0")
    async with AsyncPostgresSaver.from_conn_string(url) as other:
        await other.adelete_thread("deleted")
    seen.clear()
    async with held(pipe):
        tasks = await queued(
            pipe,
            *[store(thread_id, checkpoint_id) for checkpoint_id in "12" for thread_id in ("deleted", "kept")],
            put_writes(saver, "deleted", "task"),
        )
    await asyncio.gather(*tasks)

    assert len(seen) == 2
    for thread_id, ids in (("deleted", "21"), ("kept", "210")):
        found = [item.checkpoint async for item in saver.alist(config_of(thread_id))]
        assert [checkpoint["id"] for checkpoint in found] == list(ids)
        assert [checkpoint["channel_values"]["a"][-1] for checkpoint in found] == list(ids)
    assert len(await fetch(url, "SELECT DISTINCT xmin::text FROM checkpoints WHERE checkpoint_id <> '0'")) == 2
    assert len(await rows(url, "checkpoint_writes")) == 1


async def test_a_checkpoint_keeps_values_of_its_parent_in_the_same_batch(url: str, engine: AsyncEngine) -> None:
    """Its graph does not know some channels: their values come along from whichever checkpoint is before it."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    versions: Any = {"vip": "1", "name": "1", "gone": "2"}

    def put(number: int, new: dict[str, str], **values: Any) -> Awaitable[Any]:
        checkpoint = {**checkpoint_of(f"{number}"), "channel_values": values, "channel_versions": versions}
        return saver.aput(config_of("t", f"{number - 1}"), checkpoint, {}, new)

    first = checkpoint_of("0", "1", vip=True, name="Ada", gone=1)
    await saver.aput(config_of("t"), first, {}, first["channel_versions"])
    async with held(pipe):
        # The first one emptied a channel, the others know some less each time; there are other threads among them.
        tasks = await queued(
            pipe,
            put(1, {"gone": "2"}, vip=True, name="Ada"),
            put_writes(saver, "other", "task"),
            put(2, {}, name="Ada"),
            put(3, {}),
        )
    await asyncio.gather(*tasks)

    for number in range(1, 4):
        found = await saver.aget(config_of("t", f"{number}"))
        assert found is not None
        assert found["channel_values"] == {"vip": True, "name": "Ada"}


async def test_a_lone_call_goes_straight_through(engine: AsyncEngine) -> None:
    """One statement each, the very one that a saver without a pipeline sends, and no task beside the caller's."""
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))
    sql, tasks = saver._backend.sql, set()
    seen = statements_on(engine)
    event.listen(engine.sync_engine, "before_cursor_execute", lambda *_: tasks.add(len(asyncio.all_tasks())))

    await put(saver, "t", "1")
    await put_writes(saver, "t", "task")
    await put_writes(saver, "t", "task", "__error__")

    plain = (sql.put_checkpoint, sql.put_writes, sql.put_writes)
    assert seen == [statement.sql(engine.dialect) for statement in plain]
    assert tasks == {len(asyncio.all_tasks())}


async def test_concurrent_calls_share_few_commits(url: str, engine: AsyncEngine) -> None:
    """500 calls of 100 threads arrive in a handful of statements, each row where it belongs."""
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))
    seen = statements_on(engine)

    await asyncio.gather(
        *[put(saver, f"t{number % 100}", f"{number}") for number in range(250)],
        *[put_writes(saver, f"t{number % 100}", f"task-{number}") for number in range(250)],
    )

    assert len(seen) < 20
    assert [len(await rows(url, table)) for table in TABLES] == [250, 250, 250]


async def test_a_call_returns_only_when_its_rows_are_committed(url: str, engine: AsyncEngine) -> None:
    """Another connection sees at once what a caller was told is stored."""
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine))
    reader = await create_pool(url)

    async def work(number: int) -> None:
        for step in range(5):
            await put(saver, f"t{number}", f"{step}")
            query = "SELECT count(*) FROM checkpoints WHERE thread_id = $1 AND checkpoint_id = $2"
            assert await reader.fetchval(query, f"t{number}", f"{step}") == 1

    await asyncio.gather(*map(work, range(40)))
    await reader.close()


async def create_pool(url: str) -> Any:
    return await asyncpg.create_pool(url, min_size=1, max_size=4)


async def test_a_checkpoint_is_never_visible_before_an_earlier_one_of_its_thread(
    url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many commits are under way, whoever looks sees the thread as it was after one of the calls."""
    monkeypatch.setattr(group_commit, "MAX_CALLS", 7)
    # Commits take differently long, so that they would overtake each other if they could.
    await execute(
        url,
        """
        CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_sleep(random() * 0.005); RETURN NULL; END';
        CREATE TRIGGER dawdle AFTER INSERT ON checkpoints EXECUTE FUNCTION dawdle();
        """,
    )
    saver = AsyncPostgresSaver(engine, AsyncPipeline(engine, flushes=4))
    threads = [number % 5 for number in range(250)]
    random.shuffle(threads)
    tasks = [
        asyncio.ensure_future(put(saver, f"t{thread}", f"{threads[:place].count(thread):03}"))
        for place, thread in enumerate(threads)
    ]
    reader, looks = await asyncpg.connect(url), 0
    while not all(task.done() for task in tasks):
        query = "SELECT thread_id, array_agg(checkpoint_id ORDER BY checkpoint_id) FROM checkpoints GROUP BY thread_id"
        for _, there in await reader.fetch(query):
            assert there == [f"{number:03}" for number in range(len(there))]
            looks += 1
    await reader.close()
    await asyncio.gather(*tasks)

    assert looks > 5
    xids = await fetch(
        url, "SELECT thread_id, array_agg(xmin::text::int ORDER BY checkpoint_id) FROM checkpoints GROUP BY thread_id"
    )
    assert len(xids) == 5
    for _, of_thread in xids:
        assert list(of_thread) == sorted(of_thread)
        assert len(set(of_thread)) > 5


async def test_a_refused_call_fails_alone_with_its_own_error(url: str, engine: AsyncEngine) -> None:
    """Its batch-mates are stored, those of its own thread too, and in order."""
    await execute(url, REFUSAL)
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with held(pipe):
        tasks = await queued(
            pipe,
            *[
                put(saver, f"t{number % 4}", f"{number:02}", **({"poison": 1} if number == 17 else {}))
                for number in range(40)
            ],
            *[put_writes(saver, "t0", f"task-{number}", "poison" if number in {3, 4} else "a") for number in range(40)],
        )
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    refused = {number: outcome for number, outcome in enumerate(outcomes) if outcome is not None}
    assert sorted(refused) == [17, 43, 44]
    assert all(isinstance(error, Refused) for error in refused.values())
    tables = {17: "checkpoints", 43: "checkpoint_writes", 44: "checkpoint_writes"}
    assert all(f'of table "{table}" refused' in str(refused[number]) for number, table in tables.items())
    assert len(set(map(id, refused.values()))) == 3
    assert [len(await rows(url, table)) for table in TABLES] == [39, 39, 38]


SLOW = """
    CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql
    AS $$BEGIN IF NEW.channel = 'slow' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END$$;
    CREATE TRIGGER be_slow BEFORE INSERT ON checkpoint_writes FOR EACH ROW EXECUTE FUNCTION be_slow();
"""
"""Has some rows take longer than anybody waits."""


@asynccontextmanager
async def limited(url: str, limit: float) -> AsyncIterator[AsyncEngine]:
    """An engine on which no statement may take longer than so many seconds."""
    settings = {"statement_timeout": f"{limit * 1000:.0f}"}
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": settings}, pool_size=5, max_overflow=0
    )
    yield engine
    await engine.dispose()


async def timed(call: Awaitable[Any], since: float) -> tuple[float, BaseException | None]:
    """How long a call took, and what it raised."""
    error: BaseException | None = None
    try:
        await call
    except Exception as raised:
        error = raised
    return asyncio.get_running_loop().time() - since, error


@pytest.mark.parametrize("threads", [256, 1], ids=["threads", "one-thread"])
async def test_a_slow_call_holds_its_batch_mates_up_for_three_times_the_limit_at_most(url: str, threads: int) -> None:
    """Of 256 that share a commit one takes longer than statement_timeout allows: it fails, the others are stored."""
    await execute(url, SLOW)
    limit, slow, loop = 3.0, 100, asyncio.get_running_loop()
    async with limited(url, limit) as engine:
        pipe = AsyncPipeline(engine)
        saver, seen = AsyncPostgresSaver(engine, pipe), statements_on(engine)
        async with held(pipe):
            since = loop.time()
            calls = [
                put_writes(saver, f"t{number % threads}", f"task-{number}", "slow" if number == slow else "a")
                for number in range(256)
            ]
            tasks = [asyncio.create_task(timed(call, since)) for call in calls]
            await until(lambda: pipe._under_way == 2)
            outcomes = await asyncio.gather(*tasks)

    (_, error), *_ = refused = [outcome for outcome in outcomes if outcome[1] is not None]
    assert [outcomes.index(outcome) for outcome in refused] == [slow]
    assert isinstance(error, LimitReached)
    assert max(took for took, error in outcomes if error is None) < 3 * limit
    assert len(await rows(url, "checkpoint_writes")) == 255
    # The commit they shared, one more each, and at most one more that those shared who were left.
    assert len(seen) <= 1 + 256 + 1


async def test_where_everything_takes_too_long_each_call_fails_soon(url: str) -> None:
    """Somebody has locked the table: 100 calls do not wait for 100 limits, one after the other."""
    async with limited(url, 1.0) as engine:
        pipe = AsyncPipeline(engine)
        saver, seen = AsyncPostgresSaver(engine, pipe), statements_on(engine)
        async with locked(url), held(pipe):
            calls = [put_writes(saver, f"t{number}", "task") for number in range(100)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert all(isinstance(error, LimitReached) for error in outcomes)
    # Seven that went straight, the commit that the others shared, and those that speak for them.
    assert len(seen) <= 7 + 1 + 9


async def test_a_thread_that_is_stuck_does_not_hold_up_the_others(url: str) -> None:
    """Somebody has locked its rows, and it has a hundred calls: the others go on, and it does not wait for each."""
    async with limited(url, 1.0) as engine:
        pipe = AsyncPipeline(engine)
        saver = AsyncPostgresSaver(engine, pipe)
        for number in range(100):
            await put_writes(saver, "stuck", f"task-{number}", "__error__")
        seen = statements_on(engine)
        conn = await asyncpg.connect(url)
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM checkpoint_writes WHERE thread_id = 'stuck' FOR UPDATE")
            async with held(pipe):
                calls = [put_writes(saver, "stuck", f"task-{number}", "__error__") for number in range(100)]
                calls += [put_writes(saver, f"t{number}", "task") for number in range(100)]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await conn.close()

    assert all(isinstance(error, LimitReached) for error in outcomes[:100])
    assert outcomes[100:] == [None] * 100
    assert len(seen) <= 1 + 100 + 3 + 1


async def test_what_a_call_costs_does_not_depend_on_how_many_wait(engine: AsyncEngine) -> None:
    """Of one thread, so that most of them wait for an earlier one: counted in function calls, not in seconds."""
    loop = asyncio.get_running_loop()

    async def store(_: Sequence[Change]) -> None:
        await asyncio.sleep(0)

    async def steps(number: int) -> float:
        pipe, seen = AsyncPipeline(engine), 0

        def count_one(*_: Any) -> None:
            nonlocal seen
            seen += 1

        changes = [Writes({"thread_id": "t", "task_id": "", "blobs": [b""]}) for _ in range(number)]
        calls = [loop.create_task(pipe.submit(store, None, change)) for change in changes]
        sys.setprofile(count_one)
        try:
            await asyncio.gather(*calls)
        finally:
            sys.setprofile(None)
        return seen / number

    assert await steps(8000) < 1.25 * await steps(500)


async def test_where_every_call_is_refused_each_has_its_own_error(url: str, engine: AsyncEngine) -> None:
    """No caller waits forever, and none is told of another's row."""
    await execute(url, REFUSAL)
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with held(pipe):
        tasks = await queued(
            pipe, *[put_writes(saver, f"t{number}", f"task-{number}.", "poison") for number in range(20)]
        )
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert {type(error) for error in outcomes} == {Refused}
    assert len(set(map(id, outcomes))) == 20
    assert await rows(url, "checkpoint_writes") == []


async def test_without_tables_each_call_is_told_so_and_none_is_tried_twice(empty_url: str) -> None:
    """What is nobody's fault fails for all, each with an error of its own."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": empty_url})
    pipe = AsyncPipeline(engine, flushes=1)
    saver, seen = AsyncPostgresSaver(engine, pipe), statements_on(engine)
    async with held(pipe):
        tasks = await queued(pipe, *[put(saver, f"t{number}", "1") for number in range(20)])
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()

    assert {type(outcome) for outcome in outcomes} == {NotSetUp}
    assert len(set(map(id, outcomes))) == 20
    assert len(seen) == 1


async def test_without_rights_each_call_is_told_so(url: str, role: str) -> None:
    """A role that may not write: the same error for all, with the GRANT that helps, each in an instance of its own."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": {"role": role}})
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with held(pipe):
        tasks = await queued(pipe, *[put(saver, f"t{number}", "1") for number in range(20)])
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()

    assert {type(outcome) for outcome in outcomes} == {AccessDenied}
    assert len(set(map(id, outcomes))) == 20
    assert "GRANT" in str(outcomes[0])


async def test_a_row_that_a_policy_refuses_fails_alone(url: str, role: str) -> None:
    """Row-level security denies access to one tenant's row with the code of a missing right; the others may write."""
    await execute(
        url,
        f"""
        GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
        ALTER TABLE checkpoints ENABLE ROW LEVEL SECURITY;
        CREATE POLICY own ON checkpoints USING (thread_id <> 'forbidden');
        """,
    )
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url, "server_settings": {"role": role}})
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with held(pipe):
        tasks = await queued(pipe, *[put(saver, thread_id, "1") for thread_id in ("x", "forbidden", "y")])
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()

    assert isinstance(outcomes[1], Refused)
    assert "GRANT does not help" in str(outcomes[1])
    assert (outcomes[0], outcomes[2]) == (None, None)


async def test_overlapping_batches_of_two_processes_never_deadlock(url: str) -> None:
    """Two engines store the same rows in different orders; both succeed, and the server has seen no deadlock."""
    engines = [create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}) for _ in range(2)]

    async def work(engine: AsyncEngine, seed: int) -> None:
        saver, chance = AsyncPostgresSaver(engine, AsyncPipeline(engine)), random.Random(seed)
        keys: list[tuple[str, ...]] = [(f"t{number % 20}", "", f"{number // 20}") for number in range(100)]
        keys += [(*key, "task") for key in keys]
        for _ in range(3):
            chance.shuffle(keys)
            await asyncio.gather(*[call_for(key, chance).on(saver) for key in keys])

    await asyncio.gather(*[work(engine, seed) for seed, engine in enumerate(engines)])
    for engine in engines:
        await engine.dispose()

    assert await deadlocks(url) == 0
    assert len(await rows(url, "checkpoints")) == 100


async def test_special_writes_alone_and_among_ordinary_ones_are_locked_in_one_order(url: str) -> None:
    """Two processes store the same errors, each some with an ordinary write and some without."""
    engines = [create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url}) for _ in range(2)]
    pipes = [AsyncPipeline(engine, flushes=1) for engine in engines]
    savers = [AsyncPostgresSaver(engine, pipe) for engine, pipe in zip(engines, pipes, strict=True)]

    def alone(saver: AsyncPostgresSaver, task_id: str) -> Awaitable[None]:
        return put_writes(saver, "t", task_id, "__error__")

    def among(saver: AsyncPostgresSaver, task_id: str) -> Awaitable[None]:
        return saver.aput_writes(config_of("t", "1"), [("__error__", 1), ("a", 2)], task_id)

    first, second = savers
    blocking = await asyncpg.connect(url)
    transaction = blocking.transaction()
    await transaction.start()
    await blocking.execute(
        "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob) "
        "VALUES ('t', '1', 'before', 0, 'a', '')"
    )
    async with held(pipes[0]), held(pipes[1]):
        tasks = await queued(pipes[0], alone(first, "x"), among(first, "y"), put_writes(first, "t", "before"))
        tasks += await queued(pipes[1], alone(second, "y"), among(second, "x"), put_writes(second, "t", "before"))
    await reaches(blocking, WAITING, 2)
    await transaction.rollback()
    await blocking.close()
    await asyncio.gather(*tasks)
    for engine in engines:
        await engine.dispose()

    assert await deadlocks(url) == 0


async def test_a_thread_that_is_deleted_and_stored_again_at_once_does_not_deadlock(
    url: str, engine: AsyncEngine
) -> None:
    """A batch and delete_thread() lock the tables in the same order."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    calls = [
        lambda: put_writes(saver, "t", "task", "__error__"),
        lambda: put(saver, "before", "1"),
        lambda: put(saver, "t", "1"),
    ]
    for call in calls:
        await call()
    blocking = await asyncpg.connect(url)
    async with blocking.transaction():
        await blocking.execute("SELECT 1 FROM checkpoints WHERE thread_id = 'before' FOR UPDATE")
        async with held(pipe):
            tasks = await queued(pipe, *[call() for call in calls])
        await reaches(blocking, WAITING, 1)
        tasks.append(asyncio.create_task(saver.adelete_thread("t")))
        await reaches(blocking, WAITING, 2)
    await blocking.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await engine.dispose()

    assert outcomes == [None] * 4
    assert await deadlocks(url) == 0


async def test_a_cancelled_call_that_waits_takes_no_other_with_it(url: str, engine: AsyncEngine) -> None:
    """It leaves the queue; the calls before and behind it go on."""
    pipe = AsyncPipeline(engine)
    saver = AsyncPostgresSaver(engine, pipe)
    async with locked(url), held(pipe):
        running = asyncio.create_task(put(saver, "t", "0"))
        await until(lambda: pipe._under_way == 2)
        tasks = await queued(pipe, *[put(saver, "t", f"{number}") for number in range(1, 10)])
        tasks[4].cancel()
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(running, *tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes].count(asyncio.CancelledError) == 1
    assert outcomes.count(None) == 9
    assert len(await rows(url, "checkpoints")) in {9, 10}


async def test_a_cancelled_call_in_a_commit_takes_no_other_with_it(url: str, engine: AsyncEngine) -> None:
    """Its statement is that of the others too, so it is not interrupted."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with locked(url):
        async with held(pipe):
            tasks = await queued(pipe, *[put(saver, "t", f"{number}") for number in range(10)])
        await until(lambda: not pipe._waiting and pipe._under_way)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0.01)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, type(None)] * 5
    await pipe.aclose()
    assert len(await rows(url, "checkpoints")) == 10


async def test_a_cancelled_call_on_its_way_alone_does_not_hold_up_those_behind(url: str, engine: AsyncEngine) -> None:
    """Its connection is given up, the others get another one."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with locked(url):
        alone = asyncio.create_task(put(saver, "t", "0"))
        await until(lambda: pipe._under_way)
        tasks = await queued(pipe, *[put(saver, "t", f"{number}") for number in range(1, 10)])
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
    assert await asyncio.gather(*tasks) == [None] * 9

    assert alone.cancelled()
    assert len(await rows(url, "checkpoints")) in {9, 10}


async def test_closing_waits_for_what_was_submitted(url: str, engine: AsyncEngine) -> None:
    """Afterwards everything is there, and later calls are told."""
    async with AsyncPipeline(engine) as pipe:
        saver = AsyncPostgresSaver(engine, pipe)
        tasks = [asyncio.create_task(put(saver, f"t{number % 3}", f"{number}")) for number in range(30)]
        await asyncio.sleep(0)
    # Their rows are committed; they have yet to hear of it.
    assert len(await rows(url, "checkpoints")) == 30
    assert await asyncio.gather(*tasks) == [None] * 30

    with pytest.raises(Closed, match="pipeline is closed"):
        await put(saver, "t", "late")
    await pipe.aclose()
    assert await saver.aget_tuple(config_of("t0")) is not None, "reading needs no pipeline"


@pytest.mark.shortcut
async def test_closing_a_saver_that_owns_its_pipeline_stores_what_was_submitted(url: str) -> None:
    """The end of the block waits for the calls that were made in it."""
    async with AsyncPostgresSaver.from_conn_string(url, pipeline=True) as saver, locked(url):
        tasks = [asyncio.create_task(put(saver, f"t{number % 3}", f"{number}")) for number in range(30)]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert outcomes == [None] * 30
    assert len(await rows(url, "checkpoints")) == 30


async def test_a_saver_that_is_closed_takes_nobody_elses_call_with_it(engine: AsyncEngine) -> None:
    """Savers share a pipeline, not their fate: the one that is closed may be the first of a batch."""
    pipe = AsyncPipeline(engine, flushes=1)
    closing, staying = [AsyncPostgresSaver(engine, pipe) for _ in range(2)]
    async with held(pipe):
        tasks = await queued(pipe, put(closing, "x", "1"), put(staying, "y", "1"))
        await closing.aclose()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert outcomes[1] is None
    assert await staying.aget_tuple(config_of("y")) is not None


async def test_cancelled_calls_do_not_keep_a_pipeline_open(engine: AsyncEngine) -> None:
    """Neither those that wait, nor where all that wait are cancelled."""
    pipe = AsyncPipeline(engine, flushes=1)
    saver = AsyncPostgresSaver(engine, pipe)
    async with held(pipe):
        tasks = await queued(pipe, *[put(saver, "t", f"{number}") for number in range(5)])
        closing = asyncio.create_task(pipe.aclose())
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.01)
        assert not closing.done()
    await asyncio.wait_for(closing, 5)

    assert all(task.cancelled() for task in tasks)


def test_the_end_of_the_loop_is_the_end_of_all_calls(url: str) -> None:
    """asyncio.run() cancels whatever is left: no caller hangs, and no task is left behind."""
    tasks: list[asyncio.Task[None]] = []

    async def main() -> None:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
        pipe = AsyncPipeline(engine, flushes=2)
        saver = AsyncPostgresSaver(engine, pipe)
        tasks.extend(asyncio.create_task(put(saver, f"t{number % 5}", f"{number}")) for number in range(20))
        await until(lambda: pipe._under_way == 2 and pipe._waiting)

    with psycopg.connect(url) as blocking:
        blocking.execute("LOCK TABLE checkpoints IN SHARE MODE")
        asyncio.run(main())

    assert [task.cancelled() for task in tasks] == [True] * 20


def test_a_script_closes_the_pipeline_of_its_sync_savers(url: str) -> None:
    """From whichever loop: it waits on the savers' own."""
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    pipe = AsyncPipeline(engine)
    savers = [PostgresSaver(engine, pipe) for _ in range(2)]
    checkpoint = checkpoint_of("1", a=[1])
    for saver in savers:
        saver.put(config_of("t"), checkpoint, {}, checkpoint["channel_versions"])
    asyncio.run(pipe.aclose())

    with pytest.raises(Closed, match="pipeline is closed"):
        savers[0].put(config_of("t"), checkpoint, {}, checkpoint["channel_versions"])
    for saver in savers:
        saver.close()


async def test_savers_of_two_schemas_share_a_pipeline(url: str, engine: AsyncEngine) -> None:
    """A batch has rows of one schema only; within each the order stays."""
    pipe = AsyncPipeline(engine, flushes=1)
    names = ("a", "b")
    savers = []
    for name in names:
        await execute(url, f"CREATE SCHEMA {name}")
        savers += [AsyncPostgresSaver(engine, pipe, schema=name) for _ in range(2)]
    for saver in savers:
        await saver.setup()
    seen = statements_on(engine)
    async with held(pipe):
        tasks = await queued(pipe, *[put(savers[number % 4], f"t{number % 4}", f"{number:02}") for number in range(40)])
    await asyncio.gather(*tasks)

    assert len(seen) == 2
    for place, name in enumerate(names):
        found = await rows(url, "checkpoints", name)
        assert len(found) == 20
        assert {row[1:3] for row in found} == {f"t{place * 2}", f"t{place * 2 + 1}"}
    assert await rows(url, "checkpoints") == []


async def test_savers_of_one_engine_share_commits(engine: AsyncEngine) -> None:
    """Also where they were made apart, on variants of the engine."""
    pipe = AsyncPipeline(engine, flushes=1)
    variant = engine.execution_options(isolation_level="SERIALIZABLE")
    savers = [AsyncPostgresSaver(engine, pipe), AsyncPostgresSaver(variant, pipe), PostgresSaver(engine, pipe)]
    seen = statements_on(engine)
    async with held(pipe):
        tasks = await queued(pipe, *[put(saver, "t", f"{number}") for number, saver in enumerate(savers)])
    await asyncio.gather(*tasks)

    assert len(seen) == 1


async def test_a_commit_carries_a_limited_number_of_calls(
    url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest waits for the next one."""
    monkeypatch.setattr(group_commit, "MAX_CALLS", 10)
    pipe = AsyncPipeline(engine, flushes=1)
    saver, seen = AsyncPostgresSaver(engine, pipe), statements_on(engine)
    async with held(pipe):
        tasks = await queued(pipe, *[put(saver, "t", f"{number}") for number in range(35)])
    await asyncio.gather(*tasks)

    assert len(seen) == 4
    assert len(await rows(url, "checkpoints")) == 35


async def test_a_commit_carries_a_limited_number_of_bytes(
    url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that has more alone goes alone; order within a thread stays."""
    monkeypatch.setattr(group_commit, "MAX_BYTES", 10_000)
    pipe = AsyncPipeline(engine, flushes=1)
    saver, seen = AsyncPostgresSaver(engine, pipe), statements_on(engine)
    sizes = [4000, 4000, 4000, 50_000, 1, 9000]
    async with held(pipe):
        tasks = await queued(
            pipe,
            *[
                saver.aput_writes(config_of("t", "1"), [("a", b"x" * size)], f"task-{number}")
                for number, size in enumerate(sizes)
            ],
        )
    await asyncio.gather(*tasks)

    assert len(seen) == 4
    found = await fetch(url, "SELECT count(*) FROM checkpoint_writes GROUP BY xmin::text::int ORDER BY xmin::text::int")
    assert [row[0] for row in found] == [2, 1, 1, 2]


async def test_no_more_commits_are_under_way_than_allowed(url: str, engine: AsyncEngine) -> None:
    """The pool's other connections are left to those who read."""
    pipe = AsyncPipeline(engine, flushes=3)
    saver = AsyncPostgresSaver(engine, pipe)
    async with locked(url):
        tasks = [asyncio.create_task(put(saver, "first", "1"))]
        for number in range(20):
            tasks.append(asyncio.create_task(put(saver, f"t{number}", "1")))
            await asyncio.sleep(0.001)
        await until(lambda: engine.pool.checkedout() == 3)  # type: ignore[attr-defined]
        assert await saver.aget_tuple(config_of("t0")) is None
    await asyncio.gather(*tasks)

    assert len(await rows(url, "checkpoints")) == 21


@pytest.mark.shortcut
def test_threads_that_share_a_sync_saver_share_commits(url: str) -> None:
    """16 threads, each with calls in order; far fewer commits than calls."""
    with PostgresSaver.from_conn_string(url, pool_size=2) as saver, ThreadPoolExecutor(16) as threads:
        together = threading.Barrier(16)

        def work(number: int) -> None:
            for step in range(20):
                together.wait()
                checkpoint = checkpoint_of(f"{step:02}", f"{step}", a=[number, step])
                stored = saver.put(config_of(f"t{number}"), checkpoint, {}, checkpoint["channel_versions"])
                saver.put_writes(stored, [("a", step)], "task")
                found = saver.get_tuple(config_of(f"t{number}"))
                assert found is not None
                assert found.checkpoint["channel_values"] == {"a": [number, step]}
                assert found.pending_writes == [("task", "a", step)]

        list(threads.map(work, range(16)))
    with psycopg.connect(url) as conn:
        query = " UNION ".join(f"SELECT xmin::text FROM {table}" for table in TABLES)
        assert len(conn.execute(query.encode()).fetchall()) < 400
        assert conn.execute("SELECT count(*) FROM checkpoint_writes").fetchone() == (320,)
