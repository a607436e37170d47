"""Calls wait in order within a thread, and no thread waits for another one's backlog."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from itertools import count

import pytest

from checkpoint_store.database.commit_queue import HOPELESS_IN_A_ROW, HOPELESS_THREADS, Call, CommitQueue, LimitedCommit
from checkpoint_store.storage.write_batch import Change, Writes

numbers = count()


async def store(_: Sequence[Change]) -> None:
    """Not called here."""


def call_of(thread_id: str, *, schema: str | None = None, size: int = 1) -> Call:
    binds = {"thread_id": thread_id, "task_id": "", "blobs": [b"x" * size], "number": next(numbers)}
    return Call(store, schema, Writes(binds), asyncio.get_running_loop().create_future(), 0.0)


def waiting_of(*calls: Call) -> CommitQueue:
    waiting = CommitQueue()
    for call in calls:
        waiting.add(call)
    return waiting


def taken(waiting: CommitQueue, max_calls: int = 100, max_bytes: int = 100) -> list[str]:
    """The threads of the calls that go together next."""
    return [call.change.thread_id for call in waiting.take(max_calls, max_bytes)]


async def test_a_thread_with_a_backlog_leaves_room_for_the_others() -> None:
    """It gives a call when its turn is, not all it has."""
    waiting = waiting_of(*[call_of("busy") for _ in range(1000)], call_of("x"), call_of("y"))

    assert taken(waiting, 4) == ["busy", "x", "y", "busy"]
    assert len(waiting) == 998


async def test_a_thread_in_a_commit_waits_behind_those_that_came_meanwhile() -> None:
    """The next commit begins with them, and has of it what still goes in."""
    calls = [call_of("busy") for _ in range(6)]
    waiting = waiting_of(*calls)
    first = waiting.take(2, 100)
    waiting.add(call_of("x"))
    assert (waiting.ready, len(waiting)) == (1, 5)
    assert taken(waiting) == ["x"]

    waiting.end([call.change for call in first])
    waiting.add(call_of("y"))

    assert waiting.ready == 5
    assert waiting.take(2, 100)[0] is calls[2]


async def test_what_is_too_large_for_a_commit_is_the_first_of_the_next() -> None:
    """Nobody small overtakes it."""
    waiting = waiting_of(*[call_of(f"{size}", size=size) for size in (60, 50, 500, 1)])

    assert [taken(waiting) for _ in range(4)] == [["60"], ["50"], ["500"], ["1"]]


async def test_schemas_take_turns() -> None:
    """A commit is of one of them; a thread id that two have is one thread, since two names may be one schema's."""
    waiting = waiting_of(*[call_of(thread, schema=schema) for thread in "xyz" for schema in ("a", "b")])
    one = waiting.take(2, 100)
    two = taken(waiting)
    waiting.end([call.change for call in one])

    assert [(call.target, call.change.thread_id) for call in one] == [("a", "x"), ("a", "y")]
    assert two == ["z"]
    assert {call.target for call in waiting.take(9, 100)} == {"b"}


async def test_cancelled_calls_are_passed_over() -> None:
    """Also where nothing else is left of a thread."""
    calls = [call_of("x"), call_of("x"), call_of("y"), call_of("z")]
    waiting = waiting_of(*calls)
    for call in (calls[0], calls[2]):
        call.outcome.cancel()

    assert taken(waiting) == ["x", "z"]
    assert (len(waiting), waiting.ready) == (0, 0)


async def test_calls_put_back_go_alone_before_the_others_of_their_threads() -> None:
    """One after the other; once one was stored and another one was not, the rest may share commits again."""
    calls = [call_of("x"), call_of("x"), call_of("y"), call_of("x")]
    waiting = waiting_of(*calls)
    failed = waiting.take(3, 100)
    limited = LimitedCommit(failed)
    waiting.put_back(failed)
    waiting.end([call.change for call in failed])
    x1, y = waiting.take_alone(), waiting.take_alone()
    assert [*x1, *y] == [calls[0], calls[2]]
    assert (waiting.take_alone(), waiting.take(9, 100)) == ([], [])

    limited.note("x", stored=False, limited=True)
    limited.note("y", stored=True, limited=False)
    waiting.end([calls[0].change])

    assert waiting.take_alone() == []
    assert waiting.take(9, 100) == [calls[1], calls[3]]


async def test_where_all_meet_a_limit_the_rest_does_not_have_to() -> None:
    """Of those in one commit, after a few; and of one thread, though others were stored."""
    limited = LimitedCommit(calls := [call_of(f"{number}") for number in range(10)])
    for number in range(HOPELESS_THREADS - 1):
        calls[number].waits = False
        assert limited.note(f"{number}", stored=False, limited=True) == []
    assert limited.note("3", stored=False, limited=True) == calls[HOPELESS_THREADS - 1 :]

    limited = LimitedCommit(calls := [call_of("stuck") for _ in range(10)] + [call_of("x")])
    limited.note("x", stored=True, limited=False)
    for _ in range(HOPELESS_IN_A_ROW - 1):
        assert limited.note("stuck", stored=False, limited=True) == []
    assert limited.note("stuck", stored=False, limited=True) == calls[:10]


@pytest.mark.parametrize("seed", range(30))
async def test_order_is_kept_and_nothing_is_lost(seed: int) -> None:
    """Whatever is added, taken, cancelled, put back and ended: each thread's calls come out in order, each once."""
    chance, waiting = random.Random(seed), CommitQueue()
    under_way: list[list[Call]] = []
    out: list[Call] = []
    made: list[Call] = []
    while len(made) < 300 or under_way or waiting:
        draw = chance.random()
        if draw < 0.5 and len(made) < 300:
            made.append(call_of(chance.choice("abcdef"), schema=chance.choice("st"), size=chance.choice([1, 1, 60])))
            waiting.add(made[-1])
        elif draw < 0.55 and made:
            chance.choice(made).outcome.cancel()
        elif draw < 0.8:
            calls = waiting.take(chance.randint(1, 8), 100) if chance.random() < 0.7 else waiting.take_alone()
            assert len({call.target for call in calls}) <= 1
            threads = {call.change.thread_id for call in calls}
            assert threads.isdisjoint(call.change.thread_id for commit in under_way for call in commit)
            under_way += [calls] * bool(calls)
        elif under_way:
            calls = under_way.pop(chance.randrange(len(under_way)))
            if len(calls) > 1 and chance.random() < 0.3:
                LimitedCommit(calls)
                waiting.put_back(calls)
            else:
                if len(calls) == 1 and calls[0].limited is not None:
                    stored = chance.random() < 0.7
                    calls[0].limited.note(calls[0].change.thread_id, stored=stored, limited=not stored)
                out += calls
            waiting.end([call.change for call in calls])

    assert waiting.ready == 0
    assert len(set(map(id, out))) == len(out)
    assert {id(call) for call in made if not call.outcome.cancelled()} <= set(map(id, out))
    for thread_id in "abcdef":
        order = [call.change.binds["number"] for call in out if call.change.thread_id == thread_id]
        assert order == sorted(order)
