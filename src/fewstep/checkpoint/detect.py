"""What a weight file is, told from the names and shapes in its header; no tensor is read.

Of a diffusion model this finds the family, the variant and the parts, each with its place in the file and
its config. Names of the authors and of diffusers are told apart, a whole checkpoint from a bare network, an
autoencoder, a LoRA or an embedding. What is inside a part and has no place in it is an error; what is
outside of the parts (averages of training, noise tables, counters) is left out and listed.

Keys do not say everything. Whether Stable Diffusion 2 predicts noise or velocity is taken from the header's
metadata, then from the file's name, and is unknown otherwise. The autoencoders of Stable Diffusion 1 and XL
are the same network with different scales.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fewstep.checkpoint import half, part_configs
from fewstep.checkpoint.naming import first, shown
from fewstep.checkpoint.part_configs import Config, Family
from fewstep.checkpoint.parts import (
    KINDS,
    TEXT_ENCODERS,
    Denoiser,
    Part,
    Shapes,
    TextEncoder,
    find_denoiser,
    find_text_encoders,
    find_vae,
    text_encoder,
)
from fewstep.checkpoint.tensorfile import Entry
from fewstep.errors import CheckpointError

Kind = Literal["checkpoint", "denoiser", "vae", "text_encoder", "taesd", "lora", "embedding"]
Variant = Literal["text", "inpainting", "instruct"]

VARIANTS: dict[int, Variant] = {4: "text", 9: "inpainting", 8: "instruct"}
"""By the channels that a U-Net takes: noise; with a mask and a masked picture; with a picture."""

_TAESD = {"encoder.layers.1.conv.0.weight", "decoder.layers.2.conv.0.weight"}
"""In the first block of each half, as diffusers names them."""

_LORA = re.compile(r"(^lora_|^lycoris_|\.lora_|_lora\.|\.lora\.|\.hada_|\.lokr_)")
_FOREIGN = {
    "controlnet_cond_embedding.conv_in.weight": "a ControlNet, which no command reads so far",
    "control_model.time_embed.0.weight": "a ControlNet, which no command reads so far",
    "edm_mean": "Playground 2.5, which is sampled by rules of EDM that fewstep does not have",
    "edm_vpred.sigma_max": "CosXL, which is sampled by rules of EDM that fewstep does not have",
    "cc_projection.weight": "Zero123, which is conditioned on a view and not on text",
    "model.diffusion_model.label_emb.weight": "an upscaler with noise levels as classes",
    "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight": "a video model",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Detected:
    """What a file holds.

    Attributes:
        kind: ``checkpoint`` is a denoiser with other parts, ``denoiser`` one alone.
        family: None where keys cannot tell (an autoencoder or text encoder alone, a LoRA, an embedding).
        variant: what the denoiser takes besides noise and text; None without a denoiser.
        parts: by name; empty of a LoRA, an embedding and TAESD, which are not taken apart.
        prediction_type: what the denoiser predicts, as diffusers calls it; None if unknown.
        prediction_source: who says so: ``given``, ``keys``, ``metadata``, ``name``, ``family``, or "".
        zero_terminal_snr: whether the keys say that its noise schedule ends in pure noise.
        left_out: names outside of all parts.
    """

    kind: Kind
    family: Family | None = None
    variant: Variant | None = None
    parts: Mapping[str, Part] = field(default_factory=dict)
    prediction_type: str | None = None
    prediction_source: str = ""
    zero_terminal_snr: bool = False
    left_out: tuple[str, ...] = ()


def detect(
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str] | None = None,
    name: str = "the file",
    *,
    family: Family | None = None,
    prediction_type: str | None = None,
) -> Detected:
    """Say what a file is.

    Args:
        entries: of its header.
        metadata: of its header.
        name: of the file, for messages and as the last hint of the prediction type.
        family: what the caller says it is; an autoencoder alone has no config without it.
        prediction_type: what the caller says the denoiser predicts.

    Raises:
        CheckpointError: unknown, of another family than said, recognised and not supported, or damaged.
    """
    try:
        half.scales({key: entry.shape for key, entry in entries.items()})
        shapes = {key: entry.shape for key, entry in entries.items() if not half.is_scale(key)}
        if kind := _small_kind(shapes):
            return Detected(kind=kind, family=family)
        for key, what in _FOREIGN.items():
            if key in shapes:
                raise CheckpointError(f"is {what}; {KINDS}")
        denoiser = find_denoiser(shapes)
        if denoiser is None:
            return _without_denoiser(shapes, family)
        _same_family(denoiser, family, shapes)
        prediction = _prediction(denoiser, shapes, metadata or {}, name, prediction_type)
        others = find_text_encoders(shapes, denoiser.family)
        autoencoder = find_vae(shapes, denoiser.family, prediction[0])
        if autoencoder is not None:
            others["vae"] = autoencoder
        return _assembled(denoiser, others, prediction, shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{shown(name)}: {error}") from None


def detect_folder(
    networks: Mapping[str, Mapping[str, Entry]],
    name: str = "the folder",
    *,
    family: Family | None = None,
    prediction_type: str | None = None,
) -> Detected:
    """Say what the networks of a pipeline folder are.

    Args:
        networks: folder name -> tensors; one of them is ``unet`` or ``transformer``.
        name: of the folder, for messages.
        family: what the caller says it is.
        prediction_type: what the folder's scheduler says the denoiser predicts.

    Raises:
        CheckpointError: as `detect`.
    """
    all_shapes = {part: {key: e.shape for key, e in tensors.items()} for part, tensors in networks.items()}
    try:
        shapes = all_shapes.get("unet") or all_shapes.get("transformer") or {}
        denoiser = find_denoiser(shapes)
        if denoiser is None or denoiser.prefix or denoiser.layout != "diffusers":
            raise CheckpointError(f"has no denoiser in diffusers' names; first keys: {first(shapes)}")
        _same_family(denoiser, family, shapes)
        prediction = _prediction(denoiser, shapes, {}, "", prediction_type)
        others: dict[str, Part] = {}
        for part, own in all_shapes.items():
            encoder = TEXT_ENCODERS[denoiser.family].get(part)
            found = (
                find_vae(own, denoiser.family, prediction[0])
                if part == "vae"
                else text_encoder(own, part, encoder, "", "diffusers")
                if encoder is not None
                else None
            )
            if found is None and part != denoiser.name:
                raise CheckpointError(
                    f"has no network of {denoiser.family} in {part}; first keys: {first(own)}"
                )
            if found is not None:
                others[part] = found
        return _assembled(denoiser, others, prediction, {})
    except CheckpointError as error:
        raise CheckpointError(f"{shown(name)}: {error}") from None


def _assembled(
    denoiser: Denoiser, others: dict[str, Part], prediction: tuple[str | None, str], shapes: Shapes
) -> Detected:
    config = _denoiser_config(denoiser, prediction[0], others)
    part = Part(
        name=denoiser.name,
        class_name=str(config["_class_name"]),
        layout=denoiser.layout,
        prefix=denoiser.prefix,
        places=denoiser.places,
        config=config,
    )
    parts = {denoiser.name: part, **others}
    used = {p.prefix + place.original for p in parts.values() for place, _ in p.places.values()}
    return Detected(
        kind="checkpoint" if others else "denoiser",
        family=denoiser.family,
        variant=_variant(denoiser),
        parts=parts,
        prediction_type=prediction[0],
        prediction_source=prediction[1],
        zero_terminal_snr="ztsnr" in shapes,
        left_out=tuple(key for key in shapes if key not in used),
    )


def _small_kind(shapes: Shapes) -> Kind | None:
    """LoRA, TAESD or embedding; None for anything else."""
    if shapes and sum(bool(_LORA.search(name)) for name in shapes) * 2 > len(shapes):
        return "lora"
    if _TAESD & shapes.keys() or {"1.weight", "3.conv.0.weight"} <= shapes.keys():
        return "taesd"
    if {"emb_params", "clip_l", "clip_g"} & shapes.keys():
        return "embedding"
    if any(name.startswith("string_to_param") for name in shapes):
        return "embedding"
    only = next(iter(shapes), "")
    if len(shapes) == 1 and only.startswith("<") and only.endswith(">"):  # diffusers' form: the word itself
        return "embedding"
    return None


def _same_family(denoiser: Denoiser, said: Family | None, shapes: Shapes) -> None:
    if said is not None and said != denoiser.family:
        raise CheckpointError(
            f"is of the family {denoiser.family}, not {said}; its first keys: {first(shapes)}"
        )


def _denoiser_config(denoiser: Denoiser, prediction: str | None, others: Mapping[str, Part]) -> Config:
    own = {key: shape for key, (_, shape) in denoiser.places.items()}
    if denoiser.family == "sd3":
        return part_configs.sd3_config(own)
    if denoiser.name == "transformer":
        return part_configs.pixart_config(own, denoiser.family, positions=denoiser.positions)
    second = others.get("text_encoder_2")
    pooled = int(second.config["projection_dim"]) if second else None
    return part_configs.unet_config(own, denoiser.family, prediction_type=prediction, pooled=pooled)


def _channels(denoiser: Denoiser) -> int:
    shape = denoiser.places["conv_in.weight"][1] if "conv_in.weight" in denoiser.places else ()
    return shape[1] if len(shape) == 4 else 0


def _variant(denoiser: Denoiser) -> Variant:
    if denoiser.name == "transformer":
        return "text"
    channels = _channels(denoiser)
    if channels not in VARIANTS:
        raise CheckpointError(
            f"is of the family {denoiser.family} and takes {channels} channels; 4, 8 (instructions) and 9 "
            "(inpainting) are read"
        )
    return VARIANTS[channels]


def _without_denoiser(shapes: Shapes, family: Family | None) -> Detected:
    found: Part | None = find_vae(shapes, family)
    kind: Kind = "vae"
    if found is None:
        kind = "text_encoder"
        width = shapes.get("text_model.embeddings.token_embedding.weight", (0, 0))[-1]
        clip = TextEncoder(
            kind="clip",
            prefixes=(),
            projection="text_projection.weight" in shapes,
            act="quick_gelu" if width <= 768 else "gelu",
        )
        for encoder in (clip, TextEncoder(kind="t5", prefixes=())):
            found = found or text_encoder(shapes, "text_encoder", encoder, "", "original")
    if found is None:
        raise CheckpointError(
            f"is no weight file of a known kind; {len(shapes)} tensors, the first keys: {first(shapes)}; "
            f"{KINDS}, an autoencoder or a LoRA"
        )
    used = {found.prefix + place.original for place, _ in found.places.values()}
    return Detected(
        kind=kind,
        family=family,
        parts={found.name: found},
        left_out=tuple(key for key in shapes if key not in used),
    )


def _prediction(
    denoiser: Denoiser, shapes: Shapes, metadata: Mapping[str, str], name: str, given: str | None
) -> tuple[str | None, str]:
    """What the denoiser predicts, and who says so."""
    if denoiser.family == "sd3":
        return "flow_prediction", "family"
    if given is not None:
        return given, "given"
    if "v_pred" in shapes:
        return "v_prediction", "keys"
    said = metadata.get("modelspec.prediction_type", "").lower()
    if said in ("v", "v_prediction"):
        return "v_prediction", "metadata"
    if said == "epsilon":
        return "epsilon", "metadata"
    architecture = metadata.get("modelspec.architecture", "")
    if architecture.startswith("stable-diffusion-v2-"):
        return ("v_prediction" if architecture.endswith("-v") else "epsilon"), "metadata"
    stem = name.lower()
    if re.search(r"(?<![a-z])v[-_ ]?pred", stem):
        return "v_prediction", "name"
    if denoiser.family != "sd2" or _channels(denoiser) != 4:  # the published inpainting model predicts noise
        return "epsilon", "family"
    size = re.search(r"(?<!\d)(512|768)(?!\d)", stem)
    if size:
        return ("v_prediction" if size[1] == "768" else "epsilon"), "name"
    return None, ""
