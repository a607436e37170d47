"""A call that was cancelled while the network was silent is not carried out when that heals, over what is newer."""

from __future__ import annotations

import _thread
import asyncio
import fcntl
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import NullPool, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from tests.faults.bed import PATIENCE_SECONDS, Network

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
CHECKPOINT = empty_checkpoint()
LARGE = 60_000
"""More than the network takes in, and less than the client's system does: the driver has nothing left to send."""


class Silence:
    """A network before the server that falls silent, and an engine behind it whose unsent bytes can be seen."""

    def __init__(self, url: str, network: Network) -> None:
        self.url = url
        self.network = network
        self.drivers: list[Any] = []

    def engine(self, driver: str = "asyncpg", **options: Any) -> AsyncEngine:
        name = {"asyncpg": {"server_settings": {"application_name": "late"}}, "psycopg": {"application_name": "late"}}
        place = make_url(self.network.through(self.url).partition("?")[0]).set(drivername=f"postgresql+{driver}")
        engine = create_async_engine(place, connect_args=name[driver], **options)
        event.listen(engine.sync_engine, "connect", lambda _, record: self.drivers.append(record.driver_connection))
        return engine

    def is_full(self) -> bool:
        """Whether the system has bytes of a client's that it can't send."""
        return any(unsent(driver) > LARGE // 2 for driver in self.drivers)

    def by(self) -> list[Any]:
        """Who stored the checkpoint last, once the server has done with all that came through the network."""
        with psycopg.connect(self.url, autocommit=True) as conn:
            sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'late'"
            for _ in range(PATIENCE_SECONDS * 100):
                if conn.execute(sessions).fetchone() == (0,):
                    return [row[0] for row in conn.execute("SELECT metadata ->> 'by' FROM checkpoints")]
                conn.execute("SELECT pg_sleep(0.01)")
        pytest.fail("sessions are left")


def unsent(driver: Any) -> int:
    transport = driver._transport if hasattr(driver, "_transport") else driver
    fd = transport.get_extra_info("socket").fileno() if hasattr(transport, "get_extra_info") else transport.fileno()
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0" * 4))[0])


async def is_true(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE_SECONDS * 100):
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.01)
    pytest.fail("it has not come to pass")


@pytest.fixture
def silence(url: str) -> Iterator[Silence]:
    with Network.before(url, window=4096) as network:
        yield Silence(url, network)


def metadata(by: str) -> Any:
    return {"by": by, "filler": "x" * (LARGE if by == "cancelled" else 1)}


async def store_newer(url: str) -> None:
    async with AsyncPostgresSaver.from_conn_string(url, poolclass=NullPool) as saver:
        await saver.aput(CONFIG, CHECKPOINT, metadata("newer"), {})


@pytest.mark.parametrize("options", [{}, {"echo": True}], ids=["direct", "watched"])
async def test_a_cancelled_call_is_not_carried_out_late(silence: Silence, options: Any) -> None:
    """What the system has not sent is discarded with the connection; nothing of it waits for the network to heal."""
    engine = silence.engine(**options)
    saver = AsyncPostgresSaver(engine)
    await saver.aput(CONFIG, CHECKPOINT, metadata("first"), {})  # prepared, so that the next one is sent at once
    silence.network.stall()
    call = asyncio.create_task(saver.aput(CONFIG, CHECKPOINT, metadata("cancelled"), {}))
    await is_true(silence.is_full)
    call.cancel()
    await asyncio.wait([call])
    await store_newer(silence.url)
    silence.network.flow()

    assert silence.by() == ["newer"]
    await engine.dispose()


async def test_a_call_cancelled_on_another_loop_has_ended_when_that_is_told(silence: Silence) -> None:
    """A sync saver's async methods cross to a loop of its own."""
    engine = silence.engine()
    saver = PostgresSaver(engine)
    await saver.aput(CONFIG, CHECKPOINT, metadata("first"), {})  # prepared, so that the next one is sent at once
    silence.network.stall()
    call = asyncio.create_task(saver.aput(CONFIG, CHECKPOINT, metadata("cancelled"), {}))
    await is_true(silence.is_full)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert silence.drivers[0].is_closed()
    await store_newer(silence.url)
    silence.network.flow()

    assert silence.by() == ["newer"]
    await saver.aclose()


def test_a_call_that_ctrl_c_interrupts_has_ended_too(silence: Silence) -> None:
    """The connection is closed before KeyboardInterrupt reaches the caller."""
    engine = silence.engine()
    saver = PostgresSaver(engine)
    saver.put(CONFIG, CHECKPOINT, metadata("first"), {})
    silence.network.stall()
    presses = threading.Thread(target=lambda: asyncio.run(is_true(silence.is_full)) or _thread.interrupt_main())
    presses.start()
    with pytest.raises(KeyboardInterrupt):
        saver.put(CONFIG, CHECKPOINT, metadata("cancelled"), {})
    assert silence.drivers[0].is_closed()
    presses.join()
    asyncio.run(store_newer(silence.url))
    silence.network.flow()

    assert silence.by() == ["newer"]
    saver.close()


async def test_psycopg_tells_of_a_cancellation_when_the_server_has_answered(silence: Silence) -> None:
    """It waits: so what is stored afterwards is newer, and stays."""
    engine = silence.engine("psycopg")
    saver = AsyncPostgresSaver(engine)
    await saver.aput(CONFIG, CHECKPOINT, metadata("first"), {})  # prepared, so that the next one is sent at once
    silence.network.stall()
    call = asyncio.create_task(saver.aput(CONFIG, CHECKPOINT, metadata("cancelled"), {}))
    await is_true(silence.is_full)
    call.cancel()
    silence.network.flow()
    await asyncio.wait([call])
    assert call.cancelled()
    await store_newer(silence.url)

    await engine.dispose()
    assert silence.by() == ["newer"]
