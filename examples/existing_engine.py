"""I already have an SQLAlchemy engine: the saver works on it, beside the application's own table on the same pool.

Uses the database that CHECKPOINT_STORE_URL names, or an embedded one. Run it twice on the same: the chat goes on.
"""

import asyncio
import operator
import os
from typing import Annotated, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, StateGraph
from sqlalchemy import Column, Integer, MetaData, Table, Text, func, insert, make_url, select
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.embedded import EmbeddedPostgres

orders = Table("example_orders", MetaData(), Column("id", Integer, primary_key=True), Column("dish", Text))


class Chat(TypedDict):
    said: Annotated[list[str], operator.add]


async def main(url: str) -> None:
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=5)
    saver = AsyncPostgresSaver(engine)
    await saver.setup()
    async with engine.begin() as connection:
        await connection.run_sync(orders.metadata.create_all)

    async def take_order(state: Chat) -> Chat:
        async with engine.begin() as connection:
            await connection.execute(insert(orders).values(dish=state["said"][-1]))
        return {"said": ["Coming right up."]}

    graph = StateGraph(Chat).add_node(take_order).add_edge(START, "take_order").compile(checkpointer=saver)
    table_7: RunnableConfig = {"configurable": {"thread_id": "table-7"}}
    chat = await graph.ainvoke({"said": ["Soup, please."]}, table_7)

    async with engine.connect() as connection:
        count = await connection.scalar(select(func.count()).select_from(orders))
    print(f"The application's table has {count} order(s); the thread of table 7 has {len(chat['said'])} messages.")
    await engine.dispose()  # The saver closes only what it has opened itself, and here that is nothing.


if __name__ == "__main__":
    if "CHECKPOINT_STORE_URL" in os.environ:
        asyncio.run(main(os.environ["CHECKPOINT_STORE_URL"]))
    else:
        with EmbeddedPostgres() as server:
            asyncio.run(main(server.url))
