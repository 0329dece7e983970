"""Every method on a U-Net of the real class, with texts as conditions (T15, checks 11, 19 and 23)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import tiny_runs
import tiny_stages as tiny
import torch
from torch import Tensor

from fewstep.distillation import build
from fewstep.models.components import Components
from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import ConditionedUNet
from fewstep.models.discriminators import PairDiscriminator
from fewstep.training.state import weights_digest

GUIDED = {"guidance": [2.0, 2.0]}
PHASE = {"steps": 9, "mode_weights": [1.0, 1.0], "adversarial": 0.1, "distribution": 0.1} | GUIDED
JUDGED = {"method": "lightning", "teacher_steps": 4, "student_steps": 2, "guidance_scale": 2.0}
METHODS: dict[str, dict[str, Any]] = {
    "progressive": {
        "method": "progressive",
        "teacher_steps": 4,
        "student_steps": 2,
        "guidance_scale": 2.0,
    },
    "lightning": JUDGED | {"discriminator": {"channels": 8}},
    "lightning_renoised": JUDGED
    | {"discriminator": {"channels": 8, "conditional": False, "renoise": {}}, "distance": "perceptual"},
    "conversion": {"method": "conversion", "guidance_scale": 2.0, "guidance_rescale": 0.7},
    "lcm": {"method": "lcm", "num_steps": 10, "guidance": [2.0, 4.0]},
    "flash": {
        "method": "flash",
        "teacher_steps": 2,
        "phases": [PHASE],
        "discriminator": {"channels": 8},
        "distance": "perceptual",
    },
    "dmd2": {
        "method": "dmd2",
        "timesteps": [999.0, 499.0],
        "guidance_scale": 2.0,
        "discriminator": {"channels": 8},
    },
}


class Latents(tiny_runs.Latents):
    def __init__(self) -> None:
        super().__init__(shape=(4, 8, 8))


def run_of(components: Components, method: dict[str, Any], mode: str = "full", **runtime: Any) -> tiny.Run:
    network = ConditionedUNet(copy.deepcopy(components.denoiser))
    base = tiny.base(network, Latents(), native_sizes=((16, 16),))
    student = {"mode": mode, "lora": {"rank": 2}}
    recipe = tiny.recipe(
        {"methods": [method], "student": student, "optimiser": {"learning_rate": 1e-3}},
        data={"source": "points", "batch_size": 2},
        runtime=tiny.RECIPE["runtime"] | runtime,
    )
    return tiny.Run(build.build_stage(recipe, 0, base, []), recipe, Latents())


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", METHODS)
def test_t15_every_method_trains_a_unet_and_leaves_its_teacher(
    tiny_components: Components, kind: str, mode: str
) -> None:
    run = run_of(tiny_components, METHODS[kind], mode)
    teacher: Any = run.task.teacher
    frozen = {k: p for k, p in teacher.module.named_parameters() if "lora_" not in k}
    kept = {k: p.detach().clone() for k, p in frozen.items()}
    before = {name: weights_digest(state.role.weights) for name, state in run.state.roles.items()}
    run.step(2)
    assert all(p.grad is None and torch.equal(p, kept[k]) for k, p in frozen.items())
    for name, state in run.state.roles.items():
        assert state.guard.skipped == 0
        assert (weights_digest(state.role.weights) != before[name]) == (name != "teacher")


def test_check_14_perceptual_distances_pass_gradients_through_the_teacher(
    tiny_components: Components,
) -> None:
    method = JUDGED | {"distance": "perceptual"}
    for mode in ("full", "lora"):
        run = run_of(tiny_components, method, mode)
        _, batch = run.batch()
        student = run.state.roles["student"].role.weights
        with torch.no_grad():  # at the beginning the student is as the teacher, but for guidance
            for parameter in student.parameters():
                parameter.add_(0.01)
        found = run.gradients("student", batch)
        assert tiny.live(found, "student") and not tiny.live(found, "teacher")


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 5), (16, 6)])
@pytest.mark.parametrize("conditional", [True, False])
def test_check_19_one_logit_for_odd_and_oblong_latents(
    tiny_components: Components, size: tuple[int, int], conditional: bool
) -> None:
    method = JUDGED | {"discriminator": {"channels": 8, "conditional": conditional}}
    run = run_of(tiny_components, method)
    network = run.state.roles["discriminator"].role.module
    assert isinstance(network, PairDiscriminator)
    end, start, time = torch.randn(2, 4, *size), torch.randn(2, 4, *size), torch.tensor([250.0, 750.0])
    text = torch.randn(2, 3, 8)
    begin = (start, time) if conditional else None
    (logits,) = network([end], time, Conditions(text=text), begin)
    assert logits.shape == (2, 1) and bool(logits.isfinite().all())
    assert not torch.equal(logits, network([end], time, Conditions(text=-text), begin)[0])


@pytest.mark.parametrize("tap", ["down_blocks.0", "down_blocks.1.attentions.0", "up_blocks.0"])
def test_any_part_of_the_network_can_be_looked_at(tiny_components: Components, tap: str) -> None:
    """What lies behind the tap is never reached: no gradient, and nothing that a checkpoint could miss."""
    run = run_of(tiny_components, JUDGED | {"discriminator": {"channels": 8, "tap": tap}})
    before = weights_digest(run.state.roles["discriminator"].role.module)
    run.step(2)
    assert weights_digest(run.state.roles["discriminator"].role.module) != before
    assert run.state.roles["discriminator"].guard.skipped == 0
    assert {"student", "discriminator", "discriminator.optimiser"} <= run.state.tensors().keys()


def test_discriminators_keep_no_weights_behind_the_middle(tiny_components: Components) -> None:
    run = run_of(tiny_components, METHODS["lightning"])
    names = [name for name, _ in run.state.roles["discriminator"].role.module.named_parameters()]
    assert any("mid_block" in name for name in names)
    assert not any("up_blocks" in name or "conv_out" in name for name in names)
    _, batch = run.batch()
    found = run.gradients("discriminator", batch)
    assert [k for k, v in found.items() if k.startswith("discriminator/") and v is None] == []


@pytest.mark.parametrize("kind", ["progressive", "lightning", "flash"])
def test_check_23_gradient_checkpointing_gives_the_same_gradients(
    tiny_components: Components, kind: str
) -> None:
    found: list[dict[str, Tensor | None]] = []
    for on in (False, True):
        run = run_of(tiny_components, METHODS[kind], gradient_checkpointing=on)
        _, batch = run.batch()
        found.append(run.gradients("student", batch))
        inner = run.state.roles["student"].role.weights
        assert bool(inner.is_gradient_checkpointing) == on
    plain, again = found
    for key, value in plain.items():
        other = again[key]
        assert (value is None) == (other is None)
        if value is not None and other is not None:
            torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6)


def test_check_11_texts_are_left_out_in_the_unguided_half(tiny_components: Components) -> None:
    run = run_of(tiny_components, METHODS["conversion"])
    _, batch = run.batch()
    told = tiny.batch_context(run, batch)
    seen: list[Conditions] = []
    teacher: Any = run.task.teacher
    teacher.module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    t = np.full(2, 500.0)
    told.teacher.denoiser(told.conditions, told.null, 3.0)(told.x0, t)
    (both,) = seen
    assert both.text is not None and both.text.shape[0] == 4
    assert torch.equal(both.text[:2], batch["uncond"].expand(2, -1, -1))
    assert torch.equal(both.text[2:], batch["text"])
