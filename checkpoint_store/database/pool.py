"""Where a statement is executed: through SQLAlchemy's `Connection`, or straight on the driver's."""

from __future__ import annotations

import asyncio
import re
import select as sockets
import socket
import struct
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, NoReturn

from asyncpg import PostgresWarning
from sqlalchemy import Connection, Engine, Pool, PoolProxiedConnection, QueuePool, StaticPool, exc, func, select
from sqlalchemy.util import await_only

from checkpoint_store.conninfo.driver_errors import brief, unfrozen
from checkpoint_store.conninfo.transient_errors import ends_all_connections, ends_connections
from checkpoint_store.errors import InvalidOption, InvalidURL, UnusableConnection, WrongThread
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.executor import ConnectionExecutor, Executor, Row, is_in_transaction

_lent: weakref.WeakKeyDictionary[Pool, set[int]] = weakref.WeakKeyDictionary()
"""Which connections of a pool are lent to calls of ours, by the ids of what stands for them meanwhile."""


_UNKNOWN = re.compile(r"^connect\(\) got an unexpected keyword argument ('\w+')$")

_ENDS = (b"", b"E", b"\x15")
"""The end of the stream, an error of the server's, an alert of TLS."""


class DirectExecutor(Executor):
    """Executes on the driver's connection: each statement is a transaction of its own, with neither BEGIN nor COMMIT.

    SQLAlchemy's execution context and result, and setting AUTOCOMMIT and taking it back, cost more than a small
    statement does.

    Through a pooler of transactions this works where asyncpg's cache is off: then each execution sends the text along,
    under no name, and all of it is one transaction to the pooler. (SQLAlchemy's way is not: when it has prepared a
    statement, asyncpg closes older ones before it is executed, and the pooler takes that for the end.)

    Args:
        engine: The engine.
        pooled: A connection of its pool.
        driver: The driver's connection in it.
    """

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection, driver: Any) -> None:
        self._engine = engine
        self._pooled = pooled
        self._driver = driver

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        dialect = self._engine.dialect
        sql, parameters = statement.sql(dialect), statement.parameters(dialect, binds)
        try:
            rows = self._fetch(sql, parameters)
        except PostgresWarning as error:
            raise unfrozen(error) from None
        except BaseException as error:
            self._give_up(error, sql, parameters)
        return rows

    @property
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last."""
        return is_in_transaction(self._driver)

    def _give_up(self, error: BaseException, sql: str | None = None, parameters: Any = None) -> NoReturn:
        if _is_interruption(error):
            with suppress(Exception):  # it may be closed
                _discard_unsent(_socket_of(self._driver))
        # What Connection does: wraps the error, and gives up a connection that is lost or was interrupted.
        conn, translated = Connection(self._engine, self._pooled), self._translated(error)
        if self._is_lost(translated) and not ends_all_connections(translated):
            # But it would have all others of the pool replaced too: see `_part_with`.
            conn.invalidate(brief(translated))
            conn._is_disconnect = True
        conn._handle_dbapi_exception(translated, sql, parameters, None, None)

    def _is_lost(self, error: BaseException) -> bool:
        """Tell whether an error of the DBAPI's has ended the connection."""
        dialect, adapter = self._engine.dialect, self._pooled.dbapi_connection
        is_dbapis = adapter is not None and isinstance(error, dialect.loaded_dbapi.Error)
        return is_dbapis and dialect.is_disconnect(error, adapter, None)  # type: ignore[arg-type]

    @abstractmethod
    def _fetch(self, sql: str, parameters: Any) -> Sequence[Row]:
        """Execute SQL."""

    def _translated(self, error: BaseException) -> BaseException:
        """Return an error of the driver's as the dialect's DBAPI has it."""
        return error


class AsyncpgExecutor(DirectExecutor):
    """Executes on asyncpg's connection."""

    def _fetch(self, sql: str, parameters: Any) -> Sequence[Row]:
        rows: Sequence[Row] = await_only(self._driver.fetch(sql, *parameters))
        return rows

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, Exception):
            try:
                self._pooled.dbapi_connection._handle_exception(error)  # type: ignore[union-attr]
            except Exception as translated:
                return translated
        return error


class PsycopgExecutor(DirectExecutor):
    """Executes on psycopg's connection, sync or async, while it is in autocommit."""

    def __init__(self, engine: Engine, pooled: PoolProxiedConnection, driver: Any) -> None:
        super().__init__(engine, pooled, driver)
        self._wait: Callable[[Any], Any] = await_only if engine.dialect.is_async else _as_it_is

    @contextmanager
    def in_autocommit(self) -> Iterator[Executor]:
        """Set autocommit for a block, and what it was thereafter; psycopg keeps that to itself, no server is asked."""
        before = self._driver.autocommit
        try:
            if not before:
                self._wait(self._driver.set_autocommit(True))
        except BaseException as error:
            self._give_up(error)
        try:
            yield self
        finally:
            if not before and not self._driver.closed:
                self._wait(self._driver.set_autocommit(False))

    def _fetch(self, sql: str, parameters: Any) -> Sequence[Row]:
        cursor = self._wait(self._driver.execute(sql, parameters, binary=True))
        rows: Sequence[Row] = self._wait(cursor.fetchall()) if cursor.description else []
        return rows


def _as_it_is(value: Any) -> Any:
    return value


@contextmanager
def borrowed(engine: Engine, *, whole: bool = False, pooler: bool = False) -> Iterator[Executor]:
    """Borrow a connection of the pool.

    Where an event listener or the log would want to know, statements are executed the ordinary way. Where a listener
    begins transactions, to set something in them that policies look at, they are executed in one.

    Args:
        engine: The engine.
        whole: Whether the statements of the block are one transaction; otherwise each commits itself, as a rule.
        pooler: Whether a pooler of transactions stands before the server.

    Raises:
        WrongThread: If the pool's connections belong to another event loop.
        InvalidOption: If there is a pooler, and the engine is not made for one.
    """
    pool = engine.pool
    lent, pooled = _lent.setdefault(pool, set()), None
    try:
        if whole or _is_watched(engine):
            with Connection(engine, _checkout(engine)) as conn:
                pooled = conn.connection
                lent.add(id(pooled))
                if pooler:
                    _check_forgets(pooled)
                try:
                    with _nothing_late(pooled.driver_connection), _committed(conn, whole=whole) as db:
                        yield db
                except (TimeoutError, exc.StatementError) as error:
                    _part_with(engine, pooled, error)
            return
        pooled = _checkout(engine)
        lent.add(id(pooled))
        try:
            if pooler:
                _check_forgets(pooled)
            with _direct(engine, pooled) as db:
                yield db
        except (TimeoutError, exc.StatementError) as error:
            _part_with(engine, pooled, error)
        finally:
            pooled.close()
    except RuntimeError as error:
        if "attached to a different loop" in str(error):  # asyncio's words, where the pool asks after its connections
            raise _left_by_a_loop() from None
        raise
    finally:
        lent.discard(id(pooled))
        _leave(pool, engine)


def kept_by_others(engine: Engine) -> int:
    """Return how many connections of a full pool are checked out, where none of them is lent to a call of ours."""
    pool = engine.pool
    is_full = isinstance(pool, QueuePool) and pool.checkedout() >= pool.size() + pool._max_overflow
    return pool.checkedout() if is_full and not _lent.get(pool) else 0  # type: ignore[attr-defined]


def full_of_others(kept: int) -> str:
    """Say what it means that a whole pool, of so many connections, is `kept_by_others`."""
    held = "The only connection of the pool is" if kept == 1 else f"All {kept} connections of the pool are"
    return (
        f"{held} held by the application itself: a request that holds a session or a connection while it calls a saver "
        "on the same pool waits for itself."
    )


@contextmanager
def migrating(engine: Engine) -> Iterator[Connection]:
    """Borrow a connection for migrations, which begin and commit their transactions themselves.

    Through a pooler they are one transaction: it may lend another of the server's connections to the next, and the lock
    that is held from one to the other would stay behind.
    """
    pool = engine.pool
    try:
        with engine.connect() as conn:
            _check_loop(conn.connection.driver_connection)
            _end_what_listeners_began(conn)
            _isolate(conn, "READ COMMITTED")
            if is_pooled(conn):
                with conn.begin():
                    yield conn
            else:
                yield conn
    finally:
        _leave(pool, engine)


def is_pooled(conn: Connection) -> bool:
    """Tell whether something that pools connections stands before the server: it can't pass on a server's process id.

    Args:
        conn: A connection, not in a transaction; nor is it afterwards.
    """
    driver: Any = conn.connection.driver_connection
    told = driver.get_server_pid() if conn.dialect.driver == "asyncpg" else driver.info.backend_pid
    # In a transaction, and with the text sent along: this much works through all of them.
    with conn.begin():
        return bool(conn.scalar(select(func.pg_backend_pid())) != told)


def _checkout(engine: Engine) -> PoolProxiedConnection:
    """Take a connection from the pool, one that is open as far as this side can know."""
    while True:
        try:
            pooled = engine.raw_connection()
        except engine.dialect.loaded_dbapi.Error as error:
            Connection._handle_dbapi_exception_noconnection(error, engine.dialect, engine)
        except TypeError as error:
            if (unknown := _UNKNOWN.search(str(error))) is None:
                raise
            raise InvalidURL(
                f"the engine's URL has the parameter {unknown[1]}, which {engine.dialect.driver} does not know by that "
                "name. checkpoint_store.url.engine_arguments(url) takes libpq's parameters: it returns a URL and "
                "connect_args for create_async_engine()."
            ) from None
        if _is_open(pooled.driver_connection):
            return pooled
        # The server, or something on the way to it, hung up while the connection lay in the pool.
        pooled.invalidate()
        pooled.close()


def _is_open(driver: Any) -> bool:
    """Tell whether a connection that lay in the pool is open, as far as this side can know."""
    if hasattr(driver, "is_closed"):
        # asyncpg's, which listens all the time; but the loop may have been busy until now.
        return not driver.is_closed() and not _has_ended(_socket_of(driver))
    # psycopg doesn't: what has come meanwhile, as a rule nothing, may be the server's last word.
    if not driver.closed:
        with suppress(Exception):  # raised where it is the end
            while _has_arrived(driver.fileno()):
                driver.pgconn.consume_input()
    return not driver.closed


def _has_arrived(number: int) -> bool:
    """Tell whether there is something to be read from a connection, or its end."""
    if not hasattr(sockets, "poll"):
        return bool(sockets.select((number,), (), (), 0)[0])
    arrived = sockets.poll()
    arrived.register(number, sockets.POLLIN)
    return bool(arrived.poll(0))


def _has_ended(number: int) -> bool:
    """Tell whether the next that is to be read from a connection which should be idle is its end, or leads to that."""
    if not _has_arrived(number):
        return False
    sock = socket.socket(fileno=number)
    try:
        sock.setblocking(False)  # as it is; but here a host's socket.setdefaulttimeout() would be waited for
        return sock.recv(1, socket.MSG_PEEK) in _ENDS
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.detach()


def _part_with(engine: Engine, pooled: PoolProxiedConnection, error: Exception) -> NoReturn:
    """Raise an error, and part with the connection if it is of no more use, whatever its driver thinks of it."""
    if isinstance(error, TimeoutError):
        # The caller's limit for statements, not to be taken for a server that did not answer when it was connected to.
        # The connection has been given up, as after an interruption: the next to have it might wait as long.
        raise exc.StatementError("it took too long", None, None, error, hide_parameters=True) from error
    if pooled.is_valid and ends_connections(error):
        if ends_all_connections(error):
            # The other connections of the pool are not tried one after the other.
            engine.pool._invalidate(pooled, brief(error))  # which the pool logs
        else:
            pooled.invalidate(brief(error))
    raise error


def detached(engine: Engine) -> Connection:
    """Take a connection out of the pool, which makes a new one in its place; the caller closes it.

    Each statement on it commits itself.

    Raises:
        UnusableConnection: If it is no session of the server's.
    """
    pool, conn = engine.pool, engine.connect()
    try:
        _check_loop(conn.connection.driver_connection)
        _end_what_listeners_began(conn)
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
        _leave(pool, engine)
        raise
    return conn


def dispose(engine: Engine) -> None:
    """Close the connections in an engine's pool; those in use are closed by who gives them back."""
    # In this order: what begins meanwhile gets none of those that are being closed, and nobody else's pool is replaced.
    pool = engine.pool
    engine.dispose(close=False)
    # This kind would close its one connection under whoever uses it.
    one = vars(pool).get("connection") if isinstance(pool, StaticPool) else None
    if one is None or not one.in_use:
        pool.dispose()


@contextmanager
def _nothing_late(driver: Any) -> Iterator[None]:
    """Have nothing sent any more when the block has been interrupted, also if its connection is closed by then."""
    held = None
    with suppress(OSError, AttributeError):  # it may have been lost while it lay in the pool
        # Until this is closed too, the connection is there.
        held = socket.fromfd(_socket_of(driver), socket.AF_INET, socket.SOCK_STREAM)
    try:
        yield
    except BaseException as error:
        if held is not None and _is_interruption(error):
            with suppress(OSError):
                _discard_unsent(held.fileno())
        raise
    finally:
        if held is not None:
            held.close()


def _is_interruption(error: BaseException) -> bool:
    """Tell whether it is not known what becomes of a statement: nobody waits for the answer any more."""
    return not isinstance(error, Exception) or isinstance(error, TimeoutError)


def _socket_of(driver: Any) -> int:
    return int((driver if hasattr(driver, "fileno") else driver._transport.get_extra_info("socket")).fileno())


def _discard_unsent(number: int) -> None:
    """Have the system reset a connection when it is closed, and send nothing of what it has not sent yet.

    Otherwise it goes on trying in the background for many minutes. Where the network is silent meanwhile, and heals,
    the server would carry out what was cancelled long ago, over what is newer.
    """
    sock = socket.socket(fileno=number)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        sock.detach()


def _leave(pool: Pool, engine: Engine) -> None:
    """Close what has come back to a pool if the engine was disposed of meanwhile.

    SQLAlchemy has it closed when it is collected as garbage, which what an event loop knows never is while that runs.
    """
    if engine.pool is not pool:
        pool.dispose()


def _direct(engine: Engine, pooled: PoolProxiedConnection) -> AbstractContextManager[Executor]:
    """Return what executes on the driver's connection where that is what it seems to be."""
    driver: Any = pooled.driver_connection
    _check_loop(driver)
    if not is_in_transaction(driver):
        if engine.dialect.driver == "asyncpg":
            return nullcontext(AsyncpgExecutor(engine, pooled, driver))
        dbapi: Any = engine.dialect.dbapi
        if driver.cursor_factory in (dbapi.Cursor, dbapi.AsyncCursor):
            return PsycopgExecutor(engine, pooled, driver).in_autocommit()
    return _committed(Connection(engine, pooled), whole=False)


@contextmanager
def _committed(conn: Connection, *, whole: bool) -> Iterator[Executor]:
    """Commit what is executed on a connection in the block: at its end, or each statement by itself."""
    _check_loop(conn.connection.driver_connection)
    # Listeners of the pool's or the connection's may have begun a transaction: what they have set may end with it.
    is_begun = conn.in_transaction() or is_in_transaction(conn.connection.driver_connection)
    whole = whole or is_begun or bool(conn.dispatch.begin)
    # SQLAlchemy's statements have names; through a pooler they have to be prepared and executed in one transaction.
    whole = whole or (conn.dialect.driver == "asyncpg" and _forgets(conn.connection))
    if not is_begun:
        # The host's engine may be in AUTOCOMMIT, or in an isolation level in which locks don't show what others did.
        _isolate(conn, "READ COMMITTED" if whole else "AUTOCOMMIT")
    yield ConnectionExecutor(conn)
    if whole:
        conn.commit()


def _end_what_listeners_began(conn: Connection) -> None:
    """End a transaction on a connection just borrowed; what was set for the session stays."""
    if conn.in_transaction():
        conn.commit()
    elif is_in_transaction(conn.connection.driver_connection):
        conn.connection.commit()


def _isolate(conn: Connection, level: str) -> None:
    """Set the isolation level until the connection goes back to the pool."""
    pooled: Any = conn.connection
    # SQLAlchemy resets it to the engine's. A listener of the host's may have set another one on this connection: so
    # that is noted and, the last callback being called first, set again at the very end.
    pooled._connection_record.finalize_callback.append(_restoring(conn.dialect, pooled))
    conn.execution_options(isolation_level=level)


def _restoring(dialect: Any, pooled: PoolProxiedConnection) -> Callable[[Any], None]:
    """Return what gives the driver's connection the isolation level that it has now."""
    if dialect.driver == "asyncpg":
        adapter: Any = pooled.dbapi_connection
        return partial(_set, isolation_level=adapter.isolation_level, _isolation_setting=adapter._isolation_setting)
    driver: Any = pooled.driver_connection
    return partial(dialect._do_isolation_level, autocommit=driver.autocommit, isolation_level=driver.isolation_level)


def _set(thing: object, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(thing, name, value)


def _is_watched(engine: Engine) -> bool:
    # SQLAlchemy 2.0 gives the class this attribute when something first listens to it.
    anywhere = getattr(Connection, "_has_events", False)
    return bool(anywhere or engine._has_events or engine.dialect._has_events or engine._should_log_info())


def _forgets(pooled: PoolProxiedConnection) -> bool:
    """Tell whether the driver keeps no prepared statements, as only those do who have a pooler of transactions."""
    driver: Any = pooled.driver_connection
    if hasattr(driver, "prepare_threshold"):
        return driver.prepare_threshold is None  # psycopg
    adapter: Any = pooled.dbapi_connection
    return not driver._config.statement_cache_size and adapter._prepared_statement_cache is None


def _check_forgets(pooled: PoolProxiedConnection) -> None:
    if not _forgets(pooled):
        raise InvalidOption(
            'pooler is "transaction", but the engine keeps prepared statements, which such a pooler loses. Make it by '
            "create_async_engine(url, **checkpoint_store.url.pooler_options())."
        )


def _check_loop(driver: object) -> None:
    loop = getattr(driver, "_loop", None)
    if loop is not None and loop is not asyncio.get_running_loop():
        if loop.is_running():
            raise WrongThread(
                "the engine's pool holds connections of another event loop. Make an engine for the saver, or make the "
                "saver before the engine is first used."
            )
        raise _left_by_a_loop()


def _left_by_a_loop() -> WrongThread:
    return WrongThread(
        "the engine's pool holds connections of an event loop that has ended. Dispose of the engine before its loop "
        "ends: `await engine.dispose()`. Now that it is too late: `await engine.dispose(close=False)`, and call again. "
        "With poolclass=NullPool there is nothing to dispose of. If the saver came from from_conn_string(), make a new "
        "saver."
    )
