"""The engine of a saver that is made from a connection string."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store.database.backend import AsyncBackend
from checkpoint_store.database.group_commit import AsyncPipeline
from checkpoint_store.errors import InvalidOption
from checkpoint_store.options import ConnectionOptions, SaverOptions, suggestion
from checkpoint_store.saver.retention import RetentionMixin
from checkpoint_store.serde.arguments import flag, number, seconds
from checkpoint_store.url import check_pooler, connector, engine_arguments, pool_options, pooler_options

S = TypeVar("S", bound=RetentionMixin)


def on_own_engine(
    kind: Callable[..., S],
    conn_string: str,
    pipeline: bool,
    serde: SerializerProtocol | None,
    options: ConnectionOptions,
) -> S:
    """Make a saver of a class, with an engine that is disposed when the saver is closed."""
    shares_commits = flag(pipeline, "pipeline")
    of_saver = {name: value for name, value in options.items() if name in SaverOptions.__optional_keys__}
    of_engine = {name: value for name, value in options.items() if name not in of_saver}
    engine = _engine(conn_string, options.get("pooler"), of_engine)
    saver = kind(engine, AsyncPipeline(engine) if shares_commits else None, serde=serde, **of_saver)
    cast("AsyncBackend", saver._backend).own()
    return saver


def _engine(conn_string: str, pooler: str | None, options: Mapping[str, Any]) -> AsyncEngine:
    url, connect_args = engine_arguments(conn_string)
    check_pooler(pooler)
    if pooler:
        connect_args.update(pooler_options()["connect_args"])
    # Of a pooler it would be asked in vain, or set for whoever gets the server's connection next.
    connect_args["async_creator_fn"] = connector(conn_string, generic_plans=not pooler)
    for name, minimum in (("pool_size", 0), ("max_overflow", -1)):
        if name in options:
            number(options[name], name, minimum)
    if options.get("pool_timeout") is not None:
        seconds(options["pool_timeout"], "pool_timeout")
    try:
        return create_async_engine(
            url, **pool_options({**options, "connect_args": {**connect_args, **options.get("connect_args", {})}})
        )
    except (TypeError, ArgumentError) as error:
        unknown = [name for name in options if name not in ConnectionOptions.__optional_keys__]
        hint = suggestion(unknown[0], ConnectionOptions) if unknown else ""
        raise InvalidOption(f"an option for the engine can't be used: {error}{hint}") from error
