"""Declarations of operations are true: those that are said to read write nothing."""

from __future__ import annotations

from datetime import timedelta
from inspect import signature
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from checkpoint_store.database.replication_lag import ReplicationLag
from checkpoint_store.migrations import version_check
from checkpoint_store.serde.keys import Key, Listing
from checkpoint_store.serde.records import StoredWrite
from checkpoint_store.sql.executor import ConnectionExecutor
from checkpoint_store.sql.statements import statements_of
from checkpoint_store.sql.thread_rows import first_key
from checkpoint_store.storage import (
    catalog,
    checkpoint_list,
    copy_thread,
    delete_thread,
    deletion,
    expiry,
    leftovers,
    locks,
    probes,
    read,
    refusals,
    shared_pages,
    thread_list,
    thread_rows,
    thread_stats,
    write,
)
from checkpoint_store.storage.deletion_plan import Rule
from checkpoint_store.storage.expiry import Expiration, Expiry
from checkpoint_store.storage.operation import Kind, Operation
from checkpoint_store.storage.page_cache import PageCache
from checkpoint_store.tools import batches, reencryption

MODULES: list[ModuleType] = [
    refusals,
    thread_rows,
    catalog,
    checkpoint_list,
    copy_thread,
    delete_thread,
    deletion,
    expiry,
    leftovers,
    locks,
    probes,
    read,
    reencryption,
    version_check,
    shared_pages,
    thread_list,
    thread_stats,
    batches,
    write,
]
KEY = Key("t", "", "1")
RULE = Rule(keep=1)

READING: dict[str, tuple[Any, ...]] = {
    "are_distributed": (),
    "check_removal": (),
    "check_revisions": (),
    "count_checkpoints": (RULE, ["t"]),
    "count_leftovers": (["t"],),
    "count_orphaned_writes": ([],),
    "count_rows": ("t",),
    "count_threads": (),
    "delta_history": (KEY, ["a"]),
    "drop_lock": (1,),
    "find_checkpoint": (KEY,),
    "find_leftovers": (["t"],),
    "find_next_expired": ("", Expiration.of([Expiry(idle=timedelta(days=1))])),
    "find_next_leftovers": ("", None),
    "find_next_threads": ("", RULE),
    "find_orphaned_writes": ("", "1", RULE),
    "find_threads": (Rule(run_ids=["r"]), ["t"]),
    "get_checkpoint": (PageCache(), KEY),
    "get_settled": (PageCache(), KEY),
    "has_lock": (1,),
    "history": ("t", 1),
    "is_adopted": (),
    "is_at_head": (),
    "largest_threads": (1,),
    "thread_sizes": (["t"],),
    "list_checkpoints": (PageCache(), Listing("t", None, None, None, None, None), (None, 10)),
    "list_threads": None,  # type: ignore[dict-item]
    "lock_number": ("t",),
    "log_position": (),
    "catalog": (),
    "_look": ("count_plain", {}),
    "outlives_downgrade": (),
    "next_rows": ("t", StoredWrite, first_key(StoredWrite)),
    "next_threads_of": ("checkpoints", ""),
    "with_similar": (refusals.not_found("t"),),
    "next_blobs": ("msgpack", ("", "", "", ""), 10),
    "replayed_position": (),
    "revisions": (),
    "role": (),
    "session_id": (),
    "settled_history": (KEY, ["a"]),
    "table_sizes": (),
    "take_inventory": ("t",),
    "take_lock": (1,),
    "take_lock_in_transaction": ("t",),
    "thread_stats": ("t",),
}
"""All of them, and arguments."""


def declared(*kinds: Kind) -> dict[str, Operation[..., Any]]:
    found = [vars(module) for module in MODULES]
    operations = {name: thing for names in found for name, thing in names.items() if isinstance(thing, Operation)}
    return {name: thing for name, thing in operations.items() if thing.kind in kinds}


def test_all_that_read_are_tried_here() -> None:
    """One that is new has to be added to the table above."""
    assert declared(Kind.READ, Kind.PROBE).keys() == READING.keys()


@pytest.mark.parametrize("name", [name for name, args in READING.items() if args is not None])
def test_what_is_declared_to_read_writes_nothing(url: str, name: str) -> None:
    """It works in a transaction that is READ ONLY."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as conn:
        conn.execute(text("SET TRANSACTION READ ONLY"))
        declared(Kind.READ, Kind.PROBE)[name](ConnectionExecutor(conn), statements_of(None), *READING[name])


def test_what_was_written_is_noted_for_its_thread_alone() -> None:
    """A replica is asked for threads that this process has not written; reading them changes nothing of that."""
    written = ReplicationLag()
    for name, args in READING.items():
        written.note_call(declared(Kind.READ, Kind.PROBE)[name], args or ())
    assert not written.has("t")
    written.note_call(delete_thread.delete_thread, ("a",))
    assert (written.has("a"), written.has("t")) == (True, False)
    written.note_call(copy_thread.copy_thread, (("a", "b"), False, {}))
    assert written.has("t")


def test_operations_that_store_share_a_kind_and_take_changes_last() -> None:
    """The check for lost locks, a replica and metrics go by that."""
    storing = [write.store, write.store_continuing, write.store_large]
    assert {*declared(Kind.STORE).values()} == {*storing}
    for operation in declared(Kind.STORE).values():
        assert list(signature(operation.function).parameters)[-1] == "changes"


def test_what_locks_or_writes_in_several_statements_is_in_a_transaction() -> None:
    """Those that are not are one statement each, which commits itself."""
    alone = {name for name, thing in declared(Kind.WRITE).items() if not thing.in_transaction}
    assert alone == {"_fetch", "inline_blobs"}
    assert write.store_continuing.in_transaction
    assert not write.store.in_transaction
