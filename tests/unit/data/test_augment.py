"""Changes to drawings, each against what it must be by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fewstep.data import augment
from fewstep.data.augment import Augmentation
from fewstep.errors import UsageError

NOTHING = Augmentation(**dict.fromkeys(Augmentation.__slots__, 0.0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(side: int = 32, seed: int = 0) -> np.ndarray:
    return rng(seed).random((side, side, 3), dtype=np.float32)


def drawing(seed: int = 0) -> np.ndarray:
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[8:120, 8:120] = rng(seed).integers(0, 256, (112, 112, 4))
    return rgba


def test_plain_grid_averages_blocks_of_two_with_alpha_multiplied_in() -> None:
    rgba = drawing()
    found = augment.warp(rgba, augment.grid(64, rng(), None))
    values = rgba.astype(np.float64) / 255
    values[..., :3] *= values[..., 3:]
    expected = values.reshape(64, 2, 64, 2, 4).mean((1, 3))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_full_size_is_the_drawing_itself_and_mirror_its_mirror_image() -> None:
    rgba = drawing()
    values = rgba.astype(np.float64) / 255
    values[..., :3] *= values[..., 3:]
    np.testing.assert_allclose(augment.warp(rgba, augment.grid(128, rng(), None)), values, atol=2e-4)
    mirrored = augment.warp(rgba, augment.grid(64, rng(), None, mirrored=True))
    np.testing.assert_allclose(
        mirrored, augment.warp(rgba, augment.grid(64, rng(), None))[:, ::-1], atol=1e-5
    )


def test_zero_amounts_leave_the_grid_and_the_picture() -> None:
    plain = augment.grid(64, rng(), None)
    np.testing.assert_allclose(augment.grid(64, rng(), NOTHING), plain, atol=1e-6)
    image = picture()
    for seed in range(20):
        np.testing.assert_allclose(augment.disturb(image, rng(seed), NOTHING), image, atol=1e-6)


def test_shift_scale_and_rotation_move_the_grid_as_far_as_they_say() -> None:
    plain = augment.grid(64, rng(), None)
    for seed in range(10):
        moved = augment.grid(64, rng(seed), Augmentation(**{**_zeros(), "shift": 0.1})) - plain
        assert np.ptp(moved, axis=(0, 1)).max() < 1e-5, "every pixel alike"
        assert 0 < np.abs(moved).max() <= 0.2 + 1e-6, "0.1 of the side is 0.2 of -1 to 1"
        scaled = augment.grid(64, rng(seed), Augmentation(**{**_zeros(), "scale": 0.15})) / plain
        assert np.ptp(scaled) < 1e-4
        assert 1 / 1.15 - 1e-4 <= scaled.min() and scaled.max() <= 1.15 + 1e-4
        turned = augment.grid(64, rng(seed), Augmentation(**{**_zeros(), "rotation": 30.0}))
        np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(plain, axis=-1), rtol=1e-4)
        corner, was = turned[0, 0], plain[0, 0]
        angle = np.rad2deg(np.arccos(np.dot(corner, was) / np.dot(was, was)))
        assert 0 < angle <= 30 + 1e-3


def _zeros() -> dict[str, float]:
    return dict.fromkeys(Augmentation.__slots__, 0.0)


def test_warp_bends_smoothly() -> None:
    plain = augment.grid(64, rng(), None)
    bent = np.concatenate(
        [augment.grid(64, rng(n), Augmentation(**{**_zeros(), "warp": 0.02})) - plain for n in range(40)]
    )
    assert 0.5 * 0.04 < bent.std() < 0.04, "a standard deviation of 0.02 of the side at the control points"
    assert np.abs(np.diff(bent[:64], axis=0)).max() < 0.02


def test_laid_over_a_colour() -> None:
    drawn = np.array([[[0.2, 0.0, 0.0, 0.5], [0, 0, 0, 0]]], np.float32)
    over = augment.lay_over(drawn, np.array([1.0, 0.5, 0.0], np.float32))
    np.testing.assert_allclose(over, [[[0.7, 0.25, 0.0], [1.0, 0.5, 0.0]]], atol=1e-6)


def test_recolour_by_hand() -> None:
    image = picture()
    neutral = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    np.testing.assert_allclose(augment.recolour(image, **neutral), image, atol=1e-6)
    lighter = augment.recolour(image, **{**neutral, "brightness": 0.1, "contrast": 0.5})
    np.testing.assert_allclose(lighter, 0.5 * (image - 0.5) + 0.6, atol=1e-6)
    grey = augment.recolour(image, **{**neutral, "saturation": 0.0})
    np.testing.assert_allclose(grey, np.broadcast_to(image.mean(-1, keepdims=True), image.shape), atol=1e-6)
    # A third of the circle takes red to green to blue, and grey stays grey.
    np.testing.assert_allclose(
        augment.recolour(image, **{**neutral, "hue": 120.0}), image[..., [2, 0, 1]], atol=1e-6
    )
    flat = np.full((2, 2, 3), 0.3, np.float32)
    np.testing.assert_allclose(augment.recolour(flat, **{**neutral, "hue": 50.0}), flat, atol=1e-6)


def test_blur_of_a_point_is_a_gaussian_and_keeps_the_mean() -> None:
    image = np.zeros((33, 33, 3), np.float32)
    image[16, 16] = 1
    blurred = augment.blur(image, 1.2)
    axis = np.arange(33) - 16
    exact = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.2**2)) / (2 * np.pi * 1.2**2)
    np.testing.assert_allclose(blurred[..., 0], exact, atol=3e-3)
    assert blurred.sum(axis=(0, 1)) == pytest.approx([1, 1, 1], abs=1e-5)
    plain = np.full((8, 8, 3), 0.7, np.float32)
    np.testing.assert_allclose(augment.blur(plain, 0.8), plain, atol=1e-6)
    assert augment.blur(image, 0.0) is image


def test_blotch_by_hand() -> None:
    image, errors = picture(), rng(1).standard_normal((16, 16, 3)).astype(np.float32)
    none = np.zeros_like(errors)
    np.testing.assert_allclose(augment.blotch(image, none, 0.0), image, atol=1e-6)
    means = image.reshape(16, 2, 16, 2, 3).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    np.testing.assert_allclose(augment.blotch(image, none, 1.0), means, atol=1e-6)
    np.testing.assert_allclose(
        augment.blotch(image, errors, 0.25),
        image + 0.25 * (means - image) + errors.repeat(2, 0).repeat(2, 1),
        atol=1e-6,
    )


def test_erase_paints_one_rectangle_inside() -> None:
    image, colour = np.full((64, 64, 3), 2.0, np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    for seed in range(200):
        draws = rng(seed).random(4)
        painted = augment.erase(image, *draws, colour=colour)
        changed = (painted != image).all(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        height, width = len(rows), len(columns)
        assert changed.sum() == height * width == np.prod([np.ptp(rows) + 1, np.ptp(columns) + 1])
        assert 0.015 <= height * width / 64**2 <= 0.21
        assert 0.27 <= height / width <= 1 / 0.27
        np.testing.assert_allclose(painted[changed], np.broadcast_to(colour, (changed.sum(), 3)))
    assert (image == 2).all(), "not in place"
    largest = augment.erase(image, 1, 1, 1, 1, colour=colour)
    assert (largest[-1, -1] == colour).all()


def test_disturbances_are_frequent_enough_and_stay_in_range() -> None:
    image = picture(64)
    alike = 0
    for seed in range(300):
        found = augment.disturb(image, rng(seed), Augmentation(clean=0.4, erase=0.0))
        assert found.min() >= 0 and found.max() <= 1 and found.dtype == np.float32
        alike += np.array_equal(found, image)
    # left clean, or none of the four changes drawn: 0.4 + 0.6 / 16
    assert 0.33 < alike / 300 < 0.55
    erased = sum(
        not np.array_equal(augment.disturb(image, rng(n), Augmentation(**{**_zeros(), "erase": 0.3})), image)
        for n in range(300)
    )
    assert 0.22 < erased / 300 < 0.38


@pytest.mark.parametrize(
    "wrong", [{"clean": 1.5}, {"blur": -0.1}, {"noise": float("nan")}, {"contrast": 2.0}]
)
def test_amounts_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Augmentation(**wrong)
