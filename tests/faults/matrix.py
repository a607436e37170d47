"""Each fault while each operation is under load: what was tried, acknowledged, lost, and which errors surfaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from tests.faults.bed import PATIENCE_SECONDS, Network, Server, servers
from tests.faults.load import LOADS, Load

DATABASE = "load"
USER = "app"
CONNECTIONS = 5

HICCUP = """
    CREATE ROLE app LOGIN;
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app;

    -- Policies are asked about every row that is read or written. The next few answers are an error of the server's,
    -- with the SQLSTATE that a conflict between transactions has.
    CREATE TABLE hiccup (state text);
    INSERT INTO hiccup VALUES ('40001');
    CREATE SEQUENCE hiccups START 1000;
    GRANT SELECT ON hiccup TO app;
    GRANT USAGE ON hiccups TO app;
    CREATE FUNCTION hiccup() RETURNS boolean LANGUAGE plpgsql VOLATILE AS $$
        BEGIN
            IF nextval('hiccups') <= 5 THEN
                RAISE EXCEPTION 'hiccup' USING ERRCODE = (SELECT state FROM hiccup);
            END IF;
            RETURN true;
        END
    $$;
"""
TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpoint_pages", "checkpoint_threads")
POLICY = (
    "ALTER TABLE {0} ENABLE ROW LEVEL SECURITY;"
    "CREATE POLICY hiccup ON {0} TO app USING (hiccup()) WITH CHECK (hiccup());"
)
OURS = "datname = 'load' AND usename = 'app'"


@dataclass
class Cell:
    """What came of one fault while one operation was under load."""

    fault: str
    operation: str
    injections: int = 0
    tried: int = 0
    acknowledged: int = 0
    lost: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Those that reached the caller, by their text."""
    retries: int = 0
    slowest: float = 0.0
    """The longest call, in seconds."""


class Bed:
    """A server, a network in front of it, and where wanted a standby.

    Args:
        primary: The server.
        network: The network.
        standby: The standby, if there is one.
    """

    def __init__(self, primary: Server, network: Network, standby: Server | None) -> None:
        self.primary = primary
        self.network = network
        self.standby = standby

    def url(self) -> str:
        """Where the load goes: through the network, or to both servers."""
        if self.standby is None:
            return self.network.through(self.primary.of(DATABASE, USER))
        hosts = ",".join(sorted(str(server.socket.parent) for server in (self.primary, self.standby)))
        # The servers change places; the URL doesn't.
        return f"postgresql://{USER}@/{DATABASE}?host={hosts}&port=5432,5432&target_session_attrs=read-write"

    def execute(self, statement: str, *args: Any) -> list[tuple[Any, ...]]:
        """Execute a statement as the superuser."""
        return self.primary.execute(statement, *args, database=DATABASE)

    def reaches(self, query: str, *args: Any) -> None:
        """Wait until a query says true."""
        self.primary.reaches(query, *args, database=DATABASE)

    def terminate(self, which: str) -> None:
        """End sessions of the load's, at least one."""
        ended = f"SELECT count(pg_terminate_backend(pid)) > 0 FROM pg_stat_activity WHERE {OURS} AND {which}"
        self.reaches(ended)


@contextmanager
def bed(*, standby: bool = False, settings: dict[str, str | float] | None = None) -> Iterator[Bed]:
    """A bed with a database that is set up."""
    with ExitStack() as stack:
        made = stack.enter_context(servers(2 if standby else 1, settings))
        primary = made[0]
        primary.execute(f"CREATE DATABASE {DATABASE}")
        with PostgresSaver.from_conn_string(primary.of(DATABASE)) as saver:
            saver.setup()
        primary.execute(HICCUP + "".join(map(POLICY.format, TABLES)), database=DATABASE)
        if standby:
            primary.copy_to(made[1])
        network = stack.enter_context(Network(primary.socket))
        yield Bed(primary, network, made[1] if standby else None)


# --- the faults ---


async def closed_while_idle(bed: Bed, load: Load) -> None:
    """All connections of the pool are ended while nobody uses them."""
    await load.pause()
    await asyncio.to_thread(bed.terminate, "true")
    load.resume()


async def terminated_in_a_statement(bed: Bed, load: Load) -> None:
    """pg_terminate_backend() hits sessions in the middle of a statement."""
    before = load.saver.retries
    while load.saver.retries == before:  # a session may have answered just before it ended
        await asyncio.to_thread(bed.terminate, "state = 'active'")
        await load.progress(1)


async def connections_cut(bed: Bed, load: Load) -> None:
    """The network resets all connections."""
    await asyncio.to_thread(bed.network.cut)


async def answers_lost(bed: Bed, load: Load) -> None:
    """Statements reach the server, which commits them; the network fails before it can say so."""
    await asyncio.to_thread(bed.network.deafen)
    await load._until(lambda: bed.network.swallowed > 0)
    await asyncio.to_thread(bed.network.mend)


async def server_restarted(bed: Bed, load: Load) -> None:
    """The server is stopped and started."""
    await asyncio.to_thread(bed.primary.restart)


async def server_crashed(bed: Bed, load: Load) -> None:
    """The server is killed and recovers."""
    await asyncio.to_thread(bed.primary.crash)


async def failover(bed: Bed, load: Load) -> None:
    """The server is killed and stays away, and its standby is promoted."""

    def fail() -> None:
        assert bed.standby is not None
        if not bed.standby.is_running:  # it was the primary before
            bed.primary.copy_to(bed.standby)
        bed.primary.kill()
        bed.standby.promote()
        bed.primary, bed.standby = bed.standby, bed.primary
        bed.primary.reaches("SELECT NOT pg_is_in_recovery()")

    await asyncio.to_thread(fail)


async def _conflict(bed: Bed, state: str) -> None:
    def arm() -> None:
        bed.execute("UPDATE hiccup SET state = %s", state)
        bed.execute("SELECT setval('hiccups', 1, false)")
        bed.reaches("SELECT last_value > 5 FROM hiccups")

    await asyncio.to_thread(arm)


async def serialization_failures(bed: Bed, load: Load) -> None:
    """The next statements end with SQLSTATE 40001."""
    await _conflict(bed, "40001")


async def deadlocks(bed: Bed, load: Load) -> None:
    """The next statements end with SQLSTATE 40P01."""
    await _conflict(bed, "40P01")


async def tables_altered(bed: Bed, load: Load) -> None:
    """Columns change their type, and with them the results that statements were prepared for."""

    def alter() -> None:
        for kind in ("varchar", "text"):
            for table in TABLES:
                # All sessions have to wait for it, and whoever they wait for has to finish first.
                bed.execute(f"ALTER TABLE {table} ALTER thread_id TYPE {kind}")

    await asyncio.to_thread(alter)


async def only_reads(bed: Bed, load: Load) -> None:
    """For a while the server takes no writes from new sessions, as a standby does; those keep that to their end."""

    def demote() -> None:
        bed.execute(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on")
        bed.terminate("true")
        bed.reaches(f"SELECT count(*) > 0 FROM pg_stat_activity WHERE {OURS}")
        with bed_session(bed) as conn:
            conn.execute("SET default_transaction_read_only = off")
            conn.execute(f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only")

    await asyncio.to_thread(demote)


async def too_many_connections(bed: Bed, load: Load) -> None:
    """For a while the server refuses new sessions, as it does when it has no place for them."""

    def refuse() -> None:
        bed.execute("ALTER ROLE app CONNECTION LIMIT 0")
        bed.terminate("true")
        bed.reaches(f"SELECT count(*) = 0 FROM pg_stat_activity WHERE {OURS}")
        bed.execute("ALTER ROLE app CONNECTION LIMIT -1")

    await asyncio.to_thread(refuse)


@contextmanager
def bed_session(bed: Bed) -> Iterator[Any]:
    """A session of the superuser's."""
    import psycopg

    with psycopg.connect(bed.primary.of(DATABASE), autocommit=True) as conn:
        yield conn


TransientError = Callable[[Bed, Load], Awaitable[None]]
TRANSIENT_ERRORS: tuple[TransientError, ...] = (
    closed_while_idle,
    terminated_in_a_statement,
    connections_cut,
    answers_lost,
    server_restarted,
    server_crashed,
    failover,
    serialization_failures,
    deadlocks,
    tables_altered,
    only_reads,
    too_many_connections,
)


def name_of(fault: TransientError) -> str:
    """What a fault is called in a table."""
    return fault.__name__.replace("_", " ")


# --- the matrix ---


@asynccontextmanager
async def _saver(bed: Bed, operation: str, retry_timeout: float) -> AsyncIterator[AsyncPostgresSaver]:
    options = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": PATIENCE_SECONDS}
    pipelined = operation == "pipeline"
    async with AsyncPostgresSaver.from_conn_string(
        bed.url(), pipeline=pipelined, share_pages=pipelined, retry_timeout=retry_timeout, **options
    ) as saver:
        yield saver


async def run_cell(bed: Bed, fault: TransientError, operation: str, injections: int, retry_timeout: float) -> Cell:
    """Inject a fault so many times while an operation is under load, each time after the service has resumed."""
    cell = Cell(name_of(fault), operation)
    async with _saver(bed, operation, retry_timeout) as saver:
        load = LOADS[operation](saver, f"{fault.__name__}-{operation}")
        await load.prepare()
        async with load:
            for _ in range(injections):
                await load.progress(3 * load.tasks)
                await fault(bed, load)
                cell.injections += 1
            await load.progress(3 * load.tasks)
            await load.pause()
        cell.retries = saver.retries
        provider: Any = saver._backend.provider
        assert provider.engine.pool.checkedout() == provider.queue.kept
    async with AsyncPostgresSaver.from_conn_string(bed.primary.of(DATABASE)) as reader:
        cell.lost = await load.lost(reader)
    cell.tried, cell.acknowledged = load.tried, load.acknowledged
    cell.errors, cell.slowest = dict(load.errors), load.slowest
    return cell


def run(
    faults: Sequence[TransientError] = TRANSIENT_ERRORS,
    operations: Sequence[str] = tuple(LOADS),
    *,
    injections: int,
    retry_timeout: float,
    on_cell: Callable[[Cell], None] = lambda _: None,
) -> list[Cell]:
    """Run the matrix.

    Args:
        faults: Which faults.
        operations: Which operations.
        injections: How many times each fault is injected while each operation is under load.
        retry_timeout: That of the savers, in seconds.
        on_cell: Called with each cell when it is done.
    """
    cells = []
    alone = [fault for fault in faults if fault is not failover]
    for chosen, standby in ((alone, False), ([fault for fault in faults if fault is failover], True)):
        if not chosen:
            continue
        with bed(standby=standby) as made:
            for fault in chosen:
                for operation in operations:
                    cell = asyncio.run(run_cell(made, fault, operation, injections, retry_timeout))
                    cells.append(cell)
                    on_cell(cell)
    return cells
