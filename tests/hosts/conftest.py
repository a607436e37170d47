"""The host applications of this folder, each in a copy of its own, on a fresh database."""

from __future__ import annotations

import asyncio
import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.config import Config
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from alembic import command
from checkpoint_store import AsyncPostgresSaver
from checkpoint_store.migrations.alembic_config import script_location

HOSTS = Path(__file__).parent


@dataclass(frozen=True)
class Host:
    """A host application, driven the way its deploy pipeline does."""

    folder: Path
    url: str
    python: Callable[..., str]

    def alembic(self, *arguments: str) -> str:
        """Run the command line in the host's folder, where the wheel is installed. Returns what it prints."""
        return self.python("-W", "error", "-m", "alembic", *arguments, url=self.url, cwd=self.folder)

    def drive(self, name: str, *arguments: Any, **options: Any) -> str:
        """Run one of Alembic's commands in this process, with our revisions from the repository: it is faster."""
        sys.modules.pop(self.folder.name, None)  # the models of another test's copy
        printed = io.StringIO()
        config = Config(self.folder / "alembic.ini", stdout=printed, output_buffer=printed)
        config.cmd_opts = options.pop("x", None)
        if locations := config.get_main_option("version_locations"):
            packaged, repository = "checkpoint_store:_alembic", str(script_location())
            config.set_main_option("version_locations", locations.replace(packaged, repository))
        getattr(command, name)(config, *arguments, **options)
        return printed.getvalue()

    def fetch(self, sql: str) -> list[Any]:
        """Return the rows of a query; with one column, its values."""
        with psycopg.connect(self.url) as conn:
            rows = conn.execute(sql).fetchall()
        return [row[0] if len(row) == 1 else row for row in rows]

    def execute(self, sql: str) -> None:
        """Execute statements."""
        with psycopg.connect(self.url) as conn:
            conn.execute(sql)

    def setup(self, schema: str | None = None) -> list[str]:
        """Do what a service does that starts: set up, check, store. Returns the statements of the first."""
        return asyncio.run(self._setup(schema))

    async def _setup(self, schema: str | None) -> list[str]:
        engine = create_async_engine("postgresql+asyncpg://", connect_args={"dsn": self.url})
        seen: list[str] = []
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
        saver = AsyncPostgresSaver(engine, schema=schema)
        await saver.setup()
        sent = list(seen)
        await saver.acheck()
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        checkpoint: Any = {"v": 4, "id": "1", "ts": "", "channel_values": {}, "channel_versions": {}}
        await saver.aput(config, checkpoint, {}, {})
        await engine.dispose()
        return sent


@pytest.fixture
def host_of(
    make_database: Callable[[], str], python: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Host]:
    """Makes a host of a name of this folder."""

    def make(name: str) -> Host:
        shutil.copytree(HOSTS / name, folder := tmp_path / name)
        host = Host(folder, make_database(), python)
        monkeypatch.setenv("DATABASE_URL", host.url.replace("postgresql:", "postgresql+asyncpg:"))
        monkeypatch.setattr(sys, "path", list(sys.path))
        return host

    return make
