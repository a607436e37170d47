"""A thread as a file of JSON lines: a header, then each stored row as it is. Nothing in it is decoded by a serializer.

    {"format": "checkpoint_store.thread", "version": 1, "thread_id": "user-42", "values": true, "rows": {..}}
    {"row": "value", "checkpoint_ns": "", "channel": "messages", "version": "1", "type": "msgpack", "blob": "lA=="}

Bytes are in Base64, JSON documents are JSON, and every character is ASCII. In a file without values a size and a digest
take the place of each: equal values of one file have equal digests, whose key is thrown away.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import blake2b
from typing import Any, BinaryIO, NamedTuple

import orjson

from checkpoint_store.errors import TransferError, UnreadableValue
from checkpoint_store.schema import PAGED
from checkpoint_store.serde import jsonb, pages
from checkpoint_store.serde.records import StoredCheckpoint, StoredPage, StoredValue, StoredWrite
from checkpoint_store.sql.thread_rows import RowKind

FORMAT, VERSION = "checkpoint_store.thread", 1

KINDS: dict[str, RowKind] = {
    "page": StoredPage,
    "value": StoredValue,
    "checkpoint": StoredCheckpoint,
    "write": StoredWrite,
}
"""The kinds of rows, in the order in which they come."""

MAX_LINE_BYTES = 3 << 29
"""The length of a line: a value of PostgreSQL's has 1 GB at most."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_VERSION = re.compile(r"[0-9]{1,32}(\.[0-9]{1,20}){0,2}(e-[0-9]{1,3})?")
"""A version that is text: a number, and after it a random one."""

_SOURCES = ("input", "loop", "update", "fork")
"""LangGraph's values of `source` in the metadata."""


class Header(NamedTuple):
    """The first line of a file."""

    thread_id: str
    values: bool
    """Whether the values are in the file."""
    rows: dict[str, int]
    """The number of rows of each kind."""

    def line(self) -> bytes:
        """Return it as a line."""
        return _line({"format": FORMAT, "version": VERSION, **self._asdict()})


class Writer:
    """The lines of rows, with values or without."""

    def __init__(self, *, values: bool) -> None:
        self._values = values
        self._key = secrets.token_bytes(16)

    def line(self, kind: str, row: Any) -> bytes:
        """Return a row as a line."""
        members = row._asdict()
        if isinstance(row, StoredCheckpoint):
            members.update(self._documents(row))
        for name, value in members.items():
            if isinstance(value, bytes):
                members[name] = base64.b64encode(value).decode() if self._values else self._left_out(row.type, value)
        return _line({"row": kind, **members})

    def _documents(self, row: StoredCheckpoint) -> dict[str, Any]:
        """Return the documents of a checkpoint, without values only what is known to be none."""
        if self._values:
            return {name: orjson.Fragment(getattr(row, name)) for name in _DOCUMENTS}
        try:
            checkpoint, metadata = [_object(getattr(row, name)) for name in _DOCUMENTS]
            inline = checkpoint.get("channel_values")
            kept = {
                name: part if _is_structure(name, part) else self._of_json(part) for name, part in checkpoint.items()
            }
            if isinstance(inline, dict):
                kept["channel_values"] = {channel: self._of_json(value) for channel, value in inline.items()}
            known = {name: part if _is_known(name, part) else self._of_json(part) for name, part in metadata.items()}
        except (ValueError, TypeError, RecursionError):
            raise UnreadableValue(
                f"checkpoint {row.checkpoint_id!r} has JSON that Python can't hold: its values can't be left out"
            ) from None
        return {"checkpoint": kept, "metadata": known}

    def _of_json(self, value: Any) -> dict[str, Any]:
        return self._left_out("json", orjson.dumps(value))

    def _left_out(self, kind: str | None, content: bytes) -> dict[str, Any]:
        digest = blake2b(f"{kind}\0".encode() + content, digest_size=8, key=self._key).hexdigest()
        return {"size": len(content), "digest": digest}


class Reader:
    """The rows of a file, each checked.

    Args:
        file: The open file.

    Raises:
        TransferError: If its first line is no header that this version reads.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0
        """The number of the line read last."""
        self.incomplete = 0
        """The number of values that lack a page, and so could not be read in the database of the export either."""
        self._digests: set[bytes] = set()
        self.header = self._header()

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Yield each row with its kind.

        Raises:
            TransferError: If a line is not a row, or the file does not have as many as its header says.
        """
        found, order = dict.fromkeys(KINDS, 0), list(KINDS)
        last = order[0]
        while (members := self._next()) is not None:
            kind = members.pop("row", None)
            if not isinstance(kind, str) or kind not in KINDS:
                raise self._error(f"row must be one of {', '.join(KINDS)}")
            if order.index(kind) < order.index(last):
                raise self._error(f"a {kind} must come before each {last}")
            last = kind
            found[kind] += 1
            yield kind, self._row(KINDS[kind], members)
        if found != self.header.rows:
            raise self._error("the file ends here, but has not as many rows as its first line says: it was cut off")

    def _header(self) -> Header:
        members = self._next() or {}
        if members.get("format") != FORMAT:
            raise TransferError("line 1: this is not a file of `checkpoint-store export`")
        if (version := members.get("version")) != VERSION:
            newer = isinstance(version, int) and version > VERSION
            raise TransferError(
                f"line 1: the file has {'a newer' if newer else 'another'} format than this version of "
                f"checkpoint_store reads, which is {VERSION}." + " Upgrade checkpoint_store." * newer
            )
        thread_id, values, rows = [members.get(name) for name in Header._fields]
        if not isinstance(thread_id, str) or not thread_id or not jsonb.is_text(thread_id):
            raise TransferError("line 1: thread_id must be the id of a thread")
        if not isinstance(values, bool):
            raise TransferError("line 1: values must be true or false")
        if not isinstance(rows, dict) or rows.keys() != KINDS.keys() or not all(type(n) is int for n in rows.values()):
            raise TransferError(f"line 1: rows must be the numbers of each of {', '.join(KINDS)}")
        return Header(thread_id, values, rows)

    def _next(self) -> dict[str, Any] | None:
        """Return the members of the next line, None at the end."""
        line = self._file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return None
        self.number += 1
        if len(line) > MAX_LINE_BYTES:
            raise self._error("it is too long to be a row")
        try:
            return _object(line)
        except RecursionError:
            raise self._error("it is nested too deeply") from None
        except ValueError:
            cut_off = "" if line.endswith(b"\n") else ": the file was cut off"
            raise self._error(f"it is not a JSON object{cut_off}") from None

    def _row(self, kind: RowKind, members: dict[str, Any]) -> Any:
        readers = _READERS[kind]
        if members.keys() != readers.keys():
            raise self._error("it must have these members and no others: row, " + ", ".join(readers))
        left_out = not self.header.values and isinstance(members.get("blob"), dict)
        if not self.header.values:
            self._fill_in(kind, members)
        for name, read in readers.items():
            try:
                members[name] = read(members[name])
            except (ValueError, TypeError, RecursionError) as error:
                reason = str(error) if type(error) is _Invalid else "must be JSON that PostgreSQL can hold"
                raise self._error(f"{name} {reason}") from None
        row = kind(**members)
        if left_out:
            return row._replace(type="null", blob=b"")
        self._check_pages(row)
        return row

    def _fill_in(self, kind: RowKind, members: dict[str, Any]) -> None:
        """Put null, or no bytes, in the place of what was left out."""
        if kind is StoredPage:
            raise self._error("a file without values has no pages")
        for name in ("page", "blob"):
            if _is_left_out(members.get(name)):
                members[name] = ""
            elif members.get(name) is not None:
                raise self._error(f"{name} must have a size and a digest only, as line 1 says that values are left out")
        for name in _DOCUMENTS if kind is StoredCheckpoint else ():
            document = members[name]
            inline = document.get("channel_values") if isinstance(document, dict) else None
            for part in (document, inline):
                if isinstance(part, dict):
                    part.update({key: None for key, value in part.items() if _is_left_out(value)})

    def _check_pages(self, row: Any) -> None:
        """Check that a page is what its digest says, and note a recipe whose pages have not come."""
        if isinstance(row, StoredPage):
            if blake2b(row.page, digest_size=pages.DIGEST_BYTES).digest() != row.digest:
                raise self._error("page is not what digest says: the file was damaged")
            self._digests.add(row.digest)
        elif isinstance(row, StoredValue) and row.type == PAGED:
            try:
                self.incomplete += not self._digests.issuperset(pages.digests(row.blob or b""))
            except ValueError:
                self.incomplete += 1

    def _error(self, reason: str) -> TransferError:
        return TransferError(f"line {self.number}: {reason}")


class _Invalid(ValueError):
    """Raised with what a member must be."""


_DOCUMENTS = ("checkpoint", "metadata")

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_NO_ASCII = re.compile("[^\x00-\x7e]+")


def _line(members: dict[str, Any]) -> bytes:
    line = orjson.dumps(members) + b"\n"
    if line.isascii() and b"\x7f" not in line:
        return line
    return _NO_ASCII.sub(lambda found: json.dumps(found[0])[1:-1].replace("\x7f", "\\u007f"), line.decode()).encode()


def _object(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object, whose numbers are written again as they are."""
    found = json.loads(text, parse_int=_integer, parse_float=_number, parse_constant=_number)
    if not isinstance(found, dict):
        raise ValueError("it is not an object")
    return found


def _integer(text: str) -> Any:
    return int(text) if len(text) < 16 and text != "-0" else _number(text)


def _number(text: str) -> Any:
    if text in ("NaN", "Infinity", "-Infinity"):
        raise ValueError("not JSON")
    return orjson.Fragment(text)


def _is_structure(name: str, value: Any) -> bool:
    """Return whether a member of a checkpoint is LangGraph's own, and no value of a channel."""
    if name == "versions_seen":
        return isinstance(value, dict) and all(map(_are_versions, value.values()))
    if name == "updated_channels":
        return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    if name == "ts":
        return isinstance(value, str) and _is_time(value)
    return {"v": type(value) is int, "id": _is_id(value), "channel_versions": _are_versions(value)}.get(name, False)


def _are_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_version, value.values()))


def _is_version(value: Any) -> bool:
    return (
        _VERSION.fullmatch(value) is not None if isinstance(value, str) else isinstance(value, (int, orjson.Fragment))
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _is_time(value: str) -> bool:
    try:
        return bool(datetime.fromisoformat(value))
    except ValueError:
        return False


def _is_known(name: str, value: Any) -> bool:
    """Return whether a member of the metadata is LangGraph's own."""
    if name == "parents":
        return isinstance(value, dict) and all(map(_is_id, value.values()))
    return type(value) is int if name == "step" else name == "source" and value in _SOURCES


def _is_left_out(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"size", "digest"}


def _text(value: Any) -> str:
    if not isinstance(value, str) or not jsonb.is_text(value):
        raise _Invalid("must be text that PostgreSQL can hold")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError):
        raise _Invalid("must be Base64") from None


def _bytes_or_none(value: Any) -> bytes | None:
    return None if value is None else _bytes(value)


def _index(value: Any) -> int:
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise _Invalid("must be an integer of 4 bytes")
    return value


def _document(value: Any) -> str:
    if not isinstance(value, dict):
        raise _Invalid("must be an object")
    text = orjson.dumps(value).decode()
    if _NUL.search(text):
        raise _Invalid("must be JSON that PostgreSQL can hold, without NUL")
    return text


_KEY = {"checkpoint_ns": _text}

_READERS: dict[RowKind, dict[str, Callable[[Any], Any]]] = {
    StoredPage: {"digest": _bytes, "page": _bytes},
    StoredValue: {**_KEY, "channel": _text, "version": _text, "type": _text, "blob": _bytes_or_none},
    StoredCheckpoint: {
        **_KEY,
        "checkpoint_id": _text,
        "parent_checkpoint_id": _text_or_none,
        "type": _text_or_none,
        "checkpoint": _document,
        "metadata": _document,
    },
    StoredWrite: {
        **_KEY,
        "checkpoint_id": _text,
        "task_id": _text,
        "idx": _index,
        "task_path": _text,
        "channel": _text,
        "type": _text_or_none,
        "blob": _bytes,
    },
}
"""The function that checks and converts each member of each kind of row."""
