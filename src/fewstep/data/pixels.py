"""Drawings as pixels for training the autoencoder: crops, mirror images, plain colours behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fewstep.data.backgrounds import RGB
from fewstep.data.compositions import compose
from fewstep.data.dataset import Batch
from fewstep.data.emoji import CANVAS, Drawings
from fewstep.errors import DataError, UsageError


class EmojiPixels:
    """The `Dataset` of drawings on plain colours, for the autoencoder.

    Each sample draws its crop, whether it is mirrored, and its background: a named one, or any colour.
    """

    def __init__(
        self,
        drawings: Drawings,
        backgrounds: Mapping[str, RGB],
        *,
        crop: int | None = 64,
        mirror: bool = True,
        any_colour: float = 0.3,
        part: str = "train",
    ) -> None:
        """Select the drawings of one part.

        Args:
            drawings: the set.
            backgrounds: name to colour.
            crop: side of the square crop in pixels, at most 128; None for the whole canvas.
            mirror: mirror half of the samples.
            any_colour: fraction of the samples, 0 to 1, whose background is a random colour.
            part: "train", or "object" for the objects that are held out whole.

        Raises:
            UsageError: crop or fraction out of range.
            DataError: no drawing of this part.
        """
        if crop is not None and not 1 <= crop <= CANVAS:
            raise UsageError(f"crop {crop}: give 1 to {CANVAS} pixels")
        if not 0 <= any_colour <= 1:
            raise UsageError(f"any_colour {any_colour}: give a fraction from 0 to 1")
        self.drawings = drawings
        self._rows = np.array([i for i, item in enumerate(drawings.items) if item.split == part], np.int64)
        if not len(self._rows):
            raise DataError(f"{drawings.folder}: no drawing of part {part!r}; select more styles or groups")
        self._palette = np.array(list(backgrounds.values()), np.float32)
        self._side = CANVAS if crop is None else crop
        self._mirror = mirror
        self._any_colour = any_colour

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return `pixels` float32 (B, 3, crop, crop) in [-1, 1]."""
        side, room = self._side, CANVAS - self._side + 1
        draws = rng.random((len(indices), 8))
        crops = np.empty((len(indices), side, side, 4), np.uint8)
        for n, (row, draw) in enumerate(zip(self._rows[indices], draws, strict=True)):
            top, left = int(draw[0] * room), int(draw[1] * room)
            crop = self.drawings.rgba[row, top : top + side, left : left + side]
            crops[n] = crop[:, ::-1] if self._mirror and draw[2] < 0.5 else crop
        named = self._palette[(draws[:, 4] * len(self._palette)).astype(np.int64)]
        free = np.floor(draws[:, 5:8] * 256).astype(np.float32)
        colours = np.where(draws[:, 3:4] < self._any_colour, free, named)
        return {"pixels": compose(crops, colours)}

    def fingerprint(self) -> str:
        """Return the hash of the drawings that are used and of how samples are made of them."""
        how = [self._side, self._mirror, self._any_colour, self._palette.tolist(), self._rows.tolist()]
        return hashlib.sha256((self.drawings.fingerprint + json.dumps(how)).encode()).hexdigest()
