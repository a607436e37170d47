"""Files that commands write: a whole new one, or none, and no other file is touched."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from checkpoint_store.cli import files
from checkpoint_store.errors import InvalidOption


def test_a_new_file_takes_the_place_of_another_for_its_owner_only(tmp_path: Path) -> None:
    """Other files of the folder stay, whatever their names are; what a link points to is replaced, not the link."""
    target, beside, link = tmp_path / "a", tmp_path / "a.part", tmp_path / "b"
    target.write_text("old")
    beside.write_text("precious")
    link.symlink_to(target)

    with files.written(str(link)) as write:
        write("new\u2028")
        assert target.read_text() == "old"

    assert (target.read_text(encoding="utf-8"), beside.read_text()) == ("new\u2028", "precious")
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 3


def test_after_an_error_all_is_as_it_was(tmp_path: Path) -> None:
    """No file is left, complete or not."""
    target = tmp_path / "a"
    with pytest.raises(ZeroDivisionError), files.written(str(target)) as write:
        write(f"half, {1 / 0}")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "nowhere/a", ""])
def test_a_name_that_can_be_no_files_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long, in no folder, or a folder; to write and to read."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidOption, match="can't be written"), files.written(name):
        pass
    with pytest.raises(InvalidOption, match="can't be read"), files.read(name):
        pass


def test_a_circle_of_links_is_replaced(tmp_path: Path) -> None:
    """It leads nowhere."""
    (tmp_path / "a").symlink_to(tmp_path / "a")
    with files.written(str(tmp_path / "a")) as write:
        write("new")

    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are files of Unix")
def test_a_device_is_written_to_as_it_is() -> None:
    """It is not replaced."""
    with files.written("/dev/null") as write:
        write("gone")

    assert Path("/dev/null").is_char_device()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_an_error_of_the_file() -> None:
    """It is named, also where a connection is open, whose errors are of the same kind."""
    with (
        pytest.raises(InvalidOption, match="'/dev/full' can't be written: No space"),
        files.written("/dev/full") as write,
    ):
        write("x" * 100_000)
