"""Latents and text embeddings computed once and read from disk: the autoencoder and text encoder are frozen.

A cache is a folder: `latents.npy` float16 (N, F, C, h, w) after scaling, F = 2 when mirrored copies are kept;
`text.npy` float16 (M, L, D), one row for each different caption, row 0 for the empty one; `caption_of.npy`
int32 (N, K), the rows of each sample's K captions; `mirrorable.npy` bool (N,); `captions.json`; and
`cache.json`, written last, with the key: a hash of weights and data. A build that was stopped goes on where
it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from fewstep.checkpoint import atomic
from fewstep.data.dataset import Batch, Encodable
from fewstep.errors import DataError, OutputError, UsageError

EncodeImages = Callable[[NDArray[np.float32]], NDArray[Any]]
EncodeText = Callable[[list[str]], NDArray[Any]]

_FORMAT: Final = 1
_SAVE_EVERY: Final = 512  # samples between two notes of progress: a stop costs seconds of encoding


def cache_key(data: str, weights: Mapping[str, str], *, mirrored: bool) -> str:
    """Return the key of a cache: SHA-256 of its data's fingerprint and of the weights that encode it.

    Args:
        data: fingerprint of the samples.
        weights: name of each encoder ("autoencoder", "text_encoder") to the hash of its weights; anything
            else that changes what the encoders return, such as the latent scaling, belongs here too.
        mirrored: mirrored copies are kept.
    """
    parts = {"format": _FORMAT, "data": data, "weights": dict(sorted(weights.items())), "mirrored": mirrored}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CachedLatents:
    """The `Dataset` over a finished cache.

    Each sample draws one caption variant and, in a cache with mirrored copies, whether it is mirrored.

    Attributes:
        key: see `cache_key`.
        latents: float16 (N, F, C, h, w), memory-mapped.
        text: float16 (M, L, D), memory-mapped.
        uncond: float32 (L, D), the embedding of the empty caption.
        captions: the M different captions.
        caption_of: int32 (N, K).
    """

    def __init__(self, folder: Path, *, variant_weights: Sequence[float] | None = None) -> None:
        manifest = _read_json(folder / "cache.json", folder)
        try:
            self.key = str(manifest["key"])
            self.latents = np.load(folder / "latents.npy", mmap_mode="r", allow_pickle=False)
            self.text = np.load(folder / "text.npy", mmap_mode="r", allow_pickle=False)
            self.caption_of = np.load(folder / "caption_of.npy", allow_pickle=False)
            self._mirrorable = np.load(folder / "mirrorable.npy", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder}: broken cache ({error}); delete the folder and build it again"
            ) from error
        self.captions: tuple[str, ...] = tuple(_read_json(folder / "captions.json", folder))
        count, kinds = self.caption_of.shape
        if self.latents.shape[0] != count or self.text.shape[0] != len(self.captions):
            raise DataError(f"{folder}: its files do not fit together; delete the folder and build it again")
        weights = np.ones(kinds) if variant_weights is None else np.asarray(variant_weights, np.float64)
        if weights.shape != (kinds,) or weights.min() < 0 or not weights.sum() > 0:
            raise UsageError(
                f"variant weights {variant_weights}: give {kinds} numbers of 0 or more, not all of them 0"
            )
        self._thresholds = np.cumsum(weights / weights.sum())
        self.uncond: NDArray[np.float32] = self.text[0].astype(np.float32)

    def __len__(self) -> int:
        return int(self.caption_of.shape[0])

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """Return `latents` (B, C, h, w), `text` (B, L, D), `uncond` (L, D), all float32, and `captions`."""
        draws = rng.random((len(indices), 2))
        last = len(self._thresholds) - 1
        kind = np.minimum(np.searchsorted(self._thresholds, draws[:, 0], side="right"), last)
        mirrored = (draws[:, 1] < 0.5) & self._mirrorable[indices] & (self.latents.shape[1] == 2)
        rows = self.caption_of[indices, kind]
        return {
            "latents": self.latents[indices, mirrored.astype(np.int64)].astype(np.float32),
            "text": self.text[rows].astype(np.float32),
            "uncond": self.uncond,
            "captions": [self.captions[row] for row in rows],
        }

    def fingerprint(self) -> str:
        """Return the key of the cache with the weights of the caption variants."""
        return hashlib.sha256(self.key.encode() + self._thresholds.tobytes()).hexdigest()


def open_cache(
    folder: Path, *, key: str | None = None, variant_weights: Sequence[float] | None = None
) -> CachedLatents:
    """Open a finished cache.

    Args:
        folder: the cache.
        key: what `cache_key` says it must be; None takes any.
        variant_weights: how often each caption variant is drawn; default equally.

    Raises:
        DataError: no cache, an unfinished or broken one, or one of other weights or data.
        UsageError: wrong number of variant weights.
    """
    if not (folder / "cache.json").is_file():
        state = "is not finished" if (folder / "progress.json").is_file() else "is not a latent cache"
        raise DataError(f"{folder}: {state}; build it (a stopped build goes on where it was)")
    cache = CachedLatents(folder, variant_weights=variant_weights)
    if key is not None and cache.key != key:
        raise DataError(
            f"{folder}: cache of other weights or data (key {cache.key[:10]}, wanted {key[:10]}); build it "
            f"in another folder, or delete this one"
        )
    return cache


def build_cache(
    folder: Path,
    samples: Encodable,
    encode_images: EncodeImages,
    encode_text: EncodeText,
    *,
    weights: Mapping[str, str],
    mirrored: bool = True,
    batch_size: int = 32,
    text_batch_size: int = 64,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> CachedLatents:
    """Encode every sample and every different caption into `folder`, or open the finished cache there.

    Args:
        folder: the cache; one that was begun with the same key is continued.
        samples: what to encode.
        encode_images: float32 (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w).
        encode_text: B captions to embeddings (B, L, D).
        weights: hashes of the encoders, see `cache_key`.
        mirrored: keep latents of the mirrored images as well (twice the work and space); where a sample may
            not be mirrored, the second copy is the first again.
        batch_size: images a call.
        text_batch_size: captions a call.
        on_progress: called with ("latents" or "text", done, total).

    Raises:
        DataError: `folder` holds a cache with another key, an encoder returns something not finite in
            float16, or samples have different numbers of captions.
        OutputError: the folder cannot be written.
    """
    key = cache_key(samples.fingerprint(), weights, mirrored=mirrored)
    if (folder / "cache.json").is_file():
        return open_cache(folder, key=key)
    count = len(samples)
    captions, caption_of = _caption_table(samples)
    try:
        done = _begin(folder, key)
        kept = np.array([samples.mirrorable(i) for i in range(count)], np.bool_)

        def latents_of(rows: range) -> NDArray[np.float16]:
            images = samples.pixels(rows)
            first = _half(encode_images(images), f"latents of samples {rows.start} to {rows.stop - 1}")
            if not mirrored:
                return first[:, None]
            pair = np.stack([first, first], axis=1)
            turned = np.flatnonzero(kept[rows.start : rows.stop])
            if len(turned):
                flipped = np.ascontiguousarray(images[turned][..., ::-1])
                pair[turned, 1] = _half(encode_images(flipped), f"mirrored latents from {rows.start}")
            return pair

        def text_of(rows: range) -> NDArray[np.float16]:
            return _half(
                encode_text(captions[rows.start : rows.stop]), f"captions {rows.start} to {rows.stop - 1}"
            )

        for name, total, size, encode in (
            ("latents", count, batch_size, latents_of),
            ("text", len(captions), text_batch_size, text_of),
        ):
            _fill(folder, key, done, name, total, size, encode, on_progress)
        np.save(folder / "caption_of.npy", caption_of)
        np.save(folder / "mirrorable.npy", kept)
        atomic.write_text(folder / "captions.json", json.dumps(captions, ensure_ascii=False))
        manifest = {"key": key, "weights": dict(weights), "data": samples.fingerprint(), "mirrored": mirrored}
        manifest |= {"samples": count, "captions": len(captions)}
        atomic.write_text(folder / "cache.json", json.dumps(manifest, indent=1) + "\n")
        (folder / "progress.json").unlink(missing_ok=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder}: the cache cannot be written ({error.strerror or error}); free space, or choose "
            f"another folder"
        ) from error
    return open_cache(folder, key=key)


def _caption_table(samples: Encodable) -> tuple[list[str], NDArray[np.int32]]:
    rows: dict[str, int] = {"": 0}
    table = [[rows.setdefault(text, len(rows)) for text in samples.captions(i)] for i in range(len(samples))]
    if not table or not table[0] or any(len(row) != len(table[0]) for row in table):
        raise DataError("a latent cache needs samples with the same number of captions each, at least one")
    return list(rows), np.asarray(table, np.int32)


def _begin(folder: Path, key: str) -> dict[str, int]:
    """Return how much of each file is done by an earlier build with this key; start anew with another."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = folder / "progress.json"
    if progress.is_file():
        found = _read_json(progress, folder)
        if found.get("key") == key:
            return {name: int(found["done"].get(name, 0)) for name in ("latents", "text")}
    elif any(folder.iterdir()):
        raise DataError(f"{folder}: not empty and not a latent cache; choose another folder")
    done = {"latents": 0, "text": 0}
    _note(folder, key, done)
    return done


def _note(folder: Path, key: str, done: Mapping[str, int]) -> None:
    atomic.write_text(folder / "progress.json", json.dumps({"key": key, "done": dict(done)}) + "\n")


def _fill(
    folder: Path,
    key: str,
    done: dict[str, int],
    name: str,
    total: int,
    size: int,
    encode: Callable[[range], NDArray[np.float16]],
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    path = folder / f"{name}.npy"
    target: np.memmap[Any, np.dtype[np.float16]] | None = None
    if done[name]:
        target = open_memmap(path, mode="r+")
    noted = done[name]
    while done[name] < total:
        rows = range(done[name], min(done[name] + size, total))
        values = encode(rows)
        if target is None:
            target = open_memmap(path, mode="w+", dtype=np.float16, shape=(total, *values.shape[1:]))
        if values.shape != (len(rows), *target.shape[1:]):
            raise DataError(
                f"{name}: an encoder returned {values.shape} for {len(rows)} rows of {target.shape[1:]}"
            )
        target[rows.start : rows.stop] = values
        done[name] = rows.stop
        if rows.stop - noted >= _SAVE_EVERY or rows.stop == total:
            target.flush()  # before the note: what it calls done must be on the disk
            _note(folder, key, done)
            noted = rows.stop
        if on_progress is not None:
            on_progress(name, rows.stop, total)


def _half(values: NDArray[Any], what: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = np.asarray(values).astype(np.float16)
    if not np.isfinite(half).all():
        raise DataError(
            f"{what}: not finite in float16; the encoder's weights are broken or its scale is off"
        )
    return half


def _read_json(path: Path, folder: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: {path.name} cannot be read ({error}); delete the folder") from error
