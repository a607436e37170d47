"""What a role is told that may not change the schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from checkpoint_store import PostgresSaver, errors
from checkpoint_store.cli import main

Login = Callable[[str], str]


@pytest.fixture
def login(server_url: str, request: pytest.FixtureRequest) -> Iterator[Login]:
    """Makes a role without rights at the first call, and returns the URL of a database with its name."""
    role = f"Deploy {abs(hash(request.node.name)):x}"
    urls: list[str] = []

    def login(url: str) -> str:
        if not urls:
            with psycopg.connect(server_url, autocommit=True) as admin:
                admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        urls.append(url)
        return urlsplit(url)._replace(netloc=f"{role.replace(' ', '%20')}@").geturl()

    yield login
    for url in urls:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP OWNED BY {0}").format(sql.Identifier(role)))
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize("schema", [None, "Agents 1"])
def test_the_grant_in_the_message_lets_the_role_migrate(empty_url: str, login: Login, schema: str | None) -> None:
    """It names the role that is connected, and the schema, or the database where the schema is missing."""
    url = login(empty_url)
    with psycopg.connect(empty_url, autocommit=True) as admin:
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    with PostgresSaver.from_conn_string(url, schema=schema) as saver:
        with pytest.raises(errors.MigrationError) as refused:
            saver.setup()
        _, _, grant = str(refused.value).partition("To give the right to this role: ")
        with psycopg.connect(empty_url, autocommit=True) as admin:
            admin.execute(grant)  # type: ignore[call-overload]

        saver.setup()


def test_of_tables_that_belong_to_another_role_the_owner_is_named(
    url: str, login: Login, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No GRANT would help: only an owner may drop a table, or an index."""
    monkeypatch.setenv("CHECKPOINT_STORE_URL", login(url))
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC")
        (owner,) = admin.execute("SELECT current_user").fetchone() or ("",)

    assert main(["downgrade", "base", "--yes"]) == 1
    message = capsys.readouterr().err

    assert f'The tables belong to the role "{owner}", and this one is "Deploy ' in message
    assert "GRANT" not in message
    assert "alembic upgrade" not in message
