"""A memory of pages is bounded."""

from __future__ import annotations

import pytest

from checkpoint_store import shelf as shelves
from checkpoint_store.pages import Cut, cut
from checkpoint_store.shelf import Shelf

PLACE = ("", "a")
OTHER = ("", "b")


def cut_of(size: int) -> Cut:
    return Cut(b"", {b"digest": b"x" * size})


def test_a_channels_last_value_is_remembered_beside_those_of_other_channels() -> None:
    """Not the value before it: that one is not likely to come back."""
    shelf = Shelf()
    shelf.remember("t", {PLACE: [b"1", b"2"]})
    shelf.remember("t", {OTHER: [b"3"]})
    shelf.remember("t", {PLACE: [b"2", b"4"]})
    known = shelf.known("t")

    assert known is not None
    assert [known.has(digest) for digest in (b"1", b"2", b"3", b"4")] == [False, True, True, True]
    assert shelf.known("another") is None


def test_who_has_asked_before_keeps_what_it_was_told() -> None:
    """Whatever is stored, or forgotten, meanwhile."""
    shelf = Shelf()
    shelf.remember("t", {PLACE: [b"1"], OTHER: [b"2"]})
    before = shelf.known("t")
    shelf.remember("t", {OTHER: [b"3"]})
    shelf.forget("t")
    shelf.remember("t", {PLACE: [b"4"]})
    known = shelf.known("t")

    assert before is not None
    assert [before.has(digest) for digest in (b"1", b"2", b"3", b"4")] == [True, True, False, False]
    assert known is not None
    assert [known.has(digest) for digest in (b"1", b"2", b"3", b"4")] == [False, False, False, True]


def test_what_has_turned_out_untrue_is_forgotten() -> None:
    """Of the thread in question only."""
    shelf = Shelf()
    for thread_id in ("x", "y"):
        shelf.remember(thread_id, {PLACE: [b"1"]})
    shelf.forget("x")
    shelf.forget("never known")

    assert shelf.known("x") is None
    assert shelf.known("y") is not None


def test_the_threads_used_longest_ago_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are never more digests than allowed, however often a thread is stored, forgotten and stored again."""
    monkeypatch.setattr(shelves, "MOST_DIGESTS", 30)
    shelf = Shelf()
    for _ in range(5):
        for number in range(3):
            shelf.remember(f"t{number}", {PLACE: [bytes([digest]) for digest in range(10)]})
        shelf.forget("t2")
        shelf.remember("t2", {PLACE: [bytes([digest]) for digest in range(10)]})
    assert None not in [shelf.known(f"t{number}") for number in (2, 1, 0)]

    shelf.remember("new", {PLACE: [b"1"]})

    assert shelf.known("t2") is None
    assert None not in [shelf.known(thread_id) for thread_id in ("t0", "t1", "new")]


def test_cuts_are_kept_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first; one that is larger than all may be is not kept, nor what it replaces."""
    monkeypatch.setattr(shelves, "MOST_BYTES", 100)
    shelf = Shelf()
    for _ in range(5):
        shelf.keep("x", PLACE, cut_of(50))
        shelf.keep("y", PLACE, cut_of(50))
    assert shelf.before("x", PLACE) is not None
    shelf.keep("z", PLACE, cut_of(10))

    assert shelf.before("y", PLACE) is None
    assert shelf.before("x", PLACE) is not None
    shelf.keep("x", PLACE, cut_of(101))
    assert shelf.before("x", PLACE) is None
    assert shelf.before("z", PLACE) is not None


def test_only_the_channels_last_value_is_at_hand() -> None:
    """A recipe that names any other page has to be joined by the server."""
    value = bytes(range(256)) * 400
    shelf, first, second = Shelf(), cut(value), cut(value[::-1])
    shelf.keep("t", PLACE, first)

    assert shelf.value("t", PLACE, first.recipe) == value
    assert shelf.value("t", OTHER, first.recipe) is None
    assert shelf.value("t", PLACE, second.recipe) is None
    assert shelf.value("t", PLACE, b"no recipe") is None


def test_whether_a_thread_has_values_at_hand_is_known_after_they_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread counts as long as any of its channels does."""
    monkeypatch.setattr(shelves, "MOST_BYTES", 100)
    shelf = Shelf()
    for place in (PLACE, OTHER, PLACE):
        shelf.keep("t", place, cut_of(40))
    assert shelf.has_values("t")

    shelf.keep("another", PLACE, cut_of(40))
    assert shelf.has_values("t")
    shelf.keep("another", OTHER, cut_of(60))
    assert not shelf.has_values("t")
    assert shelf.has_values("another")
