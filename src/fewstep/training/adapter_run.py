"""A run of an adapter recipe from its base and pictures to the loop."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fewstep.errors import UsageError
from fewstep.training import adapter_memory
from fewstep.training.adapter_base import TaughtModel, open_base
from fewstep.training.adapter_data import PictureSet, open_pictures, size, text_tables
from fewstep.training.adapter_previews import adapter_sampler, draw_class, prompts
from fewstep.training.adapter_products import write_facts
from fewstep.training.adapter_sections import (
    AdapterRecipe,
    DreamboothRecipe,
    LoraRecipe,
    Prior,
)
from fewstep.training.adapter_task import AdapterTask, check_teachable, encodes_live, teach
from fewstep.training.loop import Sampler

_log = logging.getLogger("fewstep.training")


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the loop needs."""

    task: AdapterTask
    pictures: PictureSet
    sampler: Sampler | None


def prepare(
    recipe: AdapterRecipe,
    run_folder: Path,
    *,
    model: TaughtModel | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Prepared:
    """Open the base, encode pictures and texts once, and put what is trained on the base.

    What is encoded is kept in the run's folder, so that a resumed run begins at once, and with the same bits.

    Args:
        recipe: of the run.
        run_folder: made when it is not there.
        model: the opened base, by whoever has it already.
        report: told how far encoding is.

    Raises:
        NotFoundError, CheckpointError: as `open_base`.
        DataError, RecipeError, OutputError: as `open_pictures`.
    """
    if recipe.runtime.threads is not None:
        torch.set_num_threads(recipe.runtime.threads)
    model = open_base(recipe.base) if model is None else model
    check_teachable(recipe, model)
    live = encodes_live(recipe)
    pictures = open_pictures(recipe, model, run_folder, prior=_prior(recipe, model, run_folder, report),
                             report=report)  # fmt: skip
    write_facts(recipe, model, pictures, run_folder)
    task = teach(recipe, model)
    task.tables = text_tables(model, pictures.captions, live=live)
    sampler = None
    if recipe.samples.every_images is not None and recipe.samples.prompts:
        sampler = adapter_sampler(recipe, model, task, text_tables(model, prompts(recipe), live=live))
    model.free(text=not live, autoencoder=sampler is None)
    _log.info("memory: %s", adapter_memory.estimate(task, pictures))
    return Prepared(task, pictures, sampler)


def _prior(
    recipe: AdapterRecipe,
    model: TaughtModel,
    run_folder: Path,
    report: Callable[[str, int, int], None] | None,
) -> Prior | None:
    """The class pictures, drawn with the base where there are none yet."""
    if not isinstance(recipe, LoraRecipe | DreamboothRecipe) or recipe.prior is None:
        return None
    prior = recipe.prior
    if prior.path is not None:
        return prior
    if model.student is not None:
        raise UsageError("prior.path: class pictures are drawn with a base, not a student; give a folder")
    samples = recipe.samples.model_copy(update={"seed": recipe.seed})
    how = [model.hash, prior.prompt, prior.images, samples.model_dump(exclude={"prompts", "every_images"})]
    folder = run_folder / f"class-{hashlib.sha256(json.dumps(how).encode()).hexdigest()[:8]}"
    if not folder.is_dir():
        draw_class(model, prior.prompt, prior.images, samples, size(recipe.pictures, model), folder, report)
    return prior.model_copy(update={"path": str(folder)})
