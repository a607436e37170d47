"""What `show` and `diff` say of a checkpoint's values, compared with the graphs that have stored them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import add
from pathlib import Path
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, RemoveMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import REMOVE_ALL_MESSAGES, _messages_delta_reducer, add_messages
from langgraph.types import Overwrite

from checkpoint_store import PostgresSaver
from checkpoint_store.cli.safe_decode import safe_decode
from checkpoint_store.cli.values import as_json
from tests.integration.commands import Cli
from tests.integration.test_graph_delta_channel import THREAD, working


def plain(saver: PostgresSaver, value: Any) -> Any:
    """Return a value as `show --json` has it."""
    return as_json(safe_decode(*saver.serde.dumps_typed(value)))


def shown(run: Cli, config: Any) -> dict[str, Any]:
    return json.loads(run("show", "thread", config["configurable"]["checkpoint_id"], "--json").out)


def says(*messages: Any) -> Callable[[Any], dict[str, Any]]:
    return lambda _: {"messages": list(messages)}


def adding(state: list[Any], writes: Any) -> list[Any]:
    for write in writes:
        state = add_messages(state, write)
    return state


class Chat(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(_messages_delta_reducer, list, snapshot_frequency=4)]


class OtherChat(TypedDict):
    messages: Annotated[list[AnyMessage], DeltaChannel(adding, list, snapshot_frequency=4)]


@pytest.mark.parametrize("state", [Chat, OtherChat])
def test_messages_of_a_delta_channel_are_what_the_graph_has(run: Cli, sync_saver: PostgresSaver, state: Any) -> None:
    """At every step and fork: added, replaced and removed ones, all removed, one without a list, an overwrite."""
    steps = [
        says(AIMessage("one", id="1"), AIMessage("two", id="2")),
        says(AIMessage("another one", id="1"), {"role": "user", "content": "a dict"}),
        says(RemoveMessage(id="2")),
        says(AIMessage("two again", id="2")),
        lambda _: {"messages": AIMessage("alone")},
        lambda _: {"messages": Overwrite([HumanMessage("fresh", id="3")])},
        says(AIMessage("after", id="4")),
        says(RemoveMessage(id=REMOVE_ALL_MESSAGES), AIMessage("the rest", id="5")),
        says(AIMessage("end", id="6")),
    ]
    graph = StateGraph(state)
    for number, step in enumerate(steps):
        graph.add_node(f"n{number}", step)
        graph.add_edge(f"n{number - 1}" if number else START, f"n{number}")
    compiled = graph.compile(checkpointer=sync_saver)
    for turn in range(2):
        compiled.invoke({"messages": [HumanMessage(f"turn {turn}", id=f"turn {turn}")]}, THREAD)
    history = list(compiled.get_state_history(THREAD))
    fork = compiled.update_state(history[4].config, {"messages": [HumanMessage("fork", id="7")]})
    compiled.invoke(None, fork)

    rebuilt = 0
    for snapshot in compiled.get_state_history(THREAD):
        found = shown(run, snapshot.config)
        rebuilt += "messages" in found["channels_rebuilt"]
        if "messages" in found["channels"]:
            assert found["channels"]["messages"] == plain(sync_saver, snapshot.values["messages"])
        else:
            assert not snapshot.values.get("messages")
    assert rebuilt > 10
    lines = run("show", "thread").out.splitlines()
    assert "    AIMessage(content='end', type='ai', id='6')," in lines
    assert lines[-1] == "put together from a snapshot and the writes since: messages"


def test_lists_are_appended_and_other_kinds_shown_in_parts(run: Cli, sync_saver: PostgresSaver) -> None:
    """With several writers and forks; of a dict it can't be known what its reducer does."""
    graph = working(sync_saver)
    for turn in range(3):
        graph.invoke({"lines": [f"turn {turn}"], "rare": ["x"], "left": 4}, THREAD)
    origin = list(graph.get_state_history(THREAD))[5]
    graph.invoke(None, graph.update_state(origin.config, {"lines": ["fork"]}, as_node="count"))

    labelled = 0
    for state in graph.get_state_history(THREAD):
        channels = shown(run, state.config)["channels"]
        for name in ("lines", "rare"):
            assert channels.get(name, []) == state.values.get(name, [])
        files = channels.get("files", {})
        if "$object" in files:
            labelled += 1
            parts = files["$object"]["kwargs"]
            assert files["$object"]["name"] == "DeltaChannel"
            merged = {
                name: text for part in (parts.get("snapshot", {}), *parts["writes"]) for name, text in part.items()
            }
            assert merged == state.values["files"]
        else:
            assert files == state.values.get("files", {})
    assert labelled
    out = run("show", "thread").out
    assert "  files: DeltaChannel(\n    snapshot={" in out
    assert out.splitlines()[-1] == "put together from a snapshot and the writes since: rare"


def keep(files: dict[str, Any], changed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """As deepagents does."""
    merged = {name: file for part in (files or {}, *changed) for name, file in part.items()}
    return {name: file for name, file in merged.items() if file is not None}


class Files(TypedDict):
    files: Annotated[dict[str, Any], DeltaChannel(keep, dict, snapshot_frequency=3)]
    step: int


def test_files_of_an_agent_are_put_together_by_their_names(run: Cli, sync_saver: PostgresSaver) -> None:
    """Written, written again, deleted."""

    def write(state: Files) -> dict[str, Any]:
        step = state["step"]
        file = {"content": f"step {step}", "created_at": "x", "modified_at": "y"}
        return {"files": {f"/{step % 3}": file, f"/{(step + 1) % 3}": None}, "step": step + 1}

    graph = StateGraph(Files).add_node("write", write).add_edge(START, "write")
    graph.add_conditional_edges("write", lambda state: "write" if state["step"] < 9 else END)
    compiled = graph.compile(checkpointer=sync_saver)
    compiled.invoke({"files": {}, "step": 0}, THREAD)
    rebuilt = 0
    for state in compiled.get_state_history(THREAD):
        found = shown(run, state.config)
        rebuilt += "files" in found["channels_rebuilt"]
        assert found["channels"].get("files", {}) == state.values.get("files", {})
    assert rebuilt > 4


def test_a_checkpoint_is_compared_with_its_parent(run: Cli, sync_saver: PostgresSaver) -> None:
    """The newest, or the one that is named; two that are named with each other."""

    class Count(TypedDict):
        lines: Annotated[list[str], add]

    graph = StateGraph(Count).add_node("a", lambda _: {"lines": ["one"]}).add_node("b", lambda _: {"lines": ["two"]})
    graph.add_edge(START, "a").add_edge("a", "b").add_edge("b", END)
    compiled = graph.compile(checkpointer=sync_saver)
    compiled.invoke({"lines": []}, THREAD)
    ids = [state.config["configurable"]["checkpoint_id"] for state in compiled.get_state_history(THREAD)]
    newest = run("diff", "thread")
    assert (newest.code, newest.out.splitlines()[:2]) == (0, [f"--- {ids[1]}", f"+++ {ids[0]}"])
    assert "-  lines: ['one']\n+  lines: ['one', 'two']\n" in newest.out
    assert newest == run("diff", "thread", ids[0]) == run("diff", "thread", ids[1], ids[0])
    assert run("diff", "thread", ids[1]) == run("diff", "thread", ids[2], ids[1])
    assert json.loads(run("diff", "thread", "--json").out)["changed"]["channel lines"] == {
        "a": ["one"],
        "b": ["one", "two"],
    }
    assert run("diff", "thread", ids[-1]).err == (
        f"error: checkpoint {ids[-1]!r} has no parent to compare it with: name two\n"
    )


def test_a_difference_is_never_beyond_the_limits(run: Cli, sync_saver: PostgresSaver) -> None:
    """In a long text, at the end of a long list, in an argument that is left out where empty; and it stays short."""
    text = "lorem ipsum " * 400
    states: list[Any] = [
        {"text": text + "old", "list": [*range(1000)], "grows": ["x" * 60]},
        {
            "text": text + "new",
            "list": [*range(1001)],
            "message": AIMessage("hi", id="1"),
            "grows": ["x" * 60, "y" * 60],
        },
        {"text": text + "new", "list": [*range(1001)], "grows": [], "message": AIMessage("hi", id="1")},
        {"text": text + "new", "list": [*range(1001)], "grows": [], "message": AIMessage("hi", id="1", name="")},
    ]
    config: Any = {"configurable": {"thread_id": "thread", "checkpoint_ns": ""}}
    for number, values in enumerate(states):
        versions: Any = {name: str(number) for name in values}
        checkpoint: Any = {"v": 4, "id": str(number), "channel_versions": versions, "channel_values": values}
        config = sync_saver.put(config, {**checkpoint, "ts": "", "versions_seen": {}}, {}, versions)
    lines = run("diff", "thread", "1").out.splitlines()
    assert "+    1000," in lines
    assert "+    'yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy'," in lines
    assert not any(line.startswith(("-", "+")) and "xxx" in line for line in lines)
    [old] = [line for line in lines if line.startswith("-  text")]
    [new] = [line for line in lines if line.startswith("+  text")]
    assert len(old) < 300
    assert (old[-4:], new[-4:]) == ("old'", "new'")
    assert "characters the same ..." in old
    assert run("diff", "thread", "1", "--full").out.count(text) == 2
    hidden = run("diff", "thread", "2").out
    assert "-    'yyy" in hidden
    assert run("diff", "thread", "0", "0").out == ""
    lines = run("diff", "thread").out.splitlines()
    assert [line.strip() for line in lines[-4:] if line[0] in "-+"] == ["-    name=None,", "+    name='',"]


def test_what_is_printed_has_the_form_of_show(run: Cli, url: str, transcripts: Any) -> None:
    """The same short names, the same empty arguments left out; everything with --full."""
    transcripts.fill(url)
    short, full = [run("diff", "ada-trip", "1f11620e-ad83", "1f11620e-c096", *more).out for more in ((), ("--full",))]
    assert "-    AIMessage(content='Booked.', type='ai', id='0007'),\n" in short
    assert "langchain_core.messages.ai.AIMessage(content='Booked.', type='ai', name=None, id='0007')" in full
    assert "    AIMessage(content='Booked.', type='ai', id='0007'),\n" in run("show", "ada-trip", "1f11620e-ad83").out


def test_an_unknown_id_is_answered_by_similar_ones(run: Cli, url: str, tmp_path: Path) -> None:
    """For each command that takes a thread: at most three that begin so, or with which it begins; else none."""
    with psycopg.connect(url) as conn:
        for name in ("user-1", "user-10", "user-2", "user-21", "user-22", "user-23", "team"):
            row = "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) SELECT %s, n::text, '{}'"
            conn.execute(f"{row} FROM generate_series(1, 50) n", [name])
    unknown = "error: nothing is stored for the thread "
    for command in ("show", "diff", "stats", "history", "export"):
        done = run(command, "user-")
        assert (done.code, done.out) == (1, ""), command
        assert done.err == f"{unknown}'user-'; similar ids: 'user-1', 'user-10', 'user-2'\n", command
    assert run("copy", "user-2x", "y").err == f"{unknown}'user-2x'; similar ids: 'user-2'\n"
    assert run("delete", "--yes", "team-blue").err == f"{unknown}'team-blue'; similar ids: 'team'\n"
    assert run("show", "nobody").err == f"{unknown}'nobody'\n"
    assert run("show", "user-1", "7x").err == "error: the thread 'user-1' has no checkpoint '7x' of the root graph\n"


def test_delta_channels_of_hostile_rows_are_shown(run: Cli, url: str) -> None:
    """Parents in a circle, missing snapshots, damaged writes, ids that are no text, a metadata of another form."""
    document = {"channel_versions": {"m": "1", "n": "1"}, "channel_values": {}}
    with psycopg.connect(url) as conn:
        for number, parent, metadata in [
            ("1", "3", {}),
            ("2", "1", {}),
            ("3", "2", {"m": 1, "n": [], "x": 2}),
            ("4", "3", 7),
        ]:
            conn.execute(
                "INSERT INTO checkpoints VALUES ('t', '', %s, %s, NULL, %s, %s)",
                [number, parent, json.dumps(document), json.dumps({"counters_since_delta_snapshot": metadata})],
            )
        blobs = [b"\xc1", b"\x91\xc7\x05\x05\x93\xa1a\xa1b\x80", b"\x91\x81\xa4type\xa6remove", b"\x93\x01\x02\x03"]
        for number, blob in enumerate(blobs):
            row = "INSERT INTO checkpoint_writes VALUES ('t', '', %s, 'task', %s, 'm', 'msgpack', %s)"
            conn.execute(row, [str(number % 3 + 1), number, blob])
    for checkpoint in "1234":
        for more in ((), ("--json",), ("--full",)):
            assert run("show", "t", checkpoint, *more).code == 0
        assert run("diff", "t", checkpoint).code == 0
    assert "  m: [" in run("show", "t", "3").out


def test_show_of_a_channel_that_is_not_there_names_those_that_are(sync_saver: PostgresSaver, run: Cli) -> None:
    """Also those that have a pending write alone, or a version without a value."""
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {"turns": 1, "said": ["x"]}, "versions_seen": {}}
    checkpoint["channel_versions"] = {"turns": "1", "said": "1", "empty": "1"}
    stored = sync_saver.put(config, checkpoint, {}, checkpoint["channel_versions"])
    sync_saver.put_writes(stored, [("late", 1)], "task")

    done = run("show", "t", "--channel", "turns", "--channel", "nope")

    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: --channel 'nope': the checkpoint has no such channel. It has empty, late, said, turns\n"
    )
    for channel in ("empty", "late", "said", "turns"):
        assert run("show", "t", "--channel", channel).code == 0
