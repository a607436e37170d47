"""OpenTelemetry: spans and metrics with the conventions' names, none of the values, and nothing at all when off."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, telemetry
from checkpoint_store.errors import InvalidOption, NotSetUp, Unavailable
from checkpoint_store.serde import pages
from checkpoint_store.sql.executor import Executor
from checkpoint_store.storage.operation import Operation
from checkpoint_store.transfer import acopy_threads

GRAPH: Any = {"configurable": {"thread_id": "the-thread", "checkpoint_ns": ""}}
SECRET = "a value that nobody else may see"


class Telescope:
    """What the application has set up to receive spans and metrics."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader])

    def on(self, saver: Any, **options: Any) -> None:
        telemetry.instrument(saver, tracer_provider=self.tracers, meter_provider=self.meters, **options)

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def points(self, name: str) -> list[Any]:
        found = self.reader.get_metrics_data()
        every = [each for of in found.resource_metrics for scope in of.scope_metrics for each in scope.metrics]  # type: ignore[union-attr]
        return [point for metric in every if metric.name == name for point in metric.data.data_points]

    def units(self) -> dict[str, str]:
        found = self.reader.get_metrics_data()
        every = [each for of in found.resource_metrics for scope in of.scope_metrics for each in scope.metrics]  # type: ignore[union-attr]
        return {metric.name: metric.unit for metric in every}


@pytest.fixture
def telescope() -> Iterator[Telescope]:
    telescope = Telescope()
    yield telescope
    telescope.tracers.shutdown()
    telescope.meters.shutdown()


def checkpoint(*versions: str, **values: Any) -> Any:
    return {
        **empty_checkpoint(),
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, "".join(versions)),
    }


async def use(saver: Any) -> None:
    """Each call of the contract, once."""
    stored = await saver.aput(GRAPH, checkpoint("1", secret=[SECRET]), {"note": SECRET}, {"secret": "1"})
    await saver.aput_writes(stored, [("secret", SECRET)], "task")
    await saver.aget_tuple(GRAPH)
    async for _ in saver.alist(GRAPH):
        pass
    await saver.aget_delta_channel_history(config=stored, channels=["secret"])
    await saver.adelete_thread("the-thread")


async def test_each_call_is_a_span_of_a_database_client(telescope: Telescope, saver: AsyncPostgresSaver) -> None:
    """Named as the method is, below the span that the caller is in, with the conventions' attributes."""
    telescope.on(saver)
    tracer = telescope.tracers.get_tracer("host")
    with tracer.start_as_current_span("request") as request:
        await use(saver)

    *calls, outer = telescope.spans
    assert [span.name for span in calls][:5] == [
        f"{name} checkpoints" for name in ("put", "put_writes", "get_tuple", "list", "get_delta_channel_history")
    ]
    for span in calls:
        assert span.kind is trace.SpanKind.CLIENT
        assert span.parent is not None
        assert span.parent.span_id == request.get_span_context().span_id
        attributes = dict(span.attributes or {})
        assert attributes["db.system.name"] == "postgresql"
        assert span.name == f"{attributes['db.operation.name']} checkpoints"
        assert attributes["checkpoint_store.statements"] >= 1
    assert outer.name == "request"


async def test_no_value_is_told_and_no_thread_unless_asked(telescope: Telescope, saver: AsyncPostgresSaver) -> None:
    """Neither in attributes nor in events; the thread's id only where it was asked for."""
    telescope.on(saver)
    await use(saver)
    told = "".join(span.to_json() for span in telescope.spans) + telescope.reader.get_metrics_data().to_json()  # type: ignore[union-attr]
    assert SECRET not in told
    assert "the-thread" not in told

    telemetry.uninstrument(saver)
    telescope.exporter.clear()
    telescope.on(saver, thread_ids=True)
    await use(saver)
    assert {span.attributes["gen_ai.conversation.id"] for span in telescope.spans[:5]} == {"the-thread"}  # type: ignore[index]
    assert "the-thread" not in telescope.reader.get_metrics_data().to_json()  # type: ignore[union-attr]


async def test_metrics_have_the_conventions_names_and_units(telescope: Telescope, saver: AsyncPostgresSaver) -> None:
    """Durations by operation, waits for the pool, bytes by direction."""
    telescope.on(saver)
    await use(saver)

    assert telescope.units() == {
        "db.client.operation.duration": "s",
        "db.client.connection.wait_time": "s",
        "checkpoint_store.batch.size": "{call}",
        "checkpoint_store.io": "By",
    }
    durations = {
        point.attributes["db.operation.name"]: point.count for point in telescope.points("db.client.operation.duration")
    }
    assert durations.items() >= {"put": 1, "put_writes": 1, "get_tuple": 1, "list": 1}.items()
    assert sum(point.count for point in telescope.points("db.client.connection.wait_time")) >= 5
    moved = {point.attributes["network.io.direction"]: point.value for point in telescope.points("checkpoint_store.io")}
    assert moved["transmit"] > 3 * len(SECRET)
    assert moved["receive"] > 2 * len(SECRET)


async def test_pages_that_were_there_already_are_told_from_those_sent(
    telescope: Telescope, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much sharing pays: the second value of a long list sends little."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 1000)
    saver = AsyncPostgresSaver(engine, share_pages=True)
    telescope.on(saver)
    messages = [f"{number} " + "x" * 500 for number in range(200)]
    await saver.aput(GRAPH, checkpoint("1", messages=messages), {}, {"messages": "1"})
    first = {p.attributes["checkpoint_store.page.state"]: p.value for p in telescope.points("checkpoint_store.pages")}
    await saver.aput(GRAPH, checkpoint("2", messages=[*messages, "one more"]), {}, {"messages": "2"})
    second = {p.attributes["checkpoint_store.page.state"]: p.value for p in telescope.points("checkpoint_store.pages")}

    assert first["sent"] > 5
    assert first["shared"] == 0
    assert second["sent"] - first["sent"] <= 3
    assert second["shared"] >= first["sent"] - 3


async def test_calls_that_share_a_commit_are_counted(telescope: Telescope, engine: AsyncEngine) -> None:
    """Each call has its span; so has the commit, which belongs to none of them."""
    pipe = AsyncPipeline(engine)
    saver = AsyncPostgresSaver(engine, pipe)
    telescope.on(saver)

    async def put(number: int) -> None:
        thread: Any = {"configurable": {"thread_id": f"t{number}", "checkpoint_ns": ""}}
        await saver.aput(thread, checkpoint("1", n=number), {}, {"n": "1"})

    await asyncio.gather(*map(put, range(60)))
    await pipe.aclose()

    assert telescope.names.count("put checkpoints") == 60
    commits = [span for span in telescope.spans if span.name == "store checkpoints"]
    assert max(span.attributes.get("db.operation.batch.size", 1) for span in commits) > 5  # type: ignore[union-attr, type-var]
    assert all(span.parent is None for span in commits)
    (sizes,) = telescope.points("checkpoint_store.batch.size")
    assert sizes.sum == 60
    assert sizes.count < 60


async def test_an_error_is_told_by_its_class_and_code(telescope: Telescope, empty_url: str) -> None:
    """Not by its message, which may quote what was stored."""
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        telescope.on(saver)
        with pytest.raises(NotSetUp):
            await saver.aget_tuple(GRAPH)
    async with AsyncPostgresSaver.from_conn_string("postgresql://localhost:1/none", retry_timeout=0) as saver:
        telescope.on(saver)
        with pytest.raises(Unavailable):
            await saver.aget_tuple(GRAPH)

    missing, unreachable = telescope.spans
    for span, kind in ((missing, "NotSetUp"), (unreachable, "Unavailable")):
        assert span.attributes["error.type"] == kind  # type: ignore[index]
        assert span.status.status_code is trace.StatusCode.ERROR
        assert not span.status.description
        assert not span.events
    assert missing.attributes["db.response.status_code"] == "42P01"  # type: ignore[index]
    failed = [p.attributes.get("error.type") for p in telescope.points("db.client.operation.duration")]
    assert sorted(failed) == ["NotSetUp", "Unavailable"]


async def test_what_was_tried_again_is_counted(telescope: Telescope, url: str) -> None:
    """A session that the server ended: one more try, and the caller notices nothing."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=1)
    saver = AsyncPostgresSaver(engine)
    await saver.aget_tuple(GRAPH)
    telescope.on(saver)
    # Locked out, the call is under way when its session is ended.
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE checkpoints")
        call = asyncio.create_task(saver.aget_tuple(GRAPH))
        with psycopg.connect(url, autocommit=True) as admin:
            waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            while not (found := admin.execute(waiting).fetchone()):  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0)
            admin.execute("SELECT pg_terminate_backend(%s)", found)
    assert await call is None
    await engine.dispose()

    (retried,) = telescope.points("checkpoint_store.retries")
    assert retried.value >= 1
    assert retried.attributes["error.type"] == "57P01"
    (span,) = telescope.spans
    assert span.attributes["checkpoint_store.retries"] == retried.value  # type: ignore[index]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_sync_savers_have_the_same_spans(telescope: Telescope, url: str, driver: str) -> None:
    """From threads, below the span of the calling thread, on engines of either kind."""
    named = make_url(url).set(drivername=f"postgresql+{driver}")
    engine: Any = create_engine(named) if driver == "psycopg" else create_async_engine(named)
    saver = PostgresSaver(engine)
    telescope.on(saver)

    def call() -> None:
        with telescope.tracers.get_tracer("host").start_as_current_span("script"):
            stored = saver.put(GRAPH, checkpoint("1", n=[1]), {}, {"n": "1"})
            saver.put_writes(stored, [("n", 1)], "task")
            assert saver.get_tuple(GRAPH) is not None

    await asyncio.to_thread(call)
    await asyncio.to_thread(saver.close)
    if driver == "psycopg":
        engine.dispose()

    assert telescope.names == ["put checkpoints", "put_writes checkpoints", "get_tuple checkpoints", "script"]
    *calls, script = telescope.spans
    assert {span.parent.span_id for span in calls if span.parent} == {script.context.span_id}
    assert all(span.attributes["checkpoint_store.statements"] >= 1 for span in calls)  # type: ignore[index]
    assert all(span.attributes["checkpoint_store.bytes_sent"] >= 5 for span in calls)  # type: ignore[index]


async def test_off_is_as_if_it_had_never_been(telescope: Telescope, saver: AsyncPostgresSaver) -> None:
    """Nothing is left in the way, and a saver beside one that is instrumented has nothing in the way either."""
    await use(saver)  # the first call asks the database whether it has Citus
    untouched = dict(vars(saver._backend)), dict(vars(saver._backend.provider))
    telescope.on(saver)
    with pytest.raises(InvalidOption, match="instrumented already"):
        telescope.on(saver)
    telemetry.uninstrument(saver)
    telemetry.uninstrument(saver)
    await use(saver)

    assert telescope.spans == []
    assert (dict(vars(saver._backend)), dict(vars(saver._backend.provider))) == untouched


async def test_copies_that_langgraph_makes_are_instrumented_too(
    telescope: Telescope, saver: AsyncPostgresSaver
) -> None:
    """`compile()` may replace the serializer on a copy of the saver."""
    telescope.on(saver)
    copy = saver.with_allowlist([])
    await copy.aget_tuple(GRAPH)

    assert telescope.names == ["get_tuple checkpoints"]


def test_a_saver_does_not_need_opentelemetry() -> None:
    """Only whoever instruments one pays for the import; without the package the message says what to install."""
    program = """
import sys
sys.modules["opentelemetry"] = None
from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.errors import NotInstalled
try:
    import checkpoint_store.telemetry
except NotInstalled as error:
    print(error)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "checkpoint-store[otel]" in told


async def test_what_works_on_a_copy_of_the_source_still_does(
    telescope: Telescope, saver: AsyncPostgresSaver, engine: AsyncEngine
) -> None:
    """Threads that are copied from another saver are, each one, in one transaction on one connection."""
    source = InMemorySaver()
    for number in range(3):
        thread: Any = {"configurable": {"thread_id": f"t{number}", "checkpoint_ns": ""}}
        source.put(thread, checkpoint("1", n=number), {}, {"n": "1"})
    telescope.on(saver)
    begun: list[str] = []
    event.listen(engine.sync_engine, "commit", lambda _: begun.append("commit"))

    report = await acopy_threads(source, saver)

    assert report.threads == 3
    assert len(begun) == 3
    assert "put checkpoints" in telescope.names


async def test_commits_and_pages_are_counted_with_refused_forks_too(
    telescope: Telescope, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are stored by another operation, which looks first at what is there."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 1000)
    saver = AsyncPostgresSaver(engine, share_pages=True, refuse_forks=True)
    telescope.on(saver)
    messages = [f"{number} " + "x" * 500 for number in range(200)]
    await saver.aput(GRAPH, checkpoint("1", messages=messages), {}, {"messages": "1"})

    (sizes,) = telescope.points("checkpoint_store.batch.size")
    assert (sizes.count, sizes.sum) == (1, 1)
    sent = {p.attributes["checkpoint_store.page.state"]: p.value for p in telescope.points("checkpoint_store.pages")}
    assert sent["sent"] > 5


class Recorder:
    """An observer that keeps the order of events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def call(self, name: str, thread_id: str | None) -> AbstractContextManager[None]:
        return self._block(f"{name} {thread_id}")

    def store(self, change: Any) -> AbstractContextManager[None]:
        return self._block(f"store {change.thread_id}")

    def commit(self, changes: Sequence[Any]) -> AbstractContextManager[None]:
        return self._block(f"commit {len(changes)}")

    @contextmanager
    def operation(self, operation: Operation[..., Any], _: Sequence[Any], db: Executor) -> Iterator[Executor]:
        with self._block(operation.name):
            yield db

    def connected(self, seconds: float) -> None:
        assert seconds > 0
        self.events.append("connected")

    def retried(self, error: BaseException) -> None:
        self.events.append(f"retried {type(error).__name__}")

    @contextmanager
    def _block(self, name: str) -> Iterator[None]:
        self.events.append(name)
        try:
            yield
        finally:
            self.events.append(f"end of {name}")


@pytest.mark.parametrize("pipeline", [False, True])
async def test_an_observer_sees_a_call_from_its_beginning_to_its_end(engine: AsyncEngine, pipeline: bool) -> None:
    """The wait for a connection and the operation within the call; nothing once it is taken away."""
    saver, recorder = AsyncPostgresSaver(engine, AsyncPipeline(engine) if pipeline else False), Recorder()
    saver._backend.observe(recorder)
    await saver.aput(GRAPH, checkpoint("1", n=1), {}, {"n": "1"})
    stored, recorder.events = recorder.events, []
    await saver.aget_tuple(GRAPH)
    saver._backend.observe(None)
    await saver.aget_tuple(GRAPH)

    operation = ["connected", "store", "end of store"]
    commit = ["commit 1", *operation, "end of commit 1"] if pipeline else operation
    assert stored == ["store the-thread", *commit, "end of store the-thread"]
    asked = ["connected", "get_tuple", "end of get_tuple"]
    assert recorder.events == ["get_tuple the-thread", *asked, "end of get_tuple the-thread"]
