"""Training-time distributions: exact probabilities, draws and refusals."""

import numpy as np
import pytest

from fewstep.diffusion.noise_levels import phased_mixture_pmf, sample_t
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.errors import UsageError

ORDINARY = make_schedule("scaled_linear")
FLOW = FlowSchedule(3.0)

# Exact values for K = 32 from the mixture's definition: mode centres at 0, 8, 16, 24 and their neighbours.
PMF = {
    (0.0, 0.0, 0.5, 0.5): {15: 0.0532, 16: 0.3933, 17: 0.0532, 23: 0.0532, 24: 0.3933, 25: 0.0532},
    (0.1, 0.3, 0.3, 0.3): {0: 0.0795, 1: 0.0108, 8: 0.2385, 16: 0.2385, 24: 0.2385, 7: 0.0323, 9: 0.0323},
    (0.25, 0.25, 0.25, 0.25): {0: 0.2020, 1: 0.0273, 8: 0.2020, 7: 0.0273},
    (0.4, 0.2, 0.2, 0.2): {0: 0.3287, 1: 0.0445, 8: 0.1643, 7: 0.0222},
}


@pytest.mark.parametrize("weights", PMF)
def test_phased_mixture_probabilities(weights):
    pmf = phased_mixture_pmf(32, weights)
    assert pmf.sum() == pytest.approx(1.0)
    for index, value in PMF[weights].items():
        assert pmf[index] == pytest.approx(value, abs=6e-5)


def test_phased_mixture_draws_by_its_probabilities():
    draws = sample_t(
        "phased_mixture", np.random.default_rng(0), 50_000, ORDINARY, mode_weights=(0.4, 0.2, 0.2, 0.2)
    )
    assert (draws == 999).mean() == pytest.approx(0.3287, abs=0.01)
    assert (draws == 749).mean() == pytest.approx(0.1643, abs=0.01)


def test_training_time_distributions():
    rng = np.random.default_rng(0)
    whole = sample_t("uniform", rng, 100_000, ORDINARY)
    assert (whole.min(), whole.max()) == (0, 999)
    assert whole.mean() == pytest.approx(499.5, abs=4)
    part = sample_t("uniform", rng, 10_000, ORDINARY, low=20, high=980)
    assert (part.min(), part.max()) == (20, 980)
    middle = sample_t("logit_normal", rng, 100_000, FlowSchedule())
    assert np.median(middle) == pytest.approx(0.5, abs=0.01)
    # Under the shift of 3 the median 1/2 becomes 3/4.
    assert np.median(sample_t("logit_normal", rng, 100_000, FLOW)) == pytest.approx(0.75, abs=0.01)
    weighted = sample_t("discrete", rng, 60_000, ORDINARY, times=[10, 250, 500, 750], weights=[5, 1, 1, 1])
    assert (weighted == 10).mean() == pytest.approx(5 / 8, abs=0.01)


@pytest.mark.parametrize(
    ("distribution", "options", "message"),
    [
        ("unifrom", {}, "did you mean uniform"),
        ("uniform", {"low": 5, "high": 2000}, "uniform times"),
        ("logit_normal", {"std": 0.0}, "std is 0.0"),
        ("phased_mixture", {"mode_weights": (0.0, 0.0)}, "mode weights"),
        ("phased_mixture", {"variance": 0.0}, "variance is 0.0"),
        ("discrete", {}, "discrete times"),
        ("discrete", {"times": [5], "weights": [1, 2]}, "discrete weights"),
    ],
)
def test_bad_distributions_are_refused(distribution, options, message):
    with pytest.raises(UsageError, match=message):
        sample_t(distribution, np.random.default_rng(0), 3, ORDINARY, **options)
