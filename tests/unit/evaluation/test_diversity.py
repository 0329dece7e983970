from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fewstep.errors import DataError, UsageError
from fewstep.evaluation import diversity

PROMPTS = np.array([4, 2, 4, 2, 4, 9, 9])


def generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(0))


def pairs_of(prompt: int) -> list[tuple[int, int]]:
    return list(combinations(np.flatnonzero(prompt == PROMPTS).tolist(), 2))


def test_features_equal_the_mean_over_pairs() -> None:
    features = generator().standard_normal((7, 5))

    def distance(i: int, j: int) -> float:
        a, b = features[i], features[j]
        return 1 - a @ b / np.sqrt((a @ a) * (b @ b))

    expected = [np.mean([distance(i, j) for i, j in pairs_of(prompt)]) for prompt in (2, 4, 9)]
    assert diversity.in_features(features, PROMPTS) == pytest.approx(expected)


def test_pixels_equal_the_root_mean_square_over_pairs() -> None:
    pixels = generator().integers(0, 256, (7, 4, 6, 3)).astype(np.uint8)
    squares = np.square((pixels[:, None].astype(float) - pixels) / 255).mean(axis=(2, 3, 4))
    expected = [np.sqrt(np.mean([squares[pair] for pair in pairs_of(prompt)])) for prompt in (2, 4, 9)]
    assert diversity.in_pixels(pixels, PROMPTS) == pytest.approx(expected)


def test_the_scale() -> None:
    prompts = np.array([0, 0, 1, 1, 2, 2])
    features = np.array([[1.0, 2.0], [3.0, 6.0], [1.0, 0.0], [0.0, 5.0], [1.0, 0.0], [-2.0, 0.0]])
    assert diversity.in_features(features, prompts) == pytest.approx([0, 1, 2], abs=1e-12)
    pixels = np.zeros((6, 2, 2, 3), np.uint8)
    pixels[3], pixels[5, 0] = 255, 255
    assert diversity.in_pixels(pixels, prompts) == pytest.approx([0, 1, np.sqrt(0.5)])


def test_the_distance_of_independent_normal_pictures() -> None:
    # E (x - y)^2 = 2 sigma^2, and orthogonal directions in many dimensions
    rng = generator()
    pixels = np.clip(np.round(127.5 + 20 * rng.standard_normal((8, 32, 32, 3))), 0, 255).astype(np.uint8)
    prompt = np.zeros(8, np.int64)
    assert diversity.in_pixels(pixels, prompt) == pytest.approx([np.sqrt(2) * 20 / 255], rel=0.02)
    assert diversity.in_features(rng.standard_normal((8, 5000)), prompt) == pytest.approx([1], abs=0.02)


def test_what_has_no_diversity_is_refused() -> None:
    features, pixels = np.ones((3, 4)), np.zeros((3, 2, 2, 3), np.uint8)
    with pytest.raises(UsageError, match="prompt 7 has one picture"):
        diversity.in_features(features, np.array([1, 7, 1]))
    with pytest.raises(UsageError, match="prompt 7 has one picture"):
        diversity.in_pixels(pixels, np.array([1, 7, 1]))
    with pytest.raises(UsageError, match="one prompt a picture"):
        diversity.in_features(features, np.array([1, 1]))
    with pytest.raises(UsageError, match="give uint8"):
        diversity.in_pixels(pixels.astype(np.float32), np.array([1, 1, 1]))
    with pytest.raises(DataError, match="all 0"):
        diversity.in_features(np.array([[0.0], [1.0]]), np.array([0, 0]))
