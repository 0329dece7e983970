"""From a recipe to the cast of a stage: networks, teacher, critics, and the task that trains them."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.contract import SamplingContract
from fewstep.distillation import origins, sections
from fewstep.distillation.consistency import Lcm
from fewstep.distillation.conversion import Conversion
from fewstep.distillation.dmd import Dmd
from fewstep.distillation.flash import Flash
from fewstep.distillation.lightning import Lightning
from fewstep.distillation.method import Method
from fewstep.distillation.progressive import Progressive
from fewstep.distillation.roles import ExactTeacher, NetworkTeacher, Teacher, evaluated
from fewstep.distillation.task import StageTask, Weighted, conditions_of
from fewstep.errors import RecipeError
from fewstep.models import adapters
from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import cut, default_tap, features
from fewstep.models.discriminators import Head, PairDiscriminator, ScoringDenoiser
from fewstep.training.task import Role


@dataclass(frozen=True)
class Stage:
    """A stage ready to be trained.

    Attributes:
        task: for the training loop.
        network: the student's network without any wrapper.
        contract: how the finished student is sampled.
    """

    task: StageTask
    network: nn.Module
    contract: SamplingContract


def build_stage(
    recipe: sections.DistillationRecipe, place: int, base: origins.Base, folders: list[Path]
) -> Stage:
    """Put the cast of a stage together.

    Args:
        recipe: the whole recipe.
        place: which of its stages.
        base: what it distils.
        folders: run folders of the stages before, which must be finished.

    Raises:
        RecipeError: stages that cannot follow each other, or a discriminator without a network to look with.
    """
    section = recipe.stages[place]
    network = origins.start(recipe, place, base, folders)
    inner, kind = origins.inner(network), origins.student_type(recipe, place, base)
    teacher_stage = origins.teacher_stage(recipe, place)
    teacher_type = base.contract.prediction_type
    if teacher_stage is not None:
        teacher_type = origins.student_type(recipe, teacher_stage, base)
    exact = teacher_stage is None and base.mixture is not None
    # An adapter on the teacher's own weights: switched off, the student is the teacher.
    same = (
        origins.starts_as_base(recipe, place)
        if teacher_stage is None
        else origins.source_stage(recipe, place) == teacher_stage
    )
    alone = section.student.mode == "lora" and same and not exact
    teacher: Teacher
    teacher_role: Role | None = None
    weights = inner
    torch.manual_seed(recipe.seed + place)
    if section.student.mode == "lora":
        fresh = copy.deepcopy(network)  # critics start from weights without an adapter
        weights = adapters.add_lora(inner, origins.lora_spec(section.student), seed=recipe.seed + place)
    else:
        fresh = network
    if exact:
        assert base.mixture is not None
        teacher = ExactTeacher(base.mixture, base.schedule, teacher_type)
    elif alone:
        teacher = NetworkTeacher(network, base.schedule, teacher_type, partial(adapters.disabled, inner))
    else:
        if teacher_stage is None:
            assert base.open_network is not None
            module = base.open_network()
        else:
            module = origins.result(recipe, teacher_stage, base, folders)
        module.requires_grad_(False).eval()
        teacher = NetworkTeacher(module, base.schedule, teacher_type)
        teacher_role = Role(module=module, weights=module, optimiser=None, schedule=section.schedule)
    unet: Any = inner
    if recipe.runtime.gradient_checkpointing and hasattr(unet, "enable_gradient_checkpointing"):
        unet.enable_gradient_checkpointing()
    builder = _Methods(section, base, fresh, teacher, alone=alone)
    try:
        methods = [Weighted(method.weight, builder.build(method)) for method in section.methods]
    except RecipeError as error:
        raise RecipeError(f"stage {section.name}: {error}") from None
    task = StageTask(
        student=Role(
            module=network,
            weights=weights,
            optimiser=section.optimiser,
            schedule=section.schedule,
            ema=section.ema,
            every=section.student_every,
        ),
        student_type=kind,
        teacher=teacher,
        teacher_role=teacher_role,
        methods=methods,
        schedule=base.schedule,
        seed=recipe.seed,
        batch_size=recipe.data.batch_size,
        student_every=section.student_every,
        critic_warmup_steps=section.critic_warmup_steps,
        null_class=base.null_class,
    )
    contract = methods[0].method.contract(base.contract)
    return Stage(task, network, dataclasses.replace(contract, prediction_type=kind))


class _Methods:
    """Makes the methods of a stage with the critics that they need."""

    def __init__(
        self,
        section: sections.StageSection,
        base: origins.Base,
        fresh: nn.Module,
        teacher: Teacher,
        *,
        alone: bool,
    ) -> None:
        self.section, self.base, self.fresh, self.teacher, self.alone = section, base, fresh, teacher, alone

    def build(self, section: sections.Method) -> Method:
        schedule, rate = self.base.schedule, self.section.schedule
        if isinstance(section, sections.ProgressiveMethod):
            return Progressive(section, schedule)
        if isinstance(section, sections.ConversionMethod):
            return Conversion(section, schedule)
        if isinstance(section, sections.LcmMethod):
            config = getattr(origins.inner(self.fresh), "config", {})
            if section.embed_guidance and not dict(config).get("time_cond_proj_dim"):
                raise RecipeError(
                    "embed_guidance: the network has no place for a guidance scale (time_cond_proj_dim); "
                    "use false"
                )
            return Lcm(section, schedule)
        if isinstance(section, sections.LightningMethod):
            pair = None if section.discriminator is None else self._pair(section.discriminator)
            perceive = self._perceive(None) if section.distance == "perceptual" else None
            return Lightning(section, schedule, pair, rate, perceive)
        if isinstance(section, sections.FlashMethod):
            tap = section.discriminator.tap if section.discriminator is not None else None
            wanted = section.distance == "perceptual" or section.discriminator is not None
            perceive = self._perceive(tap) if wanted else None
            head = None
            if section.discriminator is not None:
                head = self._head(self._teacher_network(), tap, section.discriminator.channels)
            fake = copy.deepcopy(self._teacher_network()).requires_grad_(True) if section.critic else None
            return Flash(section, schedule, head=head, perceive=perceive, fake_score=fake, rate=rate)
        network = copy.deepcopy(self.fresh).requires_grad_(True)
        tap = section.discriminator.tap if section.discriminator is not None else None
        head = None
        if section.discriminator is not None:
            head = self._head(network, tap, section.discriminator.channels)
        return Dmd(section, schedule, ScoringDenoiser(network, tap or default_tap(network), head), rate)

    def _pair(self, section: sections.LightningDiscriminator) -> PairDiscriminator:
        backbone = copy.deepcopy(self.fresh).requires_grad_(True)
        tap = section.tap or default_tap(backbone)
        head = self._head(backbone, tap, section.channels, times=2 if section.conditional else 1)
        cut(backbone, tap, self.base.sample["latents"], self._conditions())
        return PairDiscriminator(backbone, tap, head)

    def _head(self, network: nn.Module, tap: str | None, channels: int, times: int = 1) -> Head:
        latents: Tensor = self.base.sample["latents"]
        conditions = self._conditions()
        with torch.no_grad():
            seen = features(network, tap or default_tap(network), latents, torch.zeros(1), conditions)
        spatial = None if seen.dim() == 2 else (int(seen.shape[2]), int(seen.shape[3]))
        return Head(times * int(seen.shape[1]), channels, spatial)

    def _conditions(self) -> Conditions:
        return conditions_of(self.base.sample, self.base.null_class)[0]

    def _teacher_network(self) -> nn.Module:
        if not isinstance(self.teacher, NetworkTeacher):
            raise RecipeError(
                "its teacher is a formula, and a discriminator needs a network's features; let an earlier "
                "stage of method conversion teach"
            )
        return self.fresh if self.alone else self.teacher.module

    def _perceive(self, tap: str | None) -> Any:
        self._teacher_network()
        teacher = self.teacher
        assert isinstance(teacher, NetworkTeacher)
        place = tap or default_tap(teacher.module)
        features(self.fresh, place, self.base.sample["latents"], torch.zeros(1), self._conditions())

        def perceive(x: Tensor, time: Tensor, conditions: Conditions) -> list[Tensor]:
            with teacher.as_base(), evaluated(teacher.module):
                return [features(teacher.module, place, x, time, conditions)]

        return perceive
