"""Aegra's application for its own end-to-end tests, without a model's provider: `uvicorn aegra_server:app`.

CHECKPOINT_STORE_NIGHTLY_SAVER is `stock`, which leaves its saver, or `ours`: `AsyncPostgresSaver` on its SQLAlchemy
engine.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

from aegra_api.core.database import DatabaseManager
from langchain import chat_models
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage, HumanMessage, message_chunk_to_message
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool

from checkpoint_store import AsyncPostgresSaver

CALLS_A_TOOL = re.compile("weather|forecast|search")
IS_SLOW = re.compile("long|slowly|another")


class Model(BaseChatModel):
    """A model that answers in a few words, a long story slowly, and calls its tool when the weather is asked for."""

    tool: str = ""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_: Any) -> Model:  # type: ignore[override]
        return self.model_copy(update={"tool": convert_to_openai_tool(tools[0])["function"]["name"]})

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        whole = reduce(add, self._stream(messages)).message
        return ChatResult(generations=[ChatGeneration(message=message_chunk_to_message(whole))])

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        question, name = str(messages[-1].content).lower(), f"run-{uuid.uuid4()}"
        if self.tool and isinstance(messages[-1], HumanMessage) and CALLS_A_TOOL.search(question):
            call = tool_call_chunk(name=self.tool, args='{"query": "it"}', id=f"call_{uuid.uuid4().hex}", index=0)
            yield ChatGenerationChunk(message=AIMessageChunk("", id=name, tool_call_chunks=[call]))
            return
        for _word in range(5):
            time.sleep(2 * bool(IS_SLOW.search(question)))
            yield ChatGenerationChunk(message=AIMessageChunk("word ", id=name))


def init_chat_model(*_: object, **__: object) -> Model:
    """Return the model, whatever an example asks for."""
    return Model()


chat_models.init_chat_model = init_chat_model  # type: ignore[assignment]

if os.environ["CHECKPOINT_STORE_NIGHTLY_SAVER"] == "ours":
    their_initialize = DatabaseManager.initialize

    async def initialize(self: DatabaseManager) -> None:
        """Replace the saver that Aegra has made; its graphs and routes ask the manager for it."""
        await their_initialize(self)
        self._checkpointer = AsyncPostgresSaver(self.get_engine())
        await self._checkpointer.setup()

    DatabaseManager.initialize = initialize

from aegra_api.main import app  # noqa: E402 - it must find all of the above

__all__ = ["app"]
