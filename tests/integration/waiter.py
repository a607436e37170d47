"""A service that keeps its agent's state in PostgreSQL; `python -m waiter stock URL` is a pod of it.

Its answers are texts, so that processes can compare them to the last type.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import add
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command, Send, interrupt
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from checkpoint_store import PostgresSaver

Saver = BaseCheckpointSaver[Any]
SERDE = JsonPlusSerializer(allowed_msgpack_modules=[("waiter", "Order")])


@dataclass
class Order:
    dish: str
    at: datetime


def extend(lines: list[Any], added: Any) -> list[Any]:
    return [*lines, *(line for part in added for line in part)]


class Cellar(TypedDict):
    orders: Annotated[list[Order], add]
    log: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=4)]


class Table(MessagesState):
    orders: Annotated[list[Order], add]
    bill: int
    tip: float
    note: str | None
    log: Annotated[list[str], DeltaChannel(extend, list, snapshot_frequency=4)]
    menu: list[str]


def waiting(saver: Saver) -> Pregel:
    """Cooks while the guest is asked for a wine, in a subgraph; makes out the bill; serves. The menu is long."""

    def ask(state: Cellar) -> Any:
        wine = interrupt({"question": "which wine?", "orders": len(state["orders"])})
        return {"orders": [Order(wine, datetime(2026, 11, 24, tzinfo=UTC))], "log": [f"wine: {wine}"]}

    def cook(state: Table) -> Any:
        first = len(state["orders"])
        return {"log": ["cooked"], "menu": [f"{number} {'dish ' * 20}" for number in range(first, first + 200)]}

    def reckon(state: Table) -> Any:
        bill = sum(len(order.dish) for order in state["orders"])
        reply = AIMessage(f"That makes {bill}.", id=f"reply {len(state['messages'])}")
        note = None if bill % 2 else "even \U0001f98a"
        return {"messages": [reply], "bill": bill, "tip": bill / 8, "note": note, "log": ["reckoned"]}

    cellar = StateGraph(Cellar)
    cellar.add_node("look", lambda _: {"orders": [Order("bread", datetime(2026, 1, 1))], "log": ["looked"]})
    cellar.add_node("ask", ask)
    cellar.add_edge(START, "look")
    cellar.add_edge("look", "ask")

    graph = StateGraph(Table)
    graph.add_node("cellar", cellar.compile())
    graph.add_node("cook", cook)
    graph.add_node("reckon", reckon)
    graph.add_node("serve", lambda number: {"log": [f"served {number}"]})
    graph.add_edge(START, "cellar")
    graph.add_edge(START, "cook")
    graph.add_edge(["cellar", "cook"], "reckon")
    graph.add_conditional_edges("reckon", lambda _: [Send("serve", number) for number in range(2)], ["serve"])
    return graph.compile(checkpointer=saver)


def turn(saver: Saver, thread_id: str, what: str, said: str = "") -> str:
    """One turn of a guest. Returns what the guest is told, and all that the graph then knows."""
    graph: Any = waiting(saver)
    config: Any = {"configurable": {"thread_id": thread_id}}
    if what == "go back":  # to before the newest bill, and on from there by another branch
        before = next(found for found in graph.get_state_history(config) if found.next == ("reckon",))
        graph.invoke(None, graph.update_state(before.config, {"log": [said]}, as_node="cook"))
    elif what != "look":
        graph.invoke(given(what, said), config)
    return seen(graph.get_state(config, subgraphs=True))


async def async_turn(saver: Saver, thread_id: str, what: str, said: str = "") -> str:
    """The same through LangGraph's async methods."""
    graph: Any = waiting(saver)
    config: Any = {"configurable": {"thread_id": thread_id}}
    if what == "go back":
        before = await anext(found async for found in graph.aget_state_history(config) if found.next == ("reckon",))
        await graph.ainvoke(None, await graph.aupdate_state(before.config, {"log": [said]}, as_node="cook"))
    elif what != "look":
        await graph.ainvoke(given(what, said), config)
    return seen(await graph.aget_state(config, subgraphs=True))


def given(what: str, said: str) -> Any:
    """What a guest says, as the graph takes it."""
    if what == "answer":
        return Command(resume=said)
    return {"messages": [HumanMessage(said, id=said)], "orders": [Order(said, datetime(2026, 2, 2))], "log": [said]}


def seen(state: Any) -> str:
    inner = [task.state.values for task in state.tasks if task.state is not None]
    return told([state.values, state.next, [asked.value for asked in state.interrupts], inner])


def history(saver: Saver, thread_id: str) -> list[str]:
    """All checkpoints of a thread with all that belongs to them."""
    config: Any = {"configurable": {"thread_id": thread_id}}
    return sorted(told_whole(found) for found in saver.list(config))


def told_whole(found: CheckpointTuple) -> str:
    return told([found.config, found.parent_config, found.checkpoint, found.metadata, found.pending_writes])


def told(value: Any) -> str:
    """A value as a text that has all its types in it; dicts and sets have no order."""
    kind = type(value).__name__
    if isinstance(value, dict):
        return f"{kind}({', '.join(sorted(f'{told(key)}: {told(item)}' for key, item in value.items()))})"
    if isinstance(value, (set, frozenset)):
        return f"{kind}({', '.join(sorted(map(told, value)))})"
    if isinstance(value, (list, tuple)):
        return f"{kind}({', '.join(map(told, value))})"
    return f"{kind}({told(vars(value)) if hasattr(value, '__dict__') else repr(value)})"


@contextmanager
def saver_of(kind: str, url: str) -> Iterator[Any]:
    """The saver of a pod: `stock`, `ours`, or `sharing`, which is ours with shared pages."""
    if kind == "stock":
        options = {"autocommit": True, "row_factory": dict_row, "prepare_threshold": 0}
        with ConnectionPool(url, min_size=1, max_size=4, kwargs=options, open=True) as pool:
            yield StockSaver(pool, serde=SERDE)
    else:
        share_pages = True if kind == "sharing" else None
        with PostgresSaver.from_conn_string(url, serde=SERDE, share_pages=share_pages) as saver:
            yield saver


def call(saver: Saver, method: str, *args: Any) -> Any:
    """Answer one call; an error is an answer too."""
    try:
        return (turn if method == "turn" else history)(saver, *args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def serve(kind: str, url: str) -> None:
    """A pod: sets up when it starts, then answers line by line."""
    with saver_of(kind, url) as saver:
        saver.setup()
        print("ready", flush=True)  # noqa: T201
        for line in sys.stdin:
            print(json.dumps(call(saver, *json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    import waiter  # under the name that stored objects have

    waiter.serve(*sys.argv[1:])
