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
    letters = "".join(value for axis in axes for value in axis.values)
    while True:
        font = _font(letters, max(11, min(width // 9, 28)))
        line = int(1.4 * font.size) if isinstance(font, ImageFont.FreeTypeFont) else 16
        column = min(width, _broadest(font, axes[1]) + 2 * _GAP) if len(axes) > 1 else 0
        title = line if len(axes) > 2 else 0
        sheet = title + line + down * (height + _GAP)
        whole = (column + across * (width + _GAP), sheets * sheet)
        if whole[0] * whole[1] <= most or min(width, height) <= _LEAST:
            break
        width, height = max(_LEAST, int(0.95 * width)), max(_LEAST, int(0.95 * height))
    page = Image.new("RGB", whole, _PAPER)
    pen = ImageDraw.Draw(page)
    for z, rows in enumerate(cells):
        top = z * sheet
        if title:
            _label(pen, font, f"{axes[2].name}: {axes[2].values[z]}", (0, top), page.width, line)
        for x, value in enumerate(axes[0].values):
            _label(pen, font, value, (column + x * (width + _GAP), top + title), width, line, middle=True)
        for y, row in enumerate(rows):
            at = top + title + line + y * (height + _GAP)
            if len(axes) > 1:
                _label(pen, font, axes[1].values[y], (_GAP, at + (height - line) // 2), column - _GAP, line)
            for x, one in enumerate(row):
                left = column + x * (width + _GAP)
                if one is None:
                    pen.rectangle((left, at, left + width - 1, at + height - 1), fill=_EMPTY)
                else:
                    page.paste(_fitted(found[one], width, height), (left, at))
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


def _font(letters: str, size: int) -> Font:
    if not letters.isascii():
        for name in _FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def _broadest(font: Font, axis: Axis) -> int:
    return max((int(font.getlength(value)) + 1 for value in axis.values), default=0)


def _label(
    pen: ImageDraw.ImageDraw, font: Font, value: str, at: tuple[int, int], width: int, height: int,
    *, middle: bool = False,
) -> None:  # fmt: skip
    """One line, cut where there is no room for it."""
    shown = " ".join(value.split())
    while shown and font.getlength(shown) > width:
        shown = shown[:-2].rstrip() + "…" if len(shown) > 2 else ""
    indent = int((width - font.getlength(shown)) / 2) if middle else 0
    pen.text((at[0] + max(indent, 0), at[1] + height // 10), shown, fill=_INK, font=font)
