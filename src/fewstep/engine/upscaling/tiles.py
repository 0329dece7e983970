"""Running a network over a picture tile by tile, so that the result is that of the whole.

Each tile is shown with as many pixels around it as decide about it. Two kinds of networks need more:

- Those that average over all they see (squeeze and excitation in waifu2x's cunet) get the averages of the
  whole picture: one more round over the tiles for each such layer gathers them.
- Those that see very far (the residual blocks of Real-ESRGAN's large networks) are run block by block over
  the features of the whole picture, of which each block sees a few pixels only. One array of features is in
  memory, 256 bytes per pixel of the picture, and is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fewstep.engine.upscaling.catalogue import Geometry
from fewstep.errors import Cancelled

Image = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.float32]


class Runner(Protocol):
    """A network that is ready to run."""

    @property
    def scale(self) -> int:
        """By how much it enlarges."""

    @property
    def geometry(self) -> Geometry:
        """How it wants its tiles."""

    def run(self, planes: Planes, features: Planes | None = None) -> Planes:
        """(3, h, w) in [0, 1], ``pad`` included -> (3, h' * scale, w' * scale), without ``pad``."""


@runtime_checkable
class LayeredRunner(Runner, Protocol):
    """A network whose geometry names averages or blocks: it shows what is inside it."""

    def block(self, planes: Planes, index: int) -> Planes:
        """(C, h, w) after a block, from what is before it; of the first, (3, h, w)."""

    def features(self, planes: Planes, layer: int) -> Planes:
        """(C, h', w'): what the ``layer``-th average is taken of, given those before."""

    def set_averages(self, averages: list[Planes]) -> None:
        """Use these instead of the averages over what is seen, for the first layers of that kind."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """A part of a picture; bottom and right are outside it."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, slots=True)
class _Watch:
    on_tile: Callable[[], None] | None
    cancelled: Callable[[], bool] | None

    def each(self, found: Iterable[_Tile]) -> Iterator[_Tile]:
        """The tiles, with a question before and a report after each."""
        for tile in found:
            if self.cancelled is not None and self.cancelled():
                raise Cancelled("stopped by request while upscaling")
            yield tile
            if self.on_tile is not None:
                self.on_tile()


def count(height: int, width: int, geometry: Geometry) -> int:
    """How often a network is run for a picture: for showing progress."""
    tiles = -(-width // geometry.tile) * -(-height // geometry.tile)
    rounds = 1 + (len(geometry.averages) if tiles > 1 else 0)
    blocks = 0
    if geometry.blocks:
        blocks = geometry.blocks * -(-width // geometry.block_tile) * -(-height // geometry.block_tile)
    return tiles * rounds + blocks


def enlarge(
    image: Image,
    network: Runner,
    *,
    on_tile: Callable[[], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Image:
    """Run a network over a picture.

    Args:
        image: (H, W, 3).
        network: what is run.
        on_tile: told after every run, `count` times in all.
        cancelled: asked before every run.

    Returns:
        (H * scale, W * scale, 3).

    Raises:
        Cancelled: ``cancelled`` said so.
        EngineError: the network failed.
    """
    height, width = image.shape[:2]
    geometry, scale = network.geometry, network.scale
    watch = _Watch(on_tile, cancelled)
    features = None
    if geometry.averages or geometry.blocks:
        assert isinstance(network, LayeredRunner), "its geometry names what it does not show"
        network.set_averages([])
        if geometry.averages and max(height, width) > geometry.tile:
            _gather_averages(image, network, watch)
        if geometry.blocks:
            features = _through_blocks(image, network, watch)
    out = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
    for tile in watch.each(_tiles(height, width, geometry.tile)):
        around = _around(tile, height, width, geometry.overlap)
        own = (
            None if features is None else features[:, around.top : around.bottom, around.left : around.right]
        )
        made = network.run(_shown(image, around, geometry), own)
        y, x = (tile.top - around.top) * scale, (tile.left - around.left) * scale
        rows, columns = (tile.bottom - tile.top) * scale, (tile.right - tile.left) * scale
        levels = np.clip(made[:, y : y + rows, x : x + columns] * np.float32(255.0) + np.float32(0.5), 0, 255)
        place = out[tile.top * scale : tile.bottom * scale, tile.left * scale : tile.right * scale]
        place[...] = levels.astype(np.uint8).transpose(1, 2, 0)
    return out


def _gather_averages(image: Image, network: LayeredRunner, watch: _Watch) -> None:
    geometry = network.geometry
    height, width = image.shape[:2]
    averages: list[Planes] = []
    for layer, ratio in enumerate(geometry.averages):
        sums: npt.NDArray[np.float64] | float = 0.0
        cells = 0
        for tile in watch.each(_tiles(height, width, geometry.tile)):
            own = _own(network.features(_shown(image, tile, geometry), layer), tile, image, geometry, ratio)
            sums = sums + own.sum(axis=(1, 2), dtype=np.float64)
            cells += own.shape[1] * own.shape[2]
        averages = [*averages, np.asarray(sums / cells, dtype=np.float32)]
        network.set_averages(averages)


def _through_blocks(image: Image, network: LayeredRunner, watch: _Watch) -> Planes:
    """(C, H, W): the features after the last block."""
    geometry = network.geometry
    height, width = image.shape[:2]
    found: Planes | None = None
    for tile in watch.each(_tiles(height, width, geometry.block_tile)):
        around = _around(tile, height, width, geometry.reach)
        made = _inner(network.block(_shown(image, around, geometry), 0), tile, around)
        if found is None:
            found = np.empty((len(made), height, width), dtype=np.float32)
        found[:, tile.top : tile.bottom, tile.left : tile.right] = made
    assert found is not None
    for index in range(1, geometry.blocks):
        _in_place(found, network, index, watch)
    return found


def _in_place(features: Planes, network: LayeredRunner, index: int, watch: _Watch) -> None:
    """Take (C, H, W) through one block, a band of rows after the other."""
    reach, side = network.geometry.reach, network.geometry.block_tile
    assert side >= reach, "rows above a band would be lost"
    height, width = features.shape[1:]
    above = features[:, :0]
    for top in range(0, height, side):
        bottom = min(top + side, height)
        # What is above has been changed already: the rows that this band sees were kept.
        shown = np.concatenate([above, features[:, top : min(bottom + reach, height)]], axis=1)
        first = top - above.shape[1]
        above = features[:, max(bottom - reach, 0) : bottom].copy()
        for tile in watch.each(_Tile(top, x, bottom, min(x + side, width)) for x in range(0, width, side)):
            around = _around(tile, height, width, reach)
            seen = shown[:, around.top - first : around.bottom - first, around.left : around.right]
            made = _inner(network.block(seen, index), tile, around)
            features[:, tile.top : tile.bottom, tile.left : tile.right] = made


def _tiles(height: int, width: int, side: int) -> Iterator[_Tile]:
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield _Tile(top, left, min(top + side, height), min(left + side, width))


def _around(tile: _Tile, height: int, width: int, pixels: int) -> _Tile:
    """A tile and what is around it, as far as there is picture."""
    return _Tile(
        max(tile.top - pixels, 0), max(tile.left - pixels, 0),
        min(tile.bottom + pixels, height), min(tile.right + pixels, width),
    )  # fmt: skip


def _inner(planes: Planes, tile: _Tile, around: _Tile) -> Planes:
    top, left = tile.top - around.top, tile.left - around.left
    return planes[:, top : top + tile.bottom - tile.top, left : left + tile.right - tile.left]


def _shown(image: Image, part: _Tile, geometry: Geometry) -> Planes:
    """What a network is shown of a part of a picture, (3, h, w) in [0, 1], with ``pad`` around it."""
    height, width = image.shape[:2]
    # Beyond the picture come copies of its last pixel: for ``pad``, and to reach a multiple.
    bottom = part.top + _up(part.bottom - part.top, geometry.multiple)
    right = part.left + _up(part.right - part.left, geometry.multiple)
    rows = np.clip(np.arange(part.top - geometry.pad, bottom + geometry.pad), 0, height - 1)
    columns = np.clip(np.arange(part.left - geometry.pad, right + geometry.pad), 0, width - 1)
    planes = image[rows[:, None], columns].transpose(2, 0, 1).astype(np.float32) / np.float32(255.0)
    return np.ascontiguousarray(planes)


def _own(features: Planes, tile: _Tile, image: Image, geometry: Geometry, ratio: float) -> Planes:
    """The part of a tile's features that no other tile has: at the picture's edges also the rim there."""
    found = []
    for axis, first, last, size in ((1, tile.top, tile.bottom, image.shape[0]),
                                    (2, tile.left, tile.right, image.shape[1])):  # fmt: skip
        core = round(_up(last - first, geometry.multiple) * ratio)
        rim = (features.shape[axis] - core) // 2
        end = features.shape[axis] if last == size else rim + core
        found.append(slice(0 if first == 0 else rim, end))
    return features[:, found[0], found[1]]


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
