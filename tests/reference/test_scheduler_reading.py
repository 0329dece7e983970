"""``scheduler_config.json`` read as a contract: the schedule and the times of diffusers' own scheduler."""

from __future__ import annotations

import json

import diffusers
import numpy as np
import pytest

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.scheduler_reading import FLOW_CLASSES, TABLE_CLASSES, from_scheduler_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def contract_of(config, **changes):
    fields = from_scheduler_config(config)
    fields["solver"] = fields["solver"] or "dpmpp_2m"
    return SamplingContract(base_family="test", native_sizes=((8, 8),), **fields | changes)


def saved(scheduler):
    """The file that the scheduler writes, as it is read again."""
    return json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("name", sorted(TABLE_CLASSES))
@pytest.mark.parametrize("given", [{}, SD], ids=["defaults", "sd"])
def test_the_table_is_the_schedulers_even_where_the_file_says_nothing(name, given):
    scheduler = getattr(diffusers, name)(**given)
    contract = contract_of({"_class_name": name, **given})
    table = contract.make_schedule().alphas_cumprod
    np.testing.assert_allclose(table, scheduler.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)
    # A file with every key means the same as one that leaves the defaults out.
    assert contract_of(saved(scheduler)) == contract


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "DPMSolverMultistepScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_times_are_the_schedulers(name, spacing, offset):
    further = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name)(**SD, timestep_spacing=spacing, steps_offset=offset, **further)
    contract = contract_of(saved(scheduler))
    for steps in (2, 5, 8, 20, 50):
        scheduler.set_timesteps(steps)
        # Heun and PNDM list a time once per evaluation.
        theirs = list(dict.fromkeys(scheduler.timesteps.tolist()))
        np.testing.assert_allclose(contract.grid(steps)[:-1], theirs, atol=1e-4, err_msg=str(steps))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"]
)
def test_the_first_noise_is_the_schedulers(name, spacing):
    scheduler = getattr(diffusers, name)(**SD, timestep_spacing=spacing)
    scheduler.set_timesteps(8)
    contract = contract_of(saved(scheduler))
    first = contract.grid(8)[0]
    ratio = contract.make_schedule().ratio(first)
    # diffusers keeps the sample as x / alpha.
    expected = float(scheduler.init_noise_sigma) / np.sqrt(1 + ratio**2)
    assert contract.first_noise(float(first)) == pytest.approx(expected, rel=1e-5)
    assert (expected < 0.9999) == (spacing != "leading")


def test_other_solvers_start_from_plain_noise():
    for name in ("DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        scheduler = getattr(diffusers, name)(**SD)
        contract = contract_of(saved(scheduler))
        assert scheduler.init_noise_sigma == contract.first_noise(999.0) == 1.0


@pytest.mark.parametrize("to_one", [True, False])
def test_ddim_ends_where_the_scheduler_ends(to_one):
    scheduler = diffusers.DDIMScheduler(**SD, set_alpha_to_one=to_one)
    contract = contract_of(saved(scheduler))
    end = contract.make_schedule().alpha(float(contract.grid(5)[-1]))
    assert end**2 == pytest.approx(float(scheduler.final_alpha_cumprod), rel=1e-6)
    assert (end == 1.0) == to_one
    # The same folder drawn with a solver that does not know the setting ends at clean data.
    assert contract.grid(5, "euler")[-1] == -1.0


@pytest.mark.parametrize(
    "name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_solvers_in_sigma_space_end_where_the_scheduler_ends(name, final):
    scheduler = getattr(diffusers, name)(**SD, final_sigmas_type=final, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    contract = contract_of(saved(scheduler))
    end = contract.make_schedule().ratio(float(contract.grid(5)[-1]))
    assert end == pytest.approx(float(scheduler.sigmas[-1]), abs=1e-6)
    assert (end == 0.0) == (final == "zero")


@pytest.mark.parametrize("name", sorted(FLOW_CLASSES))
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows(name, shift):
    scheduler = getattr(diffusers, name)(shift=shift)
    scheduler.set_timesteps(6)
    contract = contract_of(saved(scheduler))
    np.testing.assert_allclose(contract.grid(6), scheduler.sigmas.numpy(), atol=1e-6)
    assert contract.prediction_type == "flow_prediction"


@pytest.mark.parametrize("origin", [50, 1000])
@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_consistency_schedulers_pick_from_their_own_grid(name, origin):
    scheduler = getattr(diffusers, name)(original_inference_steps=origin)
    contract = contract_of(saved(scheduler))
    scheduler.set_timesteps(4)
    np.testing.assert_array_equal(contract.grid(4)[:-1], scheduler.timesteps.numpy())


@pytest.mark.parametrize(
    ("solver", "spacing"),
    [
        ("ddim", "trailing"),
        ("plms", "leading"),
        ("euler", "karras"),
        ("euler_a", "trailing"),
        ("heun", "linspace"),
        ("dpmpp_2m", "exponential"),
        ("dpmpp_2m_sde", "linspace"),
        ("unipc", "leading"),
        ("lcm", "lcm"),
        ("lcm", "trailing"),
        ("tcd", "lcm"),
        ("tcd", "trailing"),
    ],
)
def test_what_a_contract_writes_is_read_back(solver, spacing):
    made = SamplingContract(
        base_family="test",
        native_sizes=((8, 8),),
        solver=solver,
        spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
        set_alpha_to_one=solver != "plms",
        boundary_scaling=0.0 if (solver, spacing) == ("lcm", "trailing") else None,
    )
    read = contract_of(made.scheduler_config())
    assert (read.solver, read.spacing, read.schedule) == (solver, spacing, made.schedule)
    assert (read.steps_offset, read.set_alpha_to_one) == (made.steps_offset, made.set_alpha_to_one)
    assert read.make_solver().name == solver
    np.testing.assert_array_equal(read.grid(8), made.grid(8))
    if solver == "lcm":
        assert (read.boundary_scaling or 0.0) == (0.0 if spacing == "trailing" else 10.0)
