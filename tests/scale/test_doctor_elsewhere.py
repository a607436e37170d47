"""`checkpoint-store doctor` through a pooler and on a standby."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from checkpoint_store.cli import main
from tests.scale.conftest import Pair


def findings(url: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["doctor", "--url", url, "--json"])
    return code, {one["check"]: one for one in json.loads(capsys.readouterr().out)["findings"]}


def test_a_pooler_of_transactions_is_recognised(pooled_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By two connections that get one session of the server's, one after the other."""
    code, found = findings(pooled_url, capsys)

    assert (code, found["pooler"]["level"]) == (0, "ok")
    assert found["pooler"]["found"].startswith("one that pools transactions, such as PgBouncer")
    assert "They are the pooler's here" in found["connections"]["found"]
    with psycopg.connect(pooled_url) as conn:
        left = conn.execute(
            "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'checkpoint_store%'", prepare=False
        )
        assert left.fetchone() == (0,)


def test_a_pooler_that_carries_statements_needs_no_option(
    carrying_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a statement that one session of the server's knows is known to another."""
    code, found = findings(carrying_url, capsys)

    assert (code, found["pooler"]["way_out"]) == (0, [])
    assert "carries prepared statements" in found["pooler"]["found"]


def test_a_pooler_of_sessions_is_seen_too(session_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It can't be told from a busy one."""
    code, found = findings(session_url, capsys)

    assert code == 0
    assert found["pooler"]["found"].startswith("one that pools sessions, or transactions")


def test_a_standby_only_reads(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """All else is checked there as well."""
    code, found = findings(pair.standby, capsys)

    assert code == 0
    assert {check for check, one in found.items() if one["level"] != "ok"} == {"primary"}
    assert found["primary"]["way_out"] == ["target_session_attrs=read-write"]
