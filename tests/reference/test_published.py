"""Contracts of published checkpoints against the diffusers schedulers that their authors draw with.

The weights cannot be had here, so nothing is drawn with them: the times are compared at every allowed step
count, and whole trajectories with a linear function in the network's place.
"""

from __future__ import annotations

import itertools

import diffusers
import numpy as np
import pytest
import torch

from fewstep.diffusion.prediction import adapt
from fewstep.diffusion.published import find, published

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

ROWS = published()
KEYS = [row.key for row in ROWS]
SHAPE = (2, 4, 6, 6)
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIXART = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
TRAILING = {"timestep_spacing": "trailing"}

# What authors hand to their scheduler instead of a number of steps.
EXPLICIT = {
    "dmd2-sdxl-4step-unet": [999, 749, 499, 249],
    "dmd2-sdxl-4step-lora": [999, 749, 499, 249],
    "dmd2-sdxl-1step-unet": [399],
    "hyper-sdxl-1step-unet": [800],
    "hyper-sdxl-1step-unet-comfyui": [800],
}
# Every 20th of 1000 from the top, as PCM's own schedulers for SD3 pick them; before the shift.
PCM_SIGMAS = {2: [1.0, 0.5], 4: [1.0, 0.76, 0.5, 0.26]}
SHIFT = {"pcm-sd3-deterministic-2step-shift1": 1.0, "pcm-sd3-deterministic-4step-shift1": 1.0}


def counts(row):
    return row.contract.allowed_steps or (1, 2, 4, 8, 50)


def scheduler_of(row, steps):
    """The authors' scheduler, ready for that many steps."""
    make = getattr(diffusers, row.scheduler)
    if row.scheduler.startswith("FlowMatch"):
        scheduler = make(shift=SHIFT.get(row.key, 3.0))
        if row.key.startswith("pcm"):
            scheduler.set_timesteps(sigmas=PCM_SIGMAS[steps])
        else:
            scheduler.set_timesteps(steps)
        return scheduler
    options = {**(PIXART if row.key == "flash-pixart" else SD)}
    options["prediction_type"] = "sample" if row.key.startswith("sdxl-lightning-1step") else "epsilon"
    if row.scheduler in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        scheduler = make(**options, **TRAILING)
    elif row.scheduler == "DDIMScheduler":
        scheduler = make(**options, **TRAILING, clip_sample=False)
    elif row.key.startswith("flash"):  # trailing spacing as LCMScheduler can be told it; see below
        scheduler = make(**options, original_inference_steps=1000)
    else:
        scheduler = make(**options)
    if row.key in EXPLICIT:
        scheduler.set_timesteps(timesteps=EXPLICIT[row.key])
    else:
        scheduler.set_timesteps(steps)
    return scheduler


def times_of(row, scheduler):
    flow = row.scheduler.startswith("FlowMatch")
    return (scheduler.sigmas[:-1] if flow else scheduler.timesteps).double().numpy()


@pytest.mark.parametrize("key", KEYS)
def test_times_equal_the_authors_scheduler(key):
    row = find(key)
    for steps in counts(row):
        ours = row.contract.grid(steps)
        np.testing.assert_allclose(ours[:-1], times_of(row, scheduler_of(row, steps)), atol=1e-6)
        assert ours[-1] == row.contract.make_schedule().clean


def network(x, t):
    """Linear in the sample, with the time as an offset."""
    return 0.3 * x - 0.2 * torch.roll(x, 1, dims=-1) + 0.1 * float(t) / 1000.0


def noise(index):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + index))


def theirs(row, scheduler, x):
    for index, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if row.scheduler.startswith("Euler") else x
        options = {}
        if row.scheduler == "TCDScheduler":
            options["eta"] = 1.0 if row.key.startswith("hyper") else 0.3
        if row.scheduler not in ("DDIMScheduler", "EulerDiscreteScheduler"):
            options["generator"] = torch.Generator().manual_seed(100 + index)
        x = scheduler.step(network(scaled, t), t, x, **options).prev_sample
    return x


def ours(row, steps, x, *, end=None):
    contract = row.contract
    solver = contract.make_solver()
    schedule = solver.schedule(contract.make_schedule())
    denoise = adapt(network, schedule, contract.prediction_type)
    grid = contract.grid(steps)
    if end is not None:
        grid[-1] = end
    state = solver.start(contract.make_schedule())
    for index, (t, s) in enumerate(itertools.pairwise(grid)):
        x, state = solver.step(denoise, x, t, s, state, noise(index) if solver.stochastic else None)
    return x


@pytest.mark.parametrize("key", KEYS)
def test_trajectory_equals_the_authors_scheduler(key):
    row = find(key)
    for steps in counts(row):
        if row.scheduler == "DDIMScheduler" and 1000 % steps:
            continue  # diffusers' DDIM steps by 1000 // N there, past the times that it visits; see below
        scheduler = scheduler_of(row, steps)
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        # Euler keeps x / alpha. Not init_noise_sigma: that starts from sigma x, 0.998 x.
        ratio = row.scheduler.startswith("Euler")
        start = x / row.contract.make_schedule().alpha(999.0) if ratio else x
        # diffusers' TCD ends at table entry 0, we at clean data.
        end = 0.0 if row.scheduler == "TCDScheduler" else None
        expected = theirs(row, scheduler, start)
        error = (ours(row, steps, x, end=end) - expected).abs().max() / expected.abs().max()
        assert float(error) < 1e-5, steps


@pytest.mark.parametrize("key", [row.key for row in ROWS if row.scheduler == "DDIMScheduler"])
def test_ddim_rows_equal_euler_which_goes_to_the_next_time_at_any_count(key):
    """PCM's authors name both; they are one method, and this covers 12 and 16 steps."""
    row = find(key)
    steps = row.contract.num_inference_steps
    scheduler = diffusers.EulerDiscreteScheduler(**SD, **TRAILING)
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    y = x / row.contract.make_schedule().alpha(999.0)
    for t in scheduler.timesteps:
        y = scheduler.step(network(scheduler.scale_model_input(y, t), t), t, y).prev_sample
    assert float((ours(row, steps, x) - y).abs().max() / y.abs().max()) < 1e-5


@pytest.mark.parametrize("key", [key for key in KEYS if key.startswith("sdxl-lightning")])
def test_lightning_draws_the_same_by_ddim(key):
    row = find(key)
    scheduler = diffusers.DDIMScheduler(
        **SD, **TRAILING, clip_sample=False, prediction_type=row.contract.prediction_type
    )
    steps = row.contract.num_inference_steps
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    y = x
    for t in scheduler.timesteps:
        y = scheduler.step(network(y, t), t, y).prev_sample
    assert float((ours(row, steps, x) - y).abs().max() / y.abs().max()) < 1e-5


def test_lcm_scheduler_ignores_the_spacing_that_flash_diffusions_authors_ask_for():
    """Why our times are not those of the authors' own program: when this fails, say so in the guide."""
    scheduler = diffusers.LCMScheduler(**SD, **TRAILING)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]
    assert find("flash-sdxl").contract.grid()[:-1].tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize("key", KEYS)
def test_plain_diffusers_visits_the_same_times_from_the_scheduler_config(key):
    row = find(key)
    config = row.contract.scheduler_config()
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    assert type(scheduler).__name__ == row.scheduler
    if row.contract.timesteps:
        return  # an argument of diffusers' pipelines, not of the configuration
    scheduler.set_timesteps(row.contract.num_inference_steps)
    np.testing.assert_allclose(row.contract.grid()[:-1], times_of(row, scheduler), atol=1e-6)
