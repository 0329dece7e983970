"""One test per method that fails when the term is taken out that makes it this method.

Students are constants or lines and the teacher is one Gaussian, so every loss can be written down by hand.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch
from torch import Tensor, nn

from fewstep.diffusion.toys import gaussian
from fewstep.distillation import losses, sections
from fewstep.distillation.consistency import Lcm
from fewstep.distillation.conversion import Conversion
from fewstep.distillation.dmd import Dmd
from fewstep.distillation.flash import Flash
from fewstep.distillation.lightning import Lightning
from fewstep.distillation.progressive import Progressive
from fewstep.models.conditions import Conditions

MEAN, STD = np.array([0.5, -1.0]), 0.4
ONE = gaussian((0.5, -1.0), STD)
SCHEDULE = tiny.PLAIN
X0 = tiny.points(ONE, 6)[0]
ZERO = tiny.Told(lambda x, t, _: 0.0 * x, SCHEDULE)


def x0_of(x: np.ndarray, t: float) -> np.ndarray:
    a, s = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x - a * MEAN)


def ddim(x: np.ndarray, *times: float) -> np.ndarray:
    for t, s in itertools.pairwise(times):
        x0 = x0_of(x, t)
        x = SCHEDULE.alpha(s) * x0 + SCHEDULE.sigma(s) * (x - SCHEDULE.alpha(t) * x0) / SCHEDULE.sigma(t)
    return x


def noised(told: Any, t: float) -> np.ndarray:
    """Pure noise at the terminal time, as everywhere in fewstep."""
    eps: np.ndarray = told.drawn["noise"].numpy()
    return eps if t == 999.0 else SCHEDULE.alpha(t) * X0.numpy() + SCHEDULE.sigma(t) * eps


def is_mean_square(loss: Tensor, error: np.ndarray) -> None:
    assert float(np.square(error).mean(1).min()) > 1e-4, "the test itself would show nothing"
    np.testing.assert_allclose(loss.detach().numpy(), np.square(error).mean(1), rtol=1e-6)


def test_defining_term_of_progressive() -> None:
    """The x0 with which one step lands where the teacher's two do."""
    section = sections.ProgressiveMethod(
        method="progressive", teacher_steps=4, student_steps=2, weighting="unit"
    )
    method = Progressive(section, SCHEDULE)
    told = tiny.context(method, X0, ZERO, ONE)
    told.drawn["step"][:] = 0.0  # type: ignore[index]
    x_t = noised(told, 999.0)
    landed = ddim(x_t, 999.0, 749.0, 499.0)
    ratio = SCHEDULE.sigma(499.0) / SCHEDULE.sigma(999.0)
    wanted = (landed - ratio * x_t) / (SCHEDULE.alpha(499.0) - ratio * SCHEDULE.alpha(999.0))
    assert np.abs(wanted - x0_of(x_t, 999.0)).max() > 0.02
    is_mean_square(method.student_loss(told)[0], wanted)


def test_defining_term_of_lightning() -> None:
    """The jump over n teacher steps, and a discriminator that sees both of its ends."""
    section = sections.LightningMethod(method="lightning", teacher_steps=8, student_steps=2, distance="l2")
    method = Lightning(section, SCHEDULE)
    told = tiny.context(method, X0, ZERO, ONE, point=np.zeros(6))
    x_t = noised(told, 999.0)
    landed = ddim(x_t, 999.0, 874.0, 749.0, 624.0, 499.0)
    ours = SCHEDULE.sigma(499.0) * x_t / SCHEDULE.sigma(999.0)
    is_mean_square(method.student_loss(told)[0], ours - landed)


class _Seen(nn.Module):
    """Notes what a discriminator is shown; its logit is the sum of it."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []

    def forward(self, ends: Any, time: Tensor, conditions: Conditions, start: Any = None) -> list[Tensor]:
        self.shown += [(end, time, start) for end in ends]
        return [end.sum(1, keepdim=True) for end in ends]


@pytest.mark.parametrize("conditional", [True, False])
def test_defining_term_of_lightning_discriminator(conditional: bool) -> None:
    section = sections.LightningMethod(
        method="lightning",
        teacher_steps=8,
        student_steps=2,
        discriminator=sections.LightningDiscriminator(conditional=conditional, loss="wgan", weight=2.0),
    )
    seen = _Seen()
    method = Lightning(section, SCHEDULE, seen)  # type: ignore[arg-type]
    told = tiny.context(method, X0, ZERO, ONE, networks={"discriminator": seen}, point=np.zeros(6))
    x_t = noised(told, 999.0)
    ours = SCHEDULE.sigma(499.0) * x_t / SCHEDULE.sigma(999.0)
    np.testing.assert_allclose(method.student_loss(told)[0], -2.0 * ours.sum(1), rtol=1e-6)
    landed = ddim(x_t, 999.0, 874.0, 749.0, 624.0, 499.0)
    np.testing.assert_allclose(
        method.critic_loss("discriminator", told)[0], (ours - landed).sum(1), rtol=1e-6
    )
    for _, time, start in seen.shown:
        assert time.tolist() == [499.0] * 6
        assert (start is not None) == conditional
        if start is not None:
            np.testing.assert_allclose(start[0], x_t)
            assert start[1].tolist() == [999.0] * 6
    fake, _, _ = seen.shown[1]
    real, _, _ = seen.shown[2]
    np.testing.assert_allclose(fake, ours)
    np.testing.assert_allclose(real, landed)


def test_defining_term_of_conversion() -> None:
    """The teacher's x0 at the student's own input and time."""
    method = Conversion(sections.ConversionMethod(method="conversion", weighting="unit"), SCHEDULE)
    told = tiny.context(method, X0, ZERO, ONE, t=np.full(6, 600.0))
    is_mean_square(method.student_loss(told)[0], x0_of(noised(told, 600.0), 600.0))


def test_defining_term_of_lcm() -> None:
    """f(x_t, t) against f at the teacher's next point, where no gradient goes."""
    section = sections.LcmMethod(
        method="lcm", num_steps=4, guidance=(1.0, 1.0), distance="l2", boundary_scaling=0.0
    )
    method, slope = Lcm(section, SCHEDULE), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    student = tiny.Told(lambda x, t, _: slope * x * (1.0 + torch.from_numpy(t / 999.0)[:, None]), SCHEDULE)
    told = tiny.context(method, X0, student, ONE, point=np.ones(6))
    x_t = noised(told, 749.0)
    x_s = ddim(x_t, 749.0, 499.0)
    here, there = (0.7 * x * (1.0 + t / 999.0) for x, t in ((x_t, 749.0), (x_s, 499.0)))
    loss = method.student_loss(told)[0]
    is_mean_square(loss, here - there)
    loss.sum().backward()
    assert slope.grad is not None
    assert float(slope.grad) == pytest.approx(float((2.0 * (here - there) * here / 0.7).mean(1).sum()))


def test_lcm_weighted_by_noise_counts_the_error_of_v() -> None:
    """By hand: v's error is x0's over sigma."""
    student = tiny.Told(lambda x, t, _: 0.7 * x * (1.0 + torch.from_numpy(t / 999.0)[:, None]), SCHEDULE)
    points, found = np.arange(6) % 4, {}
    for weighting in ("unit", "snr_plus_one"):
        section = sections.LcmMethod(
            method="lcm", num_steps=4, guidance=(1.0, 1.0), distance="l2", weighting=weighting
        )
        method = Lcm(section, SCHEDULE)
        told = tiny.context(method, X0, student, ONE, point=points.astype(np.float64))
        found[weighting] = method.student_loss(told)[0].numpy()
    sigma = np.asarray(SCHEDULE.sigma(method.grid[points]))
    assert sigma.min() < 0.9
    np.testing.assert_allclose(found["snr_plus_one"], found["unit"] / sigma**2, rtol=1e-5)


@pytest.mark.parametrize(("step", "start"), [(0, 2), (4, 2), (5, 0), (100, 0)])
def test_defining_term_of_flash(step: int, start: int) -> None:
    """The end of the teacher's whole way from a start that the phase chooses."""
    section = sections.FlashMethod(
        method="flash",
        teacher_steps=4,
        solver="ddim",
        variance=0.01,
        boundary_scaling=0.0,
        phases=tuple(
            sections.FlashPhase(steps=5, mode_weights=weights, guidance=(1.0, 1.0), distill=2.0)
            for weights in ((0.0, 1.0), (1.0, 0.0))
        ),
    )
    method = Flash(section, SCHEDULE)
    told = tiny.context(method, X0, ZERO, ONE, step=step)
    times = (999.0, 749.0, 499.0, 249.0, -1.0)[start:]
    end = ddim(noised(told, times[0]), *times)
    is_mean_square(method.student_loss(told)[0] / 2.0, end)


def test_defining_term_of_flash_adversarial_and_matching() -> None:
    """The other two terms with their weights: features of the teacher, and the push."""
    phase = sections.FlashPhase(
        steps=1,
        mode_weights=(1.0,),
        guidance=(1.0, 1.0),
        distill=0.0,
        adversarial=0.5,
        distribution=3.0,
    )
    section = sections.FlashMethod(
        method="flash",
        phases=(phase,),
        teacher_steps=1,
        solver="ddim",
        discriminator=sections.FlashDiscriminator(loss="wgan"),
        boundary_scaling=0.0,
    )
    head = nn.Identity()

    def perceive(x: Tensor, time: Tensor, conditions: Conditions) -> list[Tensor]:
        return [x.sum(1, keepdim=True) * time[:, None].double()]

    method = Flash(section, SCHEDULE, head=head, perceive=perceive)
    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    student = tiny.Told(lambda x, t, _: torch.from_numpy(MEAN) + shift + 0.0 * x, SCHEDULE)
    told = tiny.context(method, X0, student, ONE, networks={"discriminator": head})
    loss, terms = method.student_loss(told)
    t = np.array([(10.0, 250.0, 500.0, 750.0)[int(4 * u)] for u in told.drawn["level"]])
    sample = MEAN + 0.3 + 0.0 * X0.numpy()
    a, s = (np.asarray(c)[:, None] for c in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    judged = a * sample + s * told.drawn["renoise"].numpy()
    np.testing.assert_allclose(terms["adversarial"], -judged.sum(1) * t, rtol=1e-6)
    loss.sum().backward()
    m = told.drawn["matched"]
    a_m, s_m = (np.asarray(c)[:, None] for c in (SCHEDULE.alpha(m), SCHEDULE.sigma(m)))
    x_m = a_m * sample + s_m * told.drawn["matching"].numpy()
    real = MEAN + a_m * STD**2 / (a_m**2 * STD**2 + s_m**2) * (x_m - a_m * MEAN)
    push = (sample - real) / (np.abs(sample - real).mean(1, keepdims=True) + 1e-5)
    expected = 3.0 * push.sum() / 2 - 0.5 * (2 * a[:, 0] * t).sum()
    assert shift.grad is not None and float(shift.grad) == pytest.approx(expected, rel=1e-6)


class _Fake(nn.Module):
    """A fake score that is sure of one point."""

    def __init__(self, point: float) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.tensor(point, dtype=torch.float64))

    def forward(self, x: Tensor, *_: Any, logits: bool = False) -> Tensor:
        return 0.0 * x + self.point


def test_defining_term_of_dmd2() -> None:
    """The push along x0_fake - x0_real, and a fake score that denoises the student's samples."""
    fake = _Fake(0.2)
    method = Dmd(
        sections.DmdMethod(method="dmd2", timesteps=(999.0,)),
        SCHEDULE,
        fake,  # type: ignore[arg-type]
    )
    value = torch.full((6, 2), 0.8, dtype=torch.float64, requires_grad=True)
    student = tiny.Told(lambda x, t, _: value, SCHEDULE)
    told = tiny.context(method, X0, student, ONE, networks={"fake_score": fake})
    method.student_loss(told)[0].sum().backward()
    t = told.drawn["matched"]
    a, s = (np.asarray(c)[:, None] for c in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
    x_t = a * 0.8 + s * told.drawn["matching"].numpy()
    real = MEAN + a * STD**2 / (a**2 * STD**2 + s**2) * (x_t - a * MEAN)
    push = (0.2 - real) / (np.abs(0.8 - real).mean(1, keepdims=True) + 1e-5)
    assert value.grad is not None
    np.testing.assert_allclose(value.grad, push / 2, rtol=1e-6)
    assert fake.point.grad is None
    denoised = method.critic_loss("fake_score", told)[0]
    np.testing.assert_allclose(denoised.detach(), (0.8 - 0.2) ** 2)


@pytest.mark.parametrize("simulate", [True, False])
def test_defining_term_of_dmd2_simulation(simulate: bool) -> None:
    """Trained on what the student makes of its own earlier step, or else on noised data."""
    section = sections.DmdMethod(method="dmd2", timesteps=(999.0, 499.0), simulate=simulate)
    method = Dmd(section, SCHEDULE, _Fake(0.0))  # type: ignore[arg-type]
    student = tiny.Told(lambda x, t, _: 0.5 * x, SCHEDULE)
    for seed in range(20):
        told = tiny.context(method, X0, student, ONE, networks={"fake_score": _Fake(0.0)}, seed=seed)
        student.calls.clear()
        method._sample(told)
        if student.calls[-1][1][0] == 499.0:
            break
    a, s = SCHEDULE.alpha(499.0), SCHEDULE.sigma(499.0)
    first, second = told.drawn["noise0"], told.drawn["noise1"]
    expected = a * 0.5 * first + s * second if simulate else a * X0 + s * first
    torch.testing.assert_close(student.calls[-1][0], expected)
    assert len(student.calls) == (2 if simulate else 1)


def test_perceptual_distance_of_vectors_and_maps() -> None:
    """Features may have no places or many; both are compared channel by channel, at unit length."""
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [2.0, 2.0]])
    expected = torch.tensor([2.0, 0.0])  # at right angles, and of the same direction
    torch.testing.assert_close(losses.perceptual(lambda x: [x], a, b), expected)
    places = losses.perceptual(lambda x: [x, x[..., None, None].expand(-1, -1, 2, 3)], a, b)
    torch.testing.assert_close(places, 2 * expected)
