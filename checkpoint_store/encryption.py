"""Encryption of what is stored: keys that follow each other, and rows that were written before a key, or under another.

serde = EncryptedSerializer(KeyRing.aes(new_key, old_key))
saver = AsyncPostgresSaver(engine, serde=serde, require_encryption=True)
"""

from __future__ import annotations

import asyncio
import hmac
import os
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson
from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from sqlalchemy import Engine, Table
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import jsonb, operations, places, shapes
from checkpoint_store.errors import InvalidOption, NotInstalled, shown
from checkpoint_store.executor import Executor, Row
from checkpoint_store.kinds import Kind, is_a
from checkpoint_store.options import callback, flag, has_methods, positive
from checkpoint_store.places import Place
from checkpoint_store.schema import PAGED
from checkpoint_store.source import Source, engine_source
from checkpoint_store.statements import Statements, statements_of

KEY_BYTES = (16, 24, 32)
"""How long an AES key may be."""


class KeyRing:
    """Several ciphers for LangGraph's `EncryptedSerializer`: the first one encrypts, any of them decrypts.

    Which key a value needs, trying tells: a cipher that authenticates refuses what isn't its own. A ring of AES keys,
    made by `aes`, binds what savers store to its type and place, so that nobody opens it who reads it elsewhere, or as
    something else; what other ciphers encrypt is stored as they alone would.

    Args:
        ciphers: The newest first.

    Raises:
        InvalidOption: If there is none, or one that is no cipher.
    """

    def __init__(self, *ciphers: CipherProtocol) -> None:
        if not ciphers:
            raise InvalidOption("a key ring without a key can't encrypt anything; pass at least one cipher")
        for cipher in ciphers:
            if not has_methods(cipher, "encrypt", "decrypt"):
                raise InvalidOption(
                    f"{shown(cipher)} is no cipher: it needs encrypt and decrypt, as KeyRing.aes() makes"
                )
        self._ciphers = ciphers

    @classmethod
    def aes(cls, *keys: bytes, bound_only: bool = False) -> KeyRing:
        """Make a ring of AES keys, each as for `EncryptedSerializer.from_pycryptodome_aes(key=...)`.

        It also opens what such a serializer has encrypted, which is bound to nothing.

        Args:
            keys: The newest first; of 16, 24 or 32 bytes each.
            bound_only: Whether savers refuse what is not bound to its place: once `reencrypt` has left none.

        Returns:
            The ring, for an `EncryptedSerializer`.

        Raises:
            InvalidOption: If there is none, or one of another length.
            NotInstalled: If the extra `encryption` is missing.
        """
        for key in keys:
            is_bytes = issubclass(type(key), bytes)
            if not is_bytes or bytes.__len__(key) not in KEY_BYTES:
                size = f"{bytes.__len__(key)} bytes" if is_bytes else type(key).__qualname__
                raise InvalidOption(f"an AES key has 16, 24 or 32 bytes, and this one is of {size}")
        try:
            return cls(*[_Aes(key, bound_only=flag(bound_only, "bound_only")) for key in keys])
        except ImportError as error:
            raise NotInstalled("AES is in an extra: pip install 'checkpoint-store[encryption]'") from error

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt with the newest key.

        Args:
            plaintext: What to encrypt.

        Returns:
            The cipher's name and the ciphertext.
        """
        return self._ciphers[0].encrypt(plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt with the key that fits.

        Args:
            ciphername: The cipher's name, as `encrypt` gave it.
            ciphertext: What to decrypt.

        Returns:
            The plaintext.

        Raises:
            ValueError: If none does.
        """
        return self._opened(lambda cipher: cipher.decrypt(ciphername, ciphertext))

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt with the newest key, so that it is opened at a place only, if its cipher can do that.

        Args:
            place: What the value is, and where it belongs.
            plaintext: What to encrypt.

        Returns:
            The cipher's name and the ciphertext.
        """
        newest = self._ciphers[0]
        return newest.encrypt_at(place, plaintext) if isinstance(newest, (_Aes, KeyRing)) else newest.encrypt(plaintext)

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt what belongs to a place, with the key that fits.

        Args:
            place: What the value is, and where it is read.
            ciphername: The cipher's name, as `encrypt_at` gave it.
            ciphertext: What to decrypt.

        Returns:
            The plaintext.

        Raises:
            ValueError: If no key does, or the value belongs elsewhere.
        """
        return self._opened(lambda cipher: _decrypt_at(cipher, place, ciphername, ciphertext))

    def is_current(self, place: bytes, ciphername: str, ciphertext: bytes) -> bool:
        """Tell whether a value is encrypted as the newest key would.

        Args:
            place: What the value is, and where it belongs.
            ciphername: The cipher's name.
            ciphertext: What was encrypted.
        """
        return _is_current(self._ciphers[0], place, ciphername, ciphertext)

    def _opened(self, decrypt: Callable[[CipherProtocol], bytes]) -> bytes:
        refusals = []
        for cipher in self._ciphers:
            try:
                return decrypt(cipher)
            except Exception as error:
                refusals.append(f"{type(error).__name__}: {error}")
        raise ValueError(f"none of {len(refusals)} keys fits ({'; '.join(dict.fromkeys(refusals))})")


class _Aes:
    """One AES key: what is bound to a place is encrypted with a key derived from it, all else as LangGraph does.

    So neither can be taken for the other, whatever their types say.
    """

    def __init__(self, key: bytes, *, bound_only: bool) -> None:
        self._unbound = EncryptedSerializer.from_pycryptodome_aes(key=key).cipher
        self._key = hmac.digest(key, b"checkpoint_store: bound to a place", "sha256")
        self._bound_only = bound_only

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return self._unbound.encrypt(plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        if ciphername == _BOUND:
            raise ValueError("the value is bound to its place, which only savers of checkpoint_store know")
        return self._unbound.decrypt(ciphername, ciphertext)

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        cipher = self._cipher(place, os.urandom(_PART))
        ciphertext, tag = cipher.encrypt_and_digest(plaintext)
        return _BOUND, cipher.nonce + tag + ciphertext

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        if ciphername != _BOUND:
            if self._bound_only:
                raise ValueError("the value is not bound to its place, and bound_only refuses it")
            return self.decrypt(ciphername, ciphertext)
        nonce, tag, rest = ciphertext[:_PART], ciphertext[_PART : 2 * _PART], ciphertext[2 * _PART :]
        plaintext: bytes = self._cipher(place, nonce).decrypt_and_verify(rest, tag)
        return plaintext

    def _cipher(self, place: bytes, nonce: bytes) -> Any:
        from Crypto.Cipher import AES

        cipher = AES.new(self._key, AES.MODE_EAX, nonce=nonce)
        cipher.update(place)
        return cipher


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

_BOUND = "aes-bound"
"""How values are marked that are bound to their place."""

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
            raise InvalidOption(f"{name} is {shown(serde)}; it has to be an EncryptedSerializer of LangGraph's")
    callback(on_progress, "on_progress")
    most = positive(batch_size, "batch_size")
    sql = statements_of(schema)
    source = engine_source(engine, sql, None, False)
    await source.transact(operations.check_removal)
    rewriting = _Rewriting(source, _Safe(old, new), most, on_progress)
    await rewriting.values("blobs", sql.tables.checkpoint_blobs, "next_blob_values", "rewrite_blobs", _of_value)
    await rewriting.values("writes", sql.tables.checkpoint_writes, "next_write_values", "rewrite_writes", _of_write)
    await rewriting.scalars(sql.tables.checkpoints)
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
    source = engine_source(engine, statements_of(schema), None, False)
    return Unencrypted._make((await source.run(_look, "count_plain", {}))[0])


class _Rewriting:
    """One call of `reencrypt`, and how far it is."""

    def __init__(self, source: Source, safe: _Safe, batch_size: int, on_progress: Progress | None) -> None:
        self.report = Reencryption()
        self._source = source
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
            names = [f"{key}s" for key in [*keys, "digest", "type", "blob"]]
            done = len(await self._source.run(_fetch, rewrite, _arrays(names, rewritten))) if rewritten else 0
            for thread_id in dict.fromkeys(row[0] for row in rows if row[-3] == PAGED):
                await self._source.transact(operations.collect_pages, thread_id)
            self._note(**{name: done}, current=current, unreadable=unreadable, busy=len(rewritten) - done)

    async def scalars(self, table: Table) -> None:
        """Make blobs of what is inline."""
        keys = [column.name for column in table.primary_key]
        async for rows in self._pages(keys, "next_inline_values"):
            checkpoints, values, unreadable = await asyncio.to_thread(self._safe.blobs_of, rows)
            of_value = ("thread_id", "checkpoint_ns", "channel", "version", "checkpoint_id", "type", "blob")
            binds = {
                **_arrays([f"{name}s" for name in (*keys, "before", "after")], [row[:-1] for row in checkpoints]),
                **_arrays([f"value_{name}s" for name in of_value], values),
            }
            moved = set(map(tuple, await self._source.run(_fetch, "move_inline", binds) if checkpoints else ()))
            done = sum(row[-1] for row in checkpoints if row[: len(keys)] in moved)
            self._note(scalars=done, unreadable=unreadable, busy=len(checkpoints) - len(moved))

    async def _pages(self, keys: Sequence[str], read: str) -> AsyncIterator[Sequence[Row]]:
        last: Sequence[Any] = [_FIRST.get(key, _FIRST_IDX) for key in keys]
        while True:
            binds = {f"last_{key}": value for key, value in zip(keys, last, strict=True)}
            if not (rows := await self._source.run(_look, read, {**binds, "most": self._batch_size})):
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
                    place = places.of_value(checkpoint_ns, channel, version)
                    if blob is not None and self._is_snapshot(kind, blob, place):
                        after[channel] = True
                        continue
                    value = jsonb.decode(text)
                    if kind is None:
                        key = (thread_id, checkpoint_ns, channel, shapes.version_text(version, "", channel))
                        if key not in blobs:
                            blobs[key] = (*key, checkpoint_id, *places.dumps(self._new, value, place))
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
                blob = self._any.decrypt_at(places.associated(kind, place), name, blob)
            return kind == "msgpack" and bool(_SNAPSHOT.match(blob))
        except ValueError:
            return True  # who can't know leaves it as it is

    def _encrypted(self, kind: str | None, blob: bytes | None, place: Place) -> tuple[str, bytes] | None:
        """Return type and bytes of a value as they should be, or None if they are."""
        if kind is None or blob is None:
            raise ValueError("there is no value")
        kind, encrypted, name = kind.partition("+")
        at = places.associated(kind, place)
        if encrypted:
            if _is_current(self._new.cipher, at, name, blob):
                return None
            blob = self._any.decrypt_at(at, name, blob)
        binding = places.binding_of(self._new)
        name, blob = binding.encrypt_at(at, bytes(blob)) if binding else self._new.cipher.encrypt(bytes(blob))
        return f"{kind}+{name}", bytes(blob)


def _fetch(db: Executor, sql: Statements, statement: str, binds: Mapping[str, Any]) -> Sequence[Row]:
    return db.fetch(getattr(sql, statement), binds)


@is_a(Kind.READ)
def _look(db: Executor, sql: Statements, statement: str, binds: Mapping[str, Any]) -> Sequence[Row]:
    return _fetch(db, sql, statement, binds)


def _arrays(names: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Any]]:
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def _decrypt_at(cipher: CipherProtocol, place: bytes, name: str, blob: bytes) -> bytes:
    if isinstance(cipher, (_Aes, KeyRing)):
        return cipher.decrypt_at(place, name, blob)
    return cipher.decrypt(name, blob)


def _is_current(cipher: CipherProtocol, place: bytes, name: str, blob: bytes) -> bool:
    """Tell whether a cipher would have encrypted it so."""
    if isinstance(cipher, KeyRing):
        return cipher.is_current(place, name, blob)
    if isinstance(cipher, _Aes) and name != _BOUND:
        return False
    try:
        _decrypt_at(cipher, place, name, blob)
    except Exception:
        return False
    return True


def _of_value(key: Sequence[Any], channel: str) -> Place:
    _, checkpoint_ns, _, version = key
    return places.of_value(checkpoint_ns, channel, version)


def _of_write(key: Sequence[Any], channel: str) -> Place:
    _, checkpoint_ns, checkpoint_id, *_ = key
    return places.of_write(checkpoint_ns, checkpoint_id, channel)
