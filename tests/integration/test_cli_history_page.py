"""`history --html`: a page of a thread as a file; what a browser shows of it is in tests/browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.postgres import PostgresSaver as StockSaver
from langgraph.graph import START, MessagesState, StateGraph

from checkpoint_store import PostgresSaver
from checkpoint_store.cli import main

History = Callable[..., int]


def chat(saver: Any, turns: int, thread_id: str = "t") -> None:
    """Store a chat."""
    graph = StateGraph(MessagesState)
    graph.add_node("answer", lambda state: {"messages": [f"answer {len(state['messages'])} " * 200]})
    graph.add_edge(START, "answer")
    compiled = graph.compile(checkpointer=saver)
    for turn in range(turns):
        said = HumanMessage(f"question {turn} </script>", id=str(turn))
        compiled.invoke({"messages": [said]}, {"configurable": {"thread_id": thread_id}})


def records(file: Path) -> list[Any]:
    """Return the records of a page."""
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', file.read_text(), re.DOTALL)
    return [record for block in blocks for record in json.loads(block)]


def checkpoints(file: Path) -> list[Any]:
    """Return the checkpoints of a page."""
    return [record for record in records(file) if isinstance(record, dict) and "checkpoint" in record]


@pytest.fixture
def history(url: str) -> History:
    """Runs `history` on `url`."""
    return lambda *arguments, url=url: main(["history", *map(str, arguments), "--url", url])


def test_a_page_is_one_file_for_its_owner_only(url: str, history: History, tmp_path: Path) -> None:
    """It takes the place of an older one, and has one script and one style, both named by the policy."""
    with PostgresSaver.from_conn_string(url) as saver:
        chat(saver, 3)
    file = tmp_path / "t.html"
    file.write_text("an older one")
    assert history("t", "--html", file) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["t.html"]
    page = file.read_text()
    assert page.count("<script>") == page.count("<style>") == 1
    assert page.count("</script>") == 2, "none is a message's"
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        content = page.rpartition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in page
    assert len(checkpoints(file)) == 9


def test_where_no_file_can_be_written_the_error_says_so(
    url: str, history: History, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, or a name in a folder that is not there; and a thread that is not there leaves no file."""
    with PostgresSaver.from_conn_string(url) as saver:
        chat(saver, 1)
    assert history("t", "--html", tmp_path) == 2
    assert "can't be written: Is a directory" in capsys.readouterr().err
    assert history("t", "--html", tmp_path / "nowhere" / "t.html") == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert history("nobody", "--html", tmp_path / "t.html") == 1
    assert "nobody" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--full"], ["--json", "--html", "t.html"]])
def test_options_that_would_have_no_effect_are_refused(history: History, options: list[str], capsys: Any) -> None:
    """Nobody believes that a value is whole, or waits for JSON."""
    assert history("t", *options) == 2
    assert "--full goes with --html FILE, and --json without it" in capsys.readouterr().err


def test_a_page_of_some_checkpoints_says_of_how_many(url: str, history: History, tmp_path: Path) -> None:
    """The newest, and those before one; the first of them has a parent that is stored, but not there."""
    with PostgresSaver.from_conn_string(url) as saver:
        chat(saver, 4)
    file = tmp_path / "t.html"
    assert history("t", "--html", file, "--limit", 5) == 0
    found = checkpoints(file)
    assert [one["isStored"] for one in found] == [True, False, False, False, False]
    assert records(file)[0]["total"] == 12
    assert history("t", "--html", file, "--before", found[0]["id"]) == 0
    assert len(checkpoints(file)) == 7


def test_a_value_in_pages_is_read_and_one_without_its_pages_is_not(url: str, history: History, tmp_path: Path) -> None:
    """What is missing says so, and the rest is there."""
    with PostgresSaver.from_conn_string(url, share_pages=True) as saver:
        chat(saver, 12)
    file = tmp_path / "t.html"
    assert history("t", "--html", file) == 0
    assert "answer 23 answer 23" in file.read_text()
    with psycopg.connect(url) as conn:
        assert conn.execute("DELETE FROM checkpoint_pages").rowcount > 0
    assert history("t", "--html", file) == 0
    assert "a page of it is missing" in file.read_text()
    assert "question 11" in file.read_text()


def test_a_thread_of_the_stock_saver_needs_no_upgrade(empty_url: str, history: History, tmp_path: Path) -> None:
    """Its tables are read as they are."""
    with StockSaver.from_conn_string(empty_url) as stock:
        stock.setup()
        chat(stock, 2)
    file = tmp_path / "t.html"
    assert history("t", "--html", file, url=empty_url) == 0
    assert len(checkpoints(file)) == 6
    assert "answer 3 answer 3" in file.read_text()
