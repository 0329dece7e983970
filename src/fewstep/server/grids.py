"""Pictures of the history as one labelled grid: two axes, and sheets below each other for a third."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fewstep.errors import UsageError

Pixels = NDArray[np.uint8]
"""(H, W, 3), sRGB."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

KEY: Final = "grid"
"""Of the record: axes with their values, and the ids of the cells' pictures."""
_GAP: Final = 4
_LEAST: Final = 8
"""Pixels of a side of a cell, however many there are."""
_LINES: Final = 3
"""Of a label, at most; those of rows may have one more where a cell has the height."""
_NARROW: Final = 5
"""Lines' heights that the labels of rows may always be wide, however narrow the cells are."""
_ACROSS: Final = 64
"""Letters of a readable size have at least this part of the picture's width in height."""
_CUT: Final = "…"
_INK, _PAPER, _EMPTY = (31, 41, 55), (255, 255, 255), (229, 231, 235)
_FONTS: Final = (
    "NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc", "msyh.ttc",
    "PingFang.ttc", "DroidSansFallback.ttf", "DejaVuSans.ttf",
)  # fmt: skip
"""Of the system, for labels that are not in Latin letters; the first that is there."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What changes along one direction.

    Args:
        name: of the setting.
        values: of it, as texts, one for each column, row or sheet.
    """

    name: str
    values: tuple[str, ...]


def draw(
    axes: Sequence[Axis], cells: Sequence[Sequence[Sequence[str | None]]], load: Callable[[str], Pixels],
    *, most: int,
) -> Pixels:  # fmt: skip
    """The picture of a grid.

    Args:
        axes: one to three: columns, rows, sheets.
        cells: ids by sheet, row and column; None stays empty.
        load: the pixels of an id.
        most: pixels that the result may have; cells are made smaller to keep to it.

    Raises:
        UsageError: there is no cell at all, or the cells are not as many as the axes have values.
    """
    across, down, sheets = _sizes(axes)
    if len(cells) != sheets or any(
        len(rows) != down or any(len(row) != across for row in rows) for rows in cells
    ):
        raise UsageError(f"cells: the axes have {sheets} x {down} x {across} values; give as many pictures")
    found = {one: load(one) for rows in cells for row in rows for one in row if one is not None}
    if not found:
        raise UsageError("cells: there is no picture in it; give one at least")
    width = max(one.shape[1] for one in found.values())
    height = max(one.shape[0] for one in found.values())
    labels = [[f"{axis.name}: {value}" for value in axis.values] for axis in axes]
    while True:
        font, line = _font(labels, width, across)
        heads = [_lines(font, axes[0].name, one, width - 2 * _GAP, _LINES) for one in axes[0].values]
        column, sides = 0, []
        if len(axes) > 1:
            widest = max(width, _NARROW * line)
            column = min(widest, int(max(map(font.getlength, labels[1]))) + 1 + 2 * _GAP)
            room = max(1, min(_LINES + 1, height // line))
            sides = [_lines(font, axes[1].name, one, column - 2 * _GAP, room) for one in axes[1].values]
        title, head = (line + 2 * _GAP if len(axes) > 2 else 0), line * max(map(len, heads))
        sheet = title + head + down * (height + _GAP)
        whole = (column + across * (width + _GAP), sheets * sheet)
        if whole[0] * whole[1] <= most or min(width, height) <= _LEAST:
            break
        width, height = max(_LEAST, int(0.95 * width)), max(_LEAST, int(0.95 * height))
    page = Image.new("RGB", whole, _PAPER)
    pen = ImageDraw.Draw(page)
    for z, rows in enumerate(cells):
        top = z * sheet
        if title:
            lines = _lines(font, axes[2].name, axes[2].values[z], page.width - 2 * _GAP, 1)
            _write(pen, font, lines, (_GAP, top + 2 * _GAP), line)
        for x, lines in enumerate(heads):
            # Below, where its cells are.
            at = (column + x * (width + _GAP), top + title + head - line * len(lines))
            _write(pen, font, lines, at, line, middle=width)
        for y, row in enumerate(rows):
            at_y = top + title + head + y * (height + _GAP)
            if sides:
                _write(pen, font, sides[y], (_GAP, at_y + (height - line * len(sides[y])) // 2), line)
            for x, one in enumerate(row):
                left = column + x * (width + _GAP)
                if one is None:
                    pen.rectangle((left, at_y, left + width - 1, at_y + height - 1), fill=_EMPTY)
                else:
                    page.paste(_fitted(found[one], width, height), (left, at_y))
    return np.asarray(page, dtype=np.uint8)


def record(
    axes: Sequence[Axis], cells: Sequence[Sequence[Sequence[str | None]]], first: Mapping[str, Any]
) -> dict[str, Any]:
    """What the picture says of itself: the settings of its first cell, its axes, its cells."""
    shown = [{"name": axis.name, "values": list(axis.values)} for axis in axes]
    ids = [[list(row) for row in rows] for rows in cells]
    return {**first, KEY: {"axes": shown, "cells": ids}}


def parameters(axes: Sequence[Axis], first: str) -> str:
    """The infotext: of the first cell, and the axes as the WebUI's script writes them."""
    parts = ["Script: X/Y/Z plot"]
    for letter, axis in zip("XYZ", axes, strict=False):
        values = json.dumps(", ".join(axis.values), ensure_ascii=False)
        parts += [f"{letter} Type: {json.dumps(axis.name, ensure_ascii=False)}", f"{letter} Values: {values}"]
    return ", ".join([first, *parts]) if first else ", ".join(parts)


def _sizes(axes: Sequence[Axis]) -> tuple[int, int, int]:
    counts = [len(axis.values) for axis in axes] + [1, 1]
    return counts[0], counts[1], counts[2]


def _fitted(pixels: Pixels, width: int, height: int) -> Image.Image:
    """In the middle of a cell, never larger than it was."""
    image = Image.fromarray(pixels)
    if image.size == (width, height):
        return image
    factor = min(1.0, width / image.width, height / image.height)
    small = image.resize(
        (max(1, int(image.width * factor)), max(1, int(image.height * factor))), Image.Resampling.LANCZOS
    )
    cell = Image.new("RGB", (width, height), _PAPER)
    cell.paste(small, ((width - small.width) // 2, (height - small.height) // 2))
    return cell


def _font(labels: Sequence[Sequence[str]], width: int, across: int) -> tuple[Font, int]:
    """A font for labels, and the height of a line in pixels.

    As large as it can be read when the whole picture is fitted to a screen, where the columns' labels have
    room for that in one line; else as large as suits a cell.

    Args:
        labels: of each axis.
        width: of a cell.
        across: columns.
    """
    letters = "".join(label for axis in labels for label in axis)
    least = max(11, min(width // 9, 28))
    size = max(least, min(across * width // _ACROSS, width // 4))
    while True:
        font = _found(letters, size)
        if size == least or max(map(font.getlength, labels[0])) <= width - 2 * _GAP:
            return font, int(1.4 * font.size) if isinstance(font, ImageFont.FreeTypeFont) else 16
        size = max(least, size - 2)


def _found(letters: str, size: int) -> Font:
    if not letters.isascii():
        for name in _FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _lines(font: Font, name: str, value: str, width: int, most: int) -> list[str]:
    """The label of a value; where there is no room for it, the name is cut before what tells it apart."""
    whole = _wrapped(font, f"{name}: {value}", width, most)
    if not whole[-1].endswith(_CUT):
        return whole
    if most == 1:
        return _wrapped(font, value, width, 1)
    return [*_wrapped(font, f"{name}:", width, 1), *_wrapped(font, value, width, most - 1)]


def _wrapped(font: Font, label: str, width: int, most: int) -> list[str]:
    """A label in lines of at most ``width`` pixels, the last of at most ``most`` cut with an ellipsis."""
    left = " ".join(label.split())
    lines: list[str] = []
    while left:
        count = _fitting(font, left, width)
        if count < len(left) and len(lines) == most - 1:
            # The ellipsis takes the room of a letter or two.
            while count and font.getlength(left[:count].rstrip() + _CUT) > width:
                count -= 1
            return [*lines, left[:count].rstrip() + _CUT if count else ""]
        if count < len(left) and " " in left[: count + 1]:
            count = left.rindex(" ", 0, count + 1)
        lines.append(left[: max(count, 1)].rstrip())
        left = left[max(count, 1) :].lstrip()
    return lines or [""]


def _fitting(font: Font, text: str, width: int) -> int:
    """How many letters of a text have room."""
    low, high = 0, len(text)
    while low < high:
        half = (low + high + 1) // 2
        low, high = (half, high) if font.getlength(text[:half]) <= width else (low, half - 1)
    return low


def _write(
    pen: ImageDraw.ImageDraw, font: Font, lines: Sequence[str], at: tuple[int, int], height: int,
    *, middle: int = 0,
) -> None:  # fmt: skip
    """Lines below each other, each in the middle of ``middle`` pixels where they are given."""
    for place, line in enumerate(lines):
        indent = max(0, int((middle - font.getlength(line)) / 2)) if middle else 0
        where = (at[0] + indent, at[1] + place * height + height // 10)
        pen.text(where, line, fill=_INK, font=font)
