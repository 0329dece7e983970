"""The toys themselves: their denoiser is the truth that other tests lean on."""

import numpy as np
import pytest
import torch

from fewstep.diffusion.guidance import classifier_free
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.diffusion.toys import gaussian, gaussian_flow, grid, ring, two_modes
from fewstep.errors import UsageError

SCHEDULES = {
    "ordinary": make_schedule("scaled_linear"),
    "zero_snr": make_schedule("scaled_linear", rescale_zero_terminal_snr=True),
    "flow": FlowSchedule(),
}
TIMES = {"ordinary": [999, 500, 10], "zero_snr": [999, 500, 10], "flow": [1.0, 0.5, 0.05]}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "toy", [gaussian(), two_modes(share=0.3), ring(), grid(3)], ids=["one", "two", "ring", "grid"]
)
def test_score_is_the_gradient_of_the_log_density(name, toy):
    schedule = SCHEDULES[name]
    x = np.random.default_rng(0).standard_normal((5, 2))
    h = 1e-5
    for t in TIMES[name]:
        numeric = np.stack(
            [
                (toy.log_density(x + h * e, t, schedule) - toy.log_density(x - h * e, t, schedule)) / (2 * h)
                for e in np.eye(2)
            ],
            axis=1,
        )
        np.testing.assert_allclose(toy.score(x, t, schedule), numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_prediction_is_consistent_and_the_same_in_torch(name):
    toy, schedule = ring(), SCHEDULES[name]
    x = np.random.default_rng(1).standard_normal((6, 2))
    for t in TIMES[name]:
        p = toy.denoiser(schedule)(x, t)
        np.testing.assert_allclose(schedule.forward(p.x0, p.eps, t), x, atol=1e-12)
        np.testing.assert_allclose(
            toy.denoiser(schedule)(torch.from_numpy(x), t).x0.numpy(), p.x0, atol=1e-12
        )
    t = np.array(TIMES[name] * 2, dtype=float)
    each = [toy.denoiser(schedule)(x[i : i + 1], t[i]).x0[0] for i in range(6)]
    np.testing.assert_allclose(toy.denoiser(schedule)(x, t).x0, each, atol=1e-12)


def test_samples_have_the_moments_of_the_mixture():
    toy = two_modes(share=0.25)
    points, labels = toy.sample(np.random.default_rng(0), 20000)
    assert labels.mean() == pytest.approx(0.25, abs=0.02)
    assert points[labels == 1].mean(axis=0) == pytest.approx([1.0, 0.0], abs=0.02)


def test_posterior_mean_is_the_best_estimate_of_x0():
    # Against the regression itself: E[(x0 - f(x_t)) g(x_t)] = 0 for any g.
    toy, schedule, rng = two_modes(), SCHEDULES["ordinary"], np.random.default_rng(0)
    x0, _ = toy.sample(rng, 200_000)
    x_t = schedule.forward(x0, rng.standard_normal(x0.shape), 500.0)
    residual = x0 - toy.denoiser(schedule)(x_t, 500.0).x0
    for g in (np.ones_like(x_t), x_t, np.sin(3 * x_t)):
        assert np.abs((residual * g).mean(axis=0)).max() < 0.01


def test_exact_flow_follows_the_velocity():
    # d/dt of the closed-form flow is its velocity, on the flow schedule where dx/dt = eps - x0.
    toy, schedule = gaussian(), SCHEDULES["flow"]
    x = np.random.default_rng(0).standard_normal((4, 2))
    h = 1e-6
    ahead = gaussian_flow(toy.means[0], toy.stds[0], x, 0.6, 0.6 + h, schedule)
    behind = gaussian_flow(toy.means[0], toy.stds[0], x, 0.6, 0.6 - h, schedule)
    p = toy.denoiser(schedule)(x, 0.6)
    np.testing.assert_allclose((ahead - behind) / (2 * h), p.eps - p.x0, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "flow_prediction"])
def test_guidance_equals_the_exact_guided_denoiser(prediction_type):
    toy, schedule = two_modes(), SCHEDULES["zero_snr"]
    x = np.random.default_rng(0).standard_normal((7, 2))
    guided = classifier_free(
        toy.denoiser(schedule, 1),
        toy.denoiser(schedule),
        scale=4.0,
        schedule=schedule,
        prediction_type=prediction_type,
    )
    for t in (999.0, 300.0):
        for ours, exact in zip(guided(x, t), toy.guided(schedule, 1, 4.0)(x, t), strict=True):
            np.testing.assert_allclose(ours, exact, atol=1e-12)


def test_guided_eps_is_the_guided_score():
    toy, schedule = two_modes(), SCHEDULES["ordinary"]
    x = np.random.default_rng(0).standard_normal((7, 2))
    u, c = toy.score(x, 400, schedule), toy.score(x, 400, schedule, label=1)
    eps = toy.guided(schedule, 1, 3.0)(x, 400).eps
    np.testing.assert_allclose(-eps / schedule.sigma(400), u + 3.0 * (c - u), atol=1e-12)


def test_an_unknown_label_is_refused():
    with pytest.raises(UsageError, match="label 5"):
        two_modes().only(5)
