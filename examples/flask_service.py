"""A Flask service, sync from end to end: its agent works in the application's SQLAlchemy session.

It needs psycopg (`pip install 'psycopg[binary]'`). Run it on a database that lasts as long as it does:

    python -m checkpoint_store.embedded flask --app examples/flask_service.py run

    curl -X POST 'localhost:5000/tables/7/orders?dish=Soup'    # an order and a checkpoint in one transaction
    curl localhost:5000/tables/7                               # what was said at the table
"""

import os
from typing import Any

from flask import Flask, abort, request
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from checkpoint_store import PostgresSaver


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    dish: Mapped[str]


class SoldOut(Exception):
    """The agent refuses an order."""


def waiter(state: MessagesState) -> dict[str, Any]:
    """The agent; an LLM would stand here."""
    dish = str(state["messages"][-1].content)
    if "unicorn" in dish.lower():
        raise SoldOut
    return {"messages": [("ai", f"{dish}, coming right up.")]}


def thread(table: int) -> RunnableConfig:
    return {"configurable": {"thread_id": f"table {table}"}}


def create_app() -> Flask:
    app = Flask(__name__)
    url = make_url(os.environ["CHECKPOINT_STORE_URL"]).set(drivername="postgresql+psycopg")
    app.extensions["engine"] = engine = create_engine(url)
    saver = PostgresSaver(engine)  # the application's pool; no event loop, no thread of its own
    saver.setup()
    Base.metadata.create_all(engine)
    agent = StateGraph(MessagesState).add_node(waiter).add_edge(START, "waiter").compile(checkpointer=saver)

    @app.post("/tables/<int:table>/orders")
    def order(table: int) -> tuple[dict[str, Any], int]:
        """Take an order: its row and what the agent remembers of it are committed together, or neither is."""
        dish = request.args["dish"]
        try:
            with Session(engine) as session, session.begin():
                session.add(Order(dish=dish))
                bound = agent.copy({"checkpointer": saver.bind(session)})
                chat = bound.invoke({"messages": [HumanMessage(dish)]}, thread(table), durability="exit")
        except SoldOut:
            abort(409, f"{dish} is sold out")
        return {"reply": chat["messages"][-1].content}, 201

    @app.get("/tables/<int:table>")
    def said(table: int) -> list[str]:
        """Tell what has been said at a table."""
        return [message.content for message in agent.get_state(thread(table)).values.get("messages", [])]

    return app
