"""Encryption of what is stored: keys that follow each other, and rows that were written before a key, or under another.

serde = EncryptedSerializer(KeyRing.aes(new_key, old_key))
saver = AsyncPostgresSaver(engine, serde=serde, require_encryption=True)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from sqlalchemy import Engine, Table
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.factory import engine_backend
from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.schema import PAGED
from checkpoint_store.serde import associated_data, jsonb, validation
from checkpoint_store.serde.arguments import callback, positive
from checkpoint_store.serde.associated_data import Place
from checkpoint_store.serde.key_ring import KeyRing, _is_current
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks, shared_pages
from checkpoint_store.storage.operation import Kind, operation


@dataclass(frozen=True)
class Reencryption:
    """How far a database has been encrypted anew."""

    blobs: int = 0
    """Channel values rewritten."""
    writes: int = 0
    """Pending writes rewritten."""
    scalars: int = 0
    """Values that were inline in a checkpoint's JSON, in clear."""
    current: int = 0
    """What was encrypted with the new key already."""
    unreadable: int = 0
    """What neither key opens, or lacks a page or a version; left as it is."""
    busy: int = 0
    """What somebody has changed while it was being rewritten; call again."""


class Unencrypted(NamedTuple):
    """What is stored in clear; a saver with `require_encryption` refuses to read it."""

    blobs: int
    writes: int
    scalars: int


Progress = Callable[[Reencryption], None]

_PART = 16
"""The bytes of a nonce, and those of a tag."""

_FIRST = {"thread_id": "", "checkpoint_ns": "", "checkpoint_id": "", "channel": "", "version": "", "task_id": ""}
_FIRST_IDX = -(2**31)

# An Ext of msgpack's with LangGraph's code for a channel's snapshot (langgraph/checkpoint/serde/jsonplus.py).
_SNAPSHOT = re.compile(rb"(?s:[\xd4-\xd8]|\xc7.|\xc8..|\xc9.{4})\x07")


async def reencrypt(
    engine: AsyncEngine | Engine,
    old: EncryptedSerializer | None,
    new: EncryptedSerializer,
    *,
    schema: str | None = None,
    batch_size: int = 50,
    on_progress: Progress | None = None,
) -> Reencryption:
    """Encrypt everything in a database with a new key: what is in clear, inline or in pages, and what has an old key.

    May be interrupted and called again, and run while the database is in use: each batch is a statement of its own, and
    changes no row that somebody else has changed meanwhile. Values are decrypted and encrypted, not decoded. By then
    savers have to know the new key, and those that write in clear or with an old key have to be gone.

    Args:
        engine: The engine; a sync one is worked on from worker threads.
        old: What opens the values that are encrypted with an old key; None if nothing is encrypted yet.
        new: What encrypts; of a `KeyRing` the newest key.
        schema: The PostgreSQL schema of the tables.
        batch_size: How many rows to read and rewrite at a time.
        on_progress: Called after each batch with what has been done so far.

    Returns:
        What was done.

    Raises:
        InvalidOption: If `old` or `new` is no `EncryptedSerializer`, or another argument can't be used.
        UnusableConnection: If `engine` is no engine that we can work on.
        NotSetUp: If the tables are missing.
        WrongTransaction: If a listener begins our transactions, and in another isolation level than READ COMMITTED.
        Unavailable: If the server can't be reached.
    """
    for name, serde in (("old", old), ("new", new)):
        if not isinstance(serde, EncryptedSerializer) and not (serde is None and name == "old"):
            raise InvalidOption(f"{name} is {short_repr(serde)}; it has to be an EncryptedSerializer of LangGraph's")
    callback(on_progress, "on_progress")
    most = positive(batch_size, "batch_size")
    source = engine_backend(engine, {"schema": schema, "share_pages": False})
    await source.run(locks.check_removal)
    rewriting, tables = _Rewriting(source, _Safe(old, new), most, on_progress), source.sql.tables
    await rewriting.values("blobs", tables.checkpoint_blobs, "next_blob_values", "rewrite_blobs", _of_value)
    await rewriting.values("writes", tables.checkpoint_writes, "next_write_values", "rewrite_writes", _of_write)
    await rewriting.scalars(tables.checkpoints)
    return rewriting.report


async def count_unencrypted(engine: AsyncEngine | Engine, *, schema: str | None = None) -> Unencrypted:
    """Count what is stored in clear.

    Args:
        engine: The engine; a sync one is worked on from a worker thread.
        schema: The PostgreSQL schema of the tables.

    Returns:
        How many channel values, pending writes and inline values.

    Raises:
        NotSetUp: If the tables are missing.
        Unavailable: If the server can't be reached.
    """
    source = engine_backend(engine, {"schema": schema, "share_pages": False})
    return Unencrypted._make((await source.run(_look, "count_plain", {}))[0])


class _Rewriting:
    """One call of `reencrypt`, and how far it is."""

    def __init__(self, source: Backend, safe: _Safe, batch_size: int, on_progress: Progress | None) -> None:
        self.report = Reencryption()
        self._backend = source
        self._safe = safe
        self._batch_size = batch_size
        self._on_progress = on_progress

    async def values(
        self, name: str, table: Table, read: str, rewrite: str, place: Callable[[Sequence[Any], str], Place]
    ) -> None:
        """Rewrite the bytes in a table, whose rows are of a place by their key and channel."""
        keys = [column.name for column in table.primary_key]
        async for rows in self._pages(keys, read):
            rewritten, current, unreadable = await asyncio.to_thread(self._safe.again, rows, place)
            names = [*keys, "digest", "type", "blob"]
            done = len(await self._backend.run(_fetch, rewrite, array_binds(names, rewritten))) if rewritten else 0
            for thread_id in dict.fromkeys(row[0] for row in rows if row[-3] == PAGED):
                await self._backend.run(shared_pages.collect_pages, thread_id)
            self._note(**{name: done}, current=current, unreadable=unreadable, busy=len(rewritten) - done)

    async def scalars(self, table: Table) -> None:
        """Make blobs of what is inline."""
        keys = [column.name for column in table.primary_key]
        async for rows in self._pages(keys, "next_inline_values"):
            checkpoints, values, unreadable = await asyncio.to_thread(self._safe.blobs_of, rows)
            of_value = ("thread_id", "checkpoint_ns", "channel", "version", "checkpoint_id", "type", "blob")
            binds = {
                **array_binds((*keys, "before", "after"), [row[:-1] for row in checkpoints]),
                **array_binds(of_value, values, "value_"),
            }
            moved = set(map(tuple, await self._backend.run(_fetch, "move_inline", binds) if checkpoints else ()))
            done = sum(row[-1] for row in checkpoints if row[: len(keys)] in moved)
            self._note(scalars=done, unreadable=unreadable, busy=len(checkpoints) - len(moved))

    async def _pages(self, keys: Sequence[str], read: str) -> AsyncIterator[Sequence[Row]]:
        last: Sequence[Any] = [_FIRST.get(key, _FIRST_IDX) for key in keys]
        while True:
            binds = {f"last_{key}": value for key, value in zip(keys, last, strict=True)}
            if not (rows := await self._backend.run(_look, read, {**binds, "limit": self._batch_size})):
                return
            yield rows
            last = rows[-1][: len(keys)]

    def _note(self, **more: int) -> None:
        self.report = replace(self.report, **{name: getattr(self.report, name) + count for name, count in more.items()})
        if self._on_progress:
            self._on_progress(self.report)


class _Safe:
    """Opens with old keys, and encrypts with the new one."""

    def __init__(self, old: EncryptedSerializer | None, new: EncryptedSerializer) -> None:
        self._new = new
        self._any = KeyRing(*[serde.cipher for serde in (old, new) if serde is not None])

    def again(self, rows: Sequence[Row], place: Callable[[Sequence[Any], str], Place]) -> tuple[list[Row], int, int]:
        """Return rows with their values encrypted anew, and how many needn't be, and how many can't."""
        rewritten: list[Row] = []
        current = unreadable = 0
        for *key, channel, digest, _, kind, blob in rows:
            try:
                if (value := self._encrypted(kind, blob, place(key, channel))) is None:
                    current += 1
                else:
                    rewritten.append((*key, digest, *value))
            except Exception:
                unreadable += 1
        return rewritten, current, unreadable

    def blobs_of(self, rows: Sequence[Row]) -> tuple[list[Row], list[Row], int]:
        """Return what is inline in checkpoints as blobs.

        Returns:
            The checkpoints, with their inline values before and after and how many were taken out; the blobs; and how
            many values have to stay where they are.
        """
        checkpoints: list[Row] = []
        blobs: dict[Any, Row] = {}
        unreadable = 0
        for thread_id, checkpoint_ns, checkpoint_id, before, *inline in rows:
            after: dict[str, Any] = {}
            taken = 0
            for channel, text, version, kind, blob in zip(*inline, strict=True):
                try:
                    # Beside a blob there may be the mark of a snapshot; anything else is out of date.
                    place = associated_data.of_value(checkpoint_ns, channel, version)
                    if blob is not None and self._is_snapshot(kind, blob, place):
                        after[channel] = True
                        continue
                    value = jsonb.decode(text)
                    if kind is None:
                        key = (thread_id, checkpoint_ns, channel, validation.version_text(version, "", channel))
                        if key not in blobs:
                            blobs[key] = (*key, checkpoint_id, *associated_data.dumps(self._new, value, place))
                    taken += 1
                except Exception:
                    after[channel] = orjson.Fragment(text)
                    unreadable += 1
            if taken:
                checkpoints.append((thread_id, checkpoint_ns, checkpoint_id, before, jsonb.encode(after), taken))
        return checkpoints, list(blobs.values()), unreadable

    def _is_snapshot(self, kind: str, blob: bytes, place: Place) -> bool:
        kind, encrypted, name = kind.partition("+")
        try:
            if encrypted:
                blob = self._any.decrypt_at(associated_data.associated(kind, place), name, blob)
            return kind == "msgpack" and bool(_SNAPSHOT.match(blob))
        except ValueError:
            return True  # who can't know leaves it as it is

    def _encrypted(self, kind: str | None, blob: bytes | None, place: Place) -> tuple[str, bytes] | None:
        """Return type and bytes of a value as they should be, or None if they are."""
        if kind is None or blob is None:
            raise ValueError("there is no value")
        kind, encrypted, name = kind.partition("+")
        at = associated_data.associated(kind, place)
        if encrypted:
            if _is_current(self._new.cipher, at, name, blob):
                return None
            blob = self._any.decrypt_at(at, name, blob)
        binding = associated_data.binding_of(self._new)
        name, blob = binding.encrypt_at(at, bytes(blob)) if binding else self._new.cipher.encrypt(bytes(blob))
        return f"{kind}+{name}", bytes(blob)


@operation(Kind.WRITE)
def _fetch(db: Executor, sql: Statements, statement: str, binds: Mapping[str, Any]) -> Sequence[Row]:
    return db.fetch(getattr(sql, statement), binds)


@operation(Kind.READ)
def _look(db: Executor, sql: Statements, statement: str, binds: Mapping[str, Any]) -> Sequence[Row]:
    return _fetch(db, sql, statement, binds)


def _of_value(key: Sequence[Any], channel: str) -> Place:
    _, checkpoint_ns, _, version = key
    return associated_data.of_value(checkpoint_ns, channel, version)


def _of_write(key: Sequence[Any], channel: str) -> Place:
    _, checkpoint_ns, checkpoint_id, *_ = key
    return associated_data.of_write(checkpoint_ns, checkpoint_id, channel)
