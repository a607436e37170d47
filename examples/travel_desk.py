"""A travel desk: the LangGraph agent that `survive_kill.py` kills, resumes and sends back in time.

    plan ──┬── book_flight ────────────────────────┬── quote ── approval ──┬── charge_card
           └── hotel: search_rooms ── hold_room ───┘            (a person) └── release

Nothing here knows about the store: a graph needs no change to be checkpointed. There is no network and no LLM; the
model follows a script, and each deed in the outside world is a line in a ledger, so that deeds can be counted later.
"""

from __future__ import annotations

import json
import operator
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import Command, interrupt


class Deed(NamedTuple):
    """One line of the ledger."""

    pid: int
    step: str
    stage: str  # "started" or "finished"


@dataclass(frozen=True)
class Desk:
    """What a run needs besides its state: the ledger of the outside world, and whether the hotel answers the phone."""

    ledger: Path
    hotel_answers: bool = True

    @contextmanager
    def deed(self, step: str, outcome: str) -> Iterator[None]:
        """Enter a deed in the ledger when it starts, and again when it is finished."""
        self._enter(step, "started")
        yield
        self._enter(step, "finished")
        print(f"     process {os.getpid()} | {step:<12} {outcome}", flush=True)

    def deeds(self) -> list[Deed]:
        """Everything done so far, by whichever process, oldest first."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [Deed(*json.loads(line)) for line in lines]

    def _enter(self, step: str, stage: str) -> None:
        # One short write in append mode: whole lines even from two threads, and in the file when the process is killed.
        with self.ledger.open("a", buffering=1) as ledger:
            ledger.write(json.dumps([os.getpid(), step, stage]) + "\n")


class ScriptedModel(BaseChatModel):
    """Stands in for an LLM: first asks for two tools at once, then sums up what they answered."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        answers = [str(message.content) for message in messages if isinstance(message, ToolMessage)]
        if answers:
            reply = AIMessage("Your trip: " + " and ".join(answers) + ".")
        else:
            reply = AIMessage(
                "I'll look for a flight and a hotel.",
                tool_calls=[
                    {"name": "book_flight", "args": {"to": "Lisbon"}, "id": "call-flight"},
                    {"name": "hotel", "args": {"city": "Lisbon", "nights": 3}, "id": "call-hotel"},
                ],
            )
        return ChatResult(generations=[ChatGeneration(message=reply)])


MODEL = ScriptedModel()


class HotelState(TypedDict, total=False):
    """The state of the subgraph; `messages` and `holds` are shared with the graph around it."""

    messages: Annotated[list[AnyMessage], add_messages]
    holds: Annotated[dict[str, int], operator.or_]
    call: str
    rooms: dict[str, int]


class Trip(TypedDict, total=False):
    """The state of a trip, as it stands in the store after every step."""

    messages: Annotated[list[AnyMessage], add_messages]
    holds: Annotated[dict[str, int], operator.or_]
    total: int
    decision: str
    outcome: str


def plan(state: Trip, runtime: Runtime[Desk]) -> Trip:
    """Ask the model what to do."""
    with runtime.context.deed("plan", "asked the model: a flight and a hotel are needed"):
        return {"messages": [MODEL.invoke(state["messages"])]}


def tools_to_call(state: Trip) -> list[str]:
    """Run every tool that the model asked for, in parallel."""
    return [call["name"] for call in calls(state["messages"])]


def calls(messages: list[AnyMessage]) -> list[ToolCall]:
    """The tool calls of the newest message that has any."""
    return next(m.tool_calls for m in reversed(messages) if isinstance(m, AIMessage) and m.tool_calls)


def book_flight(state: Trip, runtime: Runtime[Desk]) -> Trip:
    """The branch that is finished when the process dies."""
    call = next(call for call in calls(state["messages"]) if call["name"] == "book_flight")
    seat = f"a seat on TP 571 to {call['args']['to']}"
    with runtime.context.deed("book_flight", f"held {seat}, 240 EUR"):
        return {"messages": [ToolMessage(seat, tool_call_id=call["id"])], "holds": {"seat": 240}}


def search_rooms(state: HotelState, runtime: Runtime[Desk]) -> HotelState:
    """The first step of the subgraph."""
    call = next(call for call in calls(state["messages"]) if call["name"] == "hotel")
    with runtime.context.deed("search_rooms", f"found two hotels with rooms for {call['args']['nights']} nights"):
        return {"call": call["id"] or "", "rooms": {"Casa do Tejo": 330, "Grande Hotel": 720}}


def hold_room(state: HotelState, runtime: Runtime[Desk]) -> HotelState:
    """The step in whose middle the process dies: the hotel does not pick up the phone."""
    name, price = min(state["rooms"].items(), key=lambda room: room[1])
    with runtime.context.deed("hold_room", f"held a room at {name}, {price} EUR"):
        if not runtime.context.hotel_answers:
            time.sleep(120)
            raise TimeoutError("the hotel does not answer")
        return {"messages": [ToolMessage(f"a room at {name}", tool_call_id=state["call"])], "holds": {"room": price}}


def quote(state: Trip, runtime: Runtime[Desk]) -> Trip:
    """Both branches meet here: let the model sum up, and add up the prices."""
    total = sum(state["holds"].values())
    with runtime.context.deed("quote", f"asked the model to sum up: {total} EUR"):
        return {"messages": [MODEL.invoke(state["messages"])], "total": total}


def approval(state: Trip) -> Command[Literal["charge_card", "release"]]:
    """Wait for a person: for a second or for a month, in no process at all."""
    decision = interrupt({"text": state["messages"][-1].content, "total": state["total"]})
    return Command(update={"decision": decision}, goto="charge_card" if decision == "approve" else "release")


def charge_card(state: Trip, runtime: Runtime[Desk]) -> Trip:
    """The deed that must never happen twice."""
    with runtime.context.deed("charge_card", f"charged {state['total']} EUR to the card"):
        return {"outcome": "booked"}


def release(state: Trip, runtime: Runtime[Desk]) -> Trip:
    """Give back what is held."""
    with runtime.context.deed("release", f"gave back: {' and '.join(state['holds'])}"):
        return {"outcome": "released"}


def travel_desk(checkpointer: BaseCheckpointSaver[str]) -> CompiledStateGraph[Trip, Desk, Trip, Trip]:
    """The whole graph, with its state kept by `checkpointer`."""
    hotel = StateGraph(HotelState, context_schema=Desk)
    hotel.add_sequence([search_rooms, hold_room])
    hotel.add_edge(START, "search_rooms")

    desk = StateGraph(Trip, context_schema=Desk)
    desk.add_node(plan)
    desk.add_node(book_flight)
    desk.add_node("hotel", hotel.compile())
    desk.add_node(quote)
    desk.add_node(approval)
    desk.add_node(charge_card)
    desk.add_node(release)
    desk.add_edge(START, "plan")
    desk.add_conditional_edges("plan", tools_to_call, ["book_flight", "hotel"])
    desk.add_edge(["book_flight", "hotel"], "quote")
    desk.add_edge("quote", "approval")
    desk.add_edge("charge_card", END)
    desk.add_edge("release", END)
    return desk.compile(checkpointer=checkpointer)
