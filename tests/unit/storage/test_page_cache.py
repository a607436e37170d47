"""A memory of pages is bounded, in real bytes, and takes no longer the more it has."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable

import pytest

from checkpoint_store.serde.pages import cut
from checkpoint_store.storage import page_cache as page_caches
from checkpoint_store.storage.page_cache import PageCache, PageMemory, page_memory_of

PLACE = ("", "a")
OTHER = ("", "b")


def value_of(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def known(shelf: PageCache, thread_id: str, *digests: bytes) -> list[bool]:
    there = shelf.known(thread_id)
    return [there is not None and digest in there for digest in digests]


def test_a_channels_last_value_is_remembered_beside_those_of_other_channels() -> None:
    """Not the value before it: that one is not likely to come back."""
    shelf = PageCache()
    shelf.remember("t", {PLACE: [b"1", b"2"]})
    shelf.remember("t", {OTHER: [b"3", b"2"]})
    shelf.remember("t", {PLACE: [b"4"]})

    assert known(shelf, "t", b"1", b"2", b"3", b"4") == [False, True, True, True]
    assert shelf.known("another") is None


def test_schemas_share_a_memory_and_nothing_else() -> None:
    """The same thread of two schemas is two threads, within one budget."""
    memory = PageMemory()
    one, other = PageCache(memory, "one"), PageCache(memory, "other")
    one.remember("t", {PLACE: [b"1"]})
    one.keep("t", PLACE, cut(value_of(50_000)))

    assert other.known("t") is None
    assert other.before("t", PLACE) is None
    assert not other.has_values("t")
    assert known(one, "t", b"1") == [True]


def test_what_has_turned_out_untrue_is_forgotten() -> None:
    """Of the thread in question only; who has asked before keeps what it was told."""
    shelf = PageCache()
    for thread_id in ("x", "y"):
        shelf.remember(thread_id, {PLACE: [b"1"]})
    before = shelf.known("x")
    shelf.forget("x")
    shelf.forget("never known")
    shelf.remember("x", {OTHER: [b"2"]})

    assert before is not None
    assert b"1" in before
    assert known(shelf, "x", b"1", b"2") == [False, True]
    assert known(shelf, "y", b"1") == [True]


def test_values_go_before_what_is_known_of_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first, each channel by itself, and never more than half of the memory for the sake of one value."""
    size = page_caches._size_of(cut(value_of(50_000)))
    monkeypatch.setattr(page_caches, "MOST_BYTES", 4 * size)
    shelf = PageCache()
    for number in range(5):
        made = cut(value_of(50_000, number))
        shelf.keep("t", ("", f"{number}"), made)
        shelf.remember("t", {("", f"{number}"): made.pages})

    there = [shelf.before("t", ("", f"{number}")) is not None for number in range(5)]
    assert there == sorted(there)
    assert 1 < sum(there) < 5
    assert all(all(known(shelf, "t", *cut(value_of(50_000, number)).pages)) for number in range(5))
    shelf.keep("t", ("", "4"), cut(value_of(150_000)))
    assert shelf.before("t", ("", "4")) is None, "nor is what it replaces"
    assert shelf.memory.bytes <= page_caches.MOST_BYTES


def test_what_is_known_of_pages_goes_channel_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is never more than allowed, in many threads or in one with many namespaces, whatever is forgotten."""
    monkeypatch.setattr(page_caches, "MOST_BYTES", 100_000)
    for thread_of in (str, lambda _: "t"):
        shelf = PageCache()
        for number in range(300):
            digests = [number.to_bytes(8, "big") + bytes([digest] * 8) for digest in range(10)]
            shelf.remember(thread_of(number), {(f"namespace {number}", "a"): digests})
            assert shelf.memory.bytes <= 100_000
            assert all(known(shelf, thread_of(number), *digests))
            if number % 50 == 40:
                shelf.forget(thread_of(number))
        assert known(shelf, thread_of(0), bytes(8) + bytes(8)) == [False]
        for number in range(300):
            shelf.forget(thread_of(number))
        assert (shelf.memory.bytes, shelf.memory._threads) == (0, {})


def test_only_the_channels_last_value_is_at_hand() -> None:
    """A recipe that names any other page has to be joined by the server."""
    value = bytes(range(256)) * 400
    shelf, first, second = PageCache(), cut(value), cut(value[::-1])
    shelf.keep("t", PLACE, first)

    assert shelf.value("t", PLACE, first.recipe) == value
    assert shelf.value("t", OTHER, first.recipe) is None
    assert shelf.value("t", PLACE, second.recipe) is None
    assert shelf.value("t", PLACE, b"no recipe") is None


def test_whether_a_thread_has_values_at_hand_is_known_after_they_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread counts as long as any of its channels does."""
    made = cut(value_of(50_000))
    monkeypatch.setattr(page_caches, "MOST_BYTES", int(page_caches._size_of(made) * 2.5))
    shelf = PageCache()
    for place in (PLACE, OTHER, PLACE):
        shelf.keep("t", place, made)
    assert shelf.has_values("t")

    shelf.keep("another", PLACE, made)
    assert shelf.has_values("t")
    shelf.keep("another", OTHER, made)
    assert not shelf.has_values("t")
    assert shelf.has_values("another")


def list_of(number: int) -> bytes:
    elements = [b"\xc4\x64" + value_of(100, number if place < 100 else place) for place in range(3_000)]
    return b"\xdd" + len(elements).to_bytes(4, "big") + b"".join(elements)


VALUES: dict[str, Callable[[int], bytes]] = {
    "zeros": lambda _: bytes(1_000_000),
    "zeros, shifted": lambda number: value_of(number % 50, number) + bytes(1_000_000),
    "random": lambda number: value_of(200_000, number),
    "small": lambda number: value_of(20_000, number),
    "list": list_of,
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("threads", [1, 400])
def test_the_bytes_that_are_counted_are_those_that_are_held(
    kind: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the interpreter has it, for values of any kind, one after the other on one thread or each on its own."""
    monkeypatch.setattr(page_caches, "MOST_BYTES", 2_000_000)
    tracemalloc.start()
    try:
        shelf, most = PageCache(), 0
        before, _ = tracemalloc.get_traced_memory()
        for number in range(400 if kind == "small" else 60):
            place = (f"namespace {number % threads}", "messages")
            made = cut(VALUES[kind](number), shelf.before(f"{number % threads}", place))
            shelf.keep(f"{number % threads}", place, made)
            shelf.remember(f"{number % threads}", {place: made.pages.keys()})
            most = max(most, shelf.memory.bytes)
        del made
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert most <= 2_000_000
    assert held <= shelf.memory.bytes * 1.1 + 50_000


def test_a_memory_goes_with_its_engine() -> None:
    """By its dialect, which is the same for the engine's variants."""

    class Dialect:
        pass

    first, second = Dialect(), Dialect()
    assert page_memory_of(first) is page_memory_of(first)
    assert page_memory_of(first) is not page_memory_of(second)
    count = len(page_caches._memories)
    del first
    gc.collect()
    assert len(page_caches._memories) == count - 1
