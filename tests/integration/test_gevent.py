"""Where gevent has made greenlets of threads: what can't work says what does."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from types import SimpleNamespace
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from checkpoint_store import PostgresSaver
from checkpoint_store.errors import WrongThread

CONFIG: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}

SCRIPT = """
    from gevent import monkey
    monkey.patch_all()

    import sys

    import gevent
    from langgraph.checkpoint.base import empty_checkpoint
    from sqlalchemy import create_engine, make_url

    from checkpoint_store import PostgresSaver
    from checkpoint_store.errors import WrongThread

    def put(saver, number):
        config = {"configurable": {"thread_id": f"t{number}", "checkpoint_ns": ""}}
        return saver.get_tuple(saver.put(config, empty_checkpoint(), {}, {})) is not None

    try:
        on_asyncpg = sys.argv[1].replace("postgresql:", "postgresql+asyncpg:")
        with PostgresSaver.from_conn_string(on_asyncpg) as saver:
            saver.get({"configurable": {"thread_id": "t"}})
    except WrongThread as error:
        print(error)
    saver = PostgresSaver(create_engine(make_url(sys.argv[1]).set(drivername="postgresql+psycopg")))
    print(all(greenlet.get() for greenlet in [gevent.spawn(put, saver, number) for number in range(20)]))
    with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
        print(all(greenlet.get() for greenlet in [gevent.spawn(put, saver, number) for number in range(20)]))
"""


async def test_a_sync_call_points_to_a_sync_engine(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is one thread there, that of the loop too: "another thread" is no advice."""
    gevent = SimpleNamespace(is_module_patched=lambda name: name == "threading")
    with PostgresSaver.from_conn_string(url.replace("postgresql:", "postgresql+asyncpg:")) as saver:

        async def on_its_thread() -> None:
            saver.put(CONFIG, empty_checkpoint(), {}, {})

        saver._backend.check_sync()  # starts its loop
        monkeypatch.setitem(sys.modules, "gevent.monkey", gevent)  # type: ignore[arg-type]
        with pytest.raises(WrongThread, match=r'gevent.*create_engine\("postgresql\+psycopg://'):
            await saver._backend.event_loop.acall(on_its_thread)  # type: ignore[attr-defined]
        monkeypatch.undo()


def test_that_advice_is_right(url: str) -> None:
    """With gevent itself, where it is installed."""
    pytest.importorskip("gevent")
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), url], capture_output=True, text=True, check=False, timeout=60
    )

    said, works, works_from_url = ended.stdout.splitlines()
    assert "gevent" in said
    assert "postgresql+psycopg" in said
    assert works == works_from_url == "True"
