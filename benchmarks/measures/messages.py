"""Messages: how long it takes to encode and decode one, for our savers and for LangGraph's serializer as it is."""

from __future__ import annotations

import time

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from benchmarks.bench import Bench, in_turns, undisturbed
from benchmarks.contenders import Contender, Ours, in_place
from benchmarks.report import Result, Samples, Target
from benchmarks.workload import Chat
from checkpoint_store.serde import messages

TARGETS = {"encoded": 0.33, "decoded": 0.36}
WINDOW = 20


class LangGraphsSerializer(Contender):
    """LangGraph's serializer by itself, without a saver."""

    name = "LangGraph's serializer"
    role = "reference"


def measure(bench: Bench) -> list[Result]:
    """Microseconds of CPU time per message, in lists of 20."""
    serde, ours = JsonPlusSerializer(), Ours()
    steps = [Chat(f"chat-{number}", window=WINDOW).steps(1)[0] for number in range(50)]
    stretches = [step.checkpoint["channel_values"]["messages"] for step in steps]

    async def turn(contender: Contender, _: int) -> list[float]:
        with undisturbed():
            started = time.process_time()
            if contender is ours:
                stored = [messages.dumps_typed(serde, stretch) for stretch in stretches]
            else:
                stored = [serde.dumps_typed(stretch) for stretch in stretches]
            encoded = time.process_time()
            if contender is ours:
                read = [messages.loads_typed(serde, *typed) for typed in stored]
            else:
                read = [serde.loads_typed(typed) for typed in stored]
            decoded = time.process_time()
        assert read == stretches
        return [seconds / len(stretches) / WINDOW * 1e6 for seconds in (encoded - started, decoded - encoded)]

    turns = in_place(in_turns((ours, LangGraphsSerializer()), bench.pick(quick=10, full=50), turn))
    results = []
    for place, (name, ratio) in enumerate(TARGETS.items()):
        samples: Samples = {contender: [[times[place]] for times in rounds] for contender, rounds in turns.items()}
        targets = {"ours": Target(at_most=ratio)}
        results.append(Result(measure=f"a message {name}", unit="us", samples=samples, reference_targets=targets))
    return results
