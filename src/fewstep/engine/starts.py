"""What a drawing starts from: noise, a picture, or channels beside the latents that show the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.diffusion import noise
from fewstep.engine import masks, pictures
from fewstep.engine.backends.base import FloatArray, f32

if TYPE_CHECKING:
    from fewstep.diffusion.arrays import FloatArray as Times
    from fewstep.diffusion.prediction import Denoiser
    from fewstep.diffusion.schedule import Schedule
    from fewstep.engine.request import GenerateRequest
    from fewstep.engine.tiling import Autoencoder

Adjust = Callable[[FloatArray, float], FloatArray]

_HOLE = 2**32
"""Stream of the noise under a mask: far from those of solver steps."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Start:
    """How the latents of a request begin. Everything is None where the request has no picture."""

    latents: FloatArray | None = None
    """(1, C, h, w), the encoded picture; or (B, C, h, w), one for each image that is drawn together."""
    cells: FloatArray | None = None
    """(1, 1, h, w), 1 for latent cells that are redrawn; the others are put back after every step."""
    concat: FloatArray | None = None
    """(1, C', h, w), channels that the network is given beside the latents."""
    image: pictures.Image | None = None
    """(H, W, 3) in the size that is drawn."""
    alpha: FloatArray | None = None
    """(H, W, 1), 1 where the drawing shows and 0 where the picture stays; of ``whole``'s size, if there is
    one."""
    warnings: tuple[str, ...] = ()
    hole: FloatArray | None = None
    """(1, 1, h, w), 1 for latent cells that begin with ``content`` and not with the picture."""
    content: masks.Content = "original"
    region: masks.Region | None = None
    """The part of ``whole`` that is drawn; None is all of it."""
    whole: pictures.Image | None = None
    """(H, W, 3), the picture that a part of is drawn."""

    def first(
        self,
        eps: FloatArray,
        grid: Times,
        schedule: Schedule,
        scale: float,
        strength: float,
        seeds: Sequence[int] = (),
    ) -> FloatArray:
        """The latents at the first time.

        At full strength nothing of the picture is meant to shine through, as in text-to-image.

        Args:
            eps: (B, C, h, w), standard normal noise.
            grid: the times that are visited.
            schedule: the solver's.
            scale: factor on noise that a trajectory starts from.
            strength: of the request.
            seeds: of the B images, for the masked content ``latent_noise``.
        """
        if self.latents is None or strength >= 1.0:
            return f32(eps * np.float32(scale)) if scale != 1.0 else f32(eps)
        known = self.rows(len(eps))
        if self.hole is not None:
            fresh = None
            if self.content == "latent_noise":
                fresh = np.stack([noise.image_noise(seed, eps.shape[1:], stream=_HOLE) for seed in seeds])
            known = masks.hidden(known, self.hole, self.content, fresh)
        return f32(schedule.forward(known, eps, float(grid[0])))

    def rows(self, count: int) -> FloatArray:
        """``latents`` as ``count`` rows."""
        assert self.latents is not None
        return np.repeat(self.latents, count, axis=0) if len(self.latents) == 1 else self.latents

    def finish(self, drawn: pictures.Image) -> pictures.Image:
        """What was drawn, with the picture where it was not to change."""
        if self.alpha is None or self.image is None:
            return drawn
        if self.region is not None and self.whole is not None:
            part = self.region
            canvas = self.whole.copy()
            canvas[part.top : part.bottom, part.left : part.right] = pictures.resized(
                drawn, part.right - part.left, part.bottom - part.top
            )
            return pictures.paste(canvas, self.whole, self.alpha)
        return pictures.paste(drawn, self.image, self.alpha)


def make(coder: Autoencoder, request: GenerateRequest) -> Start:
    """Fit and encode the picture of a request as its model wants it."""
    info = coder.info
    if request.init_image is None:
        if info.inputs == "inpaint":
            # Text-to-image with a model that fills holes: the whole picture is one.
            shape = (request.height, request.width)
            grey, white = np.zeros((*shape, 3), dtype=np.uint8), np.full(shape, 255, dtype=np.uint8)
            return Start(concat=_hole(coder, grey, white))
        return Start()
    use = request.masking
    picture, mask = request.init_image, request.mask
    part: masks.Region | None = None
    whole = shown = None
    if mask is not None:
        mask = masks.blurred(mask, use.blur)
        if use.only_masked:
            part, whole = masks.region(mask, use.padding, request.width, request.height), picture
            shown, picture, mask = mask, part.cut(picture), part.cut(mask)
    fitted = pictures.fit(picture, mask, request.width, request.height)
    image, mask = fitted.image, fitted.mask
    begun = masks.filled(image, mask) if use.content == "fill" and mask is not None else image
    pixels = pictures.to_pixels(begun)[None]
    if info.inputs == "instruct":
        return Start(concat=coder.encode_image(pixels, scaled=False), image=image, warnings=fitted.warnings)
    latents = None
    if info.inputs == "latents" or request.strength < 1.0:
        latents = coder.encode_image(pixels)
    alpha = cells = concat = hole = None
    if mask is not None:
        alpha = pictures.weights(mask if shown is None else shown)
        # Beyond the edges of a picture: pixels that only blend keep their latents, see `outpaint.Canvas`.
        redrawn = mask if request.outpaint is None else np.where(mask == 255, mask, 0).astype(np.uint8)
        hole = pictures.touched_cells(redrawn, info.downscale)
    if info.inputs == "inpaint":
        concat = _hole(coder, image, np.full(image.shape[:2], 255, dtype=np.uint8) if mask is None else mask)
    else:
        cells = hole
    return Start(
        latents=latents, cells=cells, concat=concat, image=image, alpha=alpha,
        warnings=() if part is not None else fitted.warnings, hole=hole, content=use.content, region=part,
        whole=whole,
    )  # fmt: skip


def _hole(coder: Autoencoder, image: pictures.Image, mask: pictures.Image) -> FloatArray:
    """Mask and encoded masked picture, (1, 1 + C, h, w), in diffusers' order."""
    latents = coder.encode_image(pictures.masked(image, mask)[None])
    return np.concatenate([pictures.mask_channel(mask, coder.info.downscale), latents], axis=1)


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
    known, cells = start.rows(len(eps)), start.cells

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
