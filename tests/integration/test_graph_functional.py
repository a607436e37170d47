"""LangGraph's functional API: entrypoints and tasks whose results are kept, so that none of them runs twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.func import entrypoint, task
from langgraph.pregel import Pregel
from langgraph.types import Command, interrupt

THREAD = {"configurable": {"thread_id": "thread"}}


class Essays:
    """A workflow that notes each time one of its tasks runs."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken = False

    def compiled_on(self, saver: BaseCheckpointSaver[str]) -> Pregel:
        @task
        def research(topic: str) -> dict[str, Any]:
            self.ran.append(f"research {topic}")
            return {"topic": topic, "facts": {1, 2}}

        @task
        def write(found: dict[str, Any]) -> str:
            self.ran.append(f"write {found['topic']}")
            if self.broken:
                msg = "out of ink"
                raise RuntimeError(msg)
            return f"{found['topic']} in {len(found['facts'])} facts"

        @entrypoint(checkpointer=saver)
        def essay(topics: list[str], *, previous: list[str] | None = None) -> entrypoint.final[Any, list[str]]:
            found = [part.result() for part in [research(topic) for topic in topics]]
            essays = [write(part).result() for part in found]
            approved = interrupt({"essays": essays, "so far": len(previous or [])})
            return entrypoint.final(value={"approved": approved, "essays": essays}, save=[*(previous or []), *essays])

        return essay


@pytest.fixture
def essays() -> Essays:
    return Essays()


async def test_a_task_that_finished_does_not_run_again(agents: Callable[..., Any], essays: Essays) -> None:
    """An answer replays the entrypoint from its start, with the stored results of its tasks."""
    ours, model = agents(essays.compiled_on)

    for agent in (ours, model):
        essays.ran.clear()
        asked = await agent.invoke(["foxes"], THREAD)
        assert asked["__interrupt__"][0].value == {"essays": ["foxes in 2 facts"], "so far": 0}
        ended = await agent.invoke(Command(resume="yes"), THREAD)
        assert ended == {"approved": "yes", "essays": ["foxes in 2 facts"]}
        assert essays.ran == ["research foxes", "write foxes"]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_what_an_entrypoint_saves_is_there_the_next_time(agents: Callable[..., Any], essays: Essays) -> None:
    """`entrypoint.final(save=...)` is `previous` of the next run on the thread, not of another thread's."""
    ours, model = agents(essays.compiled_on)

    for agent in (ours, model):
        for topic in ("foxes", "owls"):
            await agent.invoke([topic], THREAD)
            await agent.invoke(Command(resume="yes"), THREAD)
        asked = await agent.invoke(["bees"], THREAD)
        assert asked["__interrupt__"][0].value["so far"] == 2
        elsewhere = await agent.invoke(["bees"], {"configurable": {"thread_id": "another"}})
        assert elsewhere["__interrupt__"][0].value["so far"] == 0

    assert await ours.story(THREAD) == await model.story(THREAD)


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_failed_task_is_the_only_one_to_run_again(
    agents: Callable[..., Any], essays: Essays, durability: str
) -> None:
    """What the tasks before it produced is stored when the entrypoint fails."""
    ours, model = agents(essays.compiled_on)

    for agent in (ours, model):
        essays.ran.clear()
        essays.broken = True
        with pytest.raises(RuntimeError, match="out of ink"):
            await agent.invoke(["foxes", "owls"], THREAD, durability=durability)
        assert sorted(essays.ran) == ["research foxes", "research owls", "write foxes"]

        essays.ran.clear()
        essays.broken = False
        asked = await agent.invoke(None, THREAD, durability=durability)
        assert asked["__interrupt__"][0].value["essays"] == ["foxes in 2 facts", "owls in 2 facts"]
        assert essays.ran == ["write foxes", "write owls"]

    assert await ours.story(THREAD) == await model.story(THREAD)
