"""The arithmetic of merging: float32, a stretch of rows at a time, whatever type the files have.

With M the multiplier, per tensor (A1111's names):

- weighted sum: ``(1 - M) A + M B``;
- add difference: ``A + M (B - C)``; *make it few-step* is this, with A a fine-tune, B a distilled model, C
  the base of both;
- SLERP (Shoemake 1985): the direction turns from A's to B's by M of the angle between them, the length goes
  from A's to B's in a straight line. With ``w`` the angle of the tensors as vectors, ``L = (1-M)|A| + M|B|``:
  ``L (sin((1-M) w) A/|A| + sin(M w) B/|B|) / sin w``. Where the way is not defined (a tensor of zeros,
  opposite directions) this is the weighted sum.

A U-Net that takes 9 or 8 channels (inpainting, instruct-pix2pix) is mixed with one of 4 in its first 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch

Formula = Literal["weighted sum", "add difference", "slerp"]

PIECE = 1 << 22
"""Numbers in one stretch of rows: 16 MB in float32."""

_STRAIGHT = 1e-4
"""Of smaller angles the sines are taken for the angles (an error below 2e-9), and an angle nearer to half a
turn than this has no plane that is not rounding."""


class Rows(Protocol):
    """Numbers in rows; of a scalar, one row."""

    @property
    def shape(self) -> tuple[int, ...]:
        """At least one dimension."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` in float32, in memory that the caller may change."""


def merged(
    formula: Formula, m: float, a: Rows, b: Rows, c: Rows | None = None
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """A merged tensor as stretches of rows: first row, row behind the last, values in float32.

    Args:
        formula: which.
        m: the multiplier M.
        a: of the first model; its shape is the result's.
        b: of the second, of the same shape, or with fewer channels (dimension 1).
        c: of the third, in b's shape, for the difference; None for zero difference.
    """
    channels = b.shape[1] if b.shape != a.shape else None
    first, second = 1.0 - m, m
    if formula == "slerp":
        first, second = slerp_factors(a, b, m, channels)
    for start, stop in stretches(a.shape):
        whole = a.rows(start, stop)
        own = whole if channels is None else whole[:, :channels]
        other = b.rows(start, stop)
        if formula == "add difference":
            if c is not None:
                own.add_(other.sub_(c.rows(start, stop)), alpha=m)
        else:
            own.mul_(first).add_(other, alpha=second)
        yield start, stop, whole


def slerp_factors(a: Rows, b: Rows, m: float, channels: int | None = None) -> tuple[float, float]:
    """The factors of A and of B in their spherical interpolation.

    The angle is taken from the lengths of the sum and of the difference of the directions (Kahan), which is
    right for small angles too, where the cosine is not; sums are in float64.
    """
    straight = (1.0 - m, m)
    length_a = math.sqrt(sum(_square(part) for part, _ in _pairs(a, b, channels)))
    length_b = math.sqrt(sum(_square(part) for _, part in _pairs(a, b, channels)))
    if not (length_a > 0 and length_b > 0):
        return straight
    apart = together = 0.0
    for part_a, part_b in _pairs(a, b, channels):
        one, two = part_a.double().div_(length_a), part_b.double().div_(length_b)
        apart += _square(one - two)
        together += _square(one.add_(two))
    angle = 2.0 * math.atan2(math.sqrt(apart), math.sqrt(together))
    if angle > math.pi - _STRAIGHT:
        return straight
    length = (1.0 - m) * length_a + m * length_b
    if angle < _STRAIGHT:
        return (1.0 - m) * length / length_a, m * length / length_b
    scale = length / math.sin(angle)
    return math.sin((1.0 - m) * angle) * scale / length_a, math.sin(m * angle) * scale / length_b


def stretches(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Rows of a tensor in stretches of about `PIECE` numbers."""
    each = max(1, PIECE // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], each):
        yield start, min(start + each, shape[0])


def _pairs(a: Rows, b: Rows, channels: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start, stop in stretches(a.shape):
        part = a.rows(start, stop)
        yield (part if channels is None else part[:, :channels]), b.rows(start, stop)


def _square(values: torch.Tensor) -> float:
    return float(values.double().square_().sum())
