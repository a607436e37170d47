"""Backends for the engine, connection or session that a saver is made with, if it is of a kind that we can use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import Connection, Dialect, Engine, delete, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from checkpoint_store.database.backend import AsyncBackend, Backend, SyncBackend
from checkpoint_store.database.bound_provider import BoundConnectionProvider, BoundSessionProvider
from checkpoint_store.database.engine_provider import EngineProvider
from checkpoint_store.database.event_loop import EventLoop
from checkpoint_store.database.group_commit import AsyncPipeline, group_commit_of
from checkpoint_store.database.page_sharing import PageSharing
from checkpoint_store.database.provider import ConnectionProvider
from checkpoint_store.database.replica_provider import ReplicaProvider
from checkpoint_store.database.retry import RETRY_SECONDS
from checkpoint_store.database.thread_commit import thread_commit_of
from checkpoint_store.errors import InvalidOption, UnusableConnection
from checkpoint_store.options import SaverOptions
from checkpoint_store.serde.arguments import flag
from checkpoint_store.sql.statements import Statements, statements_of
from checkpoint_store.storage.page_cache import PageCache, page_memory_of
from checkpoint_store.url import check_pooler

_DRIVERS = ("asyncpg", "psycopg")


def backend_for(conn: object, pipe: object, options: SaverOptions[Any], *, sync: bool) -> Backend:
    """Return a backend for an engine or connection.

    Args:
        conn: The engine or connection.
        pipe: A pipeline; None for the one that all savers on an engine share, False for none.
        options: The saver's options.
        sync: Whether the saver is a sync one, which takes sync engines and connections too.

    Raises:
        UnusableConnection: If `conn`, `pipe` or `read_engine` is of another kind, database or driver.
        InvalidOption: If an option can't be used, or not with `conn`.
    """
    check_pooler(options.get("pooler"))
    if isinstance(conn, (AsyncSession, Session, async_scoped_session, scoped_session)):
        raise UnusableConnection(
            f"conn is {_kind_of(conn)}. Make the saver on the session's engine, and work in a transaction of the "
            "session with saver.bind(session)."
        )
    if not (isinstance(conn, (AsyncEngine, AsyncConnection)) or (sync and isinstance(conn, (Engine, Connection)))):
        kinds = "AsyncEngine or open AsyncConnection" + ", or a sync Engine or open Connection," * sync
        raise UnusableConnection(
            _wrong_kind("conn", conn, kinds) + " From a connection string, use from_conn_string()."
        )
    if pipe is not None and pipe is not False and not isinstance(pipe, AsyncPipeline):
        raise UnusableConnection(f"pipe must be an AsyncPipeline, None or False, not a {type(pipe).__qualname__}")
    if isinstance(conn, (AsyncEngine, Engine)):
        return engine_backend(conn, options, pipe)
    if options.get("read_engine") is not None:
        raise InvalidOption(
            "read_engine can't be used with a connection: no replica knows of its transaction. Pass the engine."
        )
    if pipe:
        raise InvalidOption(
            "pipe can't be used with a connection: the writes there are committed by its owner. Pass the engine."
        )
    provider = _connection_provider("conn", conn, statements_of(options.get("schema")))
    page_cache = PageCache(page_memory_of(provider.engine.dialect), provider.sql.tables.schema)
    return _host_backend(provider, page_cache, _page_sharing(options))


def backend_within(conn: object, backend: Backend, bind_arguments: Mapping[str, Any] | None, *, sync: bool) -> Backend:
    """Return a backend like another one, but in a transaction of the caller's.

    Args:
        conn: A connection or session.
        backend: The other one.
        bind_arguments: For `Session.connection()`: they select the one of its engines that has the tables.
        sync: As for `backend_for`.

    Raises:
        UnusableConnection: If `conn` is of another kind, database or driver.
        InvalidOption: If `bind_arguments` come with a connection.
    """
    if isinstance(conn, (async_scoped_session, scoped_session)):
        conn = conn()  # the current one: LangGraph calls from other threads and tasks
    if not (isinstance(conn, (AsyncConnection, AsyncSession)) or (sync and isinstance(conn, (Connection, Session)))):
        kinds = "AsyncSession or open AsyncConnection" + ", or a sync Session or open Connection," * sync
        raise UnusableConnection(_wrong_kind("conn_or_session", conn, kinds))
    provider: ConnectionProvider
    if isinstance(conn, (AsyncSession, Session)):
        provider = _session_provider(conn, backend, bind_arguments)
    elif bind_arguments is None:
        provider = _connection_provider("conn_or_session", conn, backend.sql)
    else:
        raise InvalidOption("bind_arguments are for a session; a connection is one engine's")
    event_loop = backend.event_loop if isinstance(backend, AsyncBackend) else None
    return _host_backend(provider, backend.page_cache, backend.page_sharing, event_loop)


def engine_backend(
    engine: AsyncEngine | Engine, options: SaverOptions[Any], pipe: AsyncPipeline | Literal[False] | None = None
) -> Backend:
    """Return a backend on an engine.

    Raises:
        UnusableConnection: If an engine is of another kind, database or driver.
        InvalidOption: If `pipe` was made for another engine, or comes with a sync one; or if an option can't be used.
    """
    if not isinstance(engine, (AsyncEngine, Engine)):
        raise UnusableConnection(_wrong_kind("engine", engine, "AsyncEngine or Engine"))
    _check_dialect("conn", engine, engine.dialect)
    page_sharing = _page_sharing(options)
    sql = statements_of(options.get("schema"))
    page_cache = PageCache(page_memory_of(engine.dialect), sql.tables.schema)
    target = (sql.tables.schema, *(options.get(name) for name in ("retry_timeout", "pooler")))
    if isinstance(engine, Engine):
        if pipe:
            raise InvalidOption(
                "pipe can't be used with a sync engine, whose threads share commits by themselves. "
                "Leave it out, or pass an AsyncEngine."
            )
        commits = None if pipe is False else thread_commit_of(engine)
        provider = _engine_provider(engine, sql, options)
        return SyncBackend(provider, page_cache, page_sharing, commits=commits, target=target)
    # Variants made with execution_options() share the dialect.
    if pipe and pipe.engine.dialect is not engine.dialect:
        raise InvalidOption("pipe was made for another engine. Use AsyncPipeline(engine) with the saver's own engine.")
    return AsyncBackend(
        *(_engine_provider(engine, sql, options), EventLoop.of(engine.dialect), page_cache, page_sharing),
        engine=engine,
        replica=options.get("read_engine"),
        pipe=group_commit_of(engine) if pipe is None else pipe or None,
        target=target,
    )


def _page_sharing(options: SaverOptions[Any]) -> PageSharing:
    wanted = options.get("share_pages")
    return PageSharing(None if wanted is None else flag(wanted, "share_pages"))


def _engine_provider(engine: AsyncEngine | Engine, sql: Statements, options: SaverOptions[Any]) -> ConnectionProvider:
    pooler, read_engine = bool(options.get("pooler")), options.get("read_engine")
    within = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    primary = EngineProvider(within, sql, options.get("retry_timeout", RETRY_SECONDS), pooler=pooler)
    if read_engine is None:
        return primary
    kind = AsyncEngine if isinstance(engine, AsyncEngine) else Engine
    if not isinstance(read_engine, kind):
        raise UnusableConnection(_wrong_kind("read_engine", read_engine, f"{kind.__name__}, as conn is,"))
    _check_dialect("read_engine", read_engine, read_engine.dialect)
    replica = read_engine.sync_engine if isinstance(read_engine, AsyncEngine) else read_engine
    # Without retries: a read that fails there is repeated on the primary, at once.
    return ReplicaProvider(primary, EngineProvider(replica, sql, 0, pooler=pooler))


def _host_backend(
    provider: ConnectionProvider,
    page_cache: PageCache,
    page_sharing: PageSharing,
    engines_loop: EventLoop | None = None,
) -> Backend:
    """Return a backend in a transaction of the caller's: on the running loop, or on the engine's if none runs here."""
    if not provider.engine.dialect.is_async:
        return SyncBackend(provider, page_cache, page_sharing)
    event_loop = EventLoop(moves=False)
    event_loop.adopt()
    if event_loop.loop is None and engines_loop is not None:
        event_loop = engines_loop
    return AsyncBackend(provider, event_loop, page_cache, page_sharing)


def _connection_provider(name: str, conn: AsyncConnection | Connection, sql: Statements) -> BoundConnectionProvider:
    within = conn.sync_connection if isinstance(conn, AsyncConnection) else conn
    if within is None or within.closed:
        block = "async with" if isinstance(conn, AsyncConnection) else "with"
        raise UnusableConnection(
            f"{name} is {_kind_of(conn)} that is not open. Use `{block} engine.connect() as conn`."
        )
    _check_dialect(name, conn, within.dialect)
    return BoundConnectionProvider(within, sql)


def _session_provider(
    session: AsyncSession | Session, backend: Backend, bind_arguments: Mapping[str, Any] | None
) -> BoundSessionProvider:
    within = session.sync_session if isinstance(session, AsyncSession) else session
    # By this clause a session that routes reads to other engines routes us to the one for writes.
    arguments = dict(bind_arguments or {"clause": delete(backend.sql.tables.checkpoints)})
    if isinstance(bind := arguments.get("bind"), (AsyncEngine, AsyncConnection)):
        arguments["bind"] = bind.sync_engine if isinstance(bind, AsyncEngine) else bind.sync_connection
    try:
        engine = (arguments.get("bind") or within.get_bind(**arguments)).engine
    except exc.UnboundExecutionError:
        if bind_arguments is not None or backend.provider.is_callers:
            raise
        # It has engines for its own tables only.
        engine = backend.provider.engine
        arguments = {"bind": engine}
    _check_dialect("conn_or_session", session, engine.dialect)
    return BoundSessionProvider(within, engine, backend.sql, arguments)


def _check_dialect(name: str, conn: object, dialect: Dialect) -> None:
    if not _is_usable(dialect):
        raise UnusableConnection(
            f"{name} is {_kind_of(conn)} of {dialect.name}+{dialect.driver}; it must be an AsyncEngine of "
            "postgresql+asyncpg or postgresql+psycopg, or for PostgresSaver also an Engine of postgresql+psycopg. "
            "From a connection string, use from_conn_string()."
        )
    if dialect.is_async and not isinstance(conn, (AsyncEngine, AsyncConnection, AsyncSession)):
        raise UnusableConnection(f"{name} is {_kind_of(conn)}, the inside of an async one. Pass the async one itself.")


def _is_usable(dialect: Dialect) -> bool:
    return dialect.name == "postgresql" and dialect.driver in _DRIVERS


def _wrong_kind(name: str, value: object, kinds: str) -> str:
    is_sync = isinstance(value, Session) or (isinstance(value, (Engine, Connection)) and _is_usable(value.dialect))
    way_out = " Use PostgresSaver, which takes it too." if is_sync else ""
    return f"{name} is {_kind_of(value)}; it must be an {kinds} of SQLAlchemy.{way_out}"


def _kind_of(value: object) -> str:
    return f"a {type(value).__module__}.{type(value).__qualname__}"
