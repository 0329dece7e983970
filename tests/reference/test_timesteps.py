"""Timestep grids against diffusers' set_timesteps."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
)

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.noise import batch_noise
from fewstep.diffusion.prediction import adapt
from fewstep.diffusion.sampler import sample
from fewstep.diffusion.schedule import FlowSchedule, make_schedule
from fewstep.diffusion.timesteps import make_grid, truncate_for_strength

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULE = make_schedule("scaled_linear")


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_integer_spacings_equal_diffusers_at_every_step_count(spacing):
    scheduler = DDIMScheduler(**SD, timestep_spacing=spacing)
    for n in range(2 if spacing == "linspace" else 1, 1001):
        scheduler.set_timesteps(n)
        # numpy's arange gives one value too many at some step counts where 1000 / n is not exact.
        theirs = scheduler.timesteps.numpy()[:n]
        np.testing.assert_array_equal(make_grid(SCHEDULE, spacing, n)[:-1], theirs, err_msg=str(n))


def test_leading_offset_equals_diffusers():
    scheduler = DDIMScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(50)
    np.testing.assert_array_equal(
        make_grid(SCHEDULE, "leading", 50, steps_offset=1)[:-1], scheduler.timesteps
    )


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("n", [2, 7, 30])
def test_sigma_spacings_equal_diffusers(spacing, n):
    scheduler = EulerDiscreteScheduler(**SD, timestep_spacing="linspace", **{f"use_{spacing}_sigmas": True})
    scheduler.set_timesteps(n)
    grid = make_grid(SCHEDULE, spacing, n)
    np.testing.assert_allclose(SCHEDULE.ratio(grid), scheduler.sigmas.numpy(), rtol=2e-5)
    np.testing.assert_allclose(grid[:-1], scheduler.timesteps.numpy(), atol=0.02)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_lcm_spacing_equals_diffusers(n):
    scheduler = LCMScheduler()
    scheduler.set_timesteps(n)
    np.testing.assert_array_equal(make_grid(SCHEDULE, "lcm", n)[:-1], scheduler.timesteps.numpy())


def test_lcm_four_steps_are_not_trailing():
    assert make_grid(SCHEDULE, "lcm", 4)[:-1].tolist() == [999, 759, 499, 259]


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_linspace_equals_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(12)
    np.testing.assert_allclose(
        make_grid(FlowSchedule(shift), "linspace", 12), scheduler.sigmas.numpy(), atol=1e-6
    )


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_flow_sigma_spacings_equal_diffusers(name):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, **{f"use_{name}_sigmas": True})
    scheduler.set_timesteps(12)
    np.testing.assert_allclose(make_grid(FlowSchedule(3.0), name, 12), scheduler.sigmas.numpy(), atol=2e-6)


@pytest.mark.parametrize("strength", [0.04, 0.3, 0.5, 0.75, 0.99, 1.0])
def test_strength_equals_diffusers_img2img(strength):
    pipeline = StableDiffusionImg2ImgPipeline.__new__(StableDiffusionImg2ImgPipeline)
    scheduler = DDIMScheduler(**SD, timestep_spacing="trailing")
    scheduler.set_timesteps(25)
    object.__setattr__(pipeline, "scheduler", scheduler)
    theirs, count = pipeline.get_timesteps(25, strength, "cpu")
    ours = truncate_for_strength(make_grid(SCHEDULE, "trailing", 25), strength)
    np.testing.assert_array_equal(ours[:-1], theirs.numpy())
    assert len(ours) == count + 1


def bundled_contract(**changes):
    fields = {
        "base_family": "fewstep-emoji",
        "prediction_type": "v_prediction",
        "schedule": ScheduleSpec(rescale_zero_terminal_snr=True),
        "native_sizes": ((128, 128),),
        **changes,
    }
    return SamplingContract(**fields)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20, 25, 40, 50])
def test_plain_diffusers_draws_the_same_from_the_scheduler_config(steps):
    contract = bundled_contract()
    config = contract.scheduler_config()
    assert config["_class_name"] == "DDIMScheduler"
    scheduler = DDIMScheduler.from_config(config)
    scheduler.set_timesteps(steps)
    noise = batch_noise(7, 2, (8, 16, 16))

    def network(x, t):
        return torch.tanh(torch.roll(x, 1, dims=-1) - 0.5 * x) + float(t) / 5000

    x = torch.from_numpy(noise) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    schedule = contract.make_schedule()
    ours = sample(
        adapt(lambda y, t: network(torch.from_numpy(y), t).numpy(), schedule, contract.prediction_type),
        noise,
        contract.grid(steps),
        contract.make_solver(),
        schedule=schedule,
    )
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, x.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("solver", "spacing"),
    [
        ("ddpm", "trailing"),
        ("euler", "karras"),
        ("euler_a", "trailing"),
        ("dpmpp_2m", "exponential"),
        ("dpmpp_2m_sde", "trailing"),
        ("unipc", "trailing"),
        ("lcm", "lcm"),
        ("tcd", "lcm"),
    ],
)
def test_every_scheduler_config_builds_without_unused_keys(solver, spacing):
    import diffusers

    config = bundled_contract(solver=solver, spacing=spacing).scheduler_config()
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(10)
    for key, value in config.items():
        if key != "_class_name" and key in scheduler.config:
            assert scheduler.config[key] == value, key
    expected = set(config) - set(scheduler.config) - {"_class_name"}
    assert expected == set(), f"keys that the scheduler does not know: {expected}"
