"""Makes `tiny_files` and `small_merges` importable, and has the models that are merged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models of sd1 as files, and the first two as folders."""
    import small_merges

    return small_merges.sd1(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def unets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bare U-Nets in diffusers' names: a fine-tune, a distilled model, their base; two of more channels."""
    import small_merges

    return small_merges.unets(tmp_path_factory.mktemp("unets"))
