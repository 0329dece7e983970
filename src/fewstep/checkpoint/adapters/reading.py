"""Reads adapter files of every common format into one form: part of the pipeline -> layer -> delta.

Formats: kohya's names (``lora_unet_...``, ``lora_te1_...``) with the blocks of diffusers or of CompVis, also
of LyCORIS; diffusers' names with their prefixes (``unet.``, ``text_encoder.``), of today and before it used
peft; peft's own (``base_model.model.``); ComfyUI's (``diffusion_model.input_blocks...``). What alpha means:

- an entry ``scale`` is alpha / rank itself and comes first, as in A1111;
- an entry ``alpha`` of the layer;
- the header's ``lora_adapter_metadata``, or, of peft's own files, the text of ``adapter_config.json``;
- without any of these alpha is the rank, so that the scale is 1.

Files are hostile until checked: names are looked at in the header, before any tensor is read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import alphas, deltas, names, places
from fewstep.checkpoint.adapters.deltas import Delta
from fewstep.checkpoint.adapters.names import shown
from fewstep.checkpoint.adapters.pieces import Pieces
from fewstep.errors import CheckpointError

CONTRACT = "fewstep.contract"
"""Header key of the sampling contract."""

BaseShapes = Mapping[str, Mapping[str, deltas.Shape]]
"""Part of a pipeline -> name of a tensor in its state dict -> shape."""

_MAX_NAME = 500  # the longest of SDXL has 110 characters
_MAX_TENSORS = 100_000
_MAX_TEXT = 1_000_000  # of one header text; ss_tag_frequency of large training sets is about half of that
_LEFT_OUT = frozenset({"format", "ssmd_cover_images"})


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
    style: places.Style = "diffusers"
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
    stored = _tensor_names(file)
    _check_names(stored)
    header = safetensors.read_metadata(file)
    known = {part: names.flat_names(_modules(tensors)) for part, tensors in (base or {}).items()}
    found = {name: places.place(name, known) for name in stored}
    if kinds := sorted({kind for name in stored if (kind := places.unsupported(name))}):
        raise ValueError(f"it is {' and '.join(kinds)}, which is not supported")
    if not any(found.values()):
        raise ValueError(f"it is no adapter, it has {shown(stored[0])}")
    tensors = safetensors.load_torch(file)
    layers: dict[str, dict[str, Pieces]] = {}
    for name, place in found.items():
        if place is not None:
            layers.setdefault(place.part, {}).setdefault(place.layer, Pieces()).add(
                place, name, tensors[name]
            )
    in_header, contract = header.pop(alphas.HEADER_KEY, None), header.pop(CONTRACT, None)
    if contract is not None and len(contract) > _MAX_TEXT:
        raise ValueError(f"its {CONTRACT} has {len(contract)} characters")
    source = alphas.HEADER_KEY if peft_config is None else alphas.CONFIG_FILE
    given = alphas.configuration(in_header if peft_config is None else peft_config, source)
    return AdapterFile(
        name=file.name,
        parts={part: _deltas(part, pieces, given, source) for part, pieces in layers.items()},
        style=places.style(stored),
        unmatched=tuple(name for name, place in found.items() if place is None),
        contract_json=contract,
        metadata=_texts(header),
    )


def _deltas(
    part: str, layers: Mapping[str, Pieces], config: Mapping[str, Any] | None, source: str
) -> dict[str, Delta]:
    found: dict[str, Delta] = {}
    for layer, pieces in layers.items():
        with _told(part, layer):
            found[layer] = pieces.delta()
    ranks = {layer: r for layer, delta in found.items() if (r := deltas.rank(delta))}
    given = alphas.of_layers(part, ranks, config, source)
    for layer, pieces in layers.items():
        with _told(part, layer):
            found[layer] = pieces.with_alpha(found[layer], given.get(layer))
    return found


@contextlib.contextmanager
def _told(part: str, layer: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"of {part} layer {shown(layer)}, {error}") from None


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


def _texts(header: Mapping[str, str]) -> dict[str, str]:
    return {
        key: text
        for key, text in header.items()
        if key not in _LEFT_OUT and len(key) <= _MAX_NAME and key.isprintable() and len(text) <= _MAX_TEXT
    }
