"""The tutorial leads from an empty folder to a service in production, as printed."""

from __future__ import annotations

import importlib.util
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from httpx import ASGITransport, AsyncClient
from sqlalchemy import create_engine, make_url

REPOSITORY = Path(__file__).parents[2]
TUTORIAL = (REPOSITORY / "docs/tutorial.md").read_text()


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.+?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)
    return found


def test_the_tutorials_service_is_the_example() -> None:
    """Put together from its pieces it is `examples/fastapi_service.py`, whose tests are its tests too."""
    _, _, example = (REPOSITORY / "examples/fastapi_service.py").read_text().partition('"""\n\n')

    assert "\n\n".join(blocks("py")) == example


async def test_the_tutorial_works_from_the_wheel_to_the_last_curl(
    python: Callable[..., str], empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Migrated by the installed package with the tutorial's ini file, served by a role with the tutorial's grants."""
    (ini,) = blocks("ini")
    (tmp_path / "checkpoint_store.ini").write_text(ini)
    (upgrade,) = [block.split() for block in blocks("sh") if block.startswith("alembic")]
    python("-m", *upgrade, url=empty_url, cwd=tmp_path)
    (tmp_path / "service.py").write_text("\n\n".join(blocks("py")))
    specification = importlib.util.spec_from_file_location("service", tmp_path / "service.py")
    assert specification is not None
    assert specification.loader is not None
    service: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(service)
    role = f"cafe_{uuid.uuid4().hex}"
    owner = create_engine(make_url(empty_url).set(drivername="postgresql+psycopg"))
    service.orders.metadata.create_all(owner)
    owner.dispose()
    with psycopg.connect(empty_url, autocommit=True) as conn:
        conn.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        conn.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        conn.execute(f"GRANT SELECT, INSERT ON orders TO {role}; GRANT USAGE ON orders_id_seq TO {role}")
        (grants,) = blocks("sql")
        conn.execute(grants.replace("TO cafe", f"TO {role}"))
        parts = urlsplit(empty_url)
        place = parts.netloc.rpartition("@")[2]
        monkeypatch.setenv("CHECKPOINT_STORE_URL", parts._replace(netloc=f"{role}:secret@{place}").geturl())
        try:
            answers = await called(service.app)
        finally:
            conn.execute(f"DROP OWNED BY {role}")
            conn.execute(f"DROP ROLE {role}")

    assert [status for status, _ in answers] == [200, 200, 200, 201, 409, 200]
    assert answers[1][1].strip() == '"Soup" "is" "number" "2" "of" "what" "you" "said."'


async def called(app: Any) -> list[tuple[int, str]]:
    """Make the tutorial's calls of curl, and ask whether the service is ready. Returns statuses and texts."""
    calls = re.findall(r"^curl (?:-N )?-X (\w+) 'localhost:8000(.+?)'", TUTORIAL, re.MULTILINE)
    answers = []
    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app), base_url="http://service") as client,
    ):
        for method, path in [*calls, ("GET", "/ready")]:
            answer = await client.request(method, path)
            answers.append((answer.status_code, answer.text.replace("data: ", "").replace("\n\n", " ")))
    return answers
