"""What a measure works with: the contenders' savers on databases of their own, and turns taken fairly."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.contenders import ASYNC, SYNC, AsyncContender, Saver, SyncContender
from benchmarks.proof import prove, prove_sync
from benchmarks.server import Server

T = TypeVar("T")


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
        self, measure: str, contenders: Sequence[AsyncContender] = ASYNC, *, via: Callable[[str], str] | None = None
    ) -> AsyncIterator[dict[AsyncContender, Saver]]:
        """Open the contenders, each on a new database, each proved to store what it is given.

        Args:
            measure: Part of the databases' names.
            contenders: Who takes part.
            via: Maps a database's URL to the one to connect to, such as that of a delaying proxy.
        """
        async with AsyncExitStack() as stack:
            opened = {}
            for contender in contenders:
                url = self.database(stack, f"{measure} {contender.name}")
                opened[contender] = await stack.enter_async_context(contender.open(via(url) if via else url))
                await prove(opened[contender])
            yield opened

    @contextmanager
    def sync_savers(
        self, measure: str, contenders: Sequence[SyncContender] = SYNC
    ) -> Iterator[dict[SyncContender, Saver]]:
        """The same for the sync contenders."""
        with ExitStack() as stack:
            opened = {}
            for contender in contenders:
                url = self.database(stack, f"{measure} {contender.name}")
                opened[contender] = stack.enter_context(contender.open(url))
                prove_sync(opened[contender])
            yield opened


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
