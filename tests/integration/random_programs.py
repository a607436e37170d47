"""Random programs: a graph in two deployments and a script of actions, which does the same on every saver."""

from __future__ import annotations

import asyncio
import copy
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import var_child_runnable_config
from langgraph.errors import InvalidUpdateError
from langgraph.graph import END
from langgraph.types import Command, StateSnapshot, StateUpdate

from tests.integration.random_graphs import Draw, Refusal, Shape, build, draw_older, draw_shape, item, value_for
from tests.integration.random_sights import seen, shortly

Saver = BaseCheckpointSaver[str]


ROOT = "6000-8000-000000000000"
"""How the ids of the root graph's checkpoints end."""


class Crash(Exception):
    """What a saver raises when its process has died."""


@dataclass
class Performance:
    """What is outside of the state while a program is performed on one saver: ids, attempts, and when it crashes.

    LangGraph's checkpoint ids are made here, of the action, the root graph's step and the subgraphs' steps: so they are
    the same on both savers, and with them the ids of tasks and interrupts, and whatever order these decide.
    """

    seed: str
    prefix: str
    action: int = 0
    crash: tuple[int, str] | None = None
    is_patient: bool = False
    """Whether nodes fail no more: after a crash, since how often they were tried in it depends on the saver's pace."""
    task: asyncio.Task[Any] | None = None
    """What runs the action, and can be cancelled."""
    steps: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    met: set[str] = field(default_factory=set)

    def begin(self, action: int, crash: tuple[int, str] | None = None) -> None:
        """Begin an action."""
        self.action, self.crash, self.steps = action, crash, Counter()
        PERFORMED.set(self)
        PERFORMED_ON[self.prefix] = self

    def next_id(self) -> UUID:
        """The id of the next checkpoint, greater than those before it in its namespace."""
        config = var_child_runnable_config.get(None) or {}
        names = config.get("configurable", {}).get("checkpoint_ns", "").split("|")
        levels = ["", *["|".join(names[: depth + 1]) for depth in range(len(names)) if names[0]]][:4]
        self.steps[levels[-1]] += 1
        root, *inner = [*[self.steps[level] for level in levels], 0, 0, 0][:4]
        return UUID("{:08x}{:04x}6{:03x}8{:03x}{:012x}".format(self.action, root, *inner))

    def check(self, checkpoint_id: str, task_id: str = "") -> None:
        """Raise if the process has died before this call: the ids tell, in whatever order the calls come."""
        if self.crash is None or self.crash[1] == "cancel" or int(checkpoint_id[:8], 16) != self.action:
            return
        last, kind = self.crash
        step = int(checkpoint_id[9:13], 16)
        if step > last or (step == last and kind == "writes" and task_id and zlib.crc32(task_id.encode()) % 2):
            self.note("crashed")
            raise Crash(f"after step {last}")

    def stored(self, checkpoint_id: str) -> None:
        """Cancel the run if this was its last step."""
        if self.task and self.crash == (int(checkpoint_id[9:13], 16), "cancel") and checkpoint_id.endswith(ROOT):
            self.note("cancelled")
            self.task.cancel()

    def fail(self, name: str, fails: int) -> None:
        if fails and not self.is_patient:
            self.attempts[name] += 1
            if self.attempts[name] % (fails + 1):
                self.note("a node failed")
                raise Refusal(f"{name} refuses")

    def note(self, what: str) -> None:
        self.met.add(f"met: {what}")


PERFORMED: ContextVar[Performance] = ContextVar("PERFORMED")
"""What LangGraph makes an id for: many programs are performed at once."""
PERFORMED_ON: dict[str, Performance] = {}
"""By the threads' prefix, for savers: LangGraph calls them from done callbacks too, which have no context."""


def performed_on(config: Any) -> Performance:
    return PERFORMED_ON[config["configurable"]["thread_id"].rpartition("/")[0]]


class Mortal:
    """Mixed into a saver: it dies when the performance says so."""

    async def aput(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        performed_on(config).check(checkpoint["id"])
        stored = await super().aput(config, checkpoint, metadata, new_versions)  # type: ignore[misc]
        performed_on(config).stored(checkpoint["id"])
        return stored

    def put(self, config: Any, checkpoint: Any, metadata: Any, new_versions: Any) -> Any:
        performed_on(config).check(checkpoint["id"])
        return super().put(config, checkpoint, metadata, new_versions)  # type: ignore[misc]

    async def aput_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        performed_on(config).check(config["configurable"]["checkpoint_id"], task_id)
        await super().aput_writes(config, writes, task_id, task_path)  # type: ignore[misc]

    def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
        performed_on(config).check(config["configurable"]["checkpoint_id"], task_id)
        super().put_writes(config, writes, task_id, task_path)  # type: ignore[misc]


class Model(Mortal, InMemorySaver):
    """LangGraph's in-memory saver, with copies of threads; those that are pruned it keeps."""

    def copy_thread(self, source_thread_id: str, target_thread_id: str, *, replace: bool) -> None:
        if replace:
            self.delete_thread(target_thread_id)
        for namespace, checkpoints in list(self.storage[source_thread_id].items()):
            self.storage[target_thread_id][namespace] = dict(checkpoints)
        for rows in (self.writes, self.blobs):
            for (thread_id, *key), row in list(rows.items()):
                if thread_id == source_thread_id:
                    rows[(target_thread_id, *key)] = copy.copy(row)


@contextmanager
def same_ids() -> Iterator[None]:
    """Have LangGraph take the ids of checkpoints from the performance."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("langgraph.pregel._checkpoint.uuid6", lambda **_: PERFORMED.get().next_id())
        yield


# --- programs ---

ACTIONS = {
    "input": 5,
    "answer": 6,
    "go on": 2,
    "update": 2,
    "fork": 2,
    "travel": 2,
    "bulk": 0.5,
    "look back": 1,
    "deploy": 1.5,
    "crash": 1.5,
    "cancel": 0.7,
    "restart": 0.7,
    "delete": 0.3,
    "copy": 0.4,
    "subgraph": 1,
}
"""What a script is made of, and how often."""


@dataclass(frozen=True)
class Program:
    """A graph in two deployments, and a script; each action has a number of its own, which decides all in it."""

    seed: int
    shapes: tuple[Shape, Shape]
    actions: tuple[tuple[int, str], ...]

    @classmethod
    def drawn(cls, seed: int) -> Program:
        """The program of a seed."""
        draw = Draw(f"program {seed}")
        newer = draw_shape(draw)
        kinds = draw.choices([*ACTIONS], [*ACTIONS.values()], k=draw.randint(4, 11))
        last = ["prune", "answer"] if draw.random() < 0.3 else []
        return cls(seed, (newer, draw_older(draw, newer)), tuple(enumerate(["input", *kinds, *last], 1)))

    @property
    def features(self) -> set[str]:
        """What the graph has, and what the script does, for the table of what is covered."""
        return {f"action: {kind}" for _, kind in self.actions} | self.shapes[0].features


@dataclass(frozen=True)
class Step:
    """An action with everything decided."""

    number: int
    kind: str
    method: str
    args: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    deployment: int = 0
    crash: tuple[int, str] | None = None

    def __str__(self) -> str:
        crash = f", crash {self.crash}" if self.crash else ""
        shown = ", ".join([*map(shortly, self.args), *[f"{key}={value!r}" for key, value in self.options.items()]])
        return f"{self.number} {self.kind}: {self.method}({shown}), deployment {self.deployment}{crash}"


def within(config: dict[str, Any], state: StateSnapshot) -> dict[str, Any]:
    """A config that names the checkpoint of a state."""
    return {**config, "configurable": {**config["configurable"], **state.config["configurable"]}}


class Side:
    """A program's graphs on one saver."""

    def __init__(self, program: Program, saver: Saver, prefix: str, *, blocking: bool) -> None:
        self.program, self.prefix, self.blocking = program, prefix, blocking
        self.performance = Performance(str(program.seed), prefix)
        self.use(saver)
        self.deployment = 0
        self.is_pruned = False

    def use(self, saver: Saver) -> None:
        """Go on with another saver."""
        self.saver = saver
        self.graphs = [build(shape, saver, self.performance, blocking=self.blocking) for shape in self.program.shapes]

    def config(self, thread: str) -> dict[str, Any]:
        return {"configurable": {"thread_id": f"{self.prefix}/{thread}"}, "recursion_limit": 12}

    async def call(self, method: str, *args: Any, on: Any = None, **options: Any) -> Any:
        """Call a method of the graph's, or of the saver's: the async one, or the sync one in a worker thread."""
        target = on or self.graphs[self.deployment]
        if self.blocking:
            return await asyncio.to_thread(getattr(target, method), *args, **options)
        method = method if method == "copy_thread" and isinstance(target, Model) else f"a{method}"
        outcome = getattr(target, method)(*args, **options)
        return await outcome if hasattr(outcome, "__await__") else outcome

    async def read(self, method: str, *args: Any, on: Any = None, **options: Any) -> list[Any]:
        """Call a method that returns an iterator."""
        target = on or self.graphs[self.deployment]
        if self.blocking:
            return await asyncio.to_thread(lambda: list(getattr(target, method)(*args, **options)))
        return [each async for each in getattr(target, f"a{method}")(*args, **options)]

    # --- actions ---

    async def decide(self, number: int, kind: str) -> Step:
        """Decide everything in an action, by what is stored: asked of the model only."""
        draw = Draw(f"{self.program.seed} action {number}")
        if kind == "deploy":
            self.deployment = 1 - self.deployment
        config = self.config(draw.choice("aaab"))
        method, args, options = await self._decided(draw, kind, config)
        crash = None
        if kind in {"crash", "cancel"}:
            ways = ["put"] if self.blocking else ["cancel"] if kind == "cancel" else ["put", "writes"]
            crash = (draw.choice([1, 1, 2, 3]), draw.choice(ways))
            if (self.blocking or kind == "cancel") and "durability" in options:
                options["durability"] = "sync"  # so that no node is under way
        if self.is_pruned and method == "stream":
            method, options = "invoke", {"durability": options["durability"]}
        return Step(number, kind, method, args, options, self.deployment, crash)

    async def _decided(self, draw: Draw, kind: str, config: dict[str, Any]) -> tuple[str, tuple[Any, ...], Any]:
        threads = [self.config(one)["configurable"]["thread_id"] for one in "ab"]
        if kind == "delete":
            return "delete_thread", (config["configurable"]["thread_id"],), {}
        if kind == "copy":
            return "copy_thread", tuple(threads), {}
        if kind == "prune":
            return "prune", (threads,), {"keep": draw.choice([1, 1, 2, 3])}
        state = await self._state(config, subgraphs=kind == "subgraph")
        if kind == "update":
            return "update_state", (config, *self._update(draw, state)), {}
        if kind == "bulk":
            steps = [[StateUpdate(*self._update(draw, state))] for _ in range(draw.randint(1, 3))]
            return "bulk_update_state", (config, steps), {}
        if kind == "subgraph":
            inner = [task.state for task in state.tasks if isinstance(task.state, StateSnapshot)]
            if inner:
                return self._within(draw, config, draw.choice(inner))
        if kind in {"travel", "fork", "look back", "subgraph"} and (older := await self._older(draw, config)):
            if kind == "fork":
                return "update_state", (older.config, *self._update(draw, state)), {}
            if kind != "travel":
                before = {"before": older.config} if draw.random() < 0.5 else {}
                limit = {"limit": draw.randint(1, 4)} if draw.random() < 0.5 else {}
                chosen = draw.choice([None, {"source": "loop"}, {"step": draw.randint(-1, 3)}])
                return "look back", (config, older.config), {**before, **limit, "filter": chosen}
            return self._run(draw, (self._input(draw, kind, older), within(config, older)))
        return self._run(draw, (self._input(draw, kind, state), config))

    def _input(self, draw: Draw, kind: str, state: StateSnapshot) -> Any:
        """What a run begins with: an answer where one is wanted, nothing, or values."""
        wants = draw.random()
        if state.interrupts and (kind in {"answer", "restart"} or wants < 0.4):
            return self._answer(draw, state)
        if kind == "go on" or (kind in {"restart", "travel"} and wants < 0.75):
            return None
        channels = self.program.shapes[self.deployment].channels
        chosen = {one: what for one, (what, _) in channels.items() if draw.random() < 0.4}
        values = {one: value_for(draw, what, one, state.values) for one, what in chosen.items()}
        return {**values, "fuel": draw.choice([0, 0, 1, 2])}

    def _within(self, draw: Draw, config: dict[str, Any], inner: StateSnapshot) -> tuple[str, tuple[Any, ...], Any]:
        """A run from a subgraph's checkpoint, or an update of the subgraph's state."""
        self.performance.note("a subgraph's state was addressed")
        if draw.random() < 0.5:
            return self._run(draw, (None, within(config, inner)))
        names = [one for one in inner.values if isinstance(inner.values[one], (list, dict))]
        return "update_state", (within(config, inner), {one: inner.values[one] for one in names[:1]}), {}

    async def _state(self, config: Any, *, subgraphs: bool) -> StateSnapshot:
        """The newest state, or none if LangGraph can't tell it, since its pending writes don't go together."""
        try:
            return await self.call("get_state", config, subgraphs=subgraphs)
        except (InvalidUpdateError, ValueError):
            return StateSnapshot({}, (), config, None, None, None, (), ())

    async def _older(self, draw: Draw, config: Any) -> StateSnapshot | None:
        try:
            history = await self.read("get_state_history", config)
        except (InvalidUpdateError, ValueError):
            return None
        return draw.choice(history) if history else None

    def _run(self, draw: Draw, args: tuple[Any, Any]) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        options: dict[str, Any] = {"durability": draw.choice(["sync", "async", "async", "exit"])}
        if self.program.shapes[0].changes_in_place:
            options["durability"] = "sync"
        if draw.random() < 0.5:
            return "invoke", args, options
        modes = ["values", "updates", "checkpoints", "tasks"]
        return "stream", args, {**options, "stream_mode": modes, "subgraphs": True}

    def _answer(self, draw: Draw, state: StateSnapshot) -> Command:
        ids = sorted(asked.id for asked in state.interrupts)
        if len(ids) == 1 or draw.random() < 0.1:
            resume = item(draw) if draw.random() < 0.7 else {ids[0]: item(draw)}
        else:
            self.performance.note("one of several interrupts was answered by its id")
            resume = {one: item(draw) for one in draw.sample(ids, draw.randint(1, len(ids)))}
        shape = self.program.shapes[self.deployment]
        more: dict[str, Any] = {}
        if draw.random() < 0.35:
            one = draw.choice([*shape.channels])
            more["update"] = {one: 1 if one == "fuel" else value_for(draw, shape.channels[one][0], one, state.values)}
            self.performance.note("an answer came with an update")
        if draw.random() < 0.1:
            more["goto"] = draw.choice(shape.nodes).name
        return Command(resume=resume, **more)

    def _update(self, draw: Draw, state: StateSnapshot) -> tuple[Any, str | None]:
        shape = self.program.shapes[self.deployment]
        if draw.random() < 0.1:
            return None, draw.choice([END, "__copy__", "__input__"])
        names = draw.sample([*shape.channels], draw.randint(1, 3))
        values = {one: value_for(draw, shape.channels[one][0], one, state.values) for one in names if one != "fuel"}
        return values, draw.choice([None, *[node.name for node in shape.nodes], "gate"])

    async def perform(self, step: Step) -> Any:
        """Perform an action. Returns what is seen of it, unless it crashed: then it is a matter of pace."""
        self.performance.begin(step.number, step.crash)
        self.deployment = step.deployment
        args, options = copy.deepcopy(step.args), copy.deepcopy(dict(step.options))
        self.is_pruned |= step.kind == "prune"
        self.performance.task = asyncio.create_task(self._perform(step.method, args, options))
        try:
            outcome = await self.performance.task
        except asyncio.CancelledError:
            outcome = None
        except Exception as error:
            self.performance.note(f"raised {type(error).__name__}")
            outcome = seen(error)
        self.performance.crash = None
        self.performance.is_patient |= step.crash is not None
        return None if step.crash else outcome

    async def _perform(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            return await self._performed(method, args, options)
        except asyncio.CancelledError as error:
            # LangGraph's own advice: what ends the run is in the error, and to be awaited.
            if left := [each for each in error.args if isinstance(each, asyncio.Future)]:
                await asyncio.wait(left)
            raise

    async def _performed(self, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if method == "look back":
            state = await self.call("get_state", args[1], subgraphs=True)
            return seen([state, *await self.read("get_state_history", args[0], **options)])
        if method == "stream":  # in the order in which tasks have ended
            return sorted(map(seen, await self.read("stream", *args, **options)), key=repr)
        if method == "prune" and isinstance(self.saver, Model):
            return None
        if method == "copy_thread":
            is_there = await self.call("get_tuple", self.config("a"), on=self.saver)
            return is_there and await self.call("copy_thread", *args, on=self.saver, replace=True)
        on = self.saver if method in {"delete_thread", "prune"} else None
        outcome = await self.call(method, *args, on=on, **options)
        return None if method == "prune" else seen(outcome)

    async def _newest(self, config: dict[str, Any]) -> StateSnapshot:
        state = await self.call("get_state", config)
        return state._replace(parent_config=None)

    async def observe(self) -> list[tuple[str, Any]]:
        """Everything that a user can read of the threads; once they are pruned, the newest state."""
        found: dict[str, Any] = {}
        deltas = [one for one, (kind, _) in self.program.shapes[self.deployment].channels.items() if "delta" in kind]

        async def look(name: str, call: Any) -> None:
            try:
                found[name] = seen(await call)
            except Exception as error:
                found[name] = seen(error)

        for thread in "ab":
            config = self.config(thread)
            if self.is_pruned:
                await look(f"{thread}: newest", self._newest(config))
                continue
            await look(f"{thread}: state", self.call("get_state", config, subgraphs=True))
            await look(f"{thread}: history", self.read("get_state_history", config))
            tuples = await self.read("list", {"configurable": config["configurable"]}, on=self.saver)
            tuples.sort(key=lambda each: (each.config["configurable"]["checkpoint_ns"], each.checkpoint["id"]))
            found[f"{thread}: tuples"] = seen(tuples)
            newest = {each.config["configurable"]["checkpoint_ns"]: each.config for each in tuples}
            for namespace in newest:
                within = {"configurable": {**config["configurable"], "checkpoint_ns": namespace}}
                await look(f"{thread}: newest in {namespace!r}", self.call("get_tuple", within, on=self.saver))
            if deltas:
                call = self.call("get_delta_channel_history", on=self.saver, config=config, channels=deltas)
                await look(f"{thread}: deltas", call)
        return [*found.items()]
