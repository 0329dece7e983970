"""What a finished run leaves for others: a ``vae`` folder, a pipeline folder, an evaluator or an adapter.

Checkpoints are for going on with training; these folders are what other tools open. All take the averaged
weights of the newest complete checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fewstep.checkpoint import atomic, safetensors
from fewstep.data.backgrounds import recipe_folder
from fewstep.data.labelled import LabelledDrawings
from fewstep.data.order import indices, sample_rng
from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.errors import RecipeError, RunError
from fewstep.models import autoencoder as autoencoders
from fewstep.models import build, evaluator, features, load
from fewstep.models.components import Components
from fewstep.training import checkpointing
from fewstep.training.datasets import open_dataset
from fewstep.training.recipe import AdapterRecipe, Recipe, parse_recipe
from fewstep.training.sections import AutoencoderRecipe, DenoiserRecipe, EvaluatorRecipe

_SCALE_IMAGES = 256
_LEGAL = ("NOTICE", "attribution.json")
"""Files of a recipe folder that go with weights made from it; exported bundles carry them on."""
_LICENCE = "Apache-2.0 AND MIT AND CC-BY-4.0"
"""Of weights trained on the drawing set; NOTICE says whose."""


def run_recipe(run_folder: Path) -> Recipe:
    """The recipe that a run was made with, or was last resumed with.

    Raises:
        RunError: not a run folder.
    """
    path = run_folder / "recipe.yaml"
    if not path.is_file():
        raise RunError(
            f"{run_folder}: no recipe.yaml, so not a run folder; give the folder of a training run"
        )
    return parse_recipe(path.read_text(encoding="utf-8"), source=str(path))


def finish(run_folder: Path) -> Path | None:
    """Write ``vae``, ``pipeline``, ``evaluator`` or an adapter in a run's folder; None if none is asked for.

    Cheap enough to do after every stop, so that the newest weights can be tried.

    Raises:
        RunError: not a run folder.
        CheckpointError: a part that cannot be loaded.
    """
    recipe = run_recipe(run_folder)
    if isinstance(recipe, AdapterRecipe):
        from fewstep.training import adapter_products

        return adapter_products.finish(recipe, run_folder)
    if isinstance(recipe, AutoencoderRecipe):
        dataset = open_dataset(recipe.data)
        chosen = indices(recipe.seed, 0, min(_SCALE_IMAGES, len(dataset)), len(dataset))
        images = dataset.batch(chosen, sample_rng(recipe.seed, 0))["pixels"]
        autoencoder_folder(run_folder, run_folder / "vae", images)
        return run_folder / "vae"
    if isinstance(recipe, EvaluatorRecipe):
        evaluator_folder(run_folder, run_folder / "evaluator")
        return run_folder / "evaluator"
    if recipe.pipeline is None:
        return None
    parts = recipe.pipeline
    card = "# {parameters} denoiser, {images_seen} images\n"
    legal: dict[str, str] = {}
    if parts.card is not None:
        card, legal = _texts(parts.card, "card.md")
    pipeline_folder(
        run_folder,
        run_folder / "pipeline",
        autoencoder=Path(parts.autoencoder).expanduser(),
        text_folder=Path(parts.text).expanduser(),
        family=parts.family,
        texts={"README.md": card, **legal},
    )
    return run_folder / "pipeline"


def autoencoder_folder(run_folder: Path, out: Path, images: NDArray[np.float32]) -> float:
    """Write the autoencoder of a run in diffusers' format, its ``scaling_factor`` measured; all or nothing.

    Args:
        run_folder: a run of an autoencoder recipe.
        out: the folder; an existing one is replaced.
        images: (B, 3, H, W) in [-1, 1], a few hundred training images to measure the latents on.

    Returns:
        The scaling factor.

    Raises:
        RunError: a run of another kind.
    """
    recipe = run_recipe(run_folder)
    if not isinstance(recipe, AutoencoderRecipe):
        raise RunError(f"{run_folder}: a run of kind {recipe.kind}; give one of kind autoencoder")
    network = build.autoencoder(dict(recipe.model))
    source = checkpointing.weights(run_folder, "autoencoder")
    checkpointing.copy_into(network, safetensors.load_torch(source), source)
    network.eval()
    # five digits: enough, and the same text on every machine
    scale = float(f"{autoencoders.latent_scale(network, images):.5g}")
    network.register_to_config(scaling_factor=scale)
    with atomic.folder(out, replace=True) as folder:
        network.save_pretrained(folder)
    return scale


def evaluator_folder(run_folder: Path, out: Path) -> str:
    """Write the evaluator of a run with its concepts, styles and backgrounds; all or nothing.

    Args:
        run_folder: a run of an evaluator recipe; its data are opened again for the concepts.
        out: the folder; an existing one is replaced.

    Returns:
        The hash of the weights.

    Raises:
        RunError: a run of another kind.
        RecipeError: data without concepts.
    """
    recipe = run_recipe(run_folder)
    if not isinstance(recipe, EvaluatorRecipe):
        raise RunError(f"{run_folder}: a run of kind {recipe.kind}; give one of kind evaluator")
    data = open_dataset(recipe.data)
    if not isinstance(data, LabelledDrawings):
        raise RecipeError(f"data.source is {recipe.data.source}: an evaluator needs concepts; use labelled")
    network = evaluator.build(recipe.model)
    source = checkpointing.weights(run_folder, "evaluator")
    checkpointing.copy_into(network, safetensors.load_torch(source), source)
    seen = _images_seen(source)
    card, legal = "# {parameters} evaluator, {images_seen} images\n", dict[str, str]()
    if recipe.card is not None:
        card, legal = _texts(recipe.card, "evaluator.md")
    return features.save_evaluator(
        out,
        network.eval(),
        labels=data.labels,
        trained=data.trained,
        text_embeddings=data.embeddings,
        styles=data.styles,
        backgrounds=data.backgrounds,
        meta={
            "images_seen": seen,
            "drawings": data.drawings.fingerprint,
            "data": data.fingerprint(),
            "licence": _LICENCE,
        },
        texts={"README.md": _filled(card, seen, network), **legal},
        replace=True,
    )


def _texts(card: str, name: str) -> tuple[str, dict[str, str]]:
    """The card called ``name`` of a recipe folder, and the legal texts beside it."""
    beside = recipe_folder(card)
    legal = {n: (beside / n).read_text("utf-8") for n in _LEGAL if (beside / n).is_file()}
    return (beside / name).read_text(encoding="utf-8"), legal


def _images_seen(weights: Path) -> int:
    return int(json.loads((weights.parent / checkpointing.MANIFEST).read_text("utf-8"))["images_seen"])


def _filled(card: str, seen: int, network: nn.Module) -> str:
    parameters = sum(parameter.numel() for parameter in network.parameters())
    text = card.replace("{images_seen}", f"{seen:,}")
    return text.replace("{parameters}", f"{parameters / 1e6:.1f} M")


def pipeline_folder(
    run_folder: Path,
    out: Path,
    *,
    autoencoder: Path,
    text_folder: Path,
    family: str,
    texts: Mapping[str, str],
) -> SamplingContract:
    """Write the pipeline folder of a denoiser run; all or nothing.

    Args:
        run_folder: a run of a denoiser recipe.
        out: the folder; an existing one is replaced.
        autoencoder: the ``vae`` folder whose latents the run was trained on.
        text_folder: folder with ``text_encoder`` and ``tokenizer``.
        family: the contract's ``base_family``.
        texts: files to put beside the weights. In ``README.md``, the model card, ``{images_seen}`` and
            ``{parameters}`` are filled in.

    Returns:
        The sampling contract that stands in the folder.

    Raises:
        RunError: a run of another kind.
        CheckpointError: a part that cannot be loaded.
    """
    recipe = run_recipe(run_folder)
    if not isinstance(recipe, DenoiserRecipe):
        raise RunError(f"{run_folder}: a run of kind {recipe.kind}; give one of kind denoiser")
    network = build.denoiser(dict(recipe.model))
    source = checkpointing.weights(run_folder, "denoiser")
    checkpointing.copy_into(network, safetensors.load_torch(source), source)
    vae = load.autoencoder(autoencoder)
    encoder, tokenizer = load.text_parts(text_folder)
    side = int(network.config["sample_size"]) * 2 ** (len(vae.config["block_out_channels"]) - 1)
    contract = sampling_contract(recipe, family, side)
    card = _filled(texts["README.md"], _images_seen(source), network)
    components = Components(vae, network.eval(), encoder, tokenizer, contract)
    load.save_pipeline(out, components, texts={**texts, "README.md": card}, replace=True)
    return contract


def sampling_contract(recipe: DenoiserRecipe, family: str, side: int) -> SamplingContract:
    """How the weights of a denoiser recipe are sampled: as trained, with the defaults of its samples.

    Args:
        recipe: its objective gives schedule and prediction type, its samples steps and guidance.
        family: the contract's ``base_family``.
        side: native width and height in pixels.

    Raises:
        RecipeError: a schedule that has no contract.
    """
    schedule, samples = recipe.objective.schedule, recipe.samples
    flow = schedule.kind == "flow"
    if flow != (recipe.objective.prediction_type == "flow_prediction"):
        raise RecipeError(
            f"objective.prediction_type is {recipe.objective.prediction_type} with schedule {schedule.kind}: "
            "use flow_prediction with flow, and with nothing else"
        )
    return SamplingContract(
        base_family=family,
        prediction_type=recipe.objective.prediction_type,
        schedule=ScheduleSpec(
            name="rectified_flow" if flow else schedule.kind,
            num_train_timesteps=schedule.num_train_timesteps,
            beta_start=schedule.beta_start,
            beta_end=schedule.beta_end,
            rescale_zero_terminal_snr=schedule.rescale_zero_terminal_snr,
            shift=schedule.shift,
        ),
        solver="flow_euler" if flow else "ddim",
        spacing="trailing",
        # no effect on trailing grids, but StableDiffusionPipeline warns of any other value
        steps_offset=1,
        num_inference_steps=samples.num_inference_steps,
        guidance_scale=samples.guidance_scale,
        guidance_rescale=samples.guidance_rescale,
        native_sizes=((side, side),),
    )
