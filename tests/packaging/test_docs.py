"""The documentation's code does what it says, as printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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
