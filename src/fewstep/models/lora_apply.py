"""Adapters folded into the weights of a pipeline's networks, and taken out again bit by bit.

``W' = W + sum_i w_i dW_i``: every delta is computed from W itself, in at least single precision, and the sum
is rounded once, to the network's own type. What was there is kept as a copy and put back by `Merged.remove`;
nothing is subtracted.

A DoRA (Liu 2024, 2402.09353, eq. 5) is ``dW = m V / |V| - W`` with ``V = W + s B A`` and the norm over all
axes but one: the outputs' where ``m`` has one number an output, as in peft and LyCORIS, the inputs' in older
files of LyCORIS. At weight 1 this is what both compute. At other weights we go straight from W to the full
DoRA, as A1111 and ComfyUI do; peft and diffusers scale ``B A`` inside the norm, so that weight 0 is not W.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import nn

from fewstep.checkpoint.adapters import deltas, fitting
from fewstep.checkpoint.adapters.deltas import Delta, Full, LoHa, LoKr, Lora, Shape
from fewstep.checkpoint.adapters.names import TEXT_ENCODERS, shown
from fewstep.checkpoint.adapters.reading import AdapterFile, BaseShapes
from fewstep.errors import CheckpointError, UsageError

Use = tuple[AdapterFile, float, float]
"""An adapter, its weight in the denoiser and its weight in the text encoders."""

_touched: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # layers with an adapter in their weights


def shapes(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Shape]]:
    """Shapes of the state dicts of a pipeline's parts, for `read_adapter` and `check_fits`."""
    return {
        part: {name: tuple(value.shape) for name, value in module.state_dict().items()}
        for part, module in modules.items()
    }


def delta_weight(delta: Delta, weight: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What an adapter adds to the weight and to the bias of one layer, at weight 1.

    Args:
        delta: made for this weight: `fewstep.checkpoint.adapters.check_fits` says so.
        weight: of the layer, on any device.

    Returns:
        Two tensors in float32 (float64 for a weight of float64) on the weight's device, in the shape of the
        weight and of the bias; None where nothing is added.
    """
    kind = torch.promote_types(weight.dtype, torch.float32)
    parts = {name: value.to(weight.device, kind) for name, value in deltas.tensors(delta)}
    match delta:
        case Full():
            diff = parts.get("diff")
            return None if diff is None else diff.reshape(weight.shape), parts.get("diff_b")
        case Lora():
            matrix = _lora(parts)
        case LoHa():
            matrix = _loha(parts)
        case LoKr():
            matrix = _lokr(parts)
    added = matrix.reshape(weight.shape) * deltas.scale(delta)
    if delta.dora_scale is not None:
        added = _dora(added, weight.to(kind), parts["dora_scale"])
    return added, parts.get("diff_b")


class Merged:
    """Adapters that are in the weights; `remove`, or the end of a ``with`` block, takes them out."""

    def __init__(self) -> None:
        self._saved: list[tuple[nn.Module, dict[str, torch.Tensor]]] = []

    def remove(self) -> None:
        """Put back what was there before, bit by bit. A second call does nothing."""
        with torch.no_grad():
            while self._saved:
                layer, saved = self._saved[-1]
                for name, value in saved.items():
                    getattr(layer, name).copy_(value)
                _touched.discard(layer)
                self._saved.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _write(self, layer: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
        saved = {name: getattr(layer, name).detach().clone() for name in values}
        self._saved.append((layer, saved))
        _touched.add(layer)
        for name, value in values.items():
            getattr(layer, name).copy_(value)


def merged(modules: Mapping[str, nn.Module], adapters: Sequence[Use]) -> Merged:
    """Fold adapters into the weights of a pipeline's networks, in place: all of them, or none.

    Everything that can be checked is checked before a weight is touched; should it fail later (no memory,
    interrupted, a sum that half precision cannot hold), all weights are put back.

    Args:
        modules: the networks by their part, such as ``unet`` and ``text_encoder``.
        adapters: each with its weight in the denoiser and in the text encoders: any finite number; with 0
            those parts are neither touched nor asked for. The order does not matter but for rounding.

    Returns:
        The handle that takes them out again.

    Raises:
        CheckpointError: one does not fit, is not finite, or does not go into the network's type.
        UsageError: a weight is not finite, or there are adapters in these networks already.
    """
    base = shapes(modules)
    plan: dict[nn.Module, list[tuple[Delta, float, str]]] = {}
    for adapter, unet_weight, text_weight in adapters:
        chosen = _chosen(adapter, unet_weight, text_weight)
        _refuse_misfits(adapter, chosen, base)
        for part, (layers, weight) in chosen.items():
            inside = dict(modules[part].named_modules(remove_duplicate=False))
            for layer, delta in layers.items():
                name = fitting.layer_in(layer, base[part])
                assert name is not None
                where = f"{shown(adapter.name)}: {part} layer {shown(layer)}"
                _check_layer(inside[name], delta, where)
                plan.setdefault(inside[name], []).append((delta, weight, where))
    if any(module in _touched for module in plan):
        raise UsageError(
            "these networks have adapters in their weights: remove them, or give all in one call"
        )
    handle = Merged()
    try:
        with torch.no_grad():
            for module, added in plan.items():
                handle._write(module, _sums(module, added))
    except BaseException:
        handle.remove()
        raise
    return handle


def _chosen(
    adapter: AdapterFile, unet_weight: float, text_weight: float
) -> dict[str, tuple[dict[str, Delta], float]]:
    for weight in (unet_weight, text_weight):
        if not math.isfinite(weight):
            raise UsageError(f"{shown(adapter.name)}: its weight is {weight}; give a finite number")
    weights = {part: text_weight if part in TEXT_ENCODERS else unet_weight for part in adapter.parts}
    return {part: (adapter.parts[part], weight) for part, weight in weights.items() if weight}


def _refuse_misfits(
    adapter: AdapterFile, chosen: Mapping[str, tuple[dict[str, Delta], float]], base: BaseShapes
) -> None:
    asked = AdapterFile(
        name=adapter.name,
        parts={part: layers for part, (layers, _) in chosen.items()},
        unmatched=adapter.unmatched,
        metadata=adapter.metadata,
    )
    if reasons := fitting.check_fits(asked, base):
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise CheckpointError(
            f"{shown(adapter.name)}: does not fit, {reasons[0]}{more}; give an adapter made for this model"
        )


def _check_layer(layer: nn.Module, delta: Delta, where: str) -> None:
    for name in ("weight", "bias"):
        value = getattr(layer, name, None)
        if isinstance(value, torch.Tensor) and (value.is_meta or not value.is_floating_point()):
            what = "not in memory" if value.is_meta else f"of type {value.dtype}"
            raise CheckpointError(
                f"{where}: the network's {name} is {what}; load it as floating point numbers"
            )
    for name, value in deltas.tensors(delta):
        if not value.float().isfinite().all():
            raise CheckpointError(f"{where}: {name} has numbers that are not finite; download it again")


def _sums(layer: nn.Module, added: Sequence[tuple[Delta, float, str]]) -> dict[str, torch.Tensor]:
    """New weight and bias of a layer, in its own types."""
    sums: dict[str, torch.Tensor] = {}
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    for delta, factor, _ in added:
        for name, value in zip(("weight", "bias"), delta_weight(delta, weight), strict=True):
            if value is None:
                continue
            if name not in sums:
                sums[name] = getattr(layer, name).to(value.dtype)
            sums[name] = sums[name] + factor * value
    found = {name: value.to(getattr(layer, name).dtype) for name, value in sums.items()}
    for value in found.values():
        if not value.isfinite().all():
            raise CheckpointError(
                f"{added[0][2]}: the sum is not finite in {value.dtype}; "
                "give a smaller weight, or load the model as float32"
            )
    return found


def _lora(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    up, down = parts["up"].flatten(1), parts["down"].flatten(1)
    if "mid" not in parts:
        return up @ down
    return torch.einsum("ab...,oa,bi->oi...", parts["mid"], up, down)


def _loha(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    one, two = (_product(parts, "w1", "t1"), _product(parts, "w2", "t2"))
    return one * two


def _lokr(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    one = parts["w1"] if "w1" in parts else _product(parts, "w1", "")
    two = parts["w2"] if "w2" in parts else _product(parts, "w2", "t2")
    return torch.kron(one.reshape(*one.shape, *(1,) * (two.ndim - 2)), two.contiguous())


def _product(parts: Mapping[str, torch.Tensor], name: str, middle: str) -> torch.Tensor:
    a, b = parts[f"{name}_a"], parts[f"{name}_b"]
    if middle in parts:
        return torch.einsum("ab...,ao,bi->oi...", parts[middle], a, b)
    return a @ b.flatten(1)


def _dora(added: torch.Tensor, weight: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    axis = deltas.dora_axis(magnitude, tuple(weight.shape))
    direction = weight + added
    others = [other for other in range(weight.ndim) if other != axis]
    norm: torch.Tensor = torch.linalg.vector_norm(direction, dim=others, keepdim=True)
    scale = magnitude.reshape(norm.shape) / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    return direction * scale - weight
