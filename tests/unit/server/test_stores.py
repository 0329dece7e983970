"""Opening jobs and history beside a server that listens already."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.errors import OutputError
from fewstep.server.stores import Stores


def test_both_are_there_for_whoever_waits(tmp_path: Path) -> None:
    stores = Stores(f"sqlite:///{tmp_path / 'data' / 'a.db'}", tmp_path / "images")
    job, _ = stores.jobs.add({"prompt": "x"}, kind="generate", client="native")
    assert stores.ready and stores.history.root == tmp_path / "images"
    stores.close()
    again = Stores(f"sqlite:///{tmp_path / 'data' / 'a.db'}", tmp_path / "images")
    assert again.jobs.get(job.id, None).state == "cut_off"
    again.close()


def test_what_cannot_be_opened_is_told_to_everyone_who_asks(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"no database" * 1000)
    stores = Stores(f"sqlite:///{tmp_path / 'a.db'}", tmp_path)
    for _ in range(2):
        with pytest.raises(OutputError, match="is broken or none"):
            _ = stores.jobs
        with pytest.raises(OutputError, match="is broken or none"):
            _ = stores.ready
    stores.close()


def test_to_begin_needs_no_database_library() -> None:
    """What is imported before the server listens."""
    program = "import sys, fewstep.server.stores; print([m for m in sys.modules if 'sql' in m])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
