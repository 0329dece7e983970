"""Safetensors files one tensor at a time: read from the header on, written at known places.

A tensor is read into memory of its own, not mapped: what was read stays as it is when somebody writes to
the file, a file that is cut while it is open is an error and not a crash, and a cast leaves one copy. A
fused tensor is cut along its first dimension, so any of its parts is one stretch of bytes and is read alone.

Tensors need torch, which is imported when one is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from fewstep.checkpoint import atomic, half, header
from fewstep.checkpoint.header import MAX_HEADER, Entry, Shape, check_content
from fewstep.checkpoint.naming import shown
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_HEADER", "Entry", "Shape", "Store", "TensorFile", "write"]


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
            found = header.read_open(self.path, self._file)
            for name, entry in found.entries.items():
                if entry.dtype not in half.SIZES:
                    raise CheckpointError(
                        f"{self.path}: {shown(name)} is of the type {entry.dtype}, which is not read; "
                        "give a file of fp32, fp16, bf16 or fp8"
                    )
            self.entries, self.metadata = dict(found.entries), found.metadata
            self._offsets = found.offsets
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

        entry, offset = self.entries[name], self._offsets[name]
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
    described: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    places: dict[str, int] = {}
    end = 0
    for name in order:
        entry = plan[name]
        places[name], end = end, end + entry.nbytes
        described[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
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
