"""Whatever a caller passes to what removes, copies, lists and locks threads: exactly that is done, or it is refused."""

from __future__ import annotations

import base64
import json
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import strategies as st
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver

from checkpoint_store import PostgresSaver, transfer
from checkpoint_store.expiry import Expiry
from tests.fuzz.archive import CHECKPOINTS, RUNS, THREADS, Archive, Key, fill, of_thread
from tests.fuzz.odd import Evil, anything, mostly, outcome, some, storable, texts


@pytest.fixture
def archive(sync_saver: PostgresSaver, sql: psycopg.Connection) -> Archive:
    """The saver's database, with threads in it."""
    fill(sync_saver)
    return Archive(sql)


def broken(members: list[Any]) -> Iterator[Any]:
    yield from members
    raise KeyError


KINDS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "deque": deque,
    "iterator": iter,
    "none": lambda members: members,
}


def collections(known: list[str]) -> st.SearchStrategy[tuple[str, Any]]:
    """What is passed as ids: what they are put in, and they themselves; or anything."""
    sound = st.lists(st.sampled_from(known) | storable, max_size=4)
    odd = st.lists(st.sampled_from(known) | texts | anything, max_size=3)
    kinds = mostly(st.sampled_from([*KINDS]), st.just("broken"))
    return mostly(st.tuples(kinds, mostly(sound, odd)), st.tuples(st.just("none"), anything))


def made(collection: tuple[str, Any]) -> Any:
    kind, members = collection
    return broken(members) if kind == "broken" else KINDS[kind](members)


def named(collection: tuple[str, Any]) -> set[str]:
    """The ids in a collection that was taken: they are texts, whatever else their classes say."""
    return {str.__str__(member) for member in collection[1]}


threads = st.sampled_from(THREADS)
thread_ids = mostly(threads | storable)
numbers = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 2**31, 2**63, 10**4001])
flags = mostly(st.booleans())
none = st.none()


def newest(thread_id: str, keep: int) -> set[Key]:
    return set(of_thread(thread_id)[-int.__int__(keep) :])


def test_any_runs(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """The checkpoints of the runs that are named go, and no others."""

    @fuzz(collections(RUNS))
    def _(collection: Any) -> str:
        ending, report = outcome(lambda: sync_saver.delete_for_runs(made(collection)), "run_ids")
        runs = set() if report is None else named(collection)
        gone = {key for key, checkpoint in CHECKPOINTS.items() if checkpoint.run_id in runs}
        assert archive.checkpoints() == {*CHECKPOINTS} - gone
        assert archive.changed() == {thread_id for thread_id, _ in gone}
        assert report is None or report.checkpoints == len(gone)
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_pruning(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """Of the threads that are named so many checkpoints stay, or none; the others stay as they are."""
    strategies = st.sampled_from(["keep_latest", "keep_latest", "delete"])

    @fuzz(collections(THREADS), mostly(strategies), mostly(numbers))
    def _(collection: Any, strategy: Any, keep: Any) -> str:
        ending, report = outcome(
            lambda: sync_saver.prune(made(collection), strategy=strategy, keep=keep), "thread_ids", "strategy", "keep"
        )
        left = {*CHECKPOINTS}
        for thread_id in set() if report is None else named(collection) & {*THREADS}:
            stays = newest(thread_id, keep) if strategy == "keep_latest" else set()
            left -= {*of_thread(thread_id)} - stays
        assert archive.checkpoints() == left
        assert archive.changed() == {thread_id for thread_id, _ in {*CHECKPOINTS} - left}
        assert report is None or report.checkpoints == len(CHECKPOINTS) - len(left)
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def left_by_sweep(older_than: timedelta | None, keep_last: Any, spare_active: bool) -> set[Key]:
    """What a sweep has to leave, by the book."""
    left: set[Key] = set()
    for thread_id in THREADS:
        keys = of_thread(thread_id)
        young = set() if older_than is None else {key for key in keys if is_younger(key, older_than)}
        if (spare_active and young) or young == {*keys}:
            left |= {*keys}
        else:
            stays = newest(thread_id, keep_last) if keep_last is not None else newest(thread_id, 1) if young else set()
            left |= young | stays
    return left


def is_younger(key: Key, age: timedelta) -> bool:
    return datetime.now(UTC) - CHECKPOINTS[key].at < timedelta.__add__(timedelta(0), age)


def test_any_sweep(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """What is too old or too much goes, and a dry run takes nothing away."""
    ages = st.timedeltas(timedelta(hours=2), timedelta(days=90)) | st.timedeltas()
    limits = [{"older_than": mostly(ages)}, {"keep_last": mostly(numbers)}]
    options = {"spare_active": flags, "dry_run": flags, "batch_size": mostly(numbers), "on_progress": mostly(none)}

    @fuzz(
        st.sampled_from([limits[0], limits[1], {**limits[0], **limits[1]}, {}]).flatmap(
            lambda given: st.fixed_dictionaries(given, optional=options)
        )
    )
    def _(options: dict[str, Any]) -> str:
        ending, report = outcome(lambda: sync_saver.sweep(**options), "older_than", *options)
        left = {*CHECKPOINTS}
        if report is not None:
            left = left_by_sweep(
                options.get("older_than"), options.get("keep_last"), options.get("spare_active", False)
            )
            assert report.checkpoints == len(CHECKPOINTS) - len(left)
        gone = set() if options.get("dry_run") is True else {*CHECKPOINTS} - left
        assert archive.checkpoints() == {*CHECKPOINTS} - gone
        assert archive.changed() == {thread_id for thread_id, _ in gone}
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def expired(thread_id: str, rules: list[dict[str, Any]]) -> bool:
    """Whether a thread has expired, by the book: by the first rule that is for it."""
    keys = of_thread(thread_id)
    metadata = {"step": len(keys) - 1, "run_id": CHECKPOINTS[keys[-1]].run_id}
    for rule in rules:
        if all(metadata.get(name) == value for name, value in (rule.get("filter") or {}).items()):
            idle, age, quiet = rule.get("idle"), rule.get("age"), rule.get("quiet", timedelta(hours=1))
            is_idle = idle is not None and not is_younger(keys[-1], idle)
            is_old = age is not None and not is_younger(keys[0], age) and not is_younger(keys[-1], quiet)
            return is_idle or is_old
    return False


def test_any_expiry(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """The threads go that have expired by the first rule for them and are not kept; the others stay as they are."""
    spans = st.timedeltas(timedelta(minutes=1), timedelta(days=90))
    sought = st.fixed_dictionaries({}, optional={"step": st.integers(0, 2), "run_id": st.sampled_from(RUNS)})
    sound = {"age": spans | none, "quiet": spans, "filter": none | sought}
    odd = dict.fromkeys(("idle", "age", "quiet"), mostly(none | st.timedeltas()))
    given = mostly(st.fixed_dictionaries({"idle": spans}, optional=sound), st.fixed_dictionaries({}, optional=odd))
    options = {"dry_run": flags, "batch_size": mostly(numbers), "spare_active": st.just(False)}

    @fuzz(st.lists(given, min_size=1, max_size=3), st.fixed_dictionaries({}, optional=options), st.sets(threads))
    def _(rules: list[dict[str, Any]], options: dict[str, Any], kept: set[str]) -> str:
        hooked: list[str] = []
        ending, report = outcome(
            lambda: sync_saver.sweep(
                expiry=[Expiry(**one) for one in rules],
                keep=lambda thread: thread.thread_id in kept,
                before_delete=lambda threads: hooked.extend(one.thread_id for one in threads),
                **options,
            ),
            *("Expiry()", "idle", "age", "quiet", *options),
        )
        gone = {one for one in THREADS if ending == "done" and expired(one, rules)} - kept
        assert report is None or report.threads == len(gone)
        gone = set() if options.get("dry_run") is True else gone
        assert sorted(hooked) == sorted(gone)
        assert archive.changed() == gone
        assert {thread_id for thread_id, _ in archive.checkpoints()} == {*THREADS} - gone
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_copy(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """The target becomes what the source is; nothing else changes, and nothing is replaced unasked."""

    @fuzz(mostly(threads, thread_ids), thread_ids, flags)
    def _(source: Any, target: Any, replace: Any) -> str:
        ending, _ = outcome(
            lambda: sync_saver.copy_thread(source, target, replace=replace),
            *("source_thread_id", "target_thread_id", "source and target", "nothing is stored", "replace"),
        )
        copied = {str.__str__(target)} if ending == "done" else set()
        assert archive.changed() == copied
        for name in copied:
            ids = {checkpoint_id for thread_id, checkpoint_id in archive.checkpoints() if thread_id == name}
            assert ids == {checkpoint_id for _, checkpoint_id in of_thread(source)}
            assert name not in THREADS or replace is True
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def forge(members: list[Any]) -> str:
    """A cursor that no list has given, as far as there can be one of these."""
    try:
        text = json.dumps(members)
    except (TypeError, ValueError, RecursionError, Evil):
        text = "[]"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def test_any_list_of_threads(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """Limits, cursors, orders, filters and prefixes of any shape: the threads that fit, in order, or a refusal."""
    listed = {order: list(sync_saver.list_threads(order=order)) for order in ("newest", "thread_id")}  # type: ignore[arg-type]
    cursors = st.sampled_from([found.cursor for threads in listed.values() for found in threads])
    # What a cursor is inside, with other things in it.
    forged = st.lists(st.sampled_from(["newest", "rootless", "thread_id", "mixed"]) | some, max_size=4).map(forge)
    orders = st.sampled_from(["newest", "thread_id"])
    filters = st.dictionaries(st.sampled_from(["step", "run_id"]) | texts, st.integers(0, 2) | anything, max_size=2)

    given = {
        "limit": mostly(none | st.integers(0, 4) | numbers),
        "cursor": mostly(none | cursors, forged | some),
        "order": mostly(orders),
        "filter": mostly(none | filters),
        "prefix": mostly(st.sampled_from([None, "", "mi", "old"])),
        "count": flags,
    }

    @fuzz(st.fixed_dictionaries({}, optional=given))
    def _(options: dict[str, Any]) -> str:
        ending, found = outcome(lambda: list(sync_saver.list_threads(**options)), *options)
        assert not archive.changed()
        if found is None:
            return ending
        prefix = "" if options.get("prefix") is None else str.__str__(options["prefix"])
        expected = [one.thread_id for one in listed[options.get("order", "newest")] if one.thread_id.startswith(prefix)]
        ids = [one.thread_id for one in found]
        assert ids == [thread_id for thread_id in expected if thread_id in ids]
        assert options.get("limit") is None or len(ids) <= int.__int__(options["limit"])
        assert all((one.checkpoints is not None) is options.get("count", False) for one in found)
        if not options.get("filter") and all(options.get(name) is None for name in ("limit", "cursor")):
            assert ids == expected
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_thread_to_measure(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """The rows of the thread are counted; of one that isn't there, none."""

    @fuzz(thread_ids)
    def _(thread_id: Any) -> str:
        ending, stats = outcome(lambda: sync_saver.get_thread_stats(thread_id), "thread_id")
        assert stats is None or stats.checkpoints == len(of_thread(str.__str__(thread_id)))
        assert not archive.changed()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_lock(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """It is had, and given back; whatever its time-out is."""
    seconds = st.sampled_from([None, 0, 1, 0.5, 10**300, 10**400, 1e308]) | st.floats() | st.integers()

    @fuzz(thread_ids, mostly(seconds))
    def _(thread_id: Any, timeout: Any) -> str:
        def use() -> bool:
            with sync_saver.thread_lock(thread_id, timeout=timeout) as lock:
                return not lock.lost

        ending, held = outcome(use, "thread_id", "timeout")
        assert held in (True, None)
        assert not archive.changed()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3


def test_any_transfer(sync_saver: PostgresSaver, archive: Archive, fuzz: Any) -> None:
    """The threads that are named are copied; from what is no saver, to what is none of ours, nothing is."""
    theirs = InMemorySaver()
    fill(theirs, "their ")
    theirs.put({"configurable": {"thread_id": 42, "checkpoint_ns": ""}}, empty_checkpoint(), {}, {})
    known = [f"their {thread_id}" for thread_id in THREADS]
    mine, yours = st.just(theirs), st.just(sync_saver)

    @fuzz(
        *(mostly(mine), mostly(yours)),
        collections(known) | st.tuples(st.just("list"), st.lists(st.sampled_from([*known, 42]))),
        *(mostly(none), mostly(none)),
    )
    def _(source: Any, target: Any, collection: Any, on_progress: Any, on_error: Any) -> str:
        ending, report = outcome(
            lambda: transfer.copy_threads(source, target, made(collection), on_progress=on_progress, on_error=on_error),
            *("source", "target", "thread", "on_progress", "on_error"),
        )
        ids = [*known, 42] if collection[1] is None else collection[1]
        if report is None:
            assert archive.changed() <= {*known, "42"}
        elif on_error is None:
            assert archive.changed() == {str(int(one)) if type(one) is int else str.__str__(one) for one in ids}
            assert report.threads == len(archive.changed())
        archive.restore()
        return ending

    assert min(fuzz.endings["done"], fuzz.endings["refused"]) > 3
