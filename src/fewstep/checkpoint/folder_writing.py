"""Pipeline folders in diffusers' layout, written from networks whose tensors come one at a time.

Configs are what `fewstep.checkpoint.part_configs` tells from the shapes, schedulers are those of the
published models of a family.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic, tensorfile
from fewstep.checkpoint.detect import Detected, Variant
from fewstep.checkpoint.half import Precision, target
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.part_configs import Config, Family
from fewstep.checkpoint.parts import TEXT_ENCODERS
from fewstep.checkpoint.pipeline_folder import DIFFUSERS, PIPELINES, STEMS, TRANSFORMERS
from fewstep.checkpoint.single_file import PartView, Report
from fewstep.checkpoint.tensorfile import Entry
from fewstep.checkpoint.tokenizers import CLASSES as TOKENIZERS
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

OPTIONAL = frozenset({"text_encoder_3"})
"""Networks that a pipeline works without: the T5 of Stable Diffusion 3."""

_TABLE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def write_folder(
    out: Path,
    detected: Detected,
    views: Mapping[str, PartView],
    *,
    tokenizers: Mapping[str, Mapping[str, bytes]],
    texts: Mapping[str, str] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    dtype: Precision | None = None,
    replace: bool = False,
    on_tensor: Report | None = None,
) -> None:
    """Write a pipeline folder, all or nothing; only one tensor need be in memory at a time.

    Args:
        out: where it goes; must not exist unless ``replace``.
        detected: family, variant and prediction type.
        views: every network of the family, by folder name; those in `OPTIONAL` may be missing.
        tokenizers: folder name -> files, as `fewstep.checkpoint.tokenizers.tokenizers` gives them; folders
            that are missing are named in ``model_index.json`` all the same, so that they can be added.
        texts: files to write besides, by name.
        scheduler: its configuration; that of the family's published models when None.
        dtype: of the weights; as they are when None.
        replace: put the new folder in the place of an old one.
        on_tensor: told of every tensor that was written.

    Raises:
        CheckpointError: a network or the prediction type is missing, or a value does not fit the type.
        OutputError: the folder exists, or cannot be written.
    """
    family, variant = detected.family, detected.variant
    assert family is not None
    assert variant is not None
    denoiser = "unet" if family in ("sd1", "sd2", "sdxl") else "transformer"
    wanted = [denoiser, "vae", *TEXT_ENCODERS[family]]
    if missing := [name for name in wanted if name not in views and name not in OPTIONAL]:
        raise CheckpointError(
            f"{out}: a pipeline folder of {family} needs {', '.join(missing)}, which is not there; "
            "give a model that has it with --base"
        )
    index: dict[str, Any] = {"_class_name": PIPELINES[family, variant], **_version("diffusers")}
    if scheduler is None:
        scheduler = scheduler_config(family, detected.prediction_type, detected.zero_terminal_snr)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    total, done = sum(len(views[name].entries) for name in wanted if name in views), 0
    with atomic.folder(out, replace=replace) as root:
        for name in wanted:
            present = name in views
            class_name = views[name].part.class_name if present else None
            index[name] = [_library_of(class_name), class_name] if class_name else [None, None]
            if present:
                _write_network(root / name, views[name], dtype, _shifted(on_tensor, done, total))
                done += len(views[name].entries)
        for name, class_name in TOKENIZERS[family].items():
            encoder = name.replace("tokenizer", "text_encoder")
            index[name] = ["transformers", class_name] if encoder in views else [None, None]
            for file, data in tokenizers.get(name, {}).items():
                atomic.write_bytes(root / name / file, data)
        index |= _unused(family, variant)
        for file, text in (texts or {}).items():
            atomic.write_text(root / file, text)
        _write_json(root / "scheduler" / "scheduler_config.json", scheduler)
        _write_json(root / "model_index.json", dict(sorted(index.items())))


def write_network(
    out: Path,
    network: PartView,
    *,
    dtype: Precision | None = None,
    replace: bool = False,
    on_tensor: Report | None = None,
) -> None:
    """Write one network as a folder with ``config.json`` and weights; arguments as `write_folder`."""
    if not network.config:
        raise CheckpointError(
            f"{out}: the {network.part.name} alone does not say of which model it is; give --family"
        )
    with atomic.folder(out, replace=replace) as root:
        _write_network(root, network, dtype, on_tensor)


def scheduler_config(
    family: Family, prediction_type: str | None, zero_terminal_snr: bool = False
) -> dict[str, Any]:
    """The scheduler of a family as its published models have it.

    Args:
        family: of the model.
        prediction_type: ``epsilon`` or ``v_prediction``; not asked of flows.
        zero_terminal_snr: for models of velocity that were trained to pure noise (Lin 2023, 2305.08891):
            rescaled betas and trailing spacing.

    Raises:
        CheckpointError: the prediction type is not known.
    """
    if family == "sd3":
        flow = {"num_train_timesteps": 1000, "shift": 3.0}
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **_version("diffusers"), **flow}
    if prediction_type is None:
        raise CheckpointError(
            f"whether this {family} model predicts noise or velocity cannot be told from its keys; "
            "give --prediction-type epsilon or v_prediction"
        )
    table = {**_TABLE, "prediction_type": prediction_type}
    if zero_terminal_snr:
        end = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        name = "EulerDiscreteScheduler" if family == "sdxl" else "DDIMScheduler"
        return {"_class_name": name, **_version("diffusers"), **table, **end}
    if family == "sdxl":
        euler = {"interpolation_type": "linear", "timestep_spacing": "leading", "use_karras_sigmas": False}
        return {"_class_name": "EulerDiscreteScheduler", **_version("diffusers"), **table, **euler}
    if prediction_type == "v_prediction":
        return {"_class_name": "DDIMScheduler", **_version("diffusers"), **table}
    return {"_class_name": "PNDMScheduler", **_version("diffusers"), **table, "skip_prk_steps": True}


def expected_shapes(class_name: str, config: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a network of this class and config, without making its weights.

    Raises:
        CheckpointError: no network can be made by this config.
        DependencyError: diffusers or transformers is missing.
    """
    import diffusers
    import torch
    import transformers

    assert class_name in DIFFUSERS | TRANSFORMERS
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with torch.device("meta"):
            if class_name in DIFFUSERS:
                network = getattr(diffusers, class_name)(**settings)
            else:
                kind = (
                    transformers.T5Config if class_name == "T5EncoderModel" else transformers.CLIPTextConfig
                )
                network = getattr(transformers, class_name)(kind(**settings))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError, KeyError) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise CheckpointError(
            f"its shapes make no {class_name} ({reason}); give a whole file of a known family"
        ) from None
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _write_network(folder: Path, network: PartView, dtype: Precision | None, report: Report | None) -> None:
    plan = {name: Entry(target(e.dtype, dtype), e.shape) for name, e in network.entries.items()}

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for done, item in enumerate(network.tensors(dtype), 1):
            yield item
            if report is not None:
                report(done, len(plan))

    library = _library_of(network.part.class_name)
    tensorfile.write(folder / f"{STEMS[library]}.safetensors", plan, tensors(), {"format": "pt"})
    config = {**network.config, **(_version("diffusers") if library == "diffusers" else {})}
    _write_json(folder / "config.json", dict(sorted(config.items())))


def _shifted(report: Report | None, start: int, total: int) -> Report | None:
    if report is None:
        return None
    return lambda done, _: report(start + done, total)


def _unused(family: Family, variant: Variant) -> dict[str, Any]:
    """Entries of ``model_index.json`` for what a pipeline can do without."""
    nothing = [None, None]
    if family in ("sd1", "sd2"):
        return {
            "safety_checker": nothing,
            "feature_extractor": nothing,
            "image_encoder": nothing,
            "requires_safety_checker": False,
        }
    if family == "sdxl":
        zeros = {"force_zeros_for_empty_prompt": True}
        return (
            zeros
            if variant == "instruct"
            else {**zeros, "image_encoder": nothing, "feature_extractor": nothing}
        )
    return {"image_encoder": nothing, "feature_extractor": nothing} if family == "sd3" else {}


def _library_of(class_name: str) -> str:
    return "diffusers" if class_name in DIFFUSERS else "transformers"


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic.write_text(path, json.dumps(value, indent=2) + "\n")


def _version(package: str) -> dict[str, str]:
    try:
        return {f"_{package}_version": metadata.version(package)}
    except metadata.PackageNotFoundError:
        return {}
