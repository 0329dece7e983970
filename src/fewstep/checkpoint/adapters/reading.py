"""Reads adapter files of every common format into one form: part of the pipeline -> layer -> delta.

Formats: kohya's names (``lora_unet_...``, ``lora_te1_...``) with the blocks of diffusers or of CompVis, also
of LyCORIS; diffusers' names with their prefixes (``unet.``, ``text_encoder.``), of today and before it used
peft; peft's own (``base_model.model.``). What alpha means in each:

- an entry ``scale`` is alpha / rank itself and comes first, as in A1111;
- an entry ``alpha`` of the layer;
- the header's ``lora_adapter_metadata``, or, of peft's own files, the text of ``adapter_config.json``;
- without any of these alpha is the rank, so that the scale is 1.

Files are hostile until checked: names are looked at in the header, before any tensor is read.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import alphas, deltas, names
from fewstep.checkpoint.adapters.deltas import Delta
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CONTRACT = "fewstep.contract"
"""Header key of the sampling contract."""

Style = Literal["diffusers", "peft", "diffusers-old", "kohya", "kohya-compvis"]

BaseShapes = Mapping[str, Mapping[str, deltas.Shape]]
"""Part of a pipeline -> name of a tensor in its state dict -> shape."""

_MAX_NAME = 500  # the longest of SDXL has 110 characters
_MAX_TENSORS = 100_000
_MAX_TEXT = 1_000_000  # of one header text; ss_tag_frequency of large training sets is about half of that
_PREVIEW = "ssmd_cover_images"

_KOHYA = re.compile(rf"({'|'.join(names.PREFIXES)})_([A-Za-z0-9_]+)\.(.+)")
_PART = re.compile(rf"({'|'.join((*names.DENOISERS, *names.TEXT_ENCODERS))})\.(.+)")
_PEFT = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_MAGNITUDE = re.compile(r"(.+)\.lora_magnitude_vector(?:\.[^.]+)?")
_OLD = re.compile(r"(.+?)(\.lora|\.lora_linear_layer|_lora)\.(down|up)\.weight")
_SHORT_NAMES = {  # diffusers' first names of CLIP's projections
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
}

_FIELDS = {
    "lora_down.weight": ("lora", "down"),
    "lora_up.weight": ("lora", "up"),
    "lora_mid.weight": ("lora", "mid"),
    **{f"hada_{name}": ("loha", name) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": ("lokr", name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": ("full", "diff"),
    "diff_b": ("full", "diff_b"),
    "w_norm": ("norm", "diff"),
    "b_norm": ("norm", "diff_b"),
    "alpha": ("", "alpha"),
    "scale": ("", "scale"),
    "dora_scale": ("", "dora_scale"),
}
_REFUSED = {
    "on_input": "IA3 (it multiplies activations)",
    "a1.weight": "GLoRA (its generations order the factors differently)",
    "oft_blocks": "OFT (it rotates weights)",
    "oft_diag": "OFT (it rotates weights)",
    "lora_B.bias": "LoRA with biases",
    "bias_values": "LoRA with biases",
    "lambda_layer": "T-LoRA (it depends on the timestep)",
    "lora_embedding_A": "LoRA of an embedding",
    "set_weight": "a replacement of weights",
    "reshape_weight": "LoRA of a base with other shapes",
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AdapterFile:
    """What an adapter file holds.

    Attributes:
        name: of the file, for messages.
        parts: part of the pipeline (``unet``, ``text_encoder`` ...) -> module path, as in diffusers -> delta.
            Layers of CLIP always begin with ``text_model.``.
        style: how the file names its tensors.
        unmatched: tensors that no layer could be made of; textual-inversion embeddings among them begin with
            ``bundle_emb.``.
        contract_json: the sampling contract, if the file has one.
        metadata: what else its header says, without preview pictures and texts of over a million characters.
    """

    name: str
    parts: dict[str, dict[str, Delta]]
    style: Style = "diffusers"
    unmatched: tuple[str, ...] = ()
    contract_json: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


def read_adapter(
    path: str | os.PathLike[str], *, base: BaseShapes | None = None, peft_config: str | None = None
) -> AdapterFile:
    """Read an adapter file of any supported format.

    Args:
        path: a safetensors file.
        base: shapes of the model it is for; its names settle what kohya's underscores mean. Whether the
            adapter fits is another question, see `fewstep.checkpoint.adapters.fitting.check_fits`.
        peft_config: text of the ``adapter_config.json`` beside a file of peft's own, which has the alpha.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, no adapter, or one of a kind that is not supported.
    """
    file = Path(path)
    try:
        return parse(file, base=base, peft_config=peft_config)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}; give a LoRA, LoHa, LoKr or difference file") from error


def parse(file: Path, *, base: BaseShapes | None = None, peft_config: str | None = None) -> AdapterFile:
    """`read_adapter`, with a ValueError that has the reason only where the content is at fault."""
    found = _tensor_names(file)
    _check_names(found)
    header = safetensors.read_metadata(file)
    known = {part: names.flat_names(_modules(tensors)) for part, tensors in (base or {}).items()}
    places = {name: _place(name, known) for name in found}
    if kinds := sorted({kind for name in found if (kind := _refused(name))}):
        raise ValueError(f"it is {', '.join(kinds)}, which is not supported")
    if found and not any(places.values()):
        raise ValueError(f"it is no adapter, it has {shown(found[0])}")
    tensors = safetensors.load_torch(file)
    layers: dict[tuple[str, str], _Layer] = {}
    for name, place in places.items():
        if place is not None:
            layers.setdefault((place.part, place.layer), _Layer()).add(place, name, tensors[name])
    texts = _texts(header)
    in_header = texts.pop(alphas.HEADER_KEY, None)
    source = alphas.HEADER_KEY if peft_config is None else alphas.CONFIG_FILE
    given = alphas.configuration(in_header if peft_config is None else peft_config, source)
    parts: dict[str, dict[str, Delta]] = {}
    for (part, layer), pieces in layers.items():
        try:
            parts.setdefault(part, {})[layer] = pieces.delta()
        except ValueError as error:
            raise ValueError(f"of {part} layer {shown(layer)} {error}") from None
    for part, part_layers in parts.items():
        ranks = {name: r for name, delta in part_layers.items() if (r := deltas.rank(delta))}
        from_config = alphas.of_layers(part, ranks, given, source)
        for layer, delta in part_layers.items():
            part_layers[layer] = layers[part, layer].with_alpha(part, layer, delta, from_config.get(layer))
    return AdapterFile(
        name=file.name,
        parts=parts,
        style=_style(found),
        unmatched=tuple(name for name, place in places.items() if place is None),
        contract_json=texts.pop(CONTRACT, None),
        metadata={key: text for key, text in texts.items() if key != "format"},
    )


def shown(name: str) -> str:
    """A name from a file as a message may have it: quoted, escaped, not endless."""
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")


class _Place(NamedTuple):
    part: str
    layer: str
    kind: str  # lora, loha, lokr, full, norm; empty for what all may have
    field: str


class _Layer:
    """The tensors of one layer while the file is read."""

    def __init__(self) -> None:
        self.pieces: dict[str, tuple[str, torch.Tensor]] = {}
        self.kinds: dict[str, str] = {}

    def add(self, place: _Place, name: str, value: torch.Tensor) -> None:
        if place.field in self.pieces:
            raise ValueError(f"{shown(self.pieces[place.field][0])} and {shown(name)} are the same tensor")
        self.pieces[place.field] = (name, value)
        if place.kind:
            self.kinds.setdefault(place.kind, name)

    def delta(self) -> Delta:
        """The delta, its alpha still to come."""
        if len(self.kinds) != 1:
            several = " and ".join(map(shown, self.kinds.values())) or shown(
                next(iter(self.pieces.values()))[0]
            )
            raise ValueError(f"it has {several}, which make no layer")
        (kind,) = self.kinds
        parts: dict[str, Any] = {field: value for field, (_, value) in self.pieces.items()}
        extra = {"alpha", "scale", "dora_scale"} & parts.keys()
        for name in ("alpha", "scale"):
            parts.pop(name, None)
        needed = {"lora": ("down", "up"), "loha": ("w1_a", "w1_b", "w2_a", "w2_b")}.get(kind, ())
        if (
            "magnitude" in parts
        ):  # peft's has its numbers elsewhere: (out,) or, of a convolution, (1, out, 1, 1)
            if "dora_scale" in parts:
                raise ValueError("it has two DoRA magnitudes")
            dimensions = parts["down"].ndim if "down" in parts else 2
            parts["dora_scale"] = parts.pop("magnitude").reshape(-1, *(1,) * (dimensions - 1))
            extra |= {"dora_scale"}
        if missing := [name for name in needed if name not in parts]:
            few = "only one of the two tensors" if kind == "lora" else "too few tensors"
            raise ValueError(f"it has {few}: {', '.join(missing)} is missing")
        delta: Delta
        if kind in ("full", "norm"):
            if extra - {"alpha"}:  # tools agree that alpha means nothing here
                raise ValueError(
                    f"it has a difference with {', '.join(sorted(extra))}, whose meaning is not known"
                )
            delta = deltas.Full(norm=kind == "norm", **parts)
        elif kind == "lora":
            delta = deltas.Lora(alpha=math.nan, **parts)
        else:
            delta = (deltas.LoHa if kind == "loha" else deltas.LoKr)(alpha=math.nan, **parts)
        deltas.check(delta)
        return delta

    def with_alpha(self, part: str, layer: str, delta: Delta, from_config: float | None) -> Delta:
        """The delta with the alpha that the file, the config or nobody gives."""
        if isinstance(delta, deltas.Full):
            return delta
        r = deltas.rank(delta)
        alpha = float(r or 1)
        if "scale" in self.pieces:
            alpha *= self._number("scale", part, layer)
        elif "alpha" in self.pieces:
            alpha = self._number("alpha", part, layer)
        elif from_config is not None:
            alpha = alphas.checked(from_config, f"alpha of {part} layer {shown(layer)}")
        return replace(delta, alpha=alpha)

    def _number(self, what: str, part: str, layer: str) -> float:
        name, value = self.pieces[what]
        if value.numel() != 1:
            raise ValueError(f"{what} of {shown(name)} is not one number")
        return alphas.checked(float(value), f"{what} of {part} layer {shown(layer)}")


def _tensor_names(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    safetensors.check_content(file)
    try:
        with safe_open(file, framework="np") as handle:
            return list(handle.keys())
    except (SafetensorError, OSError, UnicodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file}: cannot be read ({reason}); download or export it again") from error


def _check_names(found: list[str]) -> None:
    if not found:
        raise ValueError("it is empty")
    if len(found) > _MAX_TENSORS:
        raise ValueError(f"it has {len(found)} tensors")
    for name in found:
        if len(name) > _MAX_NAME or not name.isprintable():
            raise ValueError(f"it has a tensor called {shown(name)}, no name of a layer")


def _modules(tensors: Mapping[str, deltas.Shape]) -> list[str]:
    return [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]


def _refused(name: str) -> str | None:
    return next((kind for end, kind in _REFUSED.items() if name.endswith(f".{end}")), None)


def _place(name: str, known: Mapping[str, Mapping[str, str | None]]) -> _Place | None:
    """Where a tensor belongs, or None where that is not known."""
    if match := _KOHYA.fullmatch(name):
        tail = _tail(f"x.{match[3]}")
        if tail is None or tail[0] != "x":
            return None
        part = names.PREFIXES[match[1]]
        if part in names.DENOISERS and part not in known:
            part = next((other for other in names.DENOISERS if other in known), part)
        try:
            layer = names.from_kohya(match[2], known.get(part))
        except ValueError:
            return None
    else:
        part, path = _split_part(name, known)
        tail = _tail(path)
        if tail is None:
            return None
        layer = _modern(tail[0], part)
    if part in names.TEXT_ENCODERS:
        layer = names.with_text_model(layer)
    return _Place(part, layer, *tail[1:])


def _split_part(name: str, known: Mapping[str, Any]) -> tuple[str, str]:
    path = name.removeprefix("base_model.model.")
    if match := _PART.fullmatch(path):
        return match[1], match[2]
    part = names.guess_part(path)
    if part in names.DENOISERS and part not in known:
        part = next((other for other in names.DENOISERS if other in known), part)
    return part, path


def _tail(path: str) -> tuple[str, str, str] | None:
    """(layer, kind, field) of a name without its prefix."""
    if match := _PEFT.fullmatch(path):
        return match[1], "lora", "down" if match[2] == "A" else "up"
    if match := _MAGNITUDE.fullmatch(path):
        return match[1], "", "magnitude"
    if match := _OLD.fullmatch(path):
        return match[1], "lora", match[3]
    for end, (kind, name) in _FIELDS.items():
        if path.endswith(f".{end}"):
            layer = path.removesuffix(f".{end}")
            if name == "alpha" and (inner := _tail(layer)):  # diffusers' network_alphas: ...down.weight.alpha
                layer = inner[0]
            return layer, kind, name
    return None


def _modern(layer: str, part: str) -> str:
    """A path without the attention processors of older diffusers."""
    layer = layer.replace(".processor.", ".")
    parent, _, last = layer.rpartition(".")
    if part in names.TEXT_ENCODERS and parent.endswith("self_attn"):
        return f"{parent}.{_SHORT_NAMES.get(last, last)}"
    return f"{layer}.0" if last == "to_out" and part in names.DENOISERS else layer


def _style(found: list[str]) -> Style:
    if kohya := [match for name in found if (match := _KOHYA.fullmatch(name))]:
        compvis = any(names.is_compvis(match[2]) for match in kohya if match[1] == "lora_unet")
        return "kohya-compvis" if compvis else "kohya"
    if any(_OLD.fullmatch(name) for name in found):
        return "diffusers-old"
    return "diffusers" if any(_PART.fullmatch(name) for name in found) else "peft"


def _texts(header: Mapping[str, str]) -> dict[str, str]:
    return {
        key: text
        for key, text in header.items()
        if key != _PREVIEW and len(key) <= _MAX_NAME and key.isprintable() and len(text) <= _MAX_TEXT
    }
