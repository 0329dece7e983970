"""Safetensors files one tensor at a time: read from the header on, written at known places.

A tensor is read into memory of its own, not mapped: what was read stays as it is when somebody writes to
the file, a file that is cut while it is open is an error and not a crash, and a cast leaves one copy. A
fused tensor is cut along its first dimension, so any of its parts is one stretch of bytes and is read alone.

Tensors need torch, which is imported when one is read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from fewstep.checkpoint import atomic, half
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.safetensors import check_content
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]

MAX_HEADER = 32_000_000
"""Bytes; a header of SDXL has 0.35 million. Parsed JSON takes a multiple of this in memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of a tensor: its type as safetensors names it (``F16``), and its shape."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return math.prod(self.shape) * half.SIZES[self.dtype]


class Store(Protocol):
    """Tensors by name, of one file or of many."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Type and shape of every tensor."""

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """A tensor, or its rows ``[start, end)`` along the first dimension, in memory of its own."""

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a file is no longer what it was when it was opened."""


class TensorFile:
    """An open safetensors file.

    Attributes:
        path: of the file.
        entries: type and shape of every tensor, in the order of their place in the file.
        metadata: free texts of the header.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, or a file whose header does not describe its bytes exactly.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_content(path)
        self._file: BinaryIO = self.path.open("rb")
        try:
            self._stamp = self._now()
            length = int.from_bytes(self._file.read(8), "little")
            if length > MAX_HEADER:
                raise CheckpointError(
                    f"{self.path}: its header has {length} bytes, more than the {MAX_HEADER} that are read; "
                    "download or export it again"
                )
            places, self.metadata = _parse(self.path, self._file.read(length), self._stamp[0] - 8 - length)
            self._places = {name: (entry, 8 + length + begin) for name, (entry, begin) in places.items()}
            self.entries = {name: entry for name, (entry, _) in self._places.items()}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """See `Store.read`.

        Raises:
            CheckpointError: the file was changed or cut since it was opened.
        """
        import torch

        entry, offset = self._places[name]
        shape, size = entry.shape, entry.nbytes
        if rows is not None:
            row = size // shape[0] if shape[0] else 0
            offset, size = offset + rows[0] * row, (rows[1] - rows[0]) * row
            shape = (rows[1] - rows[0], *shape[1:])
        data = torch.empty(size, dtype=torch.uint8)
        self._file.seek(offset)
        count = self._file.readinto(data.numpy()) if size else 0  # type: ignore[attr-defined]
        if count != size:
            raise CheckpointError(f"{self.path}: was cut while it was read; start again when it is complete")
        self.check_unchanged()
        return data.view(half.torch_type(entry.dtype)).reshape(shape)

    def check_unchanged(self) -> None:
        """Raise CheckpointError when somebody wrote to the file since it was opened."""
        if self._now() != self._stamp:
            raise CheckpointError(
                f"{self.path}: was changed while it was read; start again when nothing writes to it"
            )

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def write(
    path: str | os.PathLike[str],
    plan: Mapping[str, Entry],
    tensors: Iterable[tuple[str, torch.Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically; only one of its tensors need be in memory at a time.

    The bytes are those that the safetensors library writes for the same tensors.

    Args:
        path: of the file; an old one is replaced.
        plan: every tensor that will come.
        tensors: each of them once, in any order, in the type and shape of the plan.
        metadata: free texts for the header.

    Raises:
        OutputError: the file cannot be written.
    """
    import torch

    order = sorted(plan, key=lambda name: (-half.RANKS[plan[name].dtype], name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    places: dict[str, int] = {}
    end = 0
    for name in order:
        entry = plan[name]
        places[name], end = end, end + entry.nbytes
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with atomic.file(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, tensor in tensors:
            entry = plan[name]
            assert tuple(tensor.shape) == entry.shape, name
            assert tensor.dtype == half.torch_type(entry.dtype), name
            file.seek(8 + len(text) + places.pop(name))
            if entry.nbytes:
                file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        assert not places, f"missing: {sorted(places)[:3]}"


def _parse(path: Path, data: bytes, size: int) -> tuple[dict[str, tuple[Entry, int]], dict[str, str]]:
    """Entries with their offsets, and metadata, of a header that describes ``size`` bytes exactly."""
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that are not texts")
        found = [(*_extent(value), name) for name, value in header.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = shown(str(error)) or type(error).__name__
        raise CheckpointError(f"{path}: broken header ({reason}); download or export it again") from None
    end = 0
    places: dict[str, tuple[Entry, int]] = {}
    # Empty tensors share their place with the one behind them.
    for begin, stop, entry, name in sorted(found, key=lambda item: item[:2]):
        if begin != end or stop - begin != entry.nbytes:
            raise CheckpointError(
                f"{path}: broken header ({shown(name)} is not in its place); download or export it again"
            )
        places[name], end = (entry, begin), stop
    if end != size:
        raise CheckpointError(
            f"{path}: {size} bytes of values, and the header describes {end}; download or export it again"
        )
    return places, metadata


def _extent(value: Any) -> tuple[int, int, Entry]:
    dtype, shape, (begin, stop) = value["dtype"], value["shape"], value["data_offsets"]
    numbers = [*shape, begin, stop]
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError("shapes or offsets that are not natural numbers")
    if len(value) != 3 or len(shape) > 8:
        raise ValueError("a tensor with unknown fields or too many dimensions")
    if dtype not in half.SIZES:
        raise ValueError(f"type {dtype!r}, which is not read")
    return begin, stop, Entry(dtype, tuple(shape))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that stands there twice")
    return found
