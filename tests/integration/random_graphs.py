"""Random graphs whose nodes are functions of the state and a seed alone: drawn and built."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import add
from typing import Annotated, Any, Protocol, TypedDict

from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.channels import EphemeralValue, LastValueAfterFinish, Topic, UntrackedValue
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, _messages_delta_reducer, add_messages
from langgraph.types import Command, Overwrite, RetryPolicy, Send, interrupt

Draw = random.Random


class Refusal(Exception):
    """What a node of a program raises."""


class Scheduling(Protocol):
    """What nodes have beside the state."""

    seed: str

    def fail(self, name: str, fails: int) -> None:
        """Raise the first times that a node is tried."""

    def note(self, what: str) -> None:
        """Take note of what has happened, for the table of what is covered."""


# --- values ---

TEXTS = ["", "text", "a\x00b", "fox \U0001f98a", "\u0436" * 30, "null", "1"]


def scalar(draw: Draw) -> Any:
    numbers = [0, -1, 7, 2**53 + 1, -(2**63), 1.5, -0.0, 1e16, 0.1, float("inf")]
    return draw.choice([None, None, True, False, *numbers, *TEXTS])


def item(draw: Draw) -> Any:
    """An element of a list."""
    kinds = [scalar, lambda _: draw.randbytes(9), lambda _: {"n": draw.randrange(99), "s": scalar(draw)}]
    return draw.choice([*kinds, lambda _: [scalar(draw), (1, 2)], lambda _: {draw.randrange(9)}])(draw)


def several(draw: Draw, most: int = 3) -> list[Any]:
    """A list, now and then of more than 16 kB, which is cut into pages."""
    if draw.random() < 0.07:
        return [f"{draw.randrange(10**9):0100}" if draw.random() < 0.9 else item(draw) for _ in range(170)]
    return [item(draw) for _ in range(draw.randint(0, most))]


def message(draw: Draw, state: Mapping[str, Any], channel: str) -> Any:
    """A new message, another one in the place of an earlier one, or the removal of one."""
    known = [each.id for each in state.get(channel) or []]
    if known and draw.random() < 0.2:
        return RemoveMessage(id=REMOVE_ALL_MESSAGES if draw.random() < 0.1 else draw.choice(known))
    identity = f"m{draw.randrange(30)}"
    content = draw.choice(TEXTS) * (300 if draw.random() < 0.1 else 1)
    if draw.random() < 0.5:
        return HumanMessage([{"type": "text", "text": content}] if draw.random() < 0.3 else content, id=identity)
    calls = [{"name": "tool", "args": {"n": draw.randrange(9)}, "id": f"call-{identity}"}]
    return AIMessage(content, id=identity, tool_calls=calls if draw.random() < 0.4 else [])


def window(lines: list[Any], change: Any) -> list[Any]:
    """A reducer of lists that grow, are trimmed at either end, changed in the middle, and set back."""
    if not (isinstance(change, dict) and "do" in change):
        return [*lines, *change]
    count, values = change["n"], change["values"]
    return {
        "grow": lambda: [*lines, *values],
        "trim": lambda: lines[count:],
        "revert": lambda: lines[: len(lines) - count],
        "insert": lambda: [*lines[:count], *values, *lines[count:]],
        "replace": lambda: values,
    }[change["do"]]()


def merge(left: dict[Any, Any], right: Any) -> dict[Any, Any]:
    return {**left, **right}


def extend(lines: list[Any], added: Sequence[list[Any]]) -> list[Any]:
    return [*lines, *(line for part in added for line in part)]


def unite(files: dict[str, Any], changed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: text for part in (files, *changed) for name, text in part.items()}


ACCUMULATES = 3
KINDS: dict[str, Callable[[int], Any]] = {
    "scalar": lambda _: Any,
    "list": lambda _: Annotated[list, add],
    "window": lambda _: Annotated[list, window],
    "dict": lambda _: Annotated[dict, merge],
    "messages": lambda _: Annotated[list, add_messages],
    "delta list": lambda often: Annotated[list, DeltaChannel(extend, list, snapshot_frequency=often)],
    "delta dict": lambda often: Annotated[dict, DeltaChannel(unite, dict, snapshot_frequency=often)],
    "delta messages": lambda often: Annotated[
        list, DeltaChannel(_messages_delta_reducer, list, snapshot_frequency=often)
    ],
    "ephemeral": lambda _: Annotated[Any, EphemeralValue(Any, guard=False)],
    "untracked": lambda _: Annotated[Any, UntrackedValue(Any, guard=False)],
    "after finish": lambda _: Annotated[Any, LastValueAfterFinish(Any)],
    "topic": lambda often: Annotated[list, Topic(Any, accumulate=often > ACCUMULATES)],
}
LATER = {"list": "delta list", "messages": "delta messages", "dict": "delta dict"}
"""What another deployment makes of a channel."""
ONE_WRITER = {"scalar", "after finish"}


def value_for(draw: Draw, kind: str, channel: str, state: Mapping[str, Any]) -> Any:
    """What a node writes to a channel."""
    if kind == "scalar":
        return scalar(draw) if draw.random() < 0.7 else draw.choice([item, several])(draw)
    if kind.endswith("list"):
        return Overwrite(several(draw)) if draw.random() < 0.05 else several(draw)
    if kind == "window":
        change = draw.choices(["grow", "trim", "revert", "insert", "replace"], [5, 1, 1, 1, 1])[0]
        return {"do": change, "n": draw.randint(0, 40), "values": several(draw)}
    if kind.endswith("dict"):
        names = [f"file {draw.randrange(5)}", *(["\u043a", ""] if draw.random() < 0.2 else [])]
        return {name: draw.choice([item, several])(draw) for name in names}
    if kind.endswith("messages"):
        return [message(draw, state, channel) for _ in range(draw.randint(1, 2))]
    return item(draw)


# --- graphs ---


@dataclass(frozen=True)
class Node:
    """A node: it asks, fails, and writes to its channels, in that order; or it is a graph."""

    name: str
    channels: tuple[str, ...] = ()
    asks: int = 0
    fails: int = 0
    is_retried: bool = False
    is_handled: bool = False
    is_deferred: bool = False
    goes: str = "on"
    """How it goes on: by edges, by a Command, by a Command to the graph's caller, or by Sends to some workers."""
    inner: Shape | None = None
    is_stateful: bool = False
    is_called: bool = False
    """Whether the graph is called by a function, and has no channels of its caller's."""

    @property
    def may_fail(self) -> bool:
        inner = [node for layer in self.inner.layers for node in layer] if self.inner else []
        return self.fails > 0 or any(node.may_fail for node in inner)


@dataclass(frozen=True)
class Shape:
    """A graph: layers of nodes that run in parallel, workers that the nodes send to, and a loop around it all."""

    name: str
    channels: dict[str, tuple[str, int]]
    layers: tuple[tuple[Node, ...], ...]
    joins: bool = False
    stops_before: tuple[str, ...] = ()
    stops_after: tuple[str, ...] = ()

    @property
    def nodes(self) -> list[Node]:
        return [node for layer in self.layers for node in layer]

    @property
    def changes_in_place(self) -> bool:
        """Whether LangGraph changes what is being stored: the values of joins, and of topics that accumulate.

        What is stored of them then, unless each step waits for it, is a matter of pace, whatever the saver.
        """
        accumulates = any(kind == "topic" and often > ACCUMULATES for kind, often in self.channels.values())
        return self.joins or accumulates or any(node.inner.changes_in_place for node in self.nodes if node.inner)

    @property
    def features(self) -> set[str]:
        """What it has, and its subgraphs have, for the table of what is covered."""
        found = {f"channel: {kind}" for kind, _ in self.channels.values()}
        found |= {"graph: joins"} if self.joins else set()
        found |= {"graph: stops before or after a node"} if self.stops_before or self.stops_after else set()
        found |= {"graph: parallel nodes"} if any(len(layer) > 1 for layer in self.layers) else set()
        for node in self.nodes:
            has = {
                f"goes {node.goes}": True,
                "asks": node.asks == 1,
                "asks twice": node.asks == 2,
                "fails": node.fails,
                "is retried": node.is_retried,
                "has an error handler": node.is_handled,
                "is deferred": node.is_deferred,
                "is a graph that keeps its state": node.is_stateful and node.inner,
                "is a graph that shares channels": not node.is_called and node.inner,
                "calls a graph": node.is_called,
            }
            found |= {f"node: {name}" for name, is_so in has.items() if is_so}
            found |= {f"in a subgraph, {feature}" for feature in node.inner.features} if node.inner else set()
        return found


def draw_shape(draw: Draw, depth: int = 0, shared: Mapping[str, tuple[str, int]] | None = None) -> Shape:
    """A random graph; one within another has some of the other's channels."""
    name = "root" if depth == 0 else f"{draw.choice(['inner', 'part'])}{depth}"
    names = [f"{kind.replace(' ', '_')}{depth}{number}" for number in (0, 1) for kind in KINDS]
    names = [f'it\'s "{one}", \u0436' if draw.random() < 0.05 else one for one in names]
    kinds = [kind for _ in (0, 1) for kind in KINDS]
    chosen = draw.sample(range(len(names)), draw.randint(3, 7) if depth == 0 else 2)
    channels = {names[one]: (kinds[one], draw.choice([1, 2, 3, 5, 50])) for one in sorted(chosen)}
    channels |= {one: shared[one] for one in draw.sample(sorted(shared), len(shared) // 2)} if shared else {}
    channels |= {"fuel": ("scalar", 1), "log" if depth == 0 else f"log{depth}": ("list", 1)}
    layers = []
    for number in range(draw.randint(1, 3) if depth == 0 else draw.randint(1, 2)):
        size = draw.choice([1, 1, 2, 3]) if depth == 0 else draw.choice([1, 1, 2])
        layers.append(draw_layer(draw, f"{'abc'[number]}{depth or ''}", size, depth, channels))
    nodes = [node.name for layer in layers for node in layer]
    stops = [(draw.choice(nodes),) if draw.random() < 0.08 and depth == 0 else () for _ in range(2)]
    return Shape(name, channels, tuple(layers), draw.random() < 0.2, *stops)


def draw_layer(draw: Draw, name: str, size: int, depth: int, channels: dict[str, tuple[str, int]]) -> tuple[Node, ...]:
    """Nodes of one step: each scalar has one writer; the one that fails is the last, so that others have finished."""
    writable = [channel for channel in channels if channel != "fuel"]
    taken: set[str] = set()
    nodes = []
    has_graph = False
    for number in range(size):
        mine = [one for one in draw.sample(writable, draw.randint(1, min(4, len(writable)))) if one not in taken]
        if draw.random() > 0.02:  # otherwise two may write to one scalar, which LangGraph refuses
            taken |= {one for one in mine if channels[one][0] in ONE_WRITER}
        node = Node(f"{name}{number}", tuple(mine), asks=draw.choices([0, 1, 2], [7, 2, 1])[0])
        if depth < 2 and draw.random() < (0.25 if depth == 0 else 0.1):
            can_share = {"scalar", "dict", "messages", "delta dict", "delta messages"}
            shared = {one: kind for one, kind in channels.items() if kind[0] in can_share and one in [*mine, "fuel"]}
            called = draw.random() < 0.4
            inner = draw_shape(draw, depth + 1, None if called else shared)
            node = replace(node, asks=0, inner=inner, is_called=called, is_stateful=draw.random() < 0.5 and size == 1)
        elif size == 1 and draw.random() < 0.4:
            ways = ["send", "command send", "command", *(["to its caller"] if depth else [])]
            node = replace(node, goes=draw.choice(ways))
        has_graph |= node.inner is not None
        nodes.append(node)
    if draw.random() < 0.3 and (not has_graph or size == 1) and nodes[-1].inner is None:
        retried, handled = draw.choice([(False, False), (False, False), (True, False), (False, True)])
        nodes[-1] = replace(nodes[-1], fails=draw.randint(1, 2), is_retried=retried, is_handled=handled)
    if size > 1 and any(node.may_fail for node in nodes):  # a graph that fails has no other beside it
        nodes = [replace(node, inner=None) if node.inner and node.may_fail else node for node in nodes]
    if size == 1 and draw.random() < 0.15:
        nodes[0] = replace(nodes[0], is_deferred=True)
    return tuple(nodes)


def draw_older(draw: Draw, shape: Shape) -> Shape:
    """The graph as another deployment has it: some channels are missing, some of another kind, nodes are missing."""
    kept = {one: kind for one, kind in shape.channels.items() if one in {"fuel", "log"} or draw.random() < 0.6}
    for channel, (kind, often) in kept.items():
        if kind in LATER and channel != "log" and draw.random() < 0.4:
            kept[channel] = (LATER[kind], often)
    layers = []
    for layer in shape.layers:
        left = [node for node in layer if len(layer) == 1 or draw.random() < 0.8] or [layer[0]]
        layers.append(tuple(replace(node, channels=tuple(c for c in node.channels if c in kept)) for node in left))
    return replace(shape, channels=kept, layers=tuple(layers), stops_before=(), stops_after=())


def noted(state: Any) -> int:
    """A number that tells a state from another: what a node does depends on it."""
    sizes = {name: len(value) if hasattr(value, "__len__") else repr(value) for name, value in state.items()}
    return zlib.crc32(repr(sizes).encode())


def build(shape: Shape, saver: Any, world: Scheduling, *, blocking: bool) -> Any:
    """Compile a graph whose nodes are functions of the state and the seed alone."""
    schema: Any = TypedDict("State", {name: KINDS[kind](often) for name, (kind, often) in shape.channels.items()})  # type: ignore[operator]
    log = next((name for name in shape.channels if name.startswith("log")), "log")
    graph = StateGraph(schema)

    def fails(node: Node) -> int:
        # In threads it would be chance which others of the step have finished: there a node that fails is retried.
        return node.fails if not blocking else min(node.fails, 1) if node.is_retried else 0

    def node_of(node: Node, inner: Any) -> Callable[[Any], Any]:
        def work(state: Any) -> Any:
            state = state if isinstance(state, dict) else dict(state)
            draw = Draw(f"{world.seed}/{node.name}/{noted(state)}")
            answers = [interrupt({"node": node.name, "n": number, "of": scalar(draw)}) for number in range(node.asks)]
            world.fail(node.name, fails(node))
            values = {one: value_for(draw, shape.channels[one][0], one, state) for one in node.channels}
            if answers:
                world.note("answered")
                values[log] = [*(values.get(log) or [] if isinstance(values.get(log), list) else []), *answers]
            if node.goes == "command":
                goto = draw.choice([targets[node.name], *([[END]] if draw.random() < 0.3 else [])])
                return Command(update=values, goto=goto)
            if node.goes == "to its caller":
                return Command(graph=Command.PARENT, goto="gate")
            if node.goes == "command send":
                return Command(update=values, goto=sends(node, state))
            return values

        def call(state: Any) -> Any:
            outcome = inner.invoke({"fuel": 0, f"log{shape_depth(node.inner)}": [noted(state)]})
            return {log: [len(outcome), noted(outcome)]}

        async def acall(state: Any) -> Any:
            outcome = await inner.ainvoke({"fuel": 0, f"log{shape_depth(node.inner)}": [noted(state)]})
            return {log: [len(outcome), noted(outcome)]}

        async def awork(state: Any) -> Any:
            return work(state)

        if inner is not None:
            return call if blocking else acall
        return work if blocking else awork

    def sends(node: Node, state: Any) -> list[Send]:
        draw = Draw(f"{world.seed}/{node.name}/send/{noted(state)}")
        world.note("send")
        count = draw.randint(1, 3)
        return [Send(f"{node.name}w", {"i": i, "last": i == count - 1, "x": item(draw)}) for i in range(count)]

    def worker_of(node: Node) -> Callable[[Any], Any]:
        reducers = [one for one, (kind, _) in shape.channels.items() if kind not in ONE_WRITER]

        def work(state: Any) -> Any:
            draw = Draw(f"{world.seed}/{node.name}w/{noted(state)}/{state['i']}")
            asked = [interrupt(["worker", state["i"]])] if node.asks and state["i"] % 2 == 0 else []
            if state["last"] and not blocking:
                world.fail(f"{node.name}w", min(node.fails, 1))
            chosen = draw.sample(reducers, min(2, len(reducers)))
            return {
                **{one: value_for(draw, shape.channels[one][0], one, {}) for one in chosen if one != log},
                log: [state["i"], *asked],
            }

        async def awork(state: Any) -> Any:
            return work(state)

        return work if blocking else awork

    async def ahandle(state: Any) -> Any:
        return handle(state)

    def handle(state: Any) -> Any:
        world.note("handled")
        return {log: ["handled"]}

    targets: dict[str, list[str]] = {}
    for number, layer in enumerate(shape.layers):
        after = shape.layers[number + 1] if number + 1 < len(shape.layers) else ()
        for node in layer:
            targets[node.name] = [each.name for each in after] or ["gate"]
    for node in shape.nodes:
        inner = build_inner(node, world, blocking=blocking)
        retry = RetryPolicy(initial_interval=0.001, jitter=False, max_attempts=2, retry_on=Refusal)
        graph.add_node(
            node.name,
            inner if inner is not None and not node.is_called else node_of(node, inner),
            defer=node.is_deferred,
            retry_policy=retry if node.is_retried else None,
            error_handler=(handle if blocking else ahandle) if node.is_handled else None,
            destinations=(*targets[node.name], END) if node.goes == "command" else None,
        )
        if node.goes.endswith("send"):
            graph.add_node(f"{node.name}w", worker_of(node))
            for target in targets[node.name]:
                graph.add_edge(f"{node.name}w", target)
            if node.goes == "send":
                graph.add_conditional_edges(node.name, lambda state, node=node: sends(node, state), [f"{node.name}w"])
    graph.add_node("gate", lambda state: {"fuel": state["fuel"] - 1 if isinstance(state.get("fuel"), int) else -1})
    for first in shape.layers[0]:
        graph.add_edge(START, first.name)
    for layer in shape.layers:
        plain = [node.name for node in layer if node.goes == "on"]
        for target in targets[layer[0].name] if plain else []:
            if shape.joins and len(plain) > 1:
                graph.add_edge(plain, target)
            else:
                for name in plain:
                    graph.add_edge(name, target)
    begin = [node.name for node in shape.layers[0]]
    graph.add_conditional_edges("gate", lambda state: begin if state["fuel"] >= 0 else END, [*begin, END])
    stops = {"interrupt_before": [*shape.stops_before] or None, "interrupt_after": [*shape.stops_after] or None}
    return graph.compile(checkpointer=saver, **stops)


def shape_depth(shape: Shape | None) -> int:
    return int(shape.name[-1]) if shape else 0


def build_inner(node: Node, world: Scheduling, *, blocking: bool) -> Any:
    return build(node.inner, True if node.is_stateful else None, world, blocking=blocking) if node.inner else None
