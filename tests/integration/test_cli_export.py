"""A thread as a file: exported as it is stored, without its values, and imported again."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.graph import START, MessagesState, StateGraph
from sqlalchemy.ext.asyncio import AsyncEngine

from checkpoint_store import PostgresSaver
from checkpoint_store.database.factory import engine_backend
from checkpoint_store.serde.records import StoredCheckpoint, StoredPage, StoredValue, StoredWrite
from checkpoint_store.sql.thread_rows import TABLES
from checkpoint_store.storage import thread_rows
from checkpoint_store.tools.thread_rows import one_moment, rows_of
from tests.integration.commands import Cli


def fill(url: str, thread_id: str = "t", steps: int = 30) -> None:
    """Store a chat that is long enough for pages, with inline values, a subgraph and pending writes."""
    with PostgresSaver.from_conn_string(url) as saver:
        config: Any = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
        messages, version = [], None
        for step in range(steps):
            messages.append(HumanMessage(f"{step}: " + chr(97 + step % 26) * 1000, id=str(step)))
            version = saver.get_next_version(version, None)
            versions: Any = {"messages": version, "budget": version}
            checkpoint: Any = {
                "v": 4,
                "id": f"1f000000-0000-6000-8000-{step:012}",
                "ts": "2026-01-01T00:00:00+00:00",
                "channel_values": {"messages": list(messages), "budget": 0.1 * step},
                "channel_versions": versions,
                "versions_seen": {"node": {"messages": version}},
            }
            metadata: Any = {"step": step, "source": "loop", "parents": {}, "user": "ada"}
            config = saver.put(config, checkpoint, metadata, versions)
            saver.put_writes(config, [("messages", messages[-1]), ("budget", step)], f"task-{step}", "~path")
        saver.put({"configurable": {"thread_id": thread_id, "checkpoint_ns": "node:1"}}, checkpoint, metadata, versions)


def stored(url: str, thread_id: str = "t") -> dict[str, list[Any]]:
    """Return all rows of a thread, by table, without its id."""
    with psycopg.connect(url) as conn:
        rows = {}
        for kind, (name, keys) in TABLES.items():
            columns, order = ", ".join(kind._fields), ", ".join(kind._fields[:keys])
            statement = f"SELECT {columns} FROM {name} WHERE thread_id = %s ORDER BY {order}"
            rows[name] = conn.execute(statement, [thread_id]).fetchall()
        return rows


async def test_all_rows_of_a_thread_are_read_once_as_of_one_moment(
    engine: AsyncEngine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of few bytes, while another process deletes some."""
    fill(url)
    expected = {name: len(rows) for name, rows in stored(url).items()}
    assert all(expected.values())
    monkeypatch.setattr(thread_rows, "BATCH_BYTES", 10_000)
    backend = engine_backend(engine, {})
    async with one_moment(backend) as then:
        counts = await then.run(thread_rows.count_rows, "t")
        with psycopg.connect(url, autocommit=True) as other:
            for name in expected:
                other.execute(f"DELETE FROM {name}")
        for kind in (StoredPage, StoredValue, StoredCheckpoint, StoredWrite):
            name, keys = TABLES[kind]
            batches = [batch async for batch in rows_of(then, "t", kind)]
            rows = [row for batch in batches for row in batch]
            assert len({row[:keys] for row in rows}) == len(rows) == counts[kind] == expected[name]
            assert name in ("checkpoint_blobs", "checkpoints") or len(batches) > 2
    assert not [batch async for batch in rows_of(backend, "t", StoredCheckpoint)]


def test_a_thread_is_imported_byte_for_byte(
    run: Cli, url: str, make_database: Callable[[], str], tmp_path: Path
) -> None:
    """Under its own id in another database, under another one beside it; the second export is the first."""
    fill(url)
    file, again = tmp_path / "t.jsonl", tmp_path / "again.jsonl"
    assert run("export", "t", str(file)).out == "exported t: 31 checkpoints, 31 values, 22 pages, 60 writes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl"]
    assert run("import", str(file), "--as", "copy").out.startswith("imported copy: 31 checkpoints")
    assert stored(url, "copy") == stored(url)

    other = make_database()
    with PostgresSaver.from_conn_string(other) as saver:
        saver.setup()
        assert run("import", str(file), "--url", other).code == 0
        assert stored(other) == stored(url)
        assert run("export", "t", str(again), "--url", other).code == 0
        found = saver.get_tuple({"configurable": {"thread_id": "t"}})
    assert again.read_bytes() == file.read_bytes() == run("export", "t").out.encode()
    assert found is not None
    assert len(found.checkpoint["channel_values"]["messages"]) == 30


def test_what_others_have_written_by_hand_comes_back_as_it_was(run: Cli, url: str, tmp_path: Path) -> None:
    """Numbers that Python can't hold, texts of every kind, pickles, encrypted values, nothing at all."""
    odd = "\x1b[2J\x7f\x9b \u2028 😀 é \\u0000 \\\\"
    document = (
        '{"id": "1", "channel_versions": {"a": 1}, "channel_values": {"a": 1.10, "b": 12345678901234567890123456789,'
        ' "c": -0.0, "d": 1e400, "e": {"deep": [null, true, []]}}, ' + json.dumps(odd) + ": 1}"
    )
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO checkpoints VALUES (%s, '', '1', '0', 'old', %s::jsonb, %s::jsonb)",
            [odd, document, json.dumps({"thread_id": odd, "n": 10**40})],
        )
        values = [("a", "1", "pickle", b"cos\nsystem\n(S'true'\ntR."), ("b", "2", "msgpack+aes", bytes(range(256)))]
        values += [("c", "3", "empty", None), ("d", "4", "pages", b"no recipe")]
        for value in values:
            conn.execute("INSERT INTO checkpoint_blobs VALUES (%s, 'sub:1|x', %s, %s, %s, %s)", [odd, *value])
        conn.execute("INSERT INTO checkpoint_writes VALUES (%s, '', '1', 'task', -4, %s, NULL, '', '~')", [odd, odd])
    file = tmp_path / "odd.jsonl"
    assert run("export", odd, str(file)).code == 0
    assert file.read_bytes().isascii()
    assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", file.read_bytes())
    before = stored(url, odd)
    done = run("import", str(file), "--replace")
    assert (done.code, done.err) == (0, "1 value can't be read: pages were missing in the export too\n")
    assert stored(url, odd) == before
    assert run("import", str(file), "--as", "copy").code == 0
    copy = stored(url, "copy")
    assert copy.pop("checkpoints")[0][-1] == {"thread_id": "copy", "n": 10**40}
    assert all(copy[name] == before[name] for name in copy)


def test_a_file_without_values_has_none(run: Cli, url: str, transcripts: Any, tmp_path: Path) -> None:
    """Structure, sizes and digests stay; it can be imported and read, and every value is null."""
    transcripts.fill(url)
    hidden = run("export", "ada-trip", "--no-values")
    for secret in ("Lisbon", '"ada"', "Book it", "approve", base64.b64encode(b"Lisbon")[:6].decode()):
        assert secret not in hidden.out
        assert secret in run("export", "ada-trip").out or secret in ("Book it", "approve", "TGlzYm")
    lines = [json.loads(line) for line in hidden.out.splitlines()]
    checkpoints = [line for line in lines if line.get("row") == "checkpoint"]
    assert {line["metadata"]["source"] for line in checkpoints} >= {"input", "loop"}
    assert {type(line["metadata"]["step"]) for line in checkpoints} == {int}
    budgets = {json.dumps(line["checkpoint"]["channel_values"].get("budget")) for line in checkpoints}
    assert len(budgets - {"null"}) == 1  # the same one everywhere
    assert lines[0]["values"] is False
    again = [json.loads(line) for line in run("export", "ada-trip", "--no-values").out.splitlines()]
    assert again != lines  # by another key: digests can't be compared with those of guessed values
    file = tmp_path / "report.jsonl"
    file.write_text(hidden.out)
    done = run("import", str(file), "--as", "report")
    assert (done.code, done.err) == (0, "the file was made without values: all are null\n")
    assert done.out.endswith("without values\n")
    with PostgresSaver.from_conn_string(url) as saver:
        found, original = [list(saver.list({"configurable": {"thread_id": name}})) for name in ("report", "ada-trip")]
    assert [one.checkpoint["channel_versions"] for one in found] == [
        one.checkpoint["channel_versions"] for one in original
    ]
    assert {value for one in found for value in one.checkpoint["channel_values"].values()} == {None}
    assert {value for one in found for *_, value in one.pending_writes or ()} == {None}
    assert [one.metadata.get("user") for one in found] == [None] * len(found)
    assert run("history", "report").out.splitlines()[1:] != []


def test_members_of_other_kinds_than_langgraphs_are_left_out_too(run: Cli, sync_saver: PostgresSaver, url: str) -> None:
    """A row that something else wrote may have a secret wherever LangGraph has an id, a time or a version."""
    saved = sync_saver.put(
        {"configurable": {"thread_id": "t", "checkpoint_ns": ""}},
        empty_checkpoint(),
        {"source": "input", "step": 1},
        {},
    )
    secrets = ["id", "ts", "v", "channel_versions", "versions_seen", "updated_channels"]
    with psycopg.connect(url) as conn:
        whole = run("export", "t", "--no-values").out
        for name in secrets:
            for value in ("SECRET", {"SECRET": {"a": ["SECRET"]}}, {"a": [{"b": "SECRET"}]}, {"a": "SECRET"}):
                change = json.dumps({name: value})
                conn.execute("UPDATE checkpoints SET checkpoint = checkpoint || %s", [change])
                conn.commit()
                assert "SECRET" not in run("export", "t", "--no-values").out, change
        conn.execute("UPDATE checkpoints SET metadata = metadata || %s", ['{"parents": {"": "SECRET"}}'])
        conn.commit()
    assert "SECRET" not in run("export", "t", "--no-values").out
    known = json.loads(whole.splitlines()[1])
    assert known["checkpoint"]["id"] == saved["configurable"]["checkpoint_id"]
    assert known["metadata"] == {"source": "input", "step": 1}


def test_a_thread_of_the_stock_saver_is_exported_without_adopting_its_tables(
    run: Cli, url: str, empty_url: str, tmp_path: Path
) -> None:
    """There are no pages, nor a row for the thread; in ours it can be read."""
    with StockSaver.from_conn_string(empty_url) as saver:
        saver.setup()
        graph = StateGraph(MessagesState).add_node("say", lambda _: {"messages": ["hello"]}).add_edge(START, "say")
        graph.compile(checkpointer=saver).invoke({"messages": ["hi"]}, {"configurable": {"thread_id": "t"}})
    file = str(tmp_path / "t.jsonl")
    done = run("export", "t", file, "--url", empty_url)
    assert done.code == 0
    assert "not adopted" in done.err
    assert run("import", file).code == 0
    with PostgresSaver.from_conn_string(url) as ours:
        state = graph.compile(checkpointer=ours).get_state({"configurable": {"thread_id": "t"}})
    assert [message.content for message in state.values["messages"]] == ["hi", "hello"]


def test_a_thread_that_is_there_is_replaced_only_if_that_is_said(run: Cli, url: str, tmp_path: Path) -> None:
    fill(url, steps=3)
    fill(url, "other", steps=30)
    file = str(tmp_path / "t.jsonl")
    run("export", "t", file)
    done = run("import", file, "--as", "other")
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: something is stored for the thread 'other': name another id by --as, or add --replace\n"
    )
    assert len(stored(url, "other")["checkpoints"]) == 31
    assert json.loads(run("import", file, "--as", "other", "--replace", "--json").out)["checkpoints"] == 4
    assert stored(url, "other") == stored(url)


def test_what_is_no_such_file_is_refused(run: Cli, tmp_path: Path) -> None:
    """Each says why, and the exit code tells a mistake of the command line from one of the file."""
    file = tmp_path / "x"
    done = run("import", str(file))
    assert (done.code, done.err) == (2, f"error: FILE {str(file)!r} can't be read: No such file or directory\n")
    assert run("export", "t", str(file / "y")).code == 2
    assert (run("export", "t", str(file)).code, file.exists()) == (1, False)
    for text in (
        "",
        "\n",
        "SQLite format 3\0",
        "{}\n",
        "[]\n",
        '{"format": "checkpoint_store.thread"}\n',
        "[" * 10_000,
    ):
        file.write_text(text)
        done = run("import", str(file))
        assert (done.code, done.err[:14]) == (1, "error: line 1:"), text
    file.write_text('{"format": "checkpoint_store.thread", "version": 2}\n')
    assert run("import", str(file)).err == (
        "error: line 1: the file has a newer format than this version of checkpoint_store reads, which is 1. "
        "Upgrade checkpoint_store.\n"
    )


def damages(lines: list[dict[str, Any]], random: Random) -> Iterator[list[bytes]]:
    """Yield the lines of a file, damaged in one way each time."""

    def dumped(changed: list[Any]) -> list[bytes]:
        return [json.dumps(line).encode() + b"\n" for line in changed]

    odd: list[Any] = [None, True, 7, 2**40, -0.5, "\x00", "\ud800", "a" * 3000, "é", [], {}, {"size": 1, "digest": ""}]
    while True:
        place = random.randrange(len(lines))
        line = dict(lines[place])
        name = random.choice(list(line))
        kind = random.randrange(7)
        if kind == 0:
            line[name] = random.choice(odd)
        elif kind == 1:
            del line[name]
        elif kind == 2:
            line["more"] = "s3cret"
        if kind < 3:
            yield dumped([*lines[:place], line, *lines[place + 1 :]])
        elif kind == 3:
            yield dumped([*lines[:place], *lines[place + 1 :]])
        elif kind == 4:
            yield dumped([*lines[: place + 1], *lines[place:]])
        elif kind == 5:
            other = random.randrange(len(lines))
            swapped = list(lines)
            swapped[place], swapped[other] = swapped[other], swapped[place]
            yield dumped(swapped)
        else:
            content = bytearray(b"".join(dumped(lines)))
            at = random.randrange(len(content))
            del content[at : at + random.choice([1, 1, len(content)])]
            yield [bytes(content)]


def test_a_damaged_file_stores_nothing(run: Cli, url: str, tmp_path: Path) -> None:
    """The error is one line that names the place; what could be imported is what the file says, in every row."""
    fill(url, steps=14)
    file = tmp_path / "t.jsonl"
    lines = [json.loads(line) for line in run("export", "t").out.splitlines()]
    refused = 0
    for number, damaged in zip(range(int(os.environ.get("CASES", "40"))), damages(lines, Random(17)), strict=False):
        file.write_bytes(b"".join(damaged))
        done = run("import", str(file), "--as", f"t{number}")
        rows = stored(url, f"t{number}")
        if done.code:
            refused += 1
            assert (done.code, done.out) == (1, ""), done
            assert re.fullmatch(r"error: lines? \d+( to \d+)?: [ -~]{5,300}\n", done.err), done
            assert "s3cret" not in done.err
            assert not any(rows.values())
        else:
            exported = run("export", f"t{number}").out.splitlines()[1:]
            assert sorted(map(json.loads, exported), key=str) == sorted(
                map(json.loads, b"".join(damaged).splitlines()[1:]), key=str
            )
    assert refused > 12
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT count(*) FROM checkpoint_threads").fetchone() is not None


@pytest.mark.slow
def test_a_long_thread_takes_bounded_memory(url: str, tmp_path: Path) -> None:
    """Its file is larger than what the two processes may use."""
    with psycopg.connect(url) as conn:
        conn.execute(
            "INSERT INTO checkpoints SELECT 't', '', to_char(n, '000000'), NULL, NULL,"
            " jsonb_build_object('channel_versions', jsonb_build_object('a', n)), '{}' FROM generate_series(1, 10000) n"
        )
        conn.execute(
            "INSERT INTO checkpoint_blobs SELECT 't', '', 'a', n::text, 'bytes',"
            " convert_to(repeat(md5(n::text), 600), 'UTF8') FROM generate_series(1, 10000) n"
        )
    file = tmp_path / "t.jsonl"
    program = (
        "import resource, sys; from checkpoint_store.cli import main\n"
        "code = main(sys.argv[2:]); used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "sys.exit(code or used > int(sys.argv[1]) and f'{used:,} bytes were used')"
    )
    for arguments in (["export", "t", str(file)], ["import", str(file), "--as", "copy"]):
        command = [sys.executable, "-c", program, str(200_000_000), *arguments, "--url", url]
        assert subprocess.run(command, check=False, timeout=120).returncode == 0
    assert file.stat().st_size > 250_000_000
    with psycopg.connect(url) as conn:
        found = conn.execute(
            "SELECT thread_id, count(*), sum(length(blob)) FROM checkpoint_blobs GROUP BY thread_id"
        ).fetchall()
    assert sorted(found) == [("copy", 10_000, 192_000_000), ("t", 10_000, 192_000_000)]


def test_a_reader_that_leaves_early_is_no_error(url: str) -> None:
    """As in `checkpoint-store export t | head -1`; a full disk is, and is not taken for the server's."""
    fill(url, steps=200)
    export = [sys.executable, "-m", "checkpoint_store", "export", "t"]
    environment = {**os.environ, "CHECKPOINT_STORE_URL": url, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(export, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 1)
    process.stderr.close()

    done = subprocess.run([*export, "/dev/full"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: FILE '/dev/full' can't be written: No space left on device\n")
