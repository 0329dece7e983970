"""Schedulers that a contract cannot follow, and values that are no values."""

import json

import pytest

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.scheduler_reading import from_scheduler_config
from fewstep.errors import CheckpointError, UsageError

EULER = {"_class_name": "EulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "only these can"),
        ({"_class_name": ["diffusers", "DDIMScheduler"]}, "only these can"),
        ({"trained_betas": [0.1, 0.2]}, "a table of betas"),
        ({"use_beta_sigmas": True}, "beta sigmas"),
        ({"use_flow_sigmas": True}, "flow sigmas"),
        ({"beta_schedule": "sigmoid"}, "only scaled_linear, linear, squaredcos_cap_v2"),
        ({"beta_schedule": ["linear"]}, "beta_schedule"),
        ({"timestep_spacing": "karras"}, "only leading, trailing, linspace"),
        ({"prediction_type": "noise"}, "only epsilon, v_prediction, sample"),
        ({"beta_start": "small"}, "beta_start = 'small': give a number"),
        ({"beta_end": float("nan")}, "give a number"),
        ({"beta_end": True}, "give a number"),
        ({"num_train_timesteps": 10**12}, "whole number from 2 to 100000"),
        ({"num_train_timesteps": 1000.0}, "whole number"),
        ({"steps_offset": -1}, "whole number from 0"),
        ({"rescale_betas_zero_snr": 1}, "give true or false"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, "give a fewstep.json"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
            "depends on the size",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True},
            "stochastic_sampling",
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": None}, "give a number"),
    ],
)
def test_what_cannot_be_followed_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        from_scheduler_config({**EULER, **changes})
    assert "\n" not in str(caught.value)


def test_schedulers_without_a_solver_of_ours_keep_their_schedule():
    for name in ("LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler"):
        read = from_scheduler_config({"_class_name": name, "beta_schedule": "scaled_linear"})
        assert read["solver"] is None and read["schedule"].name == "scaled_linear"
    warm = from_scheduler_config({"_class_name": "PNDMScheduler"})
    assert warm["solver"] is None  # with Runge-Kutta steps
    assert from_scheduler_config({"_class_name": "PNDMScheduler", "skip_prk_steps": True})["solver"] == "plms"


def test_the_stochastic_dpm_solver_is_told_apart():
    config = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}
    assert from_scheduler_config(config)["solver"] == "dpmpp_2m_sde"


def contract(**changes):
    return SamplingContract(base_family="test", native_sizes=((8, 8),), **changes)


def test_a_grid_belongs_to_a_solver():
    """DPM-Solver leaves out the least noise of one time more; the step count stays."""
    made = contract(solver="dpmpp_2m", spacing="leading", steps_offset=1)
    assert made.grid(4).tolist() == [801.0, 601.0, 401.0, 201.0, -1.0]
    assert made.grid(4, "ddim").tolist() == [751.0, 501.0, 251.0, 1.0, -1.0]
    assert len(contract(solver="dpmpp_2m", spacing="leading").grid(1000)) == 1001  # none is left to leave out


def test_explicit_times_are_every_solvers():
    made = contract(
        solver="dpmpp_2m", spacing="leading", timesteps={2: (900.0, 300.0)}, set_alpha_to_one=False
    )
    assert made.grid(2).tolist() == [900.0, 300.0, -1.0]
    assert made.grid(2, "ddim").tolist() == [900.0, 300.0, 0.0]


def test_new_fields_travel():
    made = contract(solver="plms", set_alpha_to_one=False, final_sigmas_type="sigma_min")
    assert SamplingContract.from_json(made.to_json()) == made
    assert json.loads(made.to_json())["set_alpha_to_one"] is False
    with pytest.raises(CheckpointError, match="did you mean sigma_min"):
        contract(final_sigmas_type="sigma_mim")


def test_too_many_steps_for_a_spacing():
    with pytest.raises(UsageError, match="1000 timesteps at most"):
        contract(spacing="leading", solver="dpmpp_2m").grid(1001)
