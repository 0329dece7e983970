"""Checkpoints: folders of safetensors files and one JSON manifest, complete or not there at all.

``checkpoints/<images seen, 10 digits>/`` holds per role ``<role>.safetensors``, ``<role>.ema.safetensors``
and ``<role>.optimiser.safetensors``, and ``state.json``: format, counts, environment, and size and SHA-256 of
every file. The folder gets its name only when all of it is on the disk.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewstep.checkpoint import atomic, safetensors
from fewstep.errors import CheckpointError, FewstepError, NotFoundError

FORMAT = 1
MANIFEST = "state.json"

# From format n to n + 1, for checkpoints of older releases; there is no older format yet.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

_log = logging.getLogger("fewstep.training")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint: where it is and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def images_seen(self) -> int:
        """Images seen when it was written."""
        return int(self.manifest["images_seen"])

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of ``<name>.safetensors`` in it, on the CPU."""
        return safetensors.load_torch(self.folder / f"{name}.safetensors")


def save(
    parent: Path,
    images_seen: int,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
) -> Path:
    """Write a checkpoint.

    Args:
        parent: the ``checkpoints`` folder.
        images_seen: names the checkpoint; one that exists already under this name is complete and is kept.
        tensors: file name without suffix -> tensors.
        state: what else the manifest holds.

    Returns:
        Its folder.

    Raises:
        OutputError: it could not be written; nothing is left of it.
    """
    final = parent / f"{images_seen:010d}"
    if final.is_dir():
        return final
    with atomic.folder(final) as folder:
        files: dict[str, dict[str, Any]] = {}
        for name, group in tensors.items():
            path = folder / f"{name}.safetensors"
            safetensors.save_torch(path, group)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": safetensors.sha256_file(path)}
        manifest = {"format": FORMAT, **state, "images_seen": images_seen, "files": files}
        atomic.write_text(folder / MANIFEST, json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    return final


def found(parent: Path) -> list[Path]:
    """Folders that carry a checkpoint's name and a manifest, oldest first."""
    if not parent.is_dir():
        return []
    return sorted(
        entry
        for entry in parent.iterdir()
        if re.fullmatch(r"\d{10,}", entry.name) and (entry / MANIFEST).is_file()
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint: format, and size and hash of every file.

    Raises:
        CheckpointError: it is broken, or of a format that this version does not read.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: broken manifest ({error}); use an older checkpoint") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{folder}: broken manifest (not a mapping); use an older checkpoint")
    manifest = _migrated(manifest, folder)
    try:
        for name, expected in manifest["files"].items():
            path = folder / name
            if path.parent != folder:
                raise CheckpointError(
                    f"{folder}: the manifest names {name!r} outside; do not use this checkpoint"
                )
            if not path.is_file() or path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path}: missing or cut short; use an older checkpoint")
            if safetensors.sha256_file(path) != expected["sha256"]:
                raise CheckpointError(f"{path}: its hash differs from the manifest; use an older checkpoint")
        int(manifest["images_seen"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{folder}: broken manifest ({error!r}); use an older checkpoint") from error
    return Checkpoint(folder, manifest)


def latest(parent: Path, *, strict: bool = False) -> Checkpoint | None:
    """The newest checkpoint that is complete; None when there is none at all.

    Args:
        parent: the ``checkpoints`` folder.
        strict: stop at a broken newest one instead of falling back with a warning.

    Raises:
        CheckpointError: the newest is broken and ``strict`` is set, all are broken, or a format is foreign.
    """
    folders = found(parent)
    for folder in reversed(folders):
        try:
            return open_checkpoint(folder)
        except CheckpointError as error:
            if strict or isinstance(error, FormatError):
                raise
            _log.warning("CHECKPOINT BROKEN, falling back to the one before it: %s", error)
    if folders:
        raise CheckpointError(f"{parent}: all {len(folders)} checkpoints are broken; start a new run")
    return None


def retain(parent: Path, keep: int, *, remove: Callable[[Path], None] = atomic.remove_folder) -> list[Path]:
    """Remove all but the newest ``keep`` checkpoints; one that cannot be removed is warned about and skipped.

    Raises:
        ValueError: ``keep`` is less than 2: the only checkpoint may turn out to be broken.
    """
    if keep < 2:
        raise ValueError(f"keep is {keep}: one checkpoint alone may turn out to be broken, keep 2 or more")
    removed = []
    for folder in found(parent)[:-keep]:
        try:
            remove(folder)
        except (OSError, FewstepError) as error:
            _log.warning("old checkpoint stays: %s", error)
        else:
            removed.append(folder)
    return removed


def weights(run_folder: str | Path, role: str, *, ema: bool = True) -> Path:
    """Path of a role's weights in the newest complete checkpoint of a run.

    Args:
        run_folder: the run.
        role: "autoencoder", "denoiser", ...
        ema: the averaged weights when the run has them.

    Raises:
        NotFoundError: no checkpoint, or no such role; the message lists what there is.
    """
    newest = latest(Path(run_folder) / "checkpoints")
    if newest is None:
        raise NotFoundError(f"{run_folder}: no checkpoint here; give the folder of a training run")
    for name in [f"{role}.ema.safetensors"] * ema + [f"{role}.safetensors"]:
        if name in newest.manifest["files"]:
            return newest.folder / name
    there = ", ".join(sorted(newest.manifest["files"]))
    raise NotFoundError(f"{newest.folder}: no weights of {role!r}; there are: {there}")


def copy_into(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: object) -> None:
    """Load weights strictly, keeping the module's memory layout.

    Raises:
        CheckpointError: names or shapes differ; the message lists the first ten.
    """
    own = module.state_dict()
    problems = [
        *(f"missing {name}" for name in own.keys() - state.keys()),
        *(f"unexpected {name}" for name in state.keys() - own.keys()),
        *(
            f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if state[name].shape != own[name].shape
        ),
    ]
    if problems:
        listed = "; ".join(sorted(problems)[:10])
        raise CheckpointError(f"{source}: not the weights of this model ({listed}); check the model section")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def optimiser_tensors(optimiser: torch.optim.Optimizer, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Flatten an optimiser's state to ``<parameter>/<entry>`` tensors; Python numbers become 0-d float64."""
    flat: dict[str, torch.Tensor] = {}
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for name, parameter in zip(names, parameters, strict=True):
        for entry, value in optimiser.state.get(parameter, {}).items():
            is_tensor = isinstance(value, torch.Tensor)
            flat[f"{name}/{entry}"] = value if is_tensor else torch.tensor(value, dtype=torch.float64)
    return flat


def restore_optimiser(
    optimiser: torch.optim.Optimizer, names: Iterable[str], flat: Mapping[str, torch.Tensor], source: object
) -> None:
    """Put back what `optimiser_tensors` flattened, in the memory layout of each parameter.

    Raises:
        CheckpointError: an entry belongs to no parameter.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    index = {name: (i, parameter) for i, (name, parameter) in enumerate(zip(names, parameters, strict=True))}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in flat.items():
        name, _, entry = key.rpartition("/")
        if name not in index:
            raise CheckpointError(
                f"{source}: optimiser state of unknown parameter {name!r}; use its own recipe"
            )
        i, parameter = index[name]
        if value.shape == parameter.shape and value.dim() > 0:
            # The fused kernels want state and weights laid out alike.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(i, {})[entry] = value
    fresh = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})


class FormatError(CheckpointError):
    """A checkpoint of a format that this version does not read; falling back to another would hide it."""


def _migrated(manifest: dict[str, Any], folder: Path) -> dict[str, Any]:
    version = manifest.get("format")
    writer = manifest.get("fewstep", "unknown")
    if not isinstance(version, int) or version > FORMAT:
        raise FormatError(
            f"{folder}: checkpoint format {version!r}, written by fewstep {writer}; this version reads up to "
            f"{FORMAT}, install a newer fewstep"
        )
    while version < FORMAT:
        if version not in _MIGRATIONS:
            raise FormatError(
                f"{folder}: checkpoint format {version}, written by fewstep {writer}, is too old for this "
                "version; resume it with the version that wrote it"
            )
        manifest = _MIGRATIONS[version](manifest)
        version += 1
    return manifest
