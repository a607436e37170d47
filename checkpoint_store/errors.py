"""The errors that this library raises on purpose.

    CheckpointStoreError
    ├── InvalidConfig (ValueError)        a config, filter or limit that can't name a checkpoint
    ├── InvalidURL (ValueError)           a connection string that can't be used
    ├── InvalidOption (ValueError)        an option that can't be used, or not together with another one
    ├── UnusableConnection (TypeError)    an engine, connection or session that savers can't work on
    ├── NotSetUp                          tables that are missing, or older than this version needs
    ├── AccessDenied                      a right on the tables that the database role lacks
    ├── UnstorableValue (ValueError)      a value that neither JSONB nor the serializer can hold; nothing was written
    ├── Conflict                          a run that another one has overtaken in its thread; nothing was written
    ├── ThreadLocked                      a thread's lock that another run has held past the deadline
    ├── LockLost                          a thread's lock that was not held to the end: its session on the server ended
    ├── UnreadableValue                   a stored value that can't be decoded; the rest of the thread is fine
    │   └── NotEncrypted                  a stored value in clear, with `require_encryption`
    ├── ThreadNotFound (LookupError)      a thread, or a checkpoint of it, that is not stored
    ├── ThreadExists (ValueError)         a thread that is stored where a copy was to be made
    ├── TransferError                     a thread that can't be copied from another saver, or imported from a file
    ├── WrongThread (RuntimeError)        a call from a thread, event loop or process that it must not come from
    ├── WrongTransaction (RuntimeError)   a caller's transaction that is aborted, read-only, over, or isolated otherwise
    ├── Refused                           a row that a constraint, trigger or policy of the database refused or hid
    ├── LimitReached                      a statement that a time limit or an administrator ended; nothing was written
    ├── Closed (RuntimeError)             a saver that was closed
    ├── Unavailable                       a server that was not reached in time, or no connection that became free
    ├── NotInstalled (ImportError)        an optional part of the library that is not installed
    └── MigrationError                    a schema that could not be brought to head
        └── MigrationLocked               another migration, or transactions on the tables, that took too long

Every error that comes from the server or the driver has SQLAlchemy's as its `__cause__`, or the network's: brief, and
without values.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class CheckpointStoreError(Exception):
    """Base of every error here; raised itself for an error of the server's that is none of the others."""


class InvalidConfig(CheckpointStoreError, ValueError):
    """Raised before any work when a config, filter or limit can't name a checkpoint: pass what the message asks for."""


class InvalidURL(CheckpointStoreError, ValueError):
    """Raised for a connection string of another driver, or one that can't be parsed; never shows a password."""


class InvalidOption(CheckpointStoreError, ValueError):
    """Raised for an option of another type or range, or that does not go with another one: the message says which."""


class UnusableConnection(CheckpointStoreError, TypeError):
    """Raised for an engine, connection or session of a type, dialect or driver that savers can't work on."""


class NotSetUp(CheckpointStoreError):
    """Raised when the tables are missing or too old: run `setup()`, or `alembic upgrade head` before deploying."""


class AccessDenied(CheckpointStoreError):
    """Raised when the database role lacks a right on the tables: execute the GRANT that is in the message."""


class UnstorableValue(CheckpointStoreError, ValueError):
    """Raised when neither JSONB, the serializer nor the database's encoding can hold a value; nothing was written.

    Store a plain value, or pass a serializer that takes it.
    """


class Conflict(CheckpointStoreError):
    """Raised by `put` with `refuse_forks` when its parent is not the newest checkpoint: load that and run again."""


class ThreadLocked(CheckpointStoreError):
    """Raised when another run has held a thread's lock past the deadline: let it finish, or wait longer."""


class LockLost(CheckpointStoreError):
    """Raised when a thread's lock was lost, and others may have had it since: look at the thread before you go on."""


class UnreadableValue(CheckpointStoreError):
    """Raised when a stored value can't be decoded; names the thread, namespace, checkpoint and channel.

    Use the serializer that the value was written with. To list the checkpoints after it, pass `before=error.config`.
    """

    config: dict[str, Any] | None = None
    """The config of the checkpoint, where one was being read."""


class NotEncrypted(UnreadableValue):
    """Raised with `require_encryption` for a stored value in clear: encrypt it with `encryption.reencrypt`."""


class ThreadNotFound(CheckpointStoreError, LookupError):
    """Raised when a thread that is to be copied or shown is not stored; methods that may find nothing return None."""

    _thread_id: str | None = None


class ThreadExists(CheckpointStoreError, ValueError):
    """Raised instead of mixing two threads: delete the target first, choose another id, or pass `replace=True`."""


class TransferError(CheckpointStoreError):
    """Raised when a thread can't be copied from another saver, which it names, or imported from a file.

    Threads copied before it are stored.
    """


class WrongThread(CheckpointStoreError, RuntimeError):
    """Raised instead of a deadlock: a sync call on the event loop's own thread, another loop, or a forked process.

    Call the async method there, or make a saver in that loop or process.
    """


class WrongTransaction(CheckpointStoreError, RuntimeError):
    """Raised when a caller's transaction can't carry a call: it is aborted, read-only, over, or isolated otherwise.

    Begin another one, at READ COMMITTED, and bind a saver to it.
    """


class Refused(CheckpointStoreError):
    """Raised when a rule of the database's own, such as a trigger or policy, refused or hid a row: change the rule."""

    _by_thread: Mapping[str, str] = MappingProxyType({})
    """The threads that the error is about, each with its message, of changes stored together; all others are stored."""


class LimitReached(CheckpointStoreError):
    """Raised when a limit such as `statement_timeout` ended a statement; nothing was written. Set a higher one."""


class Closed(CheckpointStoreError, RuntimeError):
    """Raised when a saver is used after it was closed: make another one."""


class Unavailable(CheckpointStoreError):
    """Raised when the server could not be reached, or a transient error has not passed, in time: safe to try again."""


class NotInstalled(CheckpointStoreError, ImportError):
    """Raised when an optional part of the library is used without its extra; the message says how to install it."""


class MigrationError(CheckpointStoreError):
    """Raised when the schema could not be brought to head; all of it was rolled back. The message has the reason."""


class MigrationLocked(MigrationError):
    """Raised past the deadline of a migration: another one, or transactions that use the tables, must end first."""


ONE_CALLS = (AccessDenied, Conflict, LimitReached, LockLost, Refused, UnstorableValue)
"""Errors about the rows of a single call, while those of other calls can be stored; besides errors of only the base."""

SET_UP = "Run `setup()` once, or `checkpoint-store upgrade` or `alembic upgrade head` before deploying."
"""The way out that `NotSetUp` names."""


def short_repr(value: object, limit: int = 60) -> str:
    """Return a short repr of a value that may be of any size, or have a broken `__repr__`.

    Args:
        value: Anything.
        limit: The largest number of characters to show.
    """
    if type(value) is str and len(value) <= limit:
        return repr(value)
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = brief.maxlong = limit
    try:
        text = brief.repr(value)
    except Exception:
        text = f"<{type(value).__qualname__}>"
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]}...{text[-limit // 6 :]}"


def safe_str(error: BaseException) -> str:
    """Return the start of an exception's message, whatever its `__str__` does."""
    try:
        return str(error)[:500]
    except Exception:
        return "no message"
