"""Random programs do on our savers what they do on LangGraph's in-memory saver, and leave the same behind."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver, pages
from checkpoint_store.encryption import KeyRing
from tests.integration.random_programs import Model, Mortal, Program, Side, Step, first_difference, same_ids

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
    """A setting's savers on a database, one after the other as processes would have them."""

    def __init__(self, setting: Setting, url: str) -> None:
        self.setting, self.url = setting, url
        self.saver: Any = None
        self._open = AsyncExitStack()

    async def renew(self) -> Any:
        """Close the saver, with all that it remembers, and make another one."""
        await self.close()
        setting = self.setting
        serde = EncryptedSerializer(KeyRing.aes(b"0123456789abcdef")) if setting.encrypts else None
        options: dict[str, Any] = {"serde": serde, "share_pages": setting.pages}
        if setting.kind == "async":
            made = MortalAsyncSaver.from_conn_string(self.url, pipeline=setting.pipeline, pool_size=3, **options)
            self.saver = await self._open.enter_async_context(made)
        elif setting.kind == "sync":
            kept = MortalSaver.from_conn_string(self.url, pipeline=setting.pipeline, pool_size=3, **options)
            self.saver = await asyncio.to_thread(kept.__enter__)
            self._open.push_async_callback(asyncio.to_thread, kept.__exit__, None, None, None)
        elif setting.kind == "sync engine":
            engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"), pool_size=3)
            self.saver = MortalSaver(engine, **options)
            self._open.callback(engine.dispose)
        else:
            async_engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": self.url}, pool_size=2)
            self.saver = MortalAsyncSaver(async_engine, **options)
            self._open.push_async_callback(async_engine.dispose)
            self._engine = async_engine
        return self.saver

    async def close(self) -> None:
        await self._open.aclose()

    @asynccontextmanager
    async def used(self, side: Side) -> AsyncIterator[None]:
        """Have a program use the saver: in a transaction of its own if it is to be bound to one."""
        if self.setting.kind != "bound":
            if side.saver is not self.saver:
                side.use(self.saver)
            yield
            return
        async with self._engine.connect() as conn:
            side.use(self.saver.bind(conn))
            yield
            await conn.commit()


Record = list[tuple[Step, list[Any]]]


async def perform_on_model(program: Program, prefix: str, *, blocking: bool) -> tuple[Record, set[str]]:
    """Perform a program on the in-memory saver. Returns its steps with what was seen of each, and what was met."""
    side = Side(program, Model(), prefix, blocking=blocking)
    record: Record = []
    is_pruned = False
    for number, kind in program.actions:
        step = await side.decide(number, kind)
        outcome = await side.perform(step)
        is_pruned |= kind == "prune"
        record.append((step, [("outcome", outcome), *await side.observe(newest_only=is_pruned)]))
    return record, side.performance.met


async def difference(program: Program, ours: Ours, record: Record, prefix: str) -> str | None:
    """Perform a program on a saver of ours, in step with what was recorded. Returns the first difference."""
    side = Side(program, ours.saver, prefix, blocking=ours.setting.blocking)
    is_pruned = False
    for step, expected in record:
        if step.kind == "restart":
            await ours.renew()
        is_pruned |= step.kind == "prune"
        async with ours.used(side):
            outcome = await side.perform(step)
        async with ours.used(side):
            found = [("outcome", outcome), *await side.observe(newest_only=is_pruned)]
        if different := first_difference(expected, found):
            return f"after {step}\n{different}"
    return None


class Trial:
    """Programs performed on a database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.count = 0
        self.covered: Counter[str] = Counter()
        self._ours: dict[Setting, Ours] = {}

    async def compare(self, program: Program, setting: Setting) -> str | None:
        """Perform a program on the model and on ours. Returns the first difference."""
        self.count += 1
        prefix = f"{program.seed}/{self.count}/"
        ours = self._ours.setdefault(setting, Ours(setting, self.url))
        if ours.saver is None:
            await ours.renew()
        with same_ids(), pytest.MonkeyPatch.context() as patch:
            if setting.cuts_all:
                patch.setattr(pages, "LARGE_BYTES", 0)
            record, met = await perform_on_model(program, prefix, blocking=setting.blocking)
            self.covered.update(program.features | met | {f"setting: {setting.name}"})
            return await difference(program, ours, record, prefix)

    async def smallest(self, program: Program, setting: Setting, found: str) -> str:
        """Leave out every action without which it differs still. Returns a report."""
        for action in program.actions[::-1]:
            smaller = replace(program, actions=tuple(one for one in program.actions if one != action))
            if smaller.actions and (still := await self.compare(smaller, setting)):
                program, found = smaller, still
        script = ", ".join(f"{number} {kind}" for number, kind in program.actions)
        return f"program {program.seed} on {setting.name!r}, actions {script}:\n{found}"

    async def close(self) -> None:
        for ours in self._ours.values():
            await ours.close()


def settings_of(seed: int, count: int) -> Sequence[Setting]:
    """Settings for a program: all have their turn."""
    return [SETTINGS[(seed + number * 5) % len(SETTINGS)] for number in range(count)]


@pytest.fixture
async def trial(url: str) -> AsyncIterator[Trial]:
    trial = Trial(url)
    yield trial
    await trial.close()


def chunks() -> Iterator[Any]:
    for first in range(0, PROGRAMS, SLICE):
        seeds = range(first, min(first + SLICE, PROGRAMS))
        yield pytest.param(seeds, id=f"{seeds[0]}-{seeds[-1]}", marks=[pytest.mark.slow] if first else [])


@pytest.mark.parametrize("seeds", [*chunks()])
async def test_programs_do_the_same_on_ours(trial: Trial, seeds: range, record_property: Any) -> None:
    """State, history, tuples, pending writes, results and errors are the same after every action."""
    reports = []
    for seed in seeds:
        program = Program.drawn(seed)
        for setting in settings_of(seed, 1):
            found = await trial.compare(program, setting)
            if found and seed not in KNOWN:
                reports.append(await trial.smallest(program, setting, found))

    record_property("covered", dict(trial.covered))
    assert not reports, "\n\n".join(reports)
