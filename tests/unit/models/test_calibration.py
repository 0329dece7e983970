"""What is recorded to calibrate on: the calls that drawing makes, of every step, and none of another kind."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.models.calibration import CALLS, trajectories
from fewstep.models.export_parts import split

GUIDED = SamplingContract(
    base_family="toy",
    prediction_type="v_prediction",
    schedule=ScheduleSpec(rescale_zero_terminal_snr=True),
    num_inference_steps=20,
    guidance_scale=3.0,
    native_sizes=((16, 16),),
)
STUDENT = dataclasses.replace(
    GUIDED, solver="lcm", boundary_scaling=0.0, num_inference_steps=4, allowed_steps=(1, 2, 4),
    guidance="off", guidance_scale=1.0, negative_prompt_effective=False,
)  # fmt: skip


class Toy:
    """Networks without weights, that remember how often each was run."""

    latent_channels = 2
    latent_size = 4
    scaling_factor = 1.0
    shift_factor = 0.0

    def __init__(self, contract):
        self.components = SimpleNamespace(contract=contract)
        self.runs = dict.fromkeys(("text_encoder", "denoiser", "vae_decoder"), 0)

    def tokens(self, prompts):
        return [np.array([[len(prompt)] for prompt in prompts])]

    def run(self, part, inputs):
        self.runs[part] += 1
        if part == "text_encoder":
            return inputs[0].astype(np.float32)[..., None]
        return np.tanh(inputs[0])


def times(calls):
    return [round(float(t[0])) for _, t, _ in calls]


def test_guided_calls_are_of_both_halves():
    calls = trajectories(Toy(GUIDED), ["red", "a dog"])["denoiser"]
    assert {len(x) for x, _, _ in calls} == {2}
    assert calls[0][2][:, 0, 0].tolist() == [0.0, 3.0]


def test_a_student_is_recorded_as_it_draws():
    toy = Toy(STUDENT)
    recorded = trajectories(toy, ["red", "a dog", "e"], decode=False)
    calls = recorded["denoiser"]
    assert CALLS <= len(calls) < CALLS + 7
    assert {(len(x), len(t), len(text)) for x, t, text in calls} == {(1, 1, 1)}
    assert {float(text[0, 0, 0]) for _, _, text in calls} == {3.0, 5.0, 1.0}
    counts = {time: times(calls).count(time) for time in sorted(set(times(calls)))}
    assert counts.keys() == {249, 499, 749, 999}
    assert counts[999] > counts[499] > counts[249]  # the grids of 1, 2 and 4 steps take turns
    assert toy.runs["vae_decoder"] == 0
    assert recorded["vae_decoder"] == []


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_what_is_held_out_is_of_every_step(steps):
    contract = dataclasses.replace(STUDENT, num_inference_steps=steps, allowed_steps=(steps,))
    fit, check = split(trajectories(Toy(contract), ["red", "a dog"], decode=False)["denoiser"])
    assert set(times(fit)) == set(times(check))
    assert len(check) == 24
    assert len(fit) == 72


def test_little_is_used_for_both():
    calls = [[np.zeros(1)]] * 7
    assert split(calls) == (calls, calls)
