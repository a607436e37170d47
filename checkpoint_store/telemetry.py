"""OpenTelemetry for savers: a span for each call, and metrics of its cost; off unless a saver is instrumented.

    from checkpoint_store import telemetry

    telemetry.instrument(saver)

It registers an observer with that saver. To a saver without one it costs a look at an attribute.

Names follow OpenTelemetry's semantic conventions for database clients where those have any
(https://opentelemetry.io/docs/specs/semconv/database/); our own begin with `checkpoint_store`. Neither spans nor
metrics have a value, statement or parameter; spans have a thread's id only if you want it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

from sqlalchemy import exc

from checkpoint_store.conninfo.transient_errors import name_of
from checkpoint_store.database.backend import Backend
from checkpoint_store.errors import InvalidOption, NotInstalled
from checkpoint_store.saver.base import BasePostgresSaver
from checkpoint_store.sql.compiled import Statement
from checkpoint_store.sql.executor import Executor, Row
from checkpoint_store.sql.script import Step
from checkpoint_store.storage.operation import Kind, Operation
from checkpoint_store.storage.write_batch import Change, Put

try:
    from opentelemetry import context, metrics, trace
except ImportError:
    raise NotInstalled('telemetry needs an extra: pip install "checkpoint-store[otel]"') from None

_SECONDS = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0]
"""Buckets, as the conventions have them for `db.client.operation.duration`."""


def instrument(
    saver: BasePostgresSaver,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    meter_provider: metrics.MeterProvider | None = None,
    thread_ids: bool = False,
) -> None:
    """Have a saver, and the copies that LangGraph makes of it, send spans and metrics to OpenTelemetry.

    Savers that `bind` returns are others; instrument each one that you want to see.

    Args:
        saver: Either saver.
        tracer_provider: Receives the spans; the global one by default.
        meter_provider: Receives the metrics; the global one by default.
        thread_ids: Whether spans name the thread, as `gen_ai.conversation.id`.

    Raises:
        InvalidOption: If it is instrumented already.
    """
    backend = saver._backend
    if backend.observer is not None:
        raise InvalidOption("this saver is instrumented already")
    tracer = trace.get_tracer("checkpoint_store", tracer_provider=tracer_provider)
    meter = metrics.get_meter("checkpoint_store", meter_provider=meter_provider)
    backend.observe(_Observer(backend, tracer, meter, thread_ids=thread_ids))


def uninstrument(saver: BasePostgresSaver) -> None:
    """Have a saver run as if it had never been instrumented.

    Args:
        saver: The saver; instrumented or not.
    """
    saver._backend.observe(None)


class _Call:
    """The cost of one call, or of one commit of several, up to now."""

    def __init__(self, change: Change | None = None) -> None:
        self.change = change
        self.sent = self.received = self.pages_sent = self.retries = self.statements = 0
        self.waited = 0.0

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes of its span, without zeros."""
        attributes = {
            "checkpoint_store.statements": self.statements,
            "checkpoint_store.bytes_sent": self.sent,
            "checkpoint_store.bytes_received": self.received,
            "checkpoint_store.pool_wait": self.waited,
            "checkpoint_store.retries": self.retries,
        }
        return {name: value for name, value in attributes.items() if value}


_call: ContextVar[_Call | None] = ContextVar("checkpoint_store_call", default=None)


class _CountingExecutor(Executor):
    """Executes on another executor, and counts statements, bytes and pages."""

    def __init__(self, executor: Executor, call: _Call) -> None:
        self._executor = executor
        self._call = call
        self.runs_scripts = executor.runs_scripts

    def fetch(self, statement: Statement, binds: Mapping[str, Any]) -> Sequence[Row]:
        """Execute a statement."""
        self._call.statements += 1
        self._call.sent += _size_of(binds.values())
        self._call.pages_sent += len(binds.get("page_digests", ()))
        rows = self._executor.fetch(statement, binds)
        self._call.received += sum(map(_size_of, rows))
        return rows

    def run_script(self, steps: Sequence[Step]) -> int:
        """Execute statements in one transaction of their own."""
        self._call.statements += len(steps)
        self._call.sent += sum(_size_of(binds.values()) for _, binds in steps)
        return self._executor.run_script(steps)

    @property
    def is_in_transaction(self) -> bool:
        """Whether the next statement is in one transaction with the last."""
        return self._executor.is_in_transaction


class _Observer:
    """Makes spans and measurements of one backend's calls."""

    def __init__(self, backend: Backend, tracer: trace.Tracer, meter: metrics.Meter, *, thread_ids: bool) -> None:
        self._tracer = tracer
        self._thread_ids = thread_ids
        self._database = _database_of(backend)
        self._pool = {**self._database, "db.client.connection.pool.name": backend.provider.where}
        seconds = partial(meter.create_histogram, unit="s", explicit_bucket_boundaries_advisory=_SECONDS)
        self._duration = seconds("db.client.operation.duration", description="Duration of database client operations.")
        self._wait = seconds(
            "db.client.connection.wait_time",
            description="The time it took to obtain an open connection from the pool.",
        )
        self._batch = meter.create_histogram(
            "checkpoint_store.batch.size",
            unit="{call}",
            description="The number of calls that share a commit.",
            explicit_bucket_boundaries_advisory=[1, 2, 4, 8, 16, 32, 64, 128, 256],
        )
        self._bytes = meter.create_counter(
            "checkpoint_store.io", unit="By", description="Bytes of parameters sent, and of rows received."
        )
        self._pages = meter.create_counter(
            "checkpoint_store.pages", unit="{page}", description="Pages of stored values: sent, or there already."
        )
        self._retries = meter.create_counter(
            "checkpoint_store.retries", unit="{retry}", description="Retries after transient errors."
        )

    def call(self, name: str, thread_id: str | None) -> AbstractContextManager[None]:
        """Return a block for a call of the saver's."""
        return self._measured(name, thread_id)

    def store(self, change: Change) -> AbstractContextManager[None]:
        """Return a block for a call that stores a change."""
        return self._measured("put" if isinstance(change, Put) else "put_writes", change.thread_id, change)

    def commit(self, changes: Sequence[Change]) -> AbstractContextManager[None]:
        """Return a block for a commit of a pipeline, with a span unless it is part of one call's."""
        call = _call.get()
        if call is not None and [call.change] == changes:
            return nullcontext()
        # Several calls share it, or one has waited for it.
        return self._measured("store", None, count=len(changes))

    def connected(self, seconds: float) -> None:
        """Record the wait for a connection."""
        self._wait.record(seconds, self._pool)
        if (call := _call.get()) is not None:
            call.waited += seconds

    def retried(self, error: BaseException) -> None:
        """Count a retry."""
        self._retries.add(1, {**self._database, "error.type": name_of(error)})
        if (call := _call.get()) is not None:
            call.retries += 1

    @contextmanager
    def operation(self, operation: Operation[..., Any], args: Sequence[Any], db: Executor) -> Iterator[Executor]:
        """Yield an executor that counts statements and bytes."""
        taken, call = _Call(), _call.get()
        try:
            yield _CountingExecutor(db, taken)
        finally:
            if call is not None:
                call.statements += taken.statements
                call.sent += taken.sent
                call.received += taken.received
            self._bytes.add(taken.sent, {**self._database, "network.io.direction": "transmit"})
            self._bytes.add(taken.received, {**self._database, "network.io.direction": "receive"})
            if operation.kind is Kind.STORE:
                self._count_pages(args[-1], taken.pages_sent)

    def _count_pages(self, changes: Sequence[Change], sent: int) -> None:
        self._batch.record(len(changes), self._database)
        puts = [change for change in changes if isinstance(change, Put)]
        if needed := {(put.thread_id, digest) for put in puts for digest in put.pages}:
            self._pages.add(sent, {**self._database, "checkpoint_store.page.state": "sent"})
            shared = max(0, len(needed) - sent)
            self._pages.add(shared, {**self._database, "checkpoint_store.page.state": "shared"})

    @contextmanager
    def _measured(
        self, name: str, thread_id: str | None, change: Change | None = None, count: int | None = None
    ) -> Iterator[None]:
        """Make a span and a measurement of a block, or of the commit of N calls."""
        if count is None and _call.get() is not None:
            yield  # it is part of a call
            return
        attributes: dict[str, Any] = {**self._database, "db.operation.name": name}
        # A commit of several calls belongs to none of their traces.
        parent = None if count is None else context.Context()
        of_span = {**attributes, "db.operation.batch.size": count} if (count or 1) > 1 else {**attributes}
        if self._thread_ids and thread_id is not None:
            of_span["gen_ai.conversation.id"] = thread_id
        call, began = _Call(change), time.perf_counter()
        outer = _call.set(call)
        try:
            with self._tracer.start_as_current_span(
                f"{name} checkpoints",
                parent,
                trace.SpanKind.CLIENT,
                of_span,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    yield
                except BaseException as error:
                    attributes |= _failure(error)
                    # Not the message: the server's may quote values.
                    span.set_attributes(_failure(error))
                    span.set_status(trace.Status(trace.StatusCode.ERROR))
                    raise
                finally:
                    span.set_attributes(call.attributes)
        finally:
            _call.reset(outer)
            self._duration.record(time.perf_counter() - began, attributes)


def _failure(error: BaseException) -> dict[str, Any]:
    """Return the attributes of an error: its class, and the server's code for its cause."""
    cause: BaseException | None = error
    state = None
    while cause is not None and state is None:
        state = getattr(cause.orig if isinstance(cause, exc.DBAPIError) else cause, "sqlstate", None)
        cause = cause.__cause__
    return {"error.type": type(error).__qualname__, **({"db.response.status_code": state} if state else {})}


def _database_of(backend: Backend) -> dict[str, Any]:
    """Return the attributes that name the database; never a user or a password."""
    url, schema = backend.provider.engine.url, backend.sql.tables.schema
    named = {
        "db.system.name": "postgresql",
        "db.namespace": f"{url.database}|{schema}" if url.database and schema else url.database,
        "server.address": url.host,
        "server.port": url.port,
    }
    return {name: value for name, value in named.items() if value is not None}


def _size_of(values: Any) -> int:
    """Return the approximate size of values in bytes: of text and bytes, also in lists."""
    return sum(
        len(value) if isinstance(value, (str, bytes)) else _size_of(value) if isinstance(value, (list, tuple)) else 0
        for value in values
    )
