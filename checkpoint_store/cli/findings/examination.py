"""The examination of a database: connect, read the facts one by one, and judge them."""

from __future__ import annotations

import ipaddress
import ssl
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar
from urllib.parse import parse_qsl, unquote
from uuid import uuid4

from asyncpg.exceptions import InvalidSQLStatementNameError
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from checkpoint_store import distribution
from checkpoint_store.cli.connection import on_engine
from checkpoint_store.cli.findings import activity, connection, server, tables
from checkpoint_store.cli.findings.connection import Opened, Pooling
from checkpoint_store.cli.findings.finding import Finding, Unknown, failure, ok, warning
from checkpoint_store.cli.text import counted
from checkpoint_store.conninfo.driver_errors import diagnosis_of
from checkpoint_store.conninfo.url import connector, masked, parse
from checkpoint_store.database.error_translation import FOREIGN
from checkpoint_store.database.pool import is_pooled
from checkpoint_store.errors import NotSetUp
from checkpoint_store.migrations.version_check import is_usable
from checkpoint_store.schema import identifier
from checkpoint_store.sql.executor import ConnectionExecutor
from checkpoint_store.sql.statements import statements_of
from checkpoint_store.storage import diagnosis
from checkpoint_store.storage.catalog import Catalog
from checkpoint_store.storage.catalog import catalog as catalog_of
from checkpoint_store.storage.diagnosis import Server
from checkpoint_store.storage.operation import Operation

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_SECONDS, STATEMENT_SECONDS, LOCK_SECONDS = 5.0, 2.0, 0.3
"""Limits: for connecting, unless the URL has one; for a statement; for its wait for a lock."""

_SHOWN = (
    "host",
    "port",
    "sslmode",
    "ssl",
    "sslrootcert",
    "target_session_attrs",
    "connect_timeout",
    "application_name",
)
"""Parameters of a URL whose values are shown."""


def examine(url: str, schema: str | None) -> list[Finding]:
    """Return the findings about a database; only one if no connection can be made, named for the step that failed."""
    shown = shown_url(url)

    async def run(engine: AsyncEngine) -> list[Finding]:
        seconds = _time_connecting(engine)
        conn = engine.connect()
        try:
            await conn.start()
        except FOREIGN as error:
            parts, _ = parse(url)
            role, database = parts.username or "app", parts.path.removeprefix("/") or parts.username or "app"
            return [connection.failed(error, shown, unquote(role), database)]
        try:
            opened = await _opened(conn, url, shown, seconds[0])
            return await conn.run_sync(lambda within: _Examination(within, schema, opened).findings())
        finally:
            await conn.close()

    return on_engine(url, schema, run)


def shown_url(url: str) -> str:
    """Return a URL without user and password, and without values of parameters that may be secret."""
    parameters = parse_qsl(url.partition("?")[2].partition("#")[0]) if "://" in url else []
    texts = [f"{name}={value if name in _SHOWN else '...'}" for name, value in parameters]
    return masked(url) + ("?" + "&".join(texts) if texts else "")


def _time_connecting(engine: AsyncEngine) -> list[float]:
    """Return a list that gets the seconds that each connection takes, and limit them."""
    seconds: list[float] = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def connect(dialect: Any, _: object, args: Any, options: Any) -> Any:
        options.setdefault("timeout", CONNECT_SECONDS)
        began = time.perf_counter()
        connected = dialect.connect(*args, **options)
        seconds.append(time.perf_counter() - began)
        return connected

    return seconds


async def _opened(conn: AsyncConnection, url: str, shown: str, connect_seconds: float) -> Opened:
    """Return the facts about a connection."""
    driver: Any = (await conn.get_raw_connection()).driver_connection
    trips = []
    for _ in range(3):
        began = time.perf_counter()
        await driver.execute("SHOW server_version")
        trips.append(time.perf_counter() - began)
    address, encryption = driver._addr, driver._transport.get_extra_info("ssl_object")
    is_socket = isinstance(address, str)
    hosts = [host for host, _ in connector(url).hosts]
    peer = driver._transport.get_extra_info("peername")
    return Opened(
        shown,
        address if is_socket else f"{address[0]}:{address[1]}",
        hosts.index(address[0]) + 1 if not is_socket and address[0] in hosts else 1,
        len(hosts),
        connect_seconds,
        min(trips),
        is_socket,
        not is_socket and ipaddress.ip_address(peer[0]).is_loopback,
        encryption and encryption.version(),
        driver._params.sslmode.name.replace("_", "-"),
        encryption is not None and encryption.context.verify_mode == ssl.CERT_REQUIRED,
        encryption is not None and encryption.context.check_hostname,
        await _pooling(conn),
    )


async def _pooling(conn: AsyncConnection) -> Pooling:
    """Return whether a pooler stands before the server, and of which kind."""
    if not await conn.run_sync(is_pooled):
        return Pooling.NONE
    try:
        return await _pooling_of(conn)
    except InvalidSQLStatementNameError:
        return Pooling.TRANSACTIONS
    except FOREIGN:
        return Pooling.UNCLEAR


async def _pooling_of(conn: AsyncConnection) -> Pooling:
    question, name = statements_of(None).session_id, f"checkpoint_store_{uuid4().hex}"
    first: Any = (await conn.get_raw_connection()).driver_connection
    statement = await first.prepare(question.sql(conn.dialect), name=name)
    session = await statement.fetchval()
    async with conn.engine.connect() as second:
        # The first is idle: a pooler of transactions lends its session to the second, in whose transaction it stays. So
        # the first gets another one next, which knows the statement only if the pooler carries it there.
        held = await second.run_sync(lambda within: ConnectionExecutor(within).fetch(question, {})[0][0])
        if held != session:
            return Pooling.UNCLEAR
        try:
            await statement.fetchval(timeout=1)
        except InvalidSQLStatementNameError:
            driver: Any = (await second.get_raw_connection()).driver_connection
            await driver.execute(f"DEALLOCATE {identifier(name)}")
            return Pooling.TRANSACTIONS
    return Pooling.CARRYING


class _Examination:
    """The questions to a database, in one transaction that is begun anew where a question fails."""

    def __init__(self, conn: Connection, schema: str | None, opened: Opened) -> None:
        self._conn = conn
        self._db = ConnectionExecutor(conn)
        self._sql = statements_of(schema)
        self._schema = schema
        self._opened = opened

    def findings(self) -> list[Finding]:
        """Read the facts and judge them."""
        schema, opened, ask = self._schema, self._opened, self._ask
        found = ask(diagnosis.server)
        rights, relations = ask(diagnosis.schema_rights), ask(diagnosis.relations)
        elsewhere = ask(diagnosis.elsewhere)
        catalog = ask(catalog_of)
        is_at_head = isinstance(catalog, Catalog) and catalog.revision is not None and is_usable({catalog.revision})
        rules, indexes, vacuum = ask(diagnosis.rules), ask(diagnosis.indexes), ask(diagnosis.table_statistics)
        sessions, connections = ask(diagnosis.sessions), ask(diagnosis.connections)
        return [
            connection.url(opened),
            connection.tls(opened),
            connection.pooler(opened),
            _judged("version", server.version, found),
            _judged("primary", server.writable, found),
            _judged("encoding", server.encoding, found),
            _judged("revision", tables.revision, schema, catalog, is_at_head, relations, elsewhere),
            *tables.damage(catalog),
            _judged("grants", tables.grants, schema, found, rights, relations),
            _judged("rules", tables.rules, relations, rules),
            _judged("schemas", tables.duplicates, found, relations, elsewhere),
            _judged("indexes", tables.indexes, schema, is_at_head, relations, indexes),
            *self._distribution(found, is_at_head=is_at_head),
            _judged("vacuum", activity.vacuum, schema, found, vacuum),
            _judged("sessions", activity.sessions, found, sessions),
            _judged("connections", server.connections, found, connections, opened),
            _judged("plan_cache_mode", server.plan_cache_mode, found),
            _judged("transaction ids", server.transaction_ids, found),
        ]

    def _ask(self, operation: Operation[P, T], *args: P.args, **options: P.kwargs) -> T | Unknown:
        return self._tried(lambda: operation.function(self._db, self._sql, *args, **options))

    def _tried(self, question: Callable[[], T]) -> T | Unknown:
        """Return the answer to a question, which is given a time limit, or the reason why there is none."""
        try:
            if not self._conn.in_transaction():
                self._conn.begin()
                diagnosis.limit_waits(self._db, self._sql, STATEMENT_SECONDS, LOCK_SECONDS)
            return question()
        except FOREIGN as error:
            if self._conn.in_transaction():
                self._conn.rollback()
            diagnosed = diagnosis_of(error)
            return Unknown(diagnosed.message or diagnosed.name or type(error).__name__)

    def _distribution(self, found: Server | Unknown, *, is_at_head: bool) -> list[Finding]:
        """Return the finding about distribution by Citus, where the database has it."""
        if isinstance(found, Unknown) or not found.has_citus or not is_at_head:
            return []
        try:
            placed = self._tried(lambda: distribution.current(self._conn, self._schema))
        except NotSetUp as error:
            return [failure("citus", str(error), "checkpoint-store distribute")]
        if isinstance(placed, Unknown):
            return [warning("citus", f"not checked: {placed.reason}")]
        if placed is None:
            return [ok("citus", "the extension is there, the tables are not distributed")]
        places = f"{counted(placed.shards, 'shard')} on {counted(placed.nodes, 'node')}"
        return [ok("citus", f"distributed by thread over {places}")]


def _judged(check: str, judge: Callable[..., Finding], *facts: Any) -> Finding:
    """Judge facts, or say which of them is unknown."""
    unknown = next((fact for fact in facts if isinstance(fact, Unknown)), None)
    return judge(*facts) if unknown is None else warning(check, f"not checked: {unknown.reason}")
