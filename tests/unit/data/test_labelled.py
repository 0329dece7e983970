"""What the evaluator sees: concepts and styles as numbers, and nothing that is held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fewstep.data import split
from fewstep.data.augment import Augmentation
from fewstep.data.emoji import Drawing, Drawings
from fewstep.data.labelled import MARGIN, LabelledDrawings, concepts
from fewstep.data.order import sample_rng
from fewstep.errors import DataError, UsageError

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "sky blue": (135, 206, 235),
    "pink": (255, 192, 203),
    "orange": (255, 165, 0),
    "yellow": (255, 221, 51),
    "navy blue": (0, 0, 128),
    "beige": (245, 222, 179),
}
LABELS = ["fox", "goose", "red apple", "grapes", "left arrow", "owl", "pizza", "tulip", "cactus", "rocket"]
STYLES = ["noto", "twemoji"]


def drawing_set(labels: list[str] = LABELS) -> Drawings:
    """One grey level for each drawing, a square whose left half is opaque."""
    items = [
        Drawing(style, "food-drink", label, (), label, "p", "1", "MIT", "train")
        for style in STYLES
        for label in labels
    ]
    rgba = np.zeros((len(items), 128, 128, 4), np.uint8)
    for row in range(len(items)):
        rgba[row, 24:104, 24:64] = [10 * row, 10 * row, 10 * row, 255]
    return Drawings(Path("set"), rgba, tuple(items), "f" * 64, ())


def embeddings(count: int = len(LABELS)) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 6)).astype(np.float32)


def opened(**options: object) -> LabelledDrawings:
    settings = {"embeddings_from": "x", "mirror": False} | options
    return LabelledDrawings(drawing_set(), BACKGROUNDS, embeddings(), **settings)  # type: ignore[arg-type]


def every(data: LabelledDrawings, times: int) -> list[tuple[Drawing, np.ndarray]]:
    """Samples with the drawing they were made of, read off their grey level."""
    found = []
    for position in range(times * len(data)):
        pixels = data.batch(np.array([position % len(data)]), sample_rng(3, position))["pixels"][0]
        image = np.round((pixels + 1) * 127.5).astype(int).transpose(1, 2, 0)
        found.append((data.drawings.items[image[32, 20, 0] // 10], image))
    return found


def test_numbers_name_the_concept_among_the_trained_and_the_style() -> None:
    data = opened()
    assert data.labels == tuple(LABELS) == concepts(drawing_set().items)
    assert [label for label, flag in zip(data.labels, data.trained, strict=True) if not flag] == ["goose"]
    assert data.styles == ("noto", "twemoji")
    assert len(data) == 2 * 9
    batch = data.batch(np.arange(18), sample_rng(0, 0))
    assert batch["pixels"].shape == (18, 3, 64, 64) and batch["pixels"].dtype == np.float32
    trained = [label for label in LABELS if label != "goose"]
    assert batch["candidates"].shape == (9, 6)
    np.testing.assert_allclose(
        batch["candidates"], embeddings()[[LABELS.index(label) for label in trained]], atol=2e-3
    )
    for n, image in enumerate(batch["pixels"]):
        item = data.drawings.items[int((image[0, 32, 20] + 1) * 127.5 + 0.5) // 10]
        assert trained[batch["concept"][n]] == item.label
        assert data.styles[batch["style"][n]] == item.style


def test_held_out_objects_and_combinations_are_never_seen() -> None:
    palette = np.array(list(BACKGROUNDS.values()))
    held_out = 0
    for any_colour in (0.0, 1.0):
        seen = every(opened(any_colour=any_colour), 20)
        assert {item.label for item, _ in seen} == set(LABELS) - {"goose"}
        for item, image in seen:
            distances = np.linalg.norm(palette - image[0, 0], axis=1)
            for name, distance in zip(BACKGROUNDS, distances, strict=True):
                if split.part(item.label, item.style, name) != "train":
                    held_out += 1
                    assert distance >= MARGIN - 1, f"{item.label}, {item.style}, {name}"
        named = {tuple(image[0, 0]) in set(BACKGROUNDS.values()) for _, image in seen}
        assert named == ({True} if any_colour == 0 else {False})
    assert held_out > 0, "these names hold no combination out: the test shows nothing"


def test_free_colours_stay_away_from_every_held_out_background() -> None:
    data = opened(any_colour=1.0)
    rng, checked = np.random.default_rng(0), 0
    for index, row in enumerate(data._rows):
        item = data.drawings.items[row]
        for name, rgb in BACKGROUNDS.items():
            if split.part(item.label, item.style, name) != "train":
                free = np.stack([data._colour(index, rng) for _ in range(1500)])
                distances = np.linalg.norm(free - np.array(rgb), axis=1)
                assert distances.min() >= MARGIN, f"{item.label}, {item.style}, {name}"
                assert distances.min() < 2 * MARGIN, "close enough to show that there is a margin"
                checked += 1
    assert checked > 0


def test_all_trained_backgrounds_are_used() -> None:
    seen = every(opened(any_colour=0.0), 50)
    for label, style in (("fox", "noto"), ("pizza", "twemoji")):
        found = {tuple(image[0, 0]) for item, image in seen if (item.label, item.style) == (label, style)}
        trained = {rgb for name, rgb in BACKGROUNDS.items() if split.part(label, style, name) == "train"}
        assert found == trained


def test_only_what_may_be_mirrored_is_mirrored() -> None:
    data = opened(mirror=True, any_colour=0.0)
    sides: dict[str, set[bool]] = {}
    for position in range(20 * len(data)):
        index = position % len(data)
        batch = data.batch(np.array([index]), sample_rng(3, position))
        label = [name for name in LABELS if name != "goose"][batch["concept"][0]]
        image = batch["pixels"][0]
        left, right, edge = image[:, 32, 20], image[:, 32, 44], image[:, 0, 0]
        mirrored = bool((left == edge).all()) and not (right == edge).all()
        sides.setdefault(label, set()).add(mirrored)
    assert sides["fox"] == {True, False}
    assert sides["left arrow"] == {False}


def test_a_batch_draws_the_same_as_its_images_one_by_one() -> None:
    data = opened(augmentation=Augmentation(), mirror=True)
    order = np.array([3, 0, 3, 11])
    whole, one = sample_rng(1, 7), sample_rng(1, 7)
    together = data.batch(order, whole)["pixels"]
    apart = np.concatenate([data.batch(order[i : i + 1], one)["pixels"] for i in range(4)])
    np.testing.assert_array_equal(together, apart)
    assert (together[0] != together[2]).any(), "the same drawing is drawn anew"
    assert together.min() >= -1 and together.max() <= 1


def test_plain_samples_are_what_an_evaluator_makes_of_the_composed_drawing() -> None:
    """Training at 64 px and judging at 128 px must see the same picture."""
    from fewstep.data.compositions import compose

    data = opened(any_colour=0.0)
    pixels = data.batch(np.array([4]), sample_rng(0, 1))["pixels"]
    rgb = np.round((pixels[0, :, 0, 0] + 1) * 127.5)
    whole = compose(data.drawings.rgba[data._rows[4]][None], rgb[None])
    np.testing.assert_allclose(pixels, whole.reshape(1, 3, 64, 2, 64, 2).mean((3, 5)), atol=1e-5)


def test_the_fingerprint_tells_what_decides_the_samples() -> None:
    assert opened().fingerprint() == opened().fingerprint()
    other = LabelledDrawings(
        drawing_set(),
        {**BACKGROUNDS, "white": (254, 255, 255)},
        embeddings(),
        embeddings_from="x",
        mirror=False,
    )
    changed = [
        opened(side=128),
        opened(any_colour=0.5),
        opened(mirror=True),
        opened(augmentation=Augmentation()),
        opened(augmentation=Augmentation(noise=0.1)),
        opened(embeddings_from="y"),
        other,
    ]
    assert len({data.fingerprint() for data in [opened(), *changed]}) == len(changed) + 1


def test_what_does_not_fit_is_told() -> None:
    for options, told in (
        ({"side": 60}, "side 60"),
        ({"side": 32}, "side 32"),
        ({"side": 144}, "side 144"),
        ({"any_colour": 1.5}, "any_colour"),
    ):
        with pytest.raises(UsageError, match=told):
            opened(**options)
    with pytest.raises(UsageError, match="10 concepts"):
        LabelledDrawings(drawing_set(), BACKGROUNDS, embeddings(9), embeddings_from="x")
    with pytest.raises(DataError, match="no drawing is trained"):
        LabelledDrawings(drawing_set(["goose"]), BACKGROUNDS, embeddings(1), embeddings_from="x")
