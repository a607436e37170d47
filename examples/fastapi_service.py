"""A FastAPI service: its agent lives on the application's engine, and in its transaction where that matters.

Run it on a database that lasts as long as it does, and talk to it from another terminal:

    python -m checkpoint_store.embedded uvicorn --app-dir examples fastapi_service:app

    curl -N -X POST 'localhost:8000/tables/7/chat?say=Hello'    # the reply, word by word
    curl -X POST 'localhost:8000/tables/7/orders?dish=Soup'     # an order and a checkpoint in one transaction
    curl localhost:8000/ready
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import StreamWriter
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver, migrations
from checkpoint_store.errors import NotSetUp

orders = Table("orders", MetaData(), Column("id", Integer, primary_key=True), Column("dish", Text, nullable=False))


class SoldOut(Exception):
    """The agent refuses an order."""


async def waiter(state: MessagesState, writer: StreamWriter) -> dict[str, Any]:
    """The agent; an LLM would stand here."""
    said = str(state["messages"][-1].content)
    if "unicorn" in said.lower():
        raise SoldOut
    reply = f"{said} is number {len(state['messages']) // 2 + 1} of what you said."
    for word in reply.split():
        writer(word)
    return {"messages": [("ai", reply)]}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Make the engine once, for the application and its agent; whoever made it disposes of it."""
    url = make_url(os.environ["CHECKPOINT_STORE_URL"]).set(drivername="postgresql+asyncpg")
    app.state.engine = engine = create_async_engine(url, pool_pre_ping=True)
    app.state.saver = saver = AsyncPostgresSaver(engine)
    await saver.setup()  # one SELECT, where the deploy pipeline has migrated
    async with engine.begin() as conn:
        await conn.run_sync(orders.metadata.create_all)
    graph = StateGraph(MessagesState).add_node(waiter).add_edge(START, "waiter")
    app.state.agent = graph.compile(checkpointer=saver)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


def thread(table: int) -> RunnableConfig:
    return {"configurable": {"thread_id": f"table {table}"}}


@app.post("/tables/{table}/chat")
async def chat(table: int, say: str) -> StreamingResponse:
    """Stream the reply as server-sent events; no connection is held between two steps of the agent."""

    async def events() -> AsyncIterator[str]:
        async for word in app.state.agent.astream({"messages": [("user", say)]}, thread(table), stream_mode="custom"):
            yield f"data: {json.dumps(word)}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


@app.post("/tables/{table}/orders", status_code=201)
async def order(table: int, dish: str) -> dict[str, Any]:
    """Take an order: its row and what the agent remembers of it are committed together, or neither is."""
    try:
        async with app.state.engine.begin() as conn:
            number = await conn.scalar(insert(orders).values(dish=dish).returning(orders.c.id))
            agent = app.state.agent.copy({"checkpointer": app.state.saver.bind(conn)})
            chat = await agent.ainvoke({"messages": [("user", dish)]}, thread(table), durability="exit")
    except SoldOut:
        raise HTTPException(409, f"{dish} is sold out") from None
    return {"order": number, "reply": chat["messages"][-1].content}


@app.get("/ready")
async def ready() -> dict[str, bool]:
    """Tell a load balancer whether the database is there, with the tables that this version works on."""
    try:
        async with app.state.engine.connect() as conn:
            await conn.run_sync(migrations.check)
    except NotSetUp as error:
        raise HTTPException(503, str(error)) from None
    return {"ready": True}
