"""`checkpoint-store doctor`: what an engineer on call learns about a database, in whatever state it is."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from checkpoint_store.cli import main
from checkpoint_store.schema import HEAD

INDEXES = ("checkpoint_store_latest_idx", "checkpoint_store_run_idx", "checkpoint_store_subgraphs_idx")


class Report:
    """What the command has found, by check."""

    def __init__(self, code: int, document: Any) -> None:
        self.code = code
        self.findings = {one["check"]: one for one in document["findings"]}

    def __getitem__(self, check: str) -> tuple[str, str]:
        return self.findings[check]["level"], self.findings[check]["found"]

    def way_out(self, check: str) -> str:
        return "\n".join(self.findings[check]["way_out"])

    @property
    def levels(self) -> dict[str, str]:
        return {check: one["level"] for check, one in self.findings.items() if one["level"] != "ok"}


Doctor = Callable[..., Report]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command on a URL."""

    def run(url: str, *arguments: str) -> Report:
        capsys.readouterr()
        code = main(["doctor", "--url", url, "--json", *arguments])
        return Report(code, json.loads(capsys.readouterr().out))

    return run


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


@pytest.fixture
def role(server_url: str) -> Iterator[str]:
    """A role that may log in, and nothing else; its name needs quotes."""
    name = f"Re ader {uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield name
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@contextmanager
def as_role(url: str, role: str) -> Iterator[str]:
    """The URL of a role, whose rights are taken away at the end."""
    info = conninfo_to_dict(url)
    try:
        yield f"postgresql://{role.replace(' ', '%20')}@/{info['dbname']}?host={info['host']}&port={info['port']}"
    finally:
        execute(url, f'DROP OWNED BY "{role}"')


def test_a_database_at_head_is_fine(doctor: Doctor, url: str) -> None:
    """Nothing to say but what was looked at."""
    report = doctor(url)

    assert (report.code, report.levels) == (0, {})
    assert report["revision"][1] == 'cs04_subgraphs in schema "public", which is head'
    assert report["indexes"][1] == "8 indexes, all valid"
    assert list(report.findings)[:3] == ["url", "tls", "pooler"]


def test_it_reads_well_in_80_columns(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each finding begins with its level; the last line counts them."""
    assert main(["doctor", "--url", url]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if "host=" not in line) < 80
    assert lines[-1] == "0 failures, 0 warnings, 16 ok"
    assert "ok       version: PostgreSQL" in "\n".join(lines)


def test_an_empty_database_was_never_set_up(doctor: Doctor, empty_url: str) -> None:
    """As `check` has it, by exit code 3; the way out is a command."""
    report = doctor(empty_url)

    assert (report.code, report.levels) == (3, {"revision": "failure"})
    assert report.way_out("revision") == "checkpoint-store upgrade"


def test_stock_tables_are_recognised(doctor: Doctor, empty_url: str) -> None:
    """With the number of the stock saver's last migration."""
    with StockSaver.from_conn_string(empty_url) as stock:
        stock.setup()
        version = max(range(len(stock.MIGRATIONS)))

    report = doctor(empty_url)

    assert report.code == 3
    assert f"langgraph-checkpoint-postgres, version {version}, not adopted" in report["revision"][1]
    assert "adding checkpoint_pages, checkpoint_threads and 3 indexes" in report["revision"][1]
    assert report.way_out("revision") == "checkpoint-store upgrade"


def test_an_older_and_a_newer_revision(doctor: Doctor, url: str) -> None:
    """The older one has to be upgraded, the newer one is used as it is."""
    execute(url, "UPDATE checkpoint_store_version SET version_num = 'cs99_later'")
    newer = doctor(url)
    assert (newer.code, newer.levels) == (0, {"revision": "warning"})

    assert main(["upgrade", "--url", url]) == 0
    execute(url, "UPDATE checkpoint_store_version SET version_num = 'cs03_lifecycle'")
    older = doctor(url)
    assert (older.code, older.levels) == (3, {"revision": "failure"})
    assert "cs03_lifecycle" in older["revision"][1]


def test_tables_in_another_schema_are_named(doctor: Doctor, empty_url: str) -> None:
    """Where none are found, and where two are."""
    assert main(["upgrade", "--url", empty_url, "--schema", "My agents"]) == 0
    report = doctor(empty_url)
    assert report.code == 3
    assert 'there are some in schema "My agents"' in report["revision"][1]
    assert "checkpoint-store doctor --schema 'My agents'" in report.way_out("revision")
    assert doctor(empty_url, "--schema", "My agents").levels == {}

    with StockSaver.from_conn_string(empty_url) as stock:
        stock.setup()
    execute(empty_url, f"ALTER DATABASE {urlsplit(empty_url).path[1:]} SET search_path = 'My agents', public")
    report = doctor(empty_url)
    assert (report.code, report.levels) == (0, {"schemas": "warning"})
    assert '"public" too, later in the search_path than "My agents"' in report["schemas"][1]


def test_a_missing_schema_says_how_to_make_it(doctor: Doctor, empty_url: str, role: str) -> None:
    """To a role that may not."""
    with as_role(empty_url, role) as restricted:
        report = doctor(restricted, "--schema", "agents")

    assert (report.code, report.levels) == (1, {"revision": "failure", "grants": "failure"})
    assert report.way_out("grants") == f'CREATE SCHEMA "agents" AUTHORIZATION "{role}";'


def test_a_role_without_rights_gets_the_grants_to_paste(doctor: Doctor, url: str, role: str) -> None:
    """They make it work; what could not be checked before says why, and the rest was checked."""
    with as_role(url, role) as restricted:
        report = doctor(restricted)
        assert (report.code, report["grants"][0]) == (1, "failure")
        assert report["revision"] == (
            "warning",
            "not known: this role may not read checkpoint_store_version; see grants",
        )
        assert report["indexes"][0] == "ok"

        execute(url, report.way_out("grants"))
        assert doctor(restricted).levels == {}

        execute(url, f'REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public FROM "{role}"')
        reader = doctor(restricted)
        assert (reader.code, reader.levels) == (0, {"grants": "warning"})

        execute(url, f'GRANT INSERT, UPDATE, DELETE ON checkpoints TO "{role}"')
        assert doctor(restricted)["grants"][0] == "failure"


def test_policies_and_triggers_are_named(doctor: Doctor, url: str, role: str) -> None:
    """If they hold for the role."""
    execute(
        url,
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
        "CREATE TRIGGER audit BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION nothing()",
        "ALTER TABLE checkpoint_blobs ENABLE ROW LEVEL SECURITY",
    )
    assert doctor(url)["rules"] == (
        "warning", "triggers may change or drop rows: audit on checkpoints. See that they let pass what savers store"
    )  # fmt: skip
    with as_role(url, role) as restricted:
        execute(url, doctor(restricted).way_out("grants"))
        hidden = doctor(restricted)
        assert "row security without a policy hides all rows of checkpoint_blobs" in hidden["rules"][1]
        assert hidden.levels == {"rules": "failure"}

        execute(url, "CREATE POLICY tenants ON checkpoint_blobs USING (true)")
        assert "policies may hide rows from this role: tenants on checkpoint_blobs" in doctor(restricted)["rules"][1]
        assert doctor(restricted).levels == {"rules": "warning"}


def test_missing_and_invalid_indexes_are_made_by_what_it_prints(doctor: Doctor, url: str) -> None:
    """One is missing, one was not finished."""
    execute(url, f"DROP INDEX {INDEXES[0]}")
    execute(url, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEXES[1]}'::regclass")
    report = doctor(url)
    assert (report.code, report.levels) == (0, {"indexes": "warning"})

    for statement in report.way_out("indexes").splitlines():
        execute(url, statement)

    assert doctor(url).levels == {}
    assert main(["check", "--url", url]) == 0


def test_a_primary_key_that_is_missing_is_a_failure(doctor: Doctor, url: str) -> None:
    """Upserts need it; the statement to paste makes it. Other indexes, or none, make no difference."""
    execute(url, "ALTER TABLE checkpoint_writes DROP CONSTRAINT checkpoint_writes_pkey")
    execute(url, "CREATE INDEX others ON checkpoint_writes (thread_id)")
    execute(url, "ALTER TABLE checkpoint_blobs DROP CONSTRAINT checkpoint_blobs_pkey")
    report = doctor(url)
    assert (report.code, report.levels) == (1, {"indexes": "failure"})

    execute(url, report.way_out("indexes"))
    assert doctor(url).levels == {}


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        ("ALTER TABLE checkpoint_writes DROP COLUMN task_path", "checkpoint_writes.task_path"),
        ("ALTER TABLE checkpoint_pages RENAME TO pages", "checkpoint_pages"),
    ],
)
def test_tables_that_are_not_those_of_their_revision_are_a_failure(
    doctor: Doctor, url: str, damage: str, missing: str
) -> None:
    """As after half a restore: an upgrade would find nothing to do."""
    execute(url, damage)
    report = doctor(url)
    assert (report.code, report.levels) == (1, {"tables": "failure"})
    assert f"says {HEAD}: {missing}. Savers can't store" in report["tables"][1]


@pytest.mark.parametrize(
    ("rule", "level", "words"),
    [
        ("CREATE RULE r AS ON INSERT TO checkpoints DO INSTEAD NOTHING", "warning", "rules may change or drop rows: r"),
        ("ALTER TABLE checkpoints ADD CHECK (thread_id <> '')", "warning", "constraints may refuse rows: checkpoints_"),
        (
            "CREATE TABLE u (id text PRIMARY KEY); ALTER TABLE checkpoints ADD FOREIGN KEY (thread_id) REFERENCES u",
            *("warning", "constraints may refuse rows: checkpoints_thread_id_fkey on checkpoints"),
        ),
        (
            "ALTER TABLE checkpoint_writes ADD tenant text NOT NULL",
            *("failure", "have no default, so rows are refused: checkpoint_writes.tenant"),
        ),
    ],
    ids=["rule", "check", "foreign key", "column"],
)
def test_what_may_refuse_rows_is_named(doctor: Doctor, url: str, rule: str, level: str, words: str) -> None:
    """Beside triggers and policies: rules, constraints and columns that others have added."""
    execute(url, rule)
    report = doctor(url)
    assert report.levels == {"rules": level}
    assert words in report["rules"][1]


def test_a_session_idle_in_a_transaction_is_named(doctor: Doctor, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who waits for it; the lock does not keep the command from looking, and pasting what it says ends it."""
    monkeypatch.setattr("checkpoint_store.cli.findings.activity._IDLE_SECONDS", 0)
    with psycopg.connect(f"{url}&application_name=stuck-deploy") as idle:
        idle.execute("LOCK TABLE checkpoints, checkpoint_store_version IN ACCESS EXCLUSIVE MODE")

        def wait() -> None:
            with psycopg.connect(url) as waiting:
                waiting.execute("SELECT FROM checkpoints")

        waiter = threading.Thread(target=wait)
        waiter.start()
        try:
            with psycopg.connect(url, autocommit=True) as looking:
                waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'checkpoints'::regclass::oid"
                while looking.execute(waits).fetchone() == (0,):
                    pass
            report = doctor(url)
            level, found = report["sessions"]
            assert level == "warning"
            assert f'process {idle.info.backend_pid} of role "postgres" (application_name "stuck-deploy")' in found
            assert "locks checkpoints against everybody" in found
            assert f"1 session waits for a lock of process {idle.info.backend_pid}" in found
            assert report["revision"] == ("warning", "not checked: canceling statement due to lock timeout")
            execute(url, report.way_out("sessions").splitlines()[0])
        finally:
            with suppress(psycopg.OperationalError):
                idle.rollback()
            waiter.join()


def test_dead_rows_and_a_vacuum_that_was_switched_off(doctor: Doctor, url: str) -> None:
    """With an estimate of the bytes."""
    insert = (
        "INSERT INTO checkpoint_blobs SELECT 't', '', 'c', n::text, 'msgpack', '\\x00' FROM generate_series(1, 30000) n"
    )
    execute(url, "ALTER TABLE checkpoint_blobs SET (autovacuum_enabled = false)", insert, "VACUUM checkpoint_blobs")
    execute(url, "DELETE FROM checkpoint_blobs WHERE version::int > 10000")
    report = doctor(url)
    assert report["vacuum"] == (
        "warning",
        "autovacuum is off for checkpoint_blobs: deleted checkpoints never make room",
    )

    # What it prints would let autovacuum in.
    assert report.way_out("vacuum") == "ALTER TABLE checkpoint_blobs RESET (autovacuum_enabled);"


@pytest.mark.parametrize(
    ("wrong", "check", "words"),
    [
        ("postgresql://postgres@/missing?{server}", "database", "does not exist"),
        ("postgresql://app:s3cret@host.invalid/app", "name resolution", "DNS"),
        ("postgresql://app:s3cret@127.0.0.1:1/app", "connect", "No server listens there"),
        ("postgresql:///app?host=/nowhere&password=s3cret", "connect", "No server listens there"),
        ("postgresql://nobody:s3cret@{database}?{server}", "login", 'role "nobody" does not exist'),
        ("postgresql://postgres@{database}?{server}&nonsense=hidden", "url", "unrecognized configuration parameter"),
        ("postgresql://postgres@{database}?{server}&options=hidden", "url", "invalid command-line argument"),
    ],
)
def test_the_step_that_failed_is_named(doctor: Doctor, url: str, wrong: str, check: str, words: str) -> None:
    """By the only finding; the password is not in it."""
    parts = urlsplit(url)

    report = doctor(wrong.format(database=parts.path, server=parts.query))

    assert (report.code, report.levels) == (2 if check == "url" else 4, {check: "failure"})
    assert words in report[check][1]
    assert "s3cret" not in report[check][1]


@pytest.mark.usefixtures("url")
def test_a_host_that_says_nothing_is_given_up(doctor: Doctor) -> None:
    """After the URL's own limit, or five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        report = doctor(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app?connect_timeout=0.2")

    assert (report.code, report.levels) == (4, {"connect": "failure"})
    assert "Nothing answered in time" in report["connect"][1]


def test_a_url_that_is_none_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    """As for every command."""
    assert main(["doctor", "--url", "mysql://app:s3cret@db/app"]) == 2
    assert "hidden" not in capsys.readouterr().err
    assert main(["doctor", "--url", "postgresql://app:s3cret[@db/app"]) == 2
    said = capsys.readouterr().err
    assert "can't be parsed" in said
    assert "s3cret" not in said


class TlsProxy:
    """Takes connections with TLS, as PostgreSQL does, and passes them on to a server that has none."""

    def __init__(self, url: str, certificate: Path, key: Path) -> None:
        info = conninfo_to_dict(url)
        self._socket = f"{info['host']}/.s.PGSQL.{info['port']}"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self.port = 0

    def __enter__(self) -> TlsProxy:
        self._thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = started.result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(8)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(self._context)
            server_reader, server_writer = await asyncio.open_unix_connection(self._socket)
            await asyncio.gather(self._pass(reader, server_writer), self._pass(server_reader, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost, which is its own authority, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "ca.pem", folder / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-out", str(made), "-keyout", str(key)], check=True, capture_output=True)
    return made, key


def test_tls_is_described_as_it_is(doctor: Doctor, url: str, certificate: tuple[Path, Path]) -> None:
    """Verified with the host's name, without, or not at all; a certificate that does not match ends at that step."""
    with TlsProxy(url, *certificate) as proxy:
        base = f"postgresql://postgres@localhost:{proxy.port}{urlsplit(url).path}?sslmode="
        assert doctor(f"{base}require")["tls"] == (
            "warning",
            "TLSv1.3, but the certificate is not verified (sslmode=require), so another machine may pose as the "
            "server. Add to the URL",
        )
        verified = doctor(f"{base}verify-full&sslrootcert={certificate[0]}")
        assert verified["tls"] == ("ok", "TLSv1.3, verifies certificate and host name (sslmode=verify-full)")
        assert verified.code == 0
        only = doctor(f"{base}verify-ca&sslrootcert={certificate[0]}")
        assert only["tls"] == ("ok", "TLSv1.3, verifies certificate, but not the host name (sslmode=verify-ca)")

        wrong = f"{base}verify-full&sslrootcert={certificate[0]}".replace("localhost", "127.0.0.1")
        refused = doctor(wrong)
        assert (refused.code, refused.levels) == (4, {"tls": "failure"})
        assert "sslmode and sslrootcert in the URL must suit the server" in refused["tls"][1]


def test_the_host_that_answered_is_named(doctor: Doctor, url: str, certificate: tuple[Path, Path]) -> None:
    """Of several."""
    with TlsProxy(url, *certificate) as proxy:
        hosts = f"localhost:1,127.0.0.1:{proxy.port}"
        report = doctor(f"postgresql://postgres@{hosts}{urlsplit(url).path}?sslmode=require")

    assert f"127.0.0.1:{proxy.port} (host 2 of 2) answered" in report["url"][1]


def test_names_of_others_can_not_pass_for_lines_to_paste(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An index, a trigger or an application has whatever name somebody gave it."""
    name = 'x\nDROP TABLE checkpoints; \x1b[2J"'
    with psycopg.connect(url, autocommit=True) as conn:
        index = sql.Identifier(name)
        conn.execute(sql.SQL("CREATE INDEX {} ON checkpoints (thread_id)").format(index))
        conn.execute(
            "UPDATE pg_index SET indisvalid = false FROM pg_class c WHERE c.oid = indexrelid AND relname LIKE 'x%'"
        )
        conn.execute("CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
        trigger = "CREATE TRIGGER {} BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION same()"
        conn.execute(sql.SQL(trigger).format(index))

    assert main(["doctor", "--url", url]) == 0

    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert not [line for line in printed.splitlines() if line.strip().startswith("DROP")]
    assert r'REINDEX INDEX CONCURRENTLY "public"."x\nDROP TABLE' in " ".join(printed.split())


def test_no_table_is_read(url: str) -> None:
    """However large they are: the server counts scans of each, and of the indexes; metrics take two ends of one."""
    rows = "SELECT 't' || n, '', n::text, NULL, NULL, '{}'::jsonb, '{}'::jsonb FROM generate_series(1, 5000) n"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f"INSERT INTO checkpoints {rows}".encode())
        conn.execute("ANALYZE")

        def scans() -> Any:
            others = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            while conn.execute(others).fetchone() is not None:
                pass  # a session counts its scans by its end
            conn.execute("SELECT pg_stat_force_next_flush()")
            query = "SELECT sum(seq_scan)::int, sum(idx_scan)::int FROM pg_stat_user_tables WHERE relname <> %s"
            return conn.execute(query, ("checkpoint_store_version",)).fetchone()

        before = scans()
        assert main(["doctor", "--url", url]) == 0
        assert scans() == before

        assert main(["stats", "--prometheus", "--url", url]) == 0
        assert scans() == (before[0], before[1] + 2)
