"""The tensors of one layer while a file is read, and the delta that they make."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint.adapters import alphas, deltas
from fewstep.checkpoint.adapters.deltas import Delta
from fewstep.checkpoint.adapters.names import shown
from fewstep.checkpoint.adapters.places import Place

if TYPE_CHECKING:
    import torch

_MAKERS: dict[str, type[Any]] = {"lora": deltas.Lora, "loha": deltas.LoHa, "lokr": deltas.LoKr}
_NEEDED = {"lora": ("down", "up"), "loha": ("w1_a", "w1_b", "w2_a", "w2_b")}


class Pieces:
    """Collects tensors by their place. Every ValueError says what is wrong with them."""

    def __init__(self) -> None:
        self._found: dict[
            str, tuple[str, torch.Tensor]
        ] = {}  # place in the delta -> name in the file, tensor
        self._kinds: dict[str, str] = {}  # kind -> a name that says so

    def add(self, place: Place, name: str, value: torch.Tensor) -> None:
        """Take a tensor in; ValueError when there is one in its place."""
        if place.field in self._found:
            raise ValueError(f"{shown(self._found[place.field][0])} and {shown(name)} are the same tensor")
        self._found[place.field] = (name, value)
        if place.kind:
            self._kinds.setdefault(place.kind, name)

    def delta(self) -> Delta:
        """The delta, its alpha still to come; ValueError when they make none."""
        if not self._kinds and "diff_b" in self._found:
            self._kinds["full"] = "diff_b"
        if len(self._kinds) != 1:
            some = list(self._kinds.values()) or [name for name, _ in self._found.values()]
            raise ValueError(f"it has {' and '.join(map(shown, some[:3]))}, which make no layer")
        (kind,) = self._kinds
        parts: dict[str, Any] = {field: value for field, (_, value) in self._found.items()}
        parts.pop("alpha", None)
        if missing := [name for name in _NEEDED.get(kind, ()) if name not in parts]:
            few = "only one of the two tensors" if kind == "lora" else "too few tensors"
            raise ValueError(f"it has {few}: {', '.join(missing)} is missing")
        if "magnitude" in parts:
            if "dora_scale" in parts:
                raise ValueError("it has two DoRA magnitudes")
            # peft has one number an output as (out,) or, of a convolution, as (1, out, 1, 1)
            dimensions = parts["down"].ndim if kind == "lora" else 2
            parts["dora_scale"] = parts.pop("magnitude").reshape(-1, *(1,) * (dimensions - 1))
        scaled = parts.pop("scale", None) is not None
        if kind in _MAKERS:
            delta: Delta = _MAKERS[kind](alpha=math.nan, **parts)
        elif scaled or "dora_scale" in parts:
            raise ValueError("it has a difference with scale or dora_scale, whose meaning is not known")
        else:
            delta = deltas.Full(norm=kind == "norm", **parts)
        deltas.check(delta)
        if scaled and deltas.rank(delta) is None:
            raise ValueError("it has whole factors with scale, whose meaning is not known")
        return delta

    def with_alpha(self, delta: Delta, from_config: float | None) -> Delta:
        """The delta with the alpha that the file, the configuration or nobody gives.

        A difference has none: tools agree to ignore one beside it.
        """
        if isinstance(delta, deltas.Full):
            return delta
        alpha = float(deltas.rank(delta) or 1)
        if "scale" in self._found:
            alpha *= self._number("scale")
        elif "alpha" in self._found:
            alpha = self._number("alpha")
        elif from_config is not None:
            alpha = alphas.checked(from_config, "alpha")
        return replace(delta, alpha=alpha)

    def _number(self, what: str) -> float:
        value = self._found[what][1]
        if value.numel() != 1:
            raise ValueError(f"{what} is not one number")
        return alphas.checked(float(value), what)
