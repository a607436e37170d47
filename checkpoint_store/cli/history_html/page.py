"""The page: an HTML file with styles, script and records in it, which loads nothing and runs nothing else.

Values are in the page as JSON only, which its script reads and shows as text. Should one get further by an error in the
script, then the policy of the page remains: it runs one script, by its hash, loads nothing, and makes no HTML of text.
"""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from checkpoint_store import __version__
from checkpoint_store.cli.history import entries_of
from checkpoint_store.cli.history_html.document import Document
from checkpoint_store.cli.history_html.nodes import as_text
from checkpoint_store.database.backend import Backend
from checkpoint_store.errors import InvalidOption
from checkpoint_store.serde.records import StoredCheckpoint, StoredPage, StoredValue, StoredWrite
from checkpoint_store.storage.read import history as read_history
from checkpoint_store.storage.refusals import not_found
from checkpoint_store.tools.thread_rows import one_moment, rows_of

_SCRIPTS = ("data.js", "tree.js", "text.js", "values.js", "detail.js", "rows.js", "search.js", "page.js")

_BLOCK = 32 * 1024 * 1024
"""The characters of a data block: a browser reads each into one string, which has a limit."""


async def write(backend: Backend, thread_id: str, target: Path, limit: int, before: str | None, *, full: bool) -> int:
    """Write the page of a thread's newest checkpoints, as of one moment, and return their number.

    Raises:
        ThreadNotFound: If the thread has none.
        InvalidOption: If no file can be written there.
    """
    async with one_moment(backend) as then:
        found = await then.run(read_history, thread_id, limit, before)
        if not found.rows:
            raise not_found(thread_id)
        entries = sorted(entries_of(found), key=lambda entry: entry.key)
        with new_file(target) as out:
            page = Page(out, {"id": thread_id, "total": found.total, "ends": before is None, "version": __version__})
            outside = {(row.checkpoint_ns, row.checkpoint_id) for row in found.parents}
            document = Document(entries, outside, page.record, full=full)
            async for checkpoints in rows_of(then, thread_id, StoredCheckpoint):
                for checkpoint in checkpoints:
                    document.checkpoint(checkpoint)
            pages = {digest: page async for batch in rows_of(then, thread_id, StoredPage) for digest, page in batch}
            async for values in rows_of(then, thread_id, StoredValue):
                for value in values:
                    document.value(value, pages)
            async for writes in rows_of(then, thread_id, StoredWrite):
                for write in writes:
                    document.write(write)
            page.close()
    return len(entries)


class Page:
    """A page that is being written.

    Args:
        out: Where to.
        thread: What the page says of its thread beside the records.
    """

    def __init__(self, out: IO[str], thread: dict[str, Any]) -> None:
        self._out = out
        self._size = 0
        before, self._after = _filled().split("{{records}}")
        out.write(before)
        self.record(as_text(thread))

    def record(self, text: str) -> None:
        """Add a record, which is JSON text without any `<`."""
        if self._size > _BLOCK:
            self._end()
        self._out.write(",\n" if self._size else '<script type="application/json">[\n')
        self._out.write(text)
        self._size += len(text) + 2

    def close(self) -> None:
        """Write the rest of the page."""
        self._end()
        self._out.write(self._after)

    def _end(self) -> None:
        self._out.write("\n]</script>\n")
        self._size = 0


@contextmanager
def new_file(target: Path) -> Iterator[IO[str]]:
    """Yield a file, readable by its owner only, that takes the place of another at the end; not after an error.

    Raises:
        InvalidOption: If no file can be written there.
    """
    target = target.resolve()
    if target.exists() and not target.is_file():
        raise InvalidOption(f"--html must name a file, and {str(target)!r} is not one")
    try:
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".")
    except OSError as error:
        raise InvalidOption(f"--html can't be written: {str(target.parent)!r}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as out:
            yield out
        Path(name).replace(target)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _filled() -> str:
    """Return the page with styles, script and policy, but without records."""
    style, script = _text("page.css"), "".join(map(_text, _SCRIPTS))
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    page = _text("page.html")
    for name, content in (("policy", policy), ("style", style), ("script", script)):
        page = page.replace(f"{{{{{name}}}}}", content)
    return page


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(content.encode()).digest()).decode()}'"
