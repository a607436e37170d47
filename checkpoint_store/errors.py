"""What can go wrong.

    CheckpointStoreError
    ├── InvalidConfig (ValueError)        a config, filter or limit names nothing that can be stored or looked up
    ├── InvalidURL (ValueError)           a connection string that can't be used
    ├── InvalidOption (ValueError)        options that can't be, or don't go together
    ├── UnusableConnection (TypeError)    `conn` is neither an engine nor a connection the saver can work on
    ├── NotSetUp                          tables missing or older than this version needs
    ├── AccessDenied                      the database role lacks a right on the tables
    ├── UnstorableValue (ValueError)      neither JSONB nor the serializer can hold it; nothing was written
    ├── Conflict                          another run has continued the thread meanwhile; nothing was written
    ├── ThreadLocked                      another run has held the thread's lock past the deadline
    ├── LockLost                          a thread's lock was not held to the end: its session of the server's ended
    ├── UnreadableValue                   a stored value that can't be decoded; the rest of the thread is fine
    │   └── NotEncrypted                  a stored value in clear, where the saver was told to refuse those
    ├── ThreadNotFound (LookupError)      nothing is stored for a thread, or not the checkpoint asked for
    ├── ThreadExists (ValueError)         a thread was to be copied to one that has something stored
    ├── TransferError                     a thread could not be copied from another saver; nothing of it was stored
    ├── WrongThread (RuntimeError)        a call from the one thread, event loop or process it must not come from
    ├── WrongTransaction (RuntimeError)   a caller's transaction that is aborted, read-only, over, or isolated otherwise
    ├── Refused                           a constraint, trigger or policy of the database's refused or hid a row
    ├── LimitReached                      a time limit, or an administrator, ended the statement; nothing was written
    ├── Closed (RuntimeError)             the saver was closed
    ├── Unavailable                       the server could not be reached in time, or no connection became free
    ├── NotInstalled (ImportError)        an optional part of the library is needed
    └── MigrationError                    the schema could not be brought to head
        └── MigrationLocked               another migration, or transactions on the tables, took too long

Every error that comes from the server or the driver has SQLAlchemy's as its `__cause__`, or what the network said:
brief, and without values.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


class CheckpointStoreError(Exception):
    """Base of everything this library raises on purpose; itself for what the server says that fits no other."""


class InvalidConfig(CheckpointStoreError, ValueError):
    """Raised before any work when a config, filter or limit can't name a checkpoint; the message says what came."""


class InvalidURL(CheckpointStoreError, ValueError):
    """Raised for a connection string of another driver, or one that can't be parsed; never shows a password."""


class InvalidOption(CheckpointStoreError, ValueError):
    """Raised when options don't go together, such as `pipe` with a connection, or `schema` can't be a schema's name."""


class UnusableConnection(CheckpointStoreError, TypeError):
    """Raised when `conn` is of a type, dialect or driver the saver can't work on."""


class NotSetUp(CheckpointStoreError):
    """Raised when the tables are missing or too old: run `setup()`, or `alembic upgrade head` before deploying."""


class AccessDenied(CheckpointStoreError):
    """Raised when the database role lacks a right on the tables; the message has the GRANT that gives it."""


class UnstorableValue(CheckpointStoreError, ValueError):
    """Raised when a value fits neither JSONB, the serializer nor the database's encoding; nothing was written."""


class Conflict(CheckpointStoreError):
    """Raised by `put` with `refuse_forks` when its parent is not the newest checkpoint: load that and run again."""


class ThreadLocked(CheckpointStoreError):
    """Raised when another run has held a thread's lock past the deadline: let it finish, or wait longer."""


class LockLost(CheckpointStoreError):
    """Raised when a thread's lock was lost, and others may have had it since: look at the thread before you go on."""


class UnreadableValue(CheckpointStoreError):
    """Raised when a stored value can't be decoded; names the thread, namespace, checkpoint and channel.

    A list that met it goes on behind that checkpoint with `before=error.config`.
    """

    config: dict[str, Any] | None = None
    """The config of the checkpoint, where one was being read."""


class NotEncrypted(UnreadableValue):
    """Raised with `require_encryption` for a value in clear: encrypt what is there with `encryption.reencrypt`."""


class ThreadNotFound(CheckpointStoreError, LookupError):
    """Raised when a thread that has to be there has nothing stored; where none need be, methods return None."""


class ThreadExists(CheckpointStoreError, ValueError):
    """Raised instead of mixing two threads: delete the target first, choose another id, or pass `replace=True`."""


class TransferError(CheckpointStoreError):
    """Raised when a thread can't be copied from another saver; names it. Those copied before it are there."""


class WrongThread(CheckpointStoreError, RuntimeError):
    """Raised instead of a deadlock: a sync call on the event loop's own thread, a foreign loop, or a forked process."""


class WrongTransaction(CheckpointStoreError, RuntimeError):
    """Raised when a caller's transaction can't carry a call: it is aborted, read-only, over, or isolated otherwise."""


class Refused(CheckpointStoreError):
    """Raised when a rule that the database has of its own, such as a trigger or policy, refused or hid a row."""

    _by_thread: Mapping[str, str] = MappingProxyType({})
    """Of changes that were stored together: the threads it is about, each with its message, while all others are
    stored. Empty where nothing is."""


class LimitReached(CheckpointStoreError):
    """Raised when a limit somebody has set, such as `statement_timeout`, ended a statement; nothing was written."""


class Closed(CheckpointStoreError, RuntimeError):
    """Raised when a saver is used after it was closed: open a new one."""


class Unavailable(CheckpointStoreError):
    """Raised when the server could not be reached, or what passes has not passed, in time; safe to try again."""


class NotInstalled(CheckpointStoreError, ImportError):
    """Raised when an optional part of the library is used without its extra; the message says how to install it."""


class MigrationError(CheckpointStoreError):
    """Raised when the schema could not be brought to head; what was begun has been rolled back."""


class MigrationLocked(MigrationError):
    """Raised past the deadline of a migration: another one, or transactions that use the tables, have to end first."""


ONE_CALLS = (AccessDenied, Conflict, LimitReached, LockLost, Refused, UnstorableValue)
"""What may be the matter with one call's rows, while others' can be stored; besides errors that have only the base."""

SET_UP = "Run `setup()` once, or `checkpoint-store upgrade` or `alembic upgrade head` before deploying."
"""What `NotSetUp` advises."""


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
