"""The documentation's code does what it says, as printed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_store.embedded import EmbeddedPostgres

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
BLOCK = re.compile(r"^```python\n(.+?)^```$", re.DOTALL | re.MULTILINE)
PAGES = {str(page.relative_to(DOCS)): BLOCK.findall(page.read_text()) for page in sorted(DOCS.rglob("*.md"))}


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if blocks])
def test_the_programs_of_a_page_run(page: str, empty_url: str, tmp_path: Path) -> None:
    """One after the other on one database, which is empty before the first; nothing warns."""
    for block in PAGES[page]:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", block],
            cwd=tmp_path,
            env={**os.environ, "CHECKPOINT_STORE_URL": empty_url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_documentation_lead_somewhere(page: str) -> None:
    """Every relative link names a file that exists."""
    text = re.sub(r"^```.+?^```$", "", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (DOCS / page).parent.joinpath(target).exists(), target


def test_the_transcripts_are_what_the_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made anew on a server of their own, they are what stands in the page, to the letter."""
    spec = importlib.util.spec_from_file_location("transcripts", DOCS / "transcripts.py")
    assert spec is not None
    assert spec.loader is not None
    transcripts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(transcripts)
    page = transcripts.PAGE.read_text()

    with EmbeddedPostgres() as server:
        monkeypatch.setenv("CHECKPOINT_STORE_URL", server.url)
        made = transcripts.rewritten(page)

    assert made == page
    assert len(re.findall(r"^\$ ", page, re.MULTILINE)) > 15
