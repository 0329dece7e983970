"""Order of convergence and exact endpoints of the solvers, on Gaussian mixtures whose denoiser is known."""

import itertools

import numpy as np
import pytest
import torch

from fewstep.diffusion.noise import solver_noise
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.diffusion.solvers import SOLVERS, get_solver
from fewstep.diffusion.timesteps import make_grid
from fewstep.diffusion.toys import GaussianMixture, gaussian, gaussian_flow, two_modes

ORDINARY = make_schedule("scaled_linear")
ZERO_SNR = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
FLOW = FlowSchedule(shift=2.0)

DETERMINISTIC = {name: solver for name, solver in SOLVERS.items() if solver.order > 0}
DETERMINISTIC["tcd with gamma 0"] = get_solver("tcd", gamma=0.0)


def log_grid(schedule, n, high=10.0, low=0.1):
    """n steps of equal length in log(sigma / alpha): smooth, so that the asymptotic order shows early."""
    return np.asarray(schedule.time_of_ratio(np.exp(np.linspace(np.log(high), np.log(low), n + 1))))


def start(schedule, n=48, seed=0, time=None):
    t = log_grid(schedule, 1)[0] if time is None else time
    return schedule.sigma(t) * np.random.default_rng(seed).standard_normal((n, 2))


def point_mass(*at):
    return GaussianMixture(np.array([at]), np.zeros(1), np.ones(1), np.zeros(1, dtype=np.int64))


def schedules_of(solver):
    return (FLOW,) if solver.flow_only else (ORDINARY, FLOW)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_against_the_exact_flow(name):
    solver = DETERMINISTIC[name]
    toy = gaussian()
    for schedule in schedules_of(solver):
        x, ends = start(schedule), log_grid(schedule, 1)
        exact = gaussian_flow(toy.means[0], toy.stds[0], x, ends[0], ends[1], schedule)
        errors = [
            np.abs(
                sample(toy.denoiser(schedule), x, log_grid(schedule, n), solver, schedule=schedule) - exact
            ).mean()
            for n in (40, 80, 160)
        ]
        for coarse, fine in itertools.pairwise(errors):
            assert np.log2(coarse / fine) == pytest.approx(solver.order, abs=0.15), (schedule, errors)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence_on_two_modes(name):
    solver = DETERMINISTIC[name]
    toy = two_modes()
    for schedule in schedules_of(solver):
        x = start(schedule)
        fine_grid = log_grid(schedule, 700)
        exact = sample(toy.denoiser(schedule), x, fine_grid, SOLVERS["unipc"], schedule=schedule)
        errors = [
            np.abs(
                sample(toy.denoiser(schedule), x, log_grid(schedule, n), solver, schedule=schedule) - exact
            ).mean()
            for n in (40, 80)
        ]
        assert np.log2(errors[0] / errors[1]) > solver.order - 0.3, (schedule, errors)


@pytest.mark.parametrize("schedule", [ORDINARY, ZERO_SNR, FLOW], ids=["ordinary", "zero_snr", "flow"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_constant_prediction_is_followed_exactly_in_any_number_of_steps(name, schedule):
    # Data at one point: x0 and eps are constant along the path, so t -> s -> r is t -> r, down to the exact
    # point.
    solver = DETERMINISTIC[name]
    if solver.flow_only and schedule is not FLOW:
        pytest.skip("for flows only")
    toy = point_mass(0.7, -0.3)
    used = solver.schedule(schedule)
    for n in (1, 2, 3, 8):
        grid = make_grid(schedule, "trailing", n)
        x = start(used, time=grid[0]) + used.alpha(grid[0]) * toy.means[0]
        result = sample(toy.denoiser(used), x, grid, solver, schedule=schedule)
        np.testing.assert_allclose(result, np.broadcast_to(toy.means[0], x.shape), atol=1e-9)
        if n > 1:
            part = sample(toy.denoiser(used), x, grid[:-1], solver, schedule=schedule)
            eps = (x - used.alpha(grid[0]) * toy.means[0]) / used.sigma(grid[0])
            np.testing.assert_allclose(part, used.forward(toy.means[0] + 0 * x, eps, grid[-2]), atol=1e-9)


def test_ddim_steps_compose_exactly_when_the_prediction_is_exact():
    toy = point_mass(0.2, 0.4)
    x = start(ORDINARY, time=999.0)
    direct = sample(toy.denoiser(ORDINARY), x, np.array([999.0, 120.0]), SOLVERS["ddim"], schedule=ORDINARY)
    halves = sample(
        toy.denoiser(ORDINARY), x, np.array([999.0, 500.0, 120.0]), SOLVERS["ddim"], schedule=ORDINARY
    )
    np.testing.assert_allclose(direct, halves, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["ddim", "ddpm", "euler", "heun", "plms", "dpmpp_2m", "unipc", "euler_a", "tcd"]
)
def test_zero_terminal_snr_starts_from_the_mean_of_the_data(name):
    # At T the best estimate is the data mean whatever the noise: nothing may blow up there.
    toy = two_modes(share=0.8)
    solver = SOLVERS[name]
    used = solver.schedule(ZERO_SNR)
    x = start(used, time=999.0)
    assert np.allclose(toy.denoiser(ZERO_SNR)(x, 999.0).x0, toy.weights @ toy.means)
    result = sample(
        toy.denoiser(used),
        x,
        make_grid(ZERO_SNR, "trailing", 40),
        solver,
        schedule=ZERO_SNR,
        noise=lambda i: np.random.default_rng(i).standard_normal(x.shape),
    )
    near = np.minimum(*(np.linalg.norm(result - mean, axis=1) for mean in toy.means))
    assert near.max() < 6 * 0.25


STOCHASTIC = ["ddpm", "euler_a", "dpmpp_2m_sde", "lcm", "tcd"]


@pytest.mark.parametrize("schedule", [ORDINARY, ZERO_SNR, FLOW], ids=["ordinary", "zero_snr", "flow"])
@pytest.mark.parametrize("name", [*STOCHASTIC, "ddim with eta 1"])
def test_stochastic_steps_keep_the_marginal(name, schedule):
    # Data at one point: x_s must be exactly N(alpha_s m, sigma_s^2) after every step, whatever the step
    # length.
    solver = get_solver("ddim", eta=1.0) if name.startswith("ddim") else SOLVERS[name]
    toy = point_mass(0.7, -0.3)
    used = solver.schedule(schedule)
    n = 20000
    grid = make_grid(schedule, "trailing", 4)
    x = start(used, n=n, time=grid[0]) + used.alpha(grid[0]) * toy.means[0]
    seen = []
    noise = solver_noise(5, 1, (n, 2))
    result = sample(
        toy.denoiser(used),
        x,
        grid,
        solver,
        schedule=schedule,
        noise=lambda i: noise(i)[0],
        on_step=lambda info: seen.append((info.t, info.x)),
    )
    for t, x_s in seen[:-1]:
        sigma = used.sigma(t)
        assert np.allclose(x_s.mean(axis=0), used.alpha(t) * toy.means[0], atol=4 * sigma / np.sqrt(n))
        assert np.allclose(x_s.std(axis=0), sigma, rtol=4 / np.sqrt(2 * n))
    # LCM's boundary scalings keep a trace of x_t in the last estimate: c_skip <= 1e-6 here.
    np.testing.assert_allclose(result, np.broadcast_to(toy.means[0], result.shape), atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "euler_a", "dpmpp_2m_sde"])
def test_stochastic_solvers_reach_the_data_distribution(name):
    toy = two_modes(share=0.7)
    solver = SOLVERS[name]
    n = 4000
    x = start(ORDINARY, n=n, time=999.0)
    rng = np.random.default_rng(1)
    # DDPM's posterior variance is the smaller of its paper's two choices: 13% too narrow at 100 steps, 3% at
    # 400.
    grid = make_grid(ORDINARY, "trailing", 400)
    result = sample(
        toy.denoiser(ORDINARY),
        x,
        grid,
        solver,
        schedule=ORDINARY,
        noise=lambda i: rng.standard_normal(x.shape),
    )
    right = result[:, 0] > 0
    # A standard error is 0.007; N(0, 1) instead of N(0.07 mean, ..) at T moves the share by less than that.
    assert right.mean() == pytest.approx(0.7, abs=0.03)
    assert result[right].mean(axis=0) == pytest.approx([1.0, 0.0], abs=0.03)
    assert result[right].std(axis=0) == pytest.approx([0.25, 0.25], rel=0.08)


@pytest.mark.parametrize(
    "other", [get_solver("ddim", eta=1.0), SOLVERS["euler_a"]], ids=["ddim eta 1", "euler_a"]
)
def test_three_names_of_one_posterior_step(other):
    toy = two_modes()
    x = start(ORDINARY, time=999.0)
    rng = np.random.default_rng(2)
    draws = rng.standard_normal((10, *x.shape))
    grid = make_grid(ORDINARY, "trailing", 10)
    results = [
        sample(toy.denoiser(ORDINARY), x, grid, solver, schedule=ORDINARY, noise=lambda i: draws[i])
        for solver in (other, SOLVERS["ddpm"])
    ]
    np.testing.assert_allclose(*results, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_time_per_sample_equals_one_by_one(name):
    # Rows with their own (t, s), one of them at the clean end, give what each row gives alone.
    solver = SOLVERS[name]
    schedule = FLOW if solver.flow_only else ORDINARY
    toy = two_modes()
    x = start(schedule, n=3)
    noise = np.random.default_rng(3).standard_normal(x.shape)
    if solver.flow_only:
        times = np.array([[0.9, 0.8, 0.7], [0.6, 0.5, 0.4], [0.3, 0.2, 0.0]])
    else:
        times = np.array([[999.0, 900.0, 800.0], [600.0, 500.0, 300.0], [200.0, 150.0, -1.0]])
    denoise = toy.denoiser(solver.schedule(schedule))
    state, together = solver.start(schedule), x
    alone, states = [x[i : i + 1] for i in range(3)], [solver.start(schedule) for _ in range(3)]
    for t, s in itertools.pairwise(times):
        together, state = solver.step(denoise, together, t, s, state, noise)
        for i in range(3):
            alone[i], states[i] = solver.step(
                denoise, alone[i], float(t[i]), float(s[i]), states[i], noise[i : i + 1]
            )
        np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
def test_steps_are_differentiable_in_torch(name):
    solver = SOLVERS[name]
    schedule = FLOW if solver.flow_only else ZERO_SNR
    toy = two_modes()
    grid = make_grid(schedule, "trailing", 3)
    used = solver.schedule(schedule)
    x = torch.from_numpy(start(used, n=2, time=grid[1])).requires_grad_(True)
    noise = torch.ones(2, 2, dtype=torch.float64)

    def run(y):
        state = solver.start(schedule)
        for t, s in itertools.pairwise(grid[1:].tolist()):
            y, state = solver.step(toy.denoiser(used), y, t, s, state, noise)
        return y

    assert torch.autograd.gradcheck(run, (x,), eps=1e-6, atol=1e-4)


EVALUATIONS = {"heun": 2 * 6 - 1, "plms": 6 + 1}


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_counted(name):
    solver = SOLVERS[name]
    schedule = FLOW if solver.flow_only else ORDINARY
    toy, calls, reported = two_modes(), [], []
    exact = toy.denoiser(solver.schedule(schedule))

    def denoise(x, t):
        calls.append(t)
        return exact(x, t)

    sample(
        denoise,
        start(schedule, n=2),
        make_grid(schedule, "trailing", 6),
        solver,
        schedule=schedule,
        noise=lambda i: np.ones((2, 2)),
        on_step=lambda info: reported.append(info.evaluations),
    )
    assert reported[-1] == len(calls) == EVALUATIONS.get(name, 6)
    assert min(calls) > schedule.clean, "the clean end must not be evaluated"
