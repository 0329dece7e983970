"""What a mask hides and how it is redrawn: blurred edges, the filled hole, and the part around a mask alone.

The words are those of AUTOMATIC1111's web UI; the fill is push-pull interpolation and not its stack of blurs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fewstep.engine.backends.base import FloatArray, f32
from fewstep.errors import UsageError

Image = npt.NDArray[np.uint8]

Content = Literal["fill", "original", "latent_noise", "latent_nothing"]
"""What stands under the mask when drawing begins: the colours around it, the picture, noise, or zeros."""
CONTENTS: tuple[str, ...] = get_args(Content)

PADDING = 32
"""Pixels of the picture around the mask that are drawn with it, when only the masked part is drawn."""
MAX_BLUR = 256
"""Pixels."""
MAX_PADDING = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Masking:
    """How the mask of a request is used."""

    content: Content = "original"
    blur: int = 0
    """Standard deviation of the blur in pixels of the picture."""
    only_masked: bool = False
    """Draw the part around the mask at the request's size, and put it back."""
    padding: int = PADDING
    """Pixels of the picture around that part."""
    inverted: bool = False
    """The mask was turned round: known already, and said in records only."""

    def record(self) -> dict[str, Any]:
        """What differs from the defaults, for records."""
        found: dict[str, Any] = {}
        if self.content != "original":
            found["content"] = self.content
        if self.blur:
            found["blur"] = self.blur
        if self.only_masked:
            found |= {"only_masked": True, "padding": self.padding}
        if self.inverted:
            found["inverted"] = True
        return found


PLAIN = Masking()
"""A mask as it is, over the whole picture."""


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of pixels; right and bottom are outside it."""

    left: int
    top: int
    right: int
    bottom: int

    def cut(self, array: Any) -> Any:
        """That part of an array (H, W, ...)."""
        return array[self.top : self.bottom, self.left : self.right]


def resolve(
    masked: bool,
    *,
    content: str | None,
    blur: int | None,
    only_masked: bool,
    padding: int | None,
    inverted: bool,
) -> Masking:
    """Check how a mask is to be used.

    Args:
        masked: whether there is a mask.
        content: one of `CONTENTS`; None is ``original``.
        blur: pixels from 0; None is 0.
        only_masked: whether to draw the part around the mask alone.
        padding: pixels from 0; None is 32.
        inverted: whether the mask was turned round.

    Raises:
        UsageError: a value out of range, or any of these without a mask.
    """
    wanted = {
        "masked content": (content is not None, "--masked-content"),
        "mask blur": (bool(blur), "--mask-blur"),
        "only the masked part": (only_masked, "--only-masked"),
        "padding": (padding is not None, "--padding"),
        "an inverted mask": (inverted, "--invert-mask"),
    }
    for name, (given, flag) in wanted.items():
        if given and not masked:
            text = f"{name} is asked for without a mask: give --mask, or leave {flag} out"
            raise UsageError(text, field="mask")
    if padding is not None and not only_masked:
        raise UsageError(f"padding is {padding}: it is for --only-masked; give that too, or leave it out")
    if content is not None and content not in CONTENTS:
        raise UsageError(f"masked content {content!r} is not known: give one of {', '.join(CONTENTS)}")
    for name, value, most, flag in (
        ("mask blur", blur, MAX_BLUR, "--mask-blur"), ("padding", padding, MAX_PADDING, "--padding")
    ):  # fmt: skip
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if value is not None and not (whole and 0 <= value <= most):
            raise UsageError(f"{name} is {value}: give {flag} whole pixels from 0 to {most}")
    return Masking(
        content=content or "original",  # type: ignore[arg-type]
        blur=int(blur or 0),
        only_masked=only_masked,
        padding=PADDING if padding is None else int(padding),
        inverted=inverted,
    )


def blurred(mask: Image, blur: int) -> Image:
    """A mask (H, W) with soft edges.

    A Gaussian of standard deviation ``blur`` over int(2.5 blur + 0.5) pixels to each side, as A1111 blurs
    masks; the edge of the picture counts as going on.
    """
    if blur == 0:
        return mask
    reach = int(2.5 * blur + 0.5)
    distance = np.arange(-reach, reach + 1, dtype=np.float64)
    kernel = np.exp(-(distance**2) / (2.0 * blur**2))
    kernel /= kernel.sum()
    soft = mask.astype(np.float64)
    for axis in (0, 1):
        edges = [(reach, reach) if axis == other else (0, 0) for other in (0, 1)]
        padded = np.pad(soft, edges, mode="edge")
        soft = np.zeros_like(soft)
        for offset, weight in enumerate(kernel):
            part = slice(offset, offset + mask.shape[axis])
            soft += weight * (padded[part] if axis == 0 else padded[:, part])
    return np.asarray(np.clip(soft + 0.5, 0.0, 255.0), dtype=np.uint8)


def region(mask: Image, padding: int, width: int, height: int) -> Region:
    """The part of a picture around its mask, in the shape of ``width`` x ``height`` as far as there is room.

    Args:
        mask: (H, W), not black everywhere.
        padding: pixels around it.
        width: of what is drawn.
        height: as ``width``.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tall, wide = mask.shape
    left, right = max(int(columns[0]) - padding, 0), min(int(columns[-1]) + 1 + padding, wide)
    top, bottom = max(int(rows[0]) - padding, 0), min(int(rows[-1]) + 1 + padding, tall)
    across, down = right - left, bottom - top
    if across * height > down * width:
        top, bottom = _widened(top, bottom, -(-across * height // width), tall)
    else:
        left, right = _widened(left, right, -(-down * width // height), wide)
    return Region(left, top, right, bottom)


def filled(image: Image, mask: Image) -> Image:
    """A picture whose masked part has the colours around it, smoother the further in.

    Push-pull interpolation (Gortler et al. 1996, "The Lumigraph", section 3.2): averages of known pixels at
    ever coarser scales, then back, each scale filling what the finer one does not know.

    Args:
        image: (H, W, 3).
        mask: (H, W), 255 where nothing is known; where everything is, the result is grey.
    """
    known = 1.0 - mask.astype(np.float64)[..., None] / 255.0
    if not known.any():
        return np.full_like(image, 128)
    done = _pull(image.astype(np.float64), known)
    return np.asarray(np.clip(done + 0.5, 0.0, 255.0), dtype=np.uint8)


def hidden(latents: FloatArray, cells: FloatArray, content: Content, fresh: FloatArray | None) -> FloatArray:
    """Latents to begin with, with noise or zeros in the cells that are redrawn.

    The noise is not the one that diffuses them: the two together have the spread of noise alone. A1111 takes
    the same twice.

    Args:
        latents: (B, C, h, w) or one row for all, of the picture.
        cells: (1, 1, h, w), 1 where it is redrawn.
        content: anything but noise and zeros changes nothing.
        fresh: (B, C, h, w), the noise for ``latent_noise``.
    """
    if content == "latent_nothing":
        return f32(latents * (np.float32(1.0) - cells))
    if content == "latent_noise":
        assert fresh is not None
        return f32(latents * (np.float32(1.0) - cells) + fresh * cells)
    return latents


def _widened(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    wanted = max(min(wanted, limit), high - low)
    low = min(max(low - (wanted - (high - low)) // 2, 0), limit - wanted)
    return low, low + wanted


def _pull(colours: npt.NDArray[np.float64], known: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """One scale of push-pull: (H, W, 3) and weights (H, W, 1) in [0, 1] -> (H, W, 3)."""
    tall, wide = colours.shape[:2]
    if known.min() >= 1.0 or (tall == 1 and wide == 1):
        return colours
    odd = ((0, tall % 2), (0, wide % 2), (0, 0))
    weighted, weight = np.pad(colours * known, odd), np.pad(known, odd)
    shape = (weight.shape[0] // 2, 2, weight.shape[1] // 2, 2, -1)
    weight = weight.reshape(shape).sum(axis=(1, 3))
    mean = weighted.reshape(shape).sum(axis=(1, 3)) / np.maximum(weight, 1e-12)
    coarse = _pull(mean, np.minimum(weight, 1.0))
    return known * colours + (1.0 - known) * _doubled(coarse)[:tall, :wide]


def _doubled(colours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Twice as large, by the tent: each new pixel is three quarters its own and one quarter its neighbour."""
    for axis in (0, 1):
        edges = [(1, 1) if axis == other else (0, 0) for other in (0, 1, 2)]
        around = np.pad(colours, edges, mode="edge")
        count = colours.shape[axis]
        before, after = (np.take(around, range(start, start + count), axis=axis) for start in (0, 2))
        pair = np.stack([0.75 * colours + 0.25 * before, 0.75 * colours + 0.25 * after], axis=axis + 1)
        shape = list(colours.shape)
        shape[axis] *= 2
        colours = pair.reshape(shape)
    return colours
