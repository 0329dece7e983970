"""A small world in which the evaluator is perfect: concepts are colours, styles a dark or light corner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.data import split
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.emoji import Drawing, Drawings
from fewstep.data.preparation import Selection

COLOURS = {
    "red apple": (250, 10, 10),
    "fox": (250, 130, 10),
    "owl": (120, 70, 20),
    "pizza": (240, 240, 20),
    "dog": (10, 10, 250),
    "frog": (10, 250, 10),
    "goose": (100, 100, 100),  # held out whole
    "bell": (10, 250, 250),  # held out whole, of another group
}
GROUPS = {"red apple": "food-drink", "pizza": "food-drink", "bell": "objects"}
STYLES = ("noto", "twemoji")
CORNERS = {"noto": 0, "twemoji": 255}


@dataclass(frozen=True)
class Arrays:
    features: np.ndarray[Any, Any]
    concept_logits: np.ndarray[Any, Any]
    style_logits: np.ndarray[Any, Any]


@dataclass
class PerfectJudge:
    """Reads the colour in the middle, the corner of the drawing, and the border."""

    labels: tuple[str, ...] = tuple(COLOURS)
    styles: tuple[str, ...] = STYLES
    backgrounds: Mapping[str, tuple[int, int, int]] = field(default_factory=load_backgrounds)
    hash: str = "e" * 64
    meta: Mapping[str, object] = field(default_factory=lambda: {"images_seen": 5000, "drawings": "d" * 64})
    seen: int = 0

    def run(self, pixels: np.ndarray[Any, Any]) -> Arrays:
        self.seen += len(pixels)
        side = pixels.shape[1]
        part = slice(side * 7 // 16, side * 9 // 16)
        middle = pixels[:, part, part].astype(np.float64).mean(axis=(1, 2))
        corner = pixels[:, side * 3 // 16, side * 3 // 16].astype(np.float64).mean(axis=1)
        border = pixels[:, 0, 0].astype(np.float64)
        known = np.array([COLOURS[label] for label in self.labels], np.float64)
        concept = -np.linalg.norm(middle[:, None] - known, axis=-1)
        style = -np.abs(corner[:, None] - np.array([CORNERS[s] for s in self.styles]))
        features = np.concatenate([middle, corner[:, None], border], axis=1) / 255 + 0.01
        return Arrays(features.astype(np.float32), concept.astype(np.float32), style.astype(np.float32))


def make_drawings(folder: Path) -> Drawings:
    items, pixels = [], []
    for style in STYLES:
        for label, colour in COLOURS.items():
            held_out = "object" if split.object_held_out(label) else "train"
            group = GROUPS.get(label, "animals-nature")
            items.append(Drawing(style, group, label, (), label, "package", "1", "MIT", held_out))
            rgba = np.zeros((128, 128, 4), np.uint8)
            rgba[16:112, 16:112] = (*colour, 255)
            rgba[16:40, 16:40] = (*[CORNERS[style]] * 3, 255)
            pixels.append(rgba)
    return Drawings(folder, np.stack(pixels), tuple(items), "d" * 64, ())


@pytest.fixture
def judge() -> PerfectJudge:
    return PerfectJudge()


@pytest.fixture
def drawings(tmp_path: Path) -> Drawings:
    return make_drawings(tmp_path / "drawings")


@pytest.fixture
def selection() -> Selection:
    return Selection(styles=STYLES, groups=("food-drink", "animals-nature"), per_drawing=4)
