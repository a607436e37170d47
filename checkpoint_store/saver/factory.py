"""The two savers: how they are made, set up and closed. What they do is in `contract` and `lifecycle`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    create_async_engine,
)

from checkpoint_store.database.async_backend import AsyncBackend
from checkpoint_store.database.group_commit import AsyncPipeline
from checkpoint_store.errors import InvalidOption
from checkpoint_store.saver.retention import RetentionMixin
from checkpoint_store.serde.arguments import flag, number, seconds
from checkpoint_store.url import check_pooler, connector, engine_arguments, pool_options, pooler_options

S = TypeVar("S", bound=RetentionMixin)


def on_own_engine(
    kind: Callable[..., S], conn_string: str, pipeline: bool, engine_options: dict[str, Any], **options: Any
) -> S:
    """Make a saver of a kind, with an engine that ends with it."""
    shares_commits = flag(pipeline, "pipeline")
    engine = _engine(conn_string, options["pooler"], engine_options)
    saver = kind(engine, AsyncPipeline(engine) if shares_commits else None, **options)
    cast("AsyncBackend", saver._backend).owned = True
    return saver


def _engine(conn_string: str, pooler: str | None, options: dict[str, Any]) -> AsyncEngine:
    url, connect_args = engine_arguments(conn_string)
    check_pooler(pooler)
    if pooler:
        connect_args.update(pooler_options()["connect_args"])
    connect_args["async_creator_fn"] = connector(conn_string)
    for name, least in (("pool_size", 0), ("max_overflow", -1)):
        if name in options:
            number(options[name], name, least)
    if options.get("pool_timeout") is not None:
        seconds(options["pool_timeout"], "pool_timeout")
    options = {**options, "connect_args": {**connect_args, **options.get("connect_args", {})}}
    try:
        return create_async_engine(url, **pool_options(options))
    except (TypeError, ArgumentError) as error:
        raise InvalidOption(f"an option for the engine can't be used: {error}") from error
