"""`checkpoint-store doctor` through a pooler and on a standby."""

from __future__ import annotations

import json
from typing import Any

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
