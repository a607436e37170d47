"""Group commit for threads: who stores what, in which order, and what becomes of those who leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from checkpoint_store.database.thread_commit import ThreadCommit
from checkpoint_store.errors import LimitReached, Refused, Unavailable, UnstorableValue
from checkpoint_store.storage.write_batch import Change, Writes


def change(thread_id: str, number: int = 0, size: int = 1) -> Writes:
    return Writes({"thread_id": thread_id, "task_id": "", "number": number, "blobs": [b"x" * size]})


class Database:
    """Notes each commit; a gate holds them up."""

    def __init__(self) -> None:
        self.commits: list[list[Change]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.at_once = self.most = 0
        self.refuses: Callable[[Sequence[Change]], BaseException | None] = lambda _: None
        self._lock = threading.Lock()

    def store(self, changes: Sequence[Change]) -> None:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        self.entered.release()
        try:
            assert self.gate.wait(30)
            if (error := self.refuses(changes)) is not None:
                raise error
            self.commits.append(list(changes))
        finally:
            with self._lock:
                self.at_once -= 1

    def stored(self, thread_id: str) -> list[int]:
        return [one.binds["number"] for commit in self.commits for one in commit if one.thread_id == thread_id]


class Crowd:
    """Threads that each store changes, and the outcomes."""

    def __init__(self, commit: ThreadCommit, database: Database) -> None:
        self.commit, self.database = commit, database
        self.outcomes: dict[str, BaseException | None] = {}
        self.threads: list[threading.Thread] = []

    def start(self, *changes: Change, target: str = "") -> None:
        def run() -> None:
            try:
                for one in changes:
                    self.commit.submit(self.database.store, target, one)
                self.outcomes[changes[0].thread_id] = None
            except BaseException as error:
                self.outcomes[changes[0].thread_id] = error

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def wait_for(self, count: int) -> None:
        """Wait until so many calls wait."""
        deadline = time.monotonic() + 30
        while len(self.commit._waiting) < count:
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()
        assert not self.commit._under_way
        assert not len(self.commit._waiting)
        assert not self.commit._waiting._busy


@pytest.fixture
def crowd() -> Crowd:
    return Crowd(ThreadCommit(2), Database())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No commit takes long enough for another one to begin beside it."""
    monkeypatch.setattr("checkpoint_store.database.thread_commit._LONG_SECONDS", 60)


def hold_up(crowd: Crowd) -> None:
    """Start as many commits as may be under way, and hold them."""
    crowd.database.gate.clear()
    for name in ("first", "second"):
        crowd.start(change(name))
        assert crowd.database.entered.acquire(timeout=30)


def test_a_lone_thread_stores_each_change_itself(crowd: Crowd) -> None:
    """There is nothing to share."""
    for number in range(5):
        crowd.commit.submit(crowd.database.store, "", change("t", number))
    assert [len(commit) for commit in crowd.database.commits] == [1] * 5
    crowd.join()


@pytest.mark.usefixtures("patient")
def test_those_who_wait_are_stored_by_one_of_them(crowd: Crowd) -> None:
    """All in one commit."""
    hold_up(crowd)
    for number in range(16):
        crowd.start(change(f"t{number}"))
    crowd.wait_for(16)
    crowd.database.gate.set()
    crowd.join()
    assert sorted(len(commit) for commit in crowd.database.commits) == [1, 1, 16]
    assert set(crowd.outcomes.values()) == {None}
    assert crowd.database.most == 2


def test_a_thread_keeps_the_order_of_its_calls(crowd: Crowd) -> None:
    """Whoever stores them, and wherever they come from."""
    for number in range(12):
        crowd.start(*[change(f"t{number % 4}", 100 * number + one) for one in range(30)])
    crowd.join()
    for number in range(12):
        mine = [one for one in crowd.database.stored(f"t{number % 4}") if one // 100 == number]
        assert mine == [100 * number + one for one in range(30)]


@pytest.mark.usefixtures("patient")
def test_a_poisoned_call_fails_alone(crowd: Crowd) -> None:
    """Each of the others is stored once."""
    crowd.database.refuses = lambda changes: (
        UnstorableValue("poison") if any(one.thread_id == "t7" for one in changes) else None
    )
    hold_up(crowd)
    for number in range(16):
        crowd.start(change(f"t{number}"))
    crowd.wait_for(16)
    crowd.database.gate.set()
    crowd.join()
    assert isinstance(crowd.outcomes.pop("t7"), UnstorableValue)
    assert set(crowd.outcomes.values()) == {None}
    stored = [one.thread_id for commit in crowd.database.commits for one in commit]
    assert sorted(stored) == sorted({"first", "second", *(f"t{number}" for number in range(16))} - {"t7"})


@pytest.mark.usefixtures("patient")
def test_threads_that_are_refused_are_told_and_no_others(crowd: Crowd) -> None:
    """By the error that names them, after all else was committed."""

    def refuse(changes: Sequence[Change]) -> BaseException | None:
        if not any(one.thread_id == "t3" for one in changes):
            return None
        error = Refused("t3 is refused")
        error._by_thread = {"t3": "t3 is refused"}
        return error

    crowd.database.refuses = refuse
    hold_up(crowd)
    for number in range(8):
        crowd.start(change(f"t{number}"))
    crowd.wait_for(8)
    crowd.database.gate.set()
    crowd.join()
    assert isinstance(crowd.outcomes.pop("t3"), Refused)
    assert set(crowd.outcomes.values()) == {None}


@pytest.mark.usefixtures("patient")
def test_after_a_limit_each_goes_alone(crowd: Crowd) -> None:
    """One of them may be the reason."""
    crowd.database.refuses = lambda changes: (
        LimitReached("57014") if len(changes) > 1 or changes[0].thread_id == "t5" else None
    )
    hold_up(crowd)
    for number in range(8):
        crowd.start(change(f"t{number}"))
    crowd.wait_for(8)
    crowd.database.gate.set()
    crowd.join()
    assert isinstance(crowd.outcomes.pop("t5"), LimitReached)
    assert set(crowd.outcomes.values()) == {None}


@pytest.mark.usefixtures("patient")
def test_an_outage_is_not_waited_out_by_one_after_the_other(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who have waited as long fail with the commit that was retried all the time."""
    monkeypatch.setattr("checkpoint_store.database.commit_outcomes.OUTAGE_SECONDS", 0.0)
    crowd.database.refuses = lambda _: Unavailable("no server")
    hold_up(crowd)
    for number in range(300):
        crowd.start(change("busy" if number % 2 else f"t{number}"))
    crowd.wait_for(300)
    crowd.database.gate.set()
    crowd.join()
    assert {type(outcome) for outcome in crowd.outcomes.values()} == {Unavailable}
    assert crowd.database.entered._value < 10


@pytest.mark.usefixtures("patient")
def test_a_commit_has_so_many_bytes_and_one_target(crowd: Crowd) -> None:
    """Savers of other schemas have commits of their own."""
    hold_up(crowd)
    for number in range(6):
        crowd.start(change(f"large{number}", size=3_000_000))
    for number in range(6):
        crowd.start(change(f"{number}"), target=f"schema {number % 2}")
    crowd.wait_for(12)
    crowd.database.gate.set()
    crowd.join()
    assert sorted(len(commit) for commit in crowd.database.commits) == [1] * 8 + [3, 3]


def test_commits_that_take_long_hold_nobody_up(crowd: Crowd) -> None:
    """Such as those that wait for a lock of another session, whose own next call may be among those that wait."""
    hold_up(crowd)
    for number in range(3):
        crowd.start(change(f"t{number}"))
        assert crowd.database.entered.acquire(timeout=30)
    assert crowd.database.at_once == 5
    crowd.database.gate.set()
    crowd.join()


class Pressed(BaseException):
    """Ctrl-C."""


@pytest.mark.usefixtures("patient")
def test_who_is_interrupted_as_it_stores_for_others_leaves_that_to_them(crowd: Crowd) -> None:
    """The others are stored, in order."""
    pressed: list[str] = []

    def press(changes: Sequence[Change]) -> BaseException | None:
        if len(changes) > 1 and not pressed:
            pressed.append(changes[0].thread_id)
            return Pressed()
        return None

    crowd.database.refuses = press
    hold_up(crowd)
    for number in range(8):
        crowd.start(*[change(f"t{number}", one) for one in range(3)])
    crowd.wait_for(8)
    crowd.database.gate.set()
    crowd.join()
    assert isinstance(crowd.outcomes.pop(pressed[0]), Pressed)
    assert set(crowd.outcomes.values()) == {None}
    for number in range(8):
        if f"t{number}" != pressed[0]:
            assert crowd.database.stored(f"t{number}") == [0, 1, 2]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("woken", [False, True], ids=["as it waits", "as its turn comes"])
def test_who_is_interrupted_as_it_waits_holds_nobody_up(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, woken: bool
) -> None:
    """Its change is not stored by others, who go on."""
    hold_up(crowd)
    left = threading.Event()
    whole = "checkpoint_store.database.thread_commit.Turn.wait"

    def wait(turn: Any, seconds: float) -> bool:
        if threading.current_thread().name != "pressed":
            return bool(turn._lock.acquire(timeout=seconds))
        if woken:
            turn._lock.acquire()
        raise Pressed

    monkeypatch.setattr(whole, wait)

    def run() -> None:
        with pytest.raises(Pressed):
            crowd.commit.submit(crowd.database.store, "", change("pressed"))
        left.set()

    threading.Thread(target=run, name="pressed", daemon=True).start()
    if not woken:
        assert left.wait(30)
    else:
        crowd.wait_for(1)
    for number in range(4):
        crowd.start(change(f"t{number}"))
    crowd.wait_for(4)
    crowd.database.gate.set()
    assert left.wait(30)
    crowd.join()
    assert set(crowd.outcomes.values()) == {None}
    assert crowd.database.stored("pressed") == []


@pytest.mark.usefixtures("patient")
def test_draining_waits_for_all(crowd: Crowd) -> None:
    """For those who wait, too."""
    hold_up(crowd)
    for number in range(8):
        crowd.start(change(f"t{number}"))
    crowd.wait_for(8)
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(crowd.commit.drain)
        time.sleep(0.05)
        assert not drained.done()
        crowd.database.gate.set()
        drained.result(30)
    assert len(crowd.database.stored("t7")) == 1
    crowd.join()


def test_a_storm(crowd: Crowd) -> None:
    """Calls that are stored, refused and interrupted, at random: each has its outcome, and nothing is left."""

    def refuse(changes: Sequence[Change]) -> BaseException | None:
        numbers = [one.binds["number"] for one in changes]
        if any(number % 17 == 3 for number in numbers):
            return UnstorableValue("poison")
        return LimitReached("57014") if len(changes) > 6 else None

    crowd.database.refuses = refuse
    stored: list[tuple[str, int]] = []

    def run(name: str) -> None:
        for number in range(60):
            try:
                crowd.commit.submit(crowd.database.store, number % 2, change(name, number))
                stored.append((name, number))
            except (UnstorableValue, LimitReached):
                pass

    threads = [threading.Thread(target=run, args=(f"t{number % 9}",)) for number in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    crowd.join()
    assert len(stored) == sum(map(len, crowd.database.commits))
    assert len(stored) == sum(18 for number in range(60) if number % 17 != 3)
