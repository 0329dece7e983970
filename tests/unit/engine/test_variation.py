import math
from types import SimpleNamespace

import numpy as np
import pytest

from fewstep.diffusion.noise import image_noise
from fewstep.engine import variation
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import UsageError

SHAPE = (4, 8, 8)


def draw(**given):
    engine = Engine(backend=FakeBackend())
    return engine.generate(resolve(engine.info, **{"prompt": "a red apple", "seed": 3, **given}))


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_slerp_is_the_closed_form(weight):
    """A column turned by an angle: the result is the column turned by a share of that angle."""
    rng = np.random.default_rng(0)
    turns = rng.uniform(0.2, math.pi - 0.2, (3, 5))
    starts = rng.uniform(0, 2 * math.pi, (3, 5))

    def columns(angle):
        return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

    made = variation.slerp(columns(starts), columns(starts + turns), weight)
    assert made.shape == (3, 2, 5) and made.dtype == np.float32
    np.testing.assert_allclose(made, columns(starts + weight * turns), atol=1e-5)


def test_slerp_golden():
    """By hand: cosines 0 and 0.6 of the two columns, weight 0.25."""
    low = np.array([[[1.0, 3.0], [0.0, 4.0]]], dtype=np.float32)
    high = np.array([[[0.0, 5.0], [2.0, 0.0]]], dtype=np.float32)
    half, turn = math.pi / 2, math.acos(0.6)
    expected = np.zeros((1, 2, 2))
    expected[0, :, 0] = [math.sin(0.75 * half), 2 * math.sin(0.25 * half)]
    a, b = math.sin(0.75 * turn) / math.sin(turn), math.sin(0.25 * turn) / math.sin(turn)
    expected[0, :, 1] = [3 * a + 5 * b, 4 * a]
    np.testing.assert_allclose(variation.slerp(low, high, 0.25), expected, atol=1e-6)


def test_slerp_of_parallel_noises_is_the_line_of_the_web_ui():
    low = image_noise(1, SHAPE)
    np.testing.assert_allclose(
        variation.slerp(low, 3.0 * low, 0.25), low * 0.25 + 3.0 * low * 0.75, rtol=1e-6
    )
    assert np.array_equal(variation.slerp(low, low, 0.3), low)


def test_slerp_keeps_the_spread_of_noise():
    low, high = image_noise(1, (4, 64, 64)), image_noise(2, (4, 64, 64))
    for weight in (0.25, 0.5, 0.75):
        assert abs(variation.slerp(low, high, weight).std() - 1.0) < 0.02
    assert np.abs(variation.slerp(low, high, 0.0) - low).max() < 1e-6
    assert np.abs(variation.slerp(low, high, 1.0) - high).max() < 1e-6


def test_one_row_has_no_angle():
    low, high = image_noise(1, (4, 1, 8)), image_noise(2, (4, 1, 8))
    assert np.isfinite(variation.slerp(low, high, 0.5)).all()


def test_variations_lie_between_two_seeds():
    own, other = draw(seed=3).images[0], draw(seed=50).images[0]
    made = [draw(variation_seed=50, variation_strength=weight).images[0] for weight in (0.0, 0.2, 0.8, 1.0)]
    assert np.array_equal(made[0], own)
    assert np.abs(made[3].astype(int) - other).max() <= 1
    near = [np.abs(image.astype(int) - own).mean() for image in made]
    assert near[0] < near[1] < near[2]


def test_the_variation_seed_counts_up_and_the_seed_stays():
    batch = draw(n=3, variation_seed=50, variation_strength=0.4)
    assert batch.seeds == [3, 3, 3]
    assert batch.record["variation"] == {"seed": 50, "strength": 0.4}
    for index, image in enumerate(batch.images):
        alone = draw(variation_seed=50 + index, variation_strength=0.4).images[0]
        assert np.abs(image.astype(int) - alone).max() <= 1
    assert draw(n=3).seeds == [3, 4, 5]


@pytest.mark.parametrize("solver", ["euler_a", "dpmpp_2m_sde"])
def test_a_stochastic_solver_adds_the_seeds_own_noise(solver):
    batch = draw(n=2, variation_seed=50, variation_strength=0.4, solver=solver, deterministic=True)
    alone = draw(variation_seed=51, variation_strength=0.4, solver=solver)
    assert np.array_equal(batch.images[1], alone.images[0])


def test_a_seed_left_open_is_the_next_one():
    assert draw(variation_strength=0.5).record["variation"]["seed"] == 4
    assert "variation" not in draw(variation_strength=0.0).record
    assert "variation" not in draw().record


@pytest.mark.parametrize(("size", "own"), [((48, 64), (8, 6)), ((96, 80), (10, 12)), ((72, 64), (8, 9))])
def test_seed_resize_keeps_the_middle(size, own):
    """The noise of the other size stands in the middle, cut where it is larger."""
    request = SimpleNamespace(
        seed=3, n=1, variation=variation.Variation(seed=4, strength=0.0, resize_from=size)
    )
    made = variation.batch_noise(request, 0, 1, SHAPE, 8)[0]
    small = image_noise(3, (4, *own))
    rows, columns = (8 - own[0]) // 2, (8 - own[1]) // 2
    y, x = max(rows, 0), max(columns, 0)
    assert np.array_equal(made[:, y, x], small[:, max(-rows, 0), max(-columns, 0)])
    if own[0] <= 8 and own[1] <= 8:
        assert np.array_equal(made[:, y : y + own[0], x : x + own[1]], small)
        outside = np.ones((8, 8), dtype=bool)
        outside[y : y + own[0], x : x + own[1]] = False
        assert np.array_equal(made[:, outside], image_noise(3, SHAPE)[:, outside])


def test_seed_resize_is_recorded():
    made = draw(width=96, seed_resize=(64, 64))
    assert made.record["variation"] == {"seed": 4, "strength": 0.0, "resize_from": [64, 64]}
    assert made.seeds == [3]
    assert not np.array_equal(made.images[0], draw(width=96).images[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"variation_seed": 5}, "give --variation-strength too"),
        ({"variation_strength": 1.5}, "from 0 to 1"),
        ({"variation_strength": float("nan")}, "variation strength is nan"),
        ({"variation_seed": -1, "variation_strength": 0.5}, "variation seed is -1"),
        ({"seed_resize": (60, 64)}, "multiples of 8"),
        ({"seed_resize": (0, 64)}, "multiples of 8"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, words):
    with pytest.raises(UsageError) as caught:
        resolve(FakeBackend().info, prompt="", **given)
    assert words in str(caught.value) and "\n" not in str(caught.value)
