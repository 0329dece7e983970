"""Adapter files as `fewstep.models.lora_apply` takes them, and what in them has no effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from fewstep.checkpoint.adapters import AdapterFile, BaseShapes, read_adapter
from fewstep.checkpoint.adapters.fitting import EMBEDDINGS
from fewstep.checkpoint.naming import shown
from fewstep.engine.backends.base import Applied
from fewstep.models.lora_apply import Use

_PEFT = "adapter_model.safetensors"
_CONFIG = "adapter_config.json"
_MAX_CONFIG = 1_000_000


def read(adapters: Sequence[Applied], base: BaseShapes) -> tuple[list[Use], tuple[str, ...]]:
    """Read adapter files.

    Args:
        adapters: the files and their weights.
        base: shapes of the networks that they are for.

    Returns:
        What `fewstep.models.lora_apply.merged` takes, and a warning for everything that is left out.

    Raises:
        NotFoundError, CheckpointError: as `read_adapter`.
    """
    uses: list[Use] = []
    warnings: list[str] = []
    for adapter in adapters:
        found = read_adapter(adapter.path, base=base, peft_config=_beside(adapter.path))
        found, said = _known(found, lenient=adapter.lenient)
        warnings += said
        uses.append((found, adapter.weight, adapter.text_weight))
    return uses, tuple(warnings)


def _known(found: AdapterFile, *, lenient: bool) -> tuple[AdapterFile, list[str]]:
    """The adapter without what is left out; the rest stays, and is refused later."""
    left = [name for name in found.unmatched if lenient or name.startswith(EMBEDDINGS)]
    if not left:
        return found, []
    kept = tuple(name for name in found.unmatched if name not in left)
    what = "embeddings, which are not used" if not lenient else "unknown and left out"
    said = f"adapter {found.name}: {len(left)} tensors are {what}, the first: {shown(left[0])}"
    return dataclasses.replace(found, unmatched=kept), [said]


def _beside(path: Path) -> str | None:
    """The configuration beside a file of peft's own, which has the alpha."""
    config = path.with_name(_CONFIG)
    if path.name != _PEFT or not config.is_file() or config.stat().st_size > _MAX_CONFIG:
        return None
    return config.read_text(encoding="utf-8", errors="replace")
