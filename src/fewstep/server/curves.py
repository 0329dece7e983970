"""Values that a training or distillation wrote of itself, thinned for a picture of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

FILE: Final = "progress.jsonl"
POINTS: Final = 300
"""Of a curve, at most."""
MAX_BYTES: Final = 16 << 20
"""Read from a file; of a longer one the end."""
_NAMES: Final = 40

Points = list[tuple[int, float]]
"""(images, value), images rising."""


def read(run: Path) -> dict[str, dict[str, Points]]:
    """Values by stage and name; the stage of a training is empty.

    Args:
        run: folder of the run; one that is not there yet has none.
    """
    found = {"": run / FILE, **{path.parent.name: path for path in sorted(run.glob(f"*/{FILE}"))}}
    return {stage: values for stage, path in found.items() if (values := _curves(path))}


def thin(points: Points, most: int = POINTS) -> Points:
    """At most ``most`` points, evenly chosen, with the first and the last."""
    if len(points) <= most:
        return points
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def _curves(path: Path) -> dict[str, Points]:
    curves: dict[str, Points] = {}
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - MAX_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return {}
    for line in text.splitlines():
        try:
            values = json.loads(line)
            images = int(values["images"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # cut short by a crash, or being written
        for name, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if name != "images" and number and (name in curves or len(curves) < _NAMES):
                curves.setdefault(name, []).append((images, float(value)))
    return {name: thin(points) for name, points in curves.items()}
