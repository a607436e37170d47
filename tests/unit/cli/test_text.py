"""Text reaches a terminal without escapes; numbers, sizes, times and ids are short."""

from __future__ import annotations

import pytest

from checkpoint_store.cli.text import counted, moment, printable, short_id, size
from checkpoint_store.storage.checkpoint_time import time_of


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
