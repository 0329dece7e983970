"""Which adapter files there are, and which of them a request asks for. An adapter is a name, never a path."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewstep.errors import UsageError

MAX_ADAPTERS = 64
"""In one request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """One adapter of a request."""

    name: str
    """Of `fewstep.engine.adapters`' registry."""
    weight: float = 1.0
    """In the denoiser; any finite number."""
    text_weight: float | None = None
    """In the text encoders; None is ``weight``."""

    def __post_init__(self) -> None:
        for value in (self.weight, self.text_weight):
            if value is not None and not math.isfinite(value):
                raise UsageError(f"weight of adapter {self.name!r:.100} is {value}: give a finite number")

    @property
    def in_text(self) -> float:
        """Weight in the text encoders."""
        return self.weight if self.text_weight is None else self.text_weight
