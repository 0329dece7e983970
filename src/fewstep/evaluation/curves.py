"""How a share of right pictures grows with training: points with intervals, and a logistic curve."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError
from fewstep.evaluation.plots import new_figure, save_figure
from fewstep.evaluation.report import Figure, Report

# As `fewstep.training.products` fills model cards: "trained on 400,000 images", "denoiser, 400,000 images".
_SEEN: Final = re.compile(r"(?:trained on|denoiser,) (\d[\d,]*) images")
_CARD: Final = 100_000
FEWEST: Final = 3
"""Points that a curve is fitted through, at least: it has two parameters."""


@dataclass(frozen=True, slots=True)
class Logistic:
    """Share = 1 / (1 + exp(-(intercept + slope ln(images))))."""

    intercept: float
    slope: float

    def share(self, images: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share right after so many images."""
        return np.asarray(1 / (1 + np.exp(-(self.intercept + self.slope * np.log(images)))))

    def images(self, share: float) -> float:
        """Return how many images lead to a share between 0 and 1."""
        return float(np.exp((np.log(share / (1 - share)) - self.intercept) / self.slope))


def fit(images: Sequence[float], right: Sequence[float], tried: Sequence[float]) -> Logistic:
    """Fit a logistic regression of right answers on the logarithm of images seen, by maximum likelihood.

    Newton's method (iteratively reweighted least squares; Nelder and Wedderburn 1972, doi 10.2307/2344614,
    section 1), from the empirical logits.

    Args:
        images: images seen, P points above 0.
        right: right answers of each, 0 to ``tried``.
        tried: all answers of each.

    Raises:
        UsageError: fewer than 3 different numbers of images, or numbers out of range.
    """
    x, k, n = (np.asarray(values, np.float64) for values in (images, right, tried))
    if len(np.unique(x)) < FEWEST or not (len(x) == len(k) == len(n)):
        raise UsageError(f"{len(np.unique(x))} numbers of images: a curve needs {FEWEST} or more")
    if not ((x > 0).all() and (k >= 0).all() and (k <= n).all() and (n > 0).all()):
        raise UsageError("a curve needs images above 0, and 0 to all answers right")
    middle = float(np.log(x).mean())
    design = np.stack([np.ones_like(x), np.log(x) - middle], axis=1)
    smooth = np.log((k + 0.5) / (n - k + 0.5))
    beta = np.linalg.lstsq(design, smooth, rcond=None)[0]
    for _ in range(50):
        share = 1 / (1 + np.exp(-design @ beta))
        weight = np.maximum(n * share * (1 - share), 1e-9)
        step = np.linalg.solve(design.T @ (weight[:, None] * design), design.T @ (k - n * share))
        beta = beta + step
        if np.abs(step).max() < 1e-12:
            break
    return Logistic(float(beta[0] - beta[1] * middle), float(beta[1]))


def points(reports: Sequence[Report], set_name: str, figure: str) -> list[tuple[int, Figure]]:
    """Return (images seen, figure) of every report that has both, by images seen."""
    found = []
    for report in reports:
        part = next((part for part in report.sets if part.name == set_name), None)
        measured = None if part is None else part.figure(figure)
        if measured is not None and report.model.images_seen:
            found.append((report.model.images_seen, measured))
    return sorted(found, key=lambda point: point[0])


def images_seen(folder: Path) -> int | None:
    """Return how many images a model was trained on, as the card in its folder says; None without."""
    try:
        card = (folder / "README.md").read_text("utf-8")[:_CARD]
    except (OSError, UnicodeDecodeError):
        return None
    found = _SEEN.search(card)
    return int(found[1].replace(",", "")) if found else None


def plot(
    series: Mapping[str, Sequence[tuple[int, Figure]]], path: Path, *, title: str, foot: str
) -> list[str]:
    """Plot shares against images seen, with intervals, and a fitted curve where there are enough points.

    Args:
        series: name to (images seen, figure), figures being shares.
        path: PNG file.
        title: above.
        foot: below, such as the evaluator and its accuracy.

    Returns:
        One line on each fitted curve.

    Raises:
        UsageError: no points.
        OutputError: the file cannot be written.
    """
    if not any(series.values()):
        raise UsageError(
            "no point to plot: the models' cards do not say how many images they were trained on"
        )
    figure = new_figure(900, 620)
    axes = figure.add_axes((0.09, 0.17, 0.88, 0.75))
    said = []
    colours = ("#0072b2", "#e69f00", "#009e73", "#d00060", "#56b4e9", "#404040")
    for n, (name, found) in enumerate(series.items()):
        if not found:
            continue
        colour = colours[n % len(colours)]
        x = np.array([images for images, _ in found], np.float64)
        y = np.array([f.value for _, f in found])
        low = np.array([f.value if f.low is None else f.low for _, f in found])
        high = np.array([f.value if f.high is None else f.high for _, f in found])
        axes.errorbar(x, y, (y - low, high - y), fmt="o", color=colour, capsize=3, label=name)
        reals = [f.real for _, f in found if f.real is not None]
        if reals:
            axes.axhline(reals[-1], color=colour, linewidth=0.8, linestyle=":")
        if len(np.unique(x)) < FEWEST:
            continue
        tried = np.array([f.n for _, f in found], np.float64)
        curve = fit(list(x), list(y * tried), list(tried))
        grid = np.geomspace(x.min(), x.max() * 2, 200)
        axes.plot(grid, curve.share(grid), color=colour, linewidth=1.2)
        line = f"{name}: logit of the share = {curve.intercept:.2f} + {curve.slope:.2f} ln(images)"
        if curve.slope > 0:
            line += f"; half right at {curve.images(0.5):,.0f} images"
        said.append(line)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("images seen in training")
    axes.set_ylabel("share of pictures (dotted: real drawings)")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="best")
    figure.text(0.02, 0.015, "\n".join([*said, foot]), fontsize=6.5, va="bottom")
    save_figure(figure, path)
    return said
