"""Findings about the server, the database and the role."""

from __future__ import annotations

from checkpoint_store.cli.findings.connection import Opened, Pooling
from checkpoint_store.cli.findings.finding import Finding, failure, ok, warning
from checkpoint_store.schema import identifier
from checkpoint_store.storage.diagnosis import Connections, Server
from checkpoint_store.url import POOL_SIZE

OLDEST, NEWEST = 13, 18
"""The versions of PostgreSQL that this library supports."""

OF_A_PROCESS = POOL_SIZE + 1
"""The connections that a saver on an engine of ours opens at most: those of the pool, and one for thread locks."""

_LAST_AGE = 1_500_000_000
"""The age of rows at which the end, some 2,144 million, is near: the server then takes no more writes."""


def version(server: Server) -> Finding:
    """Judge the server's version."""
    major = server.version_number // 10_000
    if major < OLDEST:
        return failure(
            "version", f"PostgreSQL {server.version} is not supported: {OLDEST} to {NEWEST} are. Upgrade the server"
        )
    if major > NEWEST:
        return warning("version", f"PostgreSQL {server.version} is newer than {NEWEST}, the newest that was tested")
    return ok("version", f"PostgreSQL {server.version}")


def writable(server: Server) -> Finding:
    """Judge whether the server takes writes."""
    if server.is_standby:
        found = "a standby: reads work here, savers can't store. Name all hosts in the URL, and add"
        return warning("primary", found, "target_session_attrs=read-write")
    if server.is_read_only:
        found = "a primary, but default_transaction_read_only is on for this role or database: savers can't store"
        role, database = identifier(server.role), identifier(server.database)
        return failure(
            *("primary", found, f"ALTER ROLE {role} RESET default_transaction_read_only;"),
            f"ALTER DATABASE {database} RESET default_transaction_read_only;",
        )
    return ok("primary", "takes writes")


def encoding(server: Server) -> Finding:
    """Judge the encoding of the database."""
    if server.encoding == "UTF8":
        return ok("encoding", "UTF8")
    return warning(
        "encoding",
        f"{server.encoding}: a checkpoint with a character that it lacks is refused. Move by pg_dump and pg_restore to",
        f"CREATE DATABASE {identifier(server.database + '_utf8')} ENCODING 'UTF8' TEMPLATE template0;",
    )


def connections(server: Server, counted: Connections, opened: Opened) -> Finding:
    """Judge how many more processes the server has connections for."""
    usable = server.max_connections - server.reserved_connections
    free, limit = usable - counted.all, ""
    role, database = identifier(server.role), identifier(server.database)
    for name, most, used, statement in (
        ("the role", server.role_limit, counted.of_role, f"ALTER ROLE {role} CONNECTION LIMIT -1;"),
        ("the database", server.database_limit, counted.of_database, f"ALTER DATABASE {database} CONNECTION LIMIT -1;"),
    ):
        if 0 <= most < free + used:
            free, limit, way_out = most - used, f"; the limit of {name}, {most}, is the narrowest", statement
    free = max(free, 0)
    found = (
        f"{counted.all} of {usable} in use, {counted.of_database} by this database{limit}. A process takes up to "
        f"{OF_A_PROCESS} (a pool of {POOL_SIZE}, one for thread locks): there is room for {free // OF_A_PROCESS} more"
    )
    if opened.pooling is not Pooling.NONE:
        found += ". They are the pooler's here: its own limits hold for clients"
    if free >= max(OF_A_PROCESS, usable // 10):
        return ok("connections", found)
    if not limit:
        way_out = f"ALTER SYSTEM SET max_connections = {server.max_connections * 2};  -- then restart the server"
    return warning("connections", f"{found}. Make pools smaller (pool_size=4), put PgBouncer before it, or", way_out)


def plan_cache_mode(server: Server) -> Finding:
    """Judge the setting by which the server plans statements once or each time."""
    mode, source = server.plan_cache_mode, server.plan_cache_source
    if server.has_citus and mode == "force_generic_plan":
        found = f"{mode} ({source}), which Citus refuses for statements about a thread"
        role, database = identifier(server.role), identifier(server.database)
        return failure(
            *("plan_cache_mode", found, f"ALTER ROLE {role} RESET plan_cache_mode;"),
            f"ALTER DATABASE {database} RESET plan_cache_mode;",
        )
    if mode == "force_custom_plan":
        found = f"{mode} ({source}): the server plans each statement anew, which takes longer than to run it"
        return warning("plan_cache_mode", found, f"ALTER ROLE {identifier(server.role)} RESET plan_cache_mode;")
    if mode == "auto" and not server.has_citus:
        found = f"{mode}; from_conn_string sets force_generic_plan by itself, an engine of your own is faster with"
        way_out = 'connect_args={"server_settings": {"plan_cache_mode": "force_generic_plan"}}'
        return ok("plan_cache_mode", found, way_out)
    return ok("plan_cache_mode", mode)


def transaction_ids(server: Server) -> Finding:
    """Judge the age of the oldest rows that are not frozen."""
    age = max(server.transaction_age, server.multixact_age)
    found = (
        f"the oldest row that is not frozen is {age:,} transactions old; autovacuum freezes from {server.freeze_age:,}"
    )
    way_out = "vacuumdb --all --freeze --jobs=2"
    if age > _LAST_AGE:
        return failure("transaction ids", f"{found}. Before 2,147 million the server stops taking writes", way_out)
    if age > 2 * server.freeze_age:
        advice = (
            "It does not get on: look for old transactions, prepared ones (pg_prepared_xacts) and replication slots"
        )
        return warning("transaction ids", f"{found}. {advice}, then", way_out)
    return ok("transaction ids", found)
