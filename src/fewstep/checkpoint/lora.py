"""Plain LoRA of one denoiser with one rank and one alpha, as `fewstep.models.adapters` trains it.

Files of several parts, ranks or kinds: `fewstep.checkpoint.adapters`, which this stands on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fewstep.checkpoint.adapters import deltas, reading, writing
from fewstep.checkpoint.adapters.deltas import Delta, Lora
from fewstep.checkpoint.adapters.names import DENOISERS, shown
from fewstep.checkpoint.adapters.reading import AdapterFile
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Style = Literal["diffusers", "kohya"]

_GROWTH = 16  # a small file must not fill the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """What an adapter file holds.

    Attributes:
        state: ``<layer>.lora_A.weight`` (rank, in, ...) and ``<layer>.lora_B.weight`` (out, rank, ...).
        rank: one for all layers; smaller ones have been filled up with zeros, which changes nothing.
        alpha: one for all layers; the adapter adds ``alpha / rank * B A``.
        contract_json: the sampling contract, if the file has one.
        style: how the file names its tensors.
        metadata: what else its header says.
    """

    state: dict[str, torch.Tensor]
    rank: int
    alpha: float
    contract_json: str | None
    style: Style
    metadata: dict[str, str] = field(default_factory=dict)


def save_lora(
    path: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    *,
    rank: int,
    alpha: float,
    contract_json: str | None,
    style: Style = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter file of a U-Net atomically, in the tensors' own types.

    Args:
        path: ends in ``.safetensors`` for other tools to take it.
        state: names and shapes as in `LoraFile`.
        rank: of every layer.
        alpha: what the adapter was trained with.
        contract_json: how the adapted model must be sampled.
        style: how tensors are named, see `fewstep.checkpoint.adapters.writing`.
        metadata: more header texts (licence, base model ...).

    Raises:
        UsageError: names that the style cannot tell apart, or a header text under a name of ours.
        OutputError: the file cannot be written.
    """
    layers: dict[str, Delta] = {
        layer: Lora(down=state[f"{layer}.lora_A.weight"], up=state[f"{layer}.lora_B.weight"], alpha=alpha)
        for layer in _layers(state)
    }
    assert len(state) == 2 * len(layers) and all(len(d.down) == rank for d in layers.values())  # type: ignore[union-attr]
    adapter = AdapterFile(
        name=Path(path).name,
        parts={"unet": layers},
        contract_json=contract_json,
        metadata=dict(metadata or {}),
    )
    writing.save_adapter(path, adapter, style=style)


def load_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read an adapter file of any style that is a plain LoRA of a denoiser and of nothing else.

    Layers of different rank or scale are brought to one: the largest rank, and the scale goes into B.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, not a LoRA, or one of a kind that is not plain.
    """
    file = Path(path)
    try:
        found = reading.parse(file)
        state, rank, alpha = _uniform(_plain(found))
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; give a plain LoRA of a denoiser") from error
    return LoraFile(
        state=state,
        rank=rank,
        alpha=alpha,
        contract_json=found.contract_json,
        style="kohya" if found.style.startswith("kohya") else "diffusers",
        metadata=found.metadata,
    )


def _plain(found: AdapterFile) -> dict[str, Lora]:
    if found.unmatched:
        raise ValueError(f"it has {shown(found.unmatched[0])}")
    if len(found.parts) > 1 or not found.parts.keys() <= set(DENOISERS):
        raise ValueError(f"it is for {', '.join(found.parts)}")
    plain: dict[str, Lora] = {}
    for layer, delta in next(iter(found.parts.values())).items():
        more = {name for name, _ in deltas.tensors(delta)} - {"down", "up"}
        if not isinstance(delta, Lora):
            raise ValueError(f"layer {shown(layer)} is a {type(delta).__name__} ({', '.join(sorted(more))})")
        if more:
            called = {"mid": "lora_mid", "dora_scale": "dora_scale or lora_magnitude_vector"}
            raise ValueError(
                f"layer {shown(layer)} has {' and '.join(called.get(m, m) for m in sorted(more))}"
            )
        plain[layer] = delta
    return plain


def _uniform(layers: Mapping[str, Lora]) -> tuple[dict[str, torch.Tensor], int, float]:
    """One rank and one alpha for all layers; nothing is touched when it is so already."""
    from torch.nn.functional import pad

    rank = max(len(delta.down) for delta in layers.values())
    alpha = next(iter(layers.values())).alpha
    state: dict[str, torch.Tensor] = {}
    same = all(len(delta.down) == rank and delta.alpha == alpha for delta in layers.values())
    if not same:
        sizes = [(d.down.numel() + d.up.numel(), rank / len(d.down)) for d in layers.values()]
        if sum(size * growth for size, growth in sizes) > _GROWTH * sum(size for size, _ in sizes):
            raise ValueError(f"its ranks differ too much, the largest is {rank}")
        alpha = float(rank)
    for layer, delta in layers.items():
        a, b = delta.down, delta.up
        if not same:
            missing = rank - len(a)
            # pad counts dimensions from the last one
            a = pad(a, (0, 0) * (a.ndim - 1) + (0, missing))
            b = pad(b * (delta.alpha / len(delta.down)), (0, 0) * (b.ndim - 2) + (0, missing))
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = a, b
    return state, rank, alpha


def _layers(state: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".lora_")[0] for name in state))
