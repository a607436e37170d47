"""The examples run, as they are, and do what they say."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from httpx import ASGITransport, AsyncClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """Import an example from its file."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def count(url: str, table: str) -> int:
    with psycopg.connect(url) as conn:
        row = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


@pytest.fixture
async def client(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncClient]:
    """A client of the FastAPI service, which is running on an empty database."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", empty_url)
    app: Any = example("fastapi_service").app
    async with app.router.lifespan_context(app):
        async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
            yield client
        assert app.state.engine.pool.checkedout() == 0


async def test_the_fastapi_service_takes_orders_and_remembers_the_chat(client: AsyncClient, empty_url: str) -> None:
    """An order and the agent's checkpoint are there together; the next call goes on with the conversation."""
    first = await client.post("/tables/7/orders", params={"dish": "Soup"})
    assert (first.status_code, first.json()) == (201, {"order": 1, "reply": "Soup is number 1 of what you said."})
    assert (count(empty_url, "orders"), count(empty_url, "checkpoints")) == (1, 1)

    async with client.stream("POST", "/tables/7/chat", params={"say": "Thanks"}) as streamed:
        assert streamed.headers["content-type"].startswith("text/event-stream")
        events = [line async for line in streamed.aiter_lines() if line]
    assert events == [f'data: "{word}"' for word in ["Thanks", "is", "number", "2", "of", "what", "you", "said."]]

    other = await client.post("/tables/8/orders", params={"dish": "Fish"})
    assert other.json() == {"order": 2, "reply": "Fish is number 1 of what you said."}


async def test_the_fastapi_service_commits_both_or_neither(client: AsyncClient, empty_url: str) -> None:
    """The agent refuses: the order's row, inserted before, is gone with the checkpoint, and the thread is as it was."""
    await client.post("/tables/7/orders", params={"dish": "Soup"})
    before = count(empty_url, "orders"), count(empty_url, "checkpoints"), count(empty_url, "checkpoint_writes")

    refused = await client.post("/tables/7/orders", params={"dish": "Unicorn"})

    assert (refused.status_code, refused.json()) == (409, {"detail": "Unicorn is sold out"})
    assert (
        count(empty_url, "orders"),
        count(empty_url, "checkpoints"),
        count(empty_url, "checkpoint_writes"),
    ) == before
    after = await client.post("/tables/7/orders", params={"dish": "Bread"})
    assert after.json()["reply"] == "Bread is number 2 of what you said."


async def test_the_fastapi_service_tells_whether_it_is_ready(client: AsyncClient, empty_url: str) -> None:
    """At head it is; with tables of an older revision it is not, and says what to do."""
    ready = await client.get("/ready")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})

    with psycopg.connect(empty_url) as conn:
        conn.execute("UPDATE checkpoint_store_version SET version_num = 'cs01_baseline'")
    not_ready = await client.get("/ready")
    assert not_ready.status_code == 503
    assert "cs01_baseline" in not_ready.json()["detail"]


def test_the_flask_service_commits_both_or_neither(empty_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order and the agent's checkpoint are there together; where the agent refuses, neither is."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", empty_url)
    app = example("flask_service").create_app()
    client = app.test_client()

    served = client.post("/tables/7/orders?dish=Soup")
    assert (served.status_code, served.json) == (201, {"reply": "Soup, coming right up."})
    held = count(empty_url, "orders"), count(empty_url, "checkpoints")
    refused = client.post("/tables/7/orders?dish=Unicorn")
    assert refused.status_code == 409
    assert (count(empty_url, "orders"), count(empty_url, "checkpoints")) == held == (1, 1)
    client.post("/tables/7/orders?dish=Bread")
    said = client.get("/tables/7").json
    assert said == ["Soup", "Soup, coming right up.", "Bread", "Bread, coming right up."]
    assert app.extensions["engine"].pool.checkedout() == 0
    app.extensions["engine"].dispose()


async def test_the_existing_engines_example_goes_on_when_it_is_run_again(
    empty_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its first lines say."""
    for _ in range(2):
        await example("existing_engine").main(empty_url)

    said = "The application's table has {} order(s); the thread of table 7 has {} messages.\n"
    assert capsys.readouterr().out == said.format(1, 2) + said.format(2, 4)
