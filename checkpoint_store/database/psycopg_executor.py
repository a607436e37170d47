"""Execution on psycopg's connection by its low-level interface: prepared, in binary, without BEGIN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from secrets import token_hex
from struct import Struct
from typing import Any

from psycopg import DataError, abc, generators, postgres, pq
from psycopg.adapt import AdaptersMap, Transformer
from psycopg.errors import error_from_result
from psycopg.pq.abc import PGresult
from psycopg.types.array import register_all_arrays
from sqlalchemy.util import await_only

from checkpoint_store.database.direct_executor import DirectExecutor
from checkpoint_store.sql.compiled import Numbered, Statement
from checkpoint_store.sql.executor import Row
from checkpoint_store.sql.script import Step, script_of

_PREPARED = "checkpoint_store prepared"
"""The key of a connection's `Prepared` among what SQLAlchemy's pool keeps with it."""

_MAX_PREPARED = 100
"""The largest number of statements that a connection keeps prepared, as with asyncpg."""

_DONE = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)

_TEXT = 25
"""The type `text` in PostgreSQL's catalog."""

_ARRAY, _EMPTY, _LENGTH = Struct("!iiiii").pack, Struct("!iii").pack, Struct("!i").pack
_NUMBERS = {20: partial(Struct("!iq").pack, 8), 23: partial(Struct("!ii").pack, 4)}
_NULL = _LENGTH(-1)

_adapters = AdaptersMap()
"""Psycopg's own: what a host registers, for all or for a connection, changes nothing that we read."""
postgres.register_default_types(_adapters.types)
postgres.register_default_adapters(_adapters)
register_all_arrays(_adapters)


@dataclass(eq=False)
class Prepared:
    """The statements that are prepared on a connection, and the loaders of their rows."""

    names: dict[Statement, bytes | int] = field(default_factory=dict)
    """Their names, those used last at the end; of a statement that is not prepared yet, how often it was executed."""
    prefix: bytes = field(default_factory=lambda: b"checkpoint_store_%s_" % token_hex(4).encode())
    """The beginning of their names, which no other client's have: a pooler may lend it the session."""
    count: int = 0
    """The number of names that were given; none is given twice."""
    transformer: abc.Transformer = field(default_factory=lambda: Transformer(_adapters))


@dataclass(eq=False)
class PsycopgExecutor(DirectExecutor):
    """Executes on psycopg's connection, sync or async.

    Psycopg's cursor sets up a query anew each time, sends arrays as text, and begins a transaction; all that costs
    three times as much. A statement is prepared when it was executed as often as `prepare_threshold` of the connection
    says.
    """

    runs_scripts = True

    def __post_init__(self) -> None:
        info = self.pooled.info
        self._prepared: Prepared = info.get(_PREPARED) or info.setdefault(_PREPARED, Prepared())

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        try:
            numbered = statement.numbered
            values = [
                _array(element, binds[name]) if element else _scalar(binds[name])
                for name, element in numbered.parameters
            ]
            result = self._execute(statement, numbered, values)
            if result.status not in _DONE:
                raise error_from_result(result)
            transformer = self._prepared.transformer
            transformer.set_pgresult(result, format=pq.Format.BINARY)
            rows: Sequence[Row] = transformer.load_rows(0, result.ntuples, tuple)
            transformer.set_pgresult(None)
        except BaseException as error:
            self.fail(error, *statement.bound(self.engine.dialect, binds))
        return rows

    def run_script(self, steps: Sequence[Step]) -> int:
        """Execute statements in one round trip and a transaction of their own."""
        try:
            self.driver.pgconn.send_query(script_of(steps).encode())
            last = self._results()[-1]
            if last.status not in _DONE:
                raise error_from_result(last)
        except BaseException as error:
            self.fail_in_script(error, steps)
        return last.ntuples

    def _execute(self, statement: Statement, numbered: Numbered, values: list[bytes | None]) -> PGresult:
        pgconn, formats = self.driver.pgconn, numbered.formats
        threshold = self.driver.prepare_threshold
        if threshold is not None and (name := self._name(statement, threshold)) is not None:
            pgconn.send_query_prepared(name, values, formats, pq.Format.BINARY)
            result = self._wait()
            if result.status in _DONE or not self._is_outdated(statement, result):
                return result
        pgconn.send_query_params(numbered.sql, values, None, formats, pq.Format.BINARY)
        return self._wait()

    def _name(self, statement: Statement, threshold: int) -> bytes | None:
        """Return the name by which a statement is prepared; it is prepared now if it has been executed often enough."""
        names = self._prepared.names
        name = names.pop(statement, 0)
        if isinstance(name, int):
            if not name and len(names) >= _MAX_PREPARED:
                self._deallocate(names.pop(next(iter(names))))
            if name < threshold:
                names[statement] = name + 1
                return None
            self._prepared.count += 1
            name = b"%s%d" % (self._prepared.prefix, self._prepared.count)
            self.driver.pgconn.send_prepare(name, statement.numbered.sql)
            if (result := self._wait()).status not in _DONE:
                raise error_from_result(result)
        names[statement] = name
        return name

    def _is_outdated(self, statement: Statement, result: PGresult) -> bool:
        """Return whether a statement was not executed because it has to be prepared anew; forget it then."""
        state, source = (
            result.error_field(each) for each in (pq.DiagnosticField.SQLSTATE, pq.DiagnosticField.SOURCE_FUNCTION)
        )
        if state == b"26000":  # after DEALLOCATE ALL or DISCARD ALL there is none of them
            self._prepared.names.clear()
        elif state == b"0A000" and source == b"RevalidateCachedQuery":
            self._deallocate(self._prepared.names.pop(statement))
        else:
            return False
        return True

    def _deallocate(self, name: bytes | int) -> None:
        if isinstance(name, bytes):
            self.driver.pgconn.send_query(b"DEALLOCATE " + name)
            self._wait()

    def _wait(self) -> PGresult:
        """Return the result of the one statement that was sent, or the error of its commit, which follows it."""
        results = self._results()
        return next((result for result in results if result.status not in _DONE), results[0])

    def _results(self) -> list[PGresult]:
        """Return the results of what was sent. Psycopg's way to wait lets Ctrl-C through, and gevent's greenlets."""
        waiting = self.driver.wait(generators.execute(self.driver.pgconn))
        results: list[PGresult] = await_only(waiting) if self.engine.dialect.is_async else waiting
        return results


def _scalar(value: Any) -> bytes | None:
    """Return a string or a number as text, and bytes as they are."""
    if not isinstance(value, str):
        return b"%d" % value if isinstance(value, int) else value
    if "\0" in value:  # libpq would send what comes before it
        raise DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    return value.encode()


def _array(element: int, values: Sequence[Any]) -> bytes:
    """Return an array of strings, bytes or numbers in binary: https://github.com/postgres/postgres, array_recv()."""
    parts = [_ARRAY(1, 0, element, len(values), 1) if values else _EMPTY(0, 0, element)]
    number = _NUMBERS.get(element)
    for value in values:
        if value is None:
            parts.append(_NULL)
        elif number is not None:
            parts.append(number(value))
        else:
            data = value.encode() if element == _TEXT else value
            parts += (_LENGTH(len(data)), data)
    return b"".join(parts)
