"""Writes adapter files in the styles that other tools read; what an adapter does is the same in each.

- ``diffusers``: ``unet.a.b.lora_A.weight``, ``.lora_B.weight`` and, of DoRA, ``.lora_magnitude_vector``;
  rank and alpha stand in the header, under ``lora_adapter_metadata``, as numbers of double precision. Tools
  that do not read that key take the rank for alpha. LoRA and DoRA only: diffusers has no names for the rest.
- ``kohya``: ``lora_unet_a_b.lora_down.weight``, ``.lora_up.weight``, ``.alpha``, for the web UIs and ComfyUI.
- ``kohya-compvis``: the same with CompVis's block names in the U-Net, as trainers write them for SDXL.

Tensors are written bit by bit as they are, in their own types. Alpha is written in the type of the layer's
tensors where that holds it exactly, otherwise in single or double precision.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import about, alphas, deltas, fitting, names
from fewstep.checkpoint.adapters.deltas import Delta, Full, LoHa, LoKr, Lora
from fewstep.checkpoint.adapters.names import shown
from fewstep.checkpoint.adapters.reading import CONTRACT, AdapterFile
from fewstep.errors import UsageError

if TYPE_CHECKING:
    import torch

WriteStyle = Literal["diffusers", "kohya", "kohya-compvis"]

_OWN = frozenset({CONTRACT, alphas.HEADER_KEY, "format"})


def save_adapter(path: str | os.PathLike[str], adapter: AdapterFile, *, style: WriteStyle) -> None:
    """Write an adapter atomically in one of the styles.

    Hashes of the old file that its header may have are left out; the other texts stay.

    Args:
        path: ends in ``.safetensors`` for other tools to take it.
        adapter: as `fewstep.checkpoint.adapters.reading.read_adapter` returns it, without unmatched tensors.
        style: how tensors are named.

    Raises:
        UsageError: the style cannot express it, or a header text stands under a name of ours.
        OutputError: the file cannot be written.
    """
    if adapter.unmatched:
        raise UsageError(
            f"{path}: {len(adapter.unmatched)} tensors of {shown(adapter.name)} have no meaning here "
            f"({shown(adapter.unmatched[0])}) and would be lost; keep the file as it is"
        )
    header = {key: text for key, text in adapter.metadata.items() if key not in about.HASHES}
    if taken := sorted(_OWN & header.keys()):
        raise UsageError(f"{path}: header text {taken[0]!r} is written by this function; use another name")
    try:
        if style == "diffusers":
            tensors, header[alphas.HEADER_KEY] = _diffusers(adapter.parts)
        else:
            tensors = _kohya(adapter, compvis=style == "kohya-compvis")
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    header["format"] = "pt"
    if adapter.contract_json is not None:
        header[CONTRACT] = adapter.contract_json
    safetensors.save_torch(path, tensors, header)


def _diffusers(parts: Mapping[str, Mapping[str, Delta]]) -> tuple[dict[str, torch.Tensor], str]:
    tensors: dict[str, torch.Tensor] = {}
    config: dict[str, Any] = {}
    for part, layers in parts.items():
        plain: dict[str, Lora] = {}
        for layer, delta in layers.items():
            if not isinstance(delta, Lora) or delta.mid is not None or delta.diff_b is not None:
                raise ValueError(
                    f"{part} layer {shown(layer)} is {_kind(delta)}, which has no diffusers names; "
                    "use the style kohya"
                )
            plain[layer] = delta
            base = f"{part}.{layer}"
            tensors[f"{base}.lora_A.weight"], tensors[f"{base}.lora_B.weight"] = delta.down, delta.up
            if delta.dora_scale is not None:
                # peft saves it without ``.weight`` and reads both; transformers 5, which loads text encoders,
                # reads only this.
                end = ".weight" if part in names.TEXT_ENCODERS else ""
                tensors[f"{base}.lora_magnitude_vector{end}"] = _magnitude(part, layer, delta)
        with_dora = [layer for layer, delta in plain.items() if delta.dora_scale is not None]
        if with_dora and len(with_dora) < len(plain):
            raise ValueError(f"only some layers of {part} have a DoRA scale; use the style kohya")
        config |= {f"{part}.{key}": value for key, value in _config(part, plain, bool(with_dora)).items()}
    return tensors, json.dumps(config, sort_keys=True)


def _config(part: str, layers: Mapping[str, Lora], dora: bool) -> dict[str, Any]:
    """What peft's LoraConfig is made of; no more than needed, older versions refuse keys they do not know."""
    # Where the encoder has no ``text_model.`` diffusers takes it off the tensors' names, but not off these;
    # and peft takes the end of a name for the layer.
    text = part in names.TEXT_ENCODERS
    short = {name: names.without_text_model(name) if text else name for name in layers}
    ranks = {short[name]: len(delta.down) for name, delta in layers.items()}
    given = {short[name]: delta.alpha for name, delta in layers.items()}
    rank = max(Counter(ranks.values()).items(), key=lambda entry: (entry[1], entry[0]))[0]  # the most common
    alpha = max(Counter(given.values()).items(), key=lambda entry: (entry[1], entry[0]))[0]
    config: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": sorted(ranks)}
    start = "" if text else "^"  # peft takes patterns for the ends of names
    if others := {f"{start}{name}": value for name, value in ranks.items() if value != rank}:
        config["rank_pattern"] = others
    if scales := {f"{start}{name}": value for name, value in given.items() if value != alpha}:
        config["alpha_pattern"] = scales
    if dora:
        config["use_dora"] = True
    return config


def _magnitude(part: str, layer: str, delta: Lora) -> torch.Tensor:
    made_for = deltas.shape(delta)
    assert delta.dora_scale is not None and made_for is not None
    if deltas.dora_axis(delta.dora_scale, made_for) != 0:
        raise ValueError(
            f"{part} layer {shown(layer)} has one DoRA magnitude an input, peft has one an output; "
            "use the style kohya"
        )
    return delta.dora_scale.reshape(-1 if delta.down.ndim == 2 else (1, -1, *(1,) * (delta.down.ndim - 2)))


def _kohya(adapter: AdapterFile, *, compvis: bool) -> dict[str, torch.Tensor]:
    import torch

    prefixes = {
        part: prefix for prefix, part in names.PREFIXES.items() if prefix not in ("lycoris", "lora_te1")
    }
    if fitting.family(adapter) in ("SDXL", "SD3") or adapter.parts.keys() & {
        "text_encoder_2",
        "text_encoder_3",
    }:
        prefixes["text_encoder"] = "lora_te1"
    found: dict[str, torch.Tensor] = {}
    for part, layers in adapter.parts.items():
        four_blocks = any(layer.startswith(("down_blocks.3.", "up_blocks.3.")) for layer in layers)
        spelling: Literal["sd1", "sdxl"] | None = None
        if compvis and part == "unet":
            spelling = "sd1" if four_blocks else "sdxl"
        for layer, delta in layers.items():
            try:
                base = f"{prefixes[part]}_{names.to_kohya(layer, compvis=spelling)}"
            except ValueError as error:
                raise ValueError(
                    f"kohya names write '_' for '.', and {error}; use the style diffusers"
                ) from None
            for name, value in _kohya_tensors(delta):
                if f"{base}.{name}" in found:
                    raise ValueError(
                        f"kohya names write '_' for '.', and {layer!r} could not be read back; "
                        "use the style diffusers"
                    )
                found[f"{base}.{name}"] = value
            if not isinstance(delta, Full):
                like = next(value for _, value in deltas.tensors(delta))
                kinds = (like.dtype, torch.float32, torch.float64)
                exact = (torch.tensor(delta.alpha, dtype=kind) for kind in kinds)
                found[f"{base}.alpha"] = next(value for value in exact if float(value) == delta.alpha)
    return found


def _kohya_tensors(delta: Delta) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in deltas.tensors(delta):
        match delta:
            case Lora() | LoHa() | LoKr() if name in ("dora_scale", "diff_b"):
                yield name, value
            case Lora():
                yield f"lora_{name}.weight", value
            case LoHa():
                yield f"hada_{name}", value
            case LoKr():
                yield f"lokr_{name}", value
            case Full(norm=True):
                yield ("w_norm" if name == "diff" else "b_norm"), value
            case Full():
                yield name, value


def _kind(delta: Delta) -> str:
    if isinstance(delta, Lora):
        return "a LoRA with a bias" if delta.mid is None else "a LoRA with a tensor in the middle"
    return "a difference" if isinstance(delta, Full) else f"a {type(delta).__name__}"
