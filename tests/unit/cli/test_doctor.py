"""The judgement of `doctor`, from facts that a test server does not have."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from asyncpg import exceptions

from checkpoint_store.cli.doctor import broken
from checkpoint_store.cli.findings import activity, connection, server, tables
from checkpoint_store.cli.findings.connection import Opened, Pooling
from checkpoint_store.cli.findings.finding import Level, duration, listed
from checkpoint_store.storage.diagnosis import (
    Connections,
    Elsewhere,
    Index,
    Relation,
    Rule,
    SchemaRights,
    Server,
    Session,
    TableStatistics,
)

SERVER = Server(
    version_number=160004,
    version="16.4",
    database="app",
    role="app",
    is_superuser=False,
    may_create_schemas=False,
    is_standby=False,
    is_read_only=False,
    encoding="UTF8",
    max_connections=100,
    reserved_connections=3,
    role_limit=-1,
    database_limit=-1,
    search_path=["public"],
    plan_cache_mode="auto",
    plan_cache_source="default",
    transaction_age=1_000,
    multixact_age=0,
    freeze_age=200_000_000,
    has_autovacuum=True,
    has_citus=False,
)
OPENED = Opened(
    url="postgresql://db/app",
    host="db:5432",
    place=1,
    hosts=1,
    connect_seconds=0.02,
    trip_seconds=0.001,
    is_socket=False,
    is_local=False,
    tls="TLSv1.3",
    sslmode="verify-full",
    is_verified=True,
    checks_host=True,
    pooling=Pooling.NONE,
)
STATISTICS = TableStatistics(
    table="checkpoints",
    rows=1000,
    live=1000,
    dead=0,
    disk_pages=100,
    toast_live=0,
    toast_dead=0,
    toast_disk_pages=0,
    vacuumed_at=datetime(2026, 3, 1, 4, tzinfo=UTC),
    analyzed_at=datetime(2026, 3, 1, 4, tzinfo=UTC),
    is_autovacuum_off=False,
)
SESSION = Session(
    pid=7,
    role="app",
    application="web",
    state="active",
    transaction_seconds=1.0,
    state_seconds=1.0,
    tables=["checkpoints"],
    waits=False,
    excludes=False,
    blocked_by=None,
)


@pytest.mark.parametrize(
    ("number", "level"),
    [(120_010, Level.FAILURE), (130_000, Level.OK), (180_004, Level.OK), (190_000, Level.WARNING)],
)
def test_versions_13_to_18_are_supported(number: int, level: Level) -> None:
    assert server.version(SERVER._replace(version_number=number)).level is level


@pytest.mark.parametrize(
    ("facts", "level", "words", "way_out"),
    [
        ({"is_standby": True}, Level.WARNING, "a standby", "target_session_attrs=read-write"),
        (
            {"is_read_only": True},
            Level.FAILURE,
            "default_transaction_read_only is on",
            'ALTER ROLE "app" RESET default_transaction_read_only;',
        ),
    ],
)
def test_a_standby_is_a_warning_and_a_primary_that_only_reads_a_failure(
    facts: dict[str, Any], level: Level, words: str, way_out: str
) -> None:
    """Since one may want to look at just that standby."""
    found = server.writable(SERVER._replace(**facts))

    assert found.level is level
    assert words in found.found
    assert found.way_out[0] == way_out


def test_an_encoding_that_lacks_characters_is_a_warning() -> None:
    assert server.encoding(SERVER._replace(encoding="LATIN1")).level is Level.WARNING


@pytest.mark.parametrize(
    ("facts", "used", "level", "way_out"),
    [
        ({}, (10, 5, 5), Level.OK, ""),
        ({}, (90, 5, 5), Level.WARNING, "ALTER SYSTEM SET max_connections = 200;  -- then restart the server"),
        ({"role_limit": 8}, (10, 5, 5), Level.WARNING, 'ALTER ROLE "app" CONNECTION LIMIT -1;'),
        ({"database_limit": 6}, (10, 6, 5), Level.WARNING, 'ALTER DATABASE "app" CONNECTION LIMIT -1;'),
    ],
)
def test_the_narrowest_limit_of_connections_counts(
    facts: dict[str, Any], used: tuple[int, int, int], level: Level, way_out: str
) -> None:
    """Of the server, the role or the database."""
    found = server.connections(SERVER._replace(**facts), Connections(*used), OPENED)

    assert (found.level, found.way_out) == (level, (way_out,) if way_out else ())


def test_processes_are_counted_by_the_pool_of_a_saver() -> None:
    """Eight connections, and one for locks: 87 free ones are enough for nine processes."""
    found = server.connections(SERVER, Connections(10, 5, 5), OPENED).found
    assert "10 of 97 in use" in found
    assert "A process takes up to 9 (a pool of 8, one for thread locks): there is room for 9 more" in found
    behind = server.connections(SERVER, Connections(10, 5, 5), OPENED._replace(pooling=Pooling.TRANSACTIONS))
    assert "They are the pooler's here" in behind.found


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({"plan_cache_mode": "auto"}, Level.OK),
        ({"plan_cache_mode": "force_generic_plan"}, Level.OK),
        ({"plan_cache_mode": "force_custom_plan"}, Level.WARNING),
        ({"plan_cache_mode": "force_generic_plan", "has_citus": True}, Level.FAILURE),
    ],
)
def test_generic_plans_are_right_but_with_citus(facts: dict[str, Any], level: Level) -> None:
    assert server.plan_cache_mode(SERVER._replace(**facts)).level is level


@pytest.mark.parametrize(
    ("age", "level"), [(390_000_000, Level.OK), (410_000_000, Level.WARNING), (1_600_000_000, Level.FAILURE)]
)
def test_old_transaction_ids_are_noticed_before_the_server_stops(age: int, level: Level) -> None:
    assert server.transaction_ids(SERVER._replace(transaction_age=age)).level is level
    assert server.transaction_ids(SERVER._replace(multixact_age=age)).level is level


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        ({"tls": None, "is_verified": False, "sslmode": "prefer"}, Level.WARNING, "cross the network in clear"),
        ({"tls": None, "is_local": True}, Level.OK, "stays on this machine"),
        ({"is_verified": False, "sslmode": "require"}, Level.WARNING, "certificate is not verified (sslmode=require)"),
        ({"is_socket": True, "tls": None}, Level.OK, "Unix socket"),
        ({}, Level.OK, "certificate and host name"),
    ],
)
def test_tls_is_judged_by_what_it_protects(facts: dict[str, Any], level: Level, words: str) -> None:
    found = connection.tls(OPENED._replace(**facts))

    assert found.level is level
    assert words in found.found


@pytest.mark.parametrize(
    ("connect", "trip", "level"), [(0.1, 0.01, Level.OK), (2, 0.01, Level.WARNING), (0.1, 0.1, Level.WARNING)]
)
def test_a_slow_way_to_the_server_is_a_warning(connect: float, trip: float, level: Level) -> None:
    assert connection.url(OPENED._replace(connect_seconds=connect, trip_seconds=trip)).level is level


def test_a_session_that_a_time_limit_ends_is_not_a_server_that_is_away() -> None:
    """Though the driver says that the connection was lost."""
    error = exceptions.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    error.__cause__ = exceptions.IdleInTransactionSessionTimeoutError("terminating connection")
    error.__cause__.__cause__ = ConnectionResetError()
    found = connection.failed(error, "postgresql:///app", "app", "app")
    assert found.check == "login"
    assert "by a time limit of the role or the database" in found.found


def test_a_pooler_says_the_option() -> None:
    """As advice, since the service may have it."""
    for pooling in (Pooling.TRANSACTIONS, Pooling.UNCLEAR):
        found = connection.pooler(OPENED._replace(pooling=pooling))
        assert found.level is Level.OK
        assert found.way_out == ('pooler="transaction"',)


def statistics(**facts: Any) -> list[TableStatistics]:
    return [STATISTICS._replace(**facts)]


def test_dead_rows_are_a_warning_where_vacuum_does_not_keep_up() -> None:
    """In the table, or in the pieces of its large values; not the few of a small table."""
    assert activity.vacuum(None, SERVER, statistics(dead=9_000)).level is Level.OK
    assert activity.vacuum(None, SERVER, statistics(live=100_000, dead=20_000)).level is Level.OK
    heap = activity.vacuum("agents", SERVER, statistics(live=50_000, dead=50_000, disk_pages=1_000))
    assert heap.level is Level.WARNING
    assert "50,000 of 100,000 rows are dead, about 4.1 MB" in heap.found
    assert heap.way_out[0] == 'VACUUM (ANALYZE) "agents".checkpoints;'
    toast = activity.vacuum(None, SERVER, statistics(toast_live=10_000, toast_dead=30_000, toast_disk_pages=10_000))
    assert toast.level is Level.WARNING
    assert "about 61.4 MB" in toast.found


def test_a_table_without_statistics_is_a_warning() -> None:
    found = activity.vacuum(None, SERVER, statistics(live=20_000, analyzed_at=None))
    assert (found.level, found.way_out) == (Level.WARNING, ("ANALYZE checkpoints;",))


def test_vacuum_that_is_off_is_a_warning() -> None:
    """For the server, or a table; a standby has none of its own."""
    assert activity.vacuum(None, SERVER._replace(has_autovacuum=False), statistics()).level is Level.WARNING
    assert activity.vacuum(None, SERVER, statistics(is_autovacuum_off=True)).level is Level.WARNING
    assert activity.vacuum(None, SERVER._replace(is_standby=True), statistics(dead=10**6)).level is Level.OK


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        ({}, Level.OK),
        ({"state": "idle in transaction", "state_seconds": 1.0}, Level.OK),
        ({"state": "idle in transaction", "state_seconds": 60.0}, Level.WARNING),
        ({"state": "idle in transaction", "state_seconds": 60.0, "tables": []}, Level.OK),
        ({"transaction_seconds": 4000.0, "tables": []}, Level.WARNING),
        ({"state": "idle in transaction", "state_seconds": 1.0, "excludes": True}, Level.WARNING),
        ({"waits": True, "blocked_by": [9]}, Level.WARNING),
        ({"state": None, "role": "other"}, Level.WARNING),
    ],
)
def test_sessions_are_judged_by_what_they_keep_from_others(facts: dict[str, Any], level: Level) -> None:
    assert activity.sessions(SERVER, [SESSION._replace(**facts)]).level is level


def test_a_name_of_an_application_is_quoted() -> None:
    """It is whatever a client has sent."""
    idle = SESSION._replace(application='x"); DROP', state="idle in transaction", state_seconds=60.0)
    found = activity.sessions(SERVER, [idle])
    assert '(application_name "x""); DROP")' in found.found
    assert found.way_out == (
        "SELECT pg_terminate_backend(7);",
        "ALTER ROLE \"app\" SET idle_in_transaction_session_timeout = '5min';",
    )


CHECKPOINTS = Relation("public", "checkpoints", "app", True, False, True, True, True, True, False)


def test_what_reindexing_left_over_is_dropped() -> None:
    """Other invalid indexes are built again; one that is being built is left alone."""
    key = Index("checkpoints", False, "public", "checkpoints_pkey", True, True, False)
    left = Index("checkpoints", False, "public", "checkpoint_store_run_idx_ccnew1", False, False, False)
    building = left._replace(name="fresh", is_being_built=True)
    found = tables.indexes(None, False, [CHECKPOINTS], [key, left, left._replace(name="broken"), building])
    assert found.way_out == (
        'DROP INDEX CONCURRENTLY "public"."checkpoint_store_run_idx_ccnew1";',
        'REINDEX INDEX CONCURRENTLY "public"."broken";',
    )
    assert tables.indexes(None, False, [CHECKPOINTS], [key, building]).level is Level.OK


def test_an_index_of_partitions_is_not_made_online() -> None:
    """PostgreSQL does not take CONCURRENTLY there."""
    key = Index("checkpoints", False, "public", "checkpoints_pkey", True, True, False)
    found = tables.indexes(
        "agents", True, [CHECKPOINTS], [key, key._replace(is_partition=True, name="checkpoints_p0_pkey")]
    )
    assert found.way_out[0].startswith('CREATE INDEX checkpoint_store_latest_idx ON "agents".checkpoints')


def test_a_role_may_lack_use_of_the_schema() -> None:
    rights = SchemaRights("agents", may_use=False, may_create=False)
    found = tables.grants("agents", SERVER, rights, [])
    assert (found.level, found.way_out) == (Level.FAILURE, ('GRANT USAGE ON SCHEMA "agents" TO "app";',))
    nowhere = tables.grants(None, SERVER, None, [])
    assert nowhere.way_out == ('CREATE SCHEMA "app" AUTHORIZATION "app";',)


def test_rules_that_do_not_hold_are_not_named() -> None:
    """A policy on a table whose row security is off."""
    assert tables.rules([CHECKPOINTS], [Rule("checkpoints", "policy", "p")]).level is Level.OK
    active = CHECKPOINTS._replace(has_row_security=True)
    assert tables.rules([active], [Rule("checkpoints", "policy", "p")]).level is Level.WARNING
    assert tables.rules([active], []).level is Level.FAILURE


def test_schemas_elsewhere_are_counted() -> None:
    assert "7 schemas, such as" in tables.duplicates(SERVER, [], Elsewhere(["a", "b"], False, 7)).found


def test_lines_of_sql_are_broken_between_words_only() -> None:
    """A quoted name, or a text, stays whole: it may have spaces."""
    statement = "GRANT SELECT ON checkpoints TO \"my  role, with spaces\"; SELECT 'a  b';"
    lines = list(broken(statement, 20))
    assert lines == ["GRANT SELECT ON", "    checkpoints TO", '    "my  role, with spaces";', "    SELECT 'a  b';"]


def test_numbers_and_lists_are_short() -> None:
    assert [duration(seconds) for seconds in (0.0004, 0.05, 3, 600, 7200, 200_000)] == [
        "0.4 ms", "50 ms", "3 s", "10 min", "2 h", "2 days"
    ]  # fmt: skip
    assert listed([str(number) for number in range(9)], 2) == "0, 1 and 7 more"
