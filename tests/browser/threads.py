"""Threads to look at: a travel agency's with all that a thread may have, a long one, and one that an attacker wrote."""

from __future__ import annotations

import operator
import time
import uuid
from typing import Annotated, Any, TypedDict

import msgpack
import psycopg
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import _messages_delta_reducer, add_messages
from langgraph.types import Command, Send, interrupt
from psycopg.types.json import Jsonb

from checkpoint_store import PostgresSaver


class Trip(TypedDict, total=False):
    """The state of a trip."""

    messages: Annotated[list[AnyMessage], add_messages]
    budget: int
    offers: Annotated[list[dict[str, Any]], operator.add]
    itinerary: dict[str, Any]
    approved: bool


class Search(TypedDict, total=False):
    """The state of a search for one kind of offer."""

    kind: str
    seen: int
    offers: Annotated[list[dict[str, Any]], operator.add]


OFFERS = {
    "flight": {"kind": "flight", "carrier": "TP 1235", "from": "HAM", "to": "LIS", "price": 214},
    "hotel": {"kind": "hotel", "name": "Casa do Tejo", "nights": 3, "price": 327},
}


def plan(state: Trip) -> dict[str, Any]:
    """Ask for a search of each kind."""
    wanted = {"city": "Lisbon", "nights": 3}
    calls = [{"name": f"search_{kind}", "args": wanted, "id": f"call-{kind}"} for kind in OFFERS]
    text = "I'll look for a flight from Hamburg and a quiet hotel near the river, and come back with a total."
    return {"messages": [AIMessage(text, id="ai-plan", tool_calls=calls)], "budget": 600}


def look(state: Search) -> dict[str, Any]:
    """Count what was looked at."""
    return {"seen": 48 if state["kind"] == "hotel" else 12}


def choose(state: Search) -> dict[str, Any]:
    """Take one."""
    return {"offers": [OFFERS[state["kind"]]]}


def compare(state: Trip) -> dict[str, Any]:
    """Make an itinerary of the offers."""
    total = sum(offer["price"] for offer in state["offers"])
    found = [
        ToolMessage(
            f"{offer['kind']}: {offer['price']} EUR", tool_call_id=f"call-{offer['kind']}", id=f"tool-{offer['kind']}"
        )
        for offer in state["offers"]
    ]
    day = {"morning": "Alfama and the castle", "afternoon": "tram 28 to Estrela", "evening": "dinner at Cais do Sodre"}
    return {"messages": found, "itinerary": {"city": "Lisbon", "total": total, "days": {"Friday": day}}}


def approve(state: Trip) -> dict[str, Any]:
    """Ask a person."""
    answer = interrupt({"question": "Book it?", "total": state["itinerary"]["total"]})
    return {"approved": answer == "yes"}


def book(state: Trip) -> dict[str, Any]:
    """Book what was found, or let it go."""
    if not state["approved"]:
        return {"messages": [AIMessage("I have let both go. Nothing was charged.", id="ai-released")]}
    itinerary = {**state["itinerary"], "reference": "LX-7Q2M"}
    text = "Booked: TP 1235 on Friday at 07:10, three nights at Casa do Tejo, 541 EUR in all.\nHave a good trip!"
    return {"messages": [AIMessage(text, id="ai-booked")], "itinerary": itinerary}


def slowly(node: Any, pause: float) -> Any:
    """Return a node that takes its time."""

    def run(state: Any) -> Any:
        time.sleep(pause * (1 + len(node.__name__) % 3))
        return node(state)

    return run


def trip_graph(saver: PostgresSaver, pause: float) -> Any:
    """Return the agency's graph: two searches side by side, each a subgraph; a question; a booking."""
    search = StateGraph(Search)
    search.add_node("look", slowly(look, pause))
    search.add_node("choose", slowly(choose, pause))
    search.add_edge(START, "look")
    search.add_edge("look", "choose")
    graph = StateGraph(Trip)
    for node in (plan, compare, approve, book):
        graph.add_node(node.__name__, slowly(node, pause))
    graph.add_node("search", search.compile())
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", lambda _: [Send("search", {"kind": kind}) for kind in OFFERS], ["search"])
    graph.add_edge("search", "compare")
    graph.add_edge("compare", "approve")
    graph.add_edge("approve", "book")
    graph.add_edge("book", END)
    return graph.compile(checkpointer=saver)


def travel(saver: PostgresSaver, thread_id: str = "trip-to-lisbon", pause: float = 0) -> None:
    """Store a trip: a plan, a question, the answer no, then yes in its place, and a correction by hand.

    `pause` is about how many seconds a node takes.
    """
    graph = trip_graph(saver, pause)
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}, "metadata": {"user": "ada"}}
    graph.invoke(
        {"messages": [HumanMessage("Three nights in Lisbon in March, please, for 600 EUR.", id="human-1")]}, config
    )
    asked = graph.get_state(config).config
    graph.invoke(Command(resume="no"), config)
    graph.invoke(None, graph.update_state(asked, {"approved": True}, as_node="approve"))
    graph.update_state(config, {"itinerary": {"city": "Lisbon", "total": 541, "invoice": "sent"}}, as_node="book")
    graph.invoke({"messages": [HumanMessage("And a table for two on Friday?", id="human-2")]}, config)


class Notes(TypedDict):
    """A state of delta channels, of which most checkpoints have only what their step added."""

    lines: Annotated[list[str], DeltaChannel(lambda kept, new: sum(new, kept), list, snapshot_frequency=3)]
    left: int


def take_notes(saver: PostgresSaver, thread_id: str = "notes") -> None:
    """Store seven lines in a delta channel."""
    graph = StateGraph(Notes)
    graph.add_node("write", lambda state: {"lines": [f"line {state['left']}"], "left": state["left"] - 1})
    graph.add_edge(START, "write")
    graph.add_conditional_edges("write", lambda state: "write" if state["left"] else END)
    graph.compile(checkpointer=saver).invoke(
        {"left": 7, "lines": ["a title"]}, {"configurable": {"thread_id": thread_id}}
    )


class Chat(TypedDict):
    """A chat on a delta channel, in which messages are replaced and removed."""

    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer, list, snapshot_frequency=100)]


def correct_a_chat(saver: PostgresSaver, thread_id: str = "corrected") -> list[list[str]]:
    """Store a chat, and return the texts at each of its checkpoints, the oldest first."""
    said: list[list[Any]] = [
        [HumanMessage("draft", id="1")],
        [AIMessage("answer", id="2"), HumanMessage("aside", id="3")],
        [HumanMessage("final", id="1"), RemoveMessage(id="3")],
        [AIMessage("bye", id="4")],
    ]
    graph = StateGraph(Chat).add_node("speak", lambda _: {}).add_edge(START, "speak").add_edge("speak", END)
    compiled = graph.compile(checkpointer=saver)
    config: Any = {"configurable": {"thread_id": thread_id}}
    for messages in said:
        compiled.update_state(config, {"messages": messages}, as_node="speak")
    states = [[one.content for one in state.values.get("messages", [])] for state in compiled.get_state_history(config)]
    return states[::-1]


HOSTILE = (
    "</script><script>window.canary = 1</script>",
    "<!--<script>window.canary = 2",
    '<img src=x onerror="window.canary = 3">',
    '"><svg onload="window.canary = 4">',
    "javascript:window.canary=5",
    "<a href='javascript:window.canary=6'>a</a>",
    "</style><style>*{background:url(http://canary.invalid/)}</style>",
    "red;background:url(http://canary.invalid/)",
    "{{records}}{{script}}${window.canary=7}",
    "__proto__",
    "constructor",
    "\u202egnp.exe\u2066",
    "\x1b[2J\x07\u2028\u2029\ufeff",
    "' onmouseover='window.canary=8",
)
"""Strings for each place where a row has text."""

NESTED: Any = "the innermost"
for _ in range(60):
    NESTED = {"deeper": [NESTED]}


def hostile_value(text: str) -> Any:
    """Return a value with a string in each place."""
    return {
        text: [text, text + "\x00", {text: {text: text}}],
        "__proto__": {"polluted": text},
        "object": msgpack.ExtType(0, msgpack.packb([text, text, text])),
        "keywords": msgpack.ExtType(2, msgpack.packb(["os", "system", {text: text, "__proto__": text}])),
        "keys": {1: text, None: text, b"\xff": text},
        "numbers": [2**63, -(2**63), float("nan"), float("inf"), 1.0, 1e308, True, None],
        "long": text * 20_000,
        "nested": NESTED,
    }


def attack(url: str) -> str:
    """Store a thread of which each text is hostile, and return its id."""
    thread_id = "".join(HOSTILE)
    with psycopg.connect(url) as conn:
        parent = None
        for number, text in enumerate(HOSTILE):
            namespace = "" if number % 3 else f"{text}:{text}|{text}"
            checkpoint_id = f"{number:03}{text}"
            document = {
                "v": 4,
                "id": checkpoint_id,
                "channel_values": {text: text, "__proto__": text},
                "channel_versions": {text: "1", "__proto__": "2", f"blob {text}": text, "json": text},
                "versions_seen": {text: {f"branch:to:{text}": text}, "__proto__": {"__proto__": "1"}},
            }
            metadata = {"step": text, "source": text, "parents": {"": text}, text: text, "__proto__": {"polluted": 1}}
            conn.execute(
                "INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint,"
                " metadata) VALUES (%s, %s, %s, %s, %s, %s)",
                (thread_id, namespace, checkpoint_id, parent, Jsonb(document), Jsonb(metadata)),
            )
            # Half of a character that JSON can escape, and nothing can encode.
            half = b'["\\ud800", "\\u0000", "</script>", {"__proto__": {"polluted": 1}}]'
            blobs = [
                (f"blob {text}", text, "msgpack", msgpack.packb(hostile_value(text), strict_types=False)),
                ("json", text, "json", half),
            ]
            for blob in blobs:
                conn.execute(
                    "INSERT INTO checkpoint_blobs VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (thread_id, namespace, *blob),
                )
            conn.execute(
                "INSERT INTO checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type,"
                " blob, task_path) VALUES (%s, %s, %s, %s, 0, %s, %s, %s, %s)",
                (thread_id, namespace, checkpoint_id, text, text, text, text.encode(), f"~__pregel_pull, {text}"),
            )
            parent = checkpoint_id
    return thread_id


def uuid_at(seconds: float, number: int) -> str:
    """Return a checkpoint's id of a time on a day in March."""
    ticks = int((1772445600 + seconds) * 10) * 10**6 + 0x01B21DD213814000
    text = f"{ticks:015x}"
    return f"{text[:8]}-{text[8:12]}-6{text[12:]}-8000-{number:012x}"


def marathon(url: str, turns: int, steps: int = 4, inner: int = 5, thread_id: str = "marathon") -> int:
    """Store a long chat, as a graph would, and return the number of its checkpoints.

    A turn is `steps` checkpoints, a subgraph of `inner` within the second of them, and at every tenth turn a fork.
    """
    checkpoints, blobs, writes, items = [], [], [], []
    last, seconds, number = None, 0.0, 0

    def add(
        namespace: str, parent: str | None, step: int, source: str, parents: dict[str, str], **versions: str
    ) -> str:
        nonlocal number, seconds
        number, seconds = number + 1, seconds + 0.7
        checkpoint_id = uuid_at(seconds, number)
        node = "answer" if step % 2 else "think"
        seen = {node: {f"branch:to:{node}": f"{number:032}.1"}}
        document = {
            "v": 4,
            "id": checkpoint_id,
            "channel_values": {"turn": number},
            "channel_versions": {"turn": f"{number:032}.1", **versions},
            "versions_seen": seen,
        }
        metadata = {"step": step, "source": source, "parents": parents}
        checkpoints.append((thread_id, namespace, checkpoint_id, parent, Jsonb(document), Jsonb(metadata)))
        content = msgpack.packb(f"what {node} has said at {number}")
        writes.append((thread_id, namespace, checkpoint_id, f"task-{number}", 0, "turn", "msgpack", content, ""))
        return checkpoint_id

    for turn in range(turns):
        name = "langchain_core.messages.ai"
        said = {"content": f"Answer {turn}: " + f"all is well with {turn * 7919 % 1000}. " * 8, "id": f"message-{turn}"}
        items.append(msgpack.packb(msgpack.ExtType(5, msgpack.packb([name, "AIMessage", said, "model_validate_json"]))))
        version = f"{turn:032}.2"
        packed = b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)
        blobs.append((thread_id, "", "messages", version, "msgpack", packed))
        for step in range(steps):
            last = add("", last, turn * steps + step, "loop" if step else "input", {}, messages=version)
            if step == 1:
                within, at, parent = f"research:{uuid.UUID(int=turn)}", {"": last}, None
                for place in range(inner):
                    parent = add(within, parent, place - 1, "loop" if place else "input", at)
        if turn % 10 == 9:
            add("", add("", last, -1, "fork", {}, messages=version), 0, "loop", {}, messages=version)
    with psycopg.connect(url) as conn:
        columns = "(thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)"
        copy(conn, f"checkpoints {columns}", checkpoints)
        copy(conn, "checkpoint_blobs", blobs)
        columns = "(thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)"
        copy(conn, f"checkpoint_writes {columns}", writes)
        conn.execute("ANALYZE")
    return number


def copy(conn: psycopg.Connection[Any], table: str, rows: list[tuple[Any, ...]]) -> None:
    """Copy rows into a table."""
    with conn.cursor().copy(f"COPY {table} FROM STDIN") as target:
        for row in rows:
            target.write_row(row)


def tangle(url: str, thread_id: str = "tangle") -> int:
    """Store checkpoints whose parents form cycles, or are not there, and return how many."""
    inside = {"parents": {"": "n"}}
    rows: list[tuple[str, str, str | None, dict[str, Any]]] = [
        *[("", one, parent, {}) for one, parent in (("a", "b"), ("b", "a"), ("s", "s"), ("m", None), ("n", "m"))],
        *[("", one, parent, {}) for one, parent in (("c1", "c3"), ("c2", "c1"), ("c3", "c2"), ("lost", "nowhere"))],
        *[("", f"fork {number:03}", "m", {}) for number in range(300)],
        ("n:1", "x", None, inside),
        ("n:1", "y", "x", inside),
        ("n:1|k:2", "p", None, {"parents": {"": "n", "n:1": "y"}}),
        ("q", "w", None, {"parents": {"": "nowhere"}}),
    ]
    with psycopg.connect(url) as conn:
        columns = "(thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)"
        found = [(thread_id, *keys, Jsonb({"channel_values": {"a": 1}}), Jsonb(data)) for *keys, data in rows]
        copy(conn, f"checkpoints {columns}", found)
    return len(rows)
