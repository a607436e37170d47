"""A server further away: a proxy for its unix socket, in a process of its own, that delays each direction.

python -m benchmarks.proxy UPSTREAM LISTEN SECONDS
"""

from __future__ import annotations

import asyncio
import selectors
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from sqlalchemy import make_url

SOCKET = ".s.PGSQL.5432"

Watcher = Callable[[bytes], None]


@contextmanager
def proxied(url: str, *, one_way: float) -> Iterator[str]:
    """The URL of the same server with every round trip `2 * one_way` seconds longer."""
    there = make_url(url)
    with tempfile.TemporaryDirectory(prefix="far") as directory:
        command = [sys.executable, "-m", "benchmarks.proxy", f"{there.query['host']}/{SOCKET}", f"{directory}/{SOCKET}"]
        with subprocess.Popen([*command, str(one_way)], stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout
                process.stdout.readline()
                yield there.update_query_dict({"host": directory}).render_as_string(hide_password=False)
            finally:
                process.terminate()


async def serve(upstream: Path, listen: Path, one_way: float) -> None:
    """Pass connections on until the process ends; prints a line once it listens."""
    async with listening(upstream, listen, one_way):
        print("listening", flush=True)
        await asyncio.Event().wait()


@asynccontextmanager
async def listening(
    upstream: Path, listen: Path, one_way: float, watch: Callable[[], tuple[Watcher, Watcher]] | None = None
) -> AsyncIterator[None]:
    """Listen on a socket and pass connections on.

    Args:
        upstream: The server's socket.
        listen: The socket to listen on.
        one_way: Seconds by which each direction is delayed.
        watch: Returns the functions that see the pieces of a new connection, the client's and the server's.
    """

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked, answered = watch() if watch else (None, None)
        far_reader, far_writer = await asyncio.open_unix_connection(upstream)
        with suppress(asyncio.CancelledError):  # when the proxy ends
            await asyncio.gather(
                forward(reader, far_writer, one_way, asked), forward(far_reader, writer, one_way, answered)
            )

    async with await asyncio.start_unix_server(accept, listen):
        yield


async def forward(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_way: float, seen: Watcher | None
) -> None:
    """Write what is read, each piece `one_way` seconds after it came; pieces under way don't wait for each other."""
    loop = asyncio.get_running_loop()
    with suppress(ConnectionError):
        while piece := await reader.read(1 << 16):
            if seen:
                seen(piece)
            loop.call_later(one_way, writer.write, piece)
    loop.call_later(one_way, writer.close)


if __name__ == "__main__":
    # epoll's timeouts are whole milliseconds, select's are not.
    chosen = asyncio.SelectorEventLoop(selectors.SelectSelector())
    with suppress(KeyboardInterrupt):
        chosen.run_until_complete(serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
