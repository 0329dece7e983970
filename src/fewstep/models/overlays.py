"""A denoiser or an autoencoder that takes the place of a model's own: from a file, or from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.checkpoint import detect as detection
from fewstep.checkpoint import folder_writing, part_configs, safetensors
from fewstep.checkpoint.detect import Detected
from fewstep.checkpoint.parts import Part as FoundPart
from fewstep.checkpoint.tensorfile import TensorFile
from fewstep.diffusion.contract import SamplingContract
from fewstep.errors import CheckpointError, NotFoundError
from fewstep.models import families
from fewstep.models.families import Family, Index
from fewstep.models.model_parts import TINY, FilePart, FolderPart, Part, TinyFile

_TINY_CLASSES = ("AutoencoderKL", TINY)
_SAID = ("given", "keys", "metadata", "name")
"""Sources of a prediction type that are more than the family's rule."""


def detect(path: Path, family: Family | None = None) -> Detected:
    """What a single file is, by its header.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, of no known kind or not of the family.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder; check the path")
    name: Any = None if family is None else family.name
    with TensorFile(path) as file:
        return detection.detect(file.entries, file.metadata, path.name, family=name)


def denoiser(path: Path, base: Mapping[str, Part], index: Index) -> tuple[Part, str | None]:
    """A denoiser for a base, and what it says that it predicts (None where it says nothing).

    Args:
        path: a file with a denoiser or a whole model; a folder with one, or a pipeline folder.
        base: parts of the base.
        index: of the base.

    Raises:
        NotFoundError, CheckpointError: as `detect`; or it does not go with the base's text encoders.
    """
    family, name = index.family, index.family.denoiser
    own = base[name]
    if path.is_dir():
        folder = path / name if (path / name / "config.json").is_file() else path
        part: Part = FolderPart(folder=folder, class_name=index.classes[name], title=family.title)
        _check_pair(path, part.config, own.config, family)
        return part, None
    detected = detect(path, family)
    if name not in detected.parts:
        raise CheckpointError(f"{path}: holds no {name} of {family.title}, but {_article(detected.kind)}")
    found = detected.parts[name]
    try:
        config = _config(found, own.config, base, family, detected)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    part = FilePart(
        file=path,
        name=name,
        class_name=found.class_name,
        config=config,
        detected=detected,
    )
    _check_pair(path, part.config, own.config, family)
    return part, detected.prediction_type if detected.prediction_source in _SAID else None


def autoencoder(path: Path, base: Mapping[str, Part], index: Index) -> Part:
    """An autoencoder for a base: of the usual kind, or a tiny one.

    Raises:
        NotFoundError, CheckpointError: as `detect`.
    """
    title = index.family.title
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        class_name = families.config(folder).get("_class_name")
        if class_name not in _TINY_CLASSES:
            raise CheckpointError(
                f"{folder}/config.json: _class_name is {class_name!r:.80}; give an "
                f"{' or '.join(_TINY_CLASSES)}"
            )
        return FolderPart(folder=folder, class_name=class_name, title=title)
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder; check the path")
    with TensorFile(path) as file:
        detected = detection.detect(file.entries, file.metadata, path.name)
        shapes = {key: entry.shape for key, entry in file.entries.items()}
    if detected.kind == "taesd":
        return TinyFile(file=path, config=_tiny_config(path, shapes))
    found = detected.parts.get("vae")
    if found is None:
        raise CheckpointError(f"{path}: holds no autoencoder of {title}, but {_article(detected.kind)}")
    family: Any = index.family.name
    if "vae" in base and _is_like(found, base["vae"].config):
        config = base["vae"].config  # its scale is not in the file
    elif family in part_configs.FAMILIES:
        config = part_configs.vae_config(found.shapes, family, prediction_type=None)
    else:
        raise CheckpointError(f"{path}: not an autoencoder like that of {title}; give one of the same shapes")
    return FilePart(file=path, name="vae", class_name=found.class_name, config=config, detected=detected)


def contract_for(
    base: SamplingContract, folder: Path | None, index: Index, part: Part, downscale: int
) -> SamplingContract:
    """How a base is sampled with a denoiser that is not recognised.

    The base's own contract, except where the denoiser is told the guidance scale or the base's is; then what
    the folder's scheduler gives for it.
    """
    embedded = part.config.get("time_cond_proj_dim") is not None
    if embedded == (base.guidance == "embedded") or folder is None:
        return base
    return families.contract_of(index.family, families.scheduler_of(folder, index), part.config, downscale)


def hash_of(path: Path, name: str) -> str:
    """SHA-256 of a file, or of the weights in a folder, see design "Hashes"."""
    if path.is_file():
        return safetensors.sha256_file(path)
    folder = path / name if (path / name / "config.json").is_file() else path
    return safetensors.folder_hash(folder)


def _config(
    found: FoundPart,
    own: Mapping[str, Any],
    base: Mapping[str, Part],
    family: Family,
    detected: Detected,
) -> Mapping[str, Any]:
    """The base's own configuration where the tensors are those of it, else what the shapes say."""
    if _is_like(found, own):
        return own
    if family.name != "sdxl" or "text_encoder_2" not in base:
        return found.config
    pooled = int(base["text_encoder_2"].config["projection_dim"])
    return part_configs.unet_config(
        found.shapes, "sdxl", prediction_type=detected.prediction_type, pooled=pooled
    )


def _is_like(found: FoundPart, config: Mapping[str, Any]) -> bool:
    """Whether tensors are exactly those of a network of this configuration."""
    try:
        return folder_writing.expected_shapes(found.class_name, dict(config)) == found.shapes
    except CheckpointError:
        return False


def _check_pair(path: Path, config: Mapping[str, Any], own: Mapping[str, Any], family: Family) -> None:
    """Refuse a denoiser that reads another text than the base writes, or draws other latents."""
    keys = ("cross_attention_dim", "joint_attention_dim", "caption_channels", "out_channels")
    for key in (*keys, "projection_class_embeddings_input_dim", "pooled_projection_dim"):
        if config.get(key) != own.get(key):
            raise CheckpointError(
                f"{path}: its denoiser has {key} {config.get(key)!r:.40}, and the base's has "
                f"{own.get(key)!r:.40}; give a denoiser of {family.title} in the same size"
            )


def _tiny_config(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    first = shapes.get("decoder.layers.0.weight", ())
    if len(first) != 4 or "encoder.layers.0.weight" not in shapes:
        raise CheckpointError(
            f"{path}: a half of TAESD as its author names it; give the folder or the file that diffusers "
            "reads, which has both halves (madebyollin/taesd and its relatives)"
        )
    return {"_class_name": TINY, "latent_channels": first[1]}


def _article(kind: str) -> str:
    return {"checkpoint": "a whole model without it", "lora": "an adapter"}.get(kind, f"a {kind}")
