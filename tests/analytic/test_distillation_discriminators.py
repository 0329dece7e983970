"""Discriminators of distillation: what gradients reach whom, and losses at known logits (checks 14 to 20)."""

from __future__ import annotations

import math
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
from fewstep.distillation import build, losses, sections
from fewstep.distillation.dmd import Dmd
from fewstep.distillation.flash import Flash
from fewstep.distillation.lightning import Lightning, chosen
from fewstep.errors import RecipeError
from fewstep.models.conditions import Conditions
from fewstep.models.discriminators import Head, PairDiscriminator
from fewstep.models.mlp import MLPDenoiser
from fewstep.training.state import weights_digest

PHASE = {"steps": 10, "mode_weights": [1.0, 1.0], "distill": 0.0, "adversarial": 1.0, "guidance": [1.0, 1.0]}
JUDGED = {
    "lightning": {"method": "lightning", "teacher_steps": 4, "student_steps": 2, "discriminator": {}},
    "lightning_unconditional": {
        "method": "lightning",
        "teacher_steps": 4,
        "student_steps": 2,
        "discriminator": {"conditional": False, "renoise": {}},
    },
    "flash": {"method": "flash", "teacher_steps": 4, "phases": [PHASE], "discriminator": {"channels": 8}},
    "flash_teacher_as_real": {
        "method": "flash",
        "teacher_steps": 4,
        "phases": [PHASE],
        "discriminator": {"channels": 8, "real": "teacher"},
    },
    "dmd2": {"method": "dmd2", "timesteps": [999.0, 499.0], "discriminator": {"channels": 8, "weight": 1.0}},
}
CRITIC = {"dmd2": "fake_score"}


def run_of(kind: str, mode: str = "full", **method: Any) -> tiny.Run:
    student = {"mode": mode, "lora": {"rank": 2, "targets": ["all-linear-conv"]}}
    recipe = tiny.recipe({"methods": [JUDGED[kind] | method], "student": student})
    return tiny.Run(build.build_stage(recipe, 0, tiny.base(), []), recipe)


# Check 14: who gets gradients


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", JUDGED)
def test_check_14_each_step_reaches_its_own_role_alone(kind: str, mode: str) -> None:
    run, critic = run_of(kind, mode), CRITIC.get(kind, "discriminator")
    _, batch = run.batch()
    for role in ("student", critic):
        found = run.gradients(role, batch)
        assert tiny.live(found, role)
        assert not any(tiny.live(found, other) for other in run.state.roles if other != role)
    assert ("teacher" in run.state.roles) == (mode == "full")


@pytest.mark.parametrize("kind", JUDGED)
def test_check_14_the_student_learns_from_the_discriminator_alone(kind: str) -> None:
    """Without any other term: the gradient must come through the discriminator's frozen weights."""
    method = {"distribution": 0.0} if kind == "dmd2" else {}
    run = run_of(kind, **method)
    _, batch = run.batch()
    assert tiny.live(run.gradients("student", batch), "student")


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_check_14_a_frozen_backbone_stays_and_still_passes_gradients_on(mode: str) -> None:
    """Flash looks with the teacher: its weights keep every bit, and the student's samples get a gradient."""
    run = run_of("flash", mode)
    method = run.task.methods[0].method
    assert isinstance(method, Flash)
    # With an adapter the teacher is the student's own network, without the adapter.
    backbone = run.task.teacher.module  # type: ignore[attr-defined]
    plain = {k: v.clone() for k, v in backbone.state_dict().items() if "lora" not in k}
    head = weights_digest(run.state.roles["discriminator"].role.module)
    run.step(3)
    assert all(torch.equal(v, backbone.state_dict()[k]) for k, v in plain.items())
    assert weights_digest(run.state.roles["discriminator"].role.module) != head
    _, batch = run.batch()
    told = tiny.batch_context(run, batch)
    fake = told.x0.clone().requires_grad_()
    (logits,) = method._scores(told, fake)
    (gradient,) = torch.autograd.grad(losses.generator_loss("lsgan", logits).sum(), fake)
    assert bool(gradient.any(1).all())


def test_check_14_the_critic_is_shown_detached_samples() -> None:
    """Also when nothing froze the student: a critic's step on its own must not keep the student's graph."""
    for kind in JUDGED:
        run, critic = run_of(kind), CRITIC.get(kind, "discriminator")
        _, batch = run.batch()
        told = tiny.batch_context(run, batch)
        for state in run.state.roles.values():
            state.role.module.requires_grad_(True)
        run.task.methods[0].method.student_loss(told)[0].sum().backward()
        for state in run.state.roles.values():
            state.role.module.zero_grad()
        run.task.methods[0].method.critic_loss(critic, told)[0].sum().backward()
        student = run.state.roles["student"].role.module
        assert all(p.grad is None or not p.grad.any() for p in student.parameters()), kind


# Check 15: one encoder for both ends


def pair(conditional: bool) -> PairDiscriminator:
    torch.manual_seed(0)
    return PairDiscriminator(
        MLPDenoiser(width=8, depth=2, classes=2), "encoder", Head(16 if conditional else 8, 8, None)
    )


def lightning(conditional: bool = True, **changes: Any) -> Lightning:
    judge = sections.LightningDiscriminator(conditional=conditional, **changes)
    section = sections.LightningMethod(
        method="lightning", teacher_steps=4, student_steps=2, discriminator=judge
    )
    return Lightning(section, tiny.PLAIN, pair(conditional))


def ends(n: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor, Conditions]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, n, 2, generator=generator)
    return a, b, torch.full((n,), 499.0), torch.full((n,), 999.0), Conditions()


def test_check_15_both_ends_go_through_one_set_of_weights() -> None:
    network = pair(True)
    alone = sum(p.numel() for p in MLPDenoiser(width=8, depth=2, classes=2).parameters())
    head = sum(p.numel() for p in Head(16, 8, None).parameters())
    assert sum(p.numel() for p in network.parameters()) == alone + head
    end, start, s, t, conditions = ends()
    # Features of the start stand after those of the end: with the head's halves swapped, so are the ends.
    (here,) = network([end], s, conditions, (start, t))
    (there,) = network([start], t, conditions, (end, s))
    assert not torch.allclose(here, there)
    first = network.head.blocks[0]
    with torch.no_grad():
        first.weight.copy_(first.weight.roll(8, 1))
    torch.testing.assert_close(network([start], t, conditions, (end, s))[0], here)


def test_check_15_many_ends_are_judged_as_each_alone_with_the_start_seen_once() -> None:
    network = pair(True)
    end, start, s, t, conditions = ends()
    alone = [network([one], s, conditions, (start, t))[0] for one in (end, -end)]
    rows: list[int] = []
    network.backbone.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    together = network([end, -end], s, conditions, (start, t))
    torch.testing.assert_close(together, alone)
    assert rows == [3 * len(end)]


def test_check_15_the_conditional_one_sees_where_the_jump_began_and_the_other_does_not() -> None:
    end, start, *_ = ends()
    told: dict[str, Any] = {"t": np.full(3, 999.0), "s": np.full(3, 499.0)}
    for conditional in (True, False):
        method = lightning(conditional)
        x0 = torch.zeros(3, 2)
        made = tiny.context(
            method,
            x0,
            nn.Identity(),
            two_modes(),
            networks={"discriminator": method.roles["discriminator"].module},
        )
        (one,), (other,) = (
            method._scores(made, told | {"x_t": x_t}, end) for x_t in (start, start.roll(1, 0))
        )
        assert torch.equal(one, other) != conditional
        assert not torch.equal(one, method._scores(made, told | {"x_t": start}, end + 1.0)[0])


# Check 16: noise before the judgement


def test_check_16_the_times_of_renoising_follow_their_weights() -> None:
    renoise = sections.Renoise(later_weights=(5.0, 1.0, 1.0, 1.0), later_from_step=100)
    method = lightning(renoise=renoise)
    level = tiny.drawn(method, (4000, 2), torch.float32)["level"]
    for step, expected in ((0, [0.25] * 4), (99, [0.25] * 4), (100, [0.625, 0.125, 0.125, 0.125])):
        t = chosen(level, renoise.timesteps, renoise.at(step))
        assert set(t) == {10.0, 250.0, 500.0, 750.0}
        shares = [(t == value).mean() for value in renoise.timesteps]
        # Four times the deviation of a share
        np.testing.assert_allclose(shares, expected, atol=4 * math.sqrt(0.25 / 4000))


@pytest.mark.parametrize("kind", ["lightning_unconditional", "flash"])
def test_check_16_both_samples_are_judged_at_one_time_under_one_noise(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = run_of(kind), []
    schedule = run.task.schedule
    real = type(schedule).forward

    def forward(self: Any, x0: Any, eps: Any, t: Any) -> Any:
        seen.append((x0, eps, np.array(t)))
        return real(self, x0, eps, t)

    monkeypatch.setattr(type(schedule), "forward", forward)
    _, batch = run.batch()
    run.gradients("discriminator", batch)
    (fake, noise, t), (other, again, s) = seen[-2:]
    assert not torch.equal(fake, other)
    assert torch.equal(noise, again) and torch.equal(noise, batch["0.renoise"])
    np.testing.assert_array_equal(t, s)
    assert set(t) <= {10.0, 250.0, 500.0, 750.0}


@pytest.mark.parametrize("name", tiny.SCHEDULES)
def test_check_16_noising_in_two_goes_is_noising_in_one(name: str) -> None:
    """Mean and variance of 0 to s to t are those of 0 to t."""
    schedule = tiny.SCHEDULES[name]
    s, t = (0.3, 0.7) if name == "flow" else (250.0, 750.0)
    zero, one = np.zeros((1, 1)), np.ones((1, 1))
    signal = schedule.forward_between(schedule.forward(one, zero, s), zero, s, t)
    first = schedule.forward_between(schedule.forward(zero, one, s), zero, s, t)
    second = schedule.forward_between(zero, one, s, t)
    np.testing.assert_allclose(signal, schedule.alpha(t))
    np.testing.assert_allclose(first**2 + second**2, schedule.sigma(t) ** 2)


# Check 17: losses at known logits

LN2 = math.log(2.0)


@pytest.mark.parametrize(
    ("kind", "student", "critic"),
    [
        ("non_saturating", LN2, 2 * LN2),
        ("vanilla", -LN2, 2 * LN2),
        ("hinge", 0.0, 2.0),
        ("lsgan", 0.25, 0.25),
        ("wgan", 0.0, 0.0),
    ],
)
def test_check_17_losses_of_an_undecided_discriminator(kind: str, student: float, critic: float) -> None:
    zero = torch.zeros(3, 1, dtype=torch.float64)
    assert losses.generator_loss(kind, zero).tolist() == pytest.approx([student] * 3)
    assert losses.discriminator_loss(kind, zero, zero).tolist() == pytest.approx([critic] * 3)


def test_check_17_losses_at_other_logits() -> None:
    real, fake = torch.full((1, 1), 3.0, dtype=torch.float64), torch.full((1, 1), 2.0, dtype=torch.float64)
    p, q = 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-2))  # what D says of the real one and of the fake one
    told_apart = -math.log(p) - math.log(1 - q)
    expected = {
        "non_saturating": (-math.log(q), told_apart),
        "vanilla": (math.log(1 - q), told_apart),
        "hinge": (-2.0, 3.0),
        "lsgan": ((q - 1) ** 2, 0.5 * ((p - 1) ** 2 + q**2)),
        "wgan": (-2.0, -1.0),
    }
    assert set(expected) == set(losses.GAN_LOSSES)
    for kind, (student, critic) in expected.items():
        assert losses.generator_loss(kind, fake).item() == pytest.approx(student)
        assert losses.discriminator_loss(kind, real, fake).item() == pytest.approx(critic)


@pytest.mark.parametrize("kind", losses.GAN_LOSSES)
def test_check_17_the_student_wants_higher_logits_and_the_critic_tells_them_apart(kind: str) -> None:
    real, fake = torch.zeros(2, 4, 1, requires_grad=True).unbind()
    (up,) = torch.autograd.grad(losses.generator_loss(kind, fake).sum(), fake, retain_graph=True)
    assert bool((up < 0).all())
    for_real, for_fake = torch.autograd.grad(losses.discriminator_loss(kind, real, fake).sum(), (real, fake))
    assert bool((for_real < 0).all()) and bool((for_fake > 0).all())


def test_check_17_an_unknown_loss_is_refused() -> None:
    with pytest.raises(RecipeError, match="give one of non_saturating"):
        losses.generator_loss("softplus", torch.zeros(1, 1))
    with pytest.raises(RecipeError, match="give one of non_saturating"):
        losses.discriminator_loss("softplus", torch.zeros(1, 1), torch.zeros(1, 1))


def test_check_17_many_patches_count_as_one_sample() -> None:
    logits = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    expected = [(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))) / 2, LN2]
    assert losses.generator_loss("non_saturating", logits).tolist() == pytest.approx(expected)


# Check 18: approximate R1


class Slope(nn.Module):
    """Logits that rise by a known slope along the first axis."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Any, *_: Any, logits: bool = True) -> Any:
        if not isinstance(x, Tensor):  # the ends of jumps
            return [self.slope * end[:, :1] for end in x]
        return self.slope * x[:, :1] if logits else 0.0 * x


@pytest.mark.parametrize("slope", [0.0, 1.0, 3.0])
def test_check_18_r1_is_the_slope_squared_times_the_noise_squared(slope: float) -> None:
    toy, x0 = two_modes(), tiny.points(two_modes(), 2000)[0].float()
    found = []
    for weight in (0.0, 1.0):
        method = lightning(r1=weight, r1_std=0.1)
        network = Slope(slope)
        told = tiny.context(
            method,
            x0,
            tiny.exact(toy, tiny.PLAIN),
            toy,
            networks={"discriminator": network},
            seed=3,
        )
        loss = method.critic_loss("discriminator", told)[0]
        found.append(float(loss.detach().mean()))
        loss.mean().backward()
        assert network.slope.grad is not None
    method = lightning(r1=1.0, r1_std=0.1)
    disturbance = tiny.drawn(method, (2000, 2), torch.float32, seed=3)["disturbance"][:, 0]
    penalty = (slope * 0.1 * disturbance).square().mean()
    torch.testing.assert_close(losses.approximate_r1(slope * x0, slope * x0), torch.zeros(2000))
    # The draws of both runs differ in nothing but the disturbance, which comes last.
    assert found[1] - found[0] == pytest.approx(float(penalty), abs=2e-3)
    assert float(penalty) == pytest.approx((slope * 0.1) ** 2, rel=0.1)


def test_check_18_dmd_has_the_penalty_that_its_recipe_names() -> None:
    """The section takes r1 like every discriminator's: then it must do something."""
    toy = two_modes()
    x0 = tiny.points(toy, 500)[0].float()
    found = []
    for weight in (0.0, 100.0):
        judge = sections.DmdDiscriminator(r1=weight, r1_std=0.1, critic_weight=1.0)
        section = sections.DmdMethod(method="dmd2", timesteps=(999.0,), discriminator=judge)
        method = Dmd(section, tiny.PLAIN, Slope(2.0))  # type: ignore[arg-type]
        told = tiny.context(
            method,
            x0,
            tiny.exact(toy, tiny.PLAIN),
            toy,
            networks={"fake_score": Slope(2.0)},
            judged=np.zeros(500),
        )
        found.append(float(method.critic_loss("fake_score", told)[0].detach().mean()))
    # At t = 0 nearly nothing is noised: the logits move by 2 times 0.1 of the normal.
    assert found[1] - found[0] == pytest.approx(100.0 * 0.2**2, rel=0.15)


# Check 19: shapes


@pytest.mark.parametrize("made_for", [(8, 8), (5, 7), (4, 9), (3, 3), (1, 1), (16, 24)])
def test_check_19_one_logit_whatever_the_shape_of_the_features(made_for: tuple[int, int]) -> None:
    head = Head(6, 8, made_for)
    h, w = made_for
    for height, width in (made_for, (w, h), (h + 1, w), (h, w + 3), (2 * h + 1, 2 * w)):
        logits = head(torch.randn(2, 6, height, width))
        assert logits.shape == (2, 1) and bool(logits.isfinite().all())
    assert Head(6, 8, None)(torch.randn(2, 6)).shape == (2, 1)


def test_check_19_a_larger_picture_is_more_patches_of_the_same_judgement() -> None:
    """Of a picture that is the same everywhere but at its edges the logits are alike in the middle."""
    torch.manual_seed(0)
    head = Head(4, 8, (3, 3))  # too small for strided blocks: each place is judged for itself
    small = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(head(small.tile(1, 1, 2, 3)), head(small))


# Check 20: a discriminator learns


@pytest.mark.parametrize("kind", JUDGED)
def test_check_20_accuracy_begins_at_a_half_and_rises_on_a_fixed_student(kind: str) -> None:
    recipe = tiny.recipe({"methods": [JUDGED[kind]]}, data={"source": "points", "batch_size": 64})
    base = tiny.base(dataset=tiny.Points(64))
    assert base.open_network is not None
    torch.manual_seed(1)
    stage = build.build_stage(recipe, 0, base, [])
    with torch.no_grad():  # a student that is easy to tell from anything
        student = stage.task.roles["student"].weights
        student.out.bias.add_(2.0)
    run, critic = tiny.Run(stage, recipe, tiny.Points(64)), CRITIC.get(kind, "discriminator")
    _, batch = run.batch()
    state = run.state.roles[critic]
    assert state.optimiser is not None
    state.optimiser.param_groups[0]["lr"] = 1e-2
    found = []
    for _ in range(40):
        told = tiny.batch_context(run, batch)
        loss, terms = run.task.methods[0].method.critic_loss(critic, told)
        state.optimiser.zero_grad()
        loss.mean().backward()
        state.optimiser.step()
        found.append(float(terms["accuracy"]))
    assert found[0] == pytest.approx(0.5, abs=0.1)
    assert np.mean(found[-5:]) > 0.65
