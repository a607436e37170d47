"""Trials of the savers' own methods: LangGraph's interface, threads, transactions, removal."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from langgraph.types import Command, interrupt
from sqlalchemy import text

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver
from checkpoint_store.errors import Conflict, ThreadExists, ThreadLocked, ThreadNotFound
from tests.integration.histories import id_at
from tests.scale.place import Calls
from tests.scale.walk import PAGES, Walk, capability, named, raises

# --- LangGraph's interface ---


@capability("setup")
async def _(at: Walk) -> None:
    await at.call.setup()
    await at.call.setup()
    await at.call("check")


@capability("put, get")
async def _(at: Walk) -> None:
    steps = await at.chat(at.thread(), 3)
    await at.check(*steps)
    newest = await at.call("get_tuple", named(steps[0].config["configurable"]["thread_id"]))
    assert newest.config == steps[-1].config
    assert newest.parent_config == steps[-2].config
    assert newest.metadata["step"] == 2


@capability("put, get with shared pages")
async def _(at: Walk) -> None:
    sharing, plain = await at.saver(share_pages=True), await at.saver(share_pages=False)
    steps = await at.chat(thread := at.thread(), 4, large=True, call=sharing)
    await at.check(*steps, call=sharing)
    await at.check(*steps, call=plain)
    tables = (await at.call("get_thread_stats", thread)).tables
    size = sum(map(len, steps[-1].values["messages"]))
    assert tables[PAGES].rows > 0, "no value is stored as pages"
    assert sum(table.bytes for table in tables.values()) < 2 * size, "values share no pages"


@capability("put_writes")
async def _(at: Walk) -> None:
    (step,) = await at.chat(at.thread(), 1)
    for value in (1, 2):
        await at.call("put_writes", step.config, [("a", value), ("__error__", value)], "task-2", "~path")
    found = await at.call("get_tuple", step.config)
    assert sorted(found.pending_writes) == sorted([*step.writes, ("task-2", "a", 1), ("task-2", "__error__", 2)])


@capability("list of a thread")
async def _(at: Walk) -> None:
    steps = await at.chat(thread := at.thread(), 6)
    (inner,) = await at.chat(thread, 1, namespace="node:1")
    ids = [step.checkpoint_id for step in reversed(steps)]
    assert sorted(await at.ids(thread)) == sorted([*ids, inner.checkpoint_id])
    listed = await at.call("list", named(thread), before=steps[4].config, limit=2)
    assert [found.config for found in listed] == [steps[3].config, steps[2].config]
    assert [found.checkpoint["channel_values"] for found in listed] == [steps[3].values, steps[2].values]
    assert [sorted(found.pending_writes) for found in listed] == [steps[3].writes, steps[2].writes]
    listed = await at.call("list", named(thread), filter={"step": 1})
    assert [found.config for found in listed] == [steps[1].config]


@capability("list of all threads")
async def _(at: Walk) -> None:
    run = uuid.uuid4().hex
    steps = [step for _ in range(5) for step in await at.chat(at.thread(), 2, runs=[run])]
    wanted = sorted((step.checkpoint_id for step in steps), reverse=True)

    async def listed() -> list[str]:
        return [found.checkpoint["id"] for found in await at.call("list", None, filter={"run_id": run})]

    await at.eventually(listed, wanted)


@capability("list_threads")
async def _(at: Walk) -> None:
    threads = [at.thread() for _ in range(5)]
    for thread in threads:
        await at.chat(thread, 2)
    prefix = threads[0][:-1]

    async def listed(**options: Any) -> list[Any]:
        found = await at.call("list_threads", prefix=prefix, count=True, **options)
        return [(thread.thread_id, thread.checkpoints) for thread in found]

    wanted = [(thread, 2) for thread in threads]
    await at.eventually(lambda: listed(order="thread_id"), wanted)
    await at.eventually(listed, wanted[::-1])
    (first,) = await at.call("list_threads", prefix=prefix, limit=1, filter={"step": 1})
    assert (first.thread_id, first.metadata["step"]) == (threads[-1], 1)
    await at.eventually(lambda: listed(cursor=first.cursor), wanted[-2::-1])


@capability("graph, interrupt, history")
async def _(at: Walk) -> None:
    graph = StateGraph(dict)
    graph.add_node("ask", lambda _: {"answer": interrupt("why?")})
    graph.add_edge(START, "ask")
    run = Calls(graph.compile(checkpointer=at.call.target), at.api)
    config = {"configurable": {"thread_id": at.thread()}}
    await run("invoke", {"answer": ""}, config)
    assert (await run("get_state", config)).interrupts[0].value == "why?"
    assert await run("invoke", Command(resume="because"), config) == {"answer": "because"}
    history = await run("get_state_history", config)
    assert [(state.next, state.metadata["step"]) for state in history] == [((), 1), (("ask",), 0), (("__start__",), -1)]


@capability("delta channel history")
async def _(at: Walk) -> None:
    config = named(at.thread())
    for number in range(4):
        seed = {"seeded": ["seed"]} if number == 0 else {}
        checkpoint = {**empty_checkpoint(), "channel_values": seed, "channel_versions": dict.fromkeys(seed, "1")}
        config = await at.call("put", config, checkpoint, {}, dict.fromkeys(seed, "1"))
        if number < 3:
            await at.call("put_writes", config, [("seeded", number)], f"task-{number}")
    found = await at.call("get_delta_channel_history", config=config, channels=["seeded", "other"])
    assert found["seeded"] == {"writes": [(f"task-{n}", "seeded", n) for n in range(3)], "seed": ["seed"]}
    assert found["other"] == {"writes": []}


@capability("group commit")
async def _(at: Walk) -> None:
    threads = [at.thread() for _ in range(20)]
    if at.api == "async":
        engine = await at.engine()
        saver: Any = AsyncPostgresSaver(engine, AsyncPipeline(engine), share_pages=True, pooler=at.place.pooler)
        calls = Calls(saver, "async")
        steps = await asyncio.gather(
            *[at.chat(each, 3, large=n % 4 == 0, call=calls) for n, each in enumerate(threads)]
        )
    else:
        with ThreadPoolExecutor(20) as pool:
            asyncio.get_running_loop().set_default_executor(pool)
            steps = await asyncio.gather(*[at.chat(each, 3, large=n % 4 == 0) for n, each in enumerate(threads)])
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    await at.check(*[step for each in steps for step in each])


# --- threads ---


@capability("get_thread_stats")
async def _(at: Walk) -> None:
    await at.chat(thread := at.thread(), 3)
    stats = await at.call("get_thread_stats", thread)
    assert stats.checkpoints == 3
    assert stats.tables["checkpoint_blobs"].rows == 3
    assert stats.tables["checkpoint_writes"].rows == 6
    assert {(one.channel, one.values, one.writes) for one in stats.channels} >= {("messages", 3, 3)}
    assert (await at.call("get_thread_stats", at.thread())).bytes == 0


@capability("copy_thread")
async def _(at: Walk) -> None:
    await _copy(at, replace=False)


@capability("copy_thread with replace")
async def _(at: Walk) -> None:
    await _copy(at, replace=True)


async def _copy(at: Walk, *, replace: bool) -> None:
    sharing = await at.saver(share_pages=True)
    source, target = at.thread(), at.thread()
    steps = await at.chat(source, 2) + await at.chat(source, 3, large=True, call=sharing, namespace="node:1")
    if replace:
        await at.chat(target, 5, large=True)
    await at.call("copy_thread", source, target, replace=replace)
    for step in steps:
        moved = {**step.config["configurable"], "thread_id": target}
        await at.check(step, type(step)({"configurable": moved}, step.values, step.writes))
    assert sorted(await at.ids(target)) == sorted(step.checkpoint_id for step in steps)
    await raises(ThreadExists, at.call("copy_thread", source, target))
    await raises(ThreadNotFound, at.call("copy_thread", at.thread(), at.thread()))


@capability("thread_lock")
async def _(at: Walk) -> None:
    other, thread = await at.saver(), at.thread()

    def locked() -> None:
        with at.call.target.thread_lock(thread, timeout=10) as lock:
            try:
                with other.target.thread_lock(thread, timeout=0):
                    raise AssertionError("two have the lock")
            except ThreadLocked:
                assert not lock.lost
        with other.target.thread_lock(thread, timeout=10):
            pass

    if at.api == "sync":
        await asyncio.to_thread(locked)
        return
    async with at.call.target.thread_lock(thread, timeout=10) as lock:
        await raises(ThreadLocked, other.target.thread_lock(thread, timeout=0).__aenter__())
        await at.check(*await at.chat(thread, 2))
        assert not lock.lost
    async with other.target.thread_lock(thread, timeout=10):
        pass


@capability("refuse_forks")
async def _(at: Walk) -> None:
    careful = await at.saver(refuse_forks=True)
    for large in (False, True):
        steps = await at.chat(thread := at.thread(), 3, large=large, call=careful)
        await raises(Conflict, careful("put", steps[0].config, empty_checkpoint(), {}, {}))
        await raises(Conflict, careful("put", named(thread), empty_checkpoint(), {}, {}))
        # By the one whose engine has written them: a replica may lack them for another.
        assert await at.ids(thread, call=careful) == [step.checkpoint_id for step in reversed(steps)]
        await careful("put", steps[-1].config, empty_checkpoint(), {}, {})


@capability("bind: one transaction")
async def _(at: Walk) -> None:
    if at.api == "async":
        engine = await at.engine()
        async with engine.connect() as conn:
            await _one_transaction(at, conn, conn.execute, conn.commit, conn.rollback)
        return
    sync_engine = at.place.sync_engine()
    with sync_engine.connect() as sync_conn:
        awaited = [_awaited(call) for call in (sync_conn.execute, sync_conn.commit, sync_conn.rollback)]
        await _one_transaction(at, sync_conn, *awaited)
    sync_engine.dispose()


async def _one_transaction(at: Walk, conn: Any, execute: Any, commit: Any, rollback: Any) -> None:
    await execute(text("CREATE TABLE IF NOT EXISTS walk_orders (thread_id text)"))
    await commit()
    for end in (commit, rollback):
        order = {"thread": at.thread()}
        await execute(text("INSERT INTO walk_orders VALUES (:thread)"), order)
        steps = await at.chat(order["thread"], 2, large=True, call=Calls(at.call.target.bind(conn), at.api))
        assert await at.call("get_tuple", named(order["thread"])) is None
        await end()
        orders = await execute(text("SELECT count(*) FROM walk_orders WHERE thread_id = :thread"), order)
        assert orders.scalar() == int(end is commit)
        await rollback()
        await (at.check(*steps) if end is commit else at.check_gone(order["thread"]))


def _awaited(call: Any) -> Any:
    async def awaited(*args: Any) -> Any:
        return call(*args)

    return awaited


# --- removal ---


@capability("delete_thread")
async def _(at: Walk) -> None:
    deleted, left = at.thread(), at.thread()
    await at.chat(deleted, 3, large=True)
    steps = await at.chat(left, 2)
    await at.call("delete_thread", deleted)
    await at.call("delete_thread", at.thread())
    await at.check_gone(deleted)
    await at.check(*steps)


@capability("delete_for_runs")
async def _(at: Walk) -> None:
    runs = [uuid.uuid4().hex, uuid.uuid4().hex]
    threads = [at.thread(), at.thread()]
    steps = [await at.chat(thread, 4, large=True, runs=runs) for thread in threads]
    report = await at.call("delete_for_runs", runs[:1])
    assert (report.threads, report.checkpoints, report.writes) == (2, 4, 8)
    for thread, each in zip(threads, steps, strict=True):
        assert await at.ids(thread) == [each[3].checkpoint_id, each[1].checkpoint_id]
        await at.check(each[1], each[3])
        assert (await at.call("get_tuple", each[3].config)).parent_config == each[1].config


@capability("prune")
async def _(at: Walk) -> None:
    threads = [at.thread() for _ in range(3)]
    steps = [await at.chat(thread, 5, large=True) for thread in threads]
    report = await at.call("prune", threads[:2], keep=2)
    assert (report.threads, report.checkpoints, report.writes) == (2, 6, 12)
    for thread, each in zip(threads[:2], steps, strict=False):
        assert await at.ids(thread) == [each[4].checkpoint_id, each[3].checkpoint_id]
        await at.check(each[3], each[4])
    await at.call("prune", threads[1:], strategy="delete")
    await at.check_gone(threads[1])
    await at.check_gone(threads[2])
    await at.check(steps[0][3])


@capability("sweep, dry")
async def _(at: Walk) -> None:
    await _sweep(at, dry_run=True)


@capability("sweep")
async def _(at: Walk) -> None:
    await _sweep(at, dry_run=False)


async def _sweep(at: Walk, *, dry_run: bool) -> None:
    old, mixed, chance = at.thread(), at.thread(), Random(1)
    begun = datetime.now(UTC) - timedelta(days=60)
    ids = [id_at(begun + timedelta(minutes=minute), chance) for minute in range(4)]
    before = [await at.chat(old, 4, ids=ids, large=True), await at.chat(mixed, 4, ids=ids, large=True)]
    before[1] += await at.chat(mixed, 3)
    options = {"older_than": timedelta(days=30), "batch_size": 2}
    promised = await at.call("sweep", **options, dry_run=True)
    assert (promised.threads, promised.checkpoints, promised.writes) == (2, 8, 16)
    await at.check(*before[0])
    if not dry_run:
        assert await at.call("sweep", **options) == promised
        await at.check_gone(old)
        assert await at.ids(mixed) == [step.checkpoint_id for step in before[1][:3:-1]]
        await at.call("sweep", keep_last=2)
        assert await at.ids(mixed) == [step.checkpoint_id for step in before[1][:4:-1]]
    await at.check(*before[1][-2:])
