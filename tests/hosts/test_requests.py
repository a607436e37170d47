"""Requests of a FastAPI application that hold a session, as many as its pool has connections and more."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from httpx import ASGITransport, AsyncClient
from langgraph.graph import START, MessagesState, StateGraph
from sqlalchemy import create_engine, exc, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from checkpoint_store import AsyncPostgresSaver, PostgresSaver
from checkpoint_store.errors import Unavailable


def answer(state: MessagesState) -> Any:
    return {"messages": [("ai", "Hello.")]}


BUILDER = StateGraph(MessagesState).add_node(answer).add_edge(START, "answer")
SAID: Any = {"messages": [("user", "Hello")]}


def thread(number: int) -> Any:
    return {"configurable": {"thread_id": str(number)}}


@pytest.mark.parametrize("pool_size", [3, 40])
async def test_twenty_at_once_fail_with_the_way_out_unless_the_pool_is_large_enough(url: str, pool_size: int) -> None:
    """FastAPI's `Depends(get_session)`, and a saver on the same pool: the page on engines has the other ways."""
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=pool_size, max_overflow=0, pool_timeout=2
    )
    agent = BUILDER.compile(checkpointer=AsyncPostgresSaver(engine))
    app = FastAPI()
    begun = asyncio.Barrier(min(pool_size, 20))

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session:
            yield session

    @app.exception_handler(Unavailable)
    async def unavailable(_: Any, error: Unavailable) -> JSONResponse:
        return JSONResponse(str(error), 503)

    @app.exception_handler(exc.TimeoutError)
    async def timed_out(*_: Any) -> JSONResponse:
        return JSONResponse("those that wait for a session", 504)

    @app.post("/{number}")
    async def chat(number: int, session: Annotated[AsyncSession, Depends(get_session)]) -> int:
        await session.scalar(select(func.now()))
        if number < begun.parties:
            await begun.wait()
        return len((await agent.ainvoke(SAID, thread(number)))["messages"])

    async with AsyncClient(transport=ASGITransport(app), base_url="http://service") as client:
        answers = await asyncio.gather(*[client.post(f"/{number}") for number in range(20)])
    await engine.dispose()

    failed = [answer.json() for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} <= {200, 503, 504}
    assert bool(failed) == (pool_size == 3)
    for text in failed:
        assert "All 3 connections of the pool are held by the application itself" in text
        assert "Use saver.bind(session)" in text
        assert "an engine of its own" in text


def test_the_same_of_threads_on_a_sync_engine(url: str) -> None:
    """As in Flask: the one connection of the pool is the session's, so the saver gets none; bound it needs none."""
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0, pool_timeout=0.5
    )
    saver = PostgresSaver(engine)
    with Session(engine) as session:
        session.scalar(select(func.now()))
        with pytest.raises(Unavailable, match=r"no connection became free"):
            BUILDER.compile(checkpointer=saver).invoke(SAID, thread(1))
        bound = BUILDER.compile(checkpointer=saver.bind(session))
        assert len(bound.invoke(SAID, thread(1), durability="exit")["messages"]) == 2
        session.commit()
    engine.dispose()
