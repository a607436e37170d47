"""Bad input: one clear error that says what was wrong and what to do, before anything is written."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from sqlalchemy import create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from checkpoint_store import AsyncPipeline, AsyncPostgresSaver, PostgresSaver, encryption, errors

Call = Callable[[AsyncPostgresSaver, Any], Awaitable[Any]]


async def read_list(saver: AsyncPostgresSaver, config: Any) -> list[Any]:
    return [item async for item in saver.alist(config)]


CALLS: dict[str, Call] = {
    "aget_tuple": lambda saver, config: saver.aget_tuple(config),
    "aget": lambda saver, config: saver.aget(config),
    "alist": read_list,
    "aput": lambda saver, config: saver.aput(config, empty_checkpoint(), {}, {}),
    "aput_writes": lambda saver, config: saver.aput_writes(config, [("a", 1)], "task"),
    "history": lambda saver, config: saver.aget_delta_channel_history(config=config, channels=["a"]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"metadata": {}}, r'config must have a "configurable" dict, .*; it is a dict'),
        ({"configurable": None}, r'must have a "configurable" dict'),
        ("t1", r'config must have a "configurable" dict, .*; it is a str'),
        ({"configurable": {"checkpoint_ns": ""}}, r'config\["configurable"\] has no "thread_id"'),
        (
            {"configurable": {"thread_id": 42}},
            r'"thread_id"\] must be a non-empty string, not 42 \(int\). Use str',
        ),
        ({"configurable": {"thread_id": None}}, r'"thread_id"\] must be a non-empty string, not None \(NoneType\)'),
        ({"configurable": {"thread_id": ""}}, r'"thread_id"\] is empty'),
        ({"configurable": {"thread_id": "a\x00b"}}, r"holds neither NUL nor lone surrogates"),
        ({"configurable": {"thread_id": "\ud800"}}, r"holds neither NUL nor lone surrogates"),
        ({"configurable": {"thread_id": "x" * 3000}}, r"thread_id.* has 3,000 bytes; .*Use a shorter one"),
        ({"configurable": {"thread_id": "\U0001f600" * 700}}, r"thread_id.* has 2,800 bytes"),
        (
            {"configurable": {"thread_id": "t", "checkpoint_ns": 7}},
            r'"checkpoint_ns"\] must be a string, not 7 \(int\)',
        ),
        (
            {"configurable": {"thread_id": "t", "checkpoint_id": 7}},
            r'"checkpoint_id"\] must be a string, not 7 \(int\)',
        ),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, dict) else "",
)
async def test_an_unusable_config_is_named(saver: AsyncPostgresSaver, call: Call, config: Any, message: str) -> None:
    """Every method that takes a config checks it the same way."""
    with pytest.raises(errors.InvalidConfig, match=message) as caught:
        await call(saver, config)

    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("thread_id", [None, 42, "", "\x00", "x" * 10_000])
async def test_an_unusable_thread_id_is_refused_by_delete_thread(saver: AsyncPostgresSaver, thread_id: Any) -> None:
    """Deleting takes ids that could have been stored, and no others."""
    with pytest.raises(errors.InvalidConfig, match="thread_id"):
        await saver.adelete_thread(thread_id)


async def test_key_parts_that_are_too_long_together_are_refused(saver: AsyncPostgresSaver) -> None:
    """PostgreSQL's own error would speak of index rows; ours names the longest part."""
    long = {"configurable": {"thread_id": "t" * 1500, "checkpoint_ns": "n" * 1400}}
    with pytest.raises(
        errors.InvalidConfig, match=r"thread_id 't.*has 1,500 bytes; thread_id, checkpoint_ns, checkpoint_id"
    ):
        await saver.aput(long, empty_checkpoint(), {}, {})  # type: ignore[arg-type]
    checkpoint: Any = {**empty_checkpoint(), "channel_values": {"c" * 2500: [1]}, "channel_versions": {"c" * 2500: "1"}}
    with pytest.raises(errors.InvalidConfig, match=r"channel 'c.*has 2,500 bytes"):
        await saver.aput({"configurable": {"thread_id": "t" * 100}}, checkpoint, {}, checkpoint["channel_versions"])


async def test_the_longest_key_that_is_let_through_fits_the_index(saver: AsyncPostgresSaver) -> None:
    """The limit is not only below PostgreSQL's: what passes it is stored, incompressible text included."""
    import random

    letters = random.Random(7)
    checkpoint = empty_checkpoint()
    rest = len(checkpoint["id"])
    thread = "".join(chr(letters.randrange(0x4E00, 0x9FFF)) for _ in range((2600 - rest) // 3))
    stored = await saver.aput({"configurable": {"thread_id": thread, "checkpoint_ns": ""}}, checkpoint, {}, {})

    assert await saver.aget(stored) is not None


async def test_writes_without_a_checkpoint_id_are_refused(saver: AsyncPostgresSaver) -> None:
    """Writes belong to a checkpoint."""
    with pytest.raises(errors.InvalidConfig, match='has no "checkpoint_id"; writes belong to a checkpoint'):
        await saver.aput_writes({"configurable": {"thread_id": "t", "checkpoint_ns": ""}}, [("a", 1)], "task")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": -1}, "limit must be a number of checkpoints, 0 or more, or None for all, not -1"),
        ({"limit": "5"}, "limit must be .*, not '5'"),
        ({"before": {"configurable": {"thread_id": "t"}}}, 'before.* has no "checkpoint_id"'),
        ({"before": "x"}, "before must have .*; it is a str"),
        ({"filter": {"a": {1, 2}}}, r"filter\['a'\] is a set"),
        ({"filter": {"a": float("nan")}}, r"filter\['a'\] is not finite"),
    ],
)
async def test_unusable_list_arguments_are_named(saver: AsyncPostgresSaver, arguments: Any, message: str) -> None:
    """At the call, not when the first page is read."""
    with pytest.raises(errors.InvalidConfig, match=message):
        saver.alist(None, **arguments)


async def test_tables_that_are_not_set_up_are_named_with_the_way_out(empty_url: str) -> None:
    """Forgetting setup() is the first thing that happens to everyone."""
    async with AsyncPostgresSaver.from_conn_string(empty_url) as saver:
        for name, call in CALLS.items():
            config = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}}
            with pytest.raises(
                errors.NotSetUp, match=r'relation "\w+" does not exist. Run `setup\(\)` once, or'
            ) as caught:
                await call(saver, config)
            assert caught.value.__cause__ is not None, name


async def test_an_unreachable_server_is_named_without_the_password(unused_port: int) -> None:
    """The driver's error is the cause; the message has host and reason and masks the password."""
    url = f"postgresql://me:secret@127.0.0.1:{unused_port}/app"
    async with AsyncPostgresSaver.from_conn_string(url, retry_timeout=0.2) as saver:
        with pytest.raises(
            errors.Unavailable, match=f"127.0.0.1:{unused_port}/app.*Check that the server runs"
        ) as caught:
            await saver.aget_tuple({"configurable": {"thread_id": "t"}})
        assert isinstance(caught.value.__cause__, OSError)
        assert "secret" not in str(caught.value)
        with pytest.raises(errors.Unavailable):
            await saver.setup()


async def test_a_database_that_does_not_exist_is_named(url: str) -> None:
    """Not a traceback of the driver's: which database, and what to check."""
    name = urlsplit(url).path
    async with AsyncPostgresSaver.from_conn_string(url.replace(name, "/nope")) as saver:
        with pytest.raises(errors.Unavailable, match='database "nope" does not exist'):
            await saver.aget_tuple({"configurable": {"thread_id": "t"}})


async def test_an_unknown_parameter_in_the_url_is_named(url: str) -> None:
    """Asyncpg takes it for a server setting; the error says which parameter the server does not know."""
    async with AsyncPostgresSaver.from_conn_string(f"{url}&bogus=1") as saver:
        with pytest.raises(errors.InvalidURL, match='unrecognized configuration parameter "bogus"'):
            await saver.aget_tuple({"configurable": {"thread_id": "t"}})


async def test_a_pool_without_a_free_connection_is_named(url: str) -> None:
    """A pool that is too small says so, instead of hanging."""
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args={"dsn": url}, pool_size=1, max_overflow=0, pool_timeout=0.1
    )
    async with engine.connect():
        with pytest.raises(errors.Unavailable, match="no connection became free in time"):
            await AsyncPostgresSaver(engine).aget_tuple({"configurable": {"thread_id": "t"}})
    await engine.dispose()


async def test_wrong_types_for_conn_are_told_what_is_wanted() -> None:
    """The message says what came, what is wanted, and how to start from a URL."""
    for conn in (None, "postgresql://localhost/app", object(), create_engine("sqlite://")):
        for kind in (AsyncPostgresSaver, PostgresSaver):
            with pytest.raises(
                TypeError, match=r"conn is a .*; it must be an AsyncEngine .* use from_conn_string\(\)"
            ) as caught:
                kind(conn)  # type: ignore[arg-type]
            assert isinstance(caught.value, errors.CheckpointStoreError)


async def test_a_connection_that_is_not_open_is_refused(engine: AsyncEngine) -> None:
    """`engine.connect()` without `async with` or `await` is an easy slip."""
    with pytest.raises(errors.UnusableConnection, match=r"not open. Use `async with engine.connect"):
        AsyncPostgresSaver(engine.connect())


async def test_a_pipe_that_does_not_fit_is_refused_with_the_reason(engine: AsyncEngine) -> None:
    """Neither another library's, nor another engine's, nor one beside a caller's own connection."""
    with pytest.raises(errors.UnusableConnection, match="pipe must be an AsyncPipeline, None or False, not a object"):
        AsyncPostgresSaver(engine, object())  # type: ignore[arg-type]
    with pytest.raises(errors.UnusableConnection, match="engine must be the savers' AsyncEngine, not str"):
        AsyncPipeline("postgresql://localhost")  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidOption, match="flushes must be a number, 1 or more, not 0"):
        AsyncPipeline(engine, flushes=0)
    another = create_async_engine("postgresql+asyncpg://localhost/app")
    with pytest.raises(errors.InvalidOption, match="made for another engine"):
        AsyncPostgresSaver(engine, AsyncPipeline(another))
    async with engine.connect() as conn:
        with pytest.raises(ValueError, match="can't be used with a connection"):
            AsyncPostgresSaver(conn, AsyncPipeline(engine))


@pytest.mark.parametrize("conn_string", ["mysql://localhost/app", "postgresql+psycopg2://localhost/app", "nonsense"])
async def test_an_unknown_driver_is_refused_before_connecting(conn_string: str) -> None:
    """From both savers, when the block is entered."""
    with pytest.raises(errors.InvalidURL):
        async with AsyncPostgresSaver.from_conn_string(conn_string):
            pass
    with pytest.raises(errors.InvalidURL), PostgresSaver.from_conn_string(conn_string):
        pass


@pytest.mark.parametrize(
    ("conn_string", "message"),
    [
        (None, "connection string is None; .* Is the variable set"),
        ("", "connection string is empty; .* Is the variable set"),
        (make_url("postgresql://app:secret@db/app"), "must be text, not a URL object .*render_as_string"),
    ],
)
def test_what_is_no_text_of_a_url_is_told_apart(conn_string: Any, message: str) -> None:
    """A variable that is not set is the commonest reason; a URL object looks right when it is shown."""
    with pytest.raises(errors.InvalidURL, match=message) as caught, PostgresSaver.from_conn_string(conn_string):
        pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_size": "5"}, "pool_size must be a number, 0 or more, not '5'"),
        ({"max_overflow": None}, "max_overflow must be a number, -1 or more, not None"),
        ({"pool_timeout": -1}, "pool_timeout must be a time in seconds, 0 or more, not -1"),
        ({"nonsense": 1}, "an option for the engine can't be used: Invalid argument.* 'nonsense'"),
    ],
)
def test_options_of_the_engine_are_checked_before_it_is_used(options: dict[str, Any], message: str) -> None:
    """SQLAlchemy would tell of most of them when the pool is exhausted, or never."""
    with (
        pytest.raises(errors.InvalidOption, match=message),
        PostgresSaver.from_conn_string("postgresql://db", **options),
    ):
        pass


@pytest.mark.parametrize("saver", [AsyncPostgresSaver, PostgresSaver])
def test_an_unknown_option_is_named_with_the_known_one_that_is_like_it(saver: Any) -> None:
    """A TypeError, as for any function's keyword argument."""
    engine = create_async_engine("postgresql+asyncpg://")
    for options, message in (
        ({"share_page": True}, "'share_page'; did you mean 'share_pages'?"),
        ({"schema": "agents", "colour": 1}, "'colour'"),
    ):
        with pytest.raises(TypeError) as caught:
            saver(engine, **options)
        assert str(caught.value) == f"{saver.__name__}() got an unexpected keyword argument {message}"


@pytest.mark.parametrize(("name", "known"), [("refuse_fork", "refuse_forks"), ("poolsize", "pool_size")])
def test_an_unknown_option_of_a_saver_from_a_url_is_named_with_the_known_one(name: str, known: str) -> None:
    """Whether it was to be the saver's or the engine's."""
    options: Any = {name: 1}
    with (
        pytest.raises(errors.InvalidOption, match=f"Invalid argument.* '{name}'.*; did you mean '{known}'?"),
        PostgresSaver.from_conn_string("postgresql://db", **options),
    ):
        pass


async def test_a_cipher_is_not_taken_for_a_serializer(engine: AsyncEngine) -> None:
    """To leave it out, as is right for what is no serializer at all, would be to store in clear."""
    with pytest.raises(errors.InvalidOption, match=r"Wrap the cipher: EncryptedSerializer\(cipher\)"):
        AsyncPostgresSaver(engine, serde=encryption.KeyRing.aes(b"k" * 32))  # type: ignore[arg-type]


async def test_an_engine_of_another_database_is_not_sent_to_the_sync_saver() -> None:
    """Which would not take it either."""
    with pytest.raises(errors.UnusableConnection) as caught:
        AsyncPostgresSaver(create_engine("sqlite://"))  # type: ignore[arg-type]
    assert "PostgresSaver, which takes it" not in str(caught.value)


def test_keep_is_not_for_a_deletion(sync_saver: PostgresSaver) -> None:
    """Who says how many to keep does not expect the whole thread to go."""
    with pytest.raises(errors.InvalidOption, match="keep must be 1 with strategy 'delete', which keeps nothing, not 3"):
        sync_saver.prune(["t"], strategy="delete", keep=3)


async def test_a_closed_saver_says_so(url: str) -> None:
    """Use after the block is an error, not a silent reconnect on a pool that nobody disposes."""
    async with AsyncPostgresSaver.from_conn_string(url) as saver:
        pass
    with pytest.raises(errors.Closed):
        await saver.aget_tuple({"configurable": {"thread_id": "t"}})


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_what_is_refused_shows_no_value(saver: AsyncPostgresSaver) -> None:
    """Neither metadata nor what somebody takes for a config: a message names the place and the kind."""
    secret = "SSN 078-05-1120"
    config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    calls: list[Awaitable[Any]] = [
        saver.aput(config, empty_checkpoint(), {"note": f"{secret}\ud800"}, {}),
        saver.aput(config, empty_checkpoint(), {"number": 78051120 * 10**4000}, {}),
        saver.aget_tuple({"password": secret}),
        read_list(saver, {"configurable": secret}),
    ]
    for call in calls:
        with pytest.raises((errors.InvalidConfig, errors.UnstorableValue)) as refused:
            await call
        assert "SSN" not in str(refused.value)
        assert "78051120" not in str(refused.value)
    with pytest.raises(errors.InvalidConfig) as refused:
        saver.alist(config, filter=secret)  # type: ignore[arg-type]
    assert "SSN" not in str(refused.value)


async def test_a_parameter_of_libpqs_in_an_engines_url_is_named_with_the_way_out(url: str) -> None:
    """The driver's own word for it is a TypeError."""
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg").update_query_dict({"sslmode": "allow"})
    )
    saver = AsyncPostgresSaver(engine)
    for call in (saver.setup(), saver.aget_tuple({"configurable": {"thread_id": "t"}})):
        with pytest.raises(errors.InvalidURL, match=r"parameter 'sslmode'.*engine_arguments\(url\)"):
            await call
    await engine.dispose()
