"""Guidance of teachers and the conversion of what a student predicts: checks 11 and 12 of distillation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "distillation"))
import tiny_stages as tiny
from tiny_stages import Scored, flash_section, lcm_section, noise

from fewstep.diffusion.toys import gaussian, two_modes
from fewstep.distillation import sections, targets
from fewstep.distillation.consistency import Lcm
from fewstep.distillation.conversion import Conversion
from fewstep.distillation.dmd import Dmd
from fewstep.distillation.drawing import draw
from fewstep.distillation.flash import Flash
from fewstep.distillation.lightning import Lightning
from fewstep.distillation.progressive import Progressive
from fewstep.distillation.roles import ExactTeacher, NetworkTeacher
from fewstep.models.conditions import Conditions
from fewstep.models.mlp import MLPDenoiser

STD = 0.4
MEAN = np.array([0.5, -1.0])
ONE = gaussian((0.5, -1.0), STD)


# Check 11: guidance


class _Counting(torch.nn.Module):
    """A network of type v that notes how many rows of which class it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLPDenoiser(width=8, depth=2, classes=2)
        self.asked: list[list[int]] = []

    def forward(self, x_t: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        assert conditions.classes is not None
        self.asked.append(conditions.classes.tolist())
        output: Tensor = self.network(x_t, time, conditions)
        return output


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["progressive", "lightning", "conversion", "lcm", "flash", "dmd2"])
def test_check_11_a_scale_of_one_asks_the_teacher_once_for_the_condition_alone(
    kind: str, scale: float
) -> None:
    counting, schedule = _Counting(), tiny.ZERO_SNR
    teacher = NetworkTeacher(counting, schedule, "v_prediction")
    student = MLPDenoiser(width=8, depth=2, classes=2)
    networks: dict[str, torch.nn.Module] = {}
    steps = {"teacher_steps": 1, "student_steps": 1}
    method: Any
    if kind == "progressive":
        method = Progressive(
            sections.ProgressiveMethod(method="progressive", guidance_scale=scale, **steps), schedule
        )
    elif kind == "lightning":
        section = sections.LightningMethod(method="lightning", guidance_scale=scale, distance="l2", **steps)
        method = Lightning(section, schedule)
    elif kind == "conversion":
        method = Conversion(sections.ConversionMethod(method="conversion", guidance_scale=scale), schedule)
    elif kind == "lcm":
        method = Lcm(lcm_section(guidance=(scale, scale)), schedule)
    elif kind == "flash":
        phase = sections.FlashPhase(steps=1, mode_weights=(1.0,), guidance=(scale, scale))
        method = Flash(flash_section(phases=(phase,), teacher_steps=1), schedule)
    else:
        networks["fake_score"] = Scored(student)
        section = sections.DmdMethod(method="dmd2", timesteps=(999.0,), guidance_scale=scale)
        method = Dmd(section, schedule, networks["fake_score"])  # type: ignore[arg-type]
    x0 = noise(2).float()
    told = tiny.context(
        method,
        x0,
        student,
        teacher,
        schedule,
        student_type="v_prediction",
        conditions=Conditions(classes=torch.tensor([0, 1])),
        null=Conditions(classes=torch.tensor([2])),
        networks=networks,
    )
    method.student_loss(told)
    assert counting.asked == ([[0, 1]] if scale == 1.0 else [[2, 2, 0, 1]])


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_check_11_both_kinds_of_teacher_guide_alike(scale: float) -> None:
    """Two halves of one call of a network, against the closed form of the guided mixture."""
    toy, x = two_modes(share=0.3), noise(4)
    labels = torch.tensor([0, 1, 1, 0])
    null, told = tiny.null_of(toy), Conditions(classes=labels)
    network = NetworkTeacher(tiny.exact(toy, tiny.PLAIN), tiny.PLAIN, "sample")
    t = np.array([10.0, 300.0, 600.0, 999.0])
    ours = network.denoiser(told, null, scale)(x, t).x0
    formula = ExactTeacher(toy, tiny.PLAIN).denoiser(told, null, scale)(x, t).x0
    each = [
        toy.guided(tiny.PLAIN, int(k), scale)(x[i : i + 1], t[i]).x0[0] for i, k in enumerate(labels.tolist())
    ]
    torch.testing.assert_close(ours, formula)
    torch.testing.assert_close(ours, torch.stack(each))


def test_check_11_lcm_draws_a_scale_per_image_within_its_range() -> None:
    method = Lcm(lcm_section(guidance=(5.0, 15.0)), tiny.PLAIN)
    w = tiny.drawn(method, (2000, 2), torch.float32)["guidance"]
    assert w.min() >= 5.0 and w.max() <= 15.0
    edges = np.quantile(w, [0.01, 0.25, 0.5, 0.75, 0.99])
    np.testing.assert_allclose(edges, [5.1, 7.5, 10.0, 12.5, 14.9], atol=0.4)


def test_check_11_lcm_guides_every_image_by_its_own_scale() -> None:
    toy, w = two_modes(), np.array([1.0, 2.0, 6.0])
    method = Lcm(lcm_section(guidance=(1.0, 6.0), num_steps=10), tiny.PLAIN)
    x0, conditions = tiny.points(toy, 3)
    told = tiny.context(
        method,
        x0,
        tiny.exact(toy, tiny.PLAIN),
        toy,
        conditions=conditions,
        null=tiny.null_of(toy),
        guidance=w,
        point=np.full(3, 4.0),
    )
    x_t = tiny.PLAIN.forward(x0, told.drawn["noise"], np.full(3, method.grid[4]))
    assert conditions.classes is not None
    student = told.student
    assert isinstance(student, tiny.Told)
    method.student_loss(told)
    reached = next(x for x, t, _ in student.calls if t[0] == method.grid[5])
    for i, k in enumerate(conditions.classes.tolist()):
        step = toy.guided(tiny.PLAIN, k, w[i])(x_t[i : i + 1], method.grid[4])
        expected = targets.moved(step, method.grid[5:6], tiny.PLAIN)
        torch.testing.assert_close(reached[i : i + 1], expected)


def test_check_11_flash_draws_one_scale_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    phase = sections.FlashPhase(steps=1, mode_weights=(1.0,), guidance=(3.0, 13.0))
    method, x0 = Flash(flash_section(phases=(phase,)), tiny.PLAIN), tiny.points(ONE, 2)[0]
    monkeypatch.setattr(targets, "solved", lambda denoise, x, *_: x)
    scales: list[Any] = []
    real = ExactTeacher.denoiser

    def denoiser(self: ExactTeacher, *arguments: Any) -> Any:
        scales.append(arguments[2])
        return real(self, *arguments)

    monkeypatch.setattr(ExactTeacher, "denoiser", denoiser)
    for seed in range(400):
        method._way(tiny.context(method, x0, tiny.exact(ONE, tiny.PLAIN), ONE, seed=seed))
    assert all(isinstance(scale, float) for scale in scales)
    assert min(scales) >= 3.0 and max(scales) <= 13.0
    np.testing.assert_allclose(np.quantile(scales, [0.25, 0.5, 0.75]), [5.5, 8.0, 10.5], atol=1.0)


# Check 12: conversion


def test_check_12_a_sampler_with_type_sample_equals_the_one_with_v() -> None:
    """The x0 of a v network, as a network of type ``sample``, is drawn with to the same points."""
    torch.manual_seed(0)
    v, schedule = MLPDenoiser(width=8, depth=2, classes=2).double(), tiny.ZERO_SNR
    conditions = Conditions(classes=torch.tensor([0, 1, 0]))
    as_v = NetworkTeacher(v, schedule, "v_prediction").denoiser(conditions)
    x0 = NetworkTeacher(tiny.Told(lambda x, t, _: as_v(x, t).x0, schedule), schedule, "sample")
    contract = tiny.base().contract
    for steps in (1, 4):
        ours, theirs = (
            draw(denoise, contract, noise(3), steps=steps) for denoise in (x0.denoiser(conditions), as_v)
        )
        torch.testing.assert_close(ours, theirs)


def test_check_12_conversion_turns_a_v_network_into_its_x0() -> None:
    torch.manual_seed(0)
    schedule = tiny.ZERO_SNR
    frozen = MLPDenoiser(width=8, depth=2, classes=2).requires_grad_(False)
    with torch.no_grad():
        frozen.out.weight.mul_(3.0)  # an untrained network gives nearly nothing
    online = MLPDenoiser(width=32, depth=2, classes=2)
    method = Conversion(sections.ConversionMethod(method="conversion", weighting="unit"), schedule)
    teacher = NetworkTeacher(frozen, schedule, "v_prediction")
    x0, conditions = tiny.points(two_modes(), 64)

    def make(step: int) -> Any:
        return tiny.context(method, x0.float(), online, teacher, schedule, conditions=conditions, seed=step)

    found = tiny.fit(method, online, make, 200, rate=5e-3)
    assert np.mean(found[-10:]) < 0.03 * np.mean(found[:3])


def test_check_12_guidance_can_be_converted_into_the_network() -> None:
    toy = two_modes()
    section = sections.ConversionMethod(method="conversion", guidance_scale=3.0)
    method, (x0, conditions) = Conversion(section, tiny.PLAIN), tiny.points(toy, 8)

    def student(x_t: Tensor, t: Any, told: Conditions) -> Tensor:
        assert told.classes is not None
        rows = zip(x_t, t, told.classes.tolist(), strict=True)
        return torch.cat([toy.guided(tiny.PLAIN, k, 3.0)(x[None], time).x0 for x, time, k in rows])

    told = tiny.context(
        method,
        x0,
        tiny.Told(student, tiny.PLAIN),
        toy,
        conditions=conditions,
        null=tiny.null_of(toy),
    )
    assert float(method.student_loss(told)[0].max()) < 1e-18
    guided = tiny.base(guidance_scale=3.0, guidance_interval=(0.3, 5.0), guidance_rescale=0.7).contract
    contract = method.contract(guided)
    assert (contract.guidance, contract.guidance_scale) == ("off", 1.0)
    assert (contract.guidance_rescale, contract.guidance_interval) == (0.0, None)


def test_check_12_conversion_leaves_out_as_many_conditions_as_it_says() -> None:
    toy = two_modes()
    section = sections.ConversionMethod(method="conversion", guidance_scale=3.0, unconditional=0.25)
    method, (x0, conditions) = Conversion(section, tiny.PLAIN), tiny.points(toy, 400)
    student = tiny.exact(toy, tiny.PLAIN)
    told = tiny.context(method, x0, student, toy, conditions=conditions, null=tiny.null_of(toy))
    loss = method.student_loss(told)[0]
    ((_, _, seen),) = student.calls
    assert seen.classes is not None
    left_out = seen.classes == 2
    assert float(left_out.double().mean()) == pytest.approx(0.25, abs=0.06)
    # Nothing to guide away from: for those the unguided, unconditional mixture is right.
    assert float(loss[left_out].max()) < 1e-20 < float(loss[~left_out].max())
