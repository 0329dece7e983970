"""From a recipe's ``data`` section to a dataset: which source has which options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fewstep.data.augment import Augmentation
from fewstep.data.labelled import LabelledDrawings, concepts
from fewstep.errors import RecipeError
from fewstep.training.feed import Dataset
from fewstep.training.sections import Data, Fraction, Images, Section, explain

_LARGEST = Augmentation()


class DrawingsOptions(Section):
    """Emoji drawings on plain backgrounds, as pixels."""

    crop: Annotated[int, Field(ge=8, le=128)] | None = 64
    mirror: bool = True
    any_colour: Fraction = 0.3
    part: str = "train"
    backgrounds: str | None = None


class AugmentationOptions(Section):
    """How labelled drawings are changed: `fewstep.data.augment.Augmentation`, which checks the ranges."""

    clean: float = _LARGEST.clean
    shift: float = _LARGEST.shift
    scale: float = _LARGEST.scale
    aspect: float = _LARGEST.aspect
    rotation: float = _LARGEST.rotation
    warp: float = _LARGEST.warp
    brightness: float = _LARGEST.brightness
    contrast: float = _LARGEST.contrast
    saturation: float = _LARGEST.saturation
    hue: float = _LARGEST.hue
    blur: float = _LARGEST.blur
    noise: float = _LARGEST.noise
    blocks: float = _LARGEST.blocks
    flatten: float = _LARGEST.flatten
    erase: float = _LARGEST.erase


class LabelledOptions(Section):
    """Emoji drawings with concept and style, for the evaluator."""

    text: str
    """Folder with ``text_encoder`` and ``tokenizer``: embeds the concepts."""
    side: int = 64
    any_colour: Fraction = 0.3
    mirror: bool = True
    augmentation: AugmentationOptions | None = AugmentationOptions()
    """null for drawings as they are."""
    backgrounds: str | None = None


class CacheOptions(Section):
    """A finished cache of latents and text embeddings."""

    key: str | None = None
    variant_weights: tuple[float, ...] | None = None


class FiltersOptions(Section):
    """What an image-text sample must have."""

    min_width: Images | None = None
    min_height: Images | None = None
    min_aesthetic: float | None = None
    max_watermark: float | None = None


class ImageTextOptions(Section):
    """Images of any size with captions, brought to one size."""

    width: Images
    height: Images
    limit: Fraction = 0.01
    random_crop: bool = False
    mirror: bool = False
    filters: FiltersOptions = FiltersOptions()
    source: dict[str, str | None] = Field(default_factory=dict)
    """Passed to the source itself: columns, split, reader."""


_OPTIONS: dict[str, type[Section]] = {
    "drawings": DrawingsOptions,
    "labelled": LabelledOptions,
    "cache": CacheOptions,
    "folder": ImageTextOptions,
    "table": ImageTextOptions,
    "webdataset": ImageTextOptions,
    "huggingface": ImageTextOptions,
}


def open_dataset(section: Data) -> Dataset:
    """Open what a recipe's ``data`` section names.

    Raises:
        RecipeError: an option that the source does not have, or a value out of range.
        DataError: nothing usable at the path.
    """
    if section.source == "points":
        raise RecipeError("data.source points: these are a mixture's, for distillation recipes that name one")
    path = Path(section.path).expanduser()
    model = _OPTIONS[section.source]
    try:
        options = model.model_validate_json(json.dumps(section.options))
    except ValidationError as error:
        raise RecipeError(f"data.options: {explain(model, error)}") from None
    if isinstance(options, DrawingsOptions):
        return _drawings(path, options)
    if isinstance(options, LabelledOptions):
        return labelled(path, options)
    if isinstance(options, CacheOptions):
        from fewstep.data.latent_cache import open_cache

        return open_cache(path, key=options.key, variant_weights=options.variant_weights)
    assert isinstance(options, ImageTextOptions)
    return _image_text(section.source, path, options)


def _drawings(path: Path, options: DrawingsOptions) -> Dataset:
    from fewstep.data.backgrounds import load_backgrounds
    from fewstep.data.emoji import open_drawings
    from fewstep.data.pixels import EmojiPixels

    file = Path(options.backgrounds).expanduser() if options.backgrounds is not None else None
    return EmojiPixels(
        open_drawings(path),
        load_backgrounds(file),
        crop=options.crop,
        mirror=options.mirror,
        any_colour=options.any_colour,
        part=options.part,
    )


def labelled(path: Path, options: LabelledOptions) -> LabelledDrawings:
    """Labelled drawings with the sentence embeddings of their concepts' captions."""
    from fewstep.checkpoint import safetensors
    from fewstep.data.backgrounds import load_backgrounds
    from fewstep.data.captions import caption
    from fewstep.data.emoji import open_drawings
    from fewstep.models import load, text

    drawings, folder = open_drawings(path), Path(options.text).expanduser()
    encoder, tokenizer = load.text_parts(folder)
    captions = [caption(label) for label in concepts(drawings.items)]
    return LabelledDrawings(
        drawings,
        load_backgrounds(Path(options.backgrounds).expanduser() if options.backgrounds is not None else None),
        text.sentences(captions, encoder, tokenizer).numpy(),
        embeddings_from=safetensors.folder_hash(folder / "text_encoder"),
        side=options.side,
        any_colour=options.any_colour,
        mirror=options.mirror,
        augmentation=None
        if options.augmentation is None
        else Augmentation(**options.augmentation.model_dump()),
    )


def _image_text(name: str, path: Path, options: ImageTextOptions) -> Dataset:
    from fewstep.data.image_text import Filters, ImageText

    try:
        source = _source(name, path, dict(options.source))
    except TypeError as error:
        raise RecipeError(
            f"data.options.source: {error}; see the source {name!r} in the data guide"
        ) from None
    return ImageText(
        source,
        width=options.width,
        height=options.height,
        filters=Filters(**options.filters.model_dump()),
        limit=options.limit,
        random_crop=options.random_crop,
        mirror=options.mirror,
    )


def _source(name: str, path: Path, extra: dict[str, Any]) -> Any:
    if name == "folder":
        from fewstep.data.sources.folder import FolderSource

        return FolderSource(path, **extra)
    if name == "table":
        from fewstep.data.sources.table import TableSource

        root = extra.pop("root", None)
        return TableSource(path, root=Path(root) if root is not None else None, **extra)
    if name == "webdataset":
        from fewstep.data.sources.shards import ShardSource

        return ShardSource(sorted(path.glob("*.tar")) if path.is_dir() else [path], **extra)
    from fewstep.data.sources.huggingface import HuggingFaceSource

    return HuggingFaceSource(path, **extra)
