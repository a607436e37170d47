"""Every capability in every place that this machine has, as a Markdown table: `python -m tests.scale [COLUMN ..]`.

PgBouncer is the installed one, and beside it the one that CHECKPOINT_STORE_TEST_PGBOUNCER names; there is a column for
Citus where CHECKPOINT_STORE_TEST_CITUS names a coordinator. The errors are listed below the table.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from urllib.parse import urlsplit

import psycopg

from checkpoint_store import PostgresSaver, partitioning
from checkpoint_store.embedded import EmbeddedPostgres
from tests.citus import cluster
from tests.conftest import HASTY, SERVER, database
from tests.scale.capabilities import Outcome, outcomes
from tests.scale.conftest import PGBOUNCER, bouncer, installed_pgbouncer, paired, streaming, version_of
from tests.scale.place import Place

CITUS = "CHECKPOINT_STORE_TEST_CITUS"


def columns(server_url: str) -> dict[str, AbstractContextManager[Place]]:
    """The places by their names."""
    found = {
        "one server": _alone(server_url),
        "partitions": _partitioned(server_url),
        "replica": _replicated(),
    }
    if program := installed_pgbouncer():
        found[f"PgBouncer {_version(program)}"] = _pooled(server_url, program)
    if program := os.environ.get(PGBOUNCER):
        found[f"PgBouncer {_version(program)}"] = _pooled(server_url, program, max_prepared_statements=200)
    if CITUS in os.environ:
        found["Citus"] = _distributed(os.environ[CITUS])
    return found


@contextmanager
def _alone(server_url: str) -> Iterator[Place]:
    with database(server_url) as url:
        yield Place(url)


@contextmanager
def _partitioned(server_url: str) -> Iterator[Place]:
    with _alone(server_url) as place:
        _set_up(place.url)
        with psycopg.connect(place.url, autocommit=True) as conn:
            conn.execute(partitioning.sql(partitions=4))
        yield place


@contextmanager
def _replicated() -> Iterator[Place]:
    with streaming() as servers, paired(servers) as pair:
        yield Place(pair.primary, replica=pair.standby)


@contextmanager
def _pooled(server_url: str, program: str, **settings: int) -> Iterator[Place]:
    with _alone(server_url) as place, bouncer(server_url, program, **settings) as home:
        _set_up(place.url)
        url = f"postgresql://postgres@{urlsplit(place.url).path}?host={home}&port=6432"
        yield Place(url, None if settings else "transaction", direct=place.url)


@contextmanager
def _distributed(coordinator: str) -> Iterator[Place]:
    with cluster.database(coordinator) as url:
        cluster.migrate(url)
        cluster.distribute(url)
        yield Place(url)


def _set_up(url: str) -> None:
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()


def _version(program: str) -> str:
    return ".".join(map(str, version_of(program)))


def table(found: dict[str, list[Outcome]]) -> str:
    """Return the outcomes as Markdown: a row for each capability, a column for each place, and the numbered errors."""
    errors: list[str] = []

    def cell(outcomes: list[Outcome]) -> str:
        texts = []
        for outcome in outcomes:
            if outcome.error and outcome.error not in errors:
                errors.append(outcome.error)
            texts.append(f"[{errors.index(outcome.error) + 1}]" if outcome.error else "works")
        return texts[0] if len({*texts}) == 1 else ", ".join(map(" ".join, zip(("async", "sync"), texts, strict=True)))

    rows = {each.name: "" for outcomes in found.values() for each in outcomes}
    for walked in found.values():
        for name in rows:
            rows[name] += f" {cell([each for each in walked if each.name == name])} |"
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {name} |{cells}" for name, cells in rows.items()]
    lines += ["", *(f"[{number}] {error}" for number, error in enumerate(errors, 1))]
    return "\n".join(lines)


async def _walked(place: Place) -> list[Outcome]:
    return [outcome async for outcome in outcomes(place)]


def main(names: list[str]) -> int:
    """Walk, print the table, and return the exit status: 1 if any result was wrong (an AssertionError)."""
    found: dict[str, list[Outcome]] = {}
    with ExitStack() as stack:
        server_url = os.environ.get(SERVER) or stack.enter_context(EmbeddedPostgres(settings=HASTY)).url
        for name, making in columns(server_url).items():
            if not names or name in names:
                with making as place:
                    found[name] = asyncio.run(_walked(place))
    print(table(found))
    return int(any(each.error.startswith("AssertionError") for outcomes in found.values() for each in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
