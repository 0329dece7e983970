"""The forward process and the loss weights at zero terminal SNR."""

import numpy as np
import pytest

from fewstep.diffusion.prediction import PREDICTION_TYPES
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.diffusion.weighting import weight

ZERO_SNR = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
N = 40_000


@pytest.mark.parametrize("schedule", [ZERO_SNR, FlowSchedule()], ids=["zero_snr", "flow"])
def test_at_the_terminal_time_the_input_is_pure_noise(schedule):
    rng = np.random.default_rng(0)
    x0, eps = 3.0 + rng.standard_normal((N, 1)), rng.standard_normal((N, 1))
    x_t = schedule.forward(x0, eps, schedule.terminal)
    np.testing.assert_array_equal(x_t, eps)  # alpha is exactly 0, so nothing of x0 is left, not even rounding
    assert abs(np.corrcoef(x_t[:, 0], x0[:, 0])[0, 1]) < 4 / np.sqrt(N)


@pytest.mark.parametrize("t", [0.0, 200.0, 700.0, 998.0])
def test_variance_before_the_terminal_time(t):
    rng = np.random.default_rng(1)
    x0, eps = 2.0 * rng.standard_normal(N), rng.standard_normal(N)
    expected = (ZERO_SNR.alpha(t) * 2.0) ** 2 + ZERO_SNR.sigma(t) ** 2
    assert ZERO_SNR.forward(x0, eps, t).var() == pytest.approx(expected, rel=5 * np.sqrt(2 / N))


@pytest.mark.parametrize(("schedule", "s", "t"), [(ZERO_SNR, 200.0, 700.0), (FlowSchedule(), 0.2, 0.7)])
def test_noising_in_two_parts_equals_one_in_distribution(schedule, s, t):
    rng = np.random.default_rng(2)
    x0 = np.full(N, 1.5)
    x_s = schedule.forward(x0, rng.standard_normal(N), s)
    x_t = schedule.forward_between(x_s, rng.standard_normal(N), s, t)
    assert x_t.mean() == pytest.approx(1.5 * schedule.alpha(t), abs=4 * schedule.sigma(t) / np.sqrt(N))
    assert x_t.std() == pytest.approx(schedule.sigma(t), rel=4 / np.sqrt(2 * N))


def test_min_snr_weight_of_a_v_prediction_is_above_zero_at_the_terminal_time():
    # Trailing sampling starts at T: with weight 0 there the network would never learn its first step.
    terminal = np.array([ZERO_SNR.terminal])
    assert weight("min_snr", terminal, ZERO_SNR, "v_prediction", floor=0.0)[0] == 0.0
    assert weight("min_snr", terminal, ZERO_SNR, "v_prediction")[0] > 0.0
    assert weight("unit", terminal, ZERO_SNR, "v_prediction")[0] == 1.0
    every = weight("min_snr", np.arange(1000.0), ZERO_SNR, "v_prediction")
    assert every.min() > 0.0


@pytest.mark.parametrize("kind", ["snr", "min_snr", "edm"])
def test_weights_mean_the_same_for_every_prediction_type(kind):
    # The loss must not depend on the type: weight times squared error of the raw output is equal for all of
    # them.
    rng = np.random.default_rng(3)
    x0, eps, error = rng.standard_normal(3), rng.standard_normal(3), 0.1
    from fewstep.diffusion.prediction import target

    for t in (50.0, 400.0, 900.0):
        a, s = ZERO_SNR.alpha(t), ZERO_SNR.sigma(t)
        x_t = a * x0 + s * eps
        wrong_x0 = x0 + error
        wrong_eps = (x_t - a * wrong_x0) / s
        losses = [
            weight(kind, t, ZERO_SNR, p, floor=0.0)[0]
            * (target(wrong_x0, wrong_eps, t, ZERO_SNR, p) - target(x0, eps, t, ZERO_SNR, p)) ** 2
            for p in PREDICTION_TYPES
        ]
        for loss in losses[1:]:
            np.testing.assert_allclose(loss, losses[0], rtol=1e-9)


def test_published_forms_of_the_weights():
    t = np.array([100.0, 500.0, 900.0])
    snr = np.exp(ZERO_SNR.log_snr(t))
    np.testing.assert_allclose(weight("snr", t, ZERO_SNR, "epsilon"), 1.0)
    np.testing.assert_allclose(weight("snr", t, ZERO_SNR, "sample"), snr)
    np.testing.assert_allclose(
        weight("min_snr", t, ZERO_SNR, "epsilon", gamma=5.0, floor=0.0), np.minimum(snr, 5.0) / snr
    )
    np.testing.assert_allclose(
        weight("min_snr", t, ZERO_SNR, "v_prediction", gamma=5.0, floor=0.0), np.minimum(snr, 5.0) / (snr + 1)
    )
    sigma = ZERO_SNR.ratio(t)
    np.testing.assert_allclose(
        weight("edm", t, ZERO_SNR, "sample", sigma_data=0.5), (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    )
