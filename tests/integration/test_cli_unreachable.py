"""A server that can't be reached: which one was meant, and the command that finds out why."""

from __future__ import annotations

import pytest

from checkpoint_store.cli import main


@pytest.mark.parametrize(
    "command", [["threads"], ["check"], ["upgrade"], ["sweep", "--older-than", "30d"]], ids=" ".join
)
def test_the_url_is_named_as_it_was_given(
    command: list[str], unused_tcp_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the user, without the password, and without the values of parameters that may be secret."""
    url = f"postgresql://joe:hunter2@127.0.0.1:{unused_tcp_port}/app?sslmode=disable&passfile=hunter2"

    assert main([*command, "--url", url]) == 4

    said = capsys.readouterr().err
    shown = f"postgresql://joe@127.0.0.1:{unused_tcp_port}/app?sslmode=disable&passfile=..."
    assert said.startswith(f"error: {shown}: ")
    assert said.endswith(" `checkpoint-store doctor` says which step failed.\n")
    assert "hunter2" not in said


def test_doctor_does_not_name_itself(unused_tcp_port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """It says which step failed."""
    assert main(["doctor", "--url", f"postgresql://joe:hunter2@127.0.0.1:{unused_tcp_port}/app"]) == 4

    printed = "".join(capsys.readouterr())
    assert "says which step failed" not in printed
    assert "hunter2" not in printed
