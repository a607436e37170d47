"""Many changes as the binds of one statement: sorted, without duplicates, and with no page that is there already."""

from __future__ import annotations

import random
from typing import Any

from checkpoint_store.schema import PAGED
from checkpoint_store.serde import pages
from checkpoint_store.sql.write import COMPLETE, NEEDS, UNGATED
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.storage.write_batch import Change, Put, Writes, merged, paged, parts_of, size_of


def put(thread_id: str, checkpoint_id: str, *, parent: str | None = None, **blobs: bytes) -> Put:
    return Put(
        {
            "thread_id": thread_id,
            "checkpoint_ns": "",
            "checkpoint_id": checkpoint_id,
            "parent_checkpoint_id": parent,
            "checkpoint": "{}",
            "metadata": "{}",
            "kept": None,
            "channels": list(blobs),
            "versions": ["1"] * len(blobs),
            "types": ["msgpack"] * len(blobs),
            "blobs": list(blobs.values()),
        }
    )


def writes(thread_id: str, task_id: str, *idxs: int, blob: bytes = b"") -> Writes:
    binds = {
        "thread_id": thread_id,
        "checkpoint_ns": "",
        "checkpoint_id": "1",
        "task_id": task_id,
        "task_path": "",
        "idxs": list(idxs),
        "channels": ["a"] * len(idxs),
        "types": ["msgpack"] * len(idxs),
        "blobs": [blob] * len(idxs),
    }
    return Writes(binds)


def keys(binds: dict[str, Any], prefix: str, *names: str) -> list[tuple[Any, ...]]:
    return list(zip(*[binds[f"{prefix}_{name}s"] for name in names], strict=True))


def test_rows_of_every_table_are_sorted_by_key() -> None:
    """In whichever order the calls came: so two processes lock them in the same one."""
    changes: list[Change] = [
        put(f"t{thread}", f"{number}", b=b"", a=b"") for thread in range(3) for number in range(12)
    ]
    changes += [
        writes(f"t{thread}", f"{task}", *idxs)
        for thread in range(3)
        for task in range(3)
        for idxs in ((1, 0), (-1, -3), (0, -1))
    ]
    random.Random(0).shuffle(changes)
    binds = merged(changes, {})

    write = ("thread_id", "checkpoint_id", "task_id", "idx")
    for prefix, names, count in (
        ("checkpoint", ("thread_id", "checkpoint_id"), 36),
        ("blob", ("thread_id", "channel", "version"), 6),
        ("write", write, 36),
    ):
        found = keys(binds, prefix, *names)
        assert found == sorted(set(found))
        assert len(found) == count
    assert parts_of(binds) == {"checkpoint", "blob", "write"}


def test_gates_are_those_of_all_threads_as_soon_as_one_has_pages() -> None:
    """Otherwise there are none, nor are there arrays of a table without rows."""
    plain, pages = put("t2", "1"), put("t1", "1", a=b"recipe")
    pages.pages = {b"digest": b"page"}

    assert parts_of(merged([plain], {})) == {"checkpoint"}
    binds = merged([plain, pages], {})
    assert parts_of(binds) == {"gate", "checkpoint", "blob", "page"}
    assert keys(binds, "gate", "thread_id") == [("t1",), ("t2",)]


def test_of_two_blobs_of_one_version_the_first_stays() -> None:
    """A version names a value once and for all; the checkpoint is the last one all the same, with its first parent."""
    binds = merged([put("t", "1", parent="0", a=b"first"), put("t", "1", parent="9", a=b"second", b=b"new")], {})

    assert keys(binds, "blob", "channel", "blob") == [("a", b"first"), ("b", b"new")]
    assert keys(binds, "checkpoint", "checkpoint_id", "parent_checkpoint_id") == [("1", "0")]


def test_of_writes_to_one_row_the_last_special_and_the_first_ordinary_one_stay() -> None:
    """As if the calls had run one after the other, whatever else is in them."""
    changes = [
        writes("t", "task", *idxs, blob=str(number).encode())
        for number, idxs in enumerate([(-1, 0), (0,), (-4, 0, 1), (-4, -1, 1)])
    ]

    assert keys(merged(changes, {}), "write", "idx", "blob") == [(-4, b"3"), (-1, b"3"), (0, b"0"), (1, b"2")]


def test_only_pages_that_the_database_lacks_are_sent() -> None:
    """Of a thread that nothing is known of all are; of another the rest is named, to be looked for."""
    value = random.Random(0).randbytes(pages.LARGE_BYTES * 2)
    changes = [paged(put(thread_id, "1", a=value).binds, PageCache()) for thread_id in ("known", "new")]
    digests = list(changes[0].pages)
    assert len(digests) > 3
    binds = merged([*changes, writes("plain", "task", 0)], {"known": set(digests[1:])})

    sent = keys(binds, "page", "thread_id", "digest")
    assert sent == sorted([("known", digests[0]), *[("new", digest) for digest in digests]])
    assert {row[0]: row[1:] for row in keys(binds, "gate", "thread_id", "first", "last")}["known"] == (
        1,
        len(digests) - 1,
    )
    assert sorted(binds["needed_digests"]) == sorted(digests[1:])
    assert keys(binds, "gate", "thread_id", "kind") == [("known", NEEDS), ("new", COMPLETE), ("plain", UNGATED)]


def test_only_large_msgpack_is_cut() -> None:
    """What is small, or encrypted, is stored as it is; the call's own binds are left alone."""
    large = b"\xc6" + (pages.LARGE_BYTES * 2).to_bytes(4, "big") + random.Random(0).randbytes(pages.LARGE_BYTES * 2)
    call = put("t", "1", encrypted=large, large=large, small=b"small")
    call.binds["types"][0] = "msgpack+aes"
    cut = paged(call.binds, PageCache())

    assert list(map(pages.is_large, call.binds["types"], call.binds["blobs"])) == [False, True, False]
    assert cut.binds["types"] == ["msgpack+aes", PAGED, "msgpack"]
    assert cut.binds["blobs"][0] is large
    assert pages.join(cut.binds["blobs"][1], cut.pages) == large
    assert call.binds["types"] == ["msgpack+aes", "msgpack", "msgpack"]
    assert cut.digests == {("", "large"): cut.pages.keys()}
    assert size_of(cut) > 4 * pages.LARGE_BYTES
