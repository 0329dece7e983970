"""Pipeline folders in diffusers' layout, opened as tensors: what conversion reads of them.

Nothing in a folder decides what is imported: ``model_index.json`` is read to find the networks, and only by
classes of a closed list. Weight files are safetensors inside of the folder, also those that an index of
shards names. What a network is, its tensors say; the folder's own configs are not trusted for that.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint.detect import Detected, Variant, detect_folder
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.part_configs import Family
from fewstep.checkpoint.single_file import PartView, view
from fewstep.checkpoint.tensorfile import Store, TensorFile
from fewstep.errors import CheckpointError, NotFoundError

if TYPE_CHECKING:
    import torch

PIPELINES: dict[tuple[Family, Variant], str] = {
    ("sd1", "text"): "StableDiffusionPipeline",
    ("sd1", "inpainting"): "StableDiffusionInpaintPipeline",
    ("sd1", "instruct"): "StableDiffusionInstructPix2PixPipeline",
    ("sd2", "text"): "StableDiffusionPipeline",
    ("sd2", "inpainting"): "StableDiffusionInpaintPipeline",
    ("sd2", "instruct"): "StableDiffusionInstructPix2PixPipeline",
    ("sdxl", "text"): "StableDiffusionXLPipeline",
    ("sdxl", "inpainting"): "StableDiffusionXLInpaintPipeline",
    ("sdxl", "instruct"): "StableDiffusionXLInstructPix2PixPipeline",
    ("sd3", "text"): "StableDiffusion3Pipeline",
    ("pixart-alpha", "text"): "PixArtAlphaPipeline",
    ("pixart-sigma", "text"): "PixArtSigmaPipeline",
}
"""The class that ``model_index.json`` names."""

_ALSO_READ = (
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "StableDiffusion3InpaintPipeline",
    "LatentConsistencyModelPipeline",
)
"""Other uses of the same networks."""

DIFFUSERS = frozenset(
    {"AutoencoderKL", "UNet2DConditionModel", "SD3Transformer2DModel", "PixArtTransformer2DModel"}
)
TRANSFORMERS = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"})
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
_NETWORKS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
_MAX_JSON = 10_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """An open pipeline folder.

    Attributes:
        path: of the folder.
        detected: what its networks are.
        views: its networks by folder name.
    """

    path: Path
    detected: Detected
    views: Mapping[str, PartView]


class _Shards:
    """Tensors in several files."""

    def __init__(self, files: list[TensorFile]) -> None:
        self._files = files
        self._of = {name: file for file in files for name in file.entries}
        self.entries = {name: entry for file in files for name, entry in file.entries.items()}

    def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        return self._of[name].read(name, rows)

    def check_unchanged(self) -> None:
        for file in self._files:
            file.check_unchanged()


@contextlib.contextmanager
def open_folder(
    path: Path, *, family: Family | None = None, prediction_type: str | None = None
) -> Iterator[Folder]:
    """Open the networks of a pipeline folder.

    Args:
        path: a folder with ``model_index.json``.
        family: what it is said to be; another one is an error.
        prediction_type: what its denoiser is said to predict; what its scheduler says when None.

    Raises:
        NotFoundError: no such folder, or weights are missing.
        CheckpointError: a class that is not accepted, a pickle, a weight file outside of the folder, or
            networks that are not of one known model.
    """
    index = read_json(path / "model_index.json")
    accepted = {*PIPELINES.values(), *_ALSO_READ}
    if not isinstance(index.get("_class_name"), str) or index["_class_name"] not in accepted:
        names = ", ".join(sorted(accepted))
        raise CheckpointError(
            f"{path}/model_index.json: _class_name is {shown(repr(index.get('_class_name')))}; only {names} "
            "is converted"
        )
    scheduler_file = path / "scheduler" / "scheduler_config.json"
    scheduler = read_json(scheduler_file) if scheduler_file.is_file() else {}
    predicted = prediction_type or scheduler.get("prediction_type")
    with contextlib.ExitStack() as stack:
        stores = {
            name: _store(path, name, _library(path, name, value), stack)
            for name, value in index.items()
            if name in _NETWORKS and isinstance(value, list) and any(value)
        }
        detected = detect_folder(
            {name: store.entries for name, store in stores.items()},
            str(path),
            family=family,
            prediction_type=predicted if predicted in ("epsilon", "v_prediction") else None,
        )
        detected = replace(detected, zero_terminal_snr=scheduler.get("rescale_betas_zero_snr") is True)
        yield Folder(
            path=path,
            detected=detected,
            views={name: view(part, stores[name]) for name, part in detected.parts.items()},
        )


def _library(path: Path, name: str, value: list[Any]) -> str:
    """The library of a network that an index names, if it is one that is converted."""
    if len(value) == 2 and value in [["diffusers", n] for n in DIFFUSERS]:
        return "diffusers"
    if len(value) == 2 and value in [["transformers", n] for n in TRANSFORMERS]:
        return "transformers"
    raise CheckpointError(
        f"{path}/model_index.json: {name} is {shown(repr(value))}; only "
        f"{', '.join(sorted(DIFFUSERS | TRANSFORMERS))} is converted"
    )


def _store(root: Path, name: str, library: str, stack: contextlib.ExitStack) -> Store:
    folder, stem = root / name, STEMS[library]
    index = folder / f"{stem}.safetensors.index.json"
    for whole in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if not (folder / whole).is_file():
            continue
        if index.is_file():  # tools differ in which of them they read
            raise CheckpointError(f"{folder}: {whole} and {index.name} contradict; remove one of them")
        return stack.enter_context(TensorFile(inside(root, folder / whole)))
    if not index.is_file():
        raise NotFoundError(f"{folder}: no {stem}.safetensors here; fetch the folder again, with safetensors")
    files = [stack.enter_context(TensorFile(inside(root, file))) for file in shards(index)]
    return _Shards(files)


def shards(index: Path) -> list[Path]:
    """The files that an index of shards names, beside it.

    Raises:
        NotFoundError: no such index.
        CheckpointError: it lists no files, or one that lies elsewhere.
    """
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: lists no files; fetch the folder again")
    for file in (found := sorted({str(value) for value in names.values()})):
        if Path(file).name != file or file in (".", "..") or "\\" in file:
            raise CheckpointError(
                f"{index}: names {shown(file)}, which is not a file beside it; fetch the folder again"
            )
    return [index.parent / file for file in found]


def inside(root: Path, file: Path) -> Path:
    """The file, when following its links does not lead out of the folder.

    Raises:
        CheckpointError: it does.
    """
    if not file.resolve().is_relative_to(root.resolve()):
        raise CheckpointError(
            f"{file}: a link to a file outside of the folder; copy the folder with its files (cp -rL)"
        )
    return file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        NotFoundError: no such file.
        CheckpointError: it holds something else.
    """
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_JSON))
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file; give a pipeline folder in the diffusers layout") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON; fetch the folder again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object; fetch the folder again")
    return value
