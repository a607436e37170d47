"""Tables at the width of a terminal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import sleep

import pytest
from rich.cells import cell_len
from rich.console import Console

from checkpoint_store.cli import output
from checkpoint_store.cli.output import Column

UUID = "0b8e6f0c-5a8e-4f2e-9d54-1b6c9a2d3e4f"
LONG = f"user:ada.lovelace@example.com:tenant:acme-europe-west:session:{UUID}"
IDS = [UUID, LONG, "日本語のスレッド" * 5, "🙂" * 40, "short"]
COLUMNS = [
    Column("THREAD", cut=True),
    Column("CHECKPOINT", rank=1),
    Column("UPDATED (UTC)", rank=3),
    Column("STEP", right=True, rank=2),
    Column("SIZE", right=True),
]
ROWS = [[one, "1f11620e-ca20-6271", "2026-03-02 10:16:49", 1234, "999.9 MB"] for one in IDS]

Printed = Callable[[int | None], list[str]]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Prints the table on a terminal of some columns, or in a pipe, and returns the lines."""

    def printed(width: int | None) -> list[str]:
        with monkeypatch.context() as patch:
            if width is not None:
                patch.setattr(
                    output, "Console", lambda: Console(force_terminal=True, color_system=None, width=width, height=50)
                )
            output.table(COLUMNS, ROWS)
        return capsys.readouterr().out.splitlines()

    return printed


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_row_is_a_line_of_the_terminal(printed: Printed, width: int) -> None:
    """However wide its characters are; and a UUID is whole, alone or at the end of an id."""
    lines = printed(width)

    assert len(lines) == len(ROWS) + 1
    assert max(map(cell_len, lines)) <= width
    assert lines[1].startswith(f"{UUID} ")
    assert UUID in lines[2]
    assert len({cell_len(line) for line in lines}) == 1  # the last column is aligned to the right


def test_less_important_columns_are_left_out_first(printed: Printed) -> None:
    """Before an id is cut; the others stay in their order."""
    assert printed(200)[0].split() == ["THREAD", "CHECKPOINT", "UPDATED", "(UTC)", "STEP", "SIZE"]
    assert LONG in printed(200)[2]
    assert printed(140)[0].split() == ["THREAD", "CHECKPOINT", "STEP", "SIZE"]
    assert LONG in printed(140)[2]
    assert printed(112)[0].split() == ["THREAD", "SIZE"]
    assert LONG in printed(112)[2]
    assert printed(60)[0].split() == ["THREAD", "SIZE"]
    assert printed(60)[2].startswith("user:")
    assert f"…{UUID}  " in printed(60)[2]


def test_in_a_pipe_nothing_is_left_out_or_cut(printed: Printed) -> None:
    """However long the line becomes."""
    lines = printed(None)

    assert lines[0].split() == ["THREAD", "CHECKPOINT", "UPDATED", "(UTC)", "STEP", "SIZE"]
    assert [line.split()[0] for line in lines[1:]] == IDS
    assert len({cell_len(line) for line in lines}) == 1


def test_a_table_without_rows_has_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    """So that an empty result looks like one."""
    output.table(COLUMNS, [])

    assert capsys.readouterr().out.split() == ["THREAD", "CHECKPOINT", "UPDATED", "(UTC)", "STEP", "SIZE"]


def test_progress_has_a_total_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once the total is known; it is removed at the end, and a pipe gets nothing."""
    with output.progress("sweeping", "checkpoints") as advance:
        advance(1, 2)
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(
        output, "Console", partial(Console, force_terminal=True, color_system=None, width=100, height=50)
    )
    with output.progress("sweeping", "checkpoints") as advance:
        advance(1)
        advance(3_000, 10_000)
        sleep(0.3)  # it is drawn ten times a second
    shown = capsys.readouterr().err

    assert "sweeping" in shown
    assert "3,000 of 10,000 checkpoints" in shown
