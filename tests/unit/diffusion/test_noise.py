"""Seeded noise: golden values, once and for good. A change here changes every seed of every user."""

import hashlib
import itertools

import numpy as np
import pytest

from fewstep.diffusion.noise import batch_noise, image_noise, solver_noise
from fewstep.errors import UsageError

# (seed, stream) -> the first values, exact.
GOLDEN = {
    (0, 0): [
        "0x1.4aee7e0000000p+1",
        "0x1.80d2ac0000000p-3",
        "0x1.aee3a00000000p-5",
        "0x1.fab5b60000000p-1",
        "0x1.15c7e80000000p+0",
        "0x1.d40c0c0000000p-1",
        "-0x1.af036c0000000p+0",
        "-0x1.7146220000000p-1",
    ],
    (1, 0): [
        "-0x1.a651380000000p-2",
        "0x1.2dbfbe0000000p+0",
        "0x1.d8b8cc0000000p-2",
        "-0x1.4aefa80000000p-1",
        "0x1.606cf60000000p-1",
        "0x1.074eea0000000p+0",
        "0x1.4d74280000000p+0",
        "0x1.080fd00000000p-2",
    ],
    (0, 1): [
        "0x1.645fb60000000p-4",
        "-0x1.a7bc480000000p-3",
        "0x1.aaea540000000p-7",
        "-0x1.8eae380000000p+0",
        "-0x1.18582a0000000p+0",
        "-0x1.0559be0000000p+1",
        "-0x1.ab34b60000000p-2",
        "0x1.6bc14e0000000p-5",
    ],
    (2**63 + 5, 0): ["-0x1.9ac9840000000p-1", "0x1.19a7980000000p-2", "-0x1.175b1a0000000p+0"],
}


@pytest.mark.parametrize(("seed", "stream"), GOLDEN)
def test_golden_values(seed, stream):
    expected = [float.fromhex(value) for value in GOLDEN[seed, stream]]
    assert image_noise(seed, (len(expected),), stream=stream).tolist() == expected


def test_golden_hash_of_a_whole_latent():
    noise = image_noise(0, (8, 16, 16))
    assert noise.dtype == np.float32
    digest = hashlib.sha256(noise.astype("<f4").tobytes()).hexdigest()
    assert digest == "aa5b23b5afee2c5df629bbf84c440ae84d2e6619d2d4bfc601a9f6de858c1d25"


def test_the_published_definition():
    # The module's words, followed by hand: Philox key (seed, stream), halves of a word, Box-Muller.
    word = int(np.random.Philox(key=np.array([42, 0], dtype=np.uint64)).random_raw())
    u1, u2 = ((word % 2**32) + 0.5) / 2**32, ((word >> 32) + 0.5) / 2**32
    radius = np.sqrt(-2 * np.log(u1))
    expected = [radius * np.cos(2 * np.pi * u2), radius * np.sin(2 * np.pi * u2)]
    np.testing.assert_allclose(image_noise(42, (2,)), expected, rtol=1e-6)


def test_it_is_standard_normal():
    n = 400_000
    noise = image_noise(3, (n,)).astype(np.float64)
    # Standard errors of the first four moments: sqrt((E x^2k - (E x^k)^2) / n).
    for k, (moment, error) in enumerate([(0.0, 1.0), (1.0, 2.0), (0.0, 15.0), (3.0, 96.0)], start=1):
        assert (noise**k).mean() == pytest.approx(moment, abs=4 * np.sqrt(error / n)), k
    assert np.abs(noise).max() < 6.77
    for bound, share in ((1.0, 0.6827), (2.0, 0.9545), (3.0, 0.9973)):
        assert (np.abs(noise) < bound).mean() == pytest.approx(share, abs=0.004)


def test_seeds_and_streams_are_independent():
    rows = [image_noise(seed, (5000,), stream=stream) for seed in (0, 1, 2) for stream in (0, 1)]
    for first, second in itertools.combinations(rows, 2):
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def test_a_smaller_shape_is_the_beginning_of_a_larger_one():
    np.testing.assert_array_equal(image_noise(7, (3, 5)).ravel(), image_noise(7, (40,))[:15])


def test_solver_noise_draws_other_streams_of_the_same_image():
    noise = solver_noise(10, 2, (4, 4))
    np.testing.assert_array_equal(noise(0)[1], image_noise(11, (4, 4), stream=1))
    np.testing.assert_array_equal(noise(3)[0], image_noise(10, (4, 4), stream=4))
    assert not np.array_equal(noise(0), batch_noise(10, 2, (4, 4)))


def test_a_negative_seed_is_refused():
    with pytest.raises(UsageError, match="seed is -1: give 0 or more"):
        image_noise(-1, (4,))
