"""The same bundle of conditions reaches teacher, student, critic and discriminator, whatever the teacher is.

Inpainting, super-resolution, models with an adapter or a ControlNet, and classes without texts: all are
distilled by the same sections of a recipe, guidance leaves out the text (or the class) and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fewstep.distillation import build, conditioned
from fewstep.distillation.method import Context
from fewstep.distillation.task import conditions_of
from fewstep.errors import RecipeError, UsageError
from fewstep.models.conditions import Conditions, joined
from fewstep.models.denoiser import ConditionedUNet
from fewstep.training.state import weights_digest

B, SIDE, NULL = 3, 8, 5
TEXTS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 8,
}
PLAIN: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
}
SKIPS = ((4, SIDE), (4, SIDE), (4, SIDE // 2), (8, SIDE // 2))
"""Channels and side of what the U-Net's down blocks hand over to its up blocks."""
KINDS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = {
    # what the network is, and what it is told beside texts, by shape of one image
    "inpainting": (TEXTS | {"in_channels": 9}, {"concat": (5, SIDE, SIDE)}),
    "super_resolution": (
        TEXTS | {"in_channels": 8, "num_class_embeds": 9},
        {"concat": (4, SIDE, SIDE), "classes": ()},
    ),
    "adapter": (TEXTS, {f"adapter_residuals.{i}": (4 * (i + 1), SIDE // 2, SIDE // 2) for i in range(2)}),
    "controlnet": (
        TEXTS,
        {f"residuals.{i}": (c, s, s) for i, (c, s) in enumerate(SKIPS)}
        | {"mid_residual": (8, SIDE // 2, SIDE // 2)},
    ),
    "classes": (PLAIN | {"num_class_embeds": NULL + 1}, {"classes": ()}),
}
SEEN_IN_THE_MIDDLE = {
    "inpainting": "concat",
    "super_resolution": "classes",
    "adapter": "adapter_residuals.1",
    "controlnet": "mid_residual",
    "classes": "classes",
}
PHASE = {"steps": 9, "mode_weights": [1.0, 1.0], "adversarial": 0.1, "distribution": 0.1, "guidance": [2, 2]}
METHODS: dict[str, dict[str, Any]] = {
    "progressive": {"method": "progressive", "teacher_steps": 4, "student_steps": 2, "guidance_scale": 2.0},
    "lightning": {
        "method": "lightning",
        "teacher_steps": 4,
        "student_steps": 2,
        "guidance_scale": 2.0,
        "distance": "l2",
        "discriminator": {"channels": 4, "r1": 0.1},
    },
    "lcm": {"method": "lcm", "num_steps": 10, "guidance": [2.0, 4.0]},
    "flash": {
        "method": "flash",
        "teacher_steps": 2,
        "phases": [PHASE],
        "discriminator": {"channels": 4},
        "critic": {"learning_rate": 1e-3},
    },
    "dmd2": {
        "method": "dmd2",
        "timesteps": [999.0, 499.0],
        "guidance_scale": 2.0,
        "discriminator": {"channels": 4},
    },
}
CRITICS = {"lightning": {"discriminator"}, "flash": {"fake_score"}, "dmd2": {"fake_score"}}
"""Roles with a U-Net of their own; Flash's discriminator looks through the teacher's."""


def unet(kind: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    options: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "sample_size": SIDE, "norm_num_groups": 2}
    options |= {"block_out_channels": (4, 8), "layers_per_block": 1, "attention_head_dim": 2}
    return UNet2DConditionModel(**options | KINDS[kind][0])


class Pictures:
    """Latents and all that a kind of teacher is told, every row of its own."""

    def __init__(self, kind: str, size: int = 12) -> None:
        self.texts, self.shapes, self.size = "cross_attention_dim" in KINDS[kind][0], KINDS[kind][1], size

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        def rows(key: str, shape: tuple[int, ...]) -> np.ndarray:
            if key == "classes":
                return indices.astype(np.int64) % NULL
            own = [np.random.default_rng([int(i), *key.encode()]) for i in indices]
            return np.stack([g.standard_normal(shape, dtype=np.float32) for g in own])

        found: dict[str, Any] = {key: rows(key, shape) for key, shape in self.shapes.items()}
        found["latents"] = rows("latents", (4, SIDE, SIDE))
        if self.texts:
            found |= {"text": rows("text", (3, 8)), "uncond": np.full((3, 8), 0.5, np.float32)}
        return found

    def fingerprint(self) -> str:
        return f"pictures-{self.size}"


def run_of(kind: str, method: str, mode: str = "full") -> tiny.Run:
    data = Pictures(kind)
    base = tiny.base(ConditionedUNet(unet(kind)), data, native_sizes=((16, 16),))
    base = dataclasses.replace(base, null_class=NULL if kind == "classes" else None)
    recipe = tiny.recipe(
        {"methods": [METHODS[method]], "student": {"mode": mode, "lora": {"rank": 2}}},
        data={"source": "points", "batch_size": B},
    )
    return tiny.Run(build.build_stage(recipe, 0, base, []), recipe, data)


@dataclasses.dataclass
class Call:
    """What a diffusers network was given: latents, and conditions by the names of a sample."""

    role: str
    x: Tensor
    told: dict[str, Tensor]


def watched(stage: tiny.Run) -> list[Call]:
    """Note every call of every role's own U-Net, behind all of our wrappers."""
    calls: list[Call] = []

    def watch(role: str, network: torch.nn.Module) -> None:
        def note(_: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
            told = {"text": given["encoder_hidden_states"], "classes": given["class_labels"]}
            told |= {"mid_residual": given["mid_block_additional_residual"]}
            for name, key in (("residuals", "down_block"), ("adapter_residuals", "down_intrablock")):
                for i, value in enumerate(given[f"{key}_additional_residuals"] or ()):
                    told[f"{name}.{i}"] = value
            if args[0].shape[1] > 4:
                told["concat"] = args[0][:, 4:]
            found = {key: value.detach().clone() for key, value in told.items() if value is not None}
            calls.append(Call(role, args[0][:, :4].detach().clone(), found))

        network.register_forward_pre_hook(note, with_kwargs=True)

    for role, state in stage.state.roles.items():
        for part in state.role.module.modules():
            if isinstance(part, UNet2DConditionModel):
                watch(role, part)
    return calls


def is_told(call: Call, batch: Mapping[str, Any]) -> bool:
    """Check one call against the batch, and say whether it was doubled for guidance."""
    wanted = {key: value for key, value in batch.items() if conditioned.is_condition(key)}
    assert call.told.keys() == wanted.keys(), call.role
    if call.role == "discriminator":  # one pass for the ends and the start of a jump
        assert len(call.x) % B == 0
        for key, value in wanted.items():
            assert torch.equal(call.told[key], torch.cat([value] * (len(call.x) // B))), (call.role, key)
        return False
    doubled = len(call.x) == 2 * B
    assert doubled or len(call.x) == B
    for key, value in wanted.items():
        assert torch.equal(call.told[key][-B:], value), (call.role, key)
        if doubled and key == "text":
            value = batch["uncond"].expand(value.shape)
        elif doubled and key == "classes" and "text" not in wanted:
            value = torch.full_like(value, NULL)
        assert torch.equal(call.told[key][:B], value), (call.role, key, "in the unguided half")
    if doubled:
        assert torch.equal(call.x[:B], call.x[B:])
    return doubled


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_role_is_given_the_same_conditions(kind: str, method: str) -> None:
    """In full training and as an adapter, where the student's network is also its own teacher."""
    both = kind in ("inpainting", "adapter") and method in ("lightning", "flash")
    for mode in ("full", "lora") if both else ("full",):
        stage = run_of(kind, method, mode)
        before = {name: weights_digest(state.role.weights) for name, state in stage.state.roles.items()}
        fed, batch = stage.batch()
        calls = watched(stage)
        stage.loop.step(fed)
        doubled = {call.role for call in calls if is_told(call, batch)}
        teacher = "teacher" if mode == "full" else "student"
        assert {call.role for call in calls} == {"student", teacher, *CRITICS.get(method, ())}
        assert doubled == {teacher}
        for name, state in stage.state.roles.items():
            assert state.guard.skipped == 0
            assert (weights_digest(state.role.weights) != before[name]) == (name != "teacher")


def changed(batch: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Another condition in the last row."""
    value = batch[key].clone()
    value[-1] = (value[-1] + 1) % NULL if key == "classes" else value[-1] + 1.0
    return {**batch, key: value}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_depends_on_every_condition_of_its_own_row(kind: str, method: str) -> None:
    stage = run_of(kind, method)
    _, batch = stage.batch()
    modules = {name: state.role.module for name, state in stage.state.roles.items()}
    with torch.no_grad():  # a student of its own: its teacher's would agree with it whatever both are told
        for parameter in modules["student"].parameters():
            parameter.mul_(1.1)
    for role in modules:
        if role == "teacher":
            continue
        first = stage.task.loss(role, batch, modules, {}, 0)[0].detach()
        for key in filter(conditioned.is_condition, batch):
            if key in ("residuals.1", "residuals.2", "residuals.3"):
                continue  # as residuals.0
            other = stage.task.loss(role, changed(batch, key), modules, {}, 0)[0].detach()
            assert torch.equal(other[:-1], first[:-1])
            assert abs(float(other[-1] - first[-1])) > 1e-6 * abs(float(first[-1])), (role, key)


@pytest.mark.parametrize("kind", KINDS)
def test_students_and_judges_look_at_the_condition_and_not_only_at_its_effects(kind: str) -> None:
    """The same picture under another condition is predicted, and judged, otherwise."""
    for method in ("lightning", "flash", "dmd2"):
        stage = run_of(kind, method)
        _, batch = stage.batch()
        context = tiny.batch_context(stage, batch)
        other = tiny.batch_context(stage, changed(batch, SEEN_IN_THE_MIDDLE[kind]))
        x, t = torch.ones_like(context.x0), np.full(B, 500.0)
        time = torch.full((B,), 500.0)
        first, second = (told.predict(x, t).x0.detach() for told in (context, other))
        assert torch.equal(first[:-1], second[:-1]) and not torch.equal(first[-1], second[-1])
        first, second = (judged(stage, method, told, x, time) for told in (context, other))
        assert torch.equal(first[:-1], second[:-1]) and not torch.equal(first[-1], second[-1])


def judged(stage: tiny.Run, method: str, told: Context, x: Tensor, time: Tensor) -> Tensor:
    """Logits of the pictures themselves, whatever the method's discriminator is."""
    if method == "lightning":
        logits: Tensor = told.networks["discriminator"]([x], time, told.conditions, (x, time))[0]
    elif method == "dmd2":
        logits = told.networks["fake_score"](x, time, told.conditions, logits=True)
    else:
        owner: Any = stage.task.methods[0].method
        logits = told.networks["discriminator"](owner.perceive(x, time, told.conditions)[-1])
    return logits.detach()


# Guidance


def test_guidance_leaves_out_text_pooled_and_class_and_nothing_else() -> None:
    told = Conditions(
        text=torch.randn(B, 3, 8), pooled=torch.randn(B, 4), time_ids=torch.randn(B, 6),
        classes=torch.arange(B), concat=torch.randn(B, 5, 4, 4), residuals=(torch.randn(B, 4, 2, 2),) * 2,
        mid_residual=torch.randn(B, 4, 1, 1), adapter_residuals=(torch.randn(B, 4, 2, 2),),
        guidance=torch.ones(B),
    )  # fmt: skip
    assert all(getattr(told, field.name) is not None for field in dataclasses.fields(told))
    null = Conditions(text=torch.zeros(1, 3, 8), pooled=torch.ones(1, 4), classes=torch.tensor([NULL]))
    found = told.unconditional(null)
    assert found.text is not None and not found.text.any() and found.text.shape == (B, 3, 8)
    assert found.pooled is not None and bool((found.pooled == 1).all())
    assert found.classes is not None and found.classes.tolist() == [NULL] * B
    for field in dataclasses.fields(told):
        if field.name not in ("text", "pooled", "classes"):
            assert getattr(found, field.name) is getattr(told, field.name), field.name
    both = joined(found, told)
    assert both.rows == 2 * B and len(both.residuals) == 2 and len(both.residuals[1]) == 2 * B


def test_a_noise_level_beside_a_text_is_no_class_to_leave_out() -> None:
    told = Conditions(text=torch.randn(B, 3, 8), classes=torch.arange(B))
    assert told.unconditional(Conditions(text=torch.zeros(1, 3, 8))).classes is told.classes
    with pytest.raises(UsageError, match="an unconditional text"):
        told.unconditional(Conditions(classes=torch.tensor([NULL])))
    with pytest.raises(UsageError, match="an unconditional classes"):
        Conditions(classes=torch.arange(B)).unconditional(Conditions())
    with pytest.raises(UsageError, match="no text and no class"):
        Conditions(concat=torch.zeros(B, 1, 2, 2)).unconditional(Conditions())


@pytest.mark.parametrize(
    "told",
    [
        Conditions(pooled=torch.zeros(2, 4)),
        Conditions(residuals=(torch.zeros(2, 4, 1, 1),)),
        Conditions(guidance=torch.ones(2)),
    ],
)
def test_rows_are_counted_by_whatever_is_told(told: Conditions) -> None:
    assert (told.rows, Conditions().rows) == (2, 0)


# What is missing, or would not be looked at


def one(kind: str) -> dict[str, Tensor]:
    found = Pictures(kind).batch(np.zeros(1, np.int64), np.random.default_rng(0))
    return {key: torch.from_numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_needs_is_enough(kind: str) -> None:
    conditioned.check(dict(unet(kind).config), one(kind))


@pytest.mark.parametrize(
    ("kind", "missing", "message"),
    [
        (
            "inpainting",
            "concat",
            "no concat, but the teacher takes 9 channels and latents have 4; .* other 5",
        ),
        ("inpainting", "text", "no text, which the teacher must be told"),
        ("super_resolution", "concat", "no concat, .* other 4"),
        ("super_resolution", "classes", "no classes, which the teacher must be told"),
        ("classes", "classes", "no classes"),
        ("controlnet", "mid_residual", "no mid_residual"),
        ("controlnet", "residuals.3", "3 residuals, but the teacher has 4 places"),
        ("adapter", "adapter_residuals.1", "1 adapter_residuals, but the teacher has 2 blocks"),
    ],
)
def test_a_missing_condition_is_refused_by_its_name(kind: str, missing: str, message: str) -> None:
    sample = one(kind)
    del sample[missing]
    with pytest.raises(RecipeError, match=message) as caught:
        conditioned.check(dict(unet(kind).config), sample)
    assert "\n" not in str(caught.value)


def test_sdxls_two_conditions_are_asked_for() -> None:
    config = dict(unet("adapter").config) | {"addition_embed_type": "text_time"}
    with pytest.raises(RecipeError, match="no pooled"):
        conditioned.check(config, one("adapter"))
    with pytest.raises(RecipeError, match="no time_ids"):
        conditioned.check(config, one("adapter") | {"pooled": torch.zeros(1, 4)})


@pytest.mark.parametrize(
    ("kind", "extra", "message"),
    [
        ("inpainting", "classes", "classes is given, but the teacher does not look at it"),
        ("adapter", "pooled", "pooled is given"),
        ("adapter", "concat", "latents have 9 channels .* takes 4"),
        ("adapter", "mid_residual", r"no residuals\.0"),
    ],
)
def test_a_condition_that_would_be_ignored_is_refused(kind: str, extra: str, message: str) -> None:
    values = {"classes": torch.zeros(1, dtype=torch.int64), "pooled": torch.zeros(1, 4)}
    spatial = torch.zeros(1, 5, SIDE, SIDE)
    with pytest.raises(RecipeError, match=message):
        conditioned.check(dict(unet(kind).config), one(kind) | {extra: values.get(extra, spatial)})


def test_a_class_that_means_none_must_be_one() -> None:
    conditioned.check(dict(unet("classes").config), one("classes"), NULL)
    with pytest.raises(RecipeError, match="null_class is 6: the teacher has 6 classes"):
        conditioned.check(dict(unet("classes").config), one("classes"), NULL + 1)
    with pytest.raises(RecipeError, match="null_class is 0: the teacher has no classes"):
        conditioned.check(dict(unet("adapter").config), one("adapter"), 0)


def test_guidance_over_classes_without_one_that_means_none_is_refused() -> None:
    stage = run_of("classes", "progressive")
    _, batch = stage.batch()
    told, null = conditions_of(batch)
    assert null is None
    with pytest.raises(UsageError, match="guidance needs an empty caption or class"):
        stage.task.teacher.denoiser(told, null, 2.0)
