"""Weights on disk: safetensors files, read by content and written atomically, and their hashes.

What a file is, `fewstep.checkpoint.header` says. The plain functions use numpy; the ``_torch`` ones import
torch when they are called.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from safetensors import SafetensorError

from fewstep.checkpoint import atomic, header
from fewstep.checkpoint.header import check_content, is_pickle
from fewstep.errors import CheckpointError, NotFoundError, OutputError

if TYPE_CHECKING:
    import torch

__all__ = [
    "check_content",
    "folder_hash",
    "is_pickle",
    "load",
    "load_torch",
    "read_metadata",
    "save",
    "save_torch",
    "sha256_file",
]

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin"})


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Read every tensor of a safetensors file into memory, in the file's own types and shapes.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, or a type that numpy does not have (bfloat16, float8).
    """
    file = check_content(path)
    with _as_checkpoint_error(file), safetensors.safe_open(file, framework="np") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}


def load_torch(path: str | os.PathLike[str], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read every tensor of a safetensors file onto ``device``; raises as `load` does."""
    file = check_content(path)
    with _as_checkpoint_error(file), safetensors.safe_open(file, framework="pt", device=device) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write numpy arrays atomically; layouts other than C order are copied first.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors.numpy import save_file

    contiguous = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with _as_output_error(Path(path)), atomic.file(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata) if metadata else None)


def save_torch(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write torch tensors atomically from any device and layout; tensors that share memory are each written.

    Raises:
        OutputError: the file cannot be written.
    """
    from safetensors.torch import save_file

    seen: set[int] = set()
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage()
        # The library refuses tensors that share memory; a view of something larger would also drag it along.
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        plain[name] = value
    with _as_output_error(Path(path)), atomic.file(path) as temporary:
        save_file(plain, temporary, metadata=dict(metadata) if metadata else None)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The free text metadata in a safetensors header; empty when there is none. Raises as `load` does."""
    return header.read(path).metadata


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        NotFoundError: no such file.
    """
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; check the path") from None


def folder_hash(folder: str | os.PathLike[str]) -> str:
    """SHA-256 of the sorted (relative name, file hash) list of a folder's weight files.

    Weight files are ``*.safetensors`` and ``*.bin``; names use ``/`` on every system; hidden files and
    folders (temporaries) do not count, nor does the folder ``students``, whose models have hashes of their
    own. Each entry is the line ``<hash>  <name>`` as ``sha256sum`` prints it.

    Raises:
        NotFoundError: no such folder, or no weight file in it.
    """
    root = Path(folder)
    names = sorted(_weight_files(root))
    if not names:
        raise NotFoundError(f"{root}: no weight files (*.safetensors, *.bin) here; check the path")
    lines = "".join(f"{sha256_file(root / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def _weight_files(root: Path) -> Iterator[str]:
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        ours = not hidden and relative.parts[0] != "students"
        if path.suffix.lower() in _WEIGHT_SUFFIXES and ours and path.is_file():
            yield relative.as_posix()


@contextlib.contextmanager
def _as_checkpoint_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        if "bfloat16" in text or "float8" in text:
            raise CheckpointError(
                f"{path}: {text}: numpy has no such type; read this file with torch"
            ) from error
        raise CheckpointError(f"{path}: cannot be read ({text}); download or export it again") from error


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        text = " ".join(str(error).split())[:200]
        raise OutputError(
            f"{path}: cannot be written ({text}); free some space or choose another place"
        ) from error
