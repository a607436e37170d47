"""Locks on all tables at once, for jobs that copy them, while other sessions use them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import cycle

from sqlalchemy import Connection, exc

from checkpoint_store.conninfo.driver_errors import diagnosis_of, raise_from
from checkpoint_store.errors import WrongTransaction
from checkpoint_store.migrations.ddl import block, statement
from checkpoint_store.migrations.error_translation import raise_failed
from checkpoint_store.migrations.lock import Pause
from checkpoint_store.migrations.lock_timeout import LockTimeout, limit_lock_waits
from checkpoint_store.migrations.runner import retry_conflicts
from checkpoint_store.schema import qualified

_HOLDING_MILLISECONDS = 500
"""The time to wait for a table with another one locked: less than `deadlock_timeout`, so it is we who give way."""

_NO_TRANSACTION = "25P01"
"""The SQLSTATE of a SAVEPOINT outside of a transaction."""

_WRITES = "checkpoint_writes"


def lock_tables(
    conn: Connection, names: Sequence[str], schema: str | None, *, timeout: float, pause: Pause, action: str
) -> None:
    """Keep all others from tables until the transaction ends, which this begins if need be.

    Nothing is held while the first table is waited for. Whoever uses it first of all is then over, and can't be in the
    way: a host's transaction that begins with a checkpoint or a read, or, as every second attempt has it, with pending
    writes.

    Raises:
        MigrationLocked: If transactions have used the tables past the deadline; the action is named in the message.
    """
    in_transaction = conn.in_transaction()
    orders = cycle([names, [_WRITES, *[name for name in names if name != _WRITES]]])

    def lock(limit: LockTimeout) -> None:
        with undoing(conn, schema, action, in_transaction=in_transaction), limit_lock_waits(conn, limit.seconds):
            conn.execute(statement(_lock_in_turn(next(orders), schema)))

    retry_conflicts(lock, timeout, pause)


@contextlib.contextmanager
def undoing(conn: Connection, schema: str | None, action: str, *, in_transaction: bool) -> Iterator[None]:
    """Undo what the block has done if a statement fails, locks included, and raise our error."""
    try:
        with conn.begin_nested():
            yield
    except exc.DBAPIError as error:
        if diagnosis_of(error).state == _NO_TRANSACTION:
            raise_from(
                WrongTransaction(
                    f"{action} needs one transaction, and the connection is in AUTOCOMMIT. Nothing was changed. Use "
                    "`engine.begin()`, on an engine that is not in AUTOCOMMIT."
                ),
                error,
            )
        raise_failed(error, action, conn, schema, in_transaction=in_transaction, to_savepoint=True)


def lock(names: Sequence[str], schema: str | None) -> str:
    """Return the statement that keeps all others from tables."""
    return f"LOCK TABLE {', '.join(qualified(name, schema) for name in names)} IN ACCESS EXCLUSIVE MODE"


def refuse_snapshot() -> str:
    """Return the statement that fails in a transaction that may not see what others stored before the lock was free."""
    return block("""
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING MESSAGE = 'the transaction is ' || upper(current_setting('transaction_isolation'))
            || ', and rows that were stored since it began would be lost; it must be READ COMMITTED';
    END IF;
    """)


def _lock_in_turn(names: Sequence[str], schema: str | None) -> str:
    """Return the statement that waits for the first table, and locks the others before anyone else can."""
    first, *others = names
    body = f"""
    {lock([first], schema)};
    PERFORM set_config('lock_timeout', least(before, {_HOLDING_MILLISECONDS})::text, true);
    {lock(others, schema)};
    PERFORM set_config('lock_timeout', before::text, true);
    """
    return block(body, "before integer := (SELECT setting FROM pg_settings WHERE name = 'lock_timeout');")
