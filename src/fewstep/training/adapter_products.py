"""What a finished adapter run leaves: a LoRA or a learnt word in one file, or a pipeline folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoint import atomic, bundle, safetensors
from fewstep.checkpoint.adapters import names
from fewstep.checkpoint.adapters.deltas import Delta, Lora
from fewstep.checkpoint.adapters.reading import AdapterFile
from fewstep.checkpoint.adapters.writing import WriteStyle, save_adapter
from fewstep.errors import CheckpointError, RunError
from fewstep.models import load
from fewstep.training import checkpointing
from fewstep.training.adapter_base import TaughtModel, open_base
from fewstep.training.adapter_data import PictureSet, size, tag_frequency
from fewstep.training.adapter_sections import (
    AdapterRecipe,
    DreamboothRecipe,
    LoraRecipe,
    TextualInversionRecipe,
)
from fewstep.training.adapter_task import ROLE, lora_spec

FACTS = "base.json"
"""In the run's folder: what the header of the file says of base and pictures."""

_KOHYA_VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3_m"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2-768-v",
    "sdxl": "stable-diffusion-xl-v1-base",
    "sd3": "stable-diffusion-3-medium",
}


def write_facts(recipe: AdapterRecipe, model: TaughtModel, pictures: PictureSet, run_folder: Path) -> None:
    """Note `FACTS`, so that a file can be written without the base; the same bytes in every run.

    Raises:
        OutputError: the folder cannot be written.
    """
    family, (width, height) = model.opened.family, size(recipe.pictures, model)
    kind = {"lora": "lora", "textual_inversion": "textual-inversion"}.get(recipe.kind, "")
    architecture = _ARCHITECTURES.get(family.name, family.name)
    tags = tag_frequency(pictures.own_captions)
    header = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{kind}" if kind else architecture,
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": recipe.name,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(
            model.contract.prediction_type, model.contract.prediction_type
        ),
        "ss_output_name": recipe.name,
        "ss_base_model_version": _KOHYA_VERSIONS.get(family.name, family.name),
        "ss_v2": str(family.name == "sd2"),
        "ss_sd_model_name": model.opened.name,
        "ss_sd_model_hash": model.hash[:10],
        "ss_new_sd_model_hash": model.hash,
        "ss_resolution": f"({width}, {height})",
        "ss_num_train_images": str(pictures.own),
        "ss_learning_rate": repr(recipe.optimiser.learning_rate),
        "ss_batch_size_per_device": str(recipe.data.batch_size),
        "ss_seed": str(recipe.seed),
        "ss_tag_frequency": json.dumps({recipe.name: tags}, ensure_ascii=False),
    }
    if recipe.pictures.trigger is not None:
        header["modelspec.trigger_phrase"] = recipe.pictures.trigger
    if recipe.licence is not None:
        header["modelspec.license"] = recipe.licence
    facts: dict[str, Any] = {"family": family.name, "part": model.part, "header": header}
    if isinstance(recipe, LoraRecipe):
        facts["alpha"] = lora_spec(recipe, model).alpha or float(recipe.lora.rank)
    atomic.write_text(run_folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def finish(recipe: AdapterRecipe, run_folder: Path) -> Path:
    """Write ``NAME.safetensors``, or the folder ``NAME``, in a run's folder; all or nothing.

    Raises:
        RunError: the run has not begun to train.
        NotFoundError: no checkpoint.
        CheckpointError: the base has changed or gone (for a folder).
        OutputError: it cannot be written.
    """
    source = checkpointing.weights(run_folder, ROLE)
    facts = _facts(run_folder)
    manifest = json.loads((source.parent / checkpointing.MANIFEST).read_text("utf-8"))
    header = {
        **facts["header"],
        "ss_steps": str(manifest["steps"]),
        "fewstep_images_seen": str(manifest["images_seen"]),
    }
    state = safetensors.load_torch(source)
    out = run_folder / f"{recipe.name}.safetensors"
    if isinstance(recipe, LoraRecipe):
        write_lora(out, state, facts, header)
    elif isinstance(recipe, TextualInversionRecipe):
        _write_word(out, state, facts["family"], header)
    else:
        assert isinstance(recipe, DreamboothRecipe)
        out = run_folder / recipe.name
        _write_folder(recipe, state, out, header)
    return out


def write_lora(
    path: Path,
    state: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    header: Mapping[str, str],
    style: WriteStyle | None = None,
) -> None:
    """Write the weights of a checkpoint as an adapter file.

    Args:
        path: ends in ``.safetensors``.
        state: ``<part>.<layer>.lora_A.weight`` and ``.lora_B.weight``.
        facts: of `FACTS`.
        header: texts for the header.
        style: how tensors are named; None is what the web UIs, ComfyUI and diffusers all read: kohya's names
            for U-Nets (with CompVis's blocks for SDXL), diffusers' for transformers.
    """
    alpha = float(facts["alpha"])
    parts: dict[str, dict[str, Delta]] = {}
    rank = 0
    for name in state:
        stem, _, end = name.rpartition(".lora_")
        if not end.startswith("A"):
            continue
        part, _, layer = stem.partition(".")
        down, up = state[name], state[f"{stem}.lora_B.weight"]
        rank = len(down)
        called = names.with_text_model(layer) if part in names.TEXT_ENCODERS else layer
        parts.setdefault(part, {})[called] = Lora(down=down, up=up, alpha=alpha)
    texts = {"ss_network_dim": str(rank), "ss_network_alpha": repr(alpha), **header}
    if style is None:
        style = "diffusers" if facts["part"] == "transformer" else "kohya"
        if facts["family"] == "sdxl":
            style = "kohya-compvis"
    module = {"ss_network_module": "networks.lora"} if style != "diffusers" else {}
    adapter = AdapterFile(name=path.name, parts=parts, metadata={**module, **texts})
    save_adapter(path, adapter, style=style)


def _write_word(path: Path, state: Mapping[str, Tensor], family: str, header: Mapping[str, str]) -> None:
    vectors = [state[f"encoder_{number}"].float() for number in range(len(state))]
    keys = ["clip_l", "clip_g"] if family == "sdxl" else ["emb_params"]
    safetensors.save_torch(path, dict(zip(keys, vectors, strict=True)), {"format": "pt", **header})


def _write_folder(
    recipe: DreamboothRecipe, state: Mapping[str, Tensor], out: Path, header: Mapping[str, str]
) -> None:
    """The base's folder with another denoiser; of a base in one file, the denoiser's folder alone."""
    model = open_base(recipe.base)
    if model.hash != header["ss_new_sd_model_hash"]:
        raise CheckpointError(f"{recipe.base.path}: changed since the run began; put the old model back")
    network = model.network
    checkpointing.copy_into(network, state, recipe.name)
    root = model.opened.folder
    with atomic.folder(out, replace=True) as made:
        if root is not None:
            left_out = {model.part, bundle.STUDENTS}
            for entry in sorted(root.iterdir()):
                if entry.name in left_out or entry.name.startswith("."):
                    continue
                copy: Any = shutil.copytree if entry.is_dir() else shutil.copyfile
                copy(entry, made / entry.name)
            contract = model.contract.to_json()
            atomic.write_text(made / load.CONTRACT_FILE, contract)
        place = made / model.part if root is not None else made
        network.to(torch.float32).save_pretrained(place)
        _forget_origin(place / "config.json")
        atomic.write_text(made / "training.json", json.dumps(dict(header), indent=1) + "\n")


def _forget_origin(config: Path) -> None:
    settings = json.loads(config.read_text("utf-8"))
    if settings.pop("_name_or_path", None) is not None:
        atomic.write_text(config, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _facts(run_folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run_folder / FACTS).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{run_folder}: no readable {FACTS} ({error}); resume the run to write it") from None
    return found
