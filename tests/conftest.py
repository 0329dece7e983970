"""For every test: networks that a module of tests made are freed at its end, and leave signals working."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from fewstep.models import signal_stack


@pytest.fixture(autouse=True, scope="module")
def working_signals() -> Iterator[None]:
    """See `fewstep.models.signal_stack`: without it, tests of Ctrl-C crash after tests that use OpenVINO."""
    with signal_stack.kept():
        yield


def pytest_collection_finish() -> None:
    """What the imports made lives until the end: collections need not walk through it (0.4 s each time)."""
    gc.collect()
    gc.freeze()
