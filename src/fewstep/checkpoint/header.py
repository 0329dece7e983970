"""The header of a safetensors file, read in one place: what it says of every tensor, and its free texts.

A file is judged by its bytes, never by its name: a pickle that is called ``model.safetensors`` is refused as
a pickle. A header must describe the bytes behind it exactly, without holes, overlaps and names that stand
there twice: two readers of one format must not see two files in one. No tensor is read here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fewstep.checkpoint.naming import shown
from fewstep.errors import CheckpointError, NotFoundError

Shape = tuple[int, ...]

MAX_HEADER = 32_000_000
"""Bytes; a header of SDXL has 0.35 million. Parsed JSON takes a multiple of this in memory."""

BITS: dict[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of a value, of every type of the format; `fewstep.checkpoint.half` has those that are read."""

_LIBRARY_MAX = 100_000_000  # the limit of the safetensors library
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """What a header says of a tensor: its type as safetensors names it (``F16``), and its shape."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Size of the values, rounded up where a type has parts of a byte."""
        return -(-math.prod(self.shape) * BITS[self.dtype] // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """A header that describes its file exactly.

    Attributes:
        entries: type and shape of every tensor, in the order of their place in the file.
        offsets: where the bytes of each begin, from the start of the file.
        metadata: free texts.
    """

    entries: Mapping[str, Entry]
    offsets: Mapping[str, int]
    metadata: dict[str, str]


def read(path: str | os.PathLike[str]) -> Header:
    """Read the header of a safetensors file.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, or a file whose header does not describe its bytes exactly.
    """
    file = check_content(path)
    with file.open("rb") as handle:
        return read_open(file, handle)


def read_open(path: Path, handle: BinaryIO) -> Header:
    """`read`, of an open file whose content `check_content` has seen."""
    handle.seek(0)
    length = int.from_bytes(handle.read(8), "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            f"{path}: its header has {length} bytes, more than the {MAX_HEADER} that are read; "
            "download or export it again"
        )
    size = os.fstat(handle.fileno()).st_size - 8 - length
    places, metadata = _parse(path, handle.read(length), size)
    return Header(
        entries={name: entry for name, (entry, _) in places.items()},
        offsets={name: 8 + length + begin for name, (_, begin) in places.items()},
        metadata=metadata,
    )


def check_content(path: str | os.PathLike[str]) -> Path:
    """Refuse what is not a safetensors file, by its first bytes and its size.

    Returns:
        The path, when the header length is plausible and the header opens a JSON object.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle under whatever name, or not safetensors at all.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            head = handle.read(16)
    except FileNotFoundError:
        raise NotFoundError(f"{file}: no such file; check the path") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); give a readable file") from error
    if _opens_safetensors(head, size):
        return file
    if _looks_like_pickle(head) or file.suffix.lower() in {".ckpt", ".pt", ".pth"}:
        raise CheckpointError(
            f"{file}: a pickle checkpoint, which could run code when read; "
            "convert it once with: fewstep convert --allow-pickle"
        )
    raise CheckpointError(
        f"{file}: not a safetensors file ({size} bytes, broken header); download or export it again"
    )


def is_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a pickle by its first bytes, whatever its name; False when it cannot be read."""
    file = Path(path)
    try:
        with file.open("rb") as handle:
            head = handle.read(16)
        return _looks_like_pickle(head) and not _opens_safetensors(head, file.stat().st_size)
    except OSError:
        return False


def _opens_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) >= 10 and head[8:9] == b"{" and 2 <= length <= min(size - 8, _LIBRARY_MAX)


def _looks_like_pickle(head: bytes) -> bool:
    # torch zip files; pickle protocols 2 to 5; protocol 0 opens with "(" or "c" and printable text
    return (
        head[:4] == b"PK\x03\x04"
        or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))
        or (head[:1] in (b"(", b"c", b"}", b"]") and b"\x00" not in head[:8])
    )


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
    if len(value) != 3 or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("a tensor with unknown fields or too many dimensions")
    if dtype not in BITS:
        raise ValueError(f"type {dtype!r}, which the format does not have")
    return begin, stop, Entry(dtype, tuple(shape))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that stands there twice")
    return found
