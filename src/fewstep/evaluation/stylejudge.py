"""Which of the six styles a picture has, or none: what style adapters are measured with.

A multinomial logistic regression (Bishop 2006, ISBN 978-0-387-31073-2, section 4.3.4) on statistics of the
pixels: which colours there are, how sharp the edges are, whether the picture consists of cells, and whether
what it shows has a white rim. The evaluator's features are left out: it has never seen these styles, there
are 256 of them against some forty pictures of a style, and the statistics suffice. Models draw through an
autoencoder that blurs, so each training picture is shown blurred and with other contrast too.

The seventh answer, `BASE`, is the look of the model without an adapter: drawings of its own emoji sets on
plain backgrounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from fewstep.errors import DataError, UsageError
from fewstep.evaluation.judging import Pictures

BASE: Final = "base"
CELL: Final = 8
"""Pixels to a cell of pixel art, and the width of the border that is looked at."""
PENALTY: Final = 0.02
"""Of the squared weights, relative to the mean loss of a picture."""

_BINS: Final = 4
_QUANTILES: Final = (0.5, 0.75, 0.9, 0.97)
_STATISTICS: Final = _BINS**3 + 6 + len(_QUANTILES) + 2 + 2
_LIKE_GROUND: Final = 0.12  # largest difference of a channel
_WHITE: Final = 0.85  # least of all channels
_SHOWN: Final = ((0.0, 1.0), (0.7, 1.0), (1.2, 1.0), (0.0, 0.92), (0.7, 1.08))
"""How training pictures are shown: deviation of the blur in pixels, and contrast."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StyleJudge:
    """A fitted judge.

    Attributes:
        styles: the S answers, in the order of the columns.
        mean: (F,), of the training pictures.
        deviation: (F,), likewise.
        weights: (F + 1, S), the last row for the constant.
    """

    styles: tuple[str, ...]
    mean: Matrix
    deviation: Matrix
    weights: Matrix

    def probabilities(self, pictures: Pictures) -> Matrix:
        """Say how likely each style is.

        Args:
            pictures: uint8 (N, H, W, 3), H and W multiples of `CELL`.

        Returns:
            float64 (N, S), rows add up to 1.

        Raises:
            UsageError: not such pictures.
        """
        inputs = (statistics(pictures) - self.mean) / self.deviation
        return _softmax(_with_constant(inputs) @ self.weights)

    def named(self, pictures: Pictures) -> list[str]:
        """Name the likeliest style of each of N pictures."""
        return [self.styles[i] for i in self.probabilities(pictures).argmax(1)]


def fit(pictures: Mapping[str, Pictures], *, penalty: float = PENALTY) -> StyleJudge:
    """Fit a judge; the same pictures give the same judge.

    Every style counts the same, however many pictures it has.

    Args:
        pictures: for each style, `BASE` among them, its training pictures (N, H, W, 3).
        penalty: of the squared weights.

    Raises:
        UsageError: fewer than two styles, or a style without pictures.
        DataError: the fit does not come to an end.
    """
    if len(pictures) < 2 or any(not len(some) for some in pictures.values()):
        raise UsageError("style judge: give pictures of two or more styles, of each one or more")
    styles = tuple(pictures)
    shown = {style: _disturbed(some) for style, some in pictures.items()}
    inputs = np.concatenate([statistics(some) for some in shown.values()])
    wanted = np.repeat(np.arange(len(styles)), [len(some) for some in shown.values()])
    share = np.concatenate([np.full(len(some), 1 / len(some) / len(styles)) for some in shown.values()])
    mean, deviation = inputs.mean(0), inputs.std(0)
    deviation[deviation < 1e-6] = 1.0
    weights = _regression((inputs - mean) / deviation, wanted, share, len(styles), penalty)
    return StyleJudge(styles, mean, deviation, weights)


def right(judge: StyleJudge, style: str, pictures: Pictures) -> NDArray[np.float64]:
    """Say of each picture whether the judge finds the style in it: 1 or 0, (N,).

    Raises:
        UsageError: a style that the judge does not know.
    """
    if style not in judge.styles:
        raise UsageError(f"style {style!r:.100}: this judge knows {', '.join(judge.styles)}")
    return np.array([name == style for name in judge.named(pictures)], np.float64)


def confusion(judge: StyleJudge, pictures: Mapping[str, Pictures]) -> NDArray[np.int64]:
    """Count answers: row is what a picture is, column what the judge says; both in the order of its styles.

    Raises:
        UsageError: a style that the judge does not know.
    """
    unknown = sorted(set(pictures) - set(judge.styles))
    if unknown:
        raise UsageError(f"style {unknown[0]!r:.100}: this judge knows {', '.join(judge.styles)}")
    counts = np.zeros((len(judge.styles),) * 2, np.int64)
    for style, some in pictures.items():
        for name in judge.named(some):
            counts[judge.styles.index(style), judge.styles.index(name)] += 1
    return counts


def statistics(pictures: Pictures) -> Matrix:
    """Describe pixels: colours, border, edges, cells.

    Args:
        pictures: uint8 (N, H, W, 3), H and W multiples of `CELL` and above twice of it.

    Returns:
        float64 (N, 78): roots of the shares of 4x4x4 boxes of colours; mean and deviation of the border by
        channel; quantiles of the steps between neighbours; and, across and down, the logarithm of steps
        within cells over all steps, which falls as a picture consists of cells; of what lies 1 to 4 pixels
        inside of the ground's edge, the share that is white, and the same where the ground is not white.

    Raises:
        UsageError: not such pictures.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
        raise UsageError(f"pictures {pictures.dtype} {pictures.shape}: give uint8 (N, H, W, 3)")
    height, width = pictures.shape[1:3]
    if height % CELL or width % CELL or min(height, width) <= 2 * CELL:
        raise UsageError(f"pictures of {width}x{height}: give multiples of {CELL}, above {2 * CELL}")
    ring = np.ones((height, width), np.bool_)
    ring[CELL:-CELL, CELL:-CELL] = False
    if not len(pictures):
        return np.empty((0, _STATISTICS))
    return np.stack([_statistics(picture, ring) for picture in pictures])


def _statistics(picture: NDArray[np.uint8], ring: NDArray[np.bool_]) -> Matrix:
    box = (picture // (256 // _BINS)).astype(np.int64) @ np.array([_BINS**2, _BINS, 1])
    colours = np.sqrt(np.bincount(box.ravel(), minlength=_BINS**3) / box.size)
    border = picture[ring] / 255.0
    values = picture.astype(np.float64) / 255
    steps = [np.abs(np.diff(values, axis=axis)).mean(-1) for axis in (1, 0)]
    cells = []
    for step, axis in zip(steps, (1, 0), strict=True):
        within = np.arange(step.shape[axis]) % CELL != CELL - 1
        cells.append(np.log((step.compress(within, axis=axis).mean() + 1e-3) / (step.mean() + 1e-3)))
    edges = np.quantile(np.concatenate([step.ravel() for step in steps]), _QUANTILES)
    rims = _white_rim(values, np.median(border, axis=0))
    return np.concatenate([colours, border.mean(0), border.std(0), edges, cells, rims])


def _white_rim(values: Matrix, ground: Matrix) -> Matrix:
    """How white the rim of what stands on a ground of one colour is: stickers have a white border."""
    like = np.abs(values - ground).max(-1) < _LIKE_GROUND
    near = ndimage.binary_dilation(like, iterations=4) & ~ndimage.binary_dilation(like)
    share = float((values[near].min(-1) > _WHITE).mean()) if near.any() else 0.0
    return np.array([share, share if ground.min() < _WHITE else 0.0])


def _disturbed(pictures: Pictures) -> Pictures:
    """Each picture as it is, blurred, and with less and more contrast."""
    found: list[Pictures] = []
    for blur, contrast in _SHOWN:
        soft = ndimage.gaussian_filter(pictures.astype(np.float32), (0, blur, blur, 0))
        found.append(np.clip(np.rint(128 + contrast * (soft - 128)), 0, 255).astype(np.uint8))
    return np.concatenate(found)


def _regression(
    inputs: Matrix, wanted: NDArray[np.int64], share: Matrix, styles: int, penalty: float
) -> Matrix:
    """Minimise cross-entropy (Bishop 2006, equations 4.108, 4.109) plus the penalty; the constant is free."""
    known = _with_constant(inputs)
    target = np.eye(styles)[wanted]
    free = np.ones((known.shape[1], 1))
    free[-1] = 0

    def loss(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(-1, styles)
        said = _softmax(known @ weights)
        entropy = -(share * np.log(said[np.arange(len(wanted)), wanted] + 1e-300)).sum()
        slope = known.T @ (share[:, None] * (said - target)) + penalty * free * weights
        return float(entropy + 0.5 * penalty * (free * weights**2).sum()), slope.ravel()

    start = np.zeros(known.shape[1] * styles)
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    if not np.isfinite(found.x).all():
        raise DataError("style judge: the fit is not finite; give other pictures")
    solved: Matrix = found.x.reshape(-1, styles)
    return solved


def _with_constant(inputs: Matrix) -> Matrix:
    return np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)


def _softmax(logits: Matrix) -> Matrix:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares: Matrix = powers / powers.sum(1, keepdims=True)
    return shares


def counted(styles: Sequence[str], counts: NDArray[np.int64]) -> str:
    """Write a confusion table as plain text, one line a style."""
    width = max(len(style) for style in styles) + 2
    lines = [" " * width + "".join(f"{style:>{width}}" for style in styles)]
    lines += [
        f"{style:<{width}}" + "".join(f"{count:>{width}}" for count in row)
        for style, row in zip(styles, counts.tolist(), strict=True)
    ]
    return "\n".join(lines)
