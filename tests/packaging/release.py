"""Install a distribution as its users will, and see it work: `python tests/packaging/release.py dist/*`.

Each one gets an environment of its own, far from the repository, with dependencies from the package index. There the
README's quick starts run as printed, on a server of the extra `embedded`, and the revisions, by Alembic's own command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text()
EXTRAS = "cli,embedded"

SMOKE = """
set -e
export PYTHONWARNINGS="error,ignore:'asyncio.iscoroutinefunction':DeprecationWarning"
python -c 'import checkpoint_store as ours, sys; assert ours.__file__.startswith(sys.prefix); print(ours.__version__)'
python -m checkpoint_store.embedded python chat.py
python -m checkpoint_store.embedded sh -ec '
    alembic -c checkpoint_store.ini upgrade head
    alembic -c checkpoint_store.ini current
    checkpoint-store check
    alembic -c checkpoint_store.ini downgrade base
'
"""


def try_out(distribution: Path) -> None:
    """Install a distribution and run the smoke test; it fails as the first command does that fails."""
    with tempfile.TemporaryDirectory(prefix="checkpoint_store-release-") as folder:
        environment, work = Path(folder, "environment"), Path(folder, "work")
        work.mkdir()
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        wanted = f"{distribution.resolve()}[{EXTRAS}]"
        subprocess.run([python, "-m", "pip", "install", "--quiet", wanted, "langgraph"], check=True)
        (work / "chat.py").write_text(
            "\n".join(re.findall(r"^```python\n(.+?)^```$", README, re.DOTALL | re.MULTILINE))
        )
        (work / "checkpoint_store.ini").write_text("[alembic]\nscript_location = checkpoint_store:_alembic\n")
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{variables['PATH']}"
        subprocess.run(["sh", "-c", SMOKE], cwd=work, env=variables, check=True)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}:")
        try_out(Path(name))
        print("works")
