"""Properties of conversions, schedules, grids and noise that hold for all inputs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.noise import batch_noise, image_noise
from fewstep.diffusion.noise_levels import sample_t
from fewstep.diffusion.prediction import PREDICTION_TYPES, Prediction, from_prediction, to_prediction
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.diffusion.timesteps import SPACINGS, make_grid, truncate_for_strength
from fewstep.errors import UsageError

SCHEDULES = {
    "scaled_linear": make_schedule("scaled_linear"),
    "linear": make_schedule("linear", beta_start=0.0001, beta_end=0.02),
    "cosine": make_schedule("cosine"),
    "zero_snr": make_schedule("scaled_linear", rescale_zero_terminal_snr=True),
    "flow": FlowSchedule(),
    "flow shift 3": FlowSchedule(3.0),
}
names = st.sampled_from(sorted(SCHEDULES))
fractions = st.floats(0.0, 1.0)


def time_of(schedule, u):
    """A time from the least noise (u = 0) to the most (u = 1), never the clean end."""
    return 1e-3 + u * (1.0 - 1e-3) if isinstance(schedule, FlowSchedule) else u * schedule.terminal


@given(names, fractions, st.sampled_from(PREDICTION_TYPES), st.integers(0, 2**32))
def test_prediction_types_round_trip(name, u, prediction_type, seed):
    schedule = SCHEDULES[name]
    t = time_of(schedule, u)
    if prediction_type == "epsilon" and schedule.alpha(t) < 1e-3:
        return  # refused, or divides by nearly 0
    x0, eps = np.random.default_rng(seed).standard_normal((2, 1, 3))
    x_t = schedule.forward(x0, eps, t)
    raw = from_prediction(Prediction(x0, eps), t, schedule, prediction_type)
    back = to_prediction(raw, x_t, t, schedule, prediction_type)
    # The two divisions, by alpha for epsilon and by sigma for sample, amplify rounding of float64 at most so.
    gain = 1.0 / min(schedule.alpha(t) if prediction_type == "epsilon" else 1.0, schedule.sigma(t))
    np.testing.assert_allclose(back.x0, x0, atol=1e-14 * gain * 50)
    np.testing.assert_allclose(back.eps, eps, atol=1e-14 * gain * 50)


@given(names, fractions, fractions, st.integers(0, 2**32))
def test_any_two_types_give_the_same_prediction(name, u, v, seed):
    # From a raw output of one type to another and back: nothing is lost on the way, t=999 of Stable Diffusion
    # included.
    schedule = SCHEDULES[name]
    t = np.array([time_of(schedule, u), time_of(schedule, v)])
    if np.min(schedule.alpha(t)) < 1e-3:
        return
    raw = np.random.default_rng(seed).standard_normal((2, 3))
    x_t = np.random.default_rng(seed + 1).standard_normal((2, 3))
    for first, second in itertools.permutations(PREDICTION_TYPES, 2):
        p = to_prediction(raw, x_t, t, schedule, first)
        other = from_prediction(p, t, schedule, second)
        q = to_prediction(other, x_t, t, schedule, second)
        np.testing.assert_allclose(from_prediction(q, t, schedule, first), raw, rtol=1e-6, atol=1e-6)


@given(names, fractions)
def test_the_estimates_make_x_t_again(name, u):
    schedule = SCHEDULES[name]
    t = time_of(schedule, u)
    raw, x_t = np.random.default_rng(0).standard_normal((2, 1, 5))
    for prediction_type in PREDICTION_TYPES:
        if prediction_type == "epsilon" and schedule.alpha(t) < 1e-3:
            continue
        p = to_prediction(raw, x_t, t, schedule, prediction_type)
        np.testing.assert_allclose(schedule.forward(p.x0, p.eps, t), x_t, atol=1e-10)


@given(names, fractions, fractions)
def test_noise_rises_and_signal_falls_with_time(name, u, v):
    schedule = SCHEDULES[name]
    low, high = sorted((time_of(schedule, u), time_of(schedule, v)))
    # Up to rounding: entries are looked up, positions between them computed.
    assert schedule.sigma(low) <= schedule.sigma(high) + 1e-14
    assert schedule.alpha(low) >= schedule.alpha(high) - 1e-14
    assert schedule.log_snr(low) >= schedule.log_snr(high) - 1e-12
    if not isinstance(schedule, FlowSchedule):
        assert schedule.alpha(low) ** 2 + schedule.sigma(low) ** 2 == pytest.approx(1.0, abs=1e-12)


@given(names, fractions)
def test_ratio_and_time_are_inverse(name, u):
    schedule = SCHEDULES[name].finite_terminal()
    t = time_of(schedule, u)
    if schedule.alpha(t) < 1e-9:
        return
    assert schedule.time_of_ratio(schedule.ratio(t)) == pytest.approx(
        t, abs=1e-6 * schedule.num_train_timesteps
    )


@given(names, st.lists(fractions, min_size=1, max_size=5))
def test_many_times_at_once_equal_one_at_a_time(name, us):
    schedule = SCHEDULES[name]
    t = np.array([time_of(schedule, u) for u in us] + [schedule.clean])
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.ratio):
        np.testing.assert_array_equal(method(t), [method(float(each)) for each in t])


@given(names, fractions, fractions, fractions)
def test_noising_composes(name, u, v, w):
    # Variances add: s -> t -> r leaves what s -> r leaves.
    schedule = SCHEDULES[name]
    s, t, r = sorted(time_of(schedule, each) for each in (u, v, w))
    if schedule.alpha(t) == 0.0:
        return
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    kept = schedule.forward_between(schedule.forward_between(one, zero, s, t), zero, t, r)
    assert kept[0, 0] == pytest.approx(schedule.forward_between(one, zero, s, r)[0, 0], abs=1e-12)
    first = schedule.forward_between(schedule.forward_between(zero, one, s, t), zero, t, r)[0, 0]
    second = schedule.forward_between(zero, one, t, r)[0, 0]
    direct = schedule.forward_between(zero, one, s, r)[0, 0]
    assert first**2 + second**2 == pytest.approx(direct**2, abs=1e-12)


ANY_SPACING = [spacing for spacing in SPACINGS if spacing != "explicit"]


@given(names, st.sampled_from(ANY_SPACING), st.integers(1, 50))
def test_grids_fall_from_the_schedule_to_its_clean_end(name, spacing, n):
    schedule = SCHEDULES[name]
    if isinstance(schedule, FlowSchedule) and spacing in ("leading", "lcm"):
        with pytest.raises(UsageError):
            make_grid(schedule, spacing, n)
        return
    grid = make_grid(schedule, spacing, n)
    assert grid.dtype == np.float64
    assert grid.shape == (n + 1,)
    assert np.all(np.diff(grid) < 0)
    assert grid[-1] == schedule.clean
    assert grid[0] <= schedule.terminal
    assert schedule.sigma(grid[-1]) == 0.0
    if spacing != "leading":
        assert grid[0] == pytest.approx(schedule.terminal, abs=1e-9)


@given(names, st.integers(1, 60), st.floats(0.02, 1.0))
def test_strength_keeps_the_tail(name, n, strength):
    grid = make_grid(SCHEDULES[name], "trailing", n)
    if int(n * strength) < 1:
        with pytest.raises(UsageError):
            truncate_for_strength(grid, strength)
        return
    kept = truncate_for_strength(grid, strength)
    assert len(kept) == int(n * strength) + 1
    np.testing.assert_array_equal(kept, grid[-len(kept) :])


@pytest.mark.parametrize("parent", [32, 8, 4, 2])
def test_trailing_grids_of_distillation_stages_are_nested(parent):
    schedule = SCHEDULES["scaled_linear"]
    coarse = {32: 8, 8: 4, 4: 2, 2: 1}[parent]
    assert set(make_grid(schedule, "trailing", coarse)) <= set(make_grid(schedule, "trailing", parent))


@given(st.integers(0, 2**64 - 1), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=30)
def test_noise_of_an_image_does_not_depend_on_its_batch(seed, n, width):
    batch = batch_noise(seed, n, (2, width))
    assert batch.shape == (n, 2, width)
    assert batch.dtype == np.float32
    for i in range(n):
        np.testing.assert_array_equal(batch[i], image_noise(seed + i, (2, width)))


@given(
    names,
    st.sampled_from(["uniform", "logit_normal", "phased_mixture", "discrete"]),
    st.integers(0, 100),
    st.integers(1, 64),
)
def test_training_times_are_in_range_and_reproducible(name, distribution, seed, n):
    schedule = SCHEDULES[name]
    flow = isinstance(schedule, FlowSchedule)
    options = {"times": [0.25, 1.0] if flow else [10, 999]} if distribution == "discrete" else {}
    draws = [sample_t(distribution, np.random.default_rng(seed), n, schedule, **options) for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    assert draws[0].shape == (n,)
    assert draws[0].dtype == np.float64
    assert draws[0].max() <= schedule.terminal
    assert np.all(schedule.sigma(draws[0]) > 0)
    if not flow:
        np.testing.assert_array_equal(draws[0], np.round(draws[0]))


sizes = st.tuples(st.integers(8, 1024), st.integers(8, 1024))


@given(
    st.sampled_from(["v_prediction", "sample", "flow_prediction"]),
    st.booleans(),
    st.sampled_from(["ddim", "euler", "dpmpp_2m", "unipc"]),
    st.integers(1, 50),
    st.floats(1.0, 20.0),
    st.floats(0.0, 1.0),
    st.lists(sizes, min_size=1, max_size=3).map(tuple),
    st.none() | st.text(max_size=5),
)
def test_contract_round_trips_through_json(prediction, rescale, solver, steps, scale, phi, native, base_hash):
    contract = SamplingContract(
        base_family="fewstep-emoji",
        base_hash=base_hash,
        prediction_type=prediction,
        schedule=ScheduleSpec(rescale_zero_terminal_snr=rescale),
        solver=solver,
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_rescale=phi,
        native_sizes=native,
        timesteps={2: (999.0, 500.5)},
    )
    assert SamplingContract.from_json(contract.to_json()) == contract
