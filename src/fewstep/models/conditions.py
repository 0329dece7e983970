"""What a denoiser is told besides x_t and its time, in one bundle.

The same bundle goes to teacher, student, fake score and discriminator, so that whatever steers a model (text,
class, a masked image beside the latents, the residuals of an adapter) is distilled by the same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UsageError

_REPLACED = ("text", "pooled", "classes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """All conditions of B images; what a model does not use is None or empty.

    Attributes:
        text: (B, L, D), token embeddings.
        pooled: (B, P), an embedding of the whole text (SDXL).
        time_ids: (B, 6), sizes and crops (SDXL).
        classes: (B,), int64.
        concat: (B, C, h, w), channels beside the latents: mask and masked image, or a low-resolution image.
        residuals: added to the skip connections (ControlNet), each (B, C, h, w).
        mid_residual: added after the middle block (ControlNet), (B, C, h, w).
        adapter_residuals: added inside the down blocks (T2I-adapter), each (B, C, h, w).
        guidance: (B,), a guidance scale that the network is given (LCM).
    """

    text: Tensor | None = None
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    classes: Tensor | None = None
    concat: Tensor | None = None
    residuals: tuple[Tensor, ...] = ()
    mid_residual: Tensor | None = None
    adapter_residuals: tuple[Tensor, ...] = ()
    guidance: Tensor | None = None

    @property
    def rows(self) -> int:
        """B, or 0 where nothing is set."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            first = value[:1] if isinstance(value, tuple) else [value]
            if first and first[0] is not None:
                return len(first[0])
        return 0

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditions:
        """Every tensor changed by the same function."""
        changed: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                changed[field.name] = tuple(change(tensor) for tensor in value)
            elif value is not None:
                changed[field.name] = change(value)
        return dataclasses.replace(self, **changed)

    def unconditional(self, null: Conditions) -> Conditions:
        """What classifier-free guidance compares with: text and class of ``null``, all else as here.

        A mask, a low-resolution image or an adapter's residuals say where and what the image is, not how
        strongly it follows the prompt, so both halves of guidance are given them. So are classes beside a
        text when ``null`` has none: a noise level of super-resolution is told in that place.

        Args:
            null: conditions of one image (or of B), with every one of text, pooled and classes that is to
                be left out.

        Raises:
            UsageError: nothing to replace, or ``null`` lacks what is set here.
        """
        replaced: dict[str, Any] = {}
        for name in _REPLACED:
            value = getattr(self, name)
            if value is None:
                continue
            empty = getattr(null, name)
            if empty is None and name == "classes" and "text" in replaced:
                continue
            if empty is None:
                raise UsageError(f"guidance needs an unconditional {name}: give the empty caption or class")
            replaced[name] = empty.expand(value.shape)
        if not replaced:
            raise UsageError(
                "guidance needs a condition that can be left out: these have no text and no class"
            )
        return dataclasses.replace(self, **replaced)


def joined(first: Conditions, second: Conditions) -> Conditions:
    """The rows of both, first ones first.

    Raises:
        UsageError: one has a condition that the other has not.
    """
    parts: dict[str, Any] = {}
    for field in dataclasses.fields(Conditions):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, tuple) and len(a) == len(b):
            parts[field.name] = tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
        elif isinstance(a, Tensor) and isinstance(b, Tensor):
            parts[field.name] = torch.cat([a, b])
        elif a is not None or b is not None:
            raise UsageError(f"conditions do not match: only one of two has {field.name}")
    return Conditions(**parts)
