"""A history says which nodes ran and which come next as LangGraph does, how many checkpoints there are, and fits."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from operator import add
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.channels.delta import DeltaChannel
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from rich.cells import cell_len

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main, output
from checkpoint_store.storage.read import history
from tests.integration.random_graphs import Refusal, build, draw_shape

THREAD: Any = {"configurable": {"thread_id": "t"}}
Run = Callable[..., str]


@pytest.fixture
def run(url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command on `url` that ends well, and returns what it prints."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", url)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


class State(TypedDict):
    jobs: list[int]
    results: Annotated[list[str], add]


def says(text: str) -> Callable[[Any], dict[str, list[str]]]:
    return lambda _: {"results": [text]}


def branches(saver: PostgresSaver) -> Any:
    """Three nodes side by side, one that waits for all of them, and one that is deferred."""
    graph = StateGraph(State)
    for name in "abc":
        graph.add_node(name, says(name))
        graph.add_edge(START, name)
    graph.add_node("join", says("join")).add_edge(["a", "b", "c"], "join")
    graph.add_node("last", says("last"), defer=True).add_edge("a", "last").add_edge("join", "last")
    return graph.compile(checkpointer=saver)


def sends(saver: PostgresSaver) -> Any:
    """A node that sends jobs to workers, of which one asks."""
    graph = StateGraph(State)
    graph.add_node("plan", lambda _: {"jobs": [1, 2, 3]})
    graph.add_node("work", lambda job: {"results": [interrupt("?") if job == 2 else str(job)]})
    graph.add_node("reduce", says("reduced"))
    graph.add_edge(START, "plan").add_edge("work", "reduce")
    graph.add_conditional_edges("plan", lambda state: [Send("work", job) for job in state["jobs"]], ["work"])
    return graph.compile(checkpointer=saver)


def subgraphs(saver: PostgresSaver) -> Any:
    """A node that is a graph, which asks; beside it one that fails."""
    inner = StateGraph(State).add_node("think", says("t")).add_node("ask", lambda _: {"results": [interrupt("?")]})
    inner.add_edge(START, "think").add_edge("think", "ask")
    graph = StateGraph(State).add_node("hotel", inner.compile()).add_node("flight", says("flight"))
    graph.add_edge(START, "hotel").add_edge(START, "flight").add_node("book", says("b")).add_edge("hotel", "book")
    return graph.compile(checkpointer=saver)


def stops(saver: PostgresSaver) -> Any:
    """A graph that stops before a node, and goes on by commands."""
    graph = StateGraph(State)
    graph.add_node("first", lambda _: Command(goto="second", update={"results": ["1"]}), destinations=("second",))
    graph.add_node("second", says("2")).add_edge(START, "first")
    return graph.compile(checkpointer=saver, interrupt_before=["second"])


def deltas(saver: PostgresSaver) -> Any:
    """Channels of which changes are stored, and now and then a snapshot."""
    channel = DeltaChannel(
        lambda lines, added: [*lines, *(one for part in added for one in part)], list, snapshot_frequency=2
    )
    schema: Any = TypedDict("Lines", {"jobs": list, "results": Annotated[list, channel]})  # type: ignore[misc]
    graph = StateGraph(schema).add_sequence([(name, says(name)) for name in "abcd"]).add_edge(START, "a")
    return graph.compile(checkpointer=saver)


def functional(saver: PostgresSaver) -> Any:
    """LangGraph's functional API: a workflow with tasks, of which one asks."""

    @task
    def double(number: int) -> int:
        return 2 * number

    @task
    def ask(number: int) -> int:
        return int(interrupt(number))

    @entrypoint(checkpointer=saver)
    def flow(inputs: Any) -> int:
        return double(1).result() + ask(2).result()

    return flow


def entries(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("history", "t", "--limit", "0", "--json"))["checkpoints"]
    return found


def compare(run: Run, graph: Any, namespace: str = "") -> int:
    """Compare a history with what LangGraph says of each checkpoint; return how many there are."""
    snapshots = {one.config["configurable"]["checkpoint_id"]: one for one in graph.get_state_history(THREAD)}
    found = {one["checkpoint_id"]: one for one in entries(run) if one["checkpoint_ns"] == namespace}
    assert found.keys() == snapshots.keys()
    parents = {one["parent_checkpoint_id"] for one in found.values()}
    for name, one in found.items():
        if name in parents:
            assert sorted(one["next"]) == sorted(snapshots[name].next), one
        if one["metadata"]["source"] == "loop" and one["parent_checkpoint_id"]:
            assert sorted(one["ran"]) == sorted(snapshots[one["parent_checkpoint_id"]].next), one
    live = graph.get_state(THREAD)
    assert sorted(found[live.config["configurable"]["checkpoint_id"]]["next"]) == sorted(live.next)
    return len(found)


@pytest.mark.parametrize("make", [branches, sends, subgraphs, stops, deltas, functional])
def test_nodes_are_those_that_langgraph_names(run: Run, sync_saver: PostgresSaver, make: Callable[..., Any]) -> None:
    """After each call: what ran and what comes next, at every checkpoint, with forks and updates by hand."""
    graph = make(sync_saver)
    graph.invoke({"jobs": [], "results": []}, THREAD)
    compare(run, graph)
    graph.invoke(Command(resume="1"), THREAD)
    compare(run, graph)
    if make is functional:
        return
    middle = list(graph.get_state_history(THREAD))[-2]
    graph.update_state(middle.config, {"results": ["u"]}, as_node=middle.next[0])
    compare(run, graph)
    graph.invoke(None, THREAD)
    graph.update_state(middle.config, None, as_node="__copy__")
    assert compare(run, graph) >= 6
    graph.invoke({"jobs": [4]}, THREAD)
    compare(run, graph)


def test_what_ran_is_named_whatever_is_stored_between(run: Run, sync_saver: PostgresSaver) -> None:
    """With durability="exit" a checkpoint stands for all steps since its parent, or for the last one if it has none."""
    graph = deltas(sync_saver)
    for _ in range(2):
        graph.invoke({"jobs": []}, THREAD, durability="exit")

    newest, oldest = entries(run)
    assert (oldest["ran"], oldest["next"]) == (["d"], [])
    assert newest["ran"] == ["__start__", "a", "b", "c", "d"]


def test_a_step_is_drawn_with_its_nodes(run: Run, sync_saver: PostgresSaver) -> None:
    """Workers that ran several times are named once; of a step that waits those that have not finished."""
    graph = sends(sync_saver)
    graph.invoke({"jobs": []}, THREAD)
    lines = run("history", "t").splitlines()
    assert [re.split(" {2,}", line.replace("│", " ").strip())[1] for line in lines[2:4]] == ["__start__", "plan"]
    assert lines[-1].endswith("interrupt, next: work, waiting: writes of 3 tasks, latest")

    graph.invoke(Command(resume="1"), THREAD)
    lines = run("history", "t").splitlines()
    assert "work x3" in lines[-2]
    assert "next" not in "".join(lines)


@pytest.mark.parametrize("seed", range(6))
def test_nodes_of_random_graphs(run: Run, sync_saver: PostgresSaver, seed: int) -> None:
    """Of any shape: joins, loops, deferred nodes, commands, retries and error handlers."""

    class World:
        seed = "look"

        def __init__(self) -> None:
            self.failed = Counter[str]()

        def fail(self, name: str, fails: int) -> None:
            if self.failed[name] < fails:
                self.failed[name] += 1
                raise Refusal(name)

        def note(self, what: str) -> None:
            pass

    chance = random.Random(f"look {seed}")
    graph = build(draw_shape(chance), sync_saver, World(), blocking=True)
    config = {**THREAD, "recursion_limit": 12}
    for _ in range(4):
        with suppress(Exception):
            graph.invoke(chance.choice([{"fuel": 1}, Command(resume=1), None]), config, durability="sync")
    with suppress(Exception):
        at = chance.choice(list(graph.get_state_history(THREAD)))
        graph.update_state(at.config, {"log": [1]}, as_node=chance.choice(at.next or ["gate"]))

    compare(run, graph)


# --- which of them are drawn ---


@pytest.fixture
def chat(sync_saver: PostgresSaver) -> list[str]:
    """A thread of 30 checkpoints; their ids, the newest first."""
    answer = StateGraph(MessagesState).add_node("answer", lambda _: {"messages": ["fine"]}).add_edge(START, "answer")
    graph = answer.compile(checkpointer=sync_saver)
    for turn in range(10):
        graph.invoke({"messages": [f"{turn}"]}, THREAD)
    return [one.config["configurable"]["checkpoint_id"] for one in graph.get_state_history(THREAD)]


def test_a_history_that_is_cut_says_of_how_many(
    url: str, chat: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where older ones go on: page by page each checkpoint comes once."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", url)
    assert main(["history", "t", "--limit", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("t: the newest 3 of 30 checkpoints in 1 namespace, ")
    assert lines[1].endswith("older ones go on before it")
    assert "not stored" not in out
    assert err == f"older ones: --before {chat[2]}, or --limit 0 for all\n"

    seen: list[str] = []
    before: list[str] = []
    while True:
        assert main(["history", "t", "--limit", "7", "--json", *before]) == 0
        page = json.loads(capsys.readouterr().out)
        assert page["total"] == 30 - len(seen)
        seen += [one["checkpoint_id"] for one in page["checkpoints"]]
        if page["complete"]:
            assert page["next_before"] is None
            break
        before = ["--before", page["next_before"]]
    assert seen == chat


def test_older_ones_are_not_taken_for_the_newest(run: Run, chat: list[str]) -> None:
    """They neither are the latest nor wait; the start of an id names a checkpoint too."""
    lines = run("history", "t", "--before", chat[10][:18], "--limit", "2").splitlines()

    assert lines[0].startswith(f"t: the newest 2 of 19 checkpoints before {chat[10][:18]} in 1 namespace, ")
    assert len(lines) == 3
    assert lines[1].endswith("older ones go on before it")
    assert lines[2].endswith("newer ones go on after it")


def test_nothing_before_the_oldest(run: Run, url: str, chat: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The thread is there, and that is said."""
    assert run("history", "t", "--before", chat[-2]).splitlines()[0].startswith("t: 1 checkpoint before ")
    assert main(["history", "t", "--before", chat[-1]]) == 1
    said = f"error: the thread 't' has no checkpoint before '{chat[-1]}'\n"
    assert capsys.readouterr().err == said
    assert main(["history", "t", "--before", chat[-1], "--html", "page.html"]) == 1
    assert capsys.readouterr().err == said
    assert main(["history", "t2", "--before", chat[-1]]) == 1
    assert capsys.readouterr().err == "error: nothing is stored for the thread 't2'; similar ids: 't'\n"


def test_an_empty_id_is_refused(run: Run, chat: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A variable of a shell that is not set must not stand for the newest; a number of any size stands for all."""
    for arguments in (["history", "t", "--before", ""], ["show", "t", ""], ["diff", "t", chat[0], ""]):
        assert main(arguments) == 2
        assert "is empty; it must be the id of a checkpoint, or how it begins" in capsys.readouterr().err
    assert run("history", "t", "-n", str(2**40)) == run("history", "t", "-n", "0")
    assert run("stats", "-n", str(2**40)) == run("stats", "-n", "0")


def test_a_parent_that_is_gone_is_told_from_one_that_is_cut(run: Run, url: str, chat: list[str]) -> None:
    """After a DELETE by hand."""
    with psycopg.connect(url) as conn:
        conn.execute("DELETE FROM checkpoints WHERE checkpoint_id = %s", [chat[3]])

    assert run("history", "t", "--limit", "3").splitlines()[1].endswith("its parent is not stored")
    assert run("history", "t", "--limit", "2").splitlines()[1].endswith("older ones go on before it")


def test_a_count_looks_at_one_thread_only(url: str, chat: list[str]) -> None:
    """In the index, however many other threads there are."""
    assert chat
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO checkpoints "
            "SELECT 'u' || n, '', n::text, NULL, NULL, '{}', '{}' FROM generate_series(1, 20000) n"
        )
        conn.commit()
        conn.autocommit = True
        conn.execute("VACUUM ANALYZE checkpoints")
    with PostgresSaver.from_conn_string(url) as saver:
        sql = saver._backend.sql.count_checkpoints_of.numbered.sql.decode()
        assert saver._backend.run_blocking(history, "t", 3).total == 30
    with psycopg.connect(url) as conn:
        conn.execute(f"PREPARE counted AS {sql}")
        plan = "\n".join(row[0] for row in conn.execute("EXPLAIN EXECUTE counted('t')"))
    assert "on checkpoints_pkey" in plan or "using checkpoints_pkey" in plan, plan
    assert "Seq Scan" not in plan


# --- widths ---


@pytest.mark.parametrize("width", [200, 100, 80, 60, 52])
def test_a_history_fits_the_terminal(
    run: Run, sync_saver: PostgresSaver, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """The tree, the step, its source, its nodes and its whole id are always there; times and sizes if they fit."""
    graph = subgraphs(sync_saver)
    graph.invoke({"jobs": []}, THREAD)
    graph.invoke(Command(resume="1"), THREAD)
    middle = list(graph.get_state_history(THREAD))[-2]
    graph.update_state(middle.config, {"results": ["u"]}, as_node="flight")
    monkeypatch.setattr(output, "width", lambda: width)

    lines = run("history", "t").splitlines()

    assert max(map(cell_len, lines)) <= width
    every = [one["checkpoint_id"][:18] for one in entries(run)]
    assert sorted(
        name for line in lines for name in re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}", line)
    ) == sorted(every)
    text = "\n".join(lines)
    for word in ("__start__", "flight, hotel", "think", "├─ 1 loop", "└─ 1 update", "│ hotel ("):
        assert word in text
    assert (re.search(r"\d\d:\d\d:\d\d", text) is not None) == (width >= 80)
    assert (re.search(r"  \d+ B$", text, re.MULTILINE) is not None) == (width >= 60)


def test_many_nodes_are_cut_before_anything_breaks(
    run: Run, sync_saver: PostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names are cut in the middle; notes that don't fit stand below, within the tree."""
    graph = StateGraph(State)
    for number in range(12):
        graph.add_node(f"a-rather-long-name-{number}", lambda _, number=number: {"results": [interrupt(number)]})
        graph.add_edge(START, f"a-rather-long-name-{number}")
    graph.compile(checkpointer=sync_saver).invoke({"jobs": []}, THREAD)
    monkeypatch.setattr(output, "width", lambda: 60)

    lines = run("history", "t").splitlines()

    assert [line.split()[:3] for line in lines[1:3]] == [
        ["-1", "input", lines[1].split()[2]],
        ["0", "loop", "__start__"],
    ]
    assert lines[-1].strip().startswith("interrupt, next: a-rather-long-name-0, ")


def test_a_long_thread_is_drawn_in_linear_time(run: Run, url: str) -> None:
    """Twenty thousand checkpoints; the values of all are looked up by key, not hashed for each of them."""
    ids = "lpad(to_hex(n), 8, '0')"
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO checkpoints "
            f"SELECT 't', '', {ids}, CASE WHEN n > 1 THEN lpad(to_hex(n - 1), 8, '0') END, NULL, "
            "jsonb_build_object('channel_versions', jsonb_build_object('a', n::text, 'branch:to:x', n::text), "
            "'channel_values', jsonb_build_object('branch:to:x', NULL), 'versions_seen', "
            "jsonb_build_object('x', jsonb_build_object('branch:to:x', (n - 1)::text))), "
            "jsonb_build_object('source', 'loop', 'step', n) FROM generate_series(1, 20000) n"
        )
        conn.execute(
            "INSERT INTO checkpoint_blobs "
            "SELECT 't', '', 'a', n::text, 'msgpack', '\\x01' FROM generate_series(1, 20000) n"
        )
        conn.commit()
        conn.autocommit = True
        conn.execute("ANALYZE")
        with PostgresSaver.from_conn_string(url) as saver:
            sql = saver._backend.sql.summaries.numbered.sql.decode()
        conn.execute(f"PREPARE summaries AS {sql}")
        plan = "\n".join(row[0] for row in conn.execute("EXPLAIN EXECUTE summaries('t', 100000)"))
    assert "Seq Scan on checkpoint_blobs" not in plan, plan

    lines = run("history", "t", "--limit", "0").splitlines()

    assert len(lines) == 20_001
    assert sys.getrecursionlimit() < 20_000
    assert lines[-1].endswith("next: x, latest")
