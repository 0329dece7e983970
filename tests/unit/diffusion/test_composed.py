"""Several texts at once: the composition against closed forms on Gaussian mixtures."""

import numpy as np
import pytest
import torch

from fewstep.diffusion import sampler
from fewstep.diffusion.guidance import classifier_free, composed
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.schedule import make_schedule
from fewstep.diffusion.solvers import get_solver
from fewstep.diffusion.timesteps import make_grid
from fewstep.diffusion.toys import GaussianMixture
from fewstep.errors import UsageError

SCHEDULE = make_schedule("scaled_linear")
RNG = np.random.default_rng(0)
MIXTURE = GaussianMixture(
    means=RNG.standard_normal((3, 2)),
    stds=np.array([0.3, 0.5, 0.8]),
    weights=np.array([0.5, 0.2, 0.3]),
    labels=np.array([0, 1, 2]),
)
X = RNG.standard_normal((5, 2))


def rows(mixture, labels):
    """A denoiser of (1 + k) B rows: the whole mixture, then each label."""
    each = [mixture.denoiser(SCHEDULE, label) for label in (None, *labels)]

    def denoise(x, t):
        parts = [part(half, t) for part, half in zip(each, np.split(x, len(each)), strict=True)]
        return Prediction(np.concatenate([p.x0 for p in parts]), np.concatenate([p.eps for p in parts]))

    return denoise


def compose(denoise, weights, scale, **options):
    return composed(
        denoise, weights=weights, scale=scale, schedule=SCHEDULE, prediction_type="epsilon", **options
    )


@pytest.mark.parametrize("t", [20.0, 400.0, 900.0])
def test_score_is_that_of_the_product_of_densities(t):
    weights, scale = (0.7, -0.4), 3.0
    eps = compose(rows(MIXTURE, (0, 2)), weights, scale)(X, t).eps

    def log_density(x):
        u = MIXTURE.log_density(x, t, SCHEDULE)
        parts = [MIXTURE.only(label).log_density(x, t, SCHEDULE) - u for label in (0, 2)]
        return u + scale * sum(w * part for w, part in zip(weights, parts, strict=True))

    step = 1e-5
    score = np.stack(
        [(log_density(X + step * e) - log_density(X - step * e)) / (2 * step) for e in np.eye(2)], axis=-1
    )
    np.testing.assert_allclose(eps, -SCHEDULE.sigma(t) * score, rtol=1e-5, atol=1e-7)


def test_drawing_two_gaussians_joined_gives_their_product():
    # All of one width s, u at 0: the composition is a Gaussian about scale * sum w_i m_i at every time.
    std, means = 0.5, np.array([[0.0, 0.0], [1.0, 0.0], [0.0, -2.0]])
    one = [GaussianMixture(m[None], np.array([std]), np.ones(1), np.zeros(1, dtype=int)) for m in means]
    each = [mixture.denoiser(SCHEDULE) for mixture in one]

    def denoise(x, t):
        parts = [part(half, t) for part, half in zip(each, np.split(x, 3), strict=True)]
        return Prediction(np.concatenate([p.x0 for p in parts]), np.concatenate([p.eps for p in parts]))

    weights, scale = (0.8, 0.3), 2.0
    solver = get_solver("ddim")
    grid = make_grid(SCHEDULE, "trailing", 200)
    target = scale * (weights[0] * means[1] + weights[1] * means[2])
    # As the product is at the first time, where this schedule leaves 7% of the data.
    alpha, sigma = SCHEDULE.alpha(float(grid[0])), SCHEDULE.sigma(float(grid[0]))
    noise = np.random.default_rng(1).standard_normal((4000, 2))
    first = alpha * target + np.hypot(alpha * std, sigma) * noise
    drawn = sampler.sample(compose(denoise, weights, scale), first, grid, solver, schedule=SCHEDULE)
    np.testing.assert_allclose(drawn.mean(0), target, atol=0.05)
    np.testing.assert_allclose(drawn.std(0), std, atol=0.03)


def test_one_text_and_equal_halves_are_classifier_free_guidance():
    plain = classifier_free(
        rows(MIXTURE, (1,)), None, scale=4.0, rescale=0.3, schedule=SCHEDULE, prediction_type="epsilon",
        batched=True,
    )(X, 300.0)  # fmt: skip
    for labels, weights in [((1,), (1.0,)), ((1, 1), (0.5, 0.5))]:
        mixed = compose(rows(MIXTURE, labels), weights, 4.0, rescale=0.3)(X, 300.0)
        np.testing.assert_allclose(mixed.x0, plain.x0, rtol=1e-12)
        np.testing.assert_allclose(mixed.eps, plain.eps, rtol=1e-12)


def test_outside_of_the_interval_the_scale_is_1():
    options = {"interval": (0.5, 3.0)}
    denoise = rows(MIXTURE, (0, 2))
    times = np.array([10.0, 400.0, 990.0, 400.0, 10.0])
    ratio = SCHEDULE.ratio(times)
    inside = (ratio > 0.5) & (ratio <= 3.0)
    assert inside.tolist() == [False, True, False, True, False]
    got = compose(denoise, (0.7, 0.6), 5.0, **options)
    for row, t in enumerate(times):
        expected = compose(denoise, (0.7, 0.6), 5.0 if inside[row] else 1.0)(X[row : row + 1], float(t))
        np.testing.assert_array_equal(got(X[row : row + 1], float(t)).x0, expected.x0)


def test_torch_and_float32_stay_what_they_are():
    def denoise(x, t):
        return Prediction(0.5 * x, 0.25 * x)

    x = torch.ones(2, 1, 3, 3)
    result = compose(denoise, (0.5, 1.0), 2.0, rescale=0.5)(x, 100.0)
    assert result.x0.dtype == torch.float32 and result.x0.shape == x.shape
    assert compose(denoise, (1.0,), 2.0)(np.ones((2, 3), np.float32), 100.0).eps.dtype == np.float32


@pytest.mark.parametrize(
    "given",
    [
        {"weights": ()}, {"weights": (float("nan"),)}, {"scale": float("inf")}, {"rescale": 1.5},
        {"interval": (2.0, 1.0)},
    ],
)  # fmt: skip
def test_what_is_refused(given):
    settings = {"weights": (1.0,), "scale": 2.0, **given}
    with pytest.raises(UsageError):
        compose(rows(MIXTURE, (0,)), settings.pop("weights"), settings.pop("scale"), **settings)
