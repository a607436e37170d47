"""Random programs do on our savers what they do on LangGraph's in-memory saver, and leave the same behind."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.encryption import KeyRing
from checkpoint_store.serde import pages
from tests.integration.random_graphs import KINDS
from tests.integration.random_programs import ACTIONS, Model, Mortal, Program, Side, Step, same_ids
from tests.integration.random_sights import first_difference

PROGRAMS = int(os.environ.get("CHECKPOINT_STORE_RANDOM_PROGRAMS", "300"))
"""How many programs all of the tests perform; the first of the tests is the slice that runs every time."""
SLICE = 10

KNOWN: dict[int, str] = {}
"""The programs that differ, and why that is right."""


class MortalAsyncSaver(Mortal, AsyncPostgresSaver):
    pass


class MortalSaver(Mortal, PostgresSaver):
    pass


@dataclass(frozen=True)
class Setting:
    """A way of using our savers."""

    name: str
    blocking: bool
    kind: str = "async"
    pipeline: bool = False
    pages: bool = False
    cuts_all: bool = False
    """Whether pages are made of every value that can be cut, not of large ones only."""
    encrypts: bool = False


SETTINGS = [
    Setting("plain", blocking=False),
    Setting("plain, called by threads", blocking=True),
    Setting("pipeline", blocking=False, pipeline=True),
    Setting("pipeline and pages of all", blocking=False, pipeline=True, pages=True, cuts_all=True),
    Setting("pages", blocking=False, pages=True),
    Setting("pages of all", blocking=True, pages=True, cuts_all=True),
    Setting("encrypted", blocking=False, pages=True, encrypts=True),
    Setting("bound", blocking=False, kind="bound", pages=True, cuts_all=True),
    Setting("sync saver", blocking=True, kind="sync", pages=True),
    Setting("sync saver, pipeline", blocking=True, kind="sync", pipeline=True),
    Setting("sync saver, awaited", blocking=False, kind="sync", pages=True, cuts_all=True),
    Setting("sync engine", blocking=True, kind="sync engine", pages=True, cuts_all=True),
    Setting("sync engine, awaited", blocking=False, kind="sync engine"),
]


class Ours:
    """The savers of one setting on a database."""

    def __init__(self, setting: Setting, url: str) -> None:
        self.setting, self.url = setting, url
        self._open = AsyncExitStack()

    async def make(self) -> Any:
        """Make a saver, with an engine of its own, as another process would have it."""
        setting, sizes = self.setting, {"pool_size": 3}
        serde = EncryptedSerializer(KeyRing.aes(b"0123456789abcdef")) if setting.encrypts else None
        options: dict[str, Any] = {"serde": serde, "share_pages": setting.pages}
        if setting.kind == "async":
            made = MortalAsyncSaver.from_conn_string(self.url, pipeline=setting.pipeline, **sizes, **options)
            return await self._open.enter_async_context(made)
        if setting.kind == "sync":
            kept = MortalSaver.from_conn_string(self.url, pipeline=setting.pipeline, **sizes, **options)
            saver = await asyncio.to_thread(kept.__enter__)
            self._open.push_async_callback(asyncio.to_thread, kept.__exit__, None, None, None)
            return saver
        if setting.kind == "sync engine":
            engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"), **sizes)
            self._open.callback(engine.dispose)
            return MortalSaver(engine, **options)
        self.engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": self.url}, **sizes)
        self._open.push_async_callback(self.engine.dispose)
        return MortalAsyncSaver(self.engine, **options)

    @asynccontextmanager
    async def used(self, saver: Any, side: Side) -> AsyncIterator[None]:
        """Have a program use a saver: in a transaction of its own if it is to be bound to one."""
        if self.setting.kind == "bound":
            async with self.engine.connect() as conn:
                side.use(saver.bind(conn))
                yield
                await conn.commit()
        else:
            if side.saver is not saver:
                side.use(saver)
            yield

    async def close(self) -> None:
        await self._open.aclose()


Record = list[tuple[Step, list[Any]]]


async def perform_on_model(program: Program, prefix: str, *, blocking: bool) -> tuple[Record, set[str]]:
    """Perform a program on the in-memory saver. Returns its steps with what was seen of each, and what was met."""
    side = Side(program, Model(), prefix, blocking=blocking)
    record: Record = []
    for number, kind in program.actions:
        step = await side.decide(number, kind)
        outcome = await side.perform(step)
        record.append((step, [("outcome", outcome), *await side.observe()]))
    return record, side.performance.met


async def difference(program: Program, ours: Ours, saver: Any, record: Record, prefix: str) -> str | None:
    """Perform a program on a saver of ours, in step with what was recorded. Returns the first difference."""
    side = Side(program, saver, prefix, blocking=ours.setting.blocking)
    async with AsyncExitStack() as restarted:
        for step, expected in record:
            if step.kind == "restart":
                ours = Ours(ours.setting, ours.url)
                restarted.push_async_callback(ours.close)
                saver = await ours.make()
            async with ours.used(saver, side):
                outcome = await side.perform(step)
            async with ours.used(saver, side):
                found = [("outcome", outcome), *await side.observe()]
            if different := first_difference(expected, found):
                return f"after {step}\n{different}"
    return None


class Trial:
    """Programs performed on a database; those of one setting share a saver, until they go on with another one."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.count = 0
        self.covered: Counter[str] = Counter()
        self._ours: dict[Setting, tuple[Ours, Any]] = {}

    async def compare(self, program: Program, setting: Setting) -> str | None:
        """Perform a program on the model and on ours. Returns the first difference."""
        self.count += 1
        prefix = f"{program.seed}/{self.count}"
        if setting not in self._ours:
            self._ours[setting] = (ours := Ours(setting, self.url)), await ours.make()
        record, met = await perform_on_model(program, prefix, blocking=setting.blocking)
        self.covered.update(program.features | met | {f"setting: {setting.name}"})
        return await difference(program, *self._ours[setting], record, prefix)

    async def report(self, program: Program, setting: Setting) -> str | None:
        """Compare, and leave out every action without which it differs still. Returns a report of a difference."""
        if not (found := await self.compare(program, setting)):
            return None
        for action in program.actions[::-1]:
            smaller = replace(program, actions=tuple(one for one in program.actions if one != action))
            if smaller.actions and (still := await self.compare(smaller, setting)):
                program, found = smaller, still
        script = ", ".join(f"{number} {kind}" for number, kind in program.actions)
        return f"program {program.seed} on {setting.name!r}, actions {script}:\n{found}"

    async def reports(self, seeds: Iterable[int], each: int = 1) -> list[str]:
        """Perform the programs of some seeds, many at once, in some settings each. Returns reports of differences."""
        chosen = [(Program.drawn(seed), setting) for seed in seeds for setting in settings_of(seed, each)]
        reports = []
        with same_ids(), pytest.MonkeyPatch.context() as patch:
            for cuts_all in (False, True):
                patch.setattr(pages, "LARGE_BYTES", 0 if cuts_all else pages.LARGE_BYTES)
                calls = [self.report(*one) for one in chosen if one[1].cuts_all is cuts_all]
                reports += await asyncio.gather(*calls)
        return [report for report in reports if report]

    async def close(self) -> None:
        for ours, _ in self._ours.values():
            await ours.close()


def settings_of(seed: int, count: int) -> Sequence[Setting]:
    """Settings for a program: all have their turn."""
    return [SETTINGS[(seed + number * 5) % len(SETTINGS)] for number in range(count)]


@pytest.fixture
async def trial(url: str) -> AsyncIterator[Trial]:
    # Each program that is performed by threads takes one, and what it calls may want another.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4 * SLICE))
    trial = Trial(url)
    yield trial
    await trial.close()


def chunks() -> Iterator[Any]:
    for first in range(0, PROGRAMS, SLICE):
        seeds = [seed for seed in range(first, min(first + SLICE, PROGRAMS)) if seed not in KNOWN]
        yield pytest.param(seeds, id=f"from {first}", marks=[pytest.mark.slow] if first else [])


def test_the_programs_have_everything() -> None:
    """Every kind of channel, node and action is in dozens of three hundred programs, those of subgraphs in several."""
    drawn = Counter(feature for seed in range(300) for feature in Program.drawn(seed).features)

    few = {f"channel: {kind}" for kind in KINDS} | {f"action: {kind}" for kind in ACTIONS}
    few |= {f"node: {what}" for what in ("asks twice", "fails", "goes send", "goes command", "is deferred")}
    few |= {"node: is a graph that keeps its state", "node: is a graph that shares channels", "node: calls a graph"}
    assert {feature: drawn[feature] for feature in few if drawn[feature] < 24} == {}
    inner = {f"in a subgraph, {feature}" for feature in few if feature.startswith("channel")}
    inner |= {"in a subgraph, node: asks", "in a subgraph, node: fails", "in a subgraph, node: goes send"}
    inner |= {"in a subgraph, node: goes to its caller"}
    assert {feature: drawn[feature] for feature in inner if drawn[feature] < 5} == {}


@pytest.mark.parametrize("seeds", [*chunks()])
async def test_programs_do_the_same_on_ours(trial: Trial, seeds: list[int], record_property: Any) -> None:
    """State, history, tuples, pending writes, results and errors are the same after every action."""
    reports = await trial.reports(seeds)

    record_property("covered", dict(trial.covered))
    assert not reports, "\n\n".join(reports)
