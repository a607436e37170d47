"""The pool of an engine: connections taken from it for longer than an operation, and its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, QueuePool, StaticPool

from checkpoint_store.database.checkout import checkouts
from checkpoint_store.database.isolation import end_begun_transaction, isolate
from checkpoint_store.database.liveness import check_loop
from checkpoint_store.database.pooler import is_pooled
from checkpoint_store.database.sqlalchemy_private import max_overflow
from checkpoint_store.errors import UnusableConnection


def kept_by_others(engine: Engine) -> int:
    """Return how many connections of a full pool are checked out, if no call of ours has one of them; otherwise 0."""
    pool = engine.pool
    is_full = isinstance(pool, QueuePool) and pool.checkedout() >= pool.size() + max_overflow(pool)
    is_ours = any(checkout.pool is pool for checkout in list(checkouts))
    return pool.checkedout() if is_full and not is_ours else 0  # type: ignore[attr-defined]


def full_of_others(kept: int) -> str:
    """Return the explanation of a pool with N connections, all `kept_by_others`."""
    held = "The only connection of the pool is" if kept == 1 else f"All {kept} connections of the pool are"
    return (
        f"{held} held by the application itself: a request that holds a session or a connection while it calls a saver "
        "on the same pool waits for itself."
    )


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """Borrow a connection for migrations, which begin and commit their transactions themselves.

    Through a pooler they are one transaction: it may lend another of the server's connections to the next, and the lock
    that is held from one to the other would stay with the first.
    """
    pool = engine.pool
    try:
        with engine.connect() as conn:
            check_loop(conn.connection.driver_connection)
            end_begun_transaction(conn)
            isolate(conn, "READ COMMITTED")
            if is_pooled(conn):
                with conn.begin():
                    yield conn
            else:
                yield conn
    finally:
        if engine.pool is not pool:
            pool.dispose()


def detached(engine: Engine) -> Connection:
    """Take a connection out of the pool, which makes a new one in its place; the caller closes it.

    Each statement on it commits itself.

    Raises:
        UnusableConnection: If a pooler or proxy lends it, so that it is no session of the server's.
    """
    pool, conn = engine.pool, engine.connect()
    try:
        check_loop(conn.connection.driver_connection)
        end_begun_transaction(conn)
        if is_pooled(conn):
            raise UnusableConnection(
                "between this engine and the server there is a pooler or proxy, such as PgBouncer, which may lend a "
                "session of the server's to others between two statements; a thread's lock needs one to itself. Take "
                "locks with a saver on an engine that connects directly."
            )
        conn.execution_options(isolation_level="AUTOCOMMIT")
        conn.detach()
    except BaseException:
        conn.close()
        if engine.pool is not pool:
            pool.dispose()
        raise
    return conn


def dispose(engine: Engine) -> None:
    """Close the connections in an engine's pool; those in use are closed when they are given back."""
    # In this order: a call that begins meanwhile gets none of those being closed, and no other pool is replaced.
    pool = engine.pool
    engine.dispose(close=False)
    # A StaticPool would close its one connection under the call that uses it.
    one = vars(pool).get("connection") if isinstance(pool, StaticPool) else None
    if one is None or not one.in_use:
        pool.dispose()
