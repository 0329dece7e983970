"""Drawings with concept and style as numbers: what the evaluator is trained on, and what it never sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fewstep.data import split
from fewstep.data.augment import CELLS, Augmentation, disturb, grid, lay_over, warp
from fewstep.data.backgrounds import RGB
from fewstep.data.compositions import mirrorable
from fewstep.data.dataset import Batch
from fewstep.data.emoji import CANVAS, Drawing, Drawings
from fewstep.errors import DataError, UsageError

MARGIN: Final = 32.0
"""How far (in sRGB levels, Euclidean) a free colour stays from the backgrounds that are held out."""


def concepts(items: Sequence[Drawing]) -> tuple[str, ...]:
    """Every label of a drawing set once, held-out objects too, in the order of first appearance."""
    return tuple(dict.fromkeys(item.label for item in items))


class LabelledDrawings:
    """The `Dataset` of the evaluator.

    Held-out objects are neither samples nor candidates. A held-out combination of object, style and
    background is never composed: a drawing gets only backgrounds that are trained with it, or a free colour
    that is not close to those that are not. (Colour changes act on the whole picture, so they do not compose
    one either.)

    Attributes:
        labels: all K concepts, held-out ones too.
        trained: for each label whether it is trained.
        styles: the style words, in the order of first appearance.
        embeddings: float32 (K, W), rounded to float16 as evaluator folders keep them.
        backgrounds: name to colour.
    """

    def __init__(
        self,
        drawings: Drawings,
        backgrounds: Mapping[str, RGB],
        embeddings: NDArray[np.float32],
        *,
        embeddings_from: str,
        side: int = 64,
        any_colour: float = 0.3,
        mirror: bool = True,
        augmentation: Augmentation | None = None,
    ) -> None:
        """Select the drawings that are trained.

        Args:
            drawings: the set.
            backgrounds: name to colour.
            embeddings: (K, W), sentence embeddings of the captions of `concepts`.
            embeddings_from: hash of what computed them; goes into the fingerprint.
            side: width and height of the samples: a multiple of 16, from 64 (less would skip pixels) to 128.
            any_colour: fraction of the samples, 0 to 1, whose background is a free colour.
            mirror: mirror half of the samples whose label allows it.
            augmentation: how samples are changed; None for drawings as they are.

        Raises:
            UsageError: side, fraction or embeddings that do not fit.
            DataError: no drawing is left.
        """
        if side % CELLS or not CANVAS // 2 <= side <= CANVAS:
            raise UsageError(f"side {side}: give a multiple of {CELLS} from {CANVAS // 2} to {CANVAS}")
        if not 0 <= any_colour <= 1:
            raise UsageError(f"any_colour {any_colour}: give a fraction from 0 to 1")
        self.drawings = drawings
        self.labels = concepts(drawings.items)
        self.trained = tuple(not split.object_held_out(label) for label in self.labels)
        self.styles = tuple(dict.fromkeys(item.style for item in drawings.items))
        self.backgrounds = dict(backgrounds)
        if embeddings.ndim != 2 or len(embeddings) != len(self.labels):
            raise UsageError(
                f"embeddings {embeddings.shape}: give one for each of {len(self.labels)} concepts"
            )
        self.embeddings = embeddings.astype(np.float16).astype(np.float32)
        self._candidates = np.ascontiguousarray(self.embeddings[np.array(self.trained)])
        self._rows = [i for i, item in enumerate(drawings.items) if not split.object_held_out(item.label)]
        if not self._rows:
            raise DataError(f"{drawings.folder}: no drawing is trained; select more styles or groups")
        among_trained = [label for label, flag in zip(self.labels, self.trained, strict=True) if flag]
        number = {label: n for n, label in enumerate(among_trained)}
        items = [drawings.items[row] for row in self._rows]
        self._concept = np.array([number[item.label] for item in items], np.int64)
        self._style = np.array([self.styles.index(item.style) for item in items], np.int64)
        self._mirrorable = [mirror and mirrorable(item.label) for item in items]
        self._palette = np.array(list(backgrounds.values()), np.float32).reshape(-1, 3)
        self._allowed = [
            np.array([split.part(i.label, i.style, name) == "train" for name in backgrounds], np.bool_)
            for i in items
        ]
        self._how = {
            "side": side,
            "any_colour": any_colour,
            "mirror": mirror,
            "augmentation": None if augmentation is None else asdict(augmentation),
            "backgrounds": self.backgrounds,
            "embeddings": embeddings_from,
        }
        self._side = side
        self._any_colour = any_colour
        self._augmentation = augmentation

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return the samples of `indices` (B,).

        `pixels` float32 (B, 3, side, side) in [-1, 1]; `concept` int64 (B,), a row of `candidates`; `style`
        int64 (B,); `candidates` float32 (Kt, W), the embeddings of all trained concepts, the same for every
        batch.
        """
        pixels = np.empty((len(indices), 3, self._side, self._side), np.float32)
        for n, index in enumerate(indices.tolist()):
            pixels[n] = self._picture(index, rng).transpose(2, 0, 1)
        pixels *= 2
        pixels -= 1
        return {
            "pixels": pixels,
            "concept": self._concept[indices],
            "style": self._style[indices],
            "candidates": self._candidates,
        }

    def fingerprint(self) -> str:
        """Return the hash of the drawings, their split, and of how samples are made of them."""
        digest = hashlib.sha256(self.drawings.fingerprint.encode())
        digest.update(json.dumps([self._how, self._rows], sort_keys=True).encode())
        digest.update(np.packbits(np.stack(self._allowed)).tobytes())
        return digest.hexdigest()

    def _picture(self, index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """One sample, (side, side, 3) in [0, 1]."""
        mirrored = rng.random() < 0.5 and self._mirrorable[index]
        colour = self._colour(index, rng) / np.float32(255)
        points = grid(self._side, rng, self._augmentation, mirrored=mirrored)
        image = lay_over(warp(self.drawings.rgba[self._rows[index]], points), colour)
        return image if self._augmentation is None else disturb(image, rng, self._augmentation)

    def _colour(self, index: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """A background that is trained with this drawing, or a free colour away from those that are not."""
        allowed = self._allowed[index]
        names = np.flatnonzero(allowed)
        if len(names) and rng.random() >= self._any_colour:
            named: NDArray[np.float32] = self._palette[names[rng.integers(len(names))]]
            return named
        held_out = self._palette[~allowed]
        while True:
            free = np.floor(rng.random(3) * 256).astype(np.float32)
            if not len(held_out) or np.linalg.norm(held_out - free, axis=1).min() >= MARGIN:
                return free
