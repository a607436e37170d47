"""Looking at tables that are not at head: the stock saver's at any of its versions, ours at older revisions, none."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS as STOCK_MIGRATIONS
from langgraph.graph import START, MessagesState, StateGraph
from psycopg import sql
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main, text
from tests.conftest import database
from tests.integration.commands import Cli, Done

NEWEST = len(STOCK_MIGRATIONS) - 1


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, on the database of a URL."""

    def run(url: str, *arguments: str) -> Done:
        monkeypatch.setenv("CHECKPOINT_STORE_URL", url)
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


def migrate(url: str, version: int) -> None:
    """Run the stock saver's migrations up to a version, as its `setup` does."""
    with psycopg.connect(url, autocommit=True) as conn:
        for number, migration in enumerate(STOCK_MIGRATIONS[: version + 1]):
            conn.execute(migration)  # type: ignore[call-overload]
            conn.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [number])


def chat(saver: Any, thread_id: str = "t") -> list[str]:
    """Have a conversation of two turns; return its checkpoint ids, the newest first."""
    graph = StateGraph(MessagesState).add_node("answer", lambda _: {"messages": ["fine"]}).add_edge(START, "answer")
    config: Any = {"configurable": {"thread_id": thread_id}}
    for said in ("hello", "and you?"):
        graph.compile(checkpointer=saver).invoke({"messages": [said]}, config)
    return [state.config["configurable"]["checkpoint_id"] for state in saver_history(graph, saver, config)]


def saver_history(graph: Any, saver: Any, config: Any) -> list[Any]:
    return list(graph.compile(checkpointer=saver).get_state_history(config))


def looks(ids: list[str]) -> list[tuple[str, ...]]:
    return [
        ("threads", "--count"),
        ("threads", "--order", "thread_id"),
        ("stats",),
        ("stats", "t"),
        ("history", "t"),
        ("show", "t"),
        ("show", "t", ids[2]),
        ("diff", "t", ids[1], ids[0]),
        ("diff", "t"),
        ("export", "t"),
    ]


@pytest.fixture(scope="module")
def stock_url(server_url: str) -> Iterator[str]:
    """A database of the stock saver's, with a thread; nothing changes it."""
    with database(server_url) as url:
        with StockSaver.from_conn_string(url) as saver:
            saver.setup()
            chat(saver)
        yield url


def schema_of(url: str) -> list[Any]:
    with psycopg.connect(url) as conn:
        return conn.execute(
            "SELECT relname, attname, atttypid, attnotnull FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid "
            "WHERE relnamespace = 'public'::regnamespace ORDER BY 1, 2"
        ).fetchall()


def test_a_stock_database_is_looked_at_as_it_is(
    run: Cli, stock_url: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command prints what it prints once the tables are adopted, and one line that says what that would add."""
    now = datetime.now(UTC)
    monkeypatch.setattr(text, "now", lambda: now)
    with psycopg.connect(stock_url) as conn:
        rows = conn.execute("SELECT checkpoint_id FROM checkpoints ORDER BY checkpoint_id DESC").fetchall()
    ids, before = [row[0] for row in rows], schema_of(stock_url)
    hint = (
        f"the tables are those of langgraph-checkpoint-postgres, version {NEWEST}, not adopted: "
        "`checkpoint-store upgrade` adds checkpoint_pages, checkpoint_threads and 3 indexes\n"
    )

    looked = [run(stock_url, *arguments) for arguments in looks(ids)]

    assert [(done.code, done.err) for done in looked] == [(0, hint)] * len(looked)
    assert schema_of(stock_url) == before
    with psycopg.connect(stock_url) as conn, psycopg.connect(url) as adopted:
        for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes"):
            with (
                conn.cursor().copy(f"COPY {table} TO STDOUT") as out,
                adopted.cursor().copy(f"COPY {table} FROM STDIN") as into,
            ):
                for part in out:
                    into.write(part)
    again = [run(url, *arguments) for arguments in looks(ids)]
    assert {done.err for done in again} == {""}
    assert [done.out for place, done in enumerate(looked) if place != 2] == [
        done.out for place, done in enumerate(again) if place != 2
    ]


def test_threads_without_the_index_are_sought_by_id(run: Cli, empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that few threads pass does not sort the table for each batch; a note says so, and `--cursor` goes on."""
    migrate(empty_url, NEWEST)
    statements: list[str] = []

    def note_statement(_: object, __: object, statement: str, *___: object) -> None:
        statements.append(statement)

    with psycopg.connect(empty_url) as conn:
        conn.execute(
            "INSERT INTO checkpoints SELECT 't' || lpad((i % 300)::text, 3, '0'), '', "
            "lpad(i::text, 8, '0'), NULL, NULL, '{}', jsonb_build_object('even', i % 2 = 0) "
            "FROM generate_series(1, 9000) i"
        )

    def watched(*args: Any, **options: Any) -> AsyncEngine:
        engine = create_async_engine(*args, **options)
        # On this one: after a listener on the class, each engine of the process would count as one that is listened to.
        event.listen(engine.sync_engine, "before_cursor_execute", note_statement)
        return engine

    monkeypatch.setattr("sqlalchemy.ext.asyncio.create_async_engine", watched)
    note = "listed by --order thread_id: to find the newest first, an index is needed that an upgrade adds\n"

    def threads(*options: str) -> dict[str, Any]:
        statements.clear()
        done = run(empty_url, "threads", "--json", *options)
        assert done.code == 0, done.err
        is_by_age = any("checkpoint_id DESC, checkpoints.thread_id DESC" in one for one in statements)
        assert is_by_age != done.err.startswith(note), (options, done.err, statements)
        found: dict[str, Any] = json.loads(done.out)
        return found

    assert threads("--older-than", "1d") == {"threads": [], "next_cursor": None}
    for options in (["--prefix", "u"], ["--filter", '{"odd": 1}']):
        assert threads(*options) == {"threads": [], "next_cursor": None}
    assert len(threads("--limit", "0")["threads"]) == 300
    first = threads("--filter", '{"even": true}', "--limit", "100")
    rest = threads("--filter", '{"even": true}', "--limit", "100", "--cursor", first["next_cursor"])
    names = [one["thread_id"] for one in first["threads"] + rest["threads"]]
    assert names == [f"t{number:03}" for number in range(0, 300, 2)]

    few = threads("--limit", "3")
    assert [one["thread_id"] for one in few["threads"]] == ["t000", "t299", "t298"]
    assert [one["thread_id"] for one in threads("--limit", "2", "--cursor", few["next_cursor"])["threads"]] == [
        "t297",
        "t296",
    ]


@pytest.mark.parametrize("version", range(NEWEST + 1))
def test_every_version_of_the_stock_saver_is_looked_at(run: Cli, empty_url: str, version: int) -> None:
    """Whatever tables and columns it has; with a row in each of them."""
    migrate(empty_url, version)
    document = '{"v": 1, "id": "1", "channel_versions": {"a": "1"}, "channel_values": {"b": 2}}'
    with psycopg.connect(empty_url) as conn:
        if version >= 1:
            conn.execute("INSERT INTO checkpoints VALUES ('t', '', '0', NULL, NULL, '{}', '{}')")
            conn.execute("INSERT INTO checkpoints VALUES ('t', '', '1', '0', NULL, %s, '{\"step\": 3}')", [document])
        if version >= 2:
            conn.execute("INSERT INTO checkpoint_blobs VALUES ('t', '', 'a', '1', 'msgpack', '\\xa161')")
        if version >= 3:
            conn.execute("INSERT INTO checkpoint_writes VALUES ('t', '', '1', 'k', 0, 'c', 'msgpack', '\\xa162')")

    assert run(empty_url, "threads").code == run(empty_url, "stats").code == 0
    found = [run(empty_url, *arguments) for arguments in looks(["1", "1", "1"])[3:]]
    if version == 0:
        assert {done.code for done in found} == {1}
        assert found[0].err == "error: nothing is stored for the thread 't'\n"
        return
    assert {done.code for done in found} == {0}, found
    assert all(f"version {version}, not adopted: `checkpoint-store upgrade` adds" in done.err for done in found)
    shown = json.loads(run(empty_url, "show", "t", "--json").out)
    assert shown["metadata"] == {"step": 3}
    assert shown["channels"] == ({"a": "a", "b": 2} if version >= 2 else {"b": 2})
    assert [write["value"] for write in shown["writes"]] == (["b"] if version >= 3 else [])


def test_check_says_whose_the_tables_are(run: Cli, stock_url: str, empty_url: str) -> None:
    """And what an upgrade adds; of an empty database that nothing was set up."""
    done = run(stock_url, "check")
    assert done == (
        3,
        "",
        f"error: the tables are those of langgraph-checkpoint-postgres, version {NEWEST}, not adopted; this version "
        "needs cs04_subgraphs, which adds checkpoint_pages, checkpoint_threads and 3 indexes. Run `checkpoint-store "
        "upgrade`.\n",
    )
    never = "the tables were never set up; this version needs cs04_subgraphs. Run `checkpoint-store upgrade`.\n"
    assert run(empty_url, "check") == (3, "", f"error: {never}")
    for arguments in (("threads",), ("stats",), ("history", "t"), ("show", "t"), ("diff", "t", "1", "2")):
        assert run(empty_url, *arguments) == (3, "", f"error: {never}")


def test_removing_and_storing_ask_for_the_upgrade(run: Cli, stock_url: str) -> None:
    """Those that can't work without it; by its name, not by that of a relation."""
    for arguments in (
        ("copy", "t", "u"),
        ("delete", "t"),
        ("sweep", "--keep-last", "1"),
        ("prune", "t"),
    ):
        done = run(stock_url, *arguments)
        assert (done.code, done.out) == (3, ""), arguments
        assert done.err.startswith("error: the tables are those of langgraph-checkpoint-postgres"), done.err
        assert "relation" not in done.err


@pytest.mark.parametrize(
    ("revision", "adds"),
    [
        ("cs01_baseline", "checkpoint_pages, checkpoint_threads and 3 indexes"),
        ("cs02_pages", "3 indexes"),
        ("cs03_lifecycle", "1 index"),
    ],
)
def test_an_older_revision_is_looked_at(run: Cli, url: str, revision: str, adds: str) -> None:
    """After a downgrade, or before a deployment has migrated."""
    with PostgresSaver.from_conn_string(url) as saver:
        ids = chat(saver)
    assert run(url, "downgrade", revision, "--yes").code == 0

    for arguments in looks(ids):
        hint = f"the tables are at revision {revision}: `checkpoint-store upgrade` adds {adds}\n"
        assert run(url, *arguments)[::2] == (0, hint)
    assert run(url, "check").err.startswith(f"error: the tables are at revision {revision}; this version needs cs04")


def test_looking_writes_nothing(run: Cli, stock_url: str, url: str, server_url: str) -> None:
    """So that it works on a replica, and for a role whose transactions are read-only."""
    with PostgresSaver.from_conn_string(url) as saver:
        ids = chat(saver)
    for one in (url, stock_url):
        with psycopg.connect(one) as conn:
            if one == stock_url:
                ids = [row[0] for row in conn.execute("SELECT checkpoint_id FROM checkpoints ORDER BY 1 DESC")]
        read_only = f"{one}{'&' if '?' in one else '?'}options=-cdefault_transaction_read_only%3Don"
        assert {run(read_only, *arguments).code for arguments in looks(ids)} == {0}


def test_a_right_that_is_missing_is_named_with_its_table(run: Cli, stock_url: str, server_url: str) -> None:
    """With the GRANT for reading, on the tables that there are."""
    with psycopg.connect(stock_url, autocommit=True) as conn:
        role = f"reader {urlsplit(stock_url).path[-8:]}"
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        conn.execute(sql.SQL("GRANT SELECT ON checkpoints TO {}").format(sql.Identifier(role)))
        try:
            url = stock_url.replace("postgres@", role.replace(" ", "%20") + "@", 1)
            done = [run(url, *arguments) for arguments in (("threads", "--no-size"), ("stats", "t"), ("show", "t"))]
        finally:
            conn.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))

    assert done[0].code == 0
    for one in done[1:]:
        assert (one.code, one.out) == (1, "")
        assert one.err == (
            f'error: the role "{role}" may not read checkpoint_blobs, checkpoint_writes. A role that owns the tables '
            f"can give the right: GRANT SELECT ON checkpoints, checkpoint_blobs, checkpoint_writes, "
            f'checkpoint_migrations TO "{role}";\n'
        )


def test_a_table_of_another_application_is_not_read_as_ours(run: Cli, empty_url: str) -> None:
    """It is named, with the column that it lacks."""
    with psycopg.connect(empty_url) as conn:
        conn.execute("CREATE TABLE checkpoints (id bigint, at timestamptz)")

    done = run(empty_url, "threads")

    assert (done.code, done.out) == (3, "")
    assert "another application has the name of a checkpoint table; it lacks checkpoints.checkpoint. " in done.err
    assert run(empty_url, "check")[::2] == (3, done.err)


def test_tables_in_a_schema_are_named_with_it(run: Cli, empty_url: str) -> None:
    """The hint can be pasted."""
    with psycopg.connect(empty_url) as conn:
        conn.execute('CREATE SCHEMA "my agents"')
        conn.execute('SET search_path TO "my agents"')
        for number, migration in enumerate(STOCK_MIGRATIONS[:4]):
            conn.execute(migration)  # type: ignore[call-overload]
            conn.execute("INSERT INTO checkpoint_migrations VALUES (%s)", [number])

    done = run(empty_url, "threads", "--schema", "my agents")

    assert done.code == 0
    assert done.err.endswith(
        "version 3, not adopted: `checkpoint-store upgrade --schema 'my agents'` adds checkpoint_writes.task_path, "
        "checkpoint_pages, checkpoint_threads and 3 indexes\n"
    )
