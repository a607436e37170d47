"""Whatever a connection string is: it is taken apart, or refused by a message that gives no password away."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import create_async_engine

from checkpoint_store.errors import InvalidURL
from checkpoint_store.url import engine_arguments

SECRET = "planted5ecret"

characters = st.characters(codec=None) | st.sampled_from("@:/?#[]%,;&= \t\n\\'\"\x00\ud800\u2100\uff0e\uff11")
texts = st.text(characters, max_size=12)
names = st.sampled_from(
    [
        "sslmode", "ssl", "options", "host", "port", "user", "password", "passfile", "service", "target_session_attrs",
        "connect_timeout", "timeout", "command_timeout", "statement_cache_size", "prepared_statement_cache_size",
        "channel_binding", "application_name", "krbsrvname", "direct_tls",
    ]
)  # fmt: skip
numbers = st.sampled_from(["0", "-1", "1e999", "nan", "inf", "٣", "0x10", "1" * 5000])


@st.composite
def urls(draw: st.DrawFn) -> str:
    """What begins as a URL, with parts as they should be and as they should not."""
    scheme = draw(
        st.sampled_from(["postgresql", "postgres", "postgresql+asyncpg", "postgresql+psycopg", "mysql"]) | texts
    )
    user = draw(st.sampled_from(["", "user", "user:"]) | texts)
    password = draw(st.sampled_from(["", SECRET, f"{SECRET}/x", f"x?{SECRET}", f"x#{SECRET}", f"x@{SECRET}"]))
    password = draw(st.sampled_from([password, quote(password, safe="")]))
    host = draw(st.sampled_from(["localhost", "[::1]", "[::1", "a,b", "a:1,b:2", "", "/tmp", "%2Ftmp"]) | texts)  # noqa: S108
    port = draw(st.sampled_from(["", ":5432", ":0", ":65536", ":-1", ":x", ":\uff15\uff14"]))
    path = draw(st.sampled_from(["", "/", "/app", "/a/b", "/%00", "/%ff", "/app;x"]) | texts)
    query = draw(st.lists(st.tuples(names | texts, numbers | texts), max_size=3))
    if draw(st.booleans()):
        scheme, user, host, port, path = "postgresql", "user", "localhost", draw(st.sampled_from(["", ":5432"])), "/app"
    tail = "&".join(f"{name}={value}" for name, value in query)
    return f"{scheme}://{user}:{password}@{host}{port}{path}" + (f"?{tail}" if query else "")


def test_any_url(fuzz: Any) -> None:
    """An engine can be made of what is taken, and what is refused is told without the password."""

    @fuzz(urls() | texts | st.none() | st.binary() | st.integers())
    def _(conn_string: Any) -> str:
        try:
            url, arguments = engine_arguments(conn_string)
        except InvalidURL as error:
            message = str(error)
        else:
            create_async_engine(url, connect_args=arguments)
            assert url.password is None
            return "taken"
        assert SECRET not in message
        assert len(message) < 2000
        return "refused"

    assert min(fuzz.endings["taken"], fuzz.endings["refused"]) > 3
