"""The number of files and functions that a call passes through, and the size of the package.

    python -m benchmarks.frames             # changes of file, depth, calls and CPU time of each operation
    python -m benchmarks.frames --static    # files, lines, long functions, imports: the package's text alone

For another state of the package, from its checkout: `PYTHONPATH=$PWD python -P path/to/benchmarks/frames.py`.

`benchmarks/counter.py` says how they are counted. An operation's first call in the process builds and compiles its
statements as well, so it has a column of its own; the others are medians of later calls. The checkpoints are
LangGraph's `empty_checkpoint()` with three channels: of an older format, for which `prune` has more to look at.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any
from uuid import uuid4

import grimp
from langgraph.checkpoint.base import Checkpoint, empty_checkpoint
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

import checkpoint_store
from benchmarks import server
from benchmarks.counter import Counter
from checkpoint_store import AsyncPostgresSaver

PACKAGE = Path(str(checkpoint_store.__file__)).parent
CHANNELS = ("messages", "topic", "attempts")
WRITES = [("messages", ["It was shipped on Monday."]), ("attempts", 2)]
NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

COLUMNS = ("changes of file", "depth", "own calls", "calls of SQLAlchemy's", "all calls", "calls of C")
"""Of `Counts`."""

Call = Callable[[], Awaitable[object]]


class Work:
    """The operations of a saver on a small state: a method for each, that prepares a call."""

    def __init__(self, saver: AsyncPostgresSaver) -> None:
        self._saver: Any = saver
        self._last: dict[str, Checkpoint] = {}

    async def setup(self) -> Call:
        return partial(self._saver.setup)

    async def aput(self) -> Call:
        return self._put("chat")

    async def aput_writes(self) -> Call:
        return partial(self._saver.aput_writes, self._config("chat"), WRITES, uuid4().hex)

    async def aget_tuple(self) -> Call:
        await self._fill("read", 6)
        return partial(self._saver.aget_tuple, {"configurable": {"thread_id": "read"}})

    async def alist(self) -> Call:
        return self._list

    async def aprune(self) -> Call:
        thread_id = uuid4().hex
        await self._fill(thread_id, 20)
        return partial(self._saver.aprune, [thread_id], keep=5)

    async def asweep(self) -> Call:
        return partial(self._saver.asweep, older_than=timedelta(days=365))

    async def _list(self) -> None:
        async for _ in self._saver.alist({"configurable": {"thread_id": "read"}}, limit=5):
            pass

    async def _fill(self, thread_id: str, count: int) -> None:
        """Store checkpoints in a new thread, each with one pending write."""
        for number in range(0 if thread_id in self._last else count):
            await self._put(thread_id)()
            await self._saver.aput_writes(self._config(thread_id), [("attempts", number)], uuid4().hex)

    def _put(self, thread_id: str) -> Call:
        config, checkpoint = self._config(thread_id), empty_checkpoint()
        checkpoint["channel_values"] = dict(zip(CHANNELS, (["Hello", checkpoint["id"]], "an order", 1), strict=True))
        checkpoint["channel_versions"] = dict.fromkeys(CHANNELS, f"{time.time_ns():032}.{0:016}")
        self._last[thread_id] = checkpoint
        metadata = {"source": "loop", "step": 1, "parents": {}}
        return partial(self._saver.aput, config, checkpoint, metadata, checkpoint["channel_versions"])

    def _config(self, thread_id: str) -> dict[str, Any]:
        last = {"checkpoint_id": self._last[thread_id]["id"]} if thread_id in self._last else {}
        return {"configurable": {"thread_id": thread_id, "checkpoint_ns": "", **last}}


OPERATIONS = ("setup", "aput", "aput_writes", "aget_tuple", "alist", "aprune", "asweep")


async def _calls(url: str, calls: int) -> list[Sequence[object]]:
    counter, rows = Counter(), list[Sequence[object]]()
    await counter.check()
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"))
    saver = AsyncPostgresSaver(engine)
    await saver.setup()
    work = Work(saver)
    for name in OPERATIONS:
        prepare = getattr(work, name)
        first, times = await counter.count(await prepare()), []
        for _ in range(calls):
            call = await prepare()
            started = time.process_time()
            await call()
            times.append(time.process_time() - started)
        later = [await counter.count(await prepare()) for _ in range(calls)]
        medians = [statistics.median_low(each) for each in zip(*later, strict=True)]
        rows.append((f"`{name}`", first.changes, *medians, round(statistics.median(times) * 1e6)))
    await saver.aclose()
    await engine.dispose()
    return rows


def _sizes() -> list[Sequence[object]]:
    trees = {file: ast.parse(file.read_text()) for file in sorted(PACKAGE.rglob("*.py"))}
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    depths = [_nesting(function) for function in functions]
    arrows, floors = _imports()
    return [
        ("files at the top of the package", sum(file.parent == PACKAGE for file in trees)),
        ("folders there", len({file.relative_to(PACKAGE).parts[0] for file in trees if file.parent != PACKAGE})),
        ("modules", len(trees)),
        ("lines", sum(len(file.read_text().splitlines()) for file in trees)),
        ("functions", len(functions)),
        ("functions over 50 lines", sum(_lines(function) > 50 for function in functions)),
        ("the same, without docstrings", sum(_lines(function) - _docstring(function) > 50 for function in functions)),
        ("deepest nesting of statements in a function", max(depths)),
        ("functions with a nesting over 4", sum(depth > 4 for depth in depths)),
        ("uses of `Any`", sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)),
        ("imports between rooms (files and folders at the top)", arrows),
        ("floors: rooms in the longest chain of imports", floors),
    ]


def _lines(node: ast.stmt) -> int:
    return int(node.end_lineno or 0) - node.lineno + 1


def _docstring(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return _lines(function.body[0]) if ast.get_docstring(function) is not None else 0


def _nesting(node: ast.AST) -> int:
    """The deepest nesting of compound statements; an `elif` is as deep as its `if`, a function within starts anew."""
    chained = node.orelse if isinstance(node, ast.If) and [type(one) for one in node.orelse] == [ast.If] else []
    inner = [one for one in ast.iter_child_nodes(node) if one not in chained and not isinstance(one, FUNCTIONS)]
    return max([max(map(_nesting, inner), default=0) + isinstance(node, NESTING), *map(_nesting, chained)])


def _imports() -> tuple[int, int | str]:
    """The number of imports between rooms, and of rooms in the longest chain of them."""
    graph = grimp.build_graph(PACKAGE.name, cache_dir=None)
    below: dict[str, set[str]] = {_room(module): set() for module in graph.modules}
    for module in graph.modules:
        room = _room(module)
        below[room] |= {_room(one) for one in graph.find_modules_directly_imported_by(module)} - {room}
    arrows, floors = sum(map(len, below.values())), dict[str, int]()
    try:
        for room in TopologicalSorter(below).static_order():
            floors[room] = 1 + max((floors[one] for one in below[room]), default=0)
    except CycleError as error:
        return arrows, f"none, a circle: {' <- '.join(error.args[1])}"
    return arrows, max(floors.values())


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _print_table(*rows: Sequence[object]) -> None:
    header, *_ = rows
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows[1:]):
        print(f"| {' | '.join(map(str, row))} |")


def main() -> None:
    """Print the counts of each operation, or the sizes of the package."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames", description="Count files, frames and lines.")
    parser.add_argument("--static", action="store_true", help="sizes and imports of the package; needs no server")
    parser.add_argument("--calls", type=int, default=30, help="of each operation, with and without counting")
    parser.add_argument("--server", metavar="URL", help="a server on which databases may be created; default: its own")
    options = parser.parse_args()
    if options.static:
        _print_table((f"`{PACKAGE.name}`", ""), *_sizes())
        return
    with server.running(options.server) as running:
        rows = asyncio.run(_calls(running.create_database("frames"), options.calls))
    _print_table(("", "changes of file, first call", *COLUMNS, "CPU, us"), *rows)


if __name__ == "__main__":
    main()
