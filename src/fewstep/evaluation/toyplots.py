"""Pictures of points in the plane: what every model makes of the same noises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoint import atomic

Panel = tuple[str, NDArray[np.float64], NDArray[np.float64]]
"""Title, points (N, 2), and the teacher's ends (N, 2) of the same noises."""


def scatter(panels: Sequence[Panel], path: Path, *, title: str, columns: int = 5, shown: int = 1500) -> None:
    """One panel per model: its points, coloured by the direction in which the teacher's flow ends.

    A student that keeps the flow shows the colours in order; one that lets it go mixes them.

    Args:
        panels: the teacher first.
        path: the PNG.
        title: above all.
        columns: panels in a row.
        shown: points drawn at most.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = -(-len(panels) // columns)
    across = min(columns, len(panels))
    figure, axes = plt.subplots(rows, across, figsize=(2.3 * across, 2.45 * rows + 0.4), squeeze=False)
    limit = 1.15 * float(np.abs(panels[0][2]).max())
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (name, points, ends) in zip(axes.flat, panels, strict=False):
        angle = np.arctan2(ends[:shown, 1], ends[:shown, 0])
        axis.scatter(*points[:shown].T, c=angle, cmap="twilight", s=2, linewidths=0)
        axis.set_title(name, fontsize=8)
        axis.set_xlim(-limit, limit)
        axis.set_ylim(-limit, limit)
        axis.set_aspect("equal")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 1.0 - 0.3 / (2.45 * rows + 0.4)))
    with atomic.file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
