"""Exponential moving average of weights, with its half-life counted in images seen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn


def ema_decay(batch_size: int, images_seen: int, half_life_images: float, ramp: float | None) -> float:
    """Factor that the old average keeps in one step.

    ``0.5 ** (batch_size / half_life)`` with half_life = min(half_life_images, ramp * images_seen): the ramp
    keeps the random initial weights from staying in the average (Karras et al. 2022, arXiv 2206.00364:
    half-lives in table 7, the ramp in their training code).

    Args:
        batch_size: images in this step.
        images_seen: images seen when this step is done.
        half_life_images: images after which a weight counts half.
        ramp: fraction of images_seen that limits the half-life; None for no limit.

    Returns:
        A factor in [0, 1).
    """
    half_life = half_life_images if ramp is None else min(half_life_images, ramp * images_seen)
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))


class Ema:
    """The averaged copy of one module's parameters and buffers, by name.

    Floating point parameters are averaged in their own type, on their own device; buffers are copied, since
    an average of a running statistic means nothing.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live = dict(module.named_parameters()) | dict(module.named_buffers())
        self._average = {name: value.detach().clone() for name, value in self._live.items()}
        parameters = [name for name, value in module.named_parameters() if value.is_floating_point()]
        averaged = set(parameters)
        self._copied = [name for name in self._live if name not in averaged]
        self._targets = [self._average[name] for name in parameters]
        self._sources = [self._live[name] for name in parameters]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Set every average to ``decay * average + (1 - decay) * weight``."""
        if self._targets:
            torch._foreach_lerp_(self._targets, self._sources, 1.0 - decay)
        for name in self._copied:
            self._average[name].copy_(self._live[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averages under the module's own names; not copies."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Copy saved averages in.

        Raises:
            KeyError: names differ from the module's.
        """
        if state.keys() != self._average.keys():
            raise KeyError(f"names differ: {sorted(state.keys() ^ self._average.keys())[:10]}")
        for name, value in state.items():
            self._average[name].copy_(value)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages into the module for a ``with`` block, then the weights back, bit by bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._live.items():
            kept = value.detach().clone()
            value.copy_(self._average[name])
            self._average[name].copy_(kept)
