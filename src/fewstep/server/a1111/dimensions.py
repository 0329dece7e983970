"""How the sizes that a client asks for are reached, and refused where they cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.engine.upscaling import catalogue
from fewstep.engine.upscaling.enlarge import MAX_FACTOR
from fewstep.errors import UsageError
from fewstep.server import sizes
from fewstep.server.orders import Upscale

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.server.settings import Limits

_SMALL = 1.5
"""Times a side that plain resizing does as well as a network, or nearly."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Sizes of a picture of two passes."""

    first: tuple[int, int]
    """(width, height) that is drawn."""
    second: tuple[int, int] | None
    """None: there is nothing to be drawn between ``first`` and the final size."""
    upscale: Upscale | None
    """To the final size."""


def plan(info: ModelInfo, width: int, height: int, limits: Limits, upscaler: str = "auto") -> sizes.SizePlan:
    """What to draw for a size, and what brings it there.

    Args:
        info: the model.
        width: pixels.
        height: pixels.
        limits: of the server.
        upscaler: a name of ``fewstep.engine.upscaling.catalogue``, ``auto``, or ``none``: draw it as it is.

    Raises:
        UsageError: too large, or a network is needed and there is none; the message has sizes that work.
    """
    if width * height > limits.max_output:
        raise UsageError(
            f"size is {width}x{height}: this server makes at most {limits.max_output} pixels a picture; "
            f"{_working(info)}"
        )
    if upscaler == "none":
        return sizes.SizePlan(width, height, None)
    found = sizes.plan(info, width, height, upscaler=upscaler)
    if found.upscale is None:
        return found
    factor = max(width / found.width, height / found.height)
    if factor > MAX_FACTOR:
        raise UsageError(
            f"size is {width}x{height}: {info.name} draws {found.width}x{found.height} in this shape, and at "
            f"most {MAX_FACTOR:g} times a side is reached from there; {_working(info)}"
        )
    if factor > _SMALL and upscaler == "auto" and catalogue.resolve("auto") in catalogue.PLAIN:
        raise UsageError(
            f"size is {width}x{height}: {info.name} draws {found.width}x{found.height} in this shape, and no "
            f"network is installed that enlarges it ({catalogue.INSTALL}); {_working(info)}"
        )
    if factor <= _SMALL and upscaler == "auto":
        return sizes.SizePlan(found.width, found.height, Upscale(name="lanczos", width=width, height=height))
    return found


def passes(
    info: ModelInfo,
    asked: tuple[int, int],
    final: tuple[int, int],
    limits: Limits,
    *,
    upscaler: str = "auto",
) -> Passes:
    """Sizes of a drawing of two passes: as many times larger as asked for, as far as the model goes.

    Args:
        info: the model.
        asked: (width, height) of the first pass.
        final: (width, height) of the picture.
        limits: of the server.
        upscaler: as of `plan`.

    Raises:
        UsageError: as `plan`.
    """
    first = plan(info, *asked, limits, upscaler)
    if final[0] * final[1] > limits.max_output:
        raise UsageError(
            f"size is {final[0]}x{final[1]}: this server makes at most {limits.max_output} pixels a picture"
        )
    wanted = (first.width * final[0] / asked[0], first.height * final[1] / asked[1])
    step = info.size_multiple
    room = min(1.0, info.max_size // step * step / max(wanted))
    second = (
        max(round(wanted[0] * room / step) * step, first.width),
        max(round(wanted[1] * room / step) * step, first.height),
    )
    drawn = (first.width, first.height)
    reached = drawn if second == drawn else second
    back = (
        None
        if reached == final
        else Upscale(name=_towards(reached, final, upscaler), width=final[0], height=final[1])
    )
    return Passes(drawn, None if second == drawn else second, back)


def final_size(asked: tuple[int, int], scale: float, resize: tuple[int, int]) -> tuple[int, int]:
    """(width, height) after a second pass: ``resize``, whose 0 follows the shape, or ``scale`` times."""
    width, height = asked
    if resize == (0, 0):
        return round(width * scale), round(height * scale)
    if resize[1] == 0:
        return resize[0], max(round(resize[0] * height / width), 1)
    if resize[0] == 0:
        return max(round(resize[1] * width / height), 1), resize[1]
    return resize


def _towards(drawn: tuple[int, int], final: tuple[int, int], upscaler: str) -> str:
    if upscaler not in ("auto", "none"):
        return upscaler
    return "lanczos" if max(final[0] / drawn[0], final[1] / drawn[1]) <= _SMALL else "auto"


def _working(info: ModelInfo) -> str:
    native = dict.fromkeys([info.native_size, *info.contract.native_sizes])
    width, height = info.native_size
    step = info.size_multiple
    near = [
        (round(width * wide / step) * step, round(height / wide / step) * step) for wide in (1.15, 1 / 1.15)
    ]
    shown = [f"{one[0]}x{one[1]}" for one in dict.fromkeys([*native, *near])]
    return f"sizes that work: {', '.join(shown[:8])}"
