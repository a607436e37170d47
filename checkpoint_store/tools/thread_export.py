"""The export of a thread as it is stored into a file, and the import of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from checkpoint_store.database.backend import Backend
from checkpoint_store.database.pinned_provider import one_transaction
from checkpoint_store.errors import TransferError, UnstorableValue
from checkpoint_store.serde.records import StoredPage
from checkpoint_store.sql.thread_rows import MAX_ROWS
from checkpoint_store.storage.refusals import not_found
from checkpoint_store.storage.thread_rows import BATCH_BYTES, count_rows, end_rows, insert_rows, make_room
from checkpoint_store.tools.thread_file import KINDS, Header, Reader, Writer
from checkpoint_store.tools.thread_rows import one_moment, rows_of


@dataclass(frozen=True)
class ThreadRows:
    """The numbers of rows that were exported or imported."""

    thread_id: str
    checkpoints: int
    values: int
    """Channels' values; those that are inline in a checkpoint are not counted."""
    pages: int
    writes: int
    """Pending writes."""
    with_values: bool
    """Whether the values are in the file."""
    incomplete_values: int = 0
    """Values that lack a page, and so can't be read."""


async def export_thread(
    backend: Backend, thread_id: str, write: Callable[[bytes], object], *, values: bool = True
) -> ThreadRows:
    """Export a thread as of one moment, line by line.

    Args:
        backend: The backend.
        thread_id: The thread.
        write: Takes each line.
        values: Whether values are exported, or only their sizes and digests.

    Returns:
        The numbers of rows.

    Raises:
        ThreadNotFound: If nothing is stored for it.
    """
    writer = Writer(values=values)
    async with one_moment(backend) as then:
        counts = await then.run(count_rows, thread_id)
        if not any(counts.values()):
            raise not_found(thread_id)
        kinds = {name: kind for name, kind in KINDS.items() if values or kind is not StoredPage}
        header = Header(thread_id, values, {**dict.fromkeys(KINDS, 0), **{name: counts[kinds[name]] for name in kinds}})
        write(header.line())
        for name, kind in kinds.items():
            async for batch in rows_of(then, thread_id, kind):
                for row in batch:
                    write(writer.line(name, row))
    return _report(header)


async def import_thread(
    backend: Backend, file: BinaryIO, thread_id: str | None = None, *, replace: bool = False
) -> ThreadRows:
    """Store the thread of a file, in one transaction.

    Args:
        backend: The backend.
        file: The file.
        thread_id: The id to store it under; by default the exported thread's.
        replace: Whether what is stored for that id is deleted first.

    Returns:
        The numbers of rows.

    Raises:
        TransferError: If the file is damaged, or has another format; nothing is changed.
        ThreadExists: If something is stored for the id, and is not to be replaced.
        NotSetUp: If the tables are missing.
    """
    reader = Reader(file)
    source = reader.header.thread_id
    target = thread_id or source
    async with one_transaction(backend) as within:
        await within.run(make_room, target, replace)
        batch = _Batch(within, (source, target))
        for kind, row in reader.rows():
            await batch.add(kind, row, reader.number)
        await batch.store()
        await within.run(end_rows, target)
    return _report(reader.header._replace(thread_id=target), reader.incomplete)


class _Batch:
    """Rows of one kind that are to be stored, and the lines they are from."""

    def __init__(self, backend: Backend, copy: tuple[str, str]) -> None:
        self._backend = backend
        self._copy = copy
        self._kind = ""
        self._rows: list[Any] = []
        self._bytes = 0
        self._lines = (0, 0)

    async def add(self, kind: str, row: Any, line: int) -> None:
        """Add a row, after storing those before it if they are many, or of another kind."""
        if kind != self._kind or len(self._rows) >= MAX_ROWS or self._bytes >= BATCH_BYTES:
            await self.store()
            self._kind, self._lines = kind, (line, line)
        self._rows.append(row)
        self._bytes += sum(len(part) for part in row if isinstance(part, (bytes, str)))
        self._lines = (self._lines[0], line)

    async def store(self) -> None:
        """Store the rows."""
        rows, self._rows, self._bytes = self._rows, [], 0
        if not rows:
            return
        try:
            await self._backend.run(insert_rows, self._copy, KINDS[self._kind], rows)
        except (TransferError, UnstorableValue) as error:
            first, last = self._lines
            where = f"line {first}" if first == last else f"lines {first} to {last}"
            raise TransferError(f"{where}: {error}") from error


def _report(header: Header, incomplete: int = 0) -> ThreadRows:
    rows = header.rows
    return ThreadRows(
        *(header.thread_id, rows["checkpoint"], rows["value"], rows["page"], rows["write"]),
        with_values=header.values,
        incomplete_values=incomplete,
    )
