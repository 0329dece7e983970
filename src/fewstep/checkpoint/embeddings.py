"""Textual-inversion embeddings: vectors that stand for a word (Gal et al. 2022, arXiv 2208.01618).

Every form that tools write is a table of a few vectors for each text encoder:

=====================================  =======================================================
tensors in the file                    written by
=====================================  =======================================================
``string_to_param.*``                  AUTOMATIC1111's web UI, as ``fewstep convert`` makes it
``emb_params``                         kohya's sd-scripts and the web UI, for one encoder
``clip_l`` and ``clip_g``              the same, for Stable Diffusion XL and 3
one tensor, named by the word itself   diffusers
=====================================  =======================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint.naming import first, shown
from fewstep.checkpoint.safetensors import is_pickle
from fewstep.checkpoint.tensorfile import Entry, TensorFile
from fewstep.errors import CheckpointError, NotFoundError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SUFFIX = ".safetensors"
PICKLES = (".pt", ".bin", ".pth")
MAX_VECTORS = 1024
MAX_WIDTH = 16_384
MAX_SIZE = 64 * 2**20
"""Bytes of a file: ten times the vectors that fit into a chunk of the largest encoder, in float32."""

ANY = ""
"""Slot of vectors that do not say for which encoder they are."""
_SLOTS = ("clip_l", "clip_g")
_PARAMETER = "string_to_param."
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Vectors for one text encoder."""

    tensor: str
    """In the file."""
    vectors: int
    width: int
    """Numbers of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What an embedding file says before its values are read."""

    tables: Mapping[str, Table]
    """By `ANY`, ``clip_l`` or ``clip_g``."""
    token: str | None = None
    """The word that the vectors were trained for, where the file says it."""

    def widths(self) -> str:
        """For messages: ``768``, or ``768 (clip_l) and 1280 (clip_g)``."""
        said = [f"{one.width} ({slot})" if slot else str(one.width) for slot, one in self.tables.items()]
        return " and ".join(said)


def read_header(path: Path) -> Header:
    """Read what an embedding file holds.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, or no embedding.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file; check the path")
    if is_pickle(path) or path.suffix.lower() in PICKLES:
        raise CheckpointError(pickle_sentence(path))
    if path.stat().st_size > MAX_SIZE:
        raise CheckpointError(f"{path}: larger than {MAX_SIZE // 2**20} MB, so no embedding; check the file")
    with TensorFile(path) as file:
        return _header(path, file.entries)


def read_vectors(path: Path, header: Header) -> dict[str, npt.NDArray[np.float32]]:
    """The vectors of every table of a header, float32 (vectors, width); imports torch.

    Raises:
        NotFoundError, CheckpointError: as `read_header`; the file is not what the header says any more; or a
            number is not finite.
    """
    import torch

    found: dict[str, Any] = {}
    with TensorFile(path) as file:
        if _header(path, file.entries) != header:
            raise CheckpointError(f"{path}: was changed since it was looked at; start again")
        for slot, table in header.tables.items():
            tensor = file.read(table.tensor).to(torch.float32).reshape(table.vectors, table.width)
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(
                    f"{path}: has numbers that are not finite; get it again from its author"
                )
            found[slot] = tensor.numpy()
    return found


def pickle_sentence(path: Path) -> str:
    """Why an embedding that is a pickle is not read, and what to do."""
    return (
        f"{path}: a pickle, which can run code when it is read; convert it once, in a restricted process, "
        f"with: fewstep convert {path} --allow-pickle --out {path.with_suffix(SUFFIX)}"
    )


def _header(path: Path, entries: Mapping[str, Entry]) -> Header:
    token: str | None = None
    names: dict[str, str]
    parameters = [name for name in entries if name.startswith(_PARAMETER)]
    if set(_SLOTS) & entries.keys():
        names = {slot: slot for slot in _SLOTS if slot in entries}
    elif "emb_params" in entries:
        names = {ANY: "emb_params"}
    elif parameters:
        if len(parameters) > 1:
            raise CheckpointError(f"{path}: vectors for {len(parameters)} words; only files of one are read")
        names = {ANY: parameters[0]}
        word = parameters[0].removeprefix(_PARAMETER)
        token = None if word == "*" else word
    elif len(entries) == 1:
        ((token, _),) = entries.items()
        names = {ANY: token}
    else:
        raise CheckpointError(
            f"{path}: no embedding; {len(entries)} tensors, the first: {first(entries)}; give a file of "
            "textual inversion"
        )
    return Header(
        tables={slot: _table(path, name, entries[name]) for slot, name in names.items()}, token=token
    )


def _table(path: Path, name: str, entry: Entry) -> Table:
    shape = entry.shape if len(entry.shape) == 2 else (1, *entry.shape)
    if (
        len(shape) != 2
        or entry.dtype not in _FLOATS
        or not 1 <= shape[0] <= MAX_VECTORS
        or not 1 <= shape[1] <= MAX_WIDTH
    ):
        raise CheckpointError(
            f"{path}: no embedding; {shown(name)} is {entry.dtype} of shape {list(entry.shape)}, and vectors "
            "are floats (count, width)"
        )
    return Table(tensor=name, vectors=shape[0], width=shape[1])
