"""What a recipe distils, and the weights from which its students start."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters.reading import read_adapter
from fewstep.data.points import MixturePoints
from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.toys import MIXTURES, GaussianMixture
from fewstep.distillation import conditioned, sections
from fewstep.distillation.task import STUDENT
from fewstep.errors import NotFoundError, RecipeError
from fewstep.models import adapters, load, lora_apply
from fewstep.models.components import Components
from fewstep.models.denoiser import ConditionedUNet
from fewstep.models.mlp import MLPDenoiser
from fewstep.training import checkpointing
from fewstep.training.datasets import open_dataset
from fewstep.training.denoiser import noise_schedule
from fewstep.training.feed import Dataset


@dataclass(frozen=True)
class Base:
    """What a recipe distils.

    Attributes:
        contract: how it is sampled.
        schedule: of all times.
        dataset: where x0 and conditions come from.
        open_network: loads its denoiser as it is called, a new one every time, because a stage that trains an
            adapter on it needs no second copy in memory; None for an exact teacher.
        landed: contracts of the students that stand in the pipeline folder, by name.
        open_landed: loads the denoiser of one of these.
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
    landed: Mapping[str, SamplingContract] = dataclasses.field(default_factory=dict)
    open_landed: Callable[[str], nn.Module] | None = None


def open_base(recipe: sections.DistillationRecipe) -> Base:
    """Load the teacher and the data of a recipe.

    Raises:
        RecipeError: a mixture's option that it does not have, or data that do not fit the teacher.
        DataError: the data or the folder of conditions cannot be opened.
        CheckpointError: a pipeline folder that cannot be loaded, or an adapter that does not fit it.
        NotFoundError: no such adapter, or no such student in the folder.
    """
    if recipe.teacher.mixture is not None:
        return _toy(recipe, recipe.teacher.mixture)
    assert recipe.teacher.pipeline is not None
    folder = Path(recipe.teacher.pipeline).expanduser()
    landed = load.student_contracts(folder)
    for stage in recipe.stages:
        name = sections.landed_name(stage.student.start)
        if name is not None and name not in landed:
            there = ", ".join(sorted(landed)) or "none"
            raise NotFoundError(f"stage {stage.name}: {folder} has no student {name!r}; it has {there}")
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
        lambda: ConditionedUNet(_adapted(load.denoiser(folder / "unet"), recipe.teacher.adapter)),
        None,
        components,
        sample,
        recipe.teacher.null_class,
        landed,
        lambda name: ConditionedUNet(load.load_student(folder, name)[0]),
    )


def _adapted(network: Any, adapter: str | None) -> Any:
    """The teacher's denoiser with its adapter folded in for good."""
    if adapter is not None:
        parts = {"unet": network}
        found = read_adapter(Path(adapter).expanduser(), base=lora_apply.shapes(parts))
        lora_apply.merged(parts, [(found, 1.0, 0.0)])
    return network


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
    if (name := sections.landed_name(section.start)) is not None:
        return base.landed[name].prediction_type
    source = source_stage(recipe, place)
    return base.contract.prediction_type if source is None else student_type(recipe, source, base)


def source_stage(recipe: sections.DistillationRecipe, place: int) -> int | None:
    """The stage whose result a stage's student starts from; None for what is no stage's."""
    start = recipe.stages[place].student.start
    if start == "teacher":
        return teacher_stage(recipe, place)
    if start == "previous":
        return place - 1 if place else None
    return None if start == "random" or sections.landed_name(start) else _named(recipe, start)


def starts_as_base(recipe: sections.DistillationRecipe, place: int) -> bool:
    """Whether a stage's student starts from the base itself."""
    start = recipe.stages[place].student.start
    return source_stage(recipe, place) is None and start != "random" and not sections.landed_name(start)


def teacher_stage(recipe: sections.DistillationRecipe, place: int) -> int | None:
    """The stage whose result teaches a stage; None for the base."""
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
    network = start(recipe, place, base, folders)
    source = checkpointing.weights(folders[place], STUDENT)
    section, plain = recipe.stages[place].student, inner(network)
    if section.mode == "lora":
        weights = adapters.add_lora(plain, lora_spec(section), seed=recipe.seed)
        checkpointing.copy_into(weights, safetensors.load_torch(source), source)
        adapters.merge(plain)
        plain.requires_grad_(True)  # merging leaves the weights as the adapter found them: frozen
    else:
        checkpointing.copy_into(plain, safetensors.load_torch(source), source)
    return network


def start(recipe: sections.DistillationRecipe, place: int, base: Base, folders: list[Path]) -> nn.Module:
    """A network of its own with the weights that a stage's student starts from."""
    section, source = recipe.stages[place].student, source_stage(recipe, place)
    if section.mode == "merge" and (source is None or recipe.stages[source].student.mode != "lora"):
        raise RecipeError(
            f"stage {recipe.stages[place].name}: mode merge needs a lora stage before it; use mode full"
        )
    if source is not None:
        return result(recipe, source, base, folders)
    if (name := sections.landed_name(section.start)) is not None:
        assert base.open_landed is not None, "refused by check_recipe"
        return base.open_landed(name)
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


def inner(network: nn.Module) -> nn.Module:
    """The network without what hands it its conditions."""
    return network.network if isinstance(network, ConditionedUNet) else network


def lora_spec(section: sections.Student) -> adapters.LoraSpec:
    """A recipe's adapter, as `fewstep.models.adapters` takes it."""
    return adapters.LoraSpec(rank=section.lora.rank, alpha=section.lora.alpha, targets=section.lora.targets)
