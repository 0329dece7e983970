"""What SDXL-Lightning says of its losses (check 9), on students of one number each.

Trainings of whole students that show the same take minutes and are in ``benchmarks/lightning_claims.py``.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "distillation"))
import tiny_stages as tiny

from fewstep.diffusion.toys import two_modes
from fewstep.distillation import sections
from fewstep.distillation.lightning import Lightning
from fewstep.models.conditions import Conditions
from fewstep.models.discriminators import Head, PairDiscriminator
from fewstep.models.mlp import MLPDenoiser

TOY = two_modes(distance=2.0, std=0.1)
SCHEDULE = tiny.ZERO_SNR
SIZE = 128


class Spread(nn.Module):
    """One step to ``reach`` times where the teacher's flow leads; -1 is the right data from the wrong noise.

    The noise's side of the first axis decides the mode; within a mode the place is the noise's own.
    """

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = nn.Parameter(torch.tensor(reach))

    def forward(self, x_t: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        side = torch.sign(x_t[:, :1])
        # What of |noise| is left within a mode, as a normal again
        inside = torch.special.ndtri((torch.special.ndtr(x_t[:, :1].abs()) * 2 - 1).clamp(1e-4, 1 - 1e-4))
        return torch.cat([self.reach * side + 0.1 * side * inside, 0.1 * x_t[:, 1:]], 1)


class Middle(nn.Module):
    """A student without any capacity: one point for all noises."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor([0.7, -0.4]))

    def forward(self, x_t: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return 0.0 * x_t + self.point


def lightning(conditional: bool | None) -> Lightning:
    judge = network = None
    if conditional is not None:
        torch.manual_seed(0)
        judge = sections.LightningDiscriminator(conditional=conditional)
        head = Head(64 if conditional else 32, 32, None)
        network = PairDiscriminator(MLPDenoiser(width=32, depth=2, classes=1), "encoder", head)
    section = sections.LightningMethod(
        method="lightning",
        teacher_steps=8,
        student_steps=1,
        distance="l2" if conditional is None else None,
        discriminator=judge,
    )
    return Lightning(section, SCHEDULE, network)


def contexts(method: Lightning, student: nn.Module) -> Any:
    """A batch of fresh noises for every step, at the terminal time."""
    networks = {name: role.module for name, role in method.roles.items()}
    x0 = torch.zeros(SIZE, 2)
    told = tiny.context(
        method,
        x0[:1],
        student,
        TOY,
        SCHEDULE,
        networks=networks,
    )

    def make(step: int) -> Any:
        rng = np.random.default_rng([7, step])
        noise = torch.from_numpy(rng.standard_normal((SIZE, 2), dtype=np.float32))
        drawn = {"point": np.zeros(SIZE), "noise": noise}
        return dataclasses.replace(told, x0=x0, drawn=drawn, shared={})

    return make


def test_check_09_a_student_without_capacity_lands_between_the_modes() -> None:
    """The mean of where the teacher goes, which is nowhere near the data: the blur of a mean square."""
    method, student = lightning(None), Middle()
    found = tiny.fit(method, student, contexts(method, student), 150, rate=3e-2)
    point = student.point.detach().numpy()
    assert np.abs(point).max() < 0.15
    assert np.linalg.norm(TOY.means - point, axis=1).min() > 0.8
    # What is left is the variance of the ends over two coordinates: 1 along the first, nearly 0 otherwise.
    assert np.mean(found[-20:]) == pytest.approx(0.5, abs=0.1)


def judged(conditional: bool, reach: float) -> tuple[float, float]:
    """Accuracy of a discriminator trained on a fixed student, and the student's gradient then."""
    method, student = lightning(conditional), Spread(reach)
    critic = method.roles["discriminator"].module
    make = contexts(method, student)
    optimiser = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.0, 0.99))
    accuracies = []
    for step in range(100):
        loss, terms = method.critic_loss("discriminator", make(step))
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
        accuracies.append(float(terms["accuracy"]))
    method.student_loss(make(1000))[0].mean().backward()
    assert student.reach.grad is not None
    return float(np.mean(accuracies[-10:])), float(student.reach.grad)


def test_check_09_only_the_conditional_one_minds_which_noise_goes_where() -> None:
    """Right samples from the wrong noises: D(x_t, x_s) tells them from the teacher's, D'(x_s) cannot."""
    conditional, unconditional = judged(True, -1.0), judged(False, -1.0)
    assert conditional[0] > 0.95
    assert unconditional[0] < 0.7
    # And it pulls them over to the other mode, while the other one leaves them nearly alone.
    assert conditional[1] < 0 and abs(unconditional[1]) < 0.2 * abs(conditional[1])


@pytest.mark.parametrize("conditional", [True, False])
def test_check_09_both_push_a_blurred_student_out_to_the_modes(conditional: bool) -> None:
    accuracy, gradient = judged(conditional, 0.5)
    assert accuracy > 0.9 and gradient < 0


@pytest.mark.parametrize("conditional", [True, False])
def test_check_09_and_20_adversarial_training_sharpens_until_nothing_is_told_apart(
    conditional: bool,
) -> None:
    """From half way to the modes, where a mean square would leave it if it could do no better."""
    method, student = lightning(conditional), Spread(0.5)
    critic = method.roles["discriminator"].module
    make = contexts(method, student)
    tiny.fit(method, student, make, 200, rate=1e-2, critic=critic, critic_rate=5e-3, betas=(0.0, 0.99))
    # Above 0 is the teacher's own assignment of noises to modes.
    assert student.reach.item() == pytest.approx(1.0, abs=0.15)
    accuracy = [
        float(method.critic_loss("discriminator", make(step))[1]["accuracy"]) for step in range(300, 310)
    ]
    assert np.mean(accuracy) < 0.75
