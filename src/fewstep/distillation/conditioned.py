"""Conditions beside the text: arrays on disk, a row for each sample, and whether a teacher takes them.

A folder holds any of ``pooled.npy`` (N, P), ``time_ids.npy`` (N, 6), ``classes.npy`` (N,), ``concat.npy`` (N,
C, h, w), ``mid_residual.npy`` (N, C, h, w), and ``residuals.0.npy``, ``residuals.1.npy`` ... or
``adapter_residuals.0.npy`` ..., each (N, C, h, w); `fewstep.models.conditions` says what they mean. The names
are also the keys of a sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoint import safetensors
from fewstep.errors import DataError, RecipeError
from fewstep.training.feed import Dataset

SINGLE = ("text", "pooled", "time_ids", "classes", "concat", "mid_residual")
"""Keys of conditions that are one array."""
LISTS = ("residuals", "adapter_residuals")
"""Beginnings of keys, before a number from 0, of conditions that are several."""


def is_condition(key: str) -> bool:
    """Whether a sample's key is that of a condition."""
    name, dot, number = key.partition(".")
    return (name in LISTS and number.isdigit()) if dot else name in SINGLE


class Conditioned:
    """A `Dataset` with the arrays of a folder beside what another one gives.

    Args:
        data: the other one.
        folder: see the module.

    Raises:
        DataError: an array is missing, broken, of an unknown name, or has not one row for each sample.
    """

    def __init__(self, data: Dataset, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.arrays: dict[str, NDArray[Any]] = {}
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give the one with concat.npy and the like")
        for path in sorted(folder.glob("*.npy")):
            if not is_condition(path.stem) or path.stem == "text":
                raise DataError(f"{path}: not the name of a condition; see the data of fewstep.distillation")
            self.arrays[path.stem] = self._open(path)
        if not self.arrays:
            raise DataError(f"{folder}: no conditions here; give the folder with concat.npy and the like")
        for name in LISTS:
            count = sum(key.startswith(f"{name}.") for key in self.arrays)
            missing = [i for i in range(count) if f"{name}.{i}" not in self.arrays]
            if missing:
                raise DataError(f"{folder}: {name}.{missing[0]}.npy is missing; number them from 0")
        # Which of two copies is taken is drawn in the cache, and a mask would not be turned with it.
        latents = getattr(data, "latents", None)
        if latents is not None and latents.ndim == 5 and latents.shape[1] > 1 and self._of_places():
            raise DataError(
                f"{folder}: {self._of_places()} cannot be mirrored with the latents; use a cache that was "
                "built without mirrored copies"
            )

    def _open(self, path: Path) -> NDArray[Any]:
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); write it again") from error
        if array.ndim == 0 or len(array) != len(self.data):
            raise DataError(
                f"{path}: {array.shape[:1]} rows for {len(self.data)} samples; give one row for each"
            )
        return array

    def _of_places(self) -> str:
        return next((key for key, array in self.arrays.items() if array.ndim == 4), "")

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: NDArray[Any], rng: np.random.Generator) -> dict[str, Any]:
        """The other's samples with conditions: float32, whole numbers as int64."""
        found = self.data.batch(indices, rng)
        for key, array in self.arrays.items():
            rows = array[indices]
            found[key] = rows.astype(np.int64 if rows.dtype.kind in "iub" else np.float32)
        return found

    def fingerprint(self) -> str:
        """Changes with the other's fingerprint and with any array."""
        digest = hashlib.sha256(self.data.fingerprint().encode())
        for key in self.arrays:
            digest.update(f"{key} {safetensors.sha256_file(self.folder / f'{key}.npy')}".encode())
        return digest.hexdigest()


def check(config: Mapping[str, Any], sample: Mapping[str, Any], null_class: int | None = None) -> None:
    """Check that data hold what a U-Net must be told, and nothing that it would not look at.

    Args:
        config: of a ``UNet2DConditionModel``.
        sample: of the data, a batch of 1.
        null_class: the class that means none.

    Raises:
        RecipeError: the message names the condition.
    """
    channels, latents = int(config["in_channels"]), int(sample["latents"].shape[1])
    if "concat" not in sample and channels > latents:
        raise RecipeError(
            f"data: no concat, but the teacher takes {channels} channels and latents have {latents}; give "
            f"the other {channels - latents} (mask, masked or low-resolution latents); {_FOLDER}"
        )
    extra = int(sample["concat"].shape[1]) if "concat" in sample else 0
    width, told = config["cross_attention_dim"], "text" in sample
    if latents + extra != channels or (told and sample["text"].shape[-1] != width):
        texts = f"texts {sample['text'].shape[-1]} features" if told else "there are no texts"
        raise RecipeError(
            f"data: latents have {latents + extra} channels and {texts}, but the teacher takes {channels} "
            f"and {width}; use the cache that was made with this teacher's autoencoder and text encoder"
        )
    asked = _asked(config)
    for key in sorted(asked):
        if key not in sample:
            raise RecipeError(f"data: no {key}, which the teacher must be told; {_WHERE.get(key, _FOLDER)}")
    for key in ("classes", "pooled", "time_ids"):
        if key in sample and key not in asked:
            raise RecipeError(f"data: {key} is given, but the teacher does not look at it; leave it out")
    _check_residuals(config, sample)
    known = config.get("num_class_embeds")
    if null_class is not None and not (known and 0 <= null_class < known):
        raise RecipeError(f"teacher.null_class is {null_class}: the teacher has {known or 'no'} classes")


_FOLDER = "the recipe's conditions names the folder for it"
_WHERE = {"text": "use a cache with texts"}


def _asked(config: Mapping[str, Any]) -> set[str]:
    """What a U-Net cannot do without, but for channels beside the latents."""
    needed = set()
    names = [*config["down_block_types"], *config["up_block_types"], config["mid_block_type"] or ""]
    if any("CrossAttn" in name for name in names) or config["addition_embed_type"] == "text":
        needed.add("text")
    if config["num_class_embeds"] is not None or config["class_embed_type"] is not None:
        needed.add("classes")
    if config["addition_embed_type"] == "text_time":
        needed |= {"pooled", "time_ids"}
    return needed


def _check_residuals(config: Mapping[str, Any], sample: Mapping[str, Any]) -> None:
    counts = {name: sum(key.startswith(f"{name}.") for key in sample) for name in LISTS}
    if (counts["residuals"] > 0) != ("mid_residual" in sample):
        absent = "mid_residual" if counts["residuals"] else "residuals.0"
        raise RecipeError(f"data: no {absent}, but a ControlNet adds both kinds; {_FOLDER}")
    blocks, layers = len(config["down_block_types"]), config["layers_per_block"]
    skips = 1 + (sum(layers) if not isinstance(layers, int) else blocks * layers) + blocks - 1
    if counts["residuals"] not in (0, skips):
        raise RecipeError(
            f"data: {counts['residuals']} residuals, but the teacher has {skips} places for them"
        )
    # SDXL's adapters have one more for the middle
    if counts["adapter_residuals"] not in (0, blocks, blocks + 1):
        raise RecipeError(
            f"data: {counts['adapter_residuals']} adapter_residuals, but the teacher has {blocks} blocks"
        )
