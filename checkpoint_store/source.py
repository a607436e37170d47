"""What the caller handed us -> a `Connection`: whose it is, on which loop, in which transaction.

An **engine** is shared: each operation borrows a connection, as a rule for one statement that commits itself, so that
no BEGIN and COMMIT travel with it. A **connection** is the caller's: operations run in the transaction that is open
there, one at a time, and nothing is begun, committed or rolled back.
"""

from __future__ import annotations

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from asyncpg import PostgresError
from asyncpg.exceptions import ClientConfigurationError
from sqlalchemy import URL, Connection, Dialect, Pool, QueuePool, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only, greenlet_spawn

from checkpoint_store import migrations, operations
from checkpoint_store.bridge import Bridge
from checkpoint_store.changes import Change
from checkpoint_store.errors import AccessDenied, Closed, InvalidURL, NotSetUp, Unavailable
from checkpoint_store.executor import Executor, Ordinary, borrowed
from checkpoint_store.pipeline import AsyncPipeline
from checkpoint_store.schema import VERSION_TABLE
from checkpoint_store.shelf import Shelf
from checkpoint_store.statements import Statements
from checkpoint_store.turns import Turns, TurnTimeout

P = ParamSpec("P")
T = TypeVar("T")
Operation = Callable[Concatenate[Executor, Statements, P], T]

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_NO_TABLES = {"42P01": "undefined_table", "42703": "undefined_column", "3F000": "invalid_schema_name"}
_NO_RIGHT = "42501"  # insufficient_privilege
_NO_SETTING = "42704"  # undefined_object, which an unknown parameter in a URL turns out to be
_NO_SERVER = ("08", "28", "3D000", "53300", "57P0")
"""Connection exceptions, refused logins, no such database, too many connections, server shutting down or starting."""

_DEADLOCK = "40P01"
_DEADLOCKS = 3
"""How many times something is done again; each time the server took a second to notice (its `deadlock_timeout`)."""

_FOREIGN = (exc.SQLAlchemyError, PostgresError, ClientConfigurationError, OSError, asyncio.TimeoutError, TurnTimeout)
"""What comes from below us, to be told in our words."""

_turns: weakref.WeakKeyDictionary[Pool, Turns] = weakref.WeakKeyDictionary()
_shelves: weakref.WeakKeyDictionary[Dialect, dict[str | None, Shelf]] = weakref.WeakKeyDictionary()
_locks: weakref.WeakKeyDictionary[Connection, asyncio.Lock] = weakref.WeakKeyDictionary()


class Source(ABC):
    """Runs operations on connections of one origin.

    Args:
        sql: The statements that operations get.
        bridge: The loop that the connections live on.
        shelf: What is remembered of pages.
        shares_pages: Whether large values are stored as pages; None for where the stock saver has not set up tables.
    """

    def __init__(self, sql: Statements, bridge: Bridge, shelf: Shelf, shares_pages: bool | None) -> None:
        self.sql = sql
        self.bridge = bridge
        self.owned = False
        """Whether the engine is ours to dispose of, and its loop ours to end."""
        self.shares_pages = shares_pages
        """Whether large values are stored as pages; None as long as the database has not been asked."""
        self.shelf = shelf
        """What is remembered of pages."""
        self._closed = False

    async def run(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation, from any coroutine."""
        self._check_open()
        result: T = await self.bridge.acall(self._perform, self._lend, operation, *args)
        return result

    def run_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation and wait for it, from a thread other than the loop's."""
        self._check_open()
        result: T = self.bridge.call(self._perform, self._lend, operation, *args)
        return result

    async def transact(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation of several statements in a transaction, from any coroutine."""
        self._check_open()
        result: T = await self.bridge.acall(self._perform, self._lend_transaction, operation, *args)
        return result

    def transact_blocking(self, operation: Operation[P, T], *args: P.args, **_: P.kwargs) -> T:
        """Run an operation of several statements in a transaction and wait for it."""
        self._check_open()
        result: T = self.bridge.call(self._perform, self._lend_transaction, operation, *args)
        return result

    async def store(self, change: Change) -> None:
        """Store a change, from any coroutine."""
        self._check_open()
        await self.bridge.acall(self._store, change)

    def store_blocking(self, change: Change) -> None:
        """Store a change and wait for it."""
        self._check_open()
        self.bridge.call(self._store, change)

    def check_sync(self) -> None:
        """Raise unless a sync call can be made from here."""
        self._check_open()
        self.bridge.check_sync()

    async def setup(self, timeout: float) -> None:
        """Bring the schema to head, from any coroutine."""
        self._check_open()
        await self.bridge.acall(self._explained, self._setup, timeout)

    def setup_blocking(self, timeout: float) -> None:
        """Bring the schema to head and wait for it."""
        self._check_open()
        self.bridge.call(self._explained, self._setup, timeout)

    async def close(self) -> None:
        """Refuse further operations, and give back what is ours."""
        if not self._closed:
            self._closed = True
            await self.bridge.acall(self._release)

    def close_blocking(self) -> None:
        """Refuse further operations, and give back what is ours."""
        if not self._closed:
            self._closed = True
            self.bridge.call(self._release)
            if self.owned:
                self.bridge.stop()

    async def _perform(self, lend: Callable[..., Awaitable[T]], operation: Callable[..., T], *args: Any) -> T:
        self._check_open()
        return await self._explained(lend, operation, self.sql, *args)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this saver is closed. Make a new one, or use it inside its `with` block.")

    async def _explained(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await a coroutine function, and tell the driver's errors in our words."""
        try:
            return await function(*args)
        except (
            exc.SQLAlchemyError,
            PostgresError,
            ClientConfigurationError,
            OSError,
            asyncio.TimeoutError,
            TurnTimeout,
        ) as error:
            if (told := self._explain(error)) is None:
                raise
            raise told from error

    @abstractmethod
    async def _lend(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function with an executor and the arguments, in a greenlet."""

    @abstractmethod
    async def _lend_transaction(self, function: Callable[..., T], *args: Any) -> T:
        """The same, with an executor in a transaction, which is committed unless the function raises."""

    @abstractmethod
    async def _store(self, change: Change) -> None:
        """Store a change."""

    @abstractmethod
    async def _setup(self, timeout: float) -> None:
        """Bring the schema to head."""

    @abstractmethod
    async def _release(self) -> None:
        """Give back what is ours."""

    def _explain(self, error: BaseException) -> Exception | None:
        """Return our error for one of the driver's, or None where that one says it best."""
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        state = getattr(cause, "sqlstate", None) or ""
        message = (str(cause).rpartition("Error'>: ")[2].splitlines() or [type(cause).__name__])[0]
        if state in _NO_TABLES:
            return NotSetUp(f"{message}. Run `setup()` once, or `alembic upgrade head` before deploying.")
        if state == _NO_RIGHT:
            return AccessDenied(f"{message}. A role that owns the tables can give the right: {self._grants()}")
        if (
            isinstance(error, ClientConfigurationError)
            or isinstance(getattr(cause, "__cause__", None), ClientConfigurationError)
            or (state == _NO_SETTING and "configuration" in message)
        ):
            return InvalidURL(f"{self.where}: {message}")
        if isinstance(error, (exc.TimeoutError, TurnTimeout)):
            return Unavailable(f"{self.where}: no connection became free in time ({message})")
        lost = isinstance(error, exc.DBAPIError) and error.connection_invalidated
        if lost or state.startswith(_NO_SERVER) or isinstance(error, (OSError, asyncio.TimeoutError)):
            return Unavailable(
                f"{self.where}: {message}. Check that the server runs, and that the URL and the login are right."
            )
        return None

    def _grants(self) -> str:
        t = self.sql.tables
        prefix = "" if t.schema is None else f"{t.schema}."
        names = ", ".join(f"{prefix}{table.name}" for table in t.metadata.sorted_tables)
        return (
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {names} TO app; GRANT SELECT ON {prefix}{VERSION_TABLE} TO app;"
        )

    @property
    @abstractmethod
    def where(self) -> str:
        """How messages name the database; never with a password."""


class EngineSource(Source):
    """Connections borrowed from an engine.

    Args:
        engine: The caller's engine, or our own.
        sql: The statements that operations get.
        pipe: What lets concurrent changes share commits.
        shares_pages: See `Source`.
    """

    def __init__(
        self, engine: AsyncEngine, sql: Statements, pipe: AsyncPipeline | None, shares_pages: bool | None
    ) -> None:
        super().__init__(sql, Bridge.of(engine.dialect), _shelf_for(engine.dialect, sql), shares_pages)
        self._engine = engine
        self._pipe = pipe
        # A task that gives a connection back would take it again before those in the pool's queue have woken up. This
        # queue is fair, and shared by all savers on the pool.
        pool = engine.sync_engine.pool
        self._turns = _turns.get(pool) or _turns.setdefault(pool, _turns_for(pool))

    @property
    def where(self) -> str:
        """The engine's URL."""
        return _shown(self._engine.url)

    async def _lend(self, function: Callable[..., T], *args: Any) -> T:
        # One greenlet from checkout to return: each switch in and out of one costs as much as a small statement.
        await self._turns.take()
        try:
            return await greenlet_spawn(self._borrow, function, *args)
        finally:
            self._turns.give_back()

    def _borrow(self, function: Callable[..., T], *args: Any) -> T:
        with borrowed(self._engine.sync_engine) as db:
            return function(db, *args)

    async def _lend_transaction(self, function: Callable[..., T], *args: Any) -> T:
        await self._turns.take()
        try:
            async with self._engine.connect() as conn:
                # The host's engine may be in AUTOCOMMIT.
                await conn.execution_options(isolation_level="READ COMMITTED")
                async with conn.begin():
                    return await conn.run_sync(_ordinarily, function, *args)
        finally:
            self._turns.give_back()

    async def _store(self, change: Change) -> None:
        if self._pipe is None:
            await self._store_all([change])
        else:
            await self._pipe.submit(self._store_all, self.sql.tables.schema, change)

    async def _store_all(self, changes: Sequence[Change]) -> None:
        # Also when this saver has been closed meanwhile: it was open when the first call came in, and there may be
        # others' among them.
        await self._explained(self._lend, operations.store, self.sql, self.shelf, changes)

    async def _explained(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        # Whoever locks rows of several threads in another order may meet us halfway: the host, or the stock saver. The
        # server then chooses one whose work is undone, and all of ours can be done again.
        for _ in range(_DEADLOCKS):
            try:
                return await super()._explained(function, *args)
            except exc.DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _DEADLOCK:
                    raise
        return await super()._explained(function, *args)

    async def _setup(self, timeout: float) -> None:
        try:
            if migrations.is_head(await self._perform(self._lend, operations.revisions)):
                return
        except NotSetUp:
            pass
        async with self._engine.connect() as conn:
            # The host's engine may be in AUTOCOMMIT; a migration has to be one transaction.
            await conn.execution_options(isolation_level="READ COMMITTED")
            await conn.run_sync(migrations.bring_to_head, self.sql, timeout, _pause)

    async def _release(self) -> None:
        if self.owned and self._pipe is not None:
            await self._pipe.aclose()
        # On a loop of ours nobody else could close the connections; the engine opens new ones if it is used again.
        if self.owned or self.bridge.is_ours:
            await self._engine.dispose()


class ConnectionSource(Source):
    """The caller's connection, in the caller's transaction.

    Args:
        connection: An open connection.
        sql: The statements that operations get.
        shares_pages: See `Source`.
    """

    def __init__(self, connection: AsyncConnection, sql: Statements, shares_pages: bool | None) -> None:
        super().__init__(sql, Bridge(), Shelf(), shares_pages)
        self._connection = connection
        # Shared by all savers on this connection: it can do one thing at a time.
        self._lock = _locks.setdefault(cast("Connection", connection.sync_connection), asyncio.Lock())

    @property
    def where(self) -> str:
        """The URL of the connection's engine."""
        return _shown(self._connection.engine.url)

    async def _lend(self, function: Callable[..., T], *args: Any) -> T:
        async with self._lock:
            return await self._connection.run_sync(_ordinarily, function, *args)

    async def _lend_transaction(self, function: Callable[..., T], *args: Any) -> T:
        return await self._lend(function, *args)  # the caller's

    async def _store(self, change: Change) -> None:
        # No shelf: what the caller rolls back must not be remembered.
        await self._perform(self._lend, operations.store, None, [change])

    async def _setup(self, timeout: float) -> None:
        async with self._lock:
            await self._connection.run_sync(self._setup_within, timeout)

    def _setup_within(self, conn: Connection, timeout: float) -> None:
        # The first statement on a connection begins the caller's transaction, here as everywhere in SQLAlchemy.
        if not conn.in_transaction() and not getattr(conn.connection.dbapi_connection, "autocommit", False):
            conn.begin()
        migrations.bring_to_head(conn, self.sql, timeout, _pause)

    async def _release(self) -> None:
        pass  # the connection is the caller's


def _ordinarily(conn: Connection, function: Callable[..., T], *args: Any) -> T:
    return function(Ordinary(conn), *args)


def _shelf_for(dialect: Dialect, sql: Statements) -> Shelf:
    """Return the shelf that all savers on an engine and schema share; an engine goes by its dialect, as in `Bridge`."""
    return _shelves.setdefault(dialect, {}).setdefault(sql.tables.schema, Shelf())


def _shown(url: URL) -> str:
    """Return a URL without user, password and parameters, any of which may be secret."""
    return URL.create(url.drivername, host=url.host, port=url.port, database=url.database).render_as_string()


def _turns_for(pool: Pool) -> Turns:
    """Return a queue for a pool's connections; a pool without a limit lends very many."""
    overflow = getattr(pool, "_max_overflow", -1)
    if isinstance(pool, QueuePool) and overflow >= 0:
        return Turns(pool.size() + overflow, pool.timeout())
    return Turns(2**31, 0)


def _pause(seconds: float) -> None:
    """Sleep in a greenlet, without holding up the loop."""
    await_only(asyncio.sleep(seconds))
