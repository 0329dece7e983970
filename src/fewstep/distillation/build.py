"""From a recipe to the cast of a stage: networks, teacher, critics, and the task that trains them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.checkpoint import safetensors
from fewstep.data.points import MixturePoints
from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.toys import MIXTURES, GaussianMixture
from fewstep.distillation import conditioned, sections
from fewstep.distillation.consistency import Lcm
from fewstep.distillation.conversion import Conversion
from fewstep.distillation.dmd import Dmd
from fewstep.distillation.flash import Flash
from fewstep.distillation.lightning import Lightning
from fewstep.distillation.method import Method
from fewstep.distillation.progressive import Progressive
from fewstep.distillation.roles import ExactTeacher, NetworkTeacher, Teacher, evaluated
from fewstep.distillation.task import STUDENT, StageTask, Weighted, conditions_of
from fewstep.errors import RecipeError
from fewstep.models import adapters, load
from fewstep.models.components import Components
from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import ConditionedUNet, cut, default_tap, features
from fewstep.models.discriminators import Head, PairDiscriminator, ScoringDenoiser
from fewstep.models.mlp import MLPDenoiser
from fewstep.training import checkpointing
from fewstep.training.datasets import open_dataset
from fewstep.training.denoiser import noise_schedule
from fewstep.training.feed import Dataset
from fewstep.training.task import Role


@dataclass(frozen=True)
class Base:
    """What a recipe distils.

    Attributes:
        contract: how it is sampled.
        schedule: of all times.
        dataset: where x0 and conditions come from.
        open_network: loads its denoiser as it is called, a new one every time, because a stage that trains an
            adapter on it needs no second copy in memory; None for an exact teacher.
        mixture: the exact teacher.
        components: of a pipeline folder; the denoiser without its weights.
        sample: one sample of the data as a batch, to measure networks with.
        null_class: the class that means none.
    """

    contract: SamplingContract
    schedule: Schedule
    dataset: Dataset
    open_network: Callable[[], nn.Module] | None
    mixture: GaussianMixture | None
    components: Components | None
    sample: Mapping[str, Any]
    null_class: int | None


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


def open_base(recipe: sections.DistillationRecipe) -> Base:
    """Load the teacher and the data of a recipe.

    Raises:
        RecipeError: a mixture's option that it does not have, or data that do not fit the teacher.
        DataError: the data or the folder of conditions cannot be opened.
        CheckpointError: a pipeline folder that cannot be loaded.
    """
    if recipe.teacher.mixture is not None:
        return _toy(recipe, recipe.teacher.mixture)
    assert recipe.teacher.pipeline is not None
    folder = Path(recipe.teacher.pipeline).expanduser()
    components = load.pipeline(folder)
    components = dataclasses.replace(components, denoiser=components.denoiser.to("meta"))
    dataset = open_dataset(recipe.data)
    if recipe.conditions is not None:
        dataset = conditioned.Conditioned(dataset, Path(recipe.conditions).expanduser())
    sample = _first(dataset)
    conditioned.check(dict(components.denoiser.config), sample, recipe.teacher.null_class)
    return Base(
        components.contract,
        components.contract.make_schedule(),
        dataset,
        lambda: ConditionedUNet(load.denoiser(folder / "unet")),
        None,
        components,
        sample,
        recipe.teacher.null_class,
    )


def _toy(recipe: sections.DistillationRecipe, section: sections.Mixture) -> Base:
    mixture = make_mixture(section)
    if recipe.data.source != "points":
        raise RecipeError(
            f"data.source is {recipe.data.source!r}: a mixture teaches its own points; use points"
        )
    noise = section.schedule
    spec = ScheduleSpec(
        name="rectified_flow" if noise.kind == "flow" else noise.kind,
        num_train_timesteps=noise.num_train_timesteps,
        beta_start=noise.beta_start,
        beta_end=noise.beta_end,
        rescale_zero_terminal_snr=noise.rescale_zero_terminal_snr,
        shift=noise.shift,
    )
    contract = SamplingContract(
        base_family="toy",
        prediction_type=section.prediction_type,
        schedule=spec,
        solver="flow_euler" if noise.kind == "flow" else "ddim",
        native_sizes=((1, 1),),
    )
    dataset = MixturePoints(mixture, recipe.seed)
    labels = int(mixture.labels.max()) + 1
    return Base(contract, noise_schedule(noise), dataset, None, mixture, None, _first(dataset), labels)


def make_mixture(section: sections.Mixture) -> GaussianMixture:
    """The mixture that a recipe names.

    Raises:
        RecipeError: an option that its kind does not have.
    """
    options: dict[str, Any] = dict(section.options)
    try:
        mixture = MIXTURES[section.kind](**options)
    except TypeError as error:
        raise RecipeError(f"teacher.mixture.options: {error}; see fewstep.diffusion.toys") from None
    return mixture if section.classes else dataclasses.replace(mixture, labels=np.zeros_like(mixture.labels))


def _first(dataset: Dataset) -> Mapping[str, Any]:
    sample = dataset.batch(np.zeros(1, np.int64), np.random.default_rng(0))
    return {k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v for k, v in sample.items()}


def student_type(recipe: sections.DistillationRecipe, place: int, base: Base) -> str:
    """What the output of a stage's student means."""
    section = recipe.stages[place].student
    if section.prediction_type is not None:
        return section.prediction_type
    source = source_stage(recipe, place)
    return base.contract.prediction_type if source is None else student_type(recipe, source, base)


def source_stage(recipe: sections.DistillationRecipe, place: int) -> int | None:
    """The stage whose result a stage's student starts from; None for the base or new weights."""
    start = recipe.stages[place].student.start
    if start == "teacher":
        return _teacher_stage(recipe, place)
    if start == "previous":
        return place - 1 if place else None
    return None if start == "random" else _named(recipe, start)


def _teacher_stage(recipe: sections.DistillationRecipe, place: int) -> int | None:
    name = recipe.stages[place].teacher
    if name == "base" or (name == "previous" and place == 0):
        return None
    return place - 1 if name == "previous" else _named(recipe, name)


def _named(recipe: sections.DistillationRecipe, name: str) -> int:
    return [stage.name for stage in recipe.stages].index(name)


def result(recipe: sections.DistillationRecipe, place: int, base: Base, folders: list[Path]) -> nn.Module:
    """The trained network of a stage, adapters folded in, as plain weights.

    Raises:
        NotFoundError: the stage has no checkpoint.
        CheckpointError: it is of another network.
    """
    network = _start(recipe, place, base, folders)
    source = checkpointing.weights(folders[place], STUDENT)
    section, inner = recipe.stages[place].student, _inner(network)
    if section.mode == "lora":
        weights = adapters.add_lora(inner, _lora(section), seed=recipe.seed)
        checkpointing.copy_into(weights, safetensors.load_torch(source), source)
        adapters.merge(inner)
        inner.requires_grad_(True)  # merging leaves the weights as the adapter found them: frozen
    else:
        checkpointing.copy_into(inner, safetensors.load_torch(source), source)
    return network


def _start(recipe: sections.DistillationRecipe, place: int, base: Base, folders: list[Path]) -> nn.Module:
    """A network of its own with the weights that a stage's student starts from."""
    section, source = recipe.stages[place].student, source_stage(recipe, place)
    if section.mode == "merge" and (source is None or recipe.stages[source].student.mode != "lora"):
        raise RecipeError(
            f"stage {recipe.stages[place].name}: mode merge needs a lora stage before it; use mode full"
        )
    if source is not None:
        return result(recipe, source, base, folders)
    if base.open_network is not None:
        if section.start == "random":
            raise RecipeError(f"stage {recipe.stages[place].name}: start random is for mixtures; use teacher")
        return base.open_network()
    if section.start != "random":
        raise RecipeError(
            f"stage {recipe.stages[place].name}: a mixture has no network to start from; use start random"
        )
    assert recipe.teacher.mixture is not None and base.null_class is not None
    torch.manual_seed(recipe.seed)
    toy = recipe.teacher.mixture
    # Flows count time to 1, but the network is given T times that
    return MLPDenoiser(
        toy.width, toy.depth, base.null_class, time_scale=float(toy.schedule.num_train_timesteps)
    )


def _inner(network: nn.Module) -> nn.Module:
    return network.network if isinstance(network, ConditionedUNet) else network


def _lora(section: sections.Student) -> adapters.LoraSpec:
    return adapters.LoraSpec(rank=section.lora.rank, alpha=section.lora.alpha, targets=section.lora.targets)


def build_stage(recipe: sections.DistillationRecipe, place: int, base: Base, folders: list[Path]) -> Stage:
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
    network = _start(recipe, place, base, folders)
    inner, kind = _inner(network), student_type(recipe, place, base)
    teacher_stage = _teacher_stage(recipe, place)
    teacher_type = base.contract.prediction_type
    if teacher_stage is not None:
        teacher_type = student_type(recipe, teacher_stage, base)
    exact = teacher_stage is None and base.mixture is not None
    # An adapter on the teacher's own weights: switched off, the student is the teacher.
    alone = section.student.mode == "lora" and teacher_stage == source_stage(recipe, place) and not exact
    teacher: Teacher
    teacher_role: Role | None = None
    weights = inner
    torch.manual_seed(recipe.seed + place)
    if section.student.mode == "lora":
        fresh = copy.deepcopy(network)  # critics start from weights without an adapter
        weights = adapters.add_lora(inner, _lora(section.student), seed=recipe.seed + place)
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
            module = result(recipe, teacher_stage, base, folders)
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
        self, section: sections.StageSection, base: Base, fresh: nn.Module, teacher: Teacher, *, alone: bool
    ) -> None:
        self.section, self.base, self.fresh, self.teacher, self.alone = section, base, fresh, teacher, alone

    def build(self, section: sections.Method) -> Method:
        schedule, rate = self.base.schedule, self.section.schedule
        if isinstance(section, sections.ProgressiveMethod):
            return Progressive(section, schedule)
        if isinstance(section, sections.ConversionMethod):
            return Conversion(section, schedule)
        if isinstance(section, sections.LcmMethod):
            config = getattr(_inner(self.fresh), "config", {})
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
