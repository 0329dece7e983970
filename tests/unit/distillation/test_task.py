"""A stage as a task: who is trained when, what is drawn, who plays which part (checks 10, 23, 25, 26)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch
from torch import Tensor

from fewstep.diffusion.noise_levels import phased_mixture_pmf
from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.toys import gaussian, two_modes
from fewstep.distillation import build, sections, targets
from fewstep.distillation.flash import Flash
from fewstep.distillation.lightning import Lightning
from fewstep.distillation.progressive import Progressive
from fewstep.distillation.roles import NetworkTeacher, ask
from fewstep.distillation.task import StageTask, Weighted, conditions_of
from fewstep.models.conditions import Conditions
from fewstep.models.discriminators import Head, PairDiscriminator
from fewstep.models.mlp import MLPDenoiser
from fewstep.training.sections import Optimiser, Schedule
from fewstep.training.state import weights_digest
from fewstep.training.task import Role

ONE = gaussian()
MODES = ((0.0, 0.0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25,) * 4, (0.4, 0.2, 0.2, 0.2))
PMF = (
    {15: 0.0532, 16: 0.3933, 17: 0.0532, 23: 0.0532, 24: 0.3933, 25: 0.0532},
    {0: 0.0795, 1: 0.0108, 8: 0.2385, 16: 0.2385, 24: 0.2385} | dict.fromkeys((7, 9, 15, 17, 23, 25), 0.0323),
    {0: 0.2020, 1: 0.0273, 8: 0.2020, 16: 0.2020, 24: 0.2020} | dict.fromkeys((7, 9, 15, 17, 23, 25), 0.0273),
    {0: 0.3287, 1: 0.0445, 8: 0.1643, 16: 0.1643, 24: 0.1643} | dict.fromkeys((7, 9, 15, 17, 23, 25), 0.0222),
)


# Check 10: the curriculum of starts


@pytest.mark.parametrize("phase", range(4))
def test_check_10_the_start_is_drawn_as_published(phase: int) -> None:
    pmf = phased_mixture_pmf(32, MODES[phase])
    for i, p in enumerate(pmf):
        if i in PMF[phase]:
            assert p == pytest.approx(PMF[phase][i], abs=6e-5)
        else:  # two places from a mode
            assert p < 1.5e-4
    assert pmf.sum() == pytest.approx(1.0)


def flash(**changes: Any) -> Flash:
    phases = tuple(
        sections.FlashPhase(steps=steps, mode_weights=modes, guidance=(1.0, 1.0))
        for steps, modes in zip((3, 2, 4, 1), MODES, strict=True)
    )
    values: dict[str, Any] = {"phases": phases, "solver": "ddim"}
    return Flash(sections.FlashMethod(method="flash", **values | changes), tiny.PLAIN)


def test_check_10_the_drawn_starts_have_these_frequencies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "solved", lambda denoise, x, *_: x)
    method, x0 = flash(), tiny.points(ONE, 1)[0]
    student = tiny.exact(ONE, tiny.PLAIN)
    told = tiny.context(method, x0, student, ONE)
    rng = np.random.default_rng(0)
    for step, phase in ((0, 0), (9, 3)):
        starts = [
            method._way(dataclasses.replace(told, step=step, rng=rng, shared={}))["start"] for _ in range(600)
        ]
        shares = np.bincount(starts, minlength=32) / 600
        pmf = phased_mixture_pmf(32, MODES[phase])
        assert np.all(np.abs(shares - pmf) <= 4 * np.sqrt(pmf / 600) + 1 / 600)


def test_check_10_phases_change_at_their_very_step_and_the_last_one_stays() -> None:
    method = flash()
    found = [method.section.phases.index(method.phase(step)) for step in range(13)]
    assert found == [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


CURRICULUM = {
    "method": "flash",
    "teacher_steps": 2,
    "solver": "ddim",
    "phases": [
        {"steps": 2, "mode_weights": [1.0], "guidance": [1.0, 1.0]},
        {"steps": 3, "mode_weights": [1.0], "guidance": [1.0, 1.0], "distribution": 0.5},
        {"steps": 1, "mode_weights": [1.0], "guidance": [1.0, 1.0], "adversarial": 0.5},
    ],
}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("networks", ["none", "discriminator", "both"])
def test_check_10_phases_do_not_depend_on_the_number_of_optimisers(
    monkeypatch: pytest.MonkeyPatch, networks: str, every: int
) -> None:
    """A counter of forward passes would run twice as fast with a discriminator as without one."""
    method = dict(CURRICULUM)
    if networks == "none":
        method["phases"] = [phase | {"adversarial": 0.0} for phase in CURRICULUM["phases"]]  # type: ignore[attr-defined]
    else:
        method["discriminator"] = {"channels": 4}
    if networks == "both":
        method["critic"] = {"learning_rate": 1e-3}
    seen: list[int] = []
    real = Flash._way

    def way(self: Flash, context: Any) -> Any:
        seen.append((context.step, self.section.phases.index(self.phase(context.step))))
        return real(self, context)

    monkeypatch.setattr(Flash, "_way", way)
    recipe = tiny.recipe({"methods": [method], "student_every": every})
    run = tiny.Run(build.build_stage(recipe, 0, tiny.base(), []), recipe)
    run.step(8)
    assert sorted(set(seen)) == list(enumerate([0, 0, 1, 1, 1, 2, 2, 2]))


# Check 25: turns


def active(stage: dict[str, Any], batches: int) -> list[str]:
    """Who is trained in each batch, by first letters."""
    recipe = tiny.recipe(stage)
    task = build.build_stage(recipe, 0, tiny.base(), []).task
    return ["".join(name[0] for name in task.active(4 * step)) for step in range(batches)]


DMD = {"method": "dmd2", "timesteps": [999.0], "discriminator": {"channels": 4}}
LIGHTNING = {"method": "lightning", "teacher_steps": 2, "student_steps": 1, "discriminator": {"channels": 4}}


def test_check_25_student_and_critic_take_turns_as_the_recipe_says() -> None:
    assert active({"methods": [DMD]}, 3) == ["sf"] * 3
    assert active({"methods": [DMD], "student_every": 5}, 11) == ["f"] * 4 + ["sf"] + ["f"] * 4 + ["sf", "f"]
    assert active({"methods": [DMD], "critic_warmup_steps": 3}, 5) == ["f"] * 3 + ["sf"] * 2
    assert active({"methods": [LIGHTNING], "student_every": 2, "critic_warmup_steps": 3}, 8) == [
        *("d", "d", "d"),
        *("d", "sd", "d", "sd", "d"),
    ]


def test_check_25_without_a_critic_every_batch_is_the_students() -> None:
    plain = {"method": "progressive", "teacher_steps": 2, "student_steps": 1}
    assert active({"methods": [plain], "student_every": 5, "critic_warmup_steps": 3}, 4) == ["s"] * 4


def test_check_25_critics_join_in_the_phase_that_needs_them() -> None:
    both = CURRICULUM | {"discriminator": {"channels": 4}, "critic": {"learning_rate": 1e-3}}
    assert active({"methods": [both]}, 8) == ["s"] * 2 + ["sf"] * 3 + ["sd"] * 3


def test_check_25_steps_of_every_role_are_counted_exactly() -> None:
    recipe = tiny.recipe({"methods": [DMD], "student_every": 3, "critic_warmup_steps": 2})
    run = tiny.Run(build.build_stage(recipe, 0, tiny.base(), []), recipe)
    taken = dict.fromkeys(run.state.roles, 0)
    for name, state in run.state.roles.items():
        if state.optimiser is not None:

            def count(*_: Any, name: str = name) -> None:
                taken[name] += 1

            state.optimiser.register_step_post_hook(count)
    run.step(12)
    assert taken == {"student": 3, "teacher": 0, "fake_score": 12}


def judged_task(rate: Schedule) -> StageTask:
    torch.manual_seed(0)
    student, backbone = MLPDenoiser(width=8, depth=2, classes=4), MLPDenoiser(width=8, depth=2, classes=4)
    section = sections.LightningMethod.model_validate_json(json.dumps(LIGHTNING))
    judge = PairDiscriminator(backbone, "encoder", Head(16, 4, None))
    method = Lightning(section, tiny.ZERO_SNR, judge, rate)
    base = tiny.base()
    assert base.open_network is not None
    return StageTask(
        student=Role(module=student, weights=student, optimiser=Optimiser(), schedule=Schedule()),
        student_type="v_prediction",
        teacher=NetworkTeacher(base.open_network(), tiny.ZERO_SNR, "v_prediction"),
        teacher_role=None,
        methods=[Weighted(1.0, method)],
        schedule=tiny.ZERO_SNR,
        seed=0,
        batch_size=4,
    )


def test_check_25_a_rate_of_zero_leaves_the_discriminator_and_nothing_else() -> None:
    run = tiny.Run(
        judged_task(Schedule(kind="linear", total_images=1, final=0.0)), tiny.recipe({"methods": [DMD]})
    )
    before = {name: weights_digest(state.role.module) for name, state in run.state.roles.items()}
    run.step(3)
    after = {name: weights_digest(state.role.module) for name, state in run.state.roles.items()}
    assert after["discriminator"] == before["discriminator"]
    assert after["student"] != before["student"]


# Draws and names


def test_methods_of_a_stage_do_not_disturb_each_other() -> None:
    progressive = {"method": "progressive", "teacher_steps": 2, "student_steps": 1}
    sample = tiny.Points().batch(np.zeros(1, np.int64), np.random.default_rng(0))
    drawn = []
    for methods in ([progressive], [progressive, LIGHTNING, DMD]):
        recipe = tiny.recipe({"methods": methods})
        task = build.build_stage(recipe, 0, tiny.base(), []).task
        drawn.append(task.draw(sample, np.random.Generator(np.random.Philox(np.random.SeedSequence(3)))))
    alone, together = drawn
    assert set(alone) == {"latents", "classes", "0.step", "0.noise"}
    assert all(np.array_equal(alone[key], together[key]) for key in alone)
    assert not np.array_equal(together["0.noise"], together["1.noise"])


def test_two_critics_of_one_name_are_two_roles() -> None:
    recipe = tiny.recipe({"methods": [LIGHTNING, LIGHTNING | {"weight": 2.0}], "gan_only": True})
    run = tiny.Run(build.build_stage(recipe, 0, tiny.base(), []), recipe)
    assert list(run.state.roles) == ["student", "teacher", "discriminator", "discriminator-1"]
    before = {name: weights_digest(state.role.module) for name, state in run.state.roles.items()}
    run.step(2)
    changed = {n for n, state in run.state.roles.items() if weights_digest(state.role.module) != before[n]}
    assert changed == {"student", "discriminator", "discriminator-1"}


def test_methods_are_added_with_their_weights() -> None:
    base = tiny.base()
    progressive = {"method": "progressive", "teacher_steps": 2, "student_steps": 1}
    conversion = {"method": "conversion"}
    found = []
    for methods in (
        [progressive],
        [conversion],
        [progressive | {"weight": 2.0}, conversion | {"weight": 0.5}],
    ):
        recipe = tiny.recipe({"methods": methods})
        run = tiny.Run(build.build_stage(recipe, 0, base, []), recipe)
        _, batch = run.batch()
        modules = {name: state.role.module for name, state in run.state.roles.items()}
        with torch.no_grad():  # a student of its own, or it would be its teacher without any loss
            modules["student"].out.bias.add_(1.0)  # type: ignore[operator, union-attr]
        found.append((batch, run, modules))
    batch = found[2][0]
    alone = []
    for place, (_, run, modules) in enumerate(found[:2]):
        own = {k: v for k, v in batch.items() if "." not in k}
        own |= {f"0.{k[2:]}": v for k, v in batch.items() if k.startswith(f"{place}.")}
        alone.append(run.task.loss("student", own, modules, {}, 0)[0])
    loss, values = found[2][1].task.loss("student", batch, found[2][2], {}, 0)
    torch.testing.assert_close(loss, 2.0 * alone[0] + 0.5 * alone[1])
    assert set(values) == {"0.error", "1.error"}


def test_conditions_of_a_batch_and_their_empty_ones() -> None:
    text, uncond = torch.randn(3, 5, 8), torch.randn(5, 8)
    batch = {"latents": torch.zeros(3, 1), "text": text, "uncond": uncond, "pooled": torch.randn(3, 4)}
    told, null = conditions_of(batch)
    assert null is not None and told.text is text
    without = told.unconditional(null)
    assert without.text is not None and without.pooled is not None
    assert torch.equal(without.text, uncond.expand(3, 5, 8)) and not without.pooled.any()
    told, null = conditions_of({"classes": torch.tensor([0, 1])}, null_class=7)
    assert null is not None and null.classes is not None and null.classes.tolist() == [7]
    assert conditions_of({"latents": torch.zeros(1, 2)}) == (Conditions(), None)


# The cast


def test_the_fake_score_begins_as_what_its_weights_mean() -> None:
    """DMD2 on a student that was converted to x0: its copy gives x0 too, and must be asked for that."""
    base = tiny.base()
    stage = build.build_stage(
        tiny.recipe({"methods": [DMD], "student": {"prediction_type": "sample"}}), 0, base, []
    )
    run = tiny.Run(stage, tiny.recipe({"methods": [DMD]}))
    _, batch = run.batch()
    told = tiny.batch_context(run, batch)
    method: Any = stage.task.methods[0].method
    sample = torch.zeros(4, 2)
    t = told.drawn["matched"]
    x_t = told.schedule.forward(sample, told.drawn["matching"], t)
    expected = ask(told.student, x_t, t, told.conditions, told.schedule, "sample")
    real = told.teacher.denoiser(told.conditions)(x_t, t)
    direction = (expected.x0 - real.x0) / (real.x0.abs().mean(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(method._direction(told, sample), direction.detach())
    # and it is taught in the same terms: what it is right about costs nothing.
    right = tiny.Told(lambda x, t, _: sample, told.schedule)
    told = dataclasses.replace(told, networks={"fake_score": Scoring(right)}, shared={"sample": sample})
    assert float(method.critic_loss("fake_score", told)[1]["denoising"].max()) < 1e-8


class Scoring(torch.nn.Module):
    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions, logits: bool = False) -> Tensor:
        return x.sum(1, keepdim=True) if logits else self.network(x, time, conditions)


class Dropping(MLPDenoiser):
    """Drops half of its output while it is trained."""

    def forward(self, x_t: Tensor, model_time: Tensor, conditions: Conditions) -> Tensor:
        output = super().forward(x_t, model_time, conditions)
        return torch.nn.functional.dropout(output, 0.5, self.training)


def test_a_network_that_teaches_itself_does_not_drop_out_as_teacher() -> None:
    """An adapter's network is in training mode for its student; its teacher's part is not."""
    base = tiny.base(Dropping(width=8, depth=2, classes=4))
    section = {"methods": [{"method": "conversion"}], "student": {"mode": "lora", "lora": {
        "rank": 2, "targets": ["all-linear-conv"]}}}  # fmt: skip
    recipe = tiny.recipe(section)
    run = tiny.Run(build.build_stage(recipe, 0, base, []), recipe)
    network = run.state.roles["student"].role.module
    assert network.training and list(run.state.roles) == ["student"]
    x, t = torch.randn(4, 2), np.full(4, 500.0)
    told = Conditions(classes=torch.zeros(4, dtype=torch.int64))
    assert base.open_network is not None
    expected = ask(base.open_network(), x, t, told, base.schedule, "v_prediction").x0
    torch.testing.assert_close(run.task.teacher.denoiser(told)(x, t).x0, expected)
    assert network.training


def test_trained_weights_need_no_gradient_before_the_task_says_so() -> None:
    """A merged adapter leaves its network frozen; as the only role nobody else would thaw it."""
    network = MLPDenoiser(width=8, depth=2, classes=4).requires_grad_(False)
    method = Progressive(
        sections.ProgressiveMethod(method="progressive", teacher_steps=2, student_steps=1), tiny.ZERO_SNR
    )
    task = StageTask(
        student=Role(module=network, weights=network, optimiser=Optimiser(), schedule=Schedule()),
        student_type="v_prediction",
        teacher=tiny.ExactTeacher(ONE, tiny.ZERO_SNR),
        teacher_role=None,
        methods=[Weighted(1.0, method)],
        schedule=tiny.ZERO_SNR,
        seed=0,
        batch_size=4,
    )
    run = tiny.Run(task, tiny.recipe({"methods": [DMD]}))
    before = weights_digest(network)
    run.step()
    assert weights_digest(network) != before


# Check 23: how a batch is cut


STAGES: dict[str, dict[str, Any]] = {
    "progressive": {"methods": [{"method": "progressive", "teacher_steps": 4, "student_steps": 2}]},
    "conversion": {"methods": [{"method": "conversion", "guidance_scale": 2.0, "unconditional": 0.3}]},
    "lcm": {"methods": [{"method": "lcm", "guidance": [1.0, 3.0], "num_steps": 10}]},
    "lightning": {"methods": [LIGHTNING]},
    "flash": {
        "methods": [CURRICULUM | {"discriminator": {"channels": 4}, "critic": {"learning_rate": 1e-2}}]
    },
    "dmd2": {"methods": [DMD | {"timesteps": [999.0, 499.0]}], "student_every": 2},
}


@pytest.mark.parametrize("kind", STAGES)
def test_check_23_parts_of_a_batch_give_the_gradients_of_the_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every role in every batch; what all images share (a start, a scale) is the same in all parts."""
    found: list[dict[str, Tensor]] = []
    real = tiny.Loop._update

    def update(self: Any, active: Any, losses: Any, fed: Any) -> None:
        for role in active:
            norms = {f"{role.name}/{n}": p.grad for n, p in role.role.weights.named_parameters()}
            found[-1] |= {k: v.clone() for k, v in norms.items() if v is not None}
            found[-1][f"{role.name}/loss"] = losses[role.name].clone()
        real(self, active, losses, fed)

    monkeypatch.setattr(tiny.Loop, "_update", update)
    for parts in (1, 2):
        # Adam divides by the size of gradients, so that rounding counts in full where they are tiny.
        calm = {"optimiser": {"learning_rate": 1e-2, "eps": 1e-2}}
        recipe = tiny.recipe(STAGES[kind] | calm, runtime=tiny.RECIPE["runtime"] | {"accumulation": parts})
        run = tiny.Run(build.build_stage(recipe, 0, tiny.base(), []), recipe)
        found.append({})
        run.step(4)  # the last of them is compared: by then the weights came from cut batches too
    whole, cut = found
    assert whole.keys() == cut.keys()
    critics = {"lightning": {"discriminator"}, "flash": {"fake_score"}, "dmd2": {"fake_score"}}
    assert {key.split("/")[0] for key in whole} == {"student"} | critics.get(kind, set())
    for key, value in whole.items():
        torch.testing.assert_close(cut[key], value, rtol=2e-3, atol=2e-4, msg=key)


@pytest.mark.parametrize("kind", ["lightning", "flash", "dmd2"])
def test_check_23_half_precision_is_close(kind: str) -> None:
    recipe = tiny.recipe(STAGES[kind])
    run = tiny.Run(build.build_stage(recipe, 0, tiny.base(), []), recipe)
    _, batch = run.batch()
    modules = {name: state.role.module for name, state in run.state.roles.items()}
    with torch.no_grad():
        modules["student"].out.bias.add_(1.0)  # type: ignore[operator, union-attr]
    for role in ("student", next(name for name in modules if name not in ("student", "teacher"))):
        exact = run.task.loss(role, batch, modules, {}, 16)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rough = run.task.loss(role, batch, modules, {}, 16)[0]
        torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.05)


# Check 26: fixed samples


def test_check_26_one_step_learns_eight_fixed_samples_by_heart() -> None:
    torch.manual_seed(0)
    toy = two_modes()
    method = Progressive(
        sections.ProgressiveMethod(method="progressive", teacher_steps=8, student_steps=1), tiny.ZERO_SNR
    )
    student = MLPDenoiser(width=32, depth=2, classes=8)
    x0 = tiny.points(toy, 8)[0].float()
    told = tiny.context(
        method,
        x0,
        student,
        tiny.ExactTeacher(toy.only(None), tiny.ZERO_SNR),
        tiny.ZERO_SNR,
        student_type="v_prediction",
        conditions=Conditions(classes=torch.full((8,), 8)),
    )
    found = tiny.fit(method, student, lambda step: dataclasses.replace(told, shared={}), 150, rate=5e-3)
    assert found[0] > 0.2 and found[-1] < 1e-3


def test_predictions_are_read_in_the_students_own_terms() -> None:
    network = MLPDenoiser(width=8, depth=2, classes=2)
    x, t = torch.randn(3, 2), np.array([10.0, 500.0, 900.0])
    for kind in ("epsilon", "sample", "v_prediction", "flow_prediction"):
        raw = network(x, torch.from_numpy(t).float(), Conditions())
        expected = to_prediction(raw, x, t, tiny.PLAIN, kind)
        found = ask(network, x, t, Conditions(), tiny.PLAIN, kind)
        torch.testing.assert_close(found.x0, expected.x0)
        torch.testing.assert_close(found.eps, expected.eps)
