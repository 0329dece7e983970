"""What a key map is: a list of moves between two namings, with what happens to the tensor on the way.

Every move can be undone bit by bit, so a map read backwards is the map back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

MAX_LAYERS = 64
"""Layers of a kind that a network may have: names are cheap to invent. The largest known network has 38."""

Shape = tuple[int, ...]

Change = Literal["same", "fused", "conv", "transposed", "swapped"]
"""From the original tensor to diffusers':

- ``same``: nothing;
- ``fused``: n tensors stand one after another along the first dimension;
- ``conv``: a convolution of one pixel (out, in, 1, 1) is a matrix (out, in);
- ``transposed``: a matrix (in, out) is (out, in);
- ``swapped``: the halves along the first dimension change places (shift and scale of adaptive norms).
"""


@dataclass(frozen=True, slots=True)
class Move:
    """One tensor, or all tensors whose names begin alike: then both names end in a dot, or are empty."""

    original: str
    diffusers: str | tuple[str, ...]
    change: Change = "same"

    @property
    def targets(self) -> tuple[str, ...]:
        """Names in diffusers: several for a fused tensor."""
        return (self.diffusers,) if isinstance(self.diffusers, str) else self.diffusers


@dataclass(frozen=True, slots=True)
class Place:
    """Where the values of one diffusers tensor stand in an original one: part ``index`` of ``count``."""

    original: str
    change: Change = "same"
    index: int = 0
    count: int = 1


IDENTITY = Place("")
"""The place of a square matrix that the authors' file leaves out because it changes nothing."""


def nothing_dropped(name: str) -> bool:
    """The rule of a map that leaves nothing out."""
    return False


class KeyMap:
    """A two-way map of names.

    Args:
        moves: the longest matching prefix counts, and a whole name before any prefix.
        drop: which original names have no place in diffusers and are left out, by rule.
        alias: turns spellings of a name that some files have into the usual one.
    """

    def __init__(
        self,
        moves: Iterable[Move],
        drop: Callable[[str], bool] = nothing_dropped,
        alias: Callable[[str], str] | None = None,
    ) -> None:
        self._forward: dict[str, Move] = {}
        self._backward: dict[str, tuple[Move, int]] = {}
        for move in moves:
            assert move.original not in self._forward, move
            self._forward[move.original] = move
            for index, target in enumerate(move.targets):
                assert target not in self._backward, move
                self._backward[target] = (move, index)
        self.drop = drop
        self._alias = alias

    def forward(self, name: str) -> tuple[tuple[str, ...], Change] | None:
        """Diffusers' name or names of an original tensor, and the change; None when there is none."""
        if self._alias is not None:
            name = self._alias(name)
        for prefix, rest in _prefixes(name):
            move = self._forward.get(prefix)
            if move is not None:
                return tuple(target + rest for target in move.targets), move.change
        return None

    def backward(self, name: str) -> Place | None:
        """The place of a diffusers tensor in the original naming; None when it has none."""
        for prefix, rest in _prefixes(name):
            if prefix in self._backward:
                move, index = self._backward[prefix]
                return Place(move.original + rest, move.change, index, len(move.targets))
        return None

    def of_diffusers(self, more: Iterable[Move] = (), alias: Callable[[str], str] | None = None) -> KeyMap:
        """The map of diffusers' names to themselves: it knows those that this map leads to, and ``more``."""
        return KeyMap([*(Move(name, name) for name in self._backward), *more], alias=alias)


def places(keymap: KeyMap, shapes: Mapping[str, Shape]) -> tuple[dict[str, tuple[Place, Shape]], list[str]]:
    """Read a map forwards over the tensors of a file.

    Args:
        keymap: its names.
        shapes: of the original tensors.

    Returns:
        Diffusers' names with place and shape, and the original names that have no place and are not dropped
        by rule: unknown ones, those whose shape the change does not fit, and those that come twice.
    """
    found: dict[str, tuple[Place, Shape]] = {}
    strange = []
    for name, shape in shapes.items():
        if keymap.drop(name):
            continue
        target = keymap.forward(name)
        new = None if target is None else changed_shape(shape, target[1], len(target[0]))
        if target is None or new is None or any(part in found for part in target[0]):
            strange.append(name)
            continue
        for index, part in enumerate(target[0]):
            found[part] = Place(name, target[1], index, len(target[0])), new
    return found, strange


def numbers(names: Iterable[str], pattern: str) -> set[int]:
    """The numbers that the first group of a pattern takes from names; the pattern is matched at the start.

    Raises:
        CheckpointError: one of them is `MAX_LAYERS` or more.
    """
    compiled = re.compile(pattern)
    found = {int(match[1]) for match in map(compiled.match, names) if match and len(match[1]) < 10}
    if found and max(found) >= MAX_LAYERS:
        raise CheckpointError(f"has a layer of number {max(found)}, which no known network has")
    return found


def changed_shape(shape: Shape, change: Change, count: int = 1) -> Shape | None:
    """Shape of (each part of) an original tensor in diffusers; None when the change does not fit it."""
    match change:
        case "same":
            return shape
        case "fused":
            return (shape[0] // count, *shape[1:]) if shape and shape[0] % count == 0 else None
        case "conv":
            return shape[:2] if len(shape) >= 2 and all(size == 1 for size in shape[2:]) else None
        case "transposed":
            return shape[::-1] if len(shape) == 2 else None
        case "swapped":
            return shape if shape and shape[0] % 2 == 0 else None


def original_shape(shapes: Sequence[Shape], change: Change) -> Shape | None:
    """Shape of the original tensor that diffusers' tensors become; None if they do not fit together."""
    first = shapes[0]
    if change == "fused":
        alike = all(shape == first for shape in shapes) and len(first) > 0
        return (first[0] * len(shapes), *first[1:]) if alike else None
    if change == "conv":
        return (*first, 1, 1) if len(first) == 2 else None
    return changed_shape(first, change)


def to_diffusers(tensor: torch.Tensor, change: Change) -> torch.Tensor:
    """Apply a change to an original tensor, or to one part of a fused one."""
    match change:
        case "conv":
            return tensor.reshape(tensor.shape[:2])
        case "transposed":
            return tensor.T.contiguous()
        case "swapped":
            return _swapped(tensor)
    return tensor


def to_original(tensors: Sequence[torch.Tensor], change: Change) -> torch.Tensor:
    """Undo a change."""
    import torch

    match change:
        case "fused":
            return torch.cat(list(tensors))
        case "conv":
            return tensors[0].reshape(*tensors[0].shape, 1, 1)
        case "transposed":
            return tensors[0].T.contiguous()
        case "swapped":
            return _swapped(tensors[0])
    return tensors[0]


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def _prefixes(name: str) -> Iterable[tuple[str, str]]:
    """(name, "") and then every (prefix that ends in a dot, rest), the longest first, at last ("", name)."""
    yield name, ""
    end = len(name)
    while (dot := name.rfind(".", 0, end)) >= 0:
        if dot + 1 < len(name):
            yield name[: dot + 1], name[dot + 1 :]
        end = dot
    yield "", name
