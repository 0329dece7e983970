"""Weights on token vectors, the same in numpy and torch."""

import numpy as np
import pytest
import torch

from fewstep.errors import UsageError
from fewstep.prompt.emphasis import apply

TOKENS = np.random.default_rng(0).standard_normal((2, 7, 5)).astype(np.float32) + 0.3
WEIGHTS = np.ones((2, 7), np.float32)
WEIGHTS[0, 1:4] = 1.5
WEIGHTS[1, 2] = -0.5


def test_original_keeps_the_mean_of_every_image() -> None:
    # modules/sd_emphasis.py of the web UI, for one text at a time.
    expected = TOKENS * WEIGHTS[:, :, None]
    for row in range(2):
        expected[row] *= TOKENS[row].mean() / expected[row].mean()
    found = apply(TOKENS, WEIGHTS, "original")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.mean((1, 2)), TOKENS.mean((1, 2)), rtol=1e-5)


def test_no_norm_only_multiplies() -> None:
    np.testing.assert_array_equal(apply(TOKENS, WEIGHTS, "no_norm"), TOKENS * WEIGHTS[:, :, None])


@pytest.mark.parametrize("mode", ["ignore", "none"])
def test_modes_without_weights(mode) -> None:
    assert apply(TOKENS, WEIGHTS, mode) is TOKENS


@pytest.mark.parametrize("mode", ["original", "no_norm"])
def test_without_emphasis_nothing_changes_a_bit(mode) -> None:
    assert apply(TOKENS, np.ones((2, 7)), mode) is TOKENS
    # Nor in an image whose neighbour has some.
    np.testing.assert_array_equal(apply(TOKENS, [[1.0] * 7, [2.0] * 7], mode)[0], TOKENS[0])


@pytest.mark.parametrize("mode", ["original", "no_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_torch_gives_what_numpy_gives(mode, dtype: torch.dtype) -> None:
    tokens = torch.from_numpy(TOKENS).to(dtype)
    found = apply(tokens, torch.from_numpy(WEIGHTS), mode)
    assert found.dtype == dtype
    expected = apply(tokens.to(torch.float64).numpy(), WEIGHTS, mode)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    np.testing.assert_allclose(found.to(torch.float64).numpy(), expected, rtol=tolerance, atol=tolerance)


def test_half_precision_of_numpy_stays() -> None:
    assert apply(TOKENS.astype(np.float16), WEIGHTS).dtype == np.float16


@pytest.mark.parametrize("shift", [0.0, 1e-7])
def test_a_mean_of_nearly_zero_does_not_blow_up(shift: float) -> None:
    tokens = TOKENS.astype(np.float64)
    tokens = tokens - tokens.mean((1, 2), keepdims=True) + shift
    found = apply(tokens, WEIGHTS, "original")
    np.testing.assert_array_equal(found, tokens * WEIGHTS[:, :, None])


def test_a_mean_that_becomes_nearly_zero_does_not_blow_up() -> None:
    tokens = np.ones((1, 2, 3), np.float32)
    np.testing.assert_array_equal(apply(tokens, [[3.0, -3.0]]), tokens * np.float32([3.0, -3.0])[:, None])
    assert np.all(apply(tokens, [[0.0, 0.0]]) == 0.0)


@pytest.mark.parametrize("shape", [(2, 6), (1, 7), (7,), (2, 7, 1)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="do not fit tokens of shape"):
        apply(TOKENS, np.ones(shape))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="give one of original"):
        apply(TOKENS, WEIGHTS, "comfy")  # type: ignore[arg-type]
