"""Encoding and decoding large pictures in overlapping tiles, so that memory stays that of one tile.

Every tile has the model's native size, whatever the picture's: OpenVINO then compiles one network for all. At
the seams tiles fade into one another along straight lines, as in diffusers' ``AutoencoderKL.tiled_decode``,
whose tiles at the right and bottom are smaller instead. Normalisation sees one tile at a time, so that tones
may differ from those of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fewstep.engine.backends.base import FloatArray, f32

if TYPE_CHECKING:
    from fewstep.engine.backends.base import Backend, ModelInfo
    from fewstep.engine.request import GenerateRequest

AUTOMATIC = 4
"""Times the native number of pixels above which a picture is tiled without being asked."""
OVERLAP = 0.25
"""Share of a tile's side that it has in common with its neighbour, at the least; as in diffusers."""


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """A backend's autoencoder, in tiles or not."""

    backend: Backend
    tiled: bool

    @property
    def info(self) -> ModelInfo:
        """The model."""
        return self.backend.info

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """As `Backend.encode_image`."""

        def encode(tile: FloatArray) -> FloatArray:
            return self.backend.encode_image(tile, scaled=scaled)

        if not self.tiled:
            return encode(pixels)
        down = self.info.downscale
        (wide, tall), channels = self.info.native_size, self.info.latent_channels
        return in_tiles(encode, pixels, (tall // down, wide // down), channels, shrink=down)

    def decode(self, latents: FloatArray) -> FloatArray:
        """As `Backend.decode`."""
        if not self.tiled:
            return self.backend.decode(latents)
        down = self.info.downscale
        wide, tall = self.info.native_size
        return in_tiles(self.backend.decode, latents, (tall // down, wide // down), 3, grow=down)


def wanted(info: ModelInfo, width: int, height: int, asked: bool | None) -> bool:
    """Whether a picture is tiled: as asked, or if it has more than `AUTOMATIC` times the native pixels."""
    if asked is not None:
        return asked
    return width * height > AUTOMATIC * info.native_size[0] * info.native_size[1]


def prepared(info: ModelInfo, request: GenerateRequest) -> dict[str, tuple[int, int]]:
    """What `Backend.prepare` is told beside the picture's size: that of the tiles, if there are any."""
    if not request.vae_tiling:
        return {}
    wide, tall = info.native_size
    return {"tile": (min(request.width, wide), min(request.height, tall))}


def in_tiles(
    run: Callable[[FloatArray], FloatArray],
    array: FloatArray,
    tile: tuple[int, int],
    channels: int,
    *,
    grow: int = 1,
    shrink: int = 1,
) -> FloatArray:
    """Run a network on overlapping tiles of its input, and blend what it gives.

    Args:
        run: (1, C, h, w) -> (1, channels, h * grow / shrink, w * grow / shrink).
        array: (B, C, H, W).
        tile: (height, width) of a tile in latent cells; smaller where the picture is.
        channels: of the output.
        grow: output pixels per input cell (decoding).
        shrink: input pixels per output cell (encoding).
    """
    rows, columns = (
        _starts(array.shape[axis] // shrink, size) for axis, size in ((2, tile[0]), (3, tile[1]))
    )
    tall, wide = (min(size, array.shape[axis] // shrink) for axis, size in ((2, tile[0]), (3, tile[1])))
    shape = (channels, array.shape[2] * grow // shrink, array.shape[3] * grow // shrink)
    made = np.zeros((len(array), *shape), dtype=np.float32)
    for index in range(len(array)):
        total = np.zeros((1, *shape[1:]), dtype=np.float32)
        for top in rows:
            for left in columns:
                part = array[
                    index : index + 1, :, top * shrink : (top + tall) * shrink,
                    left * shrink : (left + wide) * shrink,
                ]  # fmt: skip
                weight = np.outer(_fade(top, tall, rows, grow), _fade(left, wide, columns, grow))[None]
                place = (slice(None), slice(top * grow, (top + tall) * grow),
                         slice(left * grow, (left + wide) * grow))  # fmt: skip
                made[index][place] += run(f32(part))[0] * weight
                total[place] += weight
        made[index] /= total
    return made


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin: as few as overlap by `OVERLAP`, spread evenly, the last one at the end."""
    if size <= tile:
        return [0]
    step = max(int(tile * (1.0 - OVERLAP)), 1)
    count = -(-(size - tile) // step) + 1
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]


def _fade(start: int, size: int, starts: list[int], grow: int) -> FloatArray:
    """Weights along one side of a tile: rising over what it shares with the one before, falling likewise."""
    weight = np.ones(size * grow, dtype=np.float32)
    place = starts.index(start)
    if place > 0:
        shared = (starts[place - 1] + size - start) * grow
        weight[:shared] *= _ramp(shared)
    if place + 1 < len(starts):
        shared = (start + size - starts[place + 1]) * grow
        weight[-shared:] *= _ramp(shared)[::-1]
    return weight


def _ramp(count: int) -> FloatArray:
    return f32((np.arange(count) + 0.5) / max(count, 1))
