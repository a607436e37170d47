"""`plan_cache_mode`: engines of ours ask for generic plans, and a setting of the user's has precedence."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from sqlalchemy import text

from checkpoint_store import AsyncPostgresSaver

FORCE_CUSTOM = "-c plan_cache_mode=force_custom_plan"


async def mode_of(url: str, **options: object) -> str:
    async with AsyncPostgresSaver.from_conn_string(url, **options) as saver:  # type: ignore[arg-type]
        await saver.setup()
        async with saver._backend._engine.connect() as conn:  # type: ignore[attr-defined]
            return str(await conn.scalar(text("SHOW plan_cache_mode")))


def with_parameter(url: str, parameter: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{parameter}"


async def test_an_engine_of_ours_asks_for_generic_plans(url: str) -> None:
    """Also next to other options of the URL."""
    assert await mode_of(url) == "force_generic_plan"
    assert await mode_of(with_parameter(url, f"options={quote('-c statement_timeout=7000')}")) == "force_generic_plan"


@pytest.mark.parametrize("parameter", ["plan_cache_mode=force_custom_plan", f"options={quote(FORCE_CUSTOM)}"])
async def test_a_setting_in_the_url_has_precedence(url: str, parameter: str) -> None:
    """In each of the two ways to write it."""
    assert await mode_of(with_parameter(url, parameter)) == "force_custom_plan"


@pytest.mark.parametrize("settings", [{"plan_cache_mode": "force_custom_plan"}, {"options": FORCE_CUSTOM}])
async def test_a_setting_in_the_arguments_has_precedence(url: str, settings: dict[str, str]) -> None:
    """`connect_args` are the user's too."""
    assert await mode_of(url, connect_args={"server_settings": settings}) == "force_custom_plan"


async def test_a_pooler_is_not_asked(url: str) -> None:
    """With `pooler="transaction"` a setting of the session would be refused, or be the next client's."""
    assert await mode_of(url, pooler="transaction") == "auto"


async def test_a_login_that_is_refused_for_another_reason_is_not_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong database, or a full server, would only be asked twice."""
    import asyncpg

    tried: list[object] = []
    connect = asyncpg.connect

    async def counted(**arguments: object) -> object:
        tried.append(arguments)
        return await connect(**arguments)

    monkeypatch.setattr(asyncpg, "connect", counted)
    wrong = url.replace("/test_", "/missing_")
    with pytest.raises(Exception, match="does not exist"):
        await mode_of(wrong, retry_timeout=0)
    assert len(tried) == 1
