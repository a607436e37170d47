"""The methods of LangGraph's interface, async and sync: encode, run an operation, decode."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, Self

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from checkpoint_store.database.backend import Backend
from checkpoint_store.errors import InvalidOption, short_repr
from checkpoint_store.migrations.version_check import check_revisions
from checkpoint_store.options import SaverOptions
from checkpoint_store.saver.thread_lock import ThreadLock
from checkpoint_store.saver.threads import ThreadsMixin
from checkpoint_store.serde import jsonb
from checkpoint_store.serde.arguments import flag, has_methods
from checkpoint_store.serde.decoder import Decoder, is_large
from checkpoint_store.serde.encoder import Encoder, ValuedChannels, pairs_of, takes_long, values_of
from checkpoint_store.serde.keys import Listing, checked_thread_id, copy_of, key_of, listing_of, next_version, texts_of
from checkpoint_store.serde.records import Ancestor, Row
from checkpoint_store.storage import copy_thread, delete_thread, probes, read, write_batch
from checkpoint_store.storage.checkpoint_list import CheckpointCursor, list_checkpoints
from checkpoint_store.storage.write_batch import Put, Writes

CUT_BYTES = 1024 * 1024
"""Larger values are cut into pages in a worker thread."""


class BasePostgresSaver(ThreadsMixin):
    """LangGraph's interface, async and sync, on one backend."""

    def __init__(self, backend: Backend, serde: SerializerProtocol | None, options: SaverOptions[Any]) -> None:
        is_serde = has_methods(serde, "dumps_typed", "loads_typed") or has_methods(serde, "dumps", "loads")
        if serde is not None and not is_serde:
            way_out = (
                "Wrap the cipher: EncryptedSerializer(cipher), of langgraph.checkpoint.serde.encrypted."
                if has_methods(serde, "encrypt", "decrypt")
                else "Leave it out for LangGraph's JsonPlusSerializer()."
            )
            raise InvalidOption(
                f"serde must be a serializer, with dumps_typed and loads_typed, not {short_repr(serde)}. {way_out}"
            )
        super().__init__(serde=serde)
        self._requires_encryption = flag(options.get("require_encryption", False), "require_encryption")
        if self._requires_encryption and not isinstance(self.serde, EncryptedSerializer):
            raise InvalidOption(
                f"require_encryption needs a serializer that encrypts, and serde is a {type(self.serde).__qualname__}. "
                "Pass serde=EncryptedSerializer(...), of langgraph.checkpoint.serde.encrypted."
            )
        # Everything but `serde` is shared by the copies that LangGraph's with_allowlist() makes.
        self._backend = backend
        self._refuses_forks = flag(options.get("refuse_forks", False), "refuse_forks")
        self._valued = ValuedChannels()

    def _within(self, backend: Backend, *, refuses_forks: bool | None = None) -> Self:
        """Return a copy of this saver on another backend."""
        self._backend.check_open()
        within = copy.copy(self)
        within._backend = backend
        if refuses_forks is not None:
            within._refuses_forks = refuses_forks
        return within

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Get one checkpoint: the one that `config` names, or the newest of its thread and namespace.

        Args:
            config: Needs `configurable.thread_id`; `checkpoint_ns` defaults to the root graph's `""`.

        Returns:
            The checkpoint with its channel values and its pending writes in the order LangGraph applies them, or None.

        Raises:
            InvalidConfig: If there is no usable `thread_id`.
            NotSetUp: If the tables are missing.
            UnreadableValue: If the serializer can't decode a stored value.
            Unavailable: If the server can't be reached.
        """
        found = await self._backend.run(read.get_checkpoint, self._backend.page_cache, key_of(config))
        if found is None:
            return None
        row = Row._make(found)
        decode = partial(self._decoder.decode_checkpoint, row, self._valued)
        return await asyncio.to_thread(decode) if is_large(row.blobs, row.writes) else decode()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Get one checkpoint, as `aget_tuple`."""
        found = self._backend.run_blocking(read.get_checkpoint, self._backend.page_cache, key_of(config))
        return None if found is None else self._decoder.decode_checkpoint(Row._make(found), self._valued)

    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """List checkpoints, newest first.

        They are read in batches, each by a statement of its own: no connection is held while you iterate, no more than
        one batch is in memory, and checkpoints that are stored meanwhile are not in the list.

        Args:
            config: Names the thread, and a namespace or checkpoint if it has one; None for all threads.
            filter: A dict that the metadata must contain (PostgreSQL's `@>`: nested dicts match by their members).
            before: A config with a `checkpoint_id`: only smaller ids are listed.
            limit: The largest number of checkpoints; None for all.

        Returns:
            An async iterator of checkpoints.

        Raises:
            InvalidConfig: If an argument can't be used.
            NotSetUp: If the tables are missing.
            UnreadableValue: If the serializer can't decode a stored value.
            Unavailable: If the server can't be reached.
        """
        return self._alist(listing_of(config, before, jsonb.filter_text(filter), limit))

    async def _alist(self, listing: Listing) -> AsyncIterator[CheckpointTuple]:
        cursor, page_cache = CheckpointCursor(listing), self._backend.page_cache
        while cursor.has_next:
            rows = await self._backend.run(list_checkpoints, page_cache, listing, (cursor.last, cursor.size))
            for row in cursor.advance([Row._make(row) for row in rows]):
                decode = partial(self._decoder.decode_checkpoint, row)
                yield await asyncio.to_thread(decode) if is_large(row.blobs, row.writes) else decode()

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints, newest first, as `alist`."""
        self._backend.check_sync()
        return self._list(listing_of(config, before, jsonb.filter_text(filter), limit))

    def _list(self, listing: Listing) -> Iterator[CheckpointTuple]:
        cursor, page_cache = CheckpointCursor(listing), self._backend.page_cache
        while cursor.has_next:
            rows = self._backend.run_blocking(list_checkpoints, page_cache, listing, (cursor.last, cursor.size))
            for row in cursor.advance([Row._make(row) for row in rows]):
                yield self._decoder.decode_checkpoint(row)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint: when this returns it is committed, with all its values or not at all.

        On a connection of the caller's it is committed with the caller's transaction.

        Args:
            config: Names the thread and namespace; its `checkpoint_id`, if any, becomes the parent.
            checkpoint: The checkpoint. One that has been stored under its id is replaced.
            metadata: JSON that lists can be filtered by; strings and numbers of the config's metadata are added to it.
            new_versions: The channels whose values are new, and their versions. Other channels keep the stored value.

        Returns:
            The config that names the stored checkpoint.

        Raises:
            InvalidConfig: If there is no usable `thread_id`.
            UnstorableValue: If a value fits neither JSONB nor the serializer; nothing has been written.
            Conflict: With `refuse_forks`, if another checkpoint is the newest; nothing has been written.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        args = config, checkpoint, metadata, new_versions, self._valued
        encode = partial(Encoder(self.serde).encode_checkpoint, *args)
        encoded = await asyncio.to_thread(encode) if takes_long(values_of(checkpoint)) else encode()
        put = Put(encoded.binds, continues=self._refuses_forks)
        if encoded.has_large and await self._shares_pages():
            cut = partial(write_batch.paged, encoded.binds, self._backend.page_cache, self._refuses_forks)
            put = await asyncio.to_thread(cut) if write_batch.size_of(put) > CUT_BYTES else cut()
        await self._backend.store(put)
        return encoded.config

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, as `aput`."""
        encoded = Encoder(self.serde).encode_checkpoint(config, checkpoint, metadata, new_versions, self._valued)
        put = Put(encoded.binds, continues=self._refuses_forks)
        if encoded.has_large and self._shares_pages_blocking():
            put = write_batch.paged(encoded.binds, self._backend.page_cache, self._refuses_forks)
        self._backend.store_blocking(put)
        return encoded.config

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store a task's writes after a checkpoint: when this returns they are committed, all of them or none.

        Args:
            config: Names the checkpoint; needs `checkpoint_id`.
            writes: Pairs of channel and value. A write to one of LangGraph's special channels (errors, interrupts,
                resumes) replaces the task's earlier one to it; any other write stays as it was first stored.
            task_id: The task that made them.
            task_path: The task's place in its step; it decides the order in which writes are applied.

        Raises:
            InvalidConfig: If the config names no checkpoint.
            UnstorableValue: If the serializer can't hold a value; nothing has been written.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        pairs = pairs_of(writes)
        encode = partial(Encoder(self.serde).encode_writes, config, pairs, task_id, task_path)
        binds = await asyncio.to_thread(encode) if takes_long(map(itemgetter(1), pairs)) else encode()
        if pairs:
            await self._backend.store(Writes(binds))

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store a task's writes after a checkpoint, as `aput_writes`."""
        pairs = pairs_of(writes)
        binds = Encoder(self.serde).encode_writes(config, pairs, task_id, task_path)
        if pairs:
            self._backend.store_blocking(Writes(binds))
        else:
            self._backend.check_sync()

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything stored for a thread, in all its namespaces, atomically.

        Args:
            thread_id: The thread; it need not exist.

        Raises:
            InvalidConfig: If it can't be a thread id.
            WrongTransaction: If the transaction does not see what others have stored since it began, or there is none.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        await self._backend.run(delete_thread.delete_thread, checked_thread_id(thread_id))

    def delete_thread(self, thread_id: str) -> None:
        """Delete everything stored for a thread, as `adelete_thread`."""
        self._backend.run_blocking(delete_thread.delete_thread, checked_thread_id(thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str, *, replace: bool = False) -> None:
        """Copy everything stored for a thread to another one, in all its namespaces, atomically and on the server.

        The source may be in use: the copy is of one moment. Ids of checkpoints and runs stay the same, so
        `delete_for_runs` removes a run from the copy too.

        Args:
            source_thread_id: The thread to copy.
            target_thread_id: The thread to make; nothing else should store to it meanwhile.
            replace: Whether a target that is stored is deleted first; otherwise it is refused.

        Raises:
            InvalidConfig: If either can't be a thread id, or both are the same.
            ThreadNotFound: If nothing is stored for the source.
            ThreadExists: If something is stored for the target, and `replace` is not given.
            WrongTransaction: With `replace` as for `adelete_thread`; also where there is no transaction.
            NotSetUp: If the tables are missing.
            Unavailable: If the server can't be reached.
        """
        pair = copy_of(source_thread_id, target_thread_id)
        await self._backend.run(copy_thread.copy_thread, pair, flag(replace, "replace"), {})

    def copy_thread(self, source_thread_id: str, target_thread_id: str, *, replace: bool = False) -> None:
        """Copy everything stored for a thread to another one, as `acopy_thread`."""
        pair = copy_of(source_thread_id, target_thread_id)
        self._backend.run_blocking(copy_thread.copy_thread, pair, flag(replace, "replace"), {})

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Get the writes to delta channels of a checkpoint's ancestors, by following parents.

        Args:
            config: Names the checkpoint, or with no `checkpoint_id` the newest of its thread and namespace.
            channels: Channel names.

        Returns:
            For each channel its writes, oldest first, back to the nearest ancestor that has a value for it, and that
            value as `seed`; no `seed` where none has.

        Raises:
            InvalidConfig: If there is no usable `thread_id`.
            NotSetUp: If the tables are missing.
            UnreadableValue: If the serializer can't decode a stored value.
            Unavailable: If the server can't be reached.
        """
        if not (channels := texts_of(channels, "channels", "a name")):
            return {}
        key = key_of(config)
        rows = [Ancestor._make(row) for row in await self._backend.run(read.delta_history, key, channels)]
        decode = partial(self._decoder.decode_history, key, channels, rows)
        blobs = [array for row in rows for array in (row.writes, row.value_blobs)]
        return await asyncio.to_thread(decode) if is_large(*blobs) else decode()

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """Get the writes to delta channels of a checkpoint's ancestors, as `aget_delta_channel_history`."""
        if not (channels := texts_of(channels, "channels", "a name")):
            self._backend.check_sync()
            return {}
        key = key_of(config)
        rows = [Ancestor._make(row) for row in self._backend.run_blocking(read.delta_history, key, channels)]
        return self._decoder.decode_history(key, channels, rows)

    def thread_lock(self, thread_id: str, *, timeout: float | None = 60.0) -> ThreadLock:
        """Make a lock that has the runs of a thread wait for each other, in all processes: for `async with` or `with`.

        It is held by the database, in a session of its own that all locks of an engine share, so the pool's
        connections stay free; and it is free again when the process that holds it dies. When the lock is lost, because
        its session is, nothing more is stored for the thread in the block, which ends with `LockLost`.

        Args:
            thread_id: The thread; it need not exist.
            timeout: The longest wait for others, in seconds; 0 to try once, None for as long as it takes.

        Returns:
            The lock, free as yet.

        Raises:
            InvalidConfig: If it can't be a thread id.
            InvalidOption: If `timeout` is not such a time.
            WrongTransaction: On entering, in AUTOCOMMIT, or in a transaction that is not READ COMMITTED.
            ThreadLocked: On entering, if another run has had it for all that time.
            UnusableConnection: On entering, if the engine connects through a pooler such as PgBouncer.
            NotSetUp: On entering, if the tables are missing.
            Unavailable: On entering, if the server can't be reached.
            LockLost: At the end of the block, and by `put` and `put_writes` in it, if the lock was lost.
        """
        return ThreadLock(self._backend, checked_thread_id(thread_id), timeout)

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002 - the interface's
        """Return the version that follows a channel's current one, as the stock saver makes it."""
        return next_version(current)

    @property
    def retries(self) -> int:
        """The number of retries that this saver has made after transient errors."""
        return self._backend.provider.retries

    async def acheck(self) -> None:
        """Check that the tables are at a revision that this version works on; for readiness probes.

        One statement, which needs no right but to read `checkpoint_store_version`. Tables that a newer version has
        migrated pass, with a warning in the log.

        Raises:
            NotSetUp: If the tables are missing or older.
            AccessDenied: If the role may not read them.
            Unavailable: If the server can't be reached.
        """
        await self._backend.run(check_revisions)

    def check(self) -> None:
        """Check that the tables are at a revision that this version works on, as `acheck`."""
        self._backend.run_blocking(check_revisions)

    async def aclose(self) -> None:
        """Close the saver: an engine made from a URL is disposed, one that was handed in is left as it is."""
        await self._backend.close()

    async def _shares_pages(self) -> bool:
        sharing = self._backend.page_sharing
        known = sharing.decided
        return sharing.found(await self._backend.run(probes.is_adopted)) if known is None else known

    def _shares_pages_blocking(self) -> bool:
        sharing = self._backend.page_sharing
        known = sharing.decided
        return sharing.found(self._backend.run_blocking(probes.is_adopted)) if known is None else known

    @property
    def _decoder(self) -> Decoder:
        # LangGraph replaces `serde` on copies of a saver, so nothing may be derived from it for long.
        return Decoder(self.serde, encrypted_only=self._requires_encryption)
