"""Folders of networks: which files hold their weights, and the copy of one with other weights.

Nothing in a folder decides what is imported or where is written: networks are known by the names that
diffusers gives their folders, weights are safetensors inside of the folder, also those that an index of
shards names.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.pipeline_folder import inside, shards
from fewstep.checkpoint.tensorfile import Entry, Store, TensorFile
from fewstep.errors import CheckpointError, NotFoundError

if TYPE_CHECKING:
    import torch

INDEX = "model_index.json"
STEMS = ("diffusion_pytorch_model", "model")
"""Of weight files: diffusers', transformers'."""

_NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
_WEIGHTS = frozenset(
    {".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".onnx_data", ".gguf"}
)
_LEFT_OUT = frozenset({"students", "adapter", "README.md"})
"""What is about the first model and not about the result: students of it, its card."""


class Shards:
    """Tensors in several files; see `tensorfile.Store`."""

    def __init__(self, files: Sequence[TensorFile]) -> None:
        self._files = files
        self._of = {name: file for file in files for name in file.entries}
        self.entries: dict[str, Entry] = {
            name: entry for file in files for name, entry in file.entries.items()
        }
        self.metadata = dict(files[0].metadata)

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """See `tensorfile.Store`."""
        return self._of[name].read(name, rows)

    def check_unchanged(self) -> None:
        """See `tensorfile.Store`."""
        for file in self._files:
            file.check_unchanged()


def networks(root: Path) -> list[str]:
    """The networks of a folder that have weights: those that are merged.

    Of a pipeline the networks of a diffusion model; a safety checker is copied as it is.

    Raises:
        CheckpointError: one of them has weights in another format only.
    """
    found = []
    for name in _NETWORKS:
        folder = root / name
        if not folder.is_dir():
            continue
        if _weights(folder):
            found.append(name)
        elif others := sorted(file.name for file in folder.iterdir() if _is_weights(file)):
            raise CheckpointError(
                f"{folder}: has no safetensors, only {shown(others[0])}; fetch the folder again, with "
                "safetensors"
            )
    return found


def open_network(root: Path, name: str, stack: contextlib.ExitStack) -> Store:
    """Open the weights of one network.

    Raises:
        CheckpointError: two sets of weights that contradict, a link out of the folder, a broken file.
    """
    files = _weights(root / name)
    opened = [stack.enter_context(TensorFile(inside(root, file))) for file in files]
    return opened[0] if len(opened) == 1 else Shards(opened)


def lone_file(root: Path) -> Path:
    """The weight file of a folder that holds one network.

    Raises:
        NotFoundError: there is none, or several.
    """
    files = _weights(root)
    if len(files) != 1:
        raise NotFoundError(f"{root}: no weights here; give a pipeline folder or a safetensors file")
    return inside(root, files[0])


def metadata(store: Store) -> Mapping[str, str]:
    """Texts in the header of a store's first file."""
    found = getattr(store, "metadata", {})
    return found if isinstance(found, dict) else {}


def sizes(root: Path, groups: Collection[str]) -> int:
    """Bytes of the weight files of some networks."""
    return sum(file.stat().st_size for name in groups for file in _weights(root / name))


def weight_name(root: Path, name: str) -> str:
    """The file that a network's weights are written to, whatever shards or variants it had."""
    first = _weights(root / name)[0].name
    return f"{next(stem for stem in STEMS if first.startswith(stem))}.safetensors"


def copy_rest(root: Path, out: Path, merged: Collection[str]) -> list[str]:
    """Copy a folder without the weights of some networks.

    Args:
        root: the folder.
        out: an existing folder.
        merged: networks whose weights are not copied.

    Returns:
        What was left out and is not about the first model alone: weights in other formats.

    Raises:
        CheckpointError: a link to a file outside of the folder.
    """
    left: list[str] = []
    for file in _files(root):
        relative = file.relative_to(root)
        if relative.parts[0] in _LEFT_OUT:
            continue
        weights = _is_weights(file)
        if weights and (relative.parts[0] in merged or file.suffix.lower() != ".safetensors"):
            if file not in _weights(file.parent) and file.suffix != ".json":
                left.append(relative.as_posix())
            continue
        target = out / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(inside(root, file), target)
    return left


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.is_file():
            yield path


def _is_weights(file: Path) -> bool:
    return file.suffix.lower() in _WEIGHTS or file.name.endswith(".index.json")


def _weights(folder: Path) -> list[Path]:
    """The weight files of a network: one, or all its shards; nothing where there are none."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        whole = [folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"]
        there = [file for file in whole if file.is_file()]
        if there and index.is_file():  # tools differ in which of them they read
            raise CheckpointError(
                f"{folder}: {there[0].name} and {index.name} contradict; remove one of them"
            )
        if there:
            return there[:1]
        if index.is_file():
            return shards(index)
    return []
