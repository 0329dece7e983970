"""The sampling contract: round trip, strict reading, and what it builds."""

import json

import numpy as np
import pytest

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.errors import CheckpointError, UsageError


def contract(**changes):
    fields = {
        "base_family": "fewstep-emoji",
        "prediction_type": "v_prediction",
        "schedule": ScheduleSpec(rescale_zero_terminal_snr=True),
        "guidance_scale": 3.0,
        "guidance_rescale": 0.7,
        "native_sizes": ((128, 128),),
        **changes,
    }
    return SamplingContract(**fields)


def edited(**changes):
    data = json.loads(contract().to_json())
    data.update(changes)
    return json.dumps(data)


def test_the_bundled_models_contract():
    bundled = contract()
    assert bundled.make_schedule().zero_terminal_snr
    assert bundled.make_solver().name == "ddim"
    grid = bundled.grid()
    assert len(grid) == 26
    assert grid[:3].tolist() == [999, 959, 919]
    assert bundled.scheduler_config() == {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "steps_offset": 0,
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "set_alpha_to_one": True,
        "rescale_betas_zero_snr": True,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"eta": 0.5},
        {"solver": "tcd", "gamma": 0.3, "spacing": "lcm", "num_inference_steps": 4},
        {"solver": "lcm", "boundary_scaling": 0.0, "timesteps": {4: (999.0, 749.0, 499.0, 249.0)}},
        {"allowed_steps": (1, 2, 4, 8), "num_inference_steps": 4, "guidance": "off", "guidance_scale": 1.0},
        {"guidance_range": (1.0, 8.0), "guidance_interval": (0.2, 5.0)},
        {"start_timestep": 800.0, "base_hash": "ab" * 32, "negative_prompt_effective": False},
        {
            "schedule": ScheduleSpec(name="rectified_flow", shift=3.0),
            "prediction_type": "flow_prediction",
            "solver": "flow_euler",
        },
        {"native_sizes": ((1024, 1024), (1152, 896))},
    ],
)
def test_json_round_trip(changes):
    original = contract(**changes)
    text = original.to_json()
    assert SamplingContract.from_json(text) == original
    assert SamplingContract.from_json(text).to_json() == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidence_scale": 3.0}, "unknown key 'guidence_scale': did you mean guidance_scale"),
        ({"zzz": 1}, "unknown key 'zzz': remove it"),
        ({"schedule": {"nmae": "linear"}}, "schedule has the unknown key 'nmae': did you mean name"),
        ({"version": 2}, "version 2, this fewstep reads 1"),
        ({"num_inference_steps": "25"}, "num_inference_steps = '25'"),
        ({"num_inference_steps": True}, "num_inference_steps = True"),
        ({"num_inference_steps": None}, "num_inference_steps = None"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"prediction_type": "v"}, "prediction_type 'v' is not known"),
        ({"prediction_type": "epsilon"}, "epsilon prediction has no x0 at zero terminal SNR"),
        ({"solver": "unpic"}, "did you mean unipc"),
        ({"solver": "flow_euler"}, "flow_euler is for rectified-flow"),
        ({"spacing": "trail"}, "did you mean trailing"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"gamma": 0.3}, "ddim has no gamma"),
        ({"allowed_steps": [1, 2]}, "25 is not in allowed_steps"),
        ({"allowed_steps": ["1"]}, "give whole numbers"),
        ({"guidance_range": [1.0]}, "give two numbers"),
        ({"guidance": "off"}, "guidance is off and guidance_scale is 3.0"),
        ({"native_sizes": []}, "native_sizes"),
        ({"native_sizes": [128]}, "wrong type"),
        ({"timesteps": {"2": [1, 999]}}, "not falling"),
        ({"timesteps": {"two": [999]}}, "wrong type"),
        ({"schedule": {"name": "rectified"}}, "did you mean rectified_flow"),
    ],
)
def test_a_broken_contract_is_refused(changes, message):
    with pytest.raises(CheckpointError) as caught:
        SamplingContract.from_json(edited(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"a"'])
def test_text_that_is_no_contract_is_refused(text):
    with pytest.raises(CheckpointError):
        SamplingContract.from_json(text)


def test_a_missing_key_is_named():
    data = json.loads(contract().to_json())
    del data["base_family"]
    with pytest.raises(CheckpointError, match="base_family"):
        SamplingContract.from_json(json.dumps(data))


def test_fields_with_defaults_may_be_left_out():
    short = '{"base_family": "sd15", "native_sizes": [[512, 512]]}'
    assert SamplingContract.from_json(short) == SamplingContract(
        base_family="sd15", native_sizes=((512, 512),)
    )


def test_step_counts_that_the_weights_were_not_made_for_are_refused():
    lightning = contract(allowed_steps=(1, 4), num_inference_steps=4, method="lightning")
    assert lightning.grid()[:-1].tolist() == [999, 749, 499, 249]
    with pytest.raises(UsageError, match="steps is 3: this model was made for 1, 4"):
        lightning.grid(3)


def test_explicit_timesteps_go_before_the_spacing():
    dmd2 = contract(solver="lcm", timesteps={1: (399.0,)})
    assert dmd2.grid(1).tolist() == [399, -1]
    assert dmd2.grid(2).tolist() == [999, 499, -1]


def test_a_start_timestep_moves_the_grid():
    np.testing.assert_array_equal(contract(start_timestep=799.0).grid(4), [799, 599, 399, 199, -1])


@pytest.mark.parametrize(
    "changes",
    [{"solver": "heun"}, {"solver": "plms"}, {"spacing": "sgm_uniform"}, {"spacing": "karras"}],
)
def test_what_diffusers_cannot_do_has_no_scheduler_config(changes):
    with pytest.raises(UsageError, match="diffusers"):
        contract(**changes).scheduler_config()


def test_flow_scheduler_config():
    flow = contract(
        schedule=ScheduleSpec(name="rectified_flow", shift=3.0),
        prediction_type="flow_prediction",
        solver="flow_euler",
    )
    assert flow.scheduler_config() == {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
    }
