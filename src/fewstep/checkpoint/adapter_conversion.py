"""Adapter files under other names: kohya's, CompVis's blocks among them, or those of diffusers and peft.

What an adapter adds to a model stays the same: tensors keep their bits unless another type is asked for, and
alpha is written where the new names have it. An adapter is read whole; it is a fraction of a model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from fewstep.checkpoint import half
from fewstep.checkpoint.adapters import alphas, deltas
from fewstep.checkpoint.adapters.reading import AdapterFile, read_adapter
from fewstep.checkpoint.adapters.writing import WriteStyle, save_adapter
from fewstep.checkpoint.half import Precision
from fewstep.checkpoint.naming import shown
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from fewstep.checkpoint.adapters.deltas import Delta

STYLES: tuple[WriteStyle, ...] = get_args(WriteStyle)
_MAX_CONFIG = 1_000_000


def write_names(source: Path, out: Path, style: WriteStyle, *, dtype: Precision | None = None) -> list[str]:
    """Write an adapter file again under other names.

    Args:
        source: a safetensors file of any style that is read; peft's ``adapter_config.json`` beside it gives
            the alphas of a file of peft's own.
        out: the new file.
        style: of the names.
        dtype: of the tensors; as they are when None.

    Returns:
        Sentences that the user should read.

    Raises:
        NotFoundError: no such file.
        CheckpointError: it is no adapter, broken, of a kind that is not read, or a value does not fit.
        UsageError: the names cannot express it, or tensors would be lost.
        OutputError: the file cannot be written.
    """
    adapter = read_adapter(source, peft_config=_config_beside(source))
    if dtype is not None:
        adapter = replace(
            adapter,
            parts={
                part: {layer: _typed(delta, dtype, f"{part}.{layer}") for layer, delta in layers.items()}
                for part, layers in adapter.parts.items()
            },
        )
    save_adapter(out, adapter, style=style)
    layers = sum(len(layers) for layers in adapter.parts.values())
    return [f"{layers} layers of {' and '.join(adapter.parts)}, {adapter.style} to {style}", *_notes(adapter)]


def _notes(adapter: AdapterFile) -> list[str]:
    """Nothing is lost but what only one file could have: its hashes and its preview pictures."""
    odd = half.Oddities()
    for part, layers in adapter.parts.items():
        for layer, delta in layers.items():
            for name, value in deltas.tensors(delta):
                odd.look(f"{part}.{layer}.{name}", value)
    if not odd.not_finite:
        return []
    first = shown(odd.not_finite[0])
    return [f"warning: {len(odd.not_finite)} tensors hold values that are not finite, the first {first}"]


def _typed(delta: Delta, dtype: Precision, where: str) -> Delta:
    def cast(name: str, value: torch.Tensor) -> torch.Tensor:
        code = half.target(half.code_of(value.dtype), dtype)
        return half.cast(value, code, f"{where}.{name}")

    changed = {name: cast(name, value) for name, value in deltas.tensors(delta)}
    return replace(delta, **changed)  # type: ignore[arg-type]


def _config_beside(source: Path) -> str | None:
    path = source.parent / alphas.CONFIG_FILE
    if source.stem != "adapter_model" or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_MAX_CONFIG + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch the adapter again") from None
