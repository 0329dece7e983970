"""What a finished distillation leaves for others: a pipeline folder and an adapter, or a toy's weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.checkpoint import atomic, safetensors
from fewstep.checkpoint.bundle import student_part
from fewstep.checkpoint.lora import save_lora
from fewstep.data.backgrounds import recipe_folder
from fewstep.diffusion.contract import SamplingContract
from fewstep.distillation import origins
from fewstep.distillation.run import stage_folders, student
from fewstep.distillation.sections import DistillationRecipe
from fewstep.distillation.task import STUDENT
from fewstep.errors import UsageError
from fewstep.models import load
from fewstep.models.components import Components
from fewstep.models.denoiser import ConditionedUNet
from fewstep.training import checkpointing

_LEGAL = ("NOTICE", "attribution.json", "README.md")


def finish(recipe: DistillationRecipe, run_folder: Path) -> Path:
    """Write the student of the last stage.

    A pipeline's student is a pipeline folder of its own, ``RUN/student``, that plain diffusers opens and
    samples as
    it must be sampled; the adapter of a lora stage on the teacher
    itself stands in it as ``adapter/pytorch_lora_weights.safetensors``.
    Where diffusers' scheduler visits other times than the student must be, the card says which to give.
    A toy's student is a safetensors file with its contract.

    Returns:
        The folder.

    Raises:
        RunError: the last stage has not reached its stop.
        OutputError: it cannot be written.
    """
    network, contract = student(recipe, run_folder)
    out = run_folder / "student"
    if not isinstance(network, ConditionedUNet):
        with atomic.folder(out, replace=True) as folder:
            safetensors.save_torch(folder / "student.safetensors", network.state_dict())
            atomic.write_text(folder / load.CONTRACT_FILE, contract.to_json())
        return out
    assert recipe.teacher.pipeline is not None
    source = Path(recipe.teacher.pipeline).expanduser()
    base = load.pipeline(source)
    texts = {name: (source / name).read_text("utf-8") for name in _LEGAL if (source / name).is_file()}
    if recipe.card is not None:
        texts["README.md"] = (recipe_folder(recipe.card) / "student.md").read_text("utf-8")
    if times := other_times(contract):
        texts["README.md"] = texts.get("README.md", "") + _note(times, contract.guidance_scale)
    components = Components(base.autoencoder, network.network, base.text_encoder, base.tokenizer, contract)
    load.save_pipeline(out, components, texts=texts, replace=True)
    last = recipe.stages[-1].student
    on_base = recipe.teacher.adapter is None and origins.starts_as_base(recipe, len(recipe.stages) - 1)
    if last.mode == "lora" and on_base:
        weights = checkpointing.weights(stage_folders(recipe, run_folder)[-1], STUDENT)
        (out / "adapter").mkdir()
        save_lora(
            out / "adapter" / "pytorch_lora_weights.safetensors",
            safetensors.load_torch(weights),
            rank=last.lora.rank,
            alpha=last.lora.alpha or float(last.lora.rank),
            contract_json=json.dumps(json.loads(contract.to_json())),
        )
    return out


@dataclass(frozen=True, slots=True)
class Landing:
    """Which stage's student is landed, and for which of the step counts it was made for; () is all."""

    stage: str
    steps: tuple[int, ...] = ()


def land(
    recipe: DistillationRecipe, run_folder: Path, stages: Mapping[str, Landing], folder: Path
) -> list[Path]:
    """Write students of finished stages into the pipeline folder of their base; all or nothing for each.

    Args:
        recipe: of the run.
        run_folder: its folder.
        stages: a student's name in ``folder`` -> what it is of.
        folder: the base, a pipeline folder; a student of the same name is replaced.

    Returns:
        The students' folders.

    Raises:
        RunError: a stage has not reached its stop.
        UsageError: it was not made for so many steps.
        NotFoundError, CheckpointError, UsageError, OutputError: as `fewstep.models.load.save_student`.
    """
    landed = []
    for name, landing in stages.items():
        network, contract = student(recipe, run_folder, stage=landing.stage)
        if landing.steps:
            contract = narrowed(contract, landing.steps)
        assert isinstance(network, ConditionedUNet), "refused by check_landing"
        landed.append(load.save_student(folder, name, network.network, contract, replace=True))
    return landed


def narrowed(contract: SamplingContract, steps: Sequence[int]) -> SamplingContract:
    """The contract for some of its step counts only, so that another student may have the others.

    Raises:
        UsageError: one that the weights were not made for.
    """
    known = contract.allowed_steps
    if known is None or not set(steps) <= set(known):
        made = "any number of" if known is None else ", ".join(map(str, known))
        raise UsageError(f"steps {', '.join(map(str, steps))}: this student was made for {made} steps")
    return dataclasses.replace(
        contract,
        allowed_steps=tuple(sorted(steps)),
        num_inference_steps=max(steps),
        timesteps={count: times for count, times in contract.timesteps.items() if count in steps},
    )


def check_landing(recipe: DistillationRecipe, stages: Mapping[str, Landing], folder: Path) -> None:
    """Refuse before hours of training what `land` could not do after them.

    Raises:
        UsageError: the recipe is a toy, has no such stage, or a name cannot be a student's.
        NotFoundError, CheckpointError: ``folder`` is no pipeline folder.
    """
    if recipe.teacher.pipeline is None:
        raise UsageError(f"--into {folder}: this recipe is a toy, its students are no part of a pipeline")
    known = [section.name for section in recipe.stages]
    for name, landing in stages.items():
        student_part(name)
        if landing.stage not in known:
            raise UsageError(
                f"--student {name}={landing.stage}: the recipe has no such stage; it has {', '.join(known)}"
            )
    load.check_index(load.check_folder(folder))


def other_times(contract: SamplingContract) -> dict[int, list[int]]:
    """The right times, by step count, where diffusers' scheduler of a contract would visit others by itself.

    Only ``LCMScheduler`` can be given any; those of flows are not looked at, diffusers' pipelines for U-Nets
    do not take them.
    """
    import diffusers

    config = contract.scheduler_config()
    if config["_class_name"] != "LCMScheduler":
        return {}
    scheduler = diffusers.LCMScheduler.from_config(config)
    found = {}
    for n in contract.allowed_steps or (contract.num_inference_steps,):
        times = [round(t) for t in contract.grid(n)[:-1]]
        scheduler.set_timesteps(n)
        if scheduler.timesteps.tolist() != times:
            found[n] = times
    return found


def _note(times: Mapping[int, list[int]], scale: float) -> str:
    calls = [f"    pipe(prompt, timesteps={listed}, guidance_scale={scale:g})" for listed in times.values()]
    return "\n".join(
        ["\n\n## Timesteps", "", "Plain diffusers must be told when to call this student:", "", *calls, ""]
    )
