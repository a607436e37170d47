"""What a person on call types, and what a script gets: results, exit codes, errors in one line, and no harm done."""

from __future__ import annotations

import base64
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import psycopg
import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from checkpoint_store import PostgresSaver, cli, schema
from checkpoint_store.cli import connection, main
from checkpoint_store.cli.arguments import age_of
from checkpoint_store.encryption import KeyRing
from checkpoint_store.errors import InvalidOption
from checkpoint_store.serde import pages
from tests.integration.commands import Cli

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def filled(url: str, transcripts: Any) -> str:
    """A database with a trip that forks, a long chat, an old report and a hostile row."""
    transcripts.fill(url)
    return url


def count(url: str, table: str = "checkpoints", where: str = "true") -> int:
    with psycopg.connect(url) as conn:
        (found,) = conn.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone() or (0,)
        return int(found)


def test_everything_is_encrypted_with_the_newest_key(run: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first, then under a second key; a key that is missing leaves values as they are, and the script is told."""
    old, new = base64.b64encode(b"1" * 16).decode(), base64.b64encode(b"2" * 32).decode()
    graph = StateGraph(MessagesState).add_node("answer", lambda _: {"messages": ["a secret"]}).add_edge(START, "answer")
    thread = {"configurable": {"thread_id": "t"}}
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
        graph.compile(checkpointer=saver).invoke({"messages": ["hello"]}, thread)

    monkeypatch.setenv("CHECKPOINT_STORE_KEYS", old)
    done = run("reencrypt", "--batch-size", "1")
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith("0 had the newest key, 0 are in clear\n")

    monkeypatch.setenv("CHECKPOINT_STORE_KEYS", new)
    done = run("reencrypt")
    assert (done.code, done.out.splitlines()[0]) == (1, "encrypted 0 values, 0 pending writes and 0 inline values")
    assert re.fullmatch(r"error: \d+ values can't be opened with these keys, and stay as before\n", done.err)

    monkeypatch.setenv("CHECKPOINT_STORE_KEYS", f"{new}, {old}")
    first = json.loads(run("reencrypt", "--json").out)
    again = json.loads(run("reencrypt", "--json").out)
    assert first["blobs"] > 0
    assert (first["current"], first["unreadable"]) == (0, 0)
    assert again == {**first, "blobs": 0, "writes": 0, "current": first["blobs"] + first["writes"]}
    assert first["unencrypted"] == {"blobs": 0, "writes": 0, "scalars": 0}
    serde = EncryptedSerializer(KeyRing.aes(b"2" * 32))
    with PostgresSaver.from_conn_string(url, serde=serde, require_encryption=True) as saver:
        state = graph.compile(checkpointer=saver).get_state(thread)
    assert [message.content for message in state.values["messages"]] == ["hello", "a secret"]


@pytest.mark.parametrize("keys", ["", "=", "!", base64.b64encode(b"short").decode()])
def test_keys_that_are_none_are_refused_unseen(run: Cli, monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    """As misuse, in one line without the key."""
    monkeypatch.setenv("CHECKPOINT_STORE_KEYS", keys)

    done = run("reencrypt")

    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert not keys[3:] or keys not in done.err


@pytest.mark.usefixtures("filled")
def test_threads_are_listed_page_by_page(run: Cli) -> None:
    """For people with the cursor of the next page on standard error, for programs in the document."""
    first = run("threads", "--limit", "3", "--count")
    assert (first.code, first.out.splitlines()[0].split()) == (
        0, ["THREAD", "CHECKPOINT", "UPDATED", "(UTC)", "AGE", "STEP", "SOURCE", "CHECKPOINTS", "SIZE"]
    )  # fmt: skip
    assert [line.split()[0] for line in first.out.splitlines()[1:]] == ["ada-trip", "bob-chat", "mallory-inbox"]
    cursor = first.err.removeprefix("there may be more: --cursor ").strip()
    assert [line.split()[0] for line in run("threads", "--cursor", cursor).out.splitlines()[1:]] == ["cron-report"]

    document = json.loads(run("threads", "--json", "--limit", "2", "--order", "thread_id").out)
    assert [one["thread_id"] for one in document["threads"]] == ["ada-trip", "bob-chat"]
    assert document["threads"][0]["updated_at"] == "2026-03-02T10:16:49.000100+00:00"
    rest = run("threads", "--json", "--limit", "0", "--order", "thread_id", "--cursor", document["next_cursor"]).out
    assert [one["thread_id"] for one in json.loads(rest)["threads"]] == ["cron-report", "mallory-inbox"]
    assert json.loads(rest)["next_cursor"] is None
    (only,) = json.loads(run("threads", "--json", "--filter", '{"user": "bob"}', "--prefix", "bob").out)["threads"]
    assert only["metadata"]["user"] == "bob"


@pytest.mark.usefixtures("filled")
def test_a_history_is_a_tree(run: Cli) -> None:
    """With the fork, the subgraph within its step, and where a person was asked."""
    lines = run("history", "ada-trip").out.splitlines()

    assert lines[0].startswith("ada-trip: 9 checkpoints in 2 namespaces, ")
    assert [line.split("1f11")[0].rstrip() for line in lines[1:]] == [
        "-1 input",
        " 0 loop      __start__",
        " 1 loop      search",
        "│ hotel (8f968eed)",
        "│ -1 input",
        "│  0 loop    __start__",
        "├─ 2 loop    hotel",
        "│  3 loop    report",
        "└─ 2 loop    hotel",
        "   3 loop    report",
    ]
    assert lines[3].endswith("interrupt")
    assert lines[-1].endswith("waiting: writes of 1 task, latest")
    assert all(re.search(r"1f11[\w-]{14}  2026-03-02 10:16:4\d\.000 +\d[\d.]* k?B", line) for line in lines[1:4])


@pytest.mark.usefixtures("filled")
def test_a_long_history_shows_the_newest(run: Cli) -> None:
    """And says that there is more."""
    done = run("history", "bob-chat", "--limit", "5")
    assert [line.split()[0] for line in done.out.splitlines()[1:]] == ["35", "36", "37", "38", "39"]
    assert "--limit 0 for all" in done.err
    assert len(run("history", "bob-chat", "--limit", "0").out.splitlines()) == 41

    document = json.loads(run("history", "bob-chat", "--limit", "5", "--json").out)
    assert (len(document["checkpoints"]), document["complete"]) == (5, False)
    assert document["checkpoints"][0]["metadata"]["step"] == 39


def test_what_a_step_added_does_not_count_shared_pages_again(run: Cli, url: str, monkeypatch: Any) -> None:
    """A chat that grows by a message at each step adds little at each, however long it is."""
    monkeypatch.setattr(pages, "LARGE_BYTES", 1000)
    with PostgresSaver.from_conn_string(url, share_pages=True) as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        for step in range(5):
            value = [random.Random(n).randbytes(50).hex() for n in range(1000 + step)]
            checkpoint: Any = {"v": 4, "id": f"{step}", "ts": "", "channel_values": {"messages": value}}
            checkpoint.update(channel_versions={"messages": f"{step}"}, versions_seen={})
            config = saver.put(config, checkpoint, {"step": step}, checkpoint["channel_versions"])

    done = run("history", "t", "--json")
    assert done.code == 0, done.err
    added = [one["bytes_added"] for one in json.loads(done.out)["checkpoints"]][::-1]

    assert added[0] > 50_000
    assert max(added[1:]) < added[0] / 5
    assert count(url, "checkpoint_blobs", "type = 'pages'") == 5


@pytest.mark.usefixtures("filled")
def test_a_checkpoint_is_shown_with_its_values_and_writes(run: Cli) -> None:
    """The newest, one by the beginning of its id, a subgraph's; one channel of it; as JSON."""
    lines = run("show", "ada-trip").out.splitlines()
    assert lines[:2] == ["thread ada-trip", "checkpoint 1f11620e-ca20-6271-8000-0000000003f1, 2026-03-02 10:16:49 UTC"]
    assert "    HumanMessage(content='Three nights in Lisbon, please.', type='human', id='0031')," in lines
    assert lines[-1] == "  5f1b2c3d-0000-0000-0000-000000001009  outcome: 'archived'"

    older = run("show", "ada-trip", "1f11620e-90e7", "--channel", "holds", "--channel", "budget").out.splitlines()
    assert older[4:] == ["channels:", "  budget: 600", "  holds: {'seat': 240}"]
    inner = run("show", "ada-trip", "--namespace", "hotel:8f968eed-ee6a-8d3a-b6f4-c08e0c94ecc1").out
    assert "rooms: ['Casa do Tejo']" in inner
    document = json.loads(run("show", "ada-trip", "--json").out)
    assert document["channels"]["messages"][0]["$object"]["kwargs"]["content"] == "Three nights in Lisbon, please."
    assert document["writes"] == [
        {"task_id": "5f1b2c3d-0000-0000-0000-000000001009", "channel": "outcome", "value": "archived"}
    ]


@pytest.mark.usefixtures("filled")
def test_two_checkpoints_are_compared(run: Cli) -> None:
    """Line by line for people, by channel for programs."""
    lines = run("diff", "ada-trip", "1f11620e-ad83", "1f11620e-c096").out.splitlines()
    assert [line for line in lines if line.startswith(("-  ", "+  ")) and "decision" in line] == [
        "-  decision: 'approve'",
        "+  decision: 'decline'",
    ]
    changed = json.loads(run("diff", "ada-trip", "1f11620e-90e7", "1f11620e-ad83", "--json").out)["changed"]
    assert changed["channel decision"] == {"b": "approve"}
    assert changed["metadata"]["a"]["step"] == 1
    assert "channel budget" not in changed
    assert run("diff", "ada-trip", "1f11620e-ad83", "1f11620e-ad83").out == ""


@pytest.mark.usefixtures("filled")
def test_sizes_lead_to_the_large_thread_and_its_channel(run: Cli) -> None:
    """First which thread, then which channel."""
    assert [line.split()[0] for line in run("stats", "--limit", "2").out.splitlines()[-2:]] == ["bob-chat", "ada-trip"]
    assert run("stats", "--limit", "0").out.splitlines()[-1].startswith("mallory-inbox")
    document = json.loads(run("stats", "--json").out)
    assert document["largest_threads"][0]["thread_id"] == "bob-chat"
    assert document["tables"]["checkpoints"]["bytes_on_disk"] > 8000
    lines = run("stats", "bob-chat").out.splitlines()
    assert lines[0].startswith("bob-chat: 40 checkpoints, ")
    assert lines[-3].split()[:4] == ["-", "messages", "40", "0"]
    assert json.loads(run("stats", "bob-chat", "--json").out)["channels"][0]["channel"] == "messages"


def test_a_copy_a_replaced_copy_and_their_deletion(run: Cli, filled: str) -> None:
    """A target that has something is refused in one line; deleting asks, and a no is no."""
    assert run("copy", "ada-trip", "b").out == "copied ada-trip to b: 20 rows\n"
    refused = run("copy", "bob-chat", "b")
    assert refused.code == 1
    assert re.fullmatch(r"error: something is stored for the thread 'b': .* --replace\n", refused.err)
    assert run("copy", "bob-chat", "b", "--replace").code == 0
    assert count(filled, where="thread_id = 'b'") == 40

    unanswered = run("delete", "b")
    assert unanswered.code == 1
    assert "b: 40 checkpoints" in unanswered.err
    assert unanswered.err.endswith("\nerror: there was no answer; --yes goes on without asking\n")
    assert run("delete", "b", answer="n\n").code == 1
    assert count(filled, where="thread_id = 'b'") == 40
    assert run("delete", "cron-report", answer="y\n").code == 0
    assert count(filled, where="thread_id = 'cron-report'") == 0
    assert run("delete", "--yes", "b", "ada-trip").out.splitlines()[0].startswith("deleted b: 40 checkpoints, ")
    assert count(filled, where="thread_id IN ('b', 'ada-trip')") == 0
    assert run("delete", "--yes", "b").code == 1


def test_a_sweep_is_rehearsed_and_then_done(run: Cli, filled: str) -> None:
    """What --dry-run tells is what goes; what is kept is what was asked for."""
    rehearsed = json.loads(run("sweep", "--older-than", "30d", "--keep-last", "2", "--dry-run", "--json").out)
    assert count(filled) == 55
    done = run("sweep", "--older-than", "4w2d", "--keep-last", "2", "--batch-size", "3")

    assert rehearsed["threads"] == 3
    removed = rehearsed["checkpoints"]
    assert done.out.startswith(f"removed {removed} checkpoints of 3 threads, {rehearsed['writes']} pending writes, ")
    assert count(filled) == 55 - removed
    assert count(filled, where="thread_id = 'bob-chat'") == 2
    assert run("sweep", "--older-than", "30d", "--keep-last", "2").out.startswith("removed 0 checkpoints of 0 threads")
    assert run("show", "bob-chat").code == 0


def test_a_thread_is_pruned(run: Cli, filled: str) -> None:
    """Only it, to so many of its newest."""
    assert run("prune", "bob-chat", "--keep", "5").out.startswith("removed 35 checkpoints of 1 thread, ")
    assert count(filled) == 20
    assert json.loads(run("prune", "bob-chat", "--json").out)["checkpoints"] == 4
    refused = run("prune", "ada-trip", "nobody")
    assert (refused.code, refused.err) == (1, "error: nothing is stored for the thread 'nobody'\n")
    assert count(filled) == 16


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("30d", timedelta(days=30)),
        ("1d12h", timedelta(hours=36)),
        ("90m", timedelta(minutes=90)),
        (" 8w ", timedelta(weeks=8)),
        ("45s", timedelta(seconds=45)),
    ],
)
def test_an_age_has_a_unit(text: str, age: timedelta) -> None:
    """From seconds to weeks, also together."""
    assert age_of(text) == age


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1.5h", "12h1d", "9" * 30 + "d"])
def test_what_is_no_age_is_refused(text: str) -> None:
    """A number without a unit above all: nobody should have to guess which one was meant."""
    with pytest.raises(InvalidOption, match="must be a number with a unit"):
        age_of(text)
    with pytest.raises(InvalidOption, match=r"must be more than zero, .*, not '0d'$"):
        age_of("0d")


def test_values_become_pages_and_plain_again(run: Cli, filled: str) -> None:
    """And the number of them is told."""
    with PostgresSaver.from_conn_string(filled, share_pages=False) as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {"m": ["x" * 100] * 1000}}
        saver.put(config, {**checkpoint, "channel_versions": {"m": "1"}, "versions_seen": {}}, {}, {"m": "1"})

    assert run("pages", "share").out == "shared 1 value\n"
    assert count(filled, "checkpoint_blobs", "type = 'pages'") == 1
    assert "... 970 more" in run("show", "t").out
    assert run("pages", "inline").out == "inlined 1 value\n"
    assert count(filled, "checkpoint_pages") == 0


def test_a_pipeline_migrates_checks_and_goes_back(
    empty_url: str, make_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch, run: Cli
) -> None:
    """Exit code 3 before, 0 after; the SQL needs no database; going back asks."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", empty_url)
    assert run("check").code == cli.NOT_AT_HEAD
    state = {"revision": None, "head": schema.HEAD, "ready": False, "distribution": None}
    assert json.loads(run("check", "--json").out) == state
    assert run("threads").code == cli.NOT_AT_HEAD
    assert run("upgrade", "cs01_baseline").out == "at cs01_baseline\n"
    behind = run("check")
    assert (behind.code, behind.err.count("\n")) == (3, 1)
    assert run("upgrade").out == f"at {schema.HEAD}\n"
    assert run("upgrade").code == 0
    assert json.loads(run("check", "--json").out)["ready"] is True

    refused = run("downgrade", "base", answer="n\n")
    assert refused.code == 1
    assert "all tables will be dropped, with every checkpoint: go on?" in refused.err
    assert run("check").code == 0
    assert run("downgrade", "cs01_baseline", "--yes").out == "at cs01_baseline\n"
    assert run("downgrade", "base", "--yes").out == "at base\n"
    assert run("upgrade", "nonsense").code == 1

    monkeypatch.delenv("CHECKPOINT_STORE_URL")
    printed = run("sql")
    assert printed.code == 0
    another = make_database()
    with psycopg.connect(another) as conn:
        conn.execute(printed.out)
    assert run("check", "--url", another).code == 0


@pytest.mark.parametrize("comes", ["before us", "after us"])
def test_going_back_says_which_tables_stay(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, run: Cli, comes: str
) -> None:
    """Those of the stock saver do, whether it came before us or after us; the question says so, and it is true."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", empty_url)
    if comes == "after us":
        assert run("upgrade").code == 0
    with StockSaver.from_conn_string(empty_url) as stock:
        stock.setup()
    assert run("upgrade").code == 0

    asked = run("downgrade", "base", answer="y\n")
    assert (asked.code, asked.out.strip()) == (0, "at base")
    assert "has set up, stay with every checkpoint; what checkpoint_store has added" in asked.err
    assert "all tables" not in asked.err
    assert count(empty_url) == 0  # which there still is


def test_a_schema_of_its_own(run: Cli, url: str) -> None:
    """Every command takes it; the tables elsewhere are not touched."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute('CREATE SCHEMA "Agents 1"')
    assert run("upgrade", "--schema", "Agents 1").code == 0
    with PostgresSaver.from_conn_string(url, schema="Agents 1") as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {"m": 1}, "channel_versions": {"m": "1"}}
        saver.put(config, {**checkpoint, "versions_seen": {}}, {}, {"m": "1"})

    for command in (["threads"], ["history", "t"], ["show", "t"], ["stats"], ["stats", "t"], ["copy", "t", "u"]):
        assert run(*command, "--schema", "Agents 1").code == 0, command
    assert run("history", "t").code == 1
    assert run("delete", "t", "u", "--yes", "--schema", "Agents 1").code == 0
    assert "checkpoints" in run("stats", "--schema", "Agents 1").out


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["threads", "--url", "mysql://app:hunter2@db/app"], 2, "names the driver 'mysql'"),
        (
            ["threads", "--url", "postgresql://app:hunter2@/x?host=/nowhere"],
            4,
            "`checkpoint-store doctor` says which step failed.",
        ),
        (
            ["check", "--url", "postgresql://app:hunter2@/x?host=/nowhere"],
            4,
            "`checkpoint-store doctor` says which step failed.",
        ),
        (["threads", "--url", ""], 2, ""),
        (["threads", "--cursor", "x"], 2, "--cursor must be the `cursor` of a thread listed before"),
        (["threads", "--filter", "[1]"], 2, "JSON object"),
        (["threads", "--order", "size"], 2, "--order must be 'newest' or 'thread_id', not 'size'"),
        (["threads", "--filter", '{"a": NaN}'], 2, "--filter['a'] is not finite"),
        (["threads", "--schema", "no such"], 3, "run `checkpoint-store upgrade --schema 'no such'`."),
        (["check", "--schema", "nope"], 3, "run `checkpoint-store upgrade --schema nope`."),
        (["sweep", "--keep-last", "1", "--schema", "nope"], 3, "run `checkpoint-store upgrade --schema nope`."),
        (["threads", "--url", "postgresql://app:hunter2@db:99999/x"], 2, "the port must be a number from 1 to 65535"),
        (["history", "nobody"], 1, "nothing is stored for the thread 'nobody'"),
        (["show", "nobody"], 1, "nothing is stored for the thread 'nobody'"),
        (["show", "bob-chat", "zzz"], 1, "the thread 'bob-chat' has no checkpoint 'zzz' of the root graph"),
        (["show", "bob-chat", "1f11"], 2, "several checkpoints"),
        (["show", "bob-chat", "--namespace", "x"], 1, "in the namespace 'x'"),
        (["diff", "bob-chat", "a", "b"], 1, "has no checkpoint 'a'"),
        (["stats", "nobody"], 1, "nothing is stored"),
        (["copy", "nobody", "x"], 1, "nothing is stored"),
        (["copy", "bob-chat", "bob-chat"], 2, "another id"),
        (["delete", "nobody", "--yes"], 1, "nothing is stored"),
        (["history", "a\x1b[2J"], 1, "a\\x1b[2J"),
        (["history", ""], 2, "empty"),
        (["sweep"], 2, "--older-than or --keep-last"),
        (["sweep", "--keep-last", "1", "--spare-active"], 2, "--spare-active needs --older-than"),
        (["sweep", "--older-than", "30"], 2, "30d"),
    ],
)
@pytest.mark.usefixtures("filled")
def test_what_goes_wrong_is_told_in_one_line(run: Cli, arguments: list[str], code: int, told: str) -> None:
    """On standard error, with a code that says of which kind it is; no traceback, no password, no escapes."""
    done = run(*arguments)

    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert re.fullmatch(r"error: .+\n", done.err)
    assert done.err.rstrip("\n").isprintable()
    assert "hunter2" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["threads", "--nonsense"],
        ["history"],
        ["threads", "--limit", "x"],
        ["history", "t", "--limit", "-1"],
    ],
)
def test_a_wrong_command_line_has_a_code_of_its_own(run: Cli, arguments: list[str]) -> None:
    """Typer tells what was wrong."""
    done = run(*arguments)

    assert (done.code, done.out) == (2, "")
    assert "Usage: checkpoint-store" in done.err
    assert "Traceback" not in done.err


def test_no_url_is_told(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable that would have had it."""
    monkeypatch.delenv("CHECKPOINT_STORE_URL")

    done = run("threads")

    assert (done.code, done.out) == (2, "")
    assert done.err == "error: no database is named: give --url, or set CHECKPOINT_STORE_URL\n"


def commands() -> list[str]:
    from checkpoint_store.cli.commands import app

    return sorted(command.name or "" for command in app.registered_commands)


@pytest.mark.parametrize("command", commands())
def test_every_command_explains_itself(run: Cli, command: str) -> None:
    """With an example that names it."""
    done = run(command, "--help")

    assert done.code == 0
    assert re.search(rf"Example:\n(.+\n)*? +checkpoint-store {command}", done.out)


def test_a_hostile_row_prints_inert(url: str, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payloads that would run code when deserialised, in values and writes: nothing runs, nothing loads."""
    mark = tmp_path / "mark"
    (tmp_path / "trap_module.py").write_text(f"open({str(mark)!r}, 'w').close()\nTrap = print")
    monkeypatch.syspath_prepend(tmp_path)
    payload = ["os", "system", f"touch {mark}"]
    call = msgpack.packb(msgpack.ExtType(0, msgpack.packb(payload)))
    trap = msgpack.packb([msgpack.ExtType(5, msgpack.packb(["trap_module", "Trap", {"a\x1b[2J": 1}, "x"]))])
    constructor = json.dumps({"lc": 2, "type": "constructor", "id": payload[:2], "args": payload[2:]}).encode()
    pickled = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    channels = {"m": ("msgpack", call), "n": ("msgpack", trap), "j": ("json", constructor), "p": ("pickle", pickled)}
    with psycopg.connect(url, autocommit=True) as conn:
        versions = json.dumps({"v": 4, "channel_versions": dict.fromkeys(channels, "1"), "channel_values": {}})
        conn.execute("INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES ('t', '1', %s)", [versions])
        for channel, (kind, blob) in channels.items():
            conn.execute("INSERT INTO checkpoint_blobs VALUES ('t', '', %s, '1', %s, %s)", (channel, kind, blob))
            conn.execute(
                "INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob)"
                " VALUES ('t', '1', 'task', %s, %s, %s, %s)",
                (len(channel + kind + str(blob)), channel, kind, blob),
            )

    for arguments in (
        ["show", "t"],
        ["show", "t", "--full"],
        ["show", "t", "--json"],
        ["diff", "t", "1", "1", "--json"],
    ):
        done = run(*arguments)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out
    shown = run("show", "t").out
    assert f"m: os.system('touch {mark}')" in shown
    assert "n: [trap_module.Trap(a\\x1b[2J=1)]" in shown
    assert f"j: os.system('touch {mark}')" in shown
    assert "p: <pickle, " in shown
    assert "trap_module" not in sys.modules
    assert not mark.exists()


def test_ids_names_and_metadata_reach_no_terminal_as_they_are(run: Cli, url: str) -> None:
    """Escapes and markup in every text a row has, in every command that prints it; JSON has them escaped."""
    evil = "\x1b]0;title\x07[red]\u202ex\r\n"
    task: Any = {"configurable": {"thread_id": evil, "checkpoint_ns": "", "checkpoint_id": None}}
    with PostgresSaver.from_conn_string(url) as saver:
        checkpoint: Any = {"v": 4, "id": f"1{evil}", "ts": "", "channel_values": {evil: evil, "list": [evil]}}
        versions = {evil: "1", "list": "1"}
        metadata: Any = {"step": evil, "source": evil, evil: evil}
        stored = saver.put(task, {**checkpoint, "channel_versions": versions, "versions_seen": {}}, metadata, versions)
        saver.put_writes(stored, [(evil, evil)], evil)

    for arguments in (["threads"], ["history", evil], ["show", evil], ["stats"], ["stats", evil], ["copy", evil, "x"],
                      ["diff", evil, "1", "1"], ["show", evil, "2\x1b"], ["delete", "--yes", evil]):  # fmt: skip
        done = run(*arguments)
        for line in (done.out + done.err).split("\n"):
            assert line.isprintable(), (arguments, line)
    document = json.loads(run("threads", "--json").out)
    assert document["threads"][0]["metadata"][evil] == evil


def test_encrypted_values_are_told_as_such(run: Cli, url: str) -> None:
    """Nothing of them is shown but their size."""
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    with PostgresSaver.from_conn_string(url, serde=serde) as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {"m": ["secret"], "n": 5}}
        versions = {"m": "1", "n": "1"}
        saver.put(config, {**checkpoint, "channel_versions": versions, "versions_seen": {}}, {}, versions)

    shown = run("show", "t").out

    assert re.search(r"m: <msgpack, \d+ B, encrypted \(aes\)>", shown)
    assert "secret" not in shown


def command(*arguments: str, url: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "CHECKPOINT_STORE_URL": url, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-m", "checkpoint_store", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def wait_for_a_lock(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until a connection to the database waits for another one's lock."""
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with psycopg.connect(url, autocommit=True) as conn:
        while conn.execute(waiting).fetchone() is None:
            assert process.poll() is None
            conn.execute("SELECT pg_sleep(0.02)")


def test_a_real_process_prints_plain_text_whatever_its_width(filled: str) -> None:
    """In a pipe no cell is cut and no line wrapped, and the exit code is the process's."""
    with psycopg.connect(filled, autocommit=True) as conn:
        conn.execute("UPDATE checkpoints SET thread_id = repeat('x', 200) WHERE thread_id = 'ada-trip'")
    with command("threads", url=filled) as process:
        out, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[1].split()[0] == "x" * 200
    assert "\x1b" not in out


def test_deploying_and_looking_import_no_langgraph(filled: str) -> None:
    """A deploy job does not pay for langchain-core, and a look at a value does not need it."""
    code = """if True:
        import sys
        from checkpoint_store.cli import main
        for line in ("check", "upgrade", "sql", "--help", "threads", "history ada-trip", "show ada-trip", "stats"):
            assert main(line.split()) == 0, line
        print([name for name in sys.modules if name.startswith(("langgraph", "langchain"))])
    """
    environment = {**os.environ, "CHECKPOINT_STORE_URL": filled}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


def test_without_its_extra_the_command_line_says_what_to_install(url: str) -> None:
    """The package works without typer and rich; only this part needs them."""
    code = (
        "import sys; sys.modules.update(typer=None, rich=None);"
        "from checkpoint_store.cli import main; sys.exit(main(['threads']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == 'error: the command line needs an extra: pip install "checkpoint-store[cli]"\n'


def test_a_reader_that_leaves_early_is_no_error(filled: str) -> None:
    """As in `checkpoint-store show bob-chat --json | head -1`."""
    with command("show", "bob-chat", "--json", url=filled) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_ctrl_c_ends_a_command_and_says_what_became_of_it(filled: str) -> None:
    """While it waits for a lock: exit code 130, one line of advice, and nothing is changed."""
    with psycopg.connect(filled) as conn:
        conn.execute("LOCK TABLE checkpoints IN ACCESS EXCLUSIVE MODE")
        with command("copy", "ada-trip", "b", url=filled) as process:
            wait_for_a_lock(filled, process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (130, "", "interrupted: nothing was changed\n")
    assert count(filled, where="thread_id = 'b'") == 0


def test_ctrl_c_in_a_sweep_leaves_whole_threads_and_the_next_one_goes_on(filled: str) -> None:
    """While it waits for a row of the second thread: what went before is gone, that one is as it was."""
    arguments = ["sweep", "--older-than", "30d", "--keep-last", "1", "--batch-size", "1"]
    with psycopg.connect(filled) as conn:
        conn.execute("SELECT FROM checkpoints WHERE thread_id = 'bob-chat' FOR UPDATE")
        with command(*arguments, url=filled) as process:
            wait_for_a_lock(filled, process)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    assert re.fullmatch(r"interrupted: .*every thread is complete; the same command goes on with the rest\n", err)
    assert count(filled, where="thread_id = 'ada-trip' AND checkpoint_ns = ''") == 1
    assert count(filled, where="thread_id = 'bob-chat'") == 40
    assert main([*arguments, "--url", filled]) == 0
    assert count(filled, where="checkpoint_ns = ''") == 4


def test_a_terminal_gets_tables_colours_and_progress(filled: str) -> None:
    """And no escapes but those of rich, whatever the ids of the threads are."""
    with psycopg.connect(filled, autocommit=True) as conn:
        conn.execute("UPDATE checkpoints SET thread_id = E'\\x1b]0;title\\x07[red]' WHERE thread_id = 'cron-report'")
    for arguments, told in ((["threads"], "[red]"), (["sweep", "--keep-last", "3"], "removed 45 checkpoints")):
        controller, terminal = pty.openpty()
        environment = {**os.environ, "CHECKPOINT_STORE_URL": filled, "TERM": "xterm-256color", "COLUMNS": "100"}
        with subprocess.Popen(
            [sys.executable, "-m", "checkpoint_store", *arguments],
            env=environment, cwd=REPOSITORY, stdin=terminal, stdout=terminal, stderr=terminal,
        ) as process:  # fmt: skip
            os.close(terminal)
            printed = b""
            with suppress(OSError):  # how the other end's closing looks like on Linux
                while part := os.read(controller, 65536):
                    printed += part
        os.close(controller)

        assert process.returncode == 0
        text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|\r", "", printed.decode())
        assert told in text
        assert "\x1b" not in text
        assert "\x07" not in text


@dataclass
class Order:
    """A value of an application's own."""

    item: str
    amount: Decimal


def chat(saver: BaseCheckpointSaver[str], thread_id: str) -> None:
    """Two turns with messages and objects in the state, on any saver."""

    class State(MessagesState):
        order: Order
        turns: int

    def answer(state: State) -> dict[str, Any]:
        return {"messages": [("ai", "is that all?")], "order": Order("tea", Decimal(2)), "turns": 5}

    graph = StateGraph(State).add_node(answer).add_edge(START, "answer").compile(checkpointer=saver)
    for text in ("tea?", "and a cake?"):
        graph.invoke({"messages": [("user", text)]}, {"configurable": {"thread_id": thread_id}})


def stored(url: str) -> set[tuple[Any, ...]]:
    """Every value and pending write of a database."""
    with psycopg.connect(url) as conn:
        blobs = conn.execute("SELECT thread_id, channel, version, type, blob FROM checkpoint_blobs").fetchall()
        writes = conn.execute("SELECT checkpoint_id, task_id, idx, type, blob FROM checkpoint_writes").fetchall()
    return {*blobs, *writes}


def test_threads_come_from_the_stock_savers_database_byte_for_byte(
    run: Cli, url: str, make_database: Callable[[], str]
) -> None:
    """Values that only the application can make are copied without it; what is there already is skipped."""
    other = make_database()
    with StockSaver.from_conn_string(other) as stock:
        stock.setup()
        for name in ("one", "two", "three"):
            chat(stock, name)
    with psycopg.connect(other, autocommit=True) as conn:
        call = msgpack.packb(msgpack.ExtType(0, msgpack.packb(["no.such.module", "Nothing", 1])))
        conn.execute("UPDATE checkpoint_blobs SET blob = %s WHERE channel = 'order'", [call])

    assert run("import-from", other, "--thread", "two").out.startswith("copied 1 thread, 6 checkpoints, ")
    document = json.loads(run("import-from", other, "--json").out)

    assert (document["threads"], document["skipped_threads"]) == (2, 1)
    assert stored(url) == {row for row in stored(other) if row[3] != "empty"}
    assert "no.such.module.Nothing(1)" in run("show", "one").out


def test_threads_come_from_sqlite(run: Cli, url: str, tmp_path: Path) -> None:
    """And go on where they stood; the file is as it was."""
    path = tmp_path / "check points.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as old:
        chat(old, "one")
    before = path.read_bytes()

    assert run("import-from", str(path)).out.startswith("copied 1 thread, 6 checkpoints, ")

    assert path.read_bytes() == before
    with PostgresSaver.from_conn_string(url) as saver:
        chat(saver, "one")
        found = saver.get({"configurable": {"thread_id": "one"}})
    assert found is not None
    assert len(found["channel_values"]["messages"]) == 8
    assert "order" in run("show", "one").out


def test_what_can_not_be_imported_is_told(run: Cli, url: str, tmp_path: Path) -> None:
    """No file, a file of something else, another database, an encrypted value; with --keep-going the rest is copied."""
    missing = run("import-from", str(tmp_path / "nothing.sqlite"))
    assert (missing.code, not list(tmp_path.iterdir())) == (2, True)
    (tmp_path / "text").write_text("this is no database " * 100)
    assert run("import-from", str(tmp_path / "text")).code == 2
    assert run("import-from", "mysql://app:hunter2@db/x").code == 2
    unreachable = run("import-from", "postgresql://app:hunter2@/x?host=/nowhere")
    assert (unreachable.code, "hunter2" in unreachable.err) == (4, False)
    path = tmp_path / "some.sqlite"
    with SqliteSaver.from_conn_string(str(path)) as old:
        chat(old, "one")
        chat(old, "two")
        old.conn.execute("UPDATE checkpoints SET type = 'msgpack+aes' WHERE thread_id = 'one'")
        old.conn.commit()

    done = run("import-from", str(path), "--thread", "one", "--thread", "two", "--keep-going")

    assert done.code == 1
    assert "left out" in done.err
    assert "msgpack+aes" in done.err
    assert done.err.splitlines()[-1] == "error: 1 thread could not be copied"
    assert done.out.startswith("copied 1 thread")


def test_a_file_that_is_missing_is_told_before_a_package_that_is(run: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    """Nobody installs something to read a file that was mistyped."""
    monkeypatch.setitem(sys.modules, "langgraph.checkpoint.sqlite", None)
    assert "no such file" in run("import-from", str(tmp_path / "nothing.sqlite")).err
    (tmp_path / "some.sqlite").touch()
    assert "pip install langgraph-checkpoint-sqlite" in run("import-from", str(tmp_path / "some.sqlite")).err


def test_the_demonstration_is_one_command() -> None:
    """It is the one of `make demo`."""
    from checkpoint_store.cli.demo import script

    assert script() == REPOSITORY / "examples" / "survive_kill.py"
    assert connection.NOTHING_CHANGED


@pytest.mark.parametrize(
    ("checkpoint", "metadata"),
    [
        ("5", "[]"),
        ('"x"', '"x"'),
        ("[]", "null"),
        ('{"channel_values": [1], "channel_versions": null}', '{"step": {"a": []}, "source": null, "parents": "x"}'),
        ('{"v": 4, "channel_values": {"a": {"lc": 1, "type": "constructor", "id": ["os", "system"]}}}', "{}"),
    ],
)
def test_rows_of_any_shape_can_be_looked_at(run: Cli, url: str, checkpoint: str, metadata: str) -> None:
    """Whoever writes to the tables by hand gets no traceback out of it."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata) VALUES ('t', '1', %s, %s)",
            (checkpoint, metadata),
        )

    for arguments in (["threads"], ["history", "t"], ["show", "t"], ["diff", "t", "1", "1"], ["stats", "t"], ["stats"]):
        for form in ([], ["--json"]):
            done = run(*arguments, *form)
            assert (done.code, done.err) == (0, ""), arguments
