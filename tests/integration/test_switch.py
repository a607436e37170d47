"""Every step of docs/how-to/switch-from-the-stock-saver.md: onto our saver in place, pod by pod, and back again."""

from __future__ import annotations

import asyncio
import enum
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver as AsyncStockSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from langgraph.checkpoint.postgres.shallow import ShallowPostgresSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, errors, migrations
from checkpoint_store.embedded import _program
from checkpoint_store.migrations.alembic_config import script_location
from checkpoint_store.storage import probes
from checkpoint_store.transfer import copy_threads

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
PAGE = (REPOSITORY / "docs/how-to/switch-from-the-stock-saver.md").read_text()

# By the name it has in the pods: what they store is read here, too.
specification = importlib.util.spec_from_file_location("waiter", HERE / "waiter.py")
assert specification is not None
waiter = sys.modules["waiter"] = importlib.util.module_from_spec(specification)
assert specification.loader is not None
specification.loader.exec_module(waiter)


class Pod:
    """A process of the service, seen from outside."""

    def __init__(self, kind: str, url: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(REPOSITORY)])}
        command = [sys.executable, "-m", "waiter", kind, url]
        self.kind = kind
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, method: str, *args: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, *args]) + "\n")
        self.process.stdin.flush()
        return json.loads(self._line())

    def is_ready(self) -> bool:
        return self._line() == "ready\n"

    def stop(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the pod has ended"
        return line


class Here:
    """The same in this process: what a pod would do, without what its start costs."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self._stack = ExitStack()
        self.saver = self._stack.enter_context(waiter.saver_of(kind, url))
        self.saver.setup()

    def __call__(self, method: str, *args: str) -> Any:
        return waiter.call(self.saver, method, *args)

    def stop(self) -> None:
        self._stack.close()


Start = Callable[..., list[Any]]


@pytest.fixture(params=["processes", "here"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts pods, all at once, and returns them when they are ready; those that a test has not stopped are killed."""
    with ExitStack() as stack:

        def start(url: str, *kinds: str) -> list[Any]:
            if request.param == "here":
                here = [Here(kind, url) for kind in kinds]
                for pod in here:
                    stack.callback(pod.stop)
                return here
            pods = [Pod(kind, url) for kind in kinds]
            for pod in pods:
                stack.enter_context(pod.process)
                stack.callback(pod.process.kill)
            assert all(pod.is_ready() for pod in pods)
            return pods

        yield start


in_processes = pytest.mark.parametrize("start", ["processes"], indirect=True)
in_processes_if_slow = pytest.mark.parametrize(
    "start", [pytest.param("processes", marks=pytest.mark.slow), "here"], indirect=True
)


@in_processes
def test_turns_go_from_an_old_process_to_a_new_one_and_back(empty_url: str, start: Start) -> None:
    """Steps 1 to 3, short: the new process adopts the tables while the old one is at work; both go on from either."""
    model = InMemorySaver(serde=waiter.SERDE)
    (old,) = start(empty_url, "stock")
    script = [("order", "soup"), ("answer", "Port"), ("order", "fish"), ("go back", "cold"), ("answer", "Dão")]
    told = [old("turn", "table", *script[0])]
    with ThreadPoolExecutor() as pool:
        busy = pool.submit(old, "turn", "another table", "order", "tea")
        (new,) = start(empty_url, "ours")
        assert "which wine?" in busy.result()

    told += [pod("turn", "table", *said) for pod, said in zip([new, old, new, old], script[1:], strict=True)]

    assert told == [waiter.turn(model, "table", *said) for said in script]
    assert old("history", "table") == new("history", "table")


@in_processes_if_slow
def test_the_whole_rollout_and_the_way_back(empty_url: str, start: Start) -> None:
    """From the stock saver's first day to the day after the return to it.

    Whoever takes a turn, on whichever saver, tells the guest what LangGraph's in-memory saver tells one who was never
    moved; and both savers read every thread the same.
    """
    model, chance, threads = InMemorySaver(serde=waiter.SERDE), random.Random(7), ["table 1", "table 2"]

    def evening(pods: list[Pod], *script: tuple[str, str]) -> dict[str, list[str]]:
        """Have the guests served, each by another pod every time; all pods agree on what has happened so far."""
        for what, said in script:
            for thread in threads:
                pod = chance.choice(pods)
                assert pod("turn", thread, what, said) == waiter.turn(model, thread, what, said), pod.kind
        histories = [{thread: pod("history", thread) for thread in threads} for pod in pods]
        assert [pod.kind for pod, held in zip(pods, histories, strict=True) if held != histories[0]] == []
        return histories[0]

    # All pods are old. The last turn leaves questions open.
    old = start(empty_url, "stock", "stock")
    evening(old, ("order", "soup"), ("answer", "Colares"), ("order", "fish"))

    # 1, 3. New ones start while old ones are at work; the first adopts the tables.
    with ThreadPoolExecutor() as pool:
        busy = [pool.submit(old[n], "turn", f"guest {n}", "order", "tea") for n in (0, 1)]
        new = start(empty_url, "ours", "ours")
        assert all("which wine?" in guest.result() for guest in busy)
    evening([*old, *new], ("answer", "Port"), ("go back", "sent back"), ("order", "pudding"))
    late = start(empty_url, "stock")
    evening([*old, *new, *late], ("answer", "Madeira"), ("order", "coffee"))
    stop(*old, *late)

    # 4. The old ones are gone: indexes are dropped, pages are shared.
    with psycopg.connect(empty_url, autocommit=True) as conn:
        for statement in page("sql").split(";"):
            conn.execute(statement)
        before = evening(new, ("answer", "Ginja"))
        sharing = start(empty_url, "sharing")
        evening([*new, *sharing], ("order", "cheese"))
        stop(*new)
        converted = asyncio.run(run_page("conversion.share", empty_url))
        assert converted > len(threads)
        paged = "SELECT count(*) FROM checkpoint_blobs WHERE type = 'pages'"
        assert conn.execute(paged).fetchone() != (0,)
        evening(sharing, ("answer", "Dão"))
        old = start(empty_url, "stock")
        assert "pages" in old[0]("turn", threads[0], "look")  # it can't read them, and says so
        stop(*old)

        # 5. Back: nobody shares pages any more, then they are inlined, then the old ones return.
        new = start(empty_url, "ours")
        evening([*new, *sharing], ("order", "grapes"))
        stop(*sharing)
        asyncio.run(run_page("conversion.inline", empty_url))
        assert conn.execute(paged).fetchone() == (0,)
        old = start(empty_url, "stock")
        evening([*new, *old], ("answer", "Bairrada"), ("go back", "sent back again"), ("order", "bread"))
        stop(*new)
        alembic(page("sh", 1), empty_url)
        after = evening(old, ("answer", "water"))

        indexes = "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'checkpoint%thread_id_idx'"
        assert conn.execute(indexes).fetchone() == (0,)
        ours = "SELECT to_regclass('checkpoint_pages'), (SELECT count(*) FROM checkpoint_store_version)"
        assert conn.execute(ours).fetchone() == (None, 0)
    assert all(set(before[thread]) < set(after[thread]) for thread in threads)


def test_adopting_waits_no_longer_than_it_is_told(empty_url: str) -> None:
    """Behind a transaction that does not end, `lock_timeout` ends the wait: old pods work on, and later it succeeds."""
    with waiter.saver_of("stock", empty_url) as old, psycopg.connect(empty_url) as long:
        old.setup()
        told = waiter.turn(old, "table", "order", "soup")
        history = waiter.history(old, "table")
        long.execute("SELECT count(*) FROM checkpoint_blobs")  # and the transaction stays open
        export, upgrade = page("sh").splitlines()
        options = export.partition("?")[2].strip("'").replace("2s", "50ms")
        url = f"{empty_url}{'&' if '?' in empty_url else '?'}{options}"

        failed = alembic(upgrade, url, check=False)

        assert failed.returncode != 0
        assert "lock timeout" in failed.stdout + failed.stderr
        assert waiter.turn(old, "table", "look") == told
        assert "to_regclass" not in waiter.turn(old, "another", "order", "tea")
        long.rollback()
        alembic(upgrade, url)
        assert waiter.history(old, "table") == history
        with waiter.saver_of("ours", empty_url) as new:
            assert waiter.history(new, "table") == history


@pytest.mark.parametrize("pipeline", [False, True], ids=["plain", "pipeline"])
async def test_both_write_to_the_same_threads_at_once(empty_url: str, pipeline: bool) -> None:
    """Hundreds of calls under way at a time, on the same threads and many on the same rows: nothing is lost."""
    chance, model = random.Random(3), InMemorySaver()
    config: Any = {"configurable": {"checkpoint_ns": ""}}
    calls: list[tuple[str, Callable[[Any], Any]]] = []

    def both(method: str, *args: Any) -> None:
        getattr(model, method)(*args)
        calls.append((method, lambda saver: getattr(saver, f"a{method}")(*args)))

    for number in range(120):
        thread = {"configurable": {**config["configurable"], "thread_id": f"thread {number % 3}"}}
        versions = {"list": f"{number:04}", "text": f"{number:04}"}
        checkpoint: Any = {**empty_checkpoint(), "v": 4, "id": str(uuid6()), "channel_versions": versions}
        checkpoint["channel_values"] = {"list": [number, {"a": b"b"}], "text": f"\U0001f98a {number}"}
        both("put", thread, checkpoint, {"step": number, "source": "loop"}, versions)
        at = {"configurable": {**thread["configurable"], "checkpoint_id": checkpoint["id"]}}
        for task in ("task 1", "task 2"):
            both("put_writes", at, [("list", [number, task]), ("text", task)], task, f"~path of {task}")
        both("put_writes", at, [("__interrupt__", f"which {number}?")], "task 2", "~path of task 2")

    async with stock_and_ours(empty_url, pipeline=pipeline) as savers:
        # A checkpoint is one run's, so one pod puts it; a task may be under way in two.
        mixed = [call(chance.choice(savers)) for _, call in calls]
        mixed += [call(saver) for method, call in calls for saver in savers if method == "put_writes"]
        chance.shuffle(mixed)
        await asyncio.gather(*mixed)

        for thread_id in ("thread 0", "thread 1", "thread 2"):
            named = {"configurable": {"thread_id": thread_id}}
            expected = [waiter.told_whole(found) for found in model.list(named)]
            assert len(expected) == 40
            for saver in savers:
                assert [waiter.told_whole(found) async for found in saver.alist(named)] == expected


async def test_runs_on_one_thread_at_once_are_all_there(empty_url: str) -> None:
    """Old and new pods update one thread at the same moment: every update is a checkpoint that both can go on from."""
    async with stock_and_ours(empty_url) as savers:
        graphs = [waiter.waiting(saver) for saver in savers]
        config: Any = {"configurable": {"thread_id": "t"}}
        await graphs[0].aupdate_state(config, {"bill": -1}, as_node="cook")

        await asyncio.gather(
            *[graphs[number % 2].aupdate_state(config, {"bill": number}, as_node="cook") for number in range(20)]
        )

        states = [state async for state in graphs[0].aget_state_history(config)]
        assert waiter.told(states) == waiter.told([state async for state in graphs[1].aget_state_history(config)])
        assert {state.values["bill"] for state in states} == set(range(-1, 20))


async def test_async_pods_hand_turns_to_each_other(empty_url: str) -> None:
    """Both async savers on one loop: what one asks, the other answers, and the guest does not notice."""
    script = [("order", "soup"), ("answer", "Port"), ("order", "fish"), ("go back", "cold"), ("answer", "Dão")]
    model = InMemorySaver(serde=waiter.SERDE)
    async with stock_and_ours(empty_url) as (stock, ours):
        for number, said in enumerate(script):
            for thread, saver in (("1", (stock, ours)[number % 2]), ("2", (ours, stock)[number % 2])):
                told = await waiter.async_turn(saver, thread, *said)
                assert told == waiter.turn(model, thread, *said)
        history = sorted([waiter.told_whole(found) async for found in stock.alist(None)])
        assert history == sorted([waiter.told_whole(found) async for found in ours.alist(None)])


@asynccontextmanager
async def stock_and_ours(url: str, *, pipeline: bool = False) -> AsyncIterator[list[Any]]:
    """Both savers for async code, on pools."""
    options = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
    async with (
        AsyncConnectionPool(url, min_size=4, max_size=4, kwargs=options, open=False) as pool,
        AsyncPostgresSaver.from_conn_string(url, serde=waiter.SERDE, pipeline=pipeline) as ours,
    ):
        stock = AsyncStockSaver(pool, serde=waiter.SERDE)
        await stock.setup()
        await ours.setup()
        yield [stock, ours]


def test_no_pages_are_shared_in_an_adopted_database_unless_asked_for(empty_url: str) -> None:
    """By default large values stay readable by old pods, also for a pod that starts after they are gone."""
    pages = "SELECT count(*) FROM checkpoint_pages"
    with waiter.saver_of("stock", empty_url) as stock, psycopg.connect(empty_url, autocommit=True) as conn:
        stock.setup()
        for kind, shares in (("ours", False), ("sharing", True)):
            with waiter.saver_of(kind, empty_url) as new:
                new.setup()
                waiter.turn(new, kind, "order", "soup")
                waiter.turn(new, kind, "answer", "Port")
            assert (conn.execute(pages).fetchone() != (0,)) is shares
        assert "menu" in waiter.call(stock, "turn", "ours", "look")
        assert "menu" not in waiter.call(stock, "turn", "sharing", "look")


@pytest.mark.parametrize("share_pages", [None, True])
def test_a_process_notices_that_the_stock_saver_has_come(
    url: str, share_pages: bool | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It stores whole from then on, unless it was told otherwise, and says so once, with the way out."""
    monkeypatch.setattr("checkpoint_store.database.page_sharing.ASK_SECONDS", 0)
    with (
        PostgresSaver.from_conn_string(url, share_pages=share_pages) as ours,
        PostgresSaver.from_conn_string(url, share_pages=share_pages) as another,
        StockSaver.from_conn_string(url) as stock,
    ):
        put_large(ours, "before")
        put_large(another, "before")
        stock.setup()
        for saver in (ours, another, ours):
            put_large(saver, "after")
        config: Any = {"configurable": {"thread_id": "after", "checkpoint_ns": ""}}
        if share_pages is None:
            assert stock.get(config) == ours.get(config)

        assert types(url) == {"before": "pages", "after": "pages" if share_pages else "msgpack"}
    said = [record.getMessage() for record in caplog.records if "shared pages" in record.getMessage()]
    assert len(said) == (0 if share_pages else 1)
    assert all("share_pages=True" in told for told in said)


def test_the_database_is_asked_once_a_minute_whether_the_stock_saver_has_come(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at every put."""
    now = [1000.0]
    monkeypatch.setattr("checkpoint_store.database.page_sharing.time.monotonic", lambda: now[0])
    asked = []
    ask = probes.is_adopted
    noting = replace(ask, function=lambda *args: asked.append(now[0]) or ask(*args))
    monkeypatch.setattr(probes, "is_adopted", noting)
    with PostgresSaver.from_conn_string(url) as saver:
        for seconds in (0, 1, 58, 2, 1):
            now[0] += seconds
            put_large(saver, "t")

    assert asked == [1000.0, 1061.0]


MADE_BY_HAND = "".join(migration for migration in STOCK_MIGRATIONS[1:] if "INDEX" not in migration)


@pytest.mark.parametrize("way", ["setup", "script", "restored"])
def test_tables_that_were_found_stay_and_share_no_pages(
    empty_url: str, make_database: Callable[[], str], way: str
) -> None:
    """Made by hand, without the stock saver's bookkeeping: a downgrade takes away what is ours alone."""
    url = empty_url
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(MADE_BY_HAND.encode())
        before = shape(conn)
        if way == "script":
            conn.execute(migrations.offline_sql().encode())
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
        put_large(saver, "t")
    if way == "restored":
        dumped = subprocess.run([_program("pg_dump"), "-Fc", url], check=True, capture_output=True).stdout
        url = make_database()
        subprocess.run([_program("pg_restore"), "-d", url], input=dumped, check=True, capture_output=True)
        with PostgresSaver.from_conn_string(url) as saver:
            put_large(saver, "t")

    assert types(url) == {"t": "msgpack"}
    alembic(page("sh", 1), url)
    assert types(url) == {"t": "msgpack"}
    with psycopg.connect(url, autocommit=True) as conn:
        assert shape(conn) == before
        conn.execute("DROP TABLE checkpoints, checkpoint_blobs, checkpoint_writes")
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
        put_large(saver, "t")
    assert types(url) == {"t": "pages"}


def put_large(saver: PostgresSaver, thread_id: str) -> None:
    """Store a checkpoint with a value that can be cut into pages."""
    value = [f"{number}" * 100 for number in range(1000)]
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"c": value}, "channel_versions": {"c": "1"}}
    saver.put({"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}, checkpoint, {}, {"c": "1"})


def types(url: str) -> dict[str, str]:
    """How the large value of each thread is stored."""
    with psycopg.connect(url, autocommit=True) as conn:
        return dict(conn.execute("SELECT thread_id, type FROM checkpoint_blobs").fetchall())


def shape(conn: psycopg.Connection[Any]) -> list[Any]:
    """Every column and index of the tables."""
    return conn.execute(
        "SELECT table_name, column_name, data_type, column_default FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name LIKE 'checkpoint%' AND table_name NOT LIKE '%version'"
        " UNION ALL SELECT tablename, indexname, indexdef, '' FROM pg_indexes"
        " WHERE schemaname = 'public' AND tablename NOT LIKE '%version' ORDER BY 1, 2"
    ).fetchall()


def test_the_stock_saver_takes_over_a_database_of_ours(empty_url: str) -> None:
    """One that it has never seen: its setup() makes its bookkeeping, it reads all, and a downgrade drops nothing."""
    with waiter.saver_of("ours", empty_url) as new:
        new.setup()
        waiter.turn(new, "table", "order", "soup")
        asyncio.run(run_page("conversion.inline", empty_url))
        history = waiter.history(new, "table")
    with waiter.saver_of("stock", empty_url) as old:
        old.setup()
        assert waiter.history(old, "table") == history

        alembic(page("sh", 1), empty_url)

        assert waiter.history(old, "table") == history
        assert "Port" in waiter.turn(old, "table", "answer", "Port")


class Dish(str, enum.Enum):
    SOUP = "soup"


class Size(enum.IntEnum):
    SMALL = 1


KEPT, FAILS = "comes back as it was", "fails in the database"
DIFFERENT: dict[str, tuple[str, str, list[Any]]] = {
    "text with NUL": (FAILS, KEPT, ["a\x00b"]),
    "infinity, NaN, as the whole value": (FAILS, KEPT, [float("inf"), float("-inf"), float("nan")]),
    "an Enum that is also a `str` or an `int`": ("comes back without its type", KEPT, [Dish.SOUP, Size.SMALL]),
    "`-0.0`, `1e16`": ("comes back as `0.0`, as an `int`", KEPT, [-0.0, 1e16]),
    "text with a lone surrogate": (FAILS, REPLACED := 'comes back with "?" for it', ["\ud800"]),
    "plain values under an encrypting serializer": (CLEAR := "stored in clear", "encrypted", ["secret"]),
}
"""The rows of the page's table, and values that they speak of."""


def test_the_pages_table_of_differences_is_tested() -> None:
    """Word for word, by the test below."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", PAGE.partition("| value of a channel |")[2], re.MULTILINE)

    assert {row: (theirs, ours) for row, theirs, ours in rows} == {row: told[:2] for row, told in DIFFERENT.items()}


@pytest.mark.parametrize(
    ("theirs", "ours", "value"), [(*told[:2], value) for told in DIFFERENT.values() for value in told[2]], ids=repr
)
def test_values_differ_as_the_page_says(empty_url: str, theirs: str, ours: str, value: Any) -> None:
    """What either saver makes of a value, and what both read of that."""
    serde: Any = JsonPlusSerializer(allowed_msgpack_modules=[(__name__, "Dish"), (__name__, "Size")])
    if theirs == CLEAR:
        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    with (
        StockSaver.from_conn_string(empty_url) as stock,
        PostgresSaver.from_conn_string(empty_url, serde=serde) as saver,
        psycopg.connect(empty_url, autocommit=True) as conn,
    ):
        stock.serde = serde
        stock.setup()
        saver.setup()

        def read(writer: Any, thread_id: str) -> tuple[list[str], bool]:
            """What both read when one has written it, and whether it is to be seen in the database."""
            thread: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            checkpoint: Any = {**empty_checkpoint(), "channel_values": {"c": value}, "channel_versions": {"c": "1"}}
            writer.put(thread, checkpoint, {}, {"c": "1"})
            seen = conn.execute("SELECT 1 FROM checkpoints WHERE checkpoint::text LIKE '%secret%'").fetchone()
            return [waiter.told(reader.get(thread)["channel_values"]["c"]) for reader in (stock, saver)], bool(seen)

        kept = [waiter.told(value)] * 2
        if theirs == FAILS:
            with pytest.raises((psycopg.Error, UnicodeEncodeError)):
                read(stock, "theirs")
        elif theirs == CLEAR:
            assert read(stock, "theirs") == (kept, True)
            conn.execute("DELETE FROM checkpoints")
        else:
            assert read(stock, "theirs")[0] != kept
        if ours == REPLACED:
            assert read(saver, "ours")[0] == [waiter.told("?")] * 2
        elif ours == "encrypted":
            assert read(saver, "ours") == (kept, False)
        else:
            assert read(saver, "ours")[0] == kept


class Note(MessagesState):
    note: str


def test_old_pods_store_values_their_own_way(empty_url: str) -> None:
    """A thread that new pods go on with, an old one cannot: it fails, and nothing of the thread is lost."""
    graph = StateGraph(Note).add_node("say", lambda _: {"messages": [("ai", "Yes.")]}).add_edge(START, "say")
    thread: Any = {"configurable": {"thread_id": "t"}}
    with waiter.saver_of("stock", empty_url) as old, waiter.saver_of("ours", empty_url) as new:
        old.setup()
        new.setup()
        graph.compile(checkpointer=new).invoke({"messages": [("user", "?")], "note": "NUL: \x00"}, thread)

        assert graph.compile(checkpointer=old).get_state(thread).values["note"] == "NUL: \x00"
        with pytest.raises(psycopg.Error, match=r"NUL|u0000"):
            graph.compile(checkpointer=old).invoke({"messages": [("user", "And?")]}, thread)
        said = graph.compile(checkpointer=new).invoke({"messages": [("user", "And?")]}, thread)
        assert (said["note"], len(said["messages"])) == ("NUL: \x00", 4)


def test_a_shallow_database_is_refused_and_can_be_copied(empty_url: str) -> None:
    """Its tables are of another kind and are left alone; in another schema its threads go on."""
    graph = StateGraph(Note).add_node("say", lambda _: {"messages": [("ai", "Yes.")]}).add_edge(START, "say")
    thread: Any = {"configurable": {"thread_id": "t"}}
    shallow = ShallowPostgresSaver.from_conn_string(empty_url)
    with pytest.warns(DeprecationWarning, match="ShallowPostgresSaver"):
        old = shallow.__enter__()
    with ExitStack() as stack:
        stack.push(shallow)
        old.setup()
        before = graph.compile(checkpointer=old).invoke({"messages": [("user", "?")], "note": "kept"}, thread)
        with PostgresSaver.from_conn_string(empty_url) as ours, pytest.raises(errors.MigrationError, match="lacks"):
            ours.setup()
        assert graph.compile(checkpointer=old).get_state(thread).values == before

        with PostgresSaver.from_conn_string(empty_url, schema="agents") as ours:
            ours.setup()
            copy_threads(old, ours)

            assert graph.compile(checkpointer=ours).get_state(thread).values == before
            after = graph.compile(checkpointer=ours).invoke({"messages": [("user", "And?")]}, thread)
            assert (after["note"], len(after["messages"])) == ("kept", 4)


def stop(*pods: Pod) -> None:
    for pod in pods:
        pod.stop()


def page(language: str, number: int = 0) -> str:
    """A block of code of the page."""
    blocks: list[str] = re.findall(rf"^```{language}\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return blocks[number]


async def run_page(call: str, url: str) -> Any:
    """Run the block of the page that makes a call, on an engine. Returns what the call does."""
    (block,) = [block for block in re.findall(r"^```py\n(.+?)^```$", PAGE, re.DOTALL | re.MULTILINE) if call in block]
    lines = block.strip().splitlines()
    lines[-1] = lines[-1].replace("await", "return await")
    names: dict[str, Any] = {}
    exec("async def run(engine):\n " + "\n ".join(lines), names)  # noqa: S102
    engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": url})
    try:
        return await names["run"](engine)
    finally:
        await engine.dispose()


def alembic(commands: str, url: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run commands of the page where nothing of the repository is but the package."""
    with tempfile.TemporaryDirectory() as folder:
        # In a checkout the migrations are at its top; where the ini file says they are, in an installed package.
        ini = page("ini").replace("checkpoint_store:_alembic", str(script_location()))
        Path(folder, "checkpoint_store.ini").write_text(ini)
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CHECKPOINT_STORE_URL": url}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        return subprocess.run(
            ["/bin/sh", "-ec", commands], cwd=folder, env=environment, check=check, capture_output=True, text=True
        )
