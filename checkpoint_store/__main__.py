"""`python -m checkpoint_store` is `checkpoint-store`."""

from __future__ import annotations

import sys

from checkpoint_store.cli import main

if __name__ == "__main__":
    sys.exit(main())
