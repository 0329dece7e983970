from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fewstep.data import latent_cache, split
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.compositions import ComposedDrawings, compose, compositions
from fewstep.data.emoji import Drawings
from fewstep.data.pixels import EmojiPixels
from fewstep.errors import DataError, OutputError, RecipeError, UsageError

WEIGHTS = {"autoencoder": "aa", "text_encoder": "bb"}


def encode_images(images: np.ndarray) -> np.ndarray:
    return images[:, :, ::16, ::16]


def encode_text(texts: list[str]) -> np.ndarray:
    return np.stack([np.full((4, 3), len(text), np.float32) for text in texts])


@pytest.fixture
def samples(drawings: Drawings) -> ComposedDrawings:
    return ComposedDrawings(drawings, compositions(drawings.items, load_backgrounds(), per_drawing=3))


def build(folder: Path, samples: ComposedDrawings, **changes: object) -> latent_cache.CachedLatents:
    arguments: dict[str, object] = {"weights": WEIGHTS, "batch_size": 7, "text_batch_size": 5} | changes
    return latent_cache.build_cache(folder, samples, encode_images, encode_text, **arguments)  # type: ignore[arg-type]


def test_compositions_stay_in_their_part(drawings: Drawings) -> None:
    backgrounds = load_backgrounds()
    train = compositions(drawings.items, backgrounds, per_drawing=16)
    held = compositions(drawings.items, backgrounds, part="combination", per_drawing=16)
    whole = compositions(drawings.items, backgrounds, part="object", per_drawing=16)
    for part, items in (("train", train), ("combination", held), ("object", whole)):
        assert {split.part(c.label, c.style, c.background) for c in items} == {part}
    assert len(train) + len(held) + len(whole) == 16 * len(drawings.items)
    assert {c.label for c in whole} == {"goose"}


def test_choice_of_backgrounds_is_stable(drawings: Drawings) -> None:
    backgrounds = load_backgrounds()
    both = compositions(drawings.items, backgrounds, per_drawing=2)
    one = compositions(drawings.items, backgrounds, per_drawing=2, styles=["twemoji"])
    assert one == [c for c in both if c.style == "twemoji"]
    assert both != compositions(drawings.items, backgrounds, per_drawing=2, seed=1)
    apple = [c for c in both if (c.label, c.style) == ("red apple", "noto")]
    assert {c.background for c in apple} <= {"sky blue", "white"}, "README combinations come first"


def test_a_selection_by_label_is_a_part_of_the_whole(drawings: Drawings) -> None:
    backgrounds = load_backgrounds()
    whole = compositions(drawings.items, backgrounds, per_drawing=2)
    apples = compositions(drawings.items, backgrounds, per_drawing=2, labels=["red apple"])
    assert apples == [c for c in whole if c.label == "red apple"]
    with pytest.raises(DataError, match=r"labels red aple: no drawing has them"):
        compositions(drawings.items, backgrounds, labels=["red apple", "red aple"])


def test_compose_is_a_plain_blend() -> None:
    rgba = np.zeros((1, 1, 3, 4), np.uint8)
    rgba[0, 0] = [[255, 0, 0, 255], [9, 9, 9, 0], [255, 255, 255, 51]]
    image = compose(rgba, [(0, 100, 200)])
    assert image.shape == (1, 3, 1, 3) and image.dtype == np.float32
    values = (image[0, :, 0].T + 1) * 127.5
    assert np.allclose(values, [[255, 0, 0], [0, 100, 200], [51, 131, 211]], atol=1e-3)


def test_cache_holds_what_the_encoders_said(samples: ComposedDrawings, tmp_path: Path) -> None:
    progress: list[tuple[str, int, int]] = []
    cache = build(tmp_path / "c", samples, on_progress=lambda *step: progress.append(step))
    assert len(cache) == len(samples)
    assert len(set(cache.captions)) == len(cache.captions), "each caption is stored once"
    assert progress[-1] == ("text", len(cache.captions), len(cache.captions))
    left = next(i for i, c in enumerate(samples.items) if c.label == "left arrow")
    for index in (0, left, len(samples) - 1):
        plain = encode_images(samples.pixels([index]))[0].astype(np.float16)
        turned = encode_images(samples.pixels([index])[..., ::-1])[0].astype(np.float16)
        assert np.array_equal(cache.latents[index, 0], plain)
        assert np.array_equal(cache.latents[index, 1], plain if index == left else turned)
        texts = [cache.captions[row] for row in cache.caption_of[index]]
        assert tuple(texts) == samples.captions(index)
    assert not np.array_equal(cache.latents[0, 0], cache.latents[0, 1])
    assert np.array_equal(cache.uncond, encode_text([""])[0])


def test_batch(samples: ComposedDrawings, tmp_path: Path) -> None:
    cache = build(tmp_path / "c", samples)
    indices = np.arange(40) % len(cache)
    batch = cache.batch(indices, np.random.default_rng(3))
    assert {k: v.dtype for k, v in batch.items() if k != "captions"} == dict.fromkeys(
        ("latents", "text", "uncond"), np.float32
    )
    assert [len(text) for text in batch["captions"]] == batch["text"][:, 0, 0].tolist()
    for index, text in zip(indices, batch["captions"], strict=True):
        assert text in samples.captions(int(index))
    one_by_one = np.random.default_rng(3)
    singles = [cache.batch(indices[i : i + 1], one_by_one) for i in range(40)]
    assert np.array_equal(batch["latents"], np.concatenate([s["latents"] for s in singles]))
    assert batch["captions"] == [s["captions"][0] for s in singles]
    only_full = latent_cache.open_cache(tmp_path / "c", variant_weights=[1, 0, 0, 0])
    assert all("style" in text for text in only_full.batch(indices, np.random.default_rng(0))["captions"])
    assert only_full.fingerprint() != cache.fingerprint()
    with pytest.raises(UsageError, match="4 numbers"):
        latent_cache.open_cache(tmp_path / "c", variant_weights=[1, 1])


def test_stopped_build_goes_on_and_ends_the_same(
    samples: ComposedDrawings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "_SAVE_EVERY", 10)
    whole = build(tmp_path / "whole", samples)
    calls = 0

    def stop_in_the_middle(images: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        return encode_images(images)

    folder = tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        latent_cache.build_cache(
            folder, samples, stop_in_the_middle, encode_text, weights=WEIGHTS, batch_size=7
        )
    with pytest.raises(DataError, match="not finished"):
        latent_cache.open_cache(folder)
    seen = 0

    def count(images: np.ndarray) -> np.ndarray:
        nonlocal seen
        seen += len(images)
        return encode_images(images)

    cache = latent_cache.build_cache(folder, samples, count, encode_text, weights=WEIGHTS, batch_size=7)
    assert 0 < seen < 2 * len(samples), "what was done is not done again"
    assert np.array_equal(cache.latents, whole.latents) and np.array_equal(cache.text, whole.text)


def test_key_changes_with_weights_and_data(samples: ComposedDrawings, tmp_path: Path) -> None:
    cache = build(tmp_path / "c", samples)
    assert build(tmp_path / "c", samples).key == cache.key
    fewer = ComposedDrawings(samples.drawings, samples.items[:-1])
    for change in ({"weights": WEIGHTS | {"autoencoder": "cc"}}, {"mirrored": False}):
        with pytest.raises(DataError, match="other weights or data"):
            build(tmp_path / "c", samples, **change)
    with pytest.raises(DataError, match="other weights or data"):
        build(tmp_path / "c", fewer)
    unmirrored = build(tmp_path / "d", samples, mirrored=False)
    assert unmirrored.latents.shape[1] == 1
    unmirrored.batch(np.arange(5), np.random.default_rng(0))


def test_bad_encoders_and_folders(samples: ComposedDrawings, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite"):
        latent_cache.build_cache(tmp_path / "c", samples, lambda x: x * 1e6, encode_text, weights=WEIGHTS)
    with pytest.raises(DataError, match="not a latent cache"):
        latent_cache.open_cache(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="not empty"):
        build(tmp_path / "mine", samples)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        build(tmp_path / "file" / "c", samples)
    build(tmp_path / "d", samples)
    latents = np.load(tmp_path / "d" / "latents.npy")
    np.save(tmp_path / "d" / "latents.npy", latents[1:])
    with pytest.raises(DataError, match="fit together"):
        latent_cache.open_cache(tmp_path / "d")

    class Uneven:
        def __len__(self) -> int:
            return 2

        def captions(self, index: int) -> Sequence[str]:
            return ["a"] * (index + 1)

        def pixels(self, indices: Sequence[int]) -> np.ndarray:
            return np.zeros((len(indices), 3, 8, 8), np.float32)

        def mirrorable(self, index: int) -> bool:
            return True

        def fingerprint(self) -> str:
            return "x"

    with pytest.raises(DataError, match="same number of captions"):
        latent_cache.build_cache(tmp_path / "e", Uneven(), encode_images, encode_text, weights=WEIGHTS)


def test_emoji_pixels(drawings: Drawings) -> None:
    backgrounds = load_backgrounds()
    data = EmojiPixels(drawings, backgrounds)
    assert len(data) == sum(d.split == "train" for d in drawings.items)
    indices = np.arange(20) % len(data)
    batch = data.batch(indices, np.random.default_rng(0))["pixels"]
    assert batch.shape == (20, 3, 64, 64) and batch.dtype == np.float32 and abs(batch).max() <= 1
    generator = np.random.default_rng(0)
    singles = [data.batch(indices[i : i + 1], generator)["pixels"] for i in range(20)]
    assert np.array_equal(batch, np.concatenate(singles))
    plain = EmojiPixels(drawings, backgrounds, crop=None, mirror=False, any_colour=0, part="object")
    images = plain.batch(np.arange(6), np.random.default_rng(0))["pixels"]
    palette = np.array(list(backgrounds.values()))
    corners = np.rint((images[:, :, 0, 0] + 1) * 127.5)
    assert all((palette == corner).all(axis=1).any() for corner in corners)
    assert data.fingerprint() != plain.fingerprint()
    with pytest.raises(UsageError):
        EmojiPixels(drawings, backgrounds, crop=129)


@pytest.mark.parametrize("text", ["- a", "sky: [1, 2]", "sky: [0, 0, 256]", "sky: [0, 0, yes]", "sky: [", ""])
def test_bad_backgrounds(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load_backgrounds(tmp_path / "b.yaml")


def test_backgrounds_of_the_bundled_model() -> None:
    backgrounds = load_backgrounds()
    assert len(backgrounds) == 16
    assert backgrounds["sky blue"] == (135, 206, 235) and next(iter(backgrounds)) == "white"
