"""A fair queue loses no permit, whatever becomes of those who wait."""

from __future__ import annotations

import asyncio
import random

import pytest
from sqlalchemy import create_engine

from checkpoint_store.database.checkout import Checkout, checkouts
from checkpoint_store.database.semaphore import CheckoutTimeout, FairSemaphore


async def test_permits_come_in_the_order_they_were_asked_for() -> None:
    """Who gives a turn back and wants the next one goes to the end of the queue."""
    permits, order = FairSemaphore(1, timeout=10), []

    async def work(name: str) -> None:
        for _ in range(3):
            await permits.acquire()
            order.append(name)
            await asyncio.sleep(0)
            permits.release()

    await asyncio.gather(*map(work, "abc"))

    assert order == list("abcabcabc")


async def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    """Nobody waits longer than the deadline, and the turn is there for the next one."""
    permits = FairSemaphore(1, timeout=0.01)
    await permits.acquire()

    with pytest.raises(CheckoutTimeout, match=r"0\.01 s"):
        await permits.acquire()

    permits.release()
    await permits.acquire()


async def test_a_turn_that_comes_as_its_waiter_is_cancelled_goes_to_the_next() -> None:
    """The waiter never learns that it came, so nobody would give it back."""
    permits = FairSemaphore(1, timeout=10)
    await permits.acquire()
    first, second = asyncio.create_task(permits.acquire()), asyncio.create_task(permits.acquire())
    await asyncio.sleep(0)

    permits.release()
    first.cancel()

    await asyncio.wait_for(second, 5)
    assert first.cancelled()


@pytest.mark.parametrize("seed", range(20))
async def test_no_turn_is_lost_or_made_by_random_cancellations_and_deadlines(seed: int) -> None:
    """At most three at once while it goes on, and all three there afterwards."""
    permits, chance, at_once, most = FairSemaphore(3, timeout=0.003), random.Random(seed), 0, 0

    async def work() -> None:
        nonlocal at_once, most
        await permits.acquire()
        at_once += 1
        most = max(most, at_once)
        try:
            await asyncio.sleep(chance.random() * 0.002)
        finally:
            at_once -= 1
            permits.release()

    tasks = [asyncio.create_task(work()) for _ in range(60)]
    while not all(task.done() for task in tasks):
        chance.choice(tasks).cancel()
        await asyncio.sleep(0 if chance.random() < 0.8 else 0.001)
    await asyncio.gather(*tasks, return_exceptions=True)

    assert most == 3
    for _ in range(3):
        await permits.acquire()
    with pytest.raises(CheckoutTimeout):
        await permits.acquire()


def test_a_return_that_is_interrupted_leaves_nothing_noted() -> None:
    """Ctrl-C may come while the connection goes back: the pool is not kept alive, nor counted as one of ours."""
    engine = create_engine("postgresql+psycopg://nowhere/app")
    borrowed = Checkout(engine)
    borrowed._pooled = Interrupted()  # type: ignore[assignment]
    checkouts.add(borrowed)

    with pytest.raises(KeyboardInterrupt):
        borrowed.__exit__(None, None, None)

    assert borrowed not in checkouts


class Interrupted:
    """A pooled connection whose reset is interrupted."""

    def close(self) -> None:
        raise KeyboardInterrupt
