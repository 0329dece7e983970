"""What a drawing starts from: noise, a picture, or channels beside the latents that show the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.engine import pictures
from fewstep.engine.backends.base import Backend, FloatArray, f32

if TYPE_CHECKING:
    from fewstep.diffusion.arrays import FloatArray as Times
    from fewstep.diffusion.prediction import Denoiser
    from fewstep.diffusion.schedule import Schedule
    from fewstep.engine.request import GenerateRequest

Adjust = Callable[[FloatArray, float], FloatArray]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """How the latents of a request begin. Everything is None where the request has no picture."""

    latents: FloatArray | None = None
    """(1, C, h, w), the encoded picture."""
    cells: FloatArray | None = None
    """(1, 1, h, w), 1 for latent cells that are redrawn; the others are put back after every step."""
    concat: FloatArray | None = None
    """(1, C', h, w), channels that the network is given beside the latents."""
    image: pictures.Image | None = None
    """(H, W, 3) in the size that is drawn."""
    alpha: FloatArray | None = None
    """(H, W, 1), 1 where the drawing shows and 0 where the picture stays."""
    warnings: tuple[str, ...] = ()

    def first(
        self, eps: FloatArray, grid: Times, schedule: Schedule, scale: float, strength: float
    ) -> FloatArray:
        """The latents at the first time.

        At full strength nothing of the picture is meant to shine through, as in text-to-image.

        Args:
            eps: (B, C, h, w), standard normal noise.
            grid: the times that are visited.
            schedule: the solver's.
            scale: factor on noise that a trajectory starts from.
            strength: of the request.
        """
        if self.latents is None or strength >= 1.0:
            return f32(eps * np.float32(scale)) if scale != 1.0 else f32(eps)
        known = np.repeat(self.latents, len(eps), axis=0)
        return f32(schedule.forward(known, eps, float(grid[0])))

    def finish(self, drawn: pictures.Image) -> pictures.Image:
        """What was drawn, with the picture where it was not to change."""
        if self.alpha is None or self.image is None:
            return drawn
        return pictures.paste(drawn, self.image, self.alpha)


def make(backend: Backend, request: GenerateRequest) -> Start:
    """Fit and encode the picture of a request as its model wants it."""
    info = backend.info
    if request.init_image is None:
        if info.inputs == "inpaint":
            # Text-to-image with a model that fills holes: the whole picture is one.
            shape = (request.height, request.width)
            grey, hole = np.zeros((*shape, 3), dtype=np.uint8), np.full(shape, 255, dtype=np.uint8)
            return Start(concat=_hole(backend, grey, hole))
        return Start()
    fitted = pictures.fit(request.init_image, request.mask, request.width, request.height)
    image, mask = fitted.image, fitted.mask
    pixels = pictures.to_pixels(image)[None]
    if info.inputs == "instruct":
        return Start(concat=backend.encode_image(pixels, scaled=False), image=image, warnings=fitted.warnings)
    latents = None
    if info.inputs == "latents" or request.strength < 1.0:
        latents = backend.encode_image(pixels)
    alpha = cells = concat = None
    if mask is not None:
        alpha = pictures.weights(mask)
    if info.inputs == "inpaint":
        concat = _hole(
            backend, image, np.full(image.shape[:2], 255, dtype=np.uint8) if mask is None else mask
        )
    elif mask is not None:
        cells = pictures.touched_cells(mask, info.downscale)
    return Start(
        latents=latents, cells=cells, concat=concat, image=image, alpha=alpha, warnings=fitted.warnings
    )


def _hole(backend: Backend, image: pictures.Image, mask: pictures.Image) -> FloatArray:
    """Mask and encoded masked picture, (1, 1 + C, h, w), in diffusers' order."""
    latents = backend.encode_image(pictures.masked(image, mask)[None])
    return np.concatenate([pictures.mask_channel(mask, backend.info.downscale), latents], axis=1)


def keep_known(start: Start, eps: FloatArray, schedule: Any, last: float) -> Adjust:
    """Put the known part back after every step, diffused to the level reached with the picture's own noise.

    Lugmayr et al. 2022 (RePaint, arXiv 2201.09865), Algorithm 1 lines 4-8, without its resampling and with
    one noise for all levels, as diffusers' inpainting does: fresh noise would break multistep solvers.

    Args:
        start: with ``latents`` and ``cells``.
        eps: the noise that the drawing starts from.
        schedule: the solver's.
        last: the last time of the grid, where the picture itself is put back, even if a little noise is left.
    """
    assert start.latents is not None and start.cells is not None
    known, cells = np.repeat(start.latents, len(eps), axis=0), start.cells

    def adjust(x: FloatArray, t: float) -> FloatArray:
        level = known if t == last else f32(schedule.forward(known, eps, t))
        return f32(cells * x + (np.float32(1.0) - cells) * level)

    return adjust


def with_known(denoise: Denoiser, adjust: Adjust, first: float) -> Denoiser:
    """A denoiser that sees the known part at the right level at every time but the first.

    Solvers that look twice in a step (PLMS, Heun) would otherwise see their own guess of it.
    """

    def mixed(x: FloatArray, t: Any) -> Any:
        return denoise(x if float(t) == first else adjust(x, float(t)), t)

    return mixed
