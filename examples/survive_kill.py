"""`make demo`: an agent is killed with SIGKILL in the middle of a step; nothing it had finished is lost or done again.

Three processes share nothing but a PostgreSQL database: two workers (a service, on `AsyncPostgresSaver`) and this one
(the person at the desk, on `PostgresSaver`). Each line marked `ok` has been checked; the first claim that does not
hold ends the story with exit code 1.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, StateSnapshot
from travel_desk import Desk, Trip, travel_desk

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.embedded import EmbeddedPostgres

Graph: TypeAlias = CompiledStateGraph[Trip, Desk, Trip, Trip]

THREAD: RunnableConfig = {"configurable": {"thread_id": "trip-to-lisbon"}}
PATIENCE = 60.0  # seconds that a worker may take

WISH = "Three nights in Lisbon, please."
CONVERSATION = [
    WISH,
    "I'll look for a flight and a hotel.",
    "a seat on TP 571 to Lisbon",
    "a room at Casa do Tejo",
    "Your trip: a seat on TP 571 to Lisbon and a room at Casa do Tejo.",
]
HOLDS = {"seat": 240, "room": 330}
DEEDS = ["plan", "book_flight", "search_rooms", "hold_room", "quote", "charge_card"]


class DemoError(Exception):
    """A claim did not hold, or a worker did not do its part."""


async def work(ledger: str, hotel: str) -> None:
    """A worker: begin the trip, or go on from where the store says that it stands; end when a person has to decide."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    desk = Desk(Path(ledger), hotel_answers=hotel == "answers")
    async with AsyncPostgresSaver.from_conn_string(os.environ["CHECKPOINT_STORE_URL"]) as saver:
        begun = await saver.aget_tuple(THREAD) is not None
        wish: Trip = {"messages": [HumanMessage(WISH)]}
        # durability="sync": a step begins only when the checkpoint before it is in the database.
        graph = travel_desk(saver)
        trip = await graph.ainvoke(None if begun else wish, THREAD, context=desk, durability="sync")
        if "__interrupt__" in trip:
            say(f"     process {os.getpid()} | approval     asks a person, and exits")


def end_with_parent() -> None:
    """Wait for the end of stdin: the process that started this one is gone, and must not leave a worker behind."""
    os.read(0, 1)
    os._exit(1)


def tell(url: str, folder: Path) -> None:
    """The story, act by act."""
    with PostgresSaver.from_conn_string(url) as saver:
        saver.setup()
        say("A PostgreSQL server is running, and saver.setup() has migrated its empty database.")
        graph, desk = travel_desk(saver), Desk(folder / "ledger")
        a_worker_is_killed(url, saver, graph, desk)
        another_worker_goes_on(url, graph, desk)
        a_person_approves(graph, desk)
        back_in_time(graph, desk, rehearsal=Desk(folder / "rehearsal"))
    say("\nNo state was lost, and nothing that was finished was done again.")


def a_worker_is_killed(url: str, saver: PostgresSaver, graph: Graph, desk: Desk) -> None:
    """Act 1: kill a worker while it is inside `hold_room`, and look at what it leaves behind."""
    title("1. A worker plans a trip, and is killed in the middle of a step")
    with worker(url, desk, "does-not-answer") as process:
        wait_until(lambda: counted(desk, "started")["hold_room"] == 1, "started hold_room", process)
        wait_until(lambda: "holds" in pending_writes(saver), "stored what book_flight did", process)
        process.kill()
        process.wait(PATIENCE)
    say(f"     process {process.pid} | hold_room    waits for a hotel that does not answer ...   kill -9 {process.pid}")

    stored = Counter(found.config["configurable"]["checkpoint_ns"] for found in saver.list(THREAD))
    trip = graph.get_state(THREAD, subgraphs=True)
    hotel = next(task.state for task in trip.tasks if isinstance(task.state, StateSnapshot))
    namespace = hotel.config["configurable"]["checkpoint_ns"]
    held = pending_writes(saver).get("holds")
    say("\n   What PostgreSQL holds at this moment:")
    say(f"     the trip        {stored['']} checkpoints, the newest of them before {' and '.join(trip.next)}")
    say(f"     its subgraph    {stored[namespace]} checkpoints, the newest of them before {' and '.join(hotel.next)}")
    say(f"     pending writes  of book_flight, which was finished in a step that was not: holds = {held}\n")
    check(process.returncode == -signal.SIGKILL, "the worker died of SIGKILL: it had no chance to save anything")
    check(stored == {"": 3, namespace: 3}, "every checkpoint up to the kill is there, those of the subgraph too")
    check(trip.next == ("hotel",), "the store knows which branch of the step is missing")
    check(hotel.next == ("hold_room",), "and how far the subgraph had come within it")
    check(held == {"seat": 240}, "the seat that the finished branch holds is not forgotten")


def another_worker_goes_on(url: str, graph: Graph, desk: Desk) -> None:
    """Act 2: the same code in a new process goes on inside the subgraph, and ends where a person has to decide."""
    title("2. Another worker goes on where the first one died")
    with worker(url, desk, "answers") as process:
        process.wait(PATIENCE)
    say()
    trip = graph.get_state(THREAD)
    done = [deed.step for deed in desk.deeds() if deed.pid == process.pid and deed.stage == "finished"]
    check(process.returncode == 0, "the second worker ended by itself")
    check(done == ["hold_room", "quote"], "it did what was missing and nothing else: hold_room, then quote")
    check(trip.values.get("holds") == HOLDS, "the dead worker's seat and this one's room came together")
    check(said(trip) == CONVERSATION, "the conversation is complete and in order")
    check(trip.next == ("approval",) and len(trip.interrupts) == 1, "the trip waits for a person, in no process at all")


def a_person_approves(graph: Graph, desk: Desk) -> None:
    """Act 3: this process finds the question in the database and answers it."""
    title("3. A person approves")
    question = graph.get_state(THREAD).interrupts[0].value
    say(f"     {question['text']} {question['total']} EUR?  -  approve")
    graph.invoke(Command(resume="approve"), THREAD, context=desk, durability="sync")

    trip = graph.get_state(THREAD)
    begun, finished = counted(desk, "started"), counted(desk, "finished")
    say("\n   The ledger of the outside world, over all three processes:")
    say("     deed          begun  finished")
    for deed in begun:
        say(f"     {deed:<12}  {begun[deed]:>5}  {finished[deed]:>8}{'   hit by the kill' * (begun[deed] == 2)}")
    say()
    check(question["total"] == 570, "the question came out of the database")
    check(trip.next == () and trip.values.get("outcome") == "booked", "the trip is booked")
    check(finished == dict.fromkeys(DEEDS, 1), "each deed was finished exactly once: one seat, one room, one charge")
    check(begun == {**finished, "hold_room": 2}, "only the deed that the kill hit was begun twice")


def back_in_time(graph: Graph, desk: Desk, rehearsal: Desk) -> None:
    """Act 4: go back to the question, answer it otherwise on a branch of its own, and look at both branches."""
    title("4. Back in time: what if the answer had been no?")
    before, deeds = history(graph), desk.deeds()
    asked = next(found for found in before if found.next == ("approval",))
    say(f"     back to checkpoint {name(asked.config)}, before the approval; with a ledger for rehearsals")
    # Naming a checkpoint starts a branch there, on which the question is asked anew; the thread goes on with that one.
    graph.invoke(None, asked.config, context=rehearsal, durability="sync")
    say("     the same question  -  decline")
    graph.invoke(Command(resume="decline"), THREAD, context=rehearsal, durability="sync")

    after = history(graph)
    say(f"\n   The history of the thread, {len(after)} checkpoints:")
    for line in tree(after):
        say(f"     {line}")
    say()
    branch = [found for found in after if name(found.config) not in {name(old.config) for old in before}]
    ends = [found for found in after if not found.next]
    outcomes = {end.values.get("decision"): end.values.get("outcome") for end in ends}
    check(len(before) == 7, "the first run left 7 checkpoints: its input, and one after each of 6 steps")
    check(list(map(told, after[:7])) == list(map(told, before)), "the first branch is as it was")
    check(name(branch[0].parent_config) == name(asked.config), "the second branch grows out of the question")
    check(outcomes == {"approve": "booked", "decline": "released"}, "both outcomes stand side by side")
    whole = [end.values.get("holds") == HOLDS and said(end) == CONVERSATION for end in ends]
    check(all(whole), "and each has the whole conversation and all that was held")
    check(desk.deeds() == deeds, "the rehearsal added no deed to the ledger of the outside world")


def history(graph: Graph) -> list[StateSnapshot]:
    """Every checkpoint of the thread, oldest first."""
    return list(graph.get_state_history(THREAD))[::-1]


def tree(found: list[StateSnapshot]) -> Iterator[str]:
    """The checkpoints as lines of a tree that branches where the history does."""
    children = defaultdict(list)
    for snapshot in found:
        children[name(snapshot.parent_config)].append(snapshot)

    def grow(snapshot: StateSnapshot, first: str, rest: str) -> Iterator[str]:
        step, values = (snapshot.metadata or {}).get("step", 0), snapshot.values
        waits = f"before {' and '.join(snapshot.next)}" if snapshot.next else f"the end: {values.get('outcome')}"
        answer = f", the answer was {values['decision']}" if snapshot.next and "decision" in values else ""
        yield f"{first}{step:>2}  {name(snapshot.config)}  {waits}{answer}"
        heirs = children[name(snapshot.config)]
        for heir in heirs:
            if len(heirs) == 1:
                yield from grow(heir, rest, rest)
            elif heir is heirs[-1]:
                yield from grow(heir, rest + " `- ", rest + "    ")
            else:
                yield from grow(heir, rest + " |- ", rest + " |  ")

    return grow(found[0], "", "")


def said(snapshot: StateSnapshot) -> list[str]:
    """The conversation that a checkpoint holds."""
    return [message.content for message in snapshot.values.get("messages", [])]


def told(snapshot: StateSnapshot) -> tuple[Any, ...]:
    """What a checkpoint says, for comparing it with itself at another time."""
    return name(snapshot.config), name(snapshot.parent_config), snapshot.values, snapshot.metadata, snapshot.next


def name(config: RunnableConfig | None) -> str:
    """The start of a checkpoint's id: the time it was made, to the microsecond."""
    return str(config["configurable"]["checkpoint_id"])[:18] if config else "the beginning"


def pending_writes(saver: PostgresSaver) -> dict[str, Any]:
    """What tasks of the step under way have already stored, by channel."""
    newest = saver.get_tuple(THREAD)
    return {channel: value for _, channel, value in newest.pending_writes or []} if newest else {}


def counted(desk: Desk, stage: str) -> Counter[str]:
    """How often each deed was started, or finished."""
    return Counter(deed.step for deed in desk.deeds() if deed.stage == stage)


@contextmanager
def worker(url: str, desk: Desk, hotel: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, gone at the end of the block whatever happens in it."""
    with subprocess.Popen(
        [sys.executable, __file__, str(desk.ledger), hotel],
        env={**os.environ, "CHECKPOINT_STORE_URL": url},
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the worker
    ) as process:
        try:
            yield process
        except subprocess.TimeoutExpired:
            raise DemoError(f"worker {process.pid} did not end within {PATIENCE:.0f} seconds") from None
        finally:
            process.kill()


def wait_until(happened: Callable[[], bool], what: str, process: subprocess.Popen[bytes]) -> None:
    """Poll until the worker has got somewhere."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if process.poll() is not None:
            raise DemoError(f"worker {process.pid} exited with code {process.returncode} before it {what}")
        if time.monotonic() > deadline:
            raise DemoError(f"worker {process.pid} had not {what} after {PATIENCE:.0f} seconds")
        time.sleep(0.02)


def check(holds: bool, claim: str) -> None:
    """Print a claim that holds; end the demo at one that does not."""
    if not holds:
        raise DemoError(f"this does not hold: {claim}")
    say(f"   ok  {claim}")


def title(text: str) -> None:
    """Begin an act."""
    say(f"\n{text}\n{'-' * len(text)}")


def say(line: str = "") -> None:
    """Print at once, so that lines of several processes stay in order."""
    print(line, flush=True)


def main() -> int:
    """Tell the story on a server of its own. Returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a plain `kill` cleans up like Ctrl-C
    try:
        with TemporaryDirectory(prefix="checkpoint-store-demo-") as folder, EmbeddedPostgres() as server:
            try:
                tell(server.url, Path(folder))
            finally:
                # What is left to do is to clean up: a second Ctrl-C must not cut that short.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
    except KeyboardInterrupt:
        return 130
    except DemoError as failure:
        print(f"\nDEMO FAILED: {failure}", file=sys.stderr)
        return 1
    except Exception:
        traceback.print_exc()
        print("\nDEMO FAILED: something that the story needs is missing, see above", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(work(*sys.argv[1:])) if sys.argv[1:] else main())
