"""Labels of a grid: names and values, of a readable size, each in its own room."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from fewstep.server import grids
from fewstep.server.grids import Axis

GREEN = (0, 255, 0)
"""Of the cells; no letter has it at its edge."""
LONG = "a green apple with a very long description that never ends and goes on and on and on " * 5


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, int, int, int], str, float]]:
    """(left, top, right, bottom), text and size of every text that was drawn."""
    found: list[tuple[tuple[int, int, int, int], str, float]] = []
    own = ImageDraw.ImageDraw.text

    def text(self: Any, xy: Any, said: str, *given: Any, font: Any, **how: Any) -> None:
        box = self.textbbox(xy, said, font=font)
        found.append(((int(box[0]), int(box[1]), int(box[2]), int(box[3])), said, font.size))
        own(self, xy, said, *given, font=font, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def drawn(axes: list[Axis], side: int = 128, most: int = 1 << 24) -> Any:
    counts = ([len(axis.values) for axis in axes] + [1, 1])[:3]
    cells = [[[f"{z} {y} {x}" for x in range(counts[0])] for y in range(counts[1])] for z in range(counts[2])]
    return grids.draw(axes, cells, lambda _: np.full((side, side, 3), GREEN, np.uint8), most=most)


def apart(boxes: list[tuple[int, int, int, int]]) -> bool:
    """Whether no two of them have a pixel in common."""
    return not any(
        one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
        for place, one in enumerate(boxes)
        for other in boxes[:place]
    )


def test_every_value_is_named(written: Any) -> None:
    page = drawn([Axis("Steps", ("1", "4")), Axis("Seed", ("5", "6")), Axis("Guidance", ("1", "2.5"))])
    said = [text for _, text, _ in written]
    assert sorted(said) == sorted(
        ["Steps: 1", "Steps: 4", "Seed: 5", "Seed: 6"] * 2 + ["Guidance: 1", "Guidance: 2.5"]
    )
    assert apart([box for box, _, _ in written])
    assert page.shape[1] < 2 * 132 + 128


@pytest.mark.parametrize("side", [24, 48, 128, 512])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_long_values_are_cut_in_their_own_room(written: Any, side: int, count: int) -> None:
    values = ("red", LONG, "x" * 400)
    axes = [Axis(name, values) for name in ("Prompt search and replace", "Negative prompt", "Model")][:count]
    page = drawn(axes, side)
    boxes = [box for box, _, _ in written]
    assert apart(boxes)
    assert all(0 <= box[0] and box[2] <= page.shape[1] and box[3] <= page.shape[0] for box in boxes)
    said = [text for _, text, _ in written]
    assert any(text.endswith("…") for text in said)
    # A label stands on its paper, and not on a picture.
    for left, top, right, bottom in boxes:
        assert not (page[top:bottom, left:right] == GREEN).all(2).any()


def test_the_name_is_cut_before_the_value(written: Any) -> None:
    drawn([Axis("Prompt search and replace", ("red", "green", "blue"))], 48)
    said = " ".join(text for _, text, _ in written)
    assert all(value in said for value in ("red", "green", "blue")) and "…" in said


def test_letters_are_readable_when_the_whole_is_fitted_to_a_screen(written: Any) -> None:
    sizes = {}
    for side, across in product((128, 512, 1024), (2, 4, 20)):
        written.clear()
        page = drawn([Axis("Seed", tuple(map(str, range(across))))], side, 1 << 26)
        ((size,), width) = ({size for _, _, size in written}, page.shape[1])
        sizes[side, across] = size
        assert size * 1024 / width > 6, (side, across, size, width)
        assert apart([box for box, _, _ in written])
    assert sizes[128, 2] == 14 and sizes[512, 2] == 28  # no larger than suits a cell


def test_names_in_other_letters_choose_the_font(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values alone may be Latin: the font was chosen by these, and drew boxes for the names."""
    asked: list[str] = []

    own = grids.ImageFont.truetype

    def truetype(font: Any, *given: Any, **how: Any) -> Any:
        if not isinstance(font, str):
            return own(font, *given, **how)  # of Pillow itself
        asked.append(font)
        raise OSError

    monkeypatch.setattr(grids.ImageFont, "truetype", truetype)
    drawn([Axis("Steps", ("1", "2"))])
    assert asked == []
    drawn([Axis("步数", ("1", "2"))])
    assert "NotoSansCJK-Regular.ttc" in asked
