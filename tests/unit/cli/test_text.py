"""Text reaches a terminal without escapes; numbers, sizes, times and ids are short."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from checkpoint_store.cli import text as texts
from checkpoint_store.cli.shortened_diff import MAX_LINES
from checkpoint_store.cli.shortened_diff import shortened as shortened_diff
from checkpoint_store.cli.text import common, counted, moment, printable, short_id, shortened, size
from checkpoint_store.cli.values import Limits
from checkpoint_store.storage.checkpoint_time import time_of

UUID = "0b8e6f0c-5a8e-4f2e-9d54-1b6c9a2d3e4f"


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_951, "1.0 MB"), (17 * 10**9, "17.0 GB"),
     (10**19, "10000.0 PB")],
)  # fmt: skip
def test_sizes_are_for_people(count: int, told: str) -> None:
    """In powers of a thousand, as disks are sold."""
    assert size(count) == told


def test_ids_are_as_short_as_they_may_be() -> None:
    """Of LangGraph's ids the part that is a time, of others everything."""
    uuid = "1f0c4a3e-1234-6abc-8000-000000000000"
    assert short_id(uuid) == "1f0c4a3e-1234-6abc"
    assert short_id("a\x1b" * 20) == "a\\x1b" * 20
    assert short_id(None) == "-"
    assert moment(time_of(uuid)) == moment(time_of(uuid), precise=True)[:-4]
    assert (counted(1, "row"), counted(2000, "row")) == ("1 row", "2,000 rows")


def test_only_printable_characters_are_left() -> None:
    """What repr() would escape is escaped; everything else is as it was."""
    assert printable("plain, é🙂 [bold]") == "plain, é🙂 [bold]"
    assert printable("\x1b\x07\u202e\ud800\x9b\n") == "\\x1b\\x07\\u202e\\ud800\\x9b\\n"
    assert all(printable(chr(number)).isprintable() for number in range(0x3000))


@pytest.mark.parametrize("width", range(10, 120))
@pytest.mark.parametrize(
    "text", [UUID, f"user:{UUID}", f"user:{UUID}:session:{UUID}", "a" * 100, "日本語のスレッド" * 7, "🙂" * 50]
)
def test_a_text_is_cut_in_the_middle(text: str, width: int) -> None:
    """It fills what there is, begins and ends as before, and a UUID is cut only where hardly anything else is left."""
    shown = shortened(text, width)

    assert cell_len(shown) <= width
    if cell_len(text) <= width:
        assert shown == text
        return
    start, _, end = shown.partition("…")
    assert text.startswith(start)
    assert text.endswith(end)
    assert cell_len(shown) >= width // 2
    if UUID not in text:
        assert abs(cell_len(start) - cell_len(end)) <= 2
    elif width > len(UUID):
        assert not re.search("[0-9a-f]-[0-9a-f]", shown.replace(UUID, ""))


@pytest.mark.parametrize(
    ("ago", "shown"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=59, seconds=59), "59 min"),
        (timedelta(hours=23), "23 h"),
        (timedelta(days=3, hours=5), "3 d"),
        (timedelta(days=1234), "1,234 d"),
    ],
)
def test_an_age_is_in_the_largest_unit(ago: timedelta, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--older-than` takes it; a clock that is behind is not the reader's concern."""
    now = datetime(2026, 3, 2, tzinfo=UTC)
    monkeypatch.setattr(texts, "now", lambda: now)

    assert texts.age(now - ago) == shown
    assert texts.age(None) == "-"


@given(st.text("ab"), st.text("ab"), st.text("ab"))
def test_a_common_beginning_is_that_of_a_plain_comparison(start: str, one: str, other: str) -> None:
    """Of texts, of lists and of views of bytes."""
    pair = (start + one, start + other)
    expected = max(n for n in range(len(min(pair, key=len)) + 1) if pair[0][:n] == pair[1][:n])
    assert common(*pair) == common(*map(list, pair)) == expected
    assert common(*[memoryview(text.encode()) for text in pair]) == expected


def test_long_lines_of_a_diff_are_compared_quickly() -> None:
    """Each removed line with each added one, where all begin alike: character by character that would take minutes."""
    begin = time.process_time()
    lines = [f"{sign}{'x' * 200_000}{sign}{number}" for sign in "-+" for number in range(MAX_LINES)]
    shown = list(shortened_diff(lines, Limits()))
    assert time.process_time() - begin < 30
    assert {line[-20:] for line in shown[:2]} == {f"{'x' * 18}-0", f"{'x' * 18}-1"}
