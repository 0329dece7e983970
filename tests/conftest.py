"""For every test: networks that a module of tests made are freed at its end, and leave signals working."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from fewstep.models import signal_stack

# Tests run in two processes: a second thread in each would wait for the other's (37 s for 1).
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="module")
def working_signals() -> Iterator[None]:
    """See `fewstep.models.signal_stack`: without it, tests of Ctrl-C crash after tests that use OpenVINO."""
    with signal_stack.kept():
        yield


def pytest_collection_finish() -> None:
    """What the imports made lives until the end: collections need not walk through it (0.4 s each time)."""
    gc.collect()
    gc.freeze()
