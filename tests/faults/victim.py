"""A process that runs a graph, says what was acknowledged to it, and is killed: python -m tests.faults.victim.

Imported once, it forks a child for every line of input: database URL, thread and kind, as a JSON array. The child's
process id, and what it has to say, come out as lines of JSON. An empty array only comes back.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from operator import add
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.pregel import Pregel

from checkpoint_store import AsyncPostgresSaver, PostgresSaver

ROUNDS = 4
KINDS = ("sync", "async", "sync pipeline", "async pipeline")


class Work(TypedDict):
    """What a run has done: large enough to be cut into pages."""

    done: Annotated[list[str], add]


def graph_on(saver: Any) -> Pregel:
    """Rounds of a plan, three tasks at once, and a look at what came of them."""

    def step(name: str) -> Any:
        return lambda state: {"done": [f"{name} after {len(state['done'])} " + name * 800]}

    graph = StateGraph(Work)
    workers = ("red", "green", "blue")
    for name in ("plan", *workers, "look"):
        graph.add_node(name, step(name))
    graph.add_edge(START, "plan")
    for worker in workers:
        graph.add_edge("plan", worker)
    graph.add_edge(list(workers), "look")
    graph.add_conditional_edges("look", lambda state: "plan" if len(state["done"]) < 5 * ROUNDS else END)
    return graph.compile(checkpointer=saver)


def expected() -> list[str]:
    """What a run that nobody has killed has done."""
    done: list[str] = []
    for _ in range(ROUNDS):
        done.append(f"plan after {len(done)} " + "plan" * 800)
        done += [f"{name} after {len(done)} " + name * 800 for name in sorted(("red", "green", "blue"))]
        done.append(f"look after {len(done)} " + "look" * 800)
    return done


def digest_of(values: dict[str, Any]) -> str:
    """A short name for a checkpoint's values, sets among them."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=sorted).encode()).hexdigest()[:16]


def say(*words: Any) -> None:
    """Say something, at once: what is killed next has said it."""
    os.write(1, (json.dumps(words) + "\n").encode())


class Reporting(PostgresSaver):
    """Says what was acknowledged."""

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        digest = digest_of(checkpoint["channel_values"])  # before LangGraph goes on working with it
        stored = super().put(config, checkpoint, metadata, new_versions)
        say("put", stored["configurable"]["checkpoint_id"], digest)
        return stored

    def put_writes(self, config: Any, writes: Sequence[Any], task_id: str, task_path: str = "") -> None:
        super().put_writes(config, writes, task_id, task_path)
        say("writes", config["configurable"]["checkpoint_id"], task_id, len(writes))


class AsyncReporting(AsyncPostgresSaver):
    """The same in a coroutine."""

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        digest = digest_of(checkpoint["channel_values"])
        stored = await super().aput(config, checkpoint, metadata, new_versions)
        say("put", stored["configurable"]["checkpoint_id"], digest)
        return stored

    async def aput_writes(self, config: Any, writes: Sequence[Any], task_id: str, task_path: str = "") -> None:
        await super().aput_writes(config, writes, task_id, task_path)
        say("writes", config["configurable"]["checkpoint_id"], task_id, len(writes))


def run(url: str, thread_id: str, kind: str) -> None:
    """Run the graph from its beginning."""
    config: Any = {"configurable": {"thread_id": thread_id}, "recursion_limit": 100}
    options: dict[str, Any] = {"pipeline": "pipeline" in kind, "share_pages": "pipeline" in kind}

    async def arun() -> None:
        async with AsyncReporting.from_conn_string(url, **options) as saver:
            await graph_on(saver).ainvoke({"done": []}, config, durability="sync")

    if kind.startswith("async"):
        asyncio.run(arun())
    else:
        with Reporting.from_conn_string(url, **options) as saver:
            graph_on(saver).invoke({"done": []}, config, durability="sync")
    say("end")


def main() -> None:
    """Fork a child for each line, until the input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        if not order:
            say("echo")
        elif pid := os.fork():
            say("pid", pid)
        else:
            try:
                run(*order)
            finally:
                os._exit(0)


if __name__ == "__main__":
    main()
