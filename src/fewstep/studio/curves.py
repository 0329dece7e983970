"""Curves of a run as an SVG picture: no library, no script, readable in light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from fewstep.studio.markup import text

Points = Sequence[Sequence[float]]
"""(images, value), images rising."""

WIDTH: Final = 480
HEIGHT: Final = 180
COLOURS: Final = ("#8b5cf6", "#0ea5e9", "#f59e0b", "#10b981", "#ef4444", "#64748b")
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 22


def svg(curves: Mapping[str, Points], *, label: str, x: str) -> str:
    """Lines over images; the empty text where there is no point.

    Args:
        curves: by name, which the key of the picture shows.
        label: what the picture is, for those who do not see it.
        x: what the axis to the right counts.
    """
    shown = {name: [(float(a), float(b)) for a, b in points] for name, points in curves.items() if points}
    if not shown:
        return ""
    every = [point for points in shown.values() for point in points]
    x0, x1 = _range([point[0] for point in every])
    y0, y1 = _range([point[1] for point in every])
    lines, names = [], []
    for place, (name, points) in enumerate(shown.items()):
        colour = COLOURS[place % len(COLOURS)]
        where = [
            (_at(a, x0, x1, _LEFT, WIDTH - _RIGHT), _at(b, y0, y1, HEIGHT - _BOTTOM, _TOP)) for a, b in points
        ]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in where)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(where) == 1:
            lines.append(f'<circle cx="{where[0][0]:.1f}" cy="{where[0][1]:.1f}" r="3" fill="{colour}"/>')
        names.append(
            f'<span><i style="background:{colour}"></i>{text(name)} <b>{number(points[-1][1])}</b></span>'
        )
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="currentColor" '
        f'stroke-opacity="0.15"/>'
        f'<text x="{_LEFT - 4}" y="{at + 3:.1f}" text-anchor="end">{number(value)}</text>'
        for value in (y0, (y0 + y1) / 2, y1)
        for at in (_at(value, y0, y1, HEIGHT - _BOTTOM, _TOP),)
    )
    ends = (
        f'<text x="{_LEFT}" y="{HEIGHT - 6}">{number(x0)}</text>'
        f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{number(x1)} {text(x)}</text>'
    )
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(label)}" '
        f'font-size="10" fill="currentColor">{grid}{"".join(lines)}{ends}</svg>'
        f"<figcaption>{''.join(names)}</figcaption></figure>"
    )


def number(value: float) -> str:
    """A number of four digits at most: 12,000 is 12k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.0f}k" if abs(value) < 10_000_000 else f"{value / 1_000_000:.0f}M"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def chosen(stages: Sequence[Mapping[str, object]], begin: str) -> dict[str, Points]:
    """The curves whose names begin so, of all stages, those of several stages named by them.

    Args:
        stages: of ``/api/v1/jobs/ID/curves``.
        begin: ``loss`` or ``teacher_distance``.
    """
    found: dict[str, Points] = {}
    for stage in stages:
        values = stage["values"]
        assert isinstance(values, Mapping)
        for name, points in values.items():
            if name == begin or name.startswith(f"{begin}/"):
                short = name.removeprefix(f"{begin}/")
                found[f"{stage['stage']} {short}".strip() if len(stages) > 1 else short] = points
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    least, most = min(values), max(values)
    if math.isclose(least, most):
        return least - 0.5 * abs(least or 1), most + 0.5 * abs(most or 1)
    return least, most


def _at(value: float, least: float, most: float, begin: float, end: float) -> float:
    return begin + (value - least) / (most - least) * (end - begin)
