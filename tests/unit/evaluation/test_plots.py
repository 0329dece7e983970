"""Sheets have the pictures' own pixels and mark what was not trained; curves are the closed form's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.errors import UsageError
from fewstep.evaluation import curves, plots
from fewstep.evaluation.promptsets import EvalPrompt
from fewstep.evaluation.report import Figure

PROMPTS = [
    EvalPrompt("a fox", "fox", None, None, "train"),
    EvalPrompt("a goose, noto style, on a pink background", "goose", "noto", "pink", "object"),
    EvalPrompt("an owl with $x^2$", None, None, None, "free"),
]


def pictures(count: int = 3, side: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def page(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def places(sheet: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Where a picture's pixels stand in a sheet."""
    height, width = picture.shape[:2]
    found = np.argwhere((sheet[: 1 - height or None, : 1 - width or None] == picture[0, 0]).all(axis=-1))
    return [
        (int(y), int(x)) for y, x in found if np.array_equal(sheet[y : y + height, x : x + width], picture)
    ]


def test_a_contact_sheet_has_every_picture_once_pixel_by_pixel(tmp_path: Path) -> None:
    images = pictures()
    plots.contact_sheet(images, PROMPTS, tmp_path / "sheet.png", title="three", columns=2)
    sheet = page(tmp_path / "sheet.png")
    found = [places(sheet, image) for image in images]
    assert [len(spots) for spots in found] == [1, 1, 1]
    (first,), (second,), (third,) = found
    assert first[0] == second[0] < third[0]
    assert first[1] == third[1] < second[1]


def test_what_was_not_trained_has_a_frame_of_its_own_colour(tmp_path: Path) -> None:
    images = pictures()
    plots.contact_sheet(images, PROMPTS, tmp_path / "sheet.png", title="three")
    sheet = page(tmp_path / "sheet.png")
    for image, prompt in zip(images, PROMPTS, strict=True):
        ((top, left),) = places(sheet, image)
        colour = plots.MARKS[prompt.part][1]
        assert tuple(sheet[top - 1, left - 1]) == tuple(bytes.fromhex(colour[1:]))
    assert len({mark[1] for mark in plots.MARKS.values()}) == len(plots.MARKS)
    assert "object unseen" in plots.legend(PROMPTS)
    assert plots.legend(PROMPTS[:1]) == ""


def test_text_is_under_the_pictures_and_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        plots.contact_sheet(pictures(), PROMPTS, tmp_path / name, title="a title")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    sheet = page(tmp_path / "one")
    ((top, left),) = places(sheet, pictures()[0])
    below = sheet[top + 34 : top + 45, left : left + 32]
    assert below.min() < 128 < below.max()


def test_models_stand_side_by_side_and_missing_pictures_are_refused(tmp_path: Path) -> None:
    a, b = pictures(3), [255 - image for image in pictures(3)]
    path = tmp_path / "sheet.png"
    plots.side_by_side({"A": a, "B": b}, PROMPTS, path, title="two models", groups=2)
    sheet = page(path)
    for one, two in zip(a, b, strict=True):
        ((top, left),), ((other_top, other_left),) = places(sheet, one), places(sheet, two)
        assert (other_top, other_left) == (top, left + 32 + 8)
    with pytest.raises(UsageError, match="2 pictures of 3 prompts"):
        plots.side_by_side({"A": a, "B": b[:2]}, PROMPTS, path, title="")


def test_failures_are_the_worst_ranks_beside_the_real_drawing(tmp_path: Path) -> None:
    images, path = pictures(4), tmp_path / "failures.png"
    prompts = [*PROMPTS, PROMPTS[0]]
    answers = [["dog", "cat"]] * 4
    real = [255 - images[0], 255 - images[1], None, None]
    count = plots.failures(images, real, prompts, [3, 1, -1, 50], answers, path, title="bad", most=5)
    assert count == 2
    sheet = page(path)
    (worst,), (bad,) = places(sheet, images[3]), places(sheet, images[0])
    assert worst[1] < bad[1]  # the worst comes first
    assert len(places(sheet, real[0])) == 1  # type: ignore[arg-type]
    assert places(sheet, images[1]) == places(sheet, images[2]) == []


def test_without_failures_there_is_no_page(tmp_path: Path) -> None:
    path = tmp_path / "failures.png"
    assert plots.failures(pictures(), [None] * 3, PROMPTS, [1, 1, -1], [["a"]] * 3, path, title="") == 0
    assert not path.exists()


def test_pictures_beside_their_nearest_drawings(tmp_path: Path) -> None:
    images, path = pictures(), tmp_path / "near.png"
    drawn = [255 - image for image in images]
    plots.neighbours(images, drawn, PROMPTS, ["x"] * 3, path, title="near", pairs=2)
    sheet = page(path)
    for one, two in zip(images, drawn, strict=True):
        assert places(sheet, two)[0][1] - places(sheet, one)[0][1] == 40


def test_sheets_refuse_nothing_other_sizes_and_too_much(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one or more"):
        plots.contact_sheet([], [], tmp_path / "x.png", title="")
    with pytest.raises(UsageError, match="all of one size"):
        plots.contact_sheet([*pictures(1), *pictures(1, 16)], PROMPTS[:2], tmp_path / "x.png", title="")
    many = [pictures(1)[0]] * 1000
    with pytest.raises(UsageError, match="fewer pictures"):
        plots.contact_sheet(many, PROMPTS[:1] * 1000, tmp_path / "x.png", title="", columns=1)
    assert list(tmp_path.iterdir()) == []


def test_the_curve_is_the_logistic_that_made_the_shares() -> None:
    truth = curves.Logistic(-9.0, 0.8)
    images = np.array([1e4, 5e4, 2e5, 8e5])
    found = curves.fit(list(images), list(truth.share(images) * 1000), [1000] * 4)
    assert (found.intercept, found.slope) == pytest.approx((-9.0, 0.8), rel=1e-9)
    assert truth.share(np.array([truth.images(0.9)])) == pytest.approx(0.9)


def test_the_curve_weighs_points_by_their_number_of_pictures() -> None:
    truth = curves.Logistic(-9.0, 0.8)
    images = np.array([1e4, 5e4, 2e5, 8e5])
    right = truth.share(images)
    right[1] = 0.9
    light = curves.fit(list(images), list(right * [1e4, 1, 1e4, 1e4]), [1e4, 1, 1e4, 1e4])
    heavy = curves.fit(list(images), list(right * [1, 1e4, 1, 1]), [1, 1e4, 1, 1])
    assert light.slope == pytest.approx(0.8, rel=0.01)
    assert heavy.share(images)[1] == pytest.approx(0.9, abs=0.01)


def test_a_curve_through_nothing_right_stays_finite() -> None:
    found = curves.fit([1e4, 1e5, 1e6], [0, 0, 0], [50, 50, 50])
    assert np.isfinite([found.intercept, found.slope]).all()
    with pytest.raises(UsageError, match="2 numbers of images"):
        curves.fit([1, 1, 2], [0, 0, 0], [5, 5, 5])
    with pytest.raises(UsageError, match="0 to all"):
        curves.fit([1, 2, 3], [0, 9, 0], [5, 5, 5])


def point(images: int, value: float) -> tuple[int, Figure]:
    low, high = max(0, value - 0.05), min(1, value + 0.05)
    return images, Figure(
        name="top1", text="concept first", value=value, low=low, high=high, n=100, real=0.9, unit="%"
    )


def test_a_plot_is_fitted_from_three_points_on(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    few = [point(1000, 0.1), point(10_000, 0.4)]
    assert curves.plot({"first": few}, path, title="t", foot="f") == []
    (line,) = curves.plot({"first": [*few, point(100_000, 0.8)]}, path, title="t", foot="f")
    assert "half right at 1" in line or "half right at 2" in line
    assert page(path).shape == (620, 900, 3)
    with pytest.raises(UsageError, match="no point to plot"):
        curves.plot({"first": []}, path, title="t", foot="f")


def test_images_seen_stand_in_the_cards_that_training_writes(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    card = (root / "recipes" / "emoji-128" / "card.md").read_text("utf-8")
    (tmp_path / "README.md").write_text(card.replace("{images_seen}", "1,234,000"), "utf-8")
    assert curves.images_seen(tmp_path) == 1_234_000
    (tmp_path / "README.md").write_text("# 11.5 M denoiser, 800 images\n", "utf-8")
    assert curves.images_seen(tmp_path) == 800
    (tmp_path / "README.md").write_text("# a model of 5 images\n", "utf-8")
    assert curves.images_seen(tmp_path) is None
    assert curves.images_seen(tmp_path / "nothing") is None
