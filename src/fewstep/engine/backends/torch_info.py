"""What the engine must know of a model, from its configurations. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.checkpoint.bundle import student_part
from fewstep.checkpoint.safetensors import folder_hash
from fewstep.engine.backends.base import Inputs, ModelInfo, StudentInfo, TextEncoderInfo, f32
from fewstep.errors import CheckpointError
from fewstep.models.families import MAX_CLASSES

if TYPE_CHECKING:
    from fewstep.models.families import Family
    from fewstep.models.opening import OpenedModel


def latent_scale(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """(scale, shift) of ``(mean - shift) * scale``: numbers, or one per channel as float32 (1, C, 1, 1).

    diffusers' SDXL pipelines use the statistics of an autoencoder's latents where it has them.
    """
    scale = float(config["scaling_factor"])
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        channels = (1, -1, 1, 1)
        spread = f32(np.asarray(std, dtype=np.float32).reshape(channels))
        return f32(np.float32(scale) / spread), f32(np.asarray(mean, dtype=np.float32).reshape(channels))
    return scale, float(config.get("shift_factor") or 0.0)


def model_info(
    opened: OpenedModel,
    auto: Mapping[str, Any],
    tokenizers: Sequence[Any],
    max_clip_skip: int,
    widths: Sequence[int],
    vector_widths: Sequence[int],
) -> ModelInfo:
    """What the engine must know of a model.

    Args:
        opened: the model.
        auto: configuration of its autoencoder, with every default.
        tokenizers: of its text encoders.
        max_clip_skip: layers of the text encoders that can be left out.
        widths: of the text encoders' tokens, where they stand side by side; else zeros.
        vector_widths: of what they take in place of a token's vector; zeros where they take none.

    Raises:
        CheckpointError: a denoiser that takes other channels than are known, or a broken contract.
    """
    from fewstep.models import load

    family, contract, network = opened.family, opened.contract, opened.denoiser.config
    downscale = 2 ** (len(auto["block_out_channels"]) - 1)
    width, height = contract.native_sizes[0]
    channels = int(auto["latent_channels"])
    # A transformer reads patches of so many cells.
    patch = whole(network.get("patch_size")) or 1 if family.denoiser == "transformer" else 1
    largest = 4 * max(width, height)
    if limit := whole(network.get("pos_embed_max_size")):
        largest = min(largest, limit * patch * downscale)
    inputs = _inputs(opened.name, network, channels)
    if inputs == "instruct" and opened.parts["vae"].class_name == "AutoencoderTiny":
        raise CheckpointError(
            f"{opened.name}: reads latents before scaling, which a tiny autoencoder does not make; leave "
            "--vae out"
        )
    classes = _classes(opened, network)
    students = () if opened.folder is None else load.student_contracts(opened.folder).items()
    return ModelInfo(
        name=opened.name,
        hash=opened.hash,
        contract=contract,
        latent_channels=channels,
        downscale=downscale,
        encoders=_encoders(family, tokenizers, widths, vector_widths) if not classes else (_reader(classes),),
        classes=classes,
        native_size=(width, height),
        size_multiple=downscale * patch,
        max_size=largest,
        licence="see the model card",
        students=tuple(
            StudentInfo(name=name, hash=folder_hash(opened.folder / student_part(name)), contract=own)
            for name, own in students
            if opened.folder is not None
        ),
        family=family.name,
        inputs=inputs,
        zero_empty_negative=opened.index.zero_empty_negative,
        max_clip_skip=max_clip_skip,
        parts=dict(opened.hashes),
        notes=opened.notes,
    )


def _encoders(
    family: Family, tokenizers: Sequence[Any], widths: Sequence[int], vector_widths: Sequence[int]
) -> tuple[TextEncoderInfo, ...]:
    from fewstep.models import fixed_tokenizer

    found = []
    for tokenizer, width, vector in zip(tokenizers, widths, vector_widths, strict=True):
        name = type(tokenizer).__name__
        kind: Any = next((kind for kind in ("clip", "t5") if name.lower().startswith(kind)), "bert")
        length = family.max_tokens if kind == "t5" and family.max_tokens else int(tokenizer.model_max_length)
        made = fixed_tokenizer.to_json(tokenizer, length=length, lowered=family.text == "t5")
        found.append(
            TextEncoderInfo(
                kind=kind, length=length, tokenizer_json=made, width=width,
                vector_width=vector if kind == "clip" else 0,
            )
        )  # fmt: skip
    return tuple(found)


def _classes(opened: OpenedModel, network: Mapping[str, Any]) -> dict[str, int]:
    """Names and numbers of the classes of a model without a text; nothing of others.

    Raises:
        CheckpointError: the denoiser says no number of classes, or fewer than there are names.
    """
    if opened.family.text != "classes":
        return {}
    count = whole(network.get("num_embeds_ada_norm", 1000))
    named = opened.index.classes_by_name
    if not 1 <= count <= MAX_CLASSES or any(number >= count for number in named.values()):
        raise CheckpointError(
            f"{opened.name}: transformer/config.json says {count} classes, and id2label names "
            f"{max(named.values(), default=0) + 1}; fetch the folder again"
        )
    return {**named, **{str(number): number for number in range(count)}}


def _reader(classes: Mapping[str, int]) -> TextEncoderInfo:
    """What makes one id of a whole text: that of its class, and of an empty text the one behind the last."""
    none = max(classes.values()) + 1
    spec: dict[str, Any] = {
        "version": "1.0",
        "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 1},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": none,
            "pad_type_id": 0,
            "pad_token": "",
        },
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Strip", "strip_left": True, "strip_right": True},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        # `fewstep.engine.checks.check_classes` lets no unknown name come here.
        "model": {"type": "WordLevel", "vocab": {**classes, "": none}, "unk_token": ""},
    }
    return TextEncoderInfo(kind="class", length=1, tokenizer_json=json.dumps(spec))


def _inputs(name: str, network: Mapping[str, Any], channels: int) -> Inputs:
    """What the denoiser is given beside its latents, by the number of its channels."""
    given = whole(network.get("in_channels", channels))
    kinds: dict[int, Inputs] = {channels: "latents", 2 * channels + 1: "inpaint", 2 * channels: "instruct"}
    if given not in kinds:
        raise CheckpointError(
            f"{name}: the denoiser takes {given} channels, and the autoencoder has {channels}; only "
            f"{channels}, {2 * channels} (instruct) and {2 * channels + 1} (inpainting) can be drawn with"
        )
    return kinds[given]


def whole(value: Any) -> int:
    """A whole number of a configuration; 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
