"""The engine of a saver that is made from a connection string."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import URL, AsyncAdaptedQueuePool, Engine, create_engine
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store.errors import InvalidOption, NotInstalled
from checkpoint_store.options import ConnectionOptions, SaverOptions, suggestion
from checkpoint_store.saver.retention import RetentionMixin
from checkpoint_store.serde.arguments import flag, number, seconds
from checkpoint_store.url import check_pooler, connector, engine_arguments, pool_options, pooler_options

S = TypeVar("S", bound=RetentionMixin)
E = TypeVar("E", AsyncEngine, Engine)

_ASYNCPGS = {"command_timeout", "statement_cache_size", "prepared_statement_cache_size", "direct_tls"}
"""Parameters of a URL that psycopg has no counterpart to."""


def on_own_engine(
    kind: Callable[..., S],
    conn_string: str,
    pipeline: bool,
    serde: SerializerProtocol | None,
    options: ConnectionOptions,
    *,
    sync: bool,
) -> S:
    """Make a saver of a class, with an engine that is disposed when the saver is closed."""
    shares_commits = flag(pipeline, "pipeline")
    of_saver = {name: value for name, value in options.items() if name in SaverOptions.__optional_keys__}
    of_engine = {name: value for name, value in options.items() if name not in of_saver}
    engine: AsyncEngine | Engine
    if sync and _is_for_psycopg(conn_string, options):
        engine = _psycopg_engine(conn_string, options.get("pooler"), of_engine)
    else:
        engine = _asyncpg_engine(conn_string, options.get("pooler"), of_engine)
    saver = kind(engine, None if shares_commits else False, serde=serde, **of_saver)
    saver._backend.own()
    return saver


def _is_for_psycopg(conn_string: object, options: Mapping[str, Any]) -> bool:
    """Return whether a sync saver works on psycopg: as its URL says, or else where psycopg can do all that is asked."""
    scheme, _, rest = str(conn_string).partition("://")
    if scheme == "postgresql+psycopg":
        if not _has_psycopg():
            raise NotInstalled('postgresql+psycopg:// needs an extra: pip install "checkpoint-store[psycopg]"')
        return True
    if scheme not in ("postgresql", "postgres") or not _has_psycopg():
        return False
    from checkpoint_store.conninfo.libpq import unknown_to_psycopg

    pool = options.get("poolclass") or type(options.get("pool"))
    is_async = isinstance(pool, type) and issubclass(pool, AsyncAdaptedQueuePool)
    is_async = is_async or isinstance(options.get("read_engine"), AsyncEngine)
    parameters = {name for name, _ in parse_qsl(rest.partition("?")[2], keep_blank_values=True)}
    return not (is_async or parameters & _ASYNCPGS or unknown_to_psycopg(options.get("connect_args") or ()))


def _has_psycopg() -> bool:
    try:
        import psycopg  # noqa: F401 - it needs libpq, which may be missing
    except ImportError:
        return False
    return True


def _psycopg_engine(conn_string: str, pooler: str | None, options: Mapping[str, Any]) -> Engine:
    from checkpoint_store.conninfo.libpq import PsycopgConnector, libpq_arguments

    url, arguments = libpq_arguments(conn_string)
    check_pooler(pooler)
    # At its second execution: many statements come once.
    prepared = pooler_options("psycopg")["connect_args"] if pooler else {"prepare_threshold": 1}
    arguments = {**arguments, **prepared, **(options.get("connect_args") or {})}
    return _made(
        create_engine,
        url,
        {**options, "connect_args": {}, "creator": PsycopgConnector(arguments, generic_plans=not pooler)},
    )


def _asyncpg_engine(conn_string: str, pooler: str | None, options: Mapping[str, Any]) -> AsyncEngine:
    url, connect_args = engine_arguments(conn_string)
    check_pooler(pooler)
    if pooler:
        connect_args.update(pooler_options()["connect_args"])
    # Of a pooler it would be asked in vain, or set for whoever gets the server's connection next.
    connect_args["async_creator_fn"] = connector(conn_string, generic_plans=not pooler)
    return _made(
        create_async_engine, url, {**options, "connect_args": {**connect_args, **options.get("connect_args", {})}}
    )


def _made(create: Callable[..., E], url: URL, options: Mapping[str, Any]) -> E:
    """Make an engine; raise `InvalidOption` if an option can't be used."""
    for name, minimum in (("pool_size", 0), ("max_overflow", -1)):
        if name in options:
            number(options[name], name, minimum)
    if options.get("pool_timeout") is not None:
        seconds(options["pool_timeout"], "pool_timeout")
    try:
        return create(url, **pool_options(options))
    except (TypeError, ArgumentError) as error:
        unknown = [name for name in options if name not in {*ConnectionOptions.__optional_keys__, "creator"}]
        hint = suggestion(unknown[0], ConnectionOptions) if unknown else ""
        raise InvalidOption(f"an option for the engine can't be used: {error}{hint}") from error
