"""A folder of pictures as an adapter sees it: latents and texts encoded once and kept in the run's folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewstep.checkpoint import safetensors
from fewstep.data.image_text import ImageText
from fewstep.data.sources.folder import FolderSource
from fewstep.errors import CheckpointError, DataError, NotFoundError, RecipeError
from fewstep.training.adapter_base import TaughtModel
from fewstep.training.adapter_sections import AdapterRecipe, Pictures, Prior

FILE = "pictures.safetensors"
"""In the run's folder."""

_log = logging.getLogger("fewstep.training")
_CROPS = 0x63726F7073  # "crops": a stream of its own

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PictureSet:
    """Encoded pictures as a `fewstep.training.feed.Dataset`; their texts are named by row.

    Attributes:
        latents: float32 (N, V, C, h, w), V views of every picture: mirrored ones in the second half.
        time_ids: float32 (N, V, 6), what SDXL is told of size and crop.
        mirrorable: (N,), whether the second half may be used.
        captions: the different captions; the first is the empty one.
        caption_of: (N,), the row of each picture.
        own: the first so many pictures are the folder's, the others are class pictures.
        repeats: how often each of the folder's counts in an epoch.
        prior_weight: of the loss of class pictures.
        key: changes with everything that decides what the samples are.
    """

    latents: np.ndarray[Any, np.dtype[np.float32]]
    time_ids: np.ndarray[Any, np.dtype[np.float32]]
    mirrorable: np.ndarray[Any, np.dtype[np.bool_]]
    captions: tuple[str, ...]
    caption_of: np.ndarray[Any, np.dtype[np.int64]]
    own: int
    repeats: int
    prior_weight: float
    key: str

    def __len__(self) -> int:
        """Of an epoch: as many class pictures as pictures of the folder."""
        return self.own * self.repeats * (2 if len(self.latents) > self.own else 1)

    def batch(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
        """``latents`` (B, C, h, w), ``rows`` int64 (B,), ``time_ids`` (B, 6) and ``weight`` (B,)."""
        draws = rng.random((len(indices), 3))
        chosen, views, weights = [], [], []
        for index, draw in zip(indices.tolist(), draws, strict=True):
            classes = index >= self.own * self.repeats
            spare = len(self.latents) - self.own
            picture = self.own + int(draw[0] * spare) if classes else index % self.own
            half = self.latents.shape[1] // 2 if self.mirrorable.any() else self.latents.shape[1]
            mirrored = bool(self.mirrorable[picture]) and draw[1] < 0.5
            chosen.append(picture)
            views.append(int(draw[2] * half) + (half if mirrored else 0))
            weights.append(self.prior_weight if classes else 1.0)
        return {
            "latents": self.latents[chosen, views],
            "rows": self.caption_of[chosen],
            "time_ids": self.time_ids[chosen, views],
            "weight": np.asarray(weights, np.float32),
        }

    def fingerprint(self) -> str:
        """See `key`."""
        return self.key

    @property
    def own_captions(self) -> list[str]:
        """Captions of the folder's pictures, in their order."""
        return [self.captions[row] for row in self.caption_of[: self.own]]


def open_pictures(
    recipe: AdapterRecipe,
    model: TaughtModel,
    run_folder: Path,
    *,
    prior: Prior | None = None,
    report: Report | None = None,
) -> PictureSet:
    """Encode a recipe's pictures, or read what an earlier start of the run encoded.

    Args:
        recipe: its data, pictures and seed.
        model: encodes.
        run_folder: keeps `FILE` and, where a picture cannot be used, ``bad_pictures.json``.
        prior: class pictures; its ``path`` is given.
        report: told how far encoding is.

    Raises:
        DataError: no folder, no pictures, none with a caption, or more bad ones than the limit allows.
        RecipeError: a size that the model cannot have.
        OutputError: the run's folder cannot be written.
    """
    width, height = size(recipe.pictures, model)
    bad = run_folder / "bad_pictures.json"
    sets = [_look(Path(recipe.data.path).expanduser(), recipe.pictures, (width, height), bad)]
    texts = [_called(sets[0], recipe.pictures.trigger)]
    if prior is not None:
        assert prior.path is not None
        section = recipe.pictures.model_copy(update={"caption": prior.prompt, "trigger": None})
        bad = run_folder / "bad_class_pictures.json"
        sets.append(_look(Path(prior.path).expanduser(), section, (width, height), bad))
        texts.append([prior.prompt] * min(len(sets[1]), prior.images))
    captions = tuple(dict.fromkeys(["", *texts[0], *(texts[1] if prior is not None else [])]))
    parts = [
        recipe.seed,
        (width, height),
        recipe.pictures.model_dump(),
        model.hash,
        dict(model.opened.hashes),
    ]
    parts += [texts, [one.fingerprint() for one in sets]]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
    arrays = _read(run_folder / FILE, key)
    if arrays is None:
        arrays = _encode(recipe, model, sets, texts, report)
        safetensors.save(run_folder / FILE, arrays, {"key": key})
    rows = {text: row for row, text in enumerate(captions)}
    weight = 1.0 if prior is None else prior.weight
    return PictureSet(
        latents=arrays["latents"],
        time_ids=arrays["time_ids"],
        mirrorable=arrays["mirrorable"].astype(np.bool_),
        captions=captions,
        caption_of=np.asarray([rows[text] for own in texts for text in own], np.int64),
        own=len(texts[0]),
        repeats=recipe.pictures.repeats,
        prior_weight=weight,
        key=hashlib.sha256(f"{key} {weight}".encode()).hexdigest(),
    )


def size(pictures: Pictures, model: TaughtModel) -> tuple[int, int]:
    """(width, height) of the training pictures in pixels.

    Raises:
        RecipeError: not a multiple of what the model works in.
    """
    native, multiple = model.native_size, model.size_multiple
    width, height = pictures.width or native[0], pictures.height or native[1]
    for name, value in (("width", width), ("height", height)):
        if value % multiple:
            raise RecipeError(
                f"pictures.{name} is {value}: {model.opened.name} works in multiples of {multiple}; use "
                f"{max(multiple, round(value / multiple) * multiple)}"
            )
    return width, height


def tag_frequency(captions: Sequence[str]) -> dict[str, int]:
    """How often each part of a caption between commas occurs, the most frequent first."""
    counts: dict[str, int] = {}
    for caption in captions:
        for tag in filter(None, (part.strip() for part in caption.split(","))):
            counts[tag] = counts.get(tag, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def text_tables(model: TaughtModel, captions: Sequence[str], *, live: bool) -> dict[str, Tensor]:
    """One row a caption: embeddings, or token ids where text is encoded in every step."""
    return model.live(captions) if live else model.encode_text(captions)


def told_rows(tables: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """The rows of some samples, on the device of ``rows``; floating point ones as float32."""
    place = rows.cpu()
    chosen = {name: table[place].to(rows.device) for name, table in tables.items()}
    return {name: part.float() if part.is_floating_point() else part for name, part in chosen.items()}


def _look(folder: Path, section: Pictures, wanted: tuple[int, int], report: Path) -> ImageText:
    trigger = section.trigger or ""
    template = section.caption if section.caption is not None else (section.trigger or None)
    caption = None if template is None else template.replace("{trigger}", trigger)
    source = FolderSource(folder, caption=caption, read_all=True)
    without = [source.key(i) for i in range(len(source)) if _no_caption(source, i)]
    if len(without) > section.limit * len(source):
        raise DataError(
            f"{folder}: {len(without)} of {len(source)} pictures have no caption, such as {without[0]}; "
            "write what is on each in a .txt file beside it, or give all one word: --trigger WORD, in "
            "a recipe pictures.trigger"
        )
    width, height = wanted
    found = ImageText(source, width=width, height=height, limit=section.limit, report=report)
    if found.bad.reasons:
        first, why = next(iter(found.bad.reasons.items()))
        _log.warning(
            "%d of %d pictures cannot be used and are left out, such as %s: %s (all in %s)",
            len(found.bad.reasons), len(source), first, why, report,
        )  # fmt: skip
    return found


def _no_caption(source: FolderSource, index: int) -> bool:
    try:
        return not source.caption(index).strip()
    except DataError:
        return True


def _called(pictures: ImageText, trigger: str | None) -> list[str]:
    """Captions with the trigger in each."""
    captions = [pictures.captions(i)[0] for i in range(len(pictures))]
    if trigger is None:
        return captions
    return [text if trigger in text else f"{trigger}, {text}" for text in captions]


def _read(path: Path, key: str) -> dict[str, Any] | None:
    try:
        if safetensors.read_metadata(path).get("key") != key:
            return None
        return safetensors.load(path)
    except (NotFoundError, CheckpointError):
        return None


def _encode(
    recipe: AdapterRecipe,
    model: TaughtModel,
    sets: Sequence[ImageText],
    texts: Sequence[Sequence[str]],
    report: Report | None,
) -> dict[str, np.ndarray[Any, Any]]:
    section = recipe.pictures
    cuts = section.crops if section.crop == "random" else 1
    total, done = sum(len(own) for own in texts), 0
    latents, ids, mirrorable = [], [], []
    for number, (pictures, captions) in enumerate(zip(sets, texts, strict=True)):
        for index in range(len(captions)):
            rng = np.random.default_rng([recipe.seed, number, index, _CROPS])
            places = rng.random((cuts, 2)) if section.crop == "random" else np.full((1, 2), 0.5)
            turned = section.mirror and pictures.mirrorable(index)
            views, own_ids = [], []
            for x, y in places.tolist():
                image, own_size = pictures.view(index, (x, y))
                views.append(image)
                own_ids.append(_time_ids(own_size, (image.shape[1], image.shape[0]), (x, y)))
            stacked = np.stack(views).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1
            encoded = model.encode_images(np.ascontiguousarray(stacked))
            if section.mirror:
                flipped = np.ascontiguousarray(stacked[..., ::-1])
                encoded = np.concatenate([encoded, model.encode_images(flipped) if turned else encoded])
                own_ids *= 2
            if not np.isfinite(encoded).all():
                raise DataError(
                    f"{recipe.data.path}: latents of picture {index} are not finite; the autoencoder of "
                    f"{model.opened.name} is broken, give another with base.vae"
                )
            latents.append(encoded)
            ids.append(own_ids)
            mirrorable.append(turned)
            done += 1
            if report is not None:
                report("pictures", done, total)
    return {
        "latents": np.stack(latents),
        "time_ids": np.asarray(ids, np.float32),
        "mirrorable": np.asarray(mirrorable, np.uint8),
    }


def _time_ids(own: tuple[int, int], cut: tuple[int, int], place: tuple[float, float]) -> list[float]:
    """Original size, corner of the cut and size, heights first (Podell 2023, arXiv 2307.01952, section 2.2).

    The corner is counted in pixels of the scaled picture, as SDXL was trained.
    """
    scale = max(cut[0] / own[0], cut[1] / own[1])
    left, top = (round((own[axis] * scale - cut[axis]) * place[axis]) for axis in (0, 1))
    return [float(value) for value in (own[1], own[0], top, left, cut[1], cut[0])]
