"""Where a tensor of an adapter file belongs by its name: part of the pipeline, layer, place in its delta."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from fewstep.checkpoint.adapters import names

Style = Literal["diffusers", "peft", "diffusers-old", "kohya", "kohya-compvis", "comfyui"]

Known = Mapping[str, Mapping[str, str | None]]
"""Part of the base -> its layers, as `names.flat_names` has them."""

_KOHYA = re.compile(rf"({'|'.join(names.PREFIXES)})_([A-Za-z0-9_]+)(\..+)")
_PART = re.compile(rf"({'|'.join((*names.DENOISERS, *names.TEXT_ENCODERS))})\.(.+)")
_COMFYUI = {
    "diffusion_model.": "unet",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
}
_PEFT = re.compile(r"(.*)\.lora_([AB])(?:\.[^.]+)?\.weight")
_MAGNITUDE = re.compile(r"(.*)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?")
_OLD = re.compile(r"(.*?)(\.lora|\.lora_linear_layer|_lora)\.(down|up)\.weight")
_SHORT_NAMES = {  # diffusers' first names of CLIP's projections
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
}

_ENDS = {
    ".lora_down.weight": ("lora", "down"),
    ".lora_up.weight": ("lora", "up"),
    ".lora_mid.weight": ("lora", "mid"),
    **{f".hada_{name}": ("loha", name) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": ("lokr", name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".diff": ("full", "diff"),
    ".diff_b": ("", "diff_b"),
    ".w_norm": ("norm", "diff"),
    ".b_norm": ("norm", "diff_b"),
    ".alpha": ("", "alpha"),
    ".scale": ("", "scale"),
    ".dora_scale": ("", "dora_scale"),
}
_UNSUPPORTED = {
    ".on_input": "IA3, which multiplies activations",
    ".a1.weight": "GLoRA, whose generations order the factors differently",
    ".oft_blocks": "OFT, which rotates weights",
    ".oft_diag": "OFT, which rotates weights",
    ".lora_B.bias": "a LoRA with biases",
    ".bias_values": "a LoRA with biases",
    ".lambda_layer": "T-LoRA, which depends on the timestep",
    ".lora_embedding_A": "a LoRA of an embedding",
    ".set_weight": "a replacement of weights",
    ".reshape_weight": "a LoRA that changes shapes",
}


class Place(NamedTuple):
    """Part of the pipeline, module path as in diffusers, kind of delta, and which of its tensors.

    The kind is empty for tensors that several kinds may have.
    """

    part: str
    layer: str
    kind: str
    field: str


def place(name: str, known: Known) -> Place | None:
    """Where a tensor belongs; None where that is not known."""
    if match := _KOHYA.fullmatch(name):
        part, tail = _denoiser(names.PREFIXES[match[1]], known), _tail(match[3])
        if tail is None or tail[0]:
            return None
        try:
            layer = names.from_kohya(match[2], known.get(part))
        except ValueError:
            return None
    elif start := next((start for start in _COMFYUI if name.startswith(start)), None):
        part, tail = _COMFYUI[start], _tail(name.removeprefix(start))
        if tail is None or not tail[0]:
            return None
        layer = tail[0]
        if part == "unet":
            unet = names.from_compvis(layer)
            if unet is None:
                return None
            layer = unet
    else:
        part, path = _split_part(name, known)
        tail = _tail(path)
        if tail is None or not tail[0]:
            return None
        layer = _modern(tail[0], part)
    if part in names.TEXT_ENCODERS:
        layer = names.with_text_model(layer)
    return Place(part, layer, tail[1], tail[2])


def unsupported(name: str) -> str | None:
    """What a tensor says about a kind of adapter that is not supported; None for all other names."""
    return next((kind for end, kind in _UNSUPPORTED.items() if name.endswith(end)), None)


def style(found: Sequence[str]) -> Style:
    """The style of a file by the names of its tensors."""
    if kohya := [match for name in found if (match := _KOHYA.fullmatch(name))]:
        compvis = any(names.is_compvis(match[2]) for match in kohya if match[1] == "lora_unet")
        return "kohya-compvis" if compvis else "kohya"
    if any(name.startswith(tuple(_COMFYUI)) for name in found):
        return "comfyui"
    if any(_OLD.fullmatch(name) for name in found):
        return "diffusers-old"
    return "diffusers" if any(_PART.fullmatch(name) for name in found) else "peft"


def _split_part(name: str, known: Known) -> tuple[str, str]:
    path = name.removeprefix("base_model.model.")
    if match := _PART.fullmatch(path):
        return match[1], match[2]
    return _denoiser(names.guess_part(path), known), path


def _denoiser(part: str, known: Known) -> str:
    """The part, or the base's denoiser where a denoiser of another name is meant."""
    if part in names.DENOISERS and part not in known:
        return next((other for other in names.DENOISERS if other in known), part)
    return part


def _tail(path: str) -> tuple[str, str, str] | None:
    """(layer, kind, field) of a name without its prefix."""
    if match := _PEFT.fullmatch(path):
        return match[1], "lora", "down" if match[2] == "A" else "up"
    if match := _MAGNITUDE.fullmatch(path):
        return match[1], "", "magnitude"
    if match := _OLD.fullmatch(path):
        return match[1], "lora", match[3]
    for end, (kind, field) in _ENDS.items():
        if path.endswith(end):
            layer = path.removesuffix(end)
            if field == "alpha" and (
                inner := _tail(layer)
            ):  # diffusers' network_alphas: ...down.weight.alpha
                layer = inner[0]
            return layer, kind, field
    return None


def _modern(layer: str, part: str) -> str:
    """A path without the attention processors of older diffusers."""
    layer = layer.replace(".processor.", ".")
    parent, _, last = layer.rpartition(".")
    if part in names.TEXT_ENCODERS and parent.endswith("self_attn"):
        return f"{parent}.{_SHORT_NAMES.get(last, last)}"
    return f"{layer}.0" if last == "to_out" and part in names.DENOISERS else layer
