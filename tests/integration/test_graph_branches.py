"""Branches that run at once: what finished is kept when another one fails, and results come in a stable order."""

from __future__ import annotations

from collections.abc import Callable
from operator import add
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Send

from checkpoint_store import PostgresSaver

THREAD = {"configurable": {"thread_id": "thread"}}

# Side by side it would be a race which branches LangGraph lets finish when another one fails.
ONE_BY_ONE = {**THREAD, "max_concurrency": 1}


class Results(TypedDict):
    jobs: list[int]
    results: Annotated[list[str], add]


class Job(TypedDict):
    number: int


class Workshop:
    """Workers that note each time they run, of which one may be broken."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.broken: int | None = None

    def opens(self, *, broken: int | None) -> None:
        """Start a shift, in which one worker is broken, or none."""
        self.ran.clear()
        self.broken = broken

    def work(self, number: int) -> dict[str, list[str]]:
        self.ran.append(number)
        if number == self.broken:
            msg = f"worker {number} is broken"
            raise RuntimeError(msg)
        return {"results": [f"result {number}"]}

    def branches(self, saver: BaseCheckpointSaver[str]) -> Pregel:
        """Three nodes side by side, and one that joins them."""
        graph = StateGraph(Results)
        for number in (1, 2, 3):
            graph.add_node(f"worker {number}", lambda _, number=number: self.work(number))
            graph.add_edge(START, f"worker {number}")
            graph.add_edge(f"worker {number}", "join")
        graph.add_node("join", lambda state: {"results": [f"{len(state['results'])} joined"]})
        return graph.compile(checkpointer=saver)

    def map_reduce(self, saver: BaseCheckpointSaver[str]) -> Pregel:
        """One `Send` for each job, last job first, and a node that reduces their results."""
        graph = StateGraph(Results)
        graph.add_node("plan", lambda state: {"jobs": sorted(state["jobs"], reverse=True)})
        graph.add_node("work", lambda job: self.work(job["number"]), input_schema=Job)
        graph.add_node("reduce", lambda state: {"results": [" + ".join(state["results"])]})
        graph.add_edge(START, "plan")
        graph.add_conditional_edges(
            "plan", lambda state: [Send("work", {"number": n}) for n in state["jobs"]], ["work"]
        )
        graph.add_edge("work", "reduce")
        return graph.compile(checkpointer=saver)


@pytest.fixture
def workshop() -> Workshop:
    return Workshop()


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_a_branch_that_finished_does_not_run_again(
    agents: Callable[..., Any], workshop: Workshop, durability: str
) -> None:
    """The last of three branches fails: what the others produced is stored, and resuming runs the failed one only."""
    ours, model = agents(workshop.branches)

    for agent in (ours, model):
        workshop.opens(broken=3)
        with pytest.raises(RuntimeError, match="worker 3 is broken"):
            await agent.invoke({"jobs": []}, ONE_BY_ONE, durability=durability)
        tasks = (await agent.state(THREAD)).tasks
        assert [task.result for task in tasks] == [{"results": ["result 1"]}, {"results": ["result 2"]}, None]
        assert tasks[2].error == "RuntimeError('worker 3 is broken')"

        workshop.opens(broken=None)
        ended = await agent.invoke(None, THREAD, durability=durability)
        assert ended["results"] == ["result 1", "result 2", "result 3", "3 joined"]
        assert workshop.ran == [3]

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_failed_step_leaves_results_and_error_as_pending_writes(
    agents: Callable[..., Any], workshop: Workshop, sync_saver: PostgresSaver
) -> None:
    """In the order in which LangGraph applies them, with the error of the branch that failed."""
    ours, _ = agents(workshop.branches)
    workshop.opens(broken=3)

    with pytest.raises(RuntimeError, match="worker 3 is broken"):
        await ours.invoke({"jobs": []}, ONE_BY_ONE)

    pending = sync_saver.get_tuple(THREAD).pending_writes
    assert [(channel, value) for _, channel, value in pending if channel != "branch:to:join"] == [
        ("results", ["result 1"]),
        ("results", ["result 2"]),
        ("__error__", "RuntimeError('worker 3 is broken')"),
    ]


async def test_a_map_over_many_jobs_reduces_in_their_order(agents: Callable[..., Any], workshop: Workshop) -> None:
    """Thirty `Send`s: each is stored and run once, and the reducer sees their results in the order of sending."""
    ours, model = agents(workshop.map_reduce)
    jobs = list(range(30))

    for agent in (ours, model):
        workshop.opens(broken=None)
        ended = await agent.invoke({"jobs": jobs}, THREAD)
        assert sorted(workshop.ran) == jobs
        assert ended["results"][-1] == " + ".join(f"result {number}" for number in reversed(jobs))

    assert await ours.story(THREAD) == await model.story(THREAD)


async def test_a_map_with_a_broken_job_resumes_with_that_job_alone(
    agents: Callable[..., Any], workshop: Workshop
) -> None:
    """Of many `Send`s only the one without a stored result runs again, and its result goes in its place."""
    ours, model = agents(workshop.map_reduce)

    for agent in (ours, model):
        workshop.opens(broken=0)
        with pytest.raises(RuntimeError, match="worker 0 is broken"):
            await agent.invoke({"jobs": list(range(12))}, ONE_BY_ONE)

        workshop.opens(broken=None)
        ended = await agent.invoke(None, THREAD)
        assert ended["results"][:12] == [f"result {number}" for number in reversed(range(12))]
        assert workshop.ran == [0]

    assert await ours.story(THREAD) == await model.story(THREAD)
