"""Adapter files: LoRA tensors, rank, alpha and sampling contract in one safetensors file.

Two styles of names for the layer ``a.b`` (A: (rank, in, ...), B: (out, rank, ...)):

- ``diffusers``: ``unet.a.b.lora_A.weight`` and ``.lora_B.weight``; alpha stands in the header, under
  ``lora_adapter_metadata``. Tools that do not read that key take the rank for alpha.
- ``kohya``: ``lora_unet_a_b.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, for the web UIs.

The contract is carried as opaque text under ``fewstep.contract``; `fewstep.diffusion.contract` reads it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal

from fewstep.checkpoint import safetensors
from fewstep.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    import torch

CONTRACT = "fewstep.contract"
"""Header key of the sampling contract."""

Style = Literal["diffusers", "kohya"]

_PEFT = "lora_adapter_metadata"  # the key that diffusers reads and writes
_OWN = frozenset({CONTRACT, _PEFT, "format"})
_PREFIX = re.compile(r"^(unet|transformer|base_model\.model)\.")
_PEFT_NAME = re.compile(r"(?!text_encoder).+\.lora_[AB]\.weight")
_KOHYA_NAME = re.compile(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)")
_GROWTH = 16  # a small file must not fill the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """What an adapter file holds.

    Attributes:
        state: ``<layer>.lora_A.weight`` (rank, in, ...) and ``<layer>.lora_B.weight`` (out, rank, ...).
        rank: one for all layers; smaller ones have been filled up with zeros, which changes nothing.
        alpha: one for all layers; the adapter adds ``alpha / rank * B A``.
        contract_json: the sampling contract, if the file has one.
        style: how the file names its tensors.
        metadata: what else its header says.
    """

    state: dict[str, torch.Tensor]
    rank: int
    alpha: float
    contract_json: str | None
    style: Style
    metadata: dict[str, str] = field(default_factory=dict)


def save_lora(
    path: str | os.PathLike[str],
    state: Mapping[str, torch.Tensor],
    *,
    rank: int,
    alpha: float,
    contract_json: str | None,
    style: Style = "diffusers",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter file atomically, in the tensors' own types.

    Args:
        path: ends in ``.safetensors`` for other tools to take it.
        state: names and shapes as in `LoraFile`.
        rank: of every layer.
        alpha: what the adapter was trained with.
        contract_json: how the adapted model must be sampled.
        style: how tensors are named.
        metadata: more header texts (licence, base model ...).

    Raises:
        UsageError: names that the style cannot tell apart, or a header text under a name of ours.
        OutputError: the file cannot be written.
    """
    import torch

    assert all(len(a) == rank for a, _ in _paired(state).values())
    header = dict(metadata or {})
    if taken := sorted(_OWN & header.keys()):
        raise UsageError(f"{path}: header text {taken[0]!r} is written by this function; use another name")
    header["format"] = "pt"
    if contract_json is not None:
        header[CONTRACT] = contract_json
    if style == "diffusers":
        tensors = {f"unet.{name}": value for name, value in state.items()}
        # No more than this: older versions of peft refuse keys that they do not know.
        config = {"unet.r": rank, "unet.lora_alpha": alpha, "unet.target_modules": sorted(_layers(state))}
        header[_PEFT] = json.dumps(config, sort_keys=True)
    else:
        back: dict[str, str] = {}
        renamed = {name: _kohya_name(name) for name in state}
        with contextlib.suppress(ValueError):
            back = _peft_names(renamed.values())
        if lost := [name for name, kohya in renamed.items() if back.get(kohya) != name]:
            raise UsageError(
                f"{path}: kohya names write '_' for '.', and {lost[0]!r} could not be read back; "
                "use the style diffusers"
            )
        tensors = {renamed[name]: value for name, value in state.items()}
        tensors |= {_kohya_name(f"{layer}.alpha"): torch.tensor(float(alpha)) for layer in _layers(state)}
    safetensors.save_torch(path, tensors, header)


def load_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read an adapter file of either style, also of other tools' making.

    Layers of different rank or scale are brought to one: the largest rank, and the scale goes into B.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, not a LoRA, or one of a kind that is not plain.
    """
    file = Path(path)
    tensors = safetensors.load_torch(file)
    header = safetensors.read_metadata(file)
    style: Style = "kohya" if any(name.startswith("lora_unet_") for name in tensors) else "diffusers"
    try:
        pairs, alphas = _from_kohya(tensors) if style == "kohya" else _from_diffusers(tensors, header)
        state, rank, alpha = _uniform(pairs, alphas)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; give a plain LoRA of a denoiser") from error
    rest = {key: value for key, value in header.items() if key not in _OWN}
    contract = header.get(CONTRACT)
    return LoraFile(state=state, rank=rank, alpha=alpha, contract_json=contract, style=style, metadata=rest)


Pairs = dict[str, tuple["torch.Tensor", "torch.Tensor"]]
Alphas = dict[str, float]


def _from_diffusers(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str]) -> tuple[Pairs, Alphas]:
    state = {_PREFIX.sub("", name): value for name, value in tensors.items()}
    if any(".lora.down." in name or "_lora.down." in name for name in state):  # diffusers before it used peft
        from diffusers.utils import convert_unet_state_dict_to_peft

        state = convert_unet_state_dict_to_peft(state)
    pairs = _paired(state)
    if _PEFT not in header:
        return pairs, {layer: float(len(a)) for layer, (a, _) in pairs.items()}
    try:
        config = {_PREFIX.sub("", key): value for key, value in json.loads(header[_PEFT]).items()}
        given = {layer: float(config["lora_alpha"]) for layer in pairs}
        for pattern, value in (config.get("alpha_pattern") or {}).items():
            end = pattern.removeprefix("^")
            named = [layer for layer in pairs if layer == end or layer.endswith(f".{end}")]
            if not named:
                raise ValueError(f"alpha_pattern {pattern!r} is not the name of a layer")
            given |= dict.fromkeys(named, float(value))
        if config.get("use_rslora"):  # scaled by alpha / sqrt(rank)
            given = {layer: value * math.sqrt(len(pairs[layer][0])) for layer, value in given.items()}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"its header's {_PEFT} cannot be used ({type(error).__name__}: {reason})") from error
    return pairs, given


def _from_kohya(tensors: Mapping[str, torch.Tensor]) -> tuple[Pairs, Alphas]:
    if strange := [name for name in tensors if not _KOHYA_NAME.fullmatch(name)]:
        raise ValueError(f"it has {strange[0]!r}")
    weights = [name for name in tensors if not name.endswith(".alpha")]
    names = _peft_names(weights)
    if len(names) < len(weights):
        raise ValueError("it has layers whose names cannot be told apart or have no partner")
    pairs = _paired({peft: tensors[kohya] for kohya, peft in names.items()})
    alphas = {layer: float(len(a)) for layer, (a, _) in pairs.items()}
    for kohya, peft in names.items():
        value = tensors.get(f"{kohya.partition('.')[0]}.alpha")
        if value is not None:
            if value.numel() != 1:
                raise ValueError(f"alpha of {kohya!r} is not one number")
            alphas[_layer(peft)] = float(value)
    return pairs, alphas


def _paired(state: Mapping[str, torch.Tensor]) -> Pairs:
    """A and B by layer; raises ValueError, with the reason, where that cannot be."""
    if strange := [name for name in state if not _PEFT_NAME.fullmatch(name)]:
        raise ValueError(f"it has {strange[0]!r}")
    pairs: Pairs = {}
    for layer in _layers(state):
        a, b = state.get(f"{layer}.lora_A.weight"), state.get(f"{layer}.lora_B.weight")
        if a is None or b is None:
            raise ValueError(f"of {layer} it has only one of the two tensors")
        if not (a.dim() == b.dim() >= 2 and len(a) == b.shape[1] > 0 and a.is_floating_point()):
            raise ValueError(
                f"the tensors of {layer}, {tuple(a.shape)} and {tuple(b.shape)}, do not multiply"
            )
        pairs[layer] = (a, b)
    if not pairs:
        raise ValueError("it is empty")
    return pairs


def _uniform(pairs: Pairs, alphas: Alphas) -> tuple[dict[str, torch.Tensor], int, float]:
    """One rank and one alpha for all layers; nothing is touched when it is so already."""
    from torch.nn.functional import pad

    for layer, alpha in alphas.items():
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha of {layer} is {alpha}")
    rank = max(len(a) for a, _ in pairs.values())
    alpha = next(iter(alphas.values()))
    state: dict[str, torch.Tensor] = {}
    if any(len(a) != rank or alphas[layer] != alpha for layer, (a, _) in pairs.items()):
        sizes = [(a.numel() + b.numel(), rank / len(a)) for a, b in pairs.values()]
        if sum(size * growth for size, growth in sizes) > _GROWTH * sum(size for size, _ in sizes):
            raise ValueError(f"its ranks differ too much, the largest is {rank}")
        alpha = float(rank)
        for layer, (a, b) in pairs.items():
            missing = rank - len(a)
            scaled = b * (alphas[layer] / len(a))
            # pad counts dimensions from the last one
            pairs[layer] = (
                pad(a, (0, 0) * (a.dim() - 1) + (0, missing)),
                pad(scaled, (0, 0) * (b.dim() - 2) + (0, missing)),
            )
    for layer, (a, b) in pairs.items():
        state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] = a, b
    return state, rank, alpha


def _layer(name: str) -> str:
    return name.rpartition(".lora_")[0]


def _layers(state: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_layer, state)))


def _kohya_name(name: str) -> str:
    layer, _, kind = name.removesuffix(".weight").rpartition(".")
    ending = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}.get(kind, kind)
    return f"lora_unet_{layer.replace('.', '_')}.{ending}"


def _peft_names(kohya: Iterable[str]) -> dict[str, str]:
    """Names of kohya's tensors -> ours, as diffusers reads them; those it cannot tell apart are missing."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from diffusers.utils import convert_unet_state_dict_to_peft

    # It renames keys and never looks at values, so names can ride along as values. Layers of Stable Diffusion
    # XL may be named as in its authors' code; all U-Nets of that family have two layers a block.
    blocks = SimpleNamespace(layers_per_block=2)
    try:
        renamed, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(
            {name: name for name in kohya}, unet_config=blocks
        )
    except (KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"its names cannot be read ({reason})") from error
    plain = convert_unet_state_dict_to_peft(renamed)
    return {name: peft.removeprefix("unet.") for peft, name in plain.items()}
