"""The LangGraph Agent Server, `langgraph dev`, on the factory of docs/how-to/agent-server.md, through its HTTP API."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph_sdk import get_sync_client
from langgraph_sdk.client import SyncLangGraphClient
from langgraph_sdk.errors import NotFoundError

from tests.hosts_nightly.hosts import REPOSITORY, fresh_database, running

PACKAGES = ("langgraph-cli[inmem]==0.4.40", "langgraph-api==0.16.7", "langgraph-checkpoint-postgres")
PAGE = REPOSITORY / "docs" / "how-to" / "agent-server.md"
LISTING = re.compile(r"^`(checkpointer\.py|langgraph\.json)`\n\n```\w+\n(.+?)^```$", re.DOTALL | re.MULTILINE)
PORT = 2732
MODES = {"shared loop": {}, "isolated loops": {"BG_JOB_ISOLATED_LOOPS": "true"}}
INPUT = {"messages": [{"role": "user", "content": "Hello"}]}

AGENT = """
import asyncio
from typing import Annotated

from langgraph.channels import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt


def extended(values, writes):
    return [*(values or []), *(one for write in writes for one in write)]


class State(MessagesState):
    approved: str
    log: Annotated[list, DeltaChannel(extended)]


async def answer(state):
    await asyncio.sleep(0.05)
    return {"messages": [("ai", f"Message {len(state['messages'])}.")], "log": ["answered"]}


def ask(state):
    return {"approved": interrupt("Send it?"), "log": ["asked"]}


graph = StateGraph(State).add_node(answer).add_node(ask).add_edge(START, "answer").add_edge("answer", "ask").compile()
"""


class Client:
    """A client of the server, with the ids of its threads by what was done with them."""

    def __init__(self, api: SyncLangGraphClient, known: dict[str, str]) -> None:
        self.api = api
        self.known = known

    def waiting(self) -> str:
        """Run a new thread up to its interrupt, and return its id."""
        thread: str = self.api.threads.create()["thread_id"]
        state: Any = self.api.runs.wait(thread, "agent", input=INPUT)
        assert state["__interrupt__"][0]["value"] == "Send it?"
        return thread

    def resume(self, thread: str, answer: str) -> None:
        state: Any = self.api.runs.wait(thread, "agent", command={"resume": answer})
        assert state["approved"] == answer
        assert state["log"][-2:] == ["answered", "asked"]

    def values(self, thread: str) -> dict[str, Any]:
        state: Any = self.api.threads.get_state(thread)
        return state["values"]

    def length(self, thread: str) -> int:
        return len(self.api.threads.get_history(thread, limit=100))


def run_interrupt_resume(client: Client) -> None:
    client.known["resumed"] = client.waiting()
    client.resume(client.known["resumed"], "yes")
    assert client.length(client.known["resumed"]) == 4


def sixteen_threads_at_once(client: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        threads = list(pool.map(lambda _: client.waiting(), range(16)))
        list(pool.map(lambda thread: client.resume(thread, thread), threads))


def fork(client: Client) -> None:
    client.known["forked"] = thread = client.waiting()
    client.resume(thread, "first")
    (before,) = [one for one in client.api.threads.get_history(thread) if one["next"] == ["ask"]]
    client.api.threads.update_state(thread, {"approved": "second"}, checkpoint=before["checkpoint"], as_node="ask")
    assert client.values(thread)["approved"] == "second"
    assert client.length(thread) == 5


def copy(client: Client) -> None:
    source = client.waiting()
    copied: Any = client.api.threads.copy(source)
    client.known["copied"] = copied["thread_id"]
    assert client.values(copied["thread_id"]) == client.values(source)


def delete(client: Client) -> None:
    client.known["deleted"] = client.waiting()
    client.api.threads.delete(client.known["deleted"])


def roll_back(client: Client) -> None:
    thread = client.api.threads.create()["thread_id"]
    client.api.runs.create(thread, "agent", input=INPUT)
    last = client.api.runs.create(thread, "agent", input=INPUT, multitask_strategy="rollback")
    client.api.runs.join(thread, last["run_id"])
    assert client.length(thread) == 3
    assert len(client.values(thread)["messages"]) == 2


def wait_for_a_restart(client: Client) -> None:
    client.known["waiting"] = client.waiting()


def resume_after_it(client: Client) -> None:
    client.resume(client.known["waiting"], "after the restart")
    assert len(client.values(client.known["waiting"])["messages"]) == 2


def resume_the_copy_after_it(client: Client) -> None:
    client.resume(client.known["copied"], "copied")


def find_the_fork_after_it(client: Client) -> None:
    assert client.values(client.known["forked"])["approved"] == "second"
    assert client.length(client.known["forked"]) == 5


def go_on_after_it(client: Client) -> None:
    client.api.runs.wait(client.known["resumed"], "agent", input=INPUT)
    assert len(client.values(client.known["resumed"])["messages"]) == 4


def miss_the_deleted_after_it(client: Client) -> None:
    try:
        client.api.threads.get_state(client.known["deleted"])
    except NotFoundError:
        return
    raise AssertionError


Trial = Callable[[Client], None]

FIRST: tuple[Trial, ...] = (
    *(run_interrupt_resume, sixteen_threads_at_once, fork, copy, delete, roll_back, wait_for_a_restart),
)
AGAIN: tuple[Trial, ...] = (
    *(resume_after_it, resume_the_copy_after_it, find_the_fork_after_it, go_on_after_it, miss_the_deleted_after_it),
)


def run(python: Path, folder: Path, *, saver: str, url: str) -> dict[str, str]:
    """Try the server with the saver `stock` or `ours` in each mode, and return the outcome of each trial."""
    ended = {}
    for mode, settings in MODES.items():
        project = folder / f"{saver}-{mode.replace(' ', '-')}"
        known: dict[str, str] = {}
        with fresh_database(url) as database:
            write_project(project, saver, database)
            for trials in (FIRST, AGAIN):
                with served(python, project, settings) as api:
                    for trial in trials:
                        ended[f"{mode}: {trial.__name__}"] = outcome(trial, Client(api, known))
    return ended


def write_project(project: Path, saver: str, url: str) -> None:
    """Write the page's files into an empty folder, with a graph and the database's URL."""
    shutil.rmtree(project, ignore_errors=True)
    project.mkdir(parents=True)
    for name, text in LISTING.findall(PAGE.read_text()):
        project.joinpath(name).write_text(with_stock_saver(text) if saver == "stock" else text)
    project.joinpath("agent.py").write_text(AGENT)
    project.joinpath(".env").write_text(f"CHECKPOINT_STORE_URL={url}\nLANGSMITH_TRACING=false\n")


def with_stock_saver(factory: str) -> str:
    """Return the page's factory with the stock saver in the place of ours."""
    theirs = factory.replace("from checkpoint_store import", "from langgraph.checkpoint.postgres.aio import")
    return theirs.replace(", pool_size=4", "")


def outcome(trial: Trial, client: Client) -> str:
    """Return whether a trial has passed or failed, and print why."""
    try:
        trial(client)
    except Exception as error:
        print(f"{trial.__name__}: {type(error).__name__}: {error}")
        return "failed"
    return "passed"


@contextmanager
def served(python: Path, project: Path, settings: dict[str, str]) -> Iterator[SyncLangGraphClient]:
    """Run `langgraph dev` in a folder, and yield a client of it."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables = {**outside, **settings, "LANGGRAPH_CLI_NO_ANALYTICS": "1"}
    options = ("dev", "--no-browser", "--no-reload", "--n-jobs-per-worker", "4", "--port", str(PORT))
    place = f"http://127.0.0.1:{PORT}"
    with running([python, "-m", "langgraph_cli", *options], project, variables, f"{place}/ok"):
        yield get_sync_client(url=place)
