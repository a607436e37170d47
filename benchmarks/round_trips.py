"""A proxy in a thread, for a server's unix socket, that counts round trips by reading the protocol.

A round trip is a message, or any number of them, that the client sends and then waits for the answer to. It begins with
what the client sends when every `Sync` and query of that connection is answered by its `ReadyForQuery`; what it sends
before that, as in a pipeline, belongs to the same one. What a connection's start takes is not counted.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

from benchmarks.proxy import SOCKET, Watcher, listening

ANSWERED_BY_READY = frozenset(b"QS")
TERMINATE = ord("X")
"""Has no answer."""
READY = ord("Z")


class RoundTrips:
    """The number of round trips so far, of all connections."""

    def __init__(self) -> None:
        self.count = 0


class Conversation:
    """One connection: who has spoken last, and how many answers are owed."""

    def __init__(self, total: RoundTrips) -> None:
        self._total = total
        self._client, self._server = Messages(has_startup=True), Messages(has_startup=False)
        self._started = False
        self._owed = 0
        self._answered = False

    def asked(self, piece: bytes) -> None:
        """Take note of what the client sends."""
        kinds = [*self._client.kinds(piece)]
        if self._started and self._answered and not self._owed and kinds != [TERMINATE]:
            self._total.count += 1
            self._answered = False
        self._owed += sum(kind in ANSWERED_BY_READY for kind in kinds)

    def answered(self, piece: bytes) -> None:
        """Take note of what the server sends."""
        ready = sum(kind == READY for kind in self._server.kinds(piece))
        self._answered = True
        self._owed -= ready if self._started else 0
        self._started = self._started or ready > 0


class Messages:
    """The kinds of the messages in a stream that comes in pieces."""

    def __init__(self, *, has_startup: bool) -> None:
        self._rest = bytearray()
        self._untyped = has_startup

    def kinds(self, piece: bytes) -> Iterator[int]:
        """Yield the kind of each message that begins in what has come and is complete."""
        self._rest += piece
        while len(self._rest) > 4:
            start = 0 if self._untyped else 1
            end = start + int.from_bytes(self._rest[start : start + 4])
            if len(self._rest) < max(end, start + 4):
                return
            if not self._untyped:
                yield self._rest[0]
            self._untyped = False
            del self._rest[:end]


@contextmanager
def counting(url: str) -> Iterator[tuple[str, RoundTrips]]:
    """The URL of the same server through the proxy, and its count."""
    there, total, ready, end = make_url(url), RoundTrips(), threading.Event(), asyncio.Event()

    def watch() -> tuple[Watcher, Watcher]:
        conversation = Conversation(total)
        return conversation.asked, conversation.answered

    async def serve(listen: Path) -> None:
        async with listening(Path(str(there.query["host"])) / SOCKET, listen, 0, watch):
            ready.set()
            await end.wait()

    with (
        tempfile.TemporaryDirectory(prefix="counting") as directory,
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
    ):
        loop = runner.get_loop()
        thread = threading.Thread(target=lambda: runner.run(serve(Path(directory) / SOCKET)), daemon=True)
        thread.start()
        ready.wait()
        try:
            yield there.update_query_dict({"host": directory}).render_as_string(hide_password=False), total
        finally:
            loop.call_soon_threadsafe(end.set)
            thread.join()
