"""The page: an HTML file with styles, script and records in it, which loads nothing and runs nothing else.

Values are in the page as JSON only, which its script reads and shows as text. Should one get further by an error in the
script, then the policy of the page remains: it runs one script, by its hash, loads nothing, and makes no HTML of text.
"""

from __future__ import annotations

import base64
from hashlib import sha256
from importlib.resources import files
from typing import Any

from checkpoint_store import __version__
from checkpoint_store.cli.entries import entries_of, read_history
from checkpoint_store.cli.files import Write, written
from checkpoint_store.cli.history_html.document import Document
from checkpoint_store.cli.history_html.nodes import as_text
from checkpoint_store.database.backend import Backend
from checkpoint_store.serde.records import StoredCheckpoint, StoredPage, StoredValue, StoredWrite
from checkpoint_store.tools.thread_rows import one_moment, rows_of

_SCRIPTS = ("data.js", "delta.js", "tree.js", "text.js", "values.js", "detail.js", "rows.js", "search.js", "page.js")

_BLOCK = 32 * 1024 * 1024
"""The characters of a data block: a browser reads each into one string, which has a limit."""


async def write(backend: Backend, thread_id: str, file: str, limit: int, before: str | None, *, full: bool) -> int:
    """Write the page of a thread's newest checkpoints, as of one moment, and return their number.

    Raises:
        ThreadNotFound: If the thread has none.
        InvalidOption: If the file can't be written.
    """
    async with one_moment(backend) as then:
        found = await read_history(then, thread_id, limit, before)
        entries = sorted(entries_of(found), key=lambda entry: entry.key)
        with written(file) as write_text:
            page = Page(
                write_text, {"id": thread_id, "total": found.total, "ends": before is None, "version": __version__}
            )
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
        write: Writes a text.
        thread: What the page says of its thread beside the records.
    """

    def __init__(self, write: Write, thread: dict[str, Any]) -> None:
        self._write = write
        self._size = 0
        before, self._after = _filled().split("{{records}}")
        write(before)
        self.record(as_text(thread))

    def record(self, text: str) -> None:
        """Add a record, which is JSON text without any `<`."""
        if self._size > _BLOCK:
            self._end()
        self._write(",\n" if self._size else '<script type="application/json">[\n')
        self._write(text)
        self._size += len(text) + 2

    def close(self) -> None:
        """Write the rest of the page."""
        self._end()
        self._write(self._after)

    def _end(self) -> None:
        self._write("\n]</script>\n")
        self._size = 0


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
