"""The evaluator as a folder: ``config.json`` and ``model.safetensors``, read strictly, and run on pictures.

The folder holds all that judging takes: the network, every concept with its sentence embedding (also of those
that were never trained), the styles and the named backgrounds. No text encoder is needed to use it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from fewstep.checkpoint import atomic, safetensors
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.models.evaluator import Evaluator, EvaluatorConfig, EvaluatorOutput, explain

__all__ = [
    "Evaluator",
    "EvaluatorArrays",
    "EvaluatorConfig",
    "EvaluatorOutput",
    "LoadedEvaluator",
    "default_evaluator_folder",
    "load_evaluator",
    "save_evaluator",
]

FORMAT = 1
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_NETWORK, _TEXTS = "network.", "text_embeddings"

RGB = tuple[int, int, int]
_Channel = Annotated[int, Field(ge=0, le=255)]


class _Config(BaseModel):
    """What ``config.json`` holds; any other key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[1]
    kind: Literal["fewstep-evaluator"]
    model: EvaluatorConfig
    labels: tuple[str, ...]
    trained: tuple[bool, ...]
    styles: tuple[str, ...]
    backgrounds: dict[str, tuple[_Channel, _Channel, _Channel]]
    sha256: str
    meta: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class EvaluatorArrays:
    """What an evaluator says about B pictures, as numpy arrays.

    Attributes:
        features: float32 (B, F), at least 0.
        concept_logits: float32 (B, K) over all labels.
        style_logits: float32 (B, S).
    """

    features: NDArray[np.float32]
    concept_logits: NDArray[np.float32]
    style_logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LoadedEvaluator:
    """An evaluator with the names of what it answers.

    Attributes:
        module: the network in evaluation mode, float32, without gradients.
        labels: the K concepts, held-out ones too.
        trained: for each label whether drawings of it were trained.
        text_embeddings: float32 (K, W), sentence embeddings of the labels' captions.
        styles: the S style words.
        backgrounds: name to sRGB colour, 0 to 255.
        hash: SHA-256 of the folder's weights, hex digits.
        meta: what is known of its making: ``images_seen``, ``drawings`` (fingerprint), ``licence``.
    """

    module: Evaluator
    labels: tuple[str, ...]
    trained: tuple[bool, ...]
    text_embeddings: NDArray[np.float32]
    styles: tuple[str, ...]
    backgrounds: Mapping[str, RGB]
    hash: str
    meta: Mapping[str, JsonValue]

    def run(self, pixels: NDArray[np.uint8], *, batch_size: int = 64) -> EvaluatorArrays:
        """Judge pictures, in batches; a picture's answers do not depend on the others.

        Args:
            pixels: uint8 (B, H, W, 3), sRGB, of any size from the network's ``side`` up; B may be 0.
            batch_size: pictures at a time.

        Raises:
            UsageError: not such an array, or a batch size under 1.
        """
        side = self.module.config.side
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3:
            raise UsageError(f"pictures {pixels.dtype} {pixels.shape}: give uint8 (B, H, W, 3)")
        if min(pixels.shape[1:3]) < side:
            raise UsageError(f"pictures of {pixels.shape[2]}x{pixels.shape[1]}: give {side}x{side} or larger")
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: give 1 or more")
        weight = self.module.log_scale
        texts = torch.from_numpy(self.text_embeddings).to(weight.device)
        features, concepts, styles = [], [], []
        with torch.inference_mode():
            # at least one pass, so that no pictures give empty arrays of the right widths
            for start in range(0, max(len(pixels), 1), batch_size):
                part = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch_size]))
                scaled = part.permute(0, 3, 1, 2).to(weight.device, weight.dtype) / 127.5 - 1
                output = self.module(scaled)
                features.append(output.features.cpu().numpy())
                concepts.append(self.module.concept_logits(output, texts).cpu().numpy())
                styles.append(output.style.cpu().numpy())
        return EvaluatorArrays(np.concatenate(features), np.concatenate(concepts), np.concatenate(styles))


def default_evaluator_folder() -> Path:
    """Where the evaluator that comes with the package is; whether it is there, loading it tells."""
    return Path(__file__).resolve().parents[1] / "bundled" / "emoji-evaluator"


def save_evaluator(
    folder: str | Path,
    evaluator: Evaluator,
    *,
    labels: Sequence[str],
    trained: Sequence[bool],
    text_embeddings: NDArray[np.float32],
    styles: Sequence[str],
    backgrounds: Mapping[str, RGB],
    meta: Mapping[str, JsonValue],
    texts: Mapping[str, str] | None = None,
    replace: bool = False,
) -> str:
    """Write an evaluator's folder, its parameters as float16; all or nothing.

    Args:
        folder: where it goes; must not exist unless ``replace``.
        evaluator: the network.
        labels: all K concepts, no two the same.
        trained: for each label whether drawings of it were trained.
        text_embeddings: (K, W).
        styles: one word for each output of the style head.
        backgrounds: name to sRGB colour, 0 to 255.
        meta: ``images_seen``, ``drawings``, ``licence`` and what else should be remembered.
        texts: text files to write beside the weights, by name.
        replace: put the new folder in the place of an old one.

    Returns:
        The hash, as `LoadedEvaluator.hash` has it.

    Raises:
        UsageError: lengths that do not fit each other or the network.
        OutputError: the folder exists, or cannot be written.
    """
    problem = _misfit(evaluator.config, labels, trained, styles, text_embeddings.shape)
    if problem:
        raise UsageError(f"evaluator: {problem}; give what it was trained with")
    half = {
        name for name, _ in evaluator.named_parameters()
    }  # statistics stay as they are: counts, variances
    tensors = {
        f"{_NETWORK}{name}": value.half() if name in half else value
        for name, value in evaluator.state_dict().items()
    }
    tensors[_TEXTS] = torch.from_numpy(np.asarray(text_embeddings, np.float16))
    with atomic.folder(folder, replace=replace) as root:
        safetensors.save_torch(root / WEIGHTS, tensors)
        config = {
            "format": FORMAT,
            "kind": "fewstep-evaluator",
            "model": evaluator.config.model_dump(mode="json"),
            "sha256": safetensors.sha256_file(root / WEIGHTS),
            "meta": dict(meta),
            "styles": list(styles),
            "backgrounds": {name: list(rgb) for name, rgb in backgrounds.items()},
            "labels": list(labels),
            "trained": [bool(flag) for flag in trained],
        }
        atomic.write_text(root / CONFIG, json.dumps(config, ensure_ascii=False, indent=1) + "\n")
        for name, text in (texts or {}).items():
            atomic.write_text(root / name, text)
        return safetensors.folder_hash(root)


def load_evaluator(folder: str | Path) -> LoadedEvaluator:
    """Load an evaluator that `save_evaluator` wrote; a folder is hostile until checked.

    Raises:
        NotFoundError: there is no such folder.
        CheckpointError: no evaluator, an unknown key, a pickle, other weights than the configuration says, or
            parts that do not fit each other.
    """
    root = Path(folder)
    if not (root / CONFIG).is_file():
        raise NotFoundError(
            f"{root}: no evaluator here (no {CONFIG}); train one: fewstep train emoji-128/evaluator"
        )
    config = _read_config(root / CONFIG)
    tensors = safetensors.load_torch(root / WEIGHTS)
    if safetensors.sha256_file(root / WEIGHTS) != config.sha256:
        raise CheckpointError(
            f"{root / WEIGHTS}: not the weights that {CONFIG} was written for; fetch the folder again"
        )
    embeddings = tensors.pop(_TEXTS, torch.zeros(0))
    problem = _misfit(config.model, config.labels, config.trained, config.styles, tuple(embeddings.shape))
    if problem:
        raise CheckpointError(f"{root}: {problem}; fetch or train the folder again")
    module = Evaluator(config.model)
    state = {name.removeprefix(_NETWORK): value for name, value in tensors.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{root}: weights do not fit ({text}); fetch or train the folder again"
        ) from error
    return LoadedEvaluator(
        module=module.eval().requires_grad_(False),
        labels=config.labels,
        trained=config.trained,
        text_embeddings=embeddings.float().numpy(),
        styles=config.styles,
        backgrounds=config.backgrounds,
        hash=safetensors.folder_hash(root),
        meta=config.meta,
    )


def _read_config(path: Path) -> _Config:
    try:
        return _Config.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        reason = explain(error) if error.errors()[0]["loc"][:1] == ("model",) else _first(error)
        raise CheckpointError(f"{path}: {reason}; fetch or train the folder again") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); fetch or train the folder again") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    return (
        f"unknown key {key!r}" if first["type"] == "extra_forbidden" else f"{key or 'file'}: {first['msg']}"
    )


def _misfit(
    config: EvaluatorConfig,
    labels: Sequence[str],
    trained: Sequence[bool],
    styles: Sequence[str],
    embeddings: tuple[int, ...],
) -> str | None:
    if len(set(labels)) != len(labels) or not labels:
        return "labels are missing, or one is there twice"
    if len(trained) != len(labels):
        return f"{len(labels)} labels but {len(trained)} flags of what was trained"
    if len(set(styles)) != len(styles) or len(styles) != config.styles:
        return f"{len(styles)} styles but a head for {config.styles}"
    if embeddings != (len(labels), config.text_width):
        return f"text embeddings {embeddings} for {len(labels)} labels of width {config.text_width}"
    return None
