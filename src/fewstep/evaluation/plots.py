"""Sheets of pictures with captions, drawn by matplotlib without a display; one image pixel is one pixel.

What training never saw is marked by the colour of the frame and by a sign before the caption, so that the
marks are there in black and white as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoint import atomic
from fewstep.errors import UsageError
from fewstep.evaluation.promptsets import EvalPrompt, Part

Picture = NDArray[np.uint8]
"""(H, W, 3), sRGB."""
Pictures = Sequence[Picture] | NDArray[np.uint8]
"""N of them, of one size."""

MARKS: Final[Mapping[Part, tuple[str, str, str]]] = {
    "train": ("", "#b0b0b0", ""),
    "combination": ("◆ ", "#e69f00", "combination unseen in training"),
    "object": ("● ", "#d00060", "object unseen in training"),
    "synonym": ("≈ ", "#0072b2", "word unseen in training"),
    "free": ("? ", "#404040", "not a caption of the drawing set"),
}
"""Part to (sign, colour of the frame, meaning)."""

_DPI: Final = 100
_POINTS: Final = 6.5
_LINE: Final = 11  # pixels of a line of text
_LETTER: Final = 4.9  # pixels of a letter, on average
_HEAD_LETTER: Final = 7.0
_GAP: Final = 8
_FRAME: Final = 2
_MARGIN: Final = 10
_HEAD: Final = 16
_MOST_PIXELS: Final = 20_000  # a side


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """One picture, its text, and the colour of its frame (None for no frame)."""

    picture: Picture
    text: str
    colour: str | None = None


def contact_sheet(
    pictures: Pictures, prompts: Sequence[EvalPrompt], path: Path, *, title: str, columns: int = 10
) -> None:
    """Lay out pictures with their prompts, ten a row, what training did not see marked.

    Args:
        pictures: N of one size.
        prompts: N prompts.
        path: PNG file.
        title: first line; the meaning of the marks stands under it.
        columns: pictures a row.

    Raises:
        UsageError: no pictures, or not one a prompt.
        OutputError: the file cannot be written.
    """
    tiles = [
        Tile(picture, MARKS[prompt.part][0] + prompt.text, MARKS[prompt.part][1])
        for picture, prompt in zip(pictures, prompts, strict=True)
    ]
    save_sheet(in_rows(tiles, columns), path, heads=[title, legend(prompts)])


def side_by_side(
    models: Mapping[str, Pictures],
    prompts: Sequence[EvalPrompt],
    path: Path,
    *,
    title: str,
    groups: int = 3,
) -> None:
    """Lay out what several models drew of the same prompts and seeds: one picture a model, side by side.

    Args:
        models: name to N pictures.
        prompts: N prompts; the caption stands under the first picture, the models' names under the others.
        path: PNG file.
        title: first line.
        groups: prompts a row.

    Raises:
        UsageError: no pictures, or not one a prompt and model.
        OutputError: the file cannot be written.
    """
    blocks: list[list[Tile | None]] = []
    for i, prompt in enumerate(prompts):
        sign, colour, _ = MARKS[prompt.part]
        block: list[Tile | None] = []
        for k, (name, pictures) in enumerate(models.items()):
            if len(pictures) != len(prompts):
                raise UsageError(
                    f"{name}: {len(pictures)} pictures of {len(prompts)} prompts: give one of each"
                )
            block.append(Tile(pictures[i], f"{name}: {sign}{prompt.text}" if k == 0 else name, colour))
        blocks.append(block)
    rows = [
        [cell for block in blocks[start : start + groups] for cell in (*block, None)][:-1]
        for start in range(0, len(blocks), groups)
    ]
    save_sheet(rows, path, heads=[title, legend(prompts)])


def failures(
    pictures: Pictures,
    real: Sequence[Picture | None],
    prompts: Sequence[EvalPrompt],
    ranks: Sequence[int],
    answers: Sequence[Sequence[str]],
    path: Path,
    *,
    title: str,
    most: int = 24,
    pairs: int = 4,
) -> int:
    """Lay out the pictures whose own concept ranks worst, each beside the real drawing of its prompt.

    Args:
        pictures: N pictures.
        real: N real drawings, None where there is none.
        prompts: N prompts.
        ranks: N places of the own concept from 1; below 1 where none was asked for.
        answers: N lists of what the evaluator saw instead, best first.
        path: PNG file; not written when nothing failed.
        title: first line.
        most: pictures at most.
        pairs: pictures a row.

    Returns:
        Number of pictures on the page.
    """
    worst = sorted((i for i, rank in enumerate(ranks) if rank > 1), key=lambda i: (-ranks[i], i))[:most]
    if not worst:
        return 0
    blocks: list[list[Tile | None]] = []
    for i in worst:
        sign, colour, _ = MARKS[prompts[i].part]
        shown = real[i]
        said = f"rank {ranks[i]}; seen as: {', '.join(answers[i][:3])}"
        beside = None if shown is None else Tile(shown, said)
        own = f"{sign}{prompts[i].text}"
        blocks.append([Tile(pictures[i], own if shown is not None else f"{own} ({said})", colour), beside])
    rows = [
        [cell for block in blocks[start : start + pairs] for cell in (*block, None)][:-1]
        for start in range(0, len(blocks), pairs)
    ]
    heads = [title, "left what was drawn, right the real drawing of the prompt", legend(prompts)]
    save_sheet(rows, path, heads=heads)
    return len(worst)


def neighbours(
    pictures: Pictures,
    nearest: Pictures,
    prompts: Sequence[EvalPrompt],
    texts: Sequence[str],
    path: Path,
    *,
    title: str,
    pairs: int = 5,
) -> None:
    """Lay out pictures beside their nearest training drawings.

    Args:
        pictures: N pictures.
        nearest: N training drawings.
        prompts: N prompts.
        texts: N lines on the drawing, such as its caption and distance.
        path: PNG file.
        title: first line.
        pairs: pictures a row.
    """
    blocks: list[list[Tile | None]] = []
    for picture, drawing, prompt, text in zip(pictures, nearest, prompts, texts, strict=True):
        sign, colour, _ = MARKS[prompt.part]
        blocks.append([Tile(picture, sign + prompt.text, colour), Tile(drawing, text)])
    rows = [
        [cell for block in blocks[start : start + pairs] for cell in (*block, None)][:-1]
        for start in range(0, len(blocks), pairs)
    ]
    heads = [title, "left what was drawn, right its nearest training drawing", legend(prompts)]
    save_sheet(rows, path, heads=heads)


def legend(prompts: Sequence[EvalPrompt]) -> str:
    """Say what the marks mean that stand on these prompts; empty when there are none."""
    parts = {prompt.part for prompt in prompts}
    return "    ".join(f"{sign}{text}" for part, (sign, _, text) in MARKS.items() if part in parts and text)


def in_rows(tiles: Sequence[Tile], columns: int) -> list[list[Tile | None]]:
    """Break a list into rows."""
    return [list(tiles[start : start + columns]) for start in range(0, len(tiles), columns)]


def save_sheet(rows: Sequence[Sequence[Tile | None]], path: Path, *, heads: Sequence[str]) -> None:
    """Write rows of tiles as one PNG; None leaves a narrow gap.

    Raises:
        UsageError: no tiles, tiles of different sizes, or too many for one page.
        OutputError: the file cannot be written.
    """
    shapes = {tile.picture.shape for row in rows for tile in row if tile is not None}
    if len(shapes) != 1:
        raise UsageError(f"pictures of sizes {sorted(shapes)}: give one or more, all of one size")
    height, width, _ = shapes.pop()
    letters = max(8, int(width / _LETTER))
    texts = [[textwrap.wrap(tile.text, letters) if tile is not None else [] for tile in row] for row in rows]
    lines = [max((len(text) for text in row), default=0) for row in texts]
    across = max(sum(_GAP * 2 if tile is None else width + _GAP for tile in row) for row in rows)
    said = [textwrap.wrap(head, max(20, int(across / _HEAD_LETTER))) for head in heads]
    head_lines = [(line, n == 0) for n, head in enumerate(said) for line in head]
    tall = sum(height + _GAP + _LINE * count for count in lines) + _HEAD * len(head_lines)
    size = (across + 2 * _MARGIN, tall + 2 * _MARGIN)
    if max(size) > _MOST_PIXELS:
        raise UsageError(f"a sheet of {size[0]}x{size[1]} pixels: give fewer pictures")
    page = np.full((size[1], size[0], 3), 255, np.uint8)
    words: list[tuple[int, int, str, bool]] = [
        (_MARGIN, _MARGIN + _HEAD * n, line, bold) for n, (line, bold) in enumerate(head_lines)
    ]
    top = _MARGIN + _HEAD * len(head_lines)
    for row, row_texts, count in zip(rows, texts, lines, strict=True):
        left = _MARGIN
        for tile, text in zip(row, row_texts, strict=True):
            if tile is None:
                left += _GAP * 2
                continue
            if tile.colour is not None:
                frame = page[top - _FRAME : top + height + _FRAME, left - _FRAME : left + width + _FRAME]
                frame[:] = _rgb(tile.colour)
            page[top : top + height, left : left + width] = tile.picture
            words += [(left, top + height + _FRAME + n * _LINE, line, False) for n, line in enumerate(text)]
            left += width + _GAP
        top += height + _GAP + _LINE * count
    _write(page, words, path)


def _write(page: Picture, words: Sequence[tuple[int, int, str, bool]], path: Path) -> None:
    figure = new_figure(page.shape[1], page.shape[0])
    figure.figimage(page, resize=False)
    for left, top, text, head in words:
        figure.text(
            left / page.shape[1],
            1 - top / page.shape[0],
            text.replace("$", "\\$"),  # no mathematics out of a prompt
            fontsize=_POINTS + 2 if head else _POINTS,
            fontweight="bold" if head else "normal",
            va="top",
            ha="left",
        )
    save_figure(figure, path)


def new_figure(width: int, height: int) -> Any:
    """An empty matplotlib figure of that many pixels, without pyplot and its state.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        from fewstep.errors import DependencyError

        raise DependencyError("plots need matplotlib: pip install 'fewstep[train]'") from error
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, complete or not at all, the same bytes for the same content."""
    with atomic.file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
