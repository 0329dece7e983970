"""A process that watches its server as the real one does: ``watched_child.py CONFIG``, see `fake_child`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "server"))

import fake_child

from fewstep.cli import child

if __name__ == "__main__":
    child.watch(grace=1.0)
    sys.exit(fake_child.main())
