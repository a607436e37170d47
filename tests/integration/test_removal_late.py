"""What a run that is still going on brings back of what was removed, and what prevents it, as the docs have it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import Conflict
from checkpoint_store.serde import pages
from tests.integration.histories import unreachable

THREAD: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


async def step(saver: AsyncPostgresSaver, after: Any, versions: dict[str, str], *changed: str) -> Any:
    """Store a checkpoint of values that are blobs, some of which it takes over from the one before it."""
    checkpoint: Any = {**empty_checkpoint(), "id": str(uuid6()), "channel_versions": versions}
    checkpoint["channel_values"] = {channel: [f"{channel} {version}"] * 1_000 for channel, version in versions.items()}
    new_versions: Any = {channel: versions[channel] for channel in changed}
    return await saver.aput(after, checkpoint, {"source": "loop", "step": 1, "parents": {}}, new_versions)


@pytest.mark.parametrize("share_pages", [False, True])
async def test_a_late_checkpoint_brings_a_deleted_thread_back_with_what_it_changed(
    engine: AsyncEngine, url: str, share_pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with that alone: no value that was deleted."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 0)
    saver = AsyncPostgresSaver(engine, share_pages=share_pages)
    first = await step(saver, THREAD, {"kept": "1", "changed": "1"}, "kept", "changed")
    await saver.adelete_thread("t")

    late = await step(saver, first, {"kept": "1", "changed": "2"}, "changed")

    found = await saver.aget_tuple(THREAD)
    assert found is not None
    assert found.config["configurable"]["checkpoint_id"] == late["configurable"]["checkpoint_id"]
    assert found.checkpoint["channel_values"] == {"changed": ["changed 2"] * 1_000}
    assert unreachable(url) == {}
    await saver.adelete_thread("t")
    assert await saver.aget_tuple(THREAD) is None


async def test_late_writes_bring_nothing_back(engine: AsyncEngine, url: str) -> None:
    """They are stored, but no thread and no checkpoint is listed for them, and deleting again removes them."""
    saver = AsyncPostgresSaver(engine)
    first = await step(saver, THREAD, {"kept": "1"}, "kept")
    await saver.adelete_thread("t")

    await saver.aput_writes(first, [("kept", "late")], "task")

    assert unreachable(url) == {"writes": 1}
    assert await saver.aget_tuple(first) is None
    assert [one async for one in saver.alist(None)] == []
    assert [one async for one in saver.alist_threads()] == []
    await saver.adelete_thread("t")
    assert unreachable(url) == {}


async def test_a_saver_that_refuses_forks_brings_no_thread_back(engine: AsyncEngine, url: str) -> None:
    """What continues a checkpoint that is gone is refused; who begins anew is not."""
    saver = AsyncPostgresSaver(engine, refuse_forks=True)
    first = await step(saver, THREAD, {"kept": "1"}, "kept")
    await saver.adelete_thread("t")

    with pytest.raises(Conflict):
        await step(saver, first, {"kept": "2"}, "kept")

    assert [one async for one in saver.alist(None)] == []
    assert unreachable(url) == {}
    await step(saver, THREAD, {"kept": "3"}, "kept")
    assert len([one async for one in saver.alist(None)]) == 1


async def test_a_deletion_that_takes_the_lock_comes_after_the_run(engine: AsyncEngine, url: str) -> None:
    """Whatever the run stores until then goes with the thread; who only removes waits for no run."""
    saver = AsyncPostgresSaver(engine)
    first = await step(saver, THREAD, {"kept": "1"}, "kept")

    async def delete() -> None:
        async with saver.thread_lock("t"):
            await saver.adelete_thread("t")

    async with saver.thread_lock("t"):
        deletion = asyncio.ensure_future(delete())
        second = await step(saver, first, {"kept": "2"}, "kept")
        assert (await saver.aprune(["t"])).checkpoints == 1
        assert await saver.aget_tuple(second) is not None
    await deletion

    assert [one async for one in saver.alist(None)] == []
    assert unreachable(url) == {}
