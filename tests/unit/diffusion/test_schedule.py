"""Schedules, predictions, grids and weights: exact values and refusals."""

import numpy as np
import pytest
import torch

from fewstep.diffusion.prediction import Prediction, adapt, from_prediction, target, to_prediction
from fewstep.diffusion.schedule import DiscreteSchedule, FlowSchedule, make_schedule
from fewstep.diffusion.timesteps import make_grid, truncate_for_strength
from fewstep.diffusion.weighting import weight
from fewstep.errors import UsageError

ORDINARY = make_schedule("scaled_linear")
ZERO_SNR = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
FLOW = FlowSchedule(3.0)


def test_the_clean_end_is_sigma_0():
    for schedule in (ORDINARY, ZERO_SNR, FLOW):
        assert (schedule.alpha(schedule.clean), schedule.sigma(schedule.clean)) == (1.0, 0.0)
        assert schedule.log_snr(schedule.clean) == np.inf
        assert schedule.is_clean(schedule.clean)
    assert ORDINARY.sigma(0) > 0.02, "table entry 0 is not clean"


def test_zero_terminal_snr_is_exact_and_keeps_the_first_entry():
    assert ZERO_SNR.alpha(999) == 0.0
    assert ZERO_SNR.sigma(999) == 1.0
    assert ZERO_SNR.log_snr(999) == -np.inf
    assert ZERO_SNR.alpha(0) == pytest.approx(ORDINARY.alpha(0), abs=1e-12)
    assert ZERO_SNR.finite_terminal().alphas_cumprod[-1] == 2**-24
    assert ORDINARY.finite_terminal() is ORDINARY
    assert FLOW.finite_terminal() is FLOW


def test_coefficients_of_one_time_are_python_floats():
    # numpy.float64 would lift float32 arrays to float64.
    for schedule, t in ((ORDINARY, 500), (ORDINARY, 500.5), (ORDINARY, np.float64(3.0)), (FLOW, 0.5)):
        assert type(schedule.alpha(t)) is float
        assert type(schedule.sigma(t)) is float
        assert type(schedule.log_snr(t)) is float


@pytest.mark.parametrize("kind", [np.asarray, torch.asarray])
def test_float32_stays_float32(kind):
    x = kind(np.ones((2, 3, 4, 4), np.float32))
    for schedule, t in ((ORDINARY, np.array([3, 999])), (ORDINARY, 500.5), (FLOW, np.array([0.2, 1.0]))):
        assert str(schedule.forward(x, x, t).dtype).endswith("float32")
        assert str(schedule.forward_between(x, x, t * 0.5, t).dtype).endswith("float32")
        for name in ("epsilon", "sample", "v_prediction", "flow_prediction"):
            if name != "epsilon" or schedule is ORDINARY:
                p = to_prediction(x, x, t, schedule, name)
                assert str(p.x0.dtype).endswith("float32")
                assert str(from_prediction(p, t, schedule, name).dtype).endswith("float32")


def test_flow_coefficients_are_differentiable_in_t():
    t = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    x0, eps = torch.ones(2, 3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    FLOW.forward(x0, eps, t).sum().backward()
    assert t.grad.tolist() == [-3.0, -3.0]
    assert torch.autograd.gradcheck(FLOW.log_snr, (t,))


def test_torch_times_on_a_table():
    t = torch.tensor([0, 10, 999])
    np.testing.assert_array_equal(ORDINARY.alpha(t), ORDINARY.alpha(t.numpy()))


def test_flow_model_time_is_scaled():
    assert FLOW.model_time(0.5) == 500.0
    assert ORDINARY.model_time(37.0) == 37.0
    seen = []

    def network(x, t):
        seen.append(t)
        return x

    adapt(network, FLOW, "flow_prediction")(np.ones((1, 2)), 0.25)
    assert seen == [250.0]


@pytest.mark.parametrize("t", [1000, 999.5, float("nan"), np.array([3.0, 1000.0])])
def test_times_past_the_end_are_refused(t):
    with pytest.raises(UsageError, match="past the schedule's end"):
        ORDINARY.alpha(t)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "scaled_linaer"}, "did you mean scaled_linear"),
        ({"name": "linear", "beta_start": 0.1, "beta_end": 0.01}, "make no schedule"),
        ({"name": "linear", "num_train_timesteps": 1}, "num_train_timesteps is 1"),
    ],
)
def test_bad_schedules_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_schedule(**arguments)


@pytest.mark.parametrize("table", [[0.9], [0.5, 0.9], [1.0, 0.5], [0.5, -0.1], [[0.9, 0.5]]])
def test_bad_tables_are_refused(table):
    with pytest.raises(UsageError, match="schedule table"):
        DiscreteSchedule(np.array(table))


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_bad_shifts_are_refused(shift):
    with pytest.raises(UsageError, match="shift is"):
        FlowSchedule(shift)


def test_epsilon_at_zero_terminal_snr_is_refused():
    x = np.ones((2, 3))
    with pytest.raises(UsageError, match="epsilon prediction has no x0 where alpha is 0"):
        to_prediction(x, x, np.array([5.0, 999.0]), ZERO_SNR, "epsilon")
    v = to_prediction(x, 2 * x, 999.0, ZERO_SNR, "v_prediction")
    np.testing.assert_array_equal(v.x0, -x)
    np.testing.assert_array_equal(v.eps, 2 * x)


def test_targets():
    x0, eps = np.full((1, 1), 2.0), np.full((1, 1), 3.0)
    a, s = ORDINARY.alpha(300), ORDINARY.sigma(300)
    values = {
        name: target(x0, eps, 300, ORDINARY, name)[0, 0]
        for name in ("epsilon", "sample", "v_prediction", "flow_prediction")
    }
    assert values == {
        "epsilon": 3.0,
        "sample": 2.0,
        "v_prediction": a * 3.0 - s * 2.0,
        "flow_prediction": 1.0,
    }
    with pytest.raises(UsageError, match="did you mean epsilon"):
        target(x0, eps, 300, ORDINARY, "epsilno")
    with pytest.raises(UsageError, match="did you mean v_prediction"):
        to_prediction(x0, eps, 300, ORDINARY, "v_predicton")
    with pytest.raises(UsageError, match="not known"):
        adapt(lambda x, t: x, ORDINARY, "velocity")
    p = Prediction(x0, eps)
    assert from_prediction(p, 300, ORDINARY, "sample") is x0


TRAILING = {
    1: [999],
    2: [999, 499],
    4: [999, 749, 499, 249],
    8: [999, 874, 749, 624, 499, 374, 249, 124],
}


@pytest.mark.parametrize("n", TRAILING)
def test_trailing_grids(n):
    assert make_grid(ORDINARY, "trailing", n)[:-1].tolist() == TRAILING[n]


def test_trailing_32_rounds_ties_to_even():
    assert make_grid(ORDINARY, "trailing", 32)[:9].tolist() == [999, 968, 937, 905, 874, 843, 811, 780, 749]


def test_other_grids():
    assert make_grid(ORDINARY, "leading", 4).tolist() == [750, 500, 250, 0, -1]
    assert make_grid(ORDINARY, "leading", 4, steps_offset=1).tolist() == [751, 501, 251, 1, -1]
    assert make_grid(ORDINARY, "linspace", 4).tolist() == [999, 666, 333, 0, -1]
    assert make_grid(ORDINARY, "sgm_uniform", 4).tolist() == [999, 749.25, 499.5, 249.75, -1]
    assert make_grid(ORDINARY, "trailing", 1, start=399).tolist() == [399, -1]
    assert make_grid(ORDINARY, "explicit", 2, explicit=[999, 10.5]).tolist() == [999, 10.5, -1]
    assert make_grid(FlowSchedule(), "trailing", 4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert make_grid(FLOW, "trailing", 2).tolist() == [1.0, 0.75, 0.0]
    # The shift of a flow, on a table: u = 1, 1/2 -> 1, 3/4.
    assert make_grid(ORDINARY, "shifted", 2, shift=3.0).tolist() == [999, 749, -1]
    zero = make_grid(ZERO_SNR, "karras", 10)
    assert zero[0] == 999
    assert ZERO_SNR.finite_terminal().ratio(zero[1]) > 100


@pytest.mark.parametrize(
    ("spacing", "n", "options", "message"),
    [
        ("trailing", 0, {}, "steps is 0"),
        ("trailing", 1001, {}, "1000 timesteps at most"),
        ("trialing", 4, {}, "did you mean trailing"),
        ("explicit", 2, {}, "explicit"),
        ("trailing", 2, {"explicit": [999, 1]}, "explicit"),
        ("explicit", 3, {"explicit": [999, 1]}, "2 explicit timesteps for 3 steps"),
        ("explicit", 2, {"explicit": [1, 999]}, "not falling"),
        ("explicit", 2, {"explicit": [999, 999]}, "not falling"),
        ("explicit", 2, {"explicit": [1000, 1]}, "not falling"),
        ("explicit", 2, {"explicit": [999, float("nan")]}, "not falling"),
        ("trailing", 2, {"start": 1000}, "start timestep is 1000"),
        ("leading", 1, {"steps_offset": 1000}, "goes past 999"),
        ("lcm", 51, {}, "lcm spacing picks from 50"),
        ("shifted", 4, {"shift": 0.0}, "shift is 0.0"),
    ],
)
def test_bad_grids_are_refused(spacing, n, options, message):
    with pytest.raises(UsageError, match=message):
        make_grid(ORDINARY, spacing, n, **options)


@pytest.mark.parametrize(
    ("strength", "message"),
    [(0.0, "leaves none"), (0.1, "leaves none"), (1.1, "strength is 1.1"), (float("nan"), "nan")],
)
def test_bad_strengths_are_refused(strength, message):
    with pytest.raises(UsageError, match=message):
        truncate_for_strength(make_grid(ORDINARY, "trailing", 5), strength)


@pytest.mark.parametrize(
    ("kind", "prediction_type", "options", "message"),
    [
        ("min_snrr", "epsilon", {}, "did you mean min_snr"),
        ("unit", "eps", {}, "not known"),
        ("min_snr", "epsilon", {"gamma": 0.0}, "gamma 0.0"),
        ("edm", "epsilon", {}, "not finite"),
    ],
)
def test_bad_weightings_are_refused(kind, prediction_type, options, message):
    with pytest.raises(UsageError, match=message):
        weight(kind, 999.0, ZERO_SNR, prediction_type, **options)


def test_epsilon_weights_at_zero_terminal_snr_take_their_limit():
    assert weight("min_snr", 999.0, ZERO_SNR, "epsilon").tolist() == [1.0]
    assert weight("snr", 999.0, ZERO_SNR, "epsilon").tolist() == [1.0]
