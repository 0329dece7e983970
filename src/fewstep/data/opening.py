"""A recipe's data section, opened: source names and what each of them takes.

``emoji-pixels`` and ``emoji-latents`` prepare what is missing (packages, drawings, latents) in folders
beside each other; the other sources only read.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.dataset import Dataset
from fewstep.data.emoji import Drawings, build_drawings, open_drawings
from fewstep.data.emoji_sets import GROUPS, STYLES, fetch_packages
from fewstep.data.image_text import Filters, ImageText
from fewstep.data.latent_cache import open_cache
from fewstep.data.pixels import EmojiPixels
from fewstep.errors import RecipeError


def open_dataset(source: str, path: str, **options: Any) -> Dataset:
    """Open the data of a recipe.

    Args:
        source: one of :data:`SOURCES`.
        path: file or folder of the set; ``~`` is the home folder.
        options: what the source takes beyond that.

    Raises:
        RecipeError: an unknown source or option; the message names the nearest.
        DataError: the set is missing, broken, or has too many bad samples.
    """
    if source not in SOURCES:
        near = difflib.get_close_matches(source, SOURCES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(SOURCES)}"
        raise RecipeError(f"data.source {source!r}: not known; {hint}")
    opener = SOURCES[source]
    allowed = [name for name in inspect.signature(opener).parameters if name != "path"]
    for key in options:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"{source} takes: {', '.join(allowed)}"
            raise RecipeError(f"data.options.{key}: {source} does not take it; {hint}")
    return opener(Path(path).expanduser(), **options)


def _drawing_set(folder: Path, packages: str | None = None) -> Drawings:
    """Open the drawing set in ``folder``, rendering all of it first when it is not there.

    Args:
        folder: the set.
        packages: a node_modules folder with the emoji packages; None fetches them with npm into a folder
            beside the set.
    """
    if (folder / "set.json").is_file():
        return open_drawings(folder)
    source = Path(packages).expanduser() if packages else fetch_packages(folder.parent / "packages")
    return build_drawings(folder, source)


def _emoji_pixels(
    path: Path,
    *,
    packages: str | None = None,
    crop: int | None = 64,
    mirror: bool = True,
    any_colour: float = 0.3,
    part: str = "train",
) -> Dataset:
    return EmojiPixels(
        _drawing_set(path, packages),
        load_backgrounds(),
        crop=crop,
        mirror=mirror,
        any_colour=any_colour,
        part=part,
    )


def _emoji_latents(
    path: Path,
    *,
    drawings: str,
    autoencoder: str,
    text: str,
    packages: str | None = None,
    styles: Sequence[str] = STYLES,
    groups: Sequence[str] = GROUPS,
    per_drawing: int = 8,
    caption_variants: int = 4,
    variant_weights: Sequence[float] | None = None,
) -> Dataset:
    # torch, diffusers and transformers come in with this one
    from fewstep.data.emoji_latents import emoji_latents

    return emoji_latents(
        path,
        drawings=_drawing_set(Path(drawings).expanduser(), packages),
        autoencoder=Path(autoencoder).expanduser(),
        text=Path(text).expanduser(),
        styles=styles,
        groups=groups,
        per_drawing=per_drawing,
        caption_variants=caption_variants,
        variant_weights=variant_weights,
    )


def _latents(path: Path, *, variant_weights: Sequence[float] | None = None) -> Dataset:
    return open_cache(path, variant_weights=variant_weights)


def _image_text(kind: str) -> Callable[..., Dataset]:
    def opener(
        path: Path,
        *,
        width: int,
        height: int,
        limit: float = 0.01,
        report: str | None = None,
        random_crop: bool = False,
        mirror: bool = False,
        min_width: int | None = None,
        min_height: int | None = None,
        min_aesthetic: float | None = None,
        max_watermark: float | None = None,
    ) -> Dataset:
        filters = Filters(
            min_width=min_width,
            min_height=min_height,
            min_aesthetic=min_aesthetic,
            max_watermark=max_watermark,
        )
        return ImageText(
            _SOURCE_CLASSES[kind](path),
            width=width,
            height=height,
            filters=filters,
            limit=limit,
            report=Path(report).expanduser() if report else None,
            random_crop=random_crop,
            mirror=mirror,
        )

    return opener


def _folder(path: Path) -> Any:
    from fewstep.data.sources.folder import FolderSource

    return FolderSource(path)


def _table(path: Path) -> Any:
    from fewstep.data.sources.table import TableSource

    return TableSource(path)


def _shards(path: Path) -> Any:
    from fewstep.data.sources.shards import ShardSource

    return ShardSource(sorted(path.glob("*.tar")) if path.is_dir() else [path])


def _huggingface(path: Path) -> Any:
    from fewstep.data.sources.huggingface import HuggingFaceSource

    return HuggingFaceSource(path)


_SOURCE_CLASSES: Final[dict[str, Callable[[Path], Any]]] = {
    "folder": _folder,
    "table": _table,
    "shards": _shards,
    "huggingface": _huggingface,
}

SOURCES: Final[dict[str, Callable[..., Dataset]]] = {
    "emoji-pixels": _emoji_pixels,
    "emoji-latents": _emoji_latents,
    "latents": _latents,
    **{kind: _image_text(kind) for kind in _SOURCE_CLASSES},
}
"""What ``data.source`` of a recipe may be."""
