"""What a measure works with: the contenders' savers on databases of their own, and turns taken fairly."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.contenders import (
    STOCK,
    SYNC,
    AnySaver,
    AsyncContender,
    Contender,
    InPlace,
    Ours,
    Saver,
    SyncContender,
    in_place,
)
from benchmarks.proof import prove
from benchmarks.server import Server

C = TypeVar("C")
T = TypeVar("T")

Work = Callable[[str, Mapping[Contender, AnySaver]], Coroutine[Any, Any, T]]


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark on one server."""

    server: Server
    quick: bool

    def pick(self, *, quick: int, full: int) -> int:
        """A size: the first for `--quick`, else the second."""
        return quick if self.quick else full

    def database(self, stack: ExitStack | AsyncExitStack, name: str) -> str:
        """The URL of a new database of about that name, dropped when the stack unwinds."""
        url = self.server.create_database(name)
        stack.callback(self.server.drop_database, url)
        return url

    @asynccontextmanager
    async def savers(
        self,
        measure: str,
        contenders: Sequence[AsyncContender] = (Ours(), *STOCK),
        *,
        via: Callable[[str], str] | None = None,
    ) -> AsyncIterator[dict[Contender, Saver]]:
        """Open the contenders, each on a new database, each proved to store what it is given.

        Args:
            measure: Part of the databases' names.
            contenders: Who takes part.
            via: Maps a database's URL to the one to connect to, such as that of a delaying proxy.
        """
        async with AsyncExitStack() as stack:
            opened: dict[Contender, Saver] = {}
            for contender in contenders:
                url = self.database(stack, f"{measure} {contender.name}")
                opened[contender] = await stack.enter_async_context(contender.open(via(url) if via else url))
                await prove(opened[contender])
            yield opened

    @contextmanager
    def sync_savers(
        self, measure: str, contenders: Sequence[SyncContender] = SYNC, *, via: Callable[[str], str] | None = None
    ) -> Iterator[dict[Contender, Saver]]:
        """The same for the sync contenders."""
        with ExitStack() as stack:
            opened: dict[Contender, Saver] = {}
            for contender in contenders:
                url = self.database(stack, f"{measure} {contender.name}")
                opened[contender] = stack.enter_context(contender.open(via(url) if via else url))
                in_place(prove(InPlace(opened[contender])))
            yield opened

    def both_kinds(self, measure: str, contenders: Sequence[AsyncContender], work: Work[T]) -> dict[str, T]:
        """Do the same work with async savers and with sync ones; return both results, by the name of the measure."""

        async def with_async_savers() -> T:
            async with self.savers(measure, contenders) as savers:
                return await work(measure, {**savers})

        sync = f"sync {measure}"
        with self.sync_savers(sync) as savers:
            in_threads = in_place(work(sync, {contender: InPlace(saver) for contender, saver in savers.items()}))
        return {measure: asyncio.run(with_async_savers()), sync: in_threads}


async def in_turns(
    contenders: Iterable[C], rounds: int, turn: Callable[[C, int], Awaitable[T]], *, uncounted: int = 1
) -> dict[C, list[T]]:
    """Let everyone take a turn in every round; return what came of each turn, but for the first rounds."""
    counted: dict[C, list[T]] = {contender: [] for contender in contenders}
    for number, order in enumerate(rotations(list(counted), rounds + uncounted)):
        for contender in order:
            figures = await turn(contender, number)
            if number >= uncounted:
                counted[contender].append(figures)
    return counted


def rotations(contenders: Sequence[T], rounds: int) -> Iterator[list[T]]:
    """In every round everyone has a turn, each time with another one first and in the other direction."""
    for number in range(rounds):
        yield rotation(contenders, number)


def rotation(contenders: Sequence[T], number: int) -> list[T]:
    """The order of one round."""
    first = number % len(contenders)
    order = [*contenders[first:], *contenders[:first]]
    return order[::-1] if number % 2 else order


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection inside: it would hit whoever happens to be running."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
