"""A process that packs messages while other threads change them in place: python -m tests.faults.packing.

It takes how many times to do so, and prints how many messages and lists of them it has packed and read again.
"""

from __future__ import annotations

import random
import sys
import threading

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from checkpoint_store.serde import messages
from tests.faults.changing import change_message

SERDE = JsonPlusSerializer()


def change_fields(chat: list[AnyMessage], ended: threading.Event) -> None:
    """Change what messages hold, until it is ended."""
    chance = random.Random(0)
    while not ended.is_set():
        for message in chat[:3]:
            change_message(message, chance.randrange(1, 50))


def change_depths(chat: list[AnyMessage], ended: threading.Event) -> None:
    """Change what is deep inside of messages, and the list that they are in, until it is ended."""
    chance = random.Random(1)
    while not ended.is_set():
        size = chance.randrange(1, 50)
        for message in chat[:3]:
            message.additional_kwargs["deep"] = deep = {"a": [{"b": list(range(size))}]}
            deep["a"] += [{f"{number}": ["x" * number] for number in range(size)}] * size
            del deep["a"][: size // 2]
        chat[3:] = chat[:3] * chance.randrange(5)


def main(rounds: str) -> None:
    chat: list[AnyMessage] = [
        HumanMessage([{"type": "text", "text": "why?"}], id="h"),
        AIMessage("", id="a", tool_calls=[{"name": "find", "args": {"a": {"b": ["c"]}}, "id": "c"}]),
        ToolMessage("x", tool_call_id="c", artifact={"rows": [["y"]]}, id="t"),
    ]
    sys.setswitchinterval(1e-6)  # threads take turns wherever they can
    ended = threading.Event()
    changing = [threading.Thread(target=change, args=(chat, ended)) for change in (change_fields, change_depths)]
    for thread in changing:
        thread.start()
    packed = 0
    try:
        for _ in range(int(rounds)):
            for message in chat:
                fields = message.__dict__.copy()
                try:
                    blob = messages._packb(fields, None, messages._EXACT)
                except TypeError:
                    continue  # one was changed to what is not plain
                packed += list(messages._unpackb(blob)) == list(fields)
            try:
                blob = messages._packed(chat)
            except (RuntimeError, TypeError, ValueError):
                continue  # Pydantic may refuse what changes in its hands
            packed += type(messages.loads_typed(SERDE, "msgpack", blob)) is list
        if not all(thread.is_alive() for thread in changing):
            packed = 0
    finally:
        ended.set()
        for thread in changing:
            thread.join()
    sys.stdout.write(f"{packed}\n")


if __name__ == "__main__":
    main(sys.argv[1])
