"""`stats --prometheus` and the dashboard in examples/: the format is Prometheus's, and each metric exists."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from checkpoint_store import PostgresSaver, telemetry
from checkpoint_store.cli import main, prometheus
from checkpoint_store.serde import pages

DASHBOARD = json.loads((Path(__file__).parents[2] / "examples/grafana/checkpoint_store.json").read_text())

LINE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)\{(?P<labels>.*)\} (?P<value>[-+]?[\d.]+(?:e[-+]?\d+)?)")
LABEL = re.compile(r'(?P<name>[a-zA-Z_]\w*)="(?P<value>(?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
UNESCAPED = {r"\\": "\\", r"\n": "\n", r"\"": '"'}


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def parsed(text: str) -> Iterator[Sample]:
    """The samples of a text in the format, which is checked: HELP and TYPE first, all samples of a metric together."""
    assert text.endswith("\n")
    seen: set[str] = set()
    current = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in seen
            seen.add(current)
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {current} gauge"
        else:
            match = LINE.fullmatch(line)
            assert match is not None, line
            assert match["name"] == current
            labels = list(LABEL.finditer(match["labels"]))
            assert "".join(label[0] for label in labels) == match["labels"]
            values = {one["name"]: re.sub(r"\\.", lambda escape: UNESCAPED[escape[0]], one["value"]) for one in labels}
            yield Sample(match["name"], values, float(match["value"]))


def put(saver: Any, thread: str, *, size: int = 10) -> None:
    config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
    values = {"messages": ["x" * 2000 + str(number) for number in range(size)]}
    checkpoint: Any = {**empty_checkpoint(), "channel_values": values, "channel_versions": {"messages": "1"}}
    saver.put(config, checkpoint, {"source": "loop", "step": 0}, {"messages": "1"})


Metrics = Callable[..., list[Sample]]


@pytest.fixture
def metrics(url: str, capsys: pytest.CaptureFixture[str]) -> Metrics:
    """Runs the command on `url`, or another one."""

    def run(*arguments: str, of: str = url) -> list[Sample]:
        capsys.readouterr()
        assert main(["stats", "--prometheus", "--url", of, *arguments]) == 0
        return list(parsed(capsys.readouterr().out))

    return run


def value(samples: list[Sample], name: str, **labels: str) -> float:
    """The value of the one sample that has a name and labels."""
    (found,) = [
        one.value for one in samples if one.name == f"checkpoint_store_{name}" and labels.items() <= one.labels.items()
    ]
    return found


def test_what_is_cheap_to_know_is_printed(metrics: Metrics, url: str) -> None:
    """Sizes, rows, the ages of checkpoints, the revision, connections."""
    with PostgresSaver.from_conn_string(url) as saver:
        put(saver, "one")
        put(saver, "two")
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")

    found = metrics()

    assert value(found, "info", revision="cs04_subgraphs", head="cs04_subgraphs") == 1
    assert value(found, "at_head") == 1
    assert value(found, "table_rows", table="checkpoints") == 2
    assert value(found, "table_bytes", table="checkpoints") > 8192
    assert value(found, "table_dead_rows", table="checkpoints") == 0
    assert abs(time.time() - value(found, "table_last_vacuum_timestamp_seconds", table="checkpoints")) < 60
    oldest, newest = (value(found, f"{which}_checkpoint_timestamp_seconds") for which in ("oldest", "newest"))
    assert time.time() - 60 < oldest <= newest <= time.time()
    assert value(found, "database_connections") >= 1
    assert value(found, "server_connections") < value(found, "server_connections_limit")
    assert value(found, "invalid_indexes") == 0
    assert {one.labels["database"] for one in found} == {url.partition("@/")[2].partition("?")[0]}
    assert "checkpoint_store_thread_bytes" not in {one.name for one in found}


@pytest.mark.parametrize("thread", ['a "quoted" \\ one', "über-straße-線", "two\nlines", "\x1b[2Jcleared"])
def test_the_largest_threads_are_printed_if_asked_for(metrics: Metrics, url: str, thread: str) -> None:
    """Whatever they are called; what is not printable is escaped twice, so that no line breaks."""
    with PostgresSaver.from_conn_string(url) as saver:
        put(saver, thread)
        put(saver, "small", size=1)

    found = metrics("--threads", "--limit", "1")

    shown = thread if thread.isprintable() else repr(thread)[1:-1]
    assert value(found, "thread_bytes", thread_id=shown) > 100
    assert sum(one.name == "checkpoint_store_thread_bytes" for one in found) == 1


def test_tables_of_the_stock_saver_are_measured_too(metrics: Metrics, empty_url: str) -> None:
    """But for the ages, which need an index."""
    with StockSaver.from_conn_string(empty_url) as stock:
        stock.setup()
        put(stock, "one")

    found = metrics(of=empty_url)

    assert value(found, "at_head") == 0
    assert value(found, "table_bytes", table="checkpoints") > 0
    assert not [one for one in found if "checkpoint_timestamp" in one.name]


def test_a_database_without_tables_has_nothing_to_print(empty_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As other commands say it, so that the last file stays."""
    assert main(["stats", "--prometheus", "--url", empty_url]) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arguments", [["one", "--prometheus"], ["--prometheus", "--json"], ["--threads"]])
def test_options_that_do_not_go_together_are_misuse(
    arguments: list[str], url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", *arguments, "--url", url]) == 2
    assert "--prometheus is for the whole database" in capsys.readouterr().err


def test_a_lock_does_not_pile_up_jobs(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is given up, with nothing printed that a collector could take for a measurement."""
    monkeypatch.setattr(prometheus, "LOCK_SECONDS", 0.1)
    with psycopg.connect(url) as conn:
        conn.execute("LOCK TABLE checkpoint_blobs IN ACCESS EXCLUSIVE MODE")
        assert main(["stats", "--prometheus", "--url", url]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "lock timeout" in printed.err


def test_a_server_that_says_nothing_does_not_pile_up_jobs_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after ten seconds, here sooner; the driver's own limit is a minute."""
    assert prometheus.CONNECT_SECONDS <= 10
    monkeypatch.setattr(prometheus, "CONNECT_SECONDS", 0.2)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app"
        assert main(["stats", "--prometheus", "--url", url]) == 4
    assert time.monotonic() - began < 10
    assert capsys.readouterr().out == ""


def names_of(name: str, unit: str, kind: str) -> set[str]:
    """The names that OpenTelemetry's exporters for Prometheus give a metric.

    https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
    """
    words = {"s": "_seconds", "By": "_bytes"}
    base = re.sub(r"\W", "_", name) + ("" if unit.startswith("{") else words[unit])
    return {f"{base}_total"} if kind == "Sum" else {f"{base}_{part}" for part in ("bucket", "sum", "count")}


def emitted(url: str) -> tuple[set[str], set[str]]:
    """The metrics of a saver and of the command, and the labels of all of them."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])
    with PostgresSaver.from_conn_string(url, share_pages=True) as saver:
        telemetry.instrument(saver, meter_provider=meters)
        put(saver, "t", size=pages.LARGE_BYTES // 2000 + 10)
        observer: Any = saver._backend.observer
        observer.retried(ConnectionResetError())
        with pytest.raises(ValueError, match="thread_id"):
            saver.put({"configurable": {}}, empty_checkpoint(), {}, {})
        found = reader.get_metrics_data()
        every = [each for of in found.resource_metrics for scope in of.scope_metrics for each in scope.metrics]  # type: ignore[union-attr]
        meters.shutdown()
    names = set.union(*[names_of(one.name, one.unit, type(one.data).__name__) for one in every])
    labels = {re.sub(r"\W", "_", name) for one in every for point in one.data.data_points for name in point.attributes}
    return names, labels


def expressions() -> list[str]:
    """Every query of the dashboard, those of its variables too."""
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return targets + [one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]


def test_the_dashboard_names_metrics_and_labels_that_exist(metrics: Metrics, url: str) -> None:
    """Those of a saver by OpenTelemetry's SDK, and those of the command."""
    names, labels = emitted(url)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("VACUUM ANALYZE")
    of_command = metrics()
    names |= {one.name for one in of_command}
    labels |= {label for one in of_command for label in one.labels} | {"le"}

    used, used_labels = set(), set()
    for expression in expressions():
        for group in re.findall(r"\{([^}]*)\}", expression):
            used_labels |= set(re.findall(r"(\w+)\s*[=!]", group))
        for group in re.findall(r"by \(([^)]*)\)", expression):
            used_labels |= set(group.split(", "))
        bare = re.sub(r"\{[^}]*\}|by \([^)]*\)|label_values\(\w+, (\w+)\)", " ", expression)
        used |= set(re.findall(r"\b(?:db_client|checkpoint_store)_\w+", bare))

    assert used <= names
    assert used_labels <= labels
    assert len(used) > 20


def test_the_dashboard_can_be_imported_as_it_is() -> None:
    """It asks for the data source by a variable, and no panel has another one, a place of another, or its number."""
    panels = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
    sources = {panel["datasource"]["uid"] for panel in panels} | {
        target["datasource"]["uid"] for panel in panels for target in panel["targets"]
    }
    assert sources == {"${datasource}"}
    assert [one["type"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "query", "query"]
    assert "id" not in DASHBOARD
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
