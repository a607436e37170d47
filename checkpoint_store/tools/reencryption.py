"""Re-encryption of stored values: those in clear, and those with an older key.

serde = EncryptedSerializer(KeyRing.aes(new_key, old_key))
await reencrypt(engine, serde, serde)
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
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
from checkpoint_store.serde import encryption, jsonb
from checkpoint_store.serde.arguments import callback, positive
from checkpoint_store.serde.encryption import KeyRing, Place
from checkpoint_store.serde.keys import version_text
from checkpoint_store.sql.arrays import array_binds
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.statements import Statements
from checkpoint_store.storage import locks, shared_pages
from checkpoint_store.storage.operation import Kind, operation
from checkpoint_store.tools.batches import batches


@dataclass(frozen=True)
class Reencryption:
    """The numbers of values that a re-encryption has found."""

    blobs: int = 0
    """Channel values rewritten."""
    writes: int = 0
    """Pending writes rewritten."""
    scalars: int = 0
    """Values rewritten that were inline in a checkpoint's JSON, in clear."""
    current: int = 0
    """Values that had the new key already."""
    unreadable: int = 0
    """Values that neither key opens, or that lack a page or a version; they stay as they are."""
    busy: int = 0
    """Values that another process has changed meanwhile; call again."""


class Unencrypted(NamedTuple):
    """The numbers of values in clear; a saver with `require_encryption` refuses to read them."""

    blobs: int
    writes: int
    scalars: int


Progress = Callable[[Reencryption], None]

_FIRST = {"thread_id": "", "checkpoint_ns": "", "checkpoint_id": "", "channel": "", "version": "", "task_id": ""}
_FIRST_IDX = -(2**31)

# A msgpack Ext with LangGraph's code for a channel's snapshot (langgraph/checkpoint/serde/jsonplus.py).
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
    """Encrypt everything in a database with a new key: values in clear, inline or in pages, and values with an old key.

    It may be interrupted and called again, and run while the database is in use: each batch is one statement, which
    changes no row that has changed meanwhile. Values are decrypted and encrypted, not decoded. Before, give savers the
    new key, and stop those that write in clear or with an old key.

    Args:
        engine: The engine; a sync one is used in worker threads.
        old: The serializer that opens values with an old key; None if nothing is encrypted yet.
        new: The serializer that encrypts; of a `KeyRing` with the newest key.
        schema: The PostgreSQL schema of the tables.
        batch_size: The number of rows to read and rewrite at a time.
        on_progress: Called after each batch with the numbers so far.

    Returns:
        The numbers of values.

    Raises:
        InvalidOption: If `old` or `new` is not an `EncryptedSerializer`, or another argument can't be used.
        UnusableConnection: If `engine` is not a supported engine.
        NotSetUp: If the tables are missing.
        WrongTransaction: If a listener begins our transactions in another isolation level than READ COMMITTED.
        Unavailable: If the server can't be reached.
    """
    for name, serde in (("old", old), ("new", new)):
        if not isinstance(serde, EncryptedSerializer) and not (serde is None and name == "old"):
            raise InvalidOption(f"{name} must be an EncryptedSerializer of LangGraph's, not {short_repr(serde)}")
    callback(on_progress, "on_progress")
    limit = positive(batch_size, "batch_size")
    backend = engine_backend(engine, {"schema": schema, "share_pages": False})
    await backend.run(locks.check_removal)
    rewriting, tables = _Rewriting(backend, _Encrypter(old, new), limit, on_progress), backend.sql.tables
    await rewriting.values("blobs", tables.checkpoint_blobs, "next_blob_values", "rewrite_blobs", _of_value)
    await rewriting.values("writes", tables.checkpoint_writes, "next_write_values", "rewrite_writes", _of_write)
    await rewriting.scalars(tables.checkpoints)
    return rewriting.report


async def count_unencrypted(engine: AsyncEngine | Engine, *, schema: str | None = None) -> Unencrypted:
    """Count the values in clear.

    Args:
        engine: The engine; a sync one is used in a worker thread.
        schema: The PostgreSQL schema of the tables.

    Returns:
        The numbers of channel values, pending writes and inline values.

    Raises:
        NotSetUp: If the tables are missing.
        Unavailable: If the server can't be reached.
    """
    backend = engine_backend(engine, {"schema": schema, "share_pages": False})
    return Unencrypted._make((await backend.run(_look, "count_plain", {}))[0])


class _Rewriting:
    """The state of one call of `reencrypt`."""

    def __init__(self, backend: Backend, encrypter: _Encrypter, batch_size: int, on_progress: Progress | None) -> None:
        self.report = Reencryption()
        self._backend = backend
        self._encrypter = encrypter
        self._batch_size = batch_size
        self._on_progress = on_progress

    async def values(
        self, name: str, table: Table, read: str, rewrite: str, place: Callable[[Sequence[Any], str], Place]
    ) -> None:
        """Rewrite the values of a table; `place` returns the place of one by its key and channel."""
        keys = [column.name for column in table.primary_key]
        async for rows in self._batches(table, read):
            rewritten, current, unreadable = await asyncio.to_thread(self._encrypter.reencrypted, rows, place)
            names = [*keys, "digest", "type", "blob"]
            binds = {**array_binds(names, rewritten), "thread_id": rows[0][0]}
            done = len(await self._backend.run(_fetch, rewrite, binds)) if rewritten else 0
            for thread_id in dict.fromkeys(row[0] for row in rows if row[-3] == PAGED):
                await self._backend.run(shared_pages.collect_pages, thread_id)
            self._note(**{name: done}, current=current, unreadable=unreadable, busy=len(rewritten) - done)

    async def scalars(self, table: Table) -> None:
        """Move inline values into blobs."""
        keys = [column.name for column in table.primary_key]
        async for rows in self._batches(table, "next_inline_values"):
            checkpoints, values, unreadable = await asyncio.to_thread(self._encrypter.blobs_of, rows)
            of_value = ("thread_id", "checkpoint_ns", "channel", "version", "checkpoint_id", "type", "blob")
            binds = {
                **array_binds((*keys, "before", "after"), [row[:-1] for row in checkpoints]),
                **array_binds(of_value, values, "value_"),
                "thread_id": rows[0][0],
            }
            moved = set(map(tuple, await self._backend.run(_fetch, "move_inline", binds) if checkpoints else ()))
            done = sum(row[-1] for row in checkpoints if row[: len(keys)] in moved)
            self._note(scalars=done, unreadable=unreadable, busy=len(checkpoints) - len(moved))

    def _batches(self, table: Table, read: str) -> AsyncIterator[Sequence[Row]]:
        keys = [column.name for column in table.primary_key]

        def read_after(last: Sequence[Any]) -> Awaitable[Sequence[Row]]:
            after = {f"last_{key}": value for key, value in zip(keys, last, strict=True)}
            return self._backend.run(_look, read, {**after, "thread_id": last[0], "limit": self._batch_size})

        return batches(self._backend, table.name, [_FIRST.get(key, _FIRST_IDX) for key in keys], read_after)

    def _note(self, **more: int) -> None:
        self.report = replace(self.report, **{name: getattr(self.report, name) + count for name, count in more.items()})
        if self._on_progress:
            self._on_progress(self.report)


class _Encrypter:
    """Encryption with the new key, of values in clear and with either key."""

    def __init__(self, old: EncryptedSerializer | None, new: EncryptedSerializer) -> None:
        self._new = new
        self._any = KeyRing(*[serde.cipher for serde in (old, new) if serde is not None])

    def reencrypted(
        self, rows: Sequence[Row], place: Callable[[Sequence[Any], str], Place]
    ) -> tuple[list[Row], int, int]:
        """Return rows with their values encrypted anew, and the numbers of the current and the unreadable ones."""
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
        """Return the inline values of checkpoints as blobs.

        Returns:
            The checkpoints, with their inline values before and after and the number of those taken out; the blobs; and
            the number of unreadable values, which stay inline.
        """
        checkpoints: list[Row] = []
        blobs: dict[Any, Row] = {}
        unreadable = 0
        for thread_id, checkpoint_ns, checkpoint_id, before, *inline in rows:
            after: dict[str, Any] = {}
            for channel, text, version, kind, blob in zip(*inline, strict=True):
                try:
                    place = encryption.of_value(checkpoint_ns, channel, version)
                    if blob is not None and self._is_snapshot(kind, blob, place):
                        after[channel] = True  # the mark of a snapshot in the blob
                        continue
                    value = jsonb.decode(text)
                    key = (thread_id, checkpoint_ns, channel, version_text(version, "", channel))
                    # Beside any other blob an inline value is out of date.
                    if kind is None and key not in blobs:
                        blobs[key] = (*key, checkpoint_id, *encryption.dumps(self._new, value, place))
                except Exception:
                    after[channel] = orjson.Fragment(text)
                    unreadable += 1
            if taken := len(inline[0]) - len(after):
                checkpoints.append((thread_id, checkpoint_ns, checkpoint_id, before, jsonb.encode(after), taken))
        return checkpoints, list(blobs.values()), unreadable

    def _is_snapshot(self, kind: str, blob: bytes, place: Place) -> bool:
        kind, encrypted, name = kind.partition("+")
        try:
            if encrypted:
                blob = self._any.decrypt_at(encryption.associated(kind, place), name, blob)
            return kind == "msgpack" and bool(_SNAPSHOT.match(blob))
        except ValueError:
            return True  # unknown: it stays as it is

    def _encrypted(self, kind: str | None, blob: bytes | None, place: Place) -> tuple[str, bytes] | None:
        """Return the type and bytes of a value with the new key, or None if it has that."""
        if kind is None or blob is None:
            raise ValueError("there is no value")
        kind, encrypted, name = kind.partition("+")
        at = encryption.associated(kind, place)
        if encrypted:
            if encryption.is_current(self._new.cipher, at, name, blob):
                return None
            blob = self._any.decrypt_at(at, name, blob)
        binding = encryption.binding_of(self._new)
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
    return encryption.of_value(checkpoint_ns, channel, version)


def _of_write(key: Sequence[Any], channel: str) -> Place:
    _, checkpoint_ns, checkpoint_id, *_ = key
    return encryption.of_write(checkpoint_ns, checkpoint_id, channel)
