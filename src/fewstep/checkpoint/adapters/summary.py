"""What an adapter is, told from its header alone: layers, ranks, alphas, the base it was made for, its words.

No tensor is read but the few bytes of ``alpha``. What a header says of its training is anybody's text: it is
told as what it is, and never decides anything.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from fewstep.checkpoint.adapters import about, alphas, fitting, places
from fewstep.checkpoint.header import Entry, Header, Shape

MAX_TENSORS = 100_000
_MAX_NAME = 500
_T = TypeVar("_T")
_MAX_TEXT = 5_000_000
_WORDS = 20
_RANKS: dict[tuple[str, str], int] = {
    ("lora", "down"): 0,
    ("loha", "w1_b"): 0,
    ("lokr", "w1_b"): 0,
    ("lokr", "w2_b"): 0,
}
"""(kind, tensor) -> the dimension that is the rank."""

_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e"}

TRAINING = {
    "ss_network_module": "module",
    "ss_network_dim": "rank",
    "ss_network_alpha": "alpha",
    "ss_base_model_version": "base_version",
    "ss_sd_model_name": "base_name",
    "ss_output_name": "name",
    "ss_resolution": "resolution",
    "ss_num_train_images": "images",
    "ss_num_epochs": "epochs",
    "ss_steps": "steps",
    "ss_learning_rate": "learning_rate",
    "ss_training_comment": "comment",
    "modelspec.title": "title",
    "modelspec.author": "author",
    "modelspec.trigger_phrase": "trigger_phrase",
}
"""Header texts of kohya's scripts and of the modelspec standard -> what they are called here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What an adapter's header says.

    Attributes:
        style: how tensors are named, as `fewstep.checkpoint.adapters.places.style` says.
        base: family of base models by the widths of its layers, else by what the header says; None if
            unknown.
        layers: part of the pipeline -> how many layers it changes.
        kinds: kind of delta (``lora``, ``loha``, ``lokr``, ``full``, ``norm``) -> layers.
        ranks: rank -> layers, the most common first.
        alphas: alpha -> layers; a layer without one has its rank, which is what tools take then.
        dora: layers with a magnitude (DoRA).
        unmatched: tensors of no layer.
        training: what its trainer wrote, by `TRAINING`.
        words: the words it was trained with, the most common first, with their count.
    """

    style: str
    base: str | None
    layers: Mapping[str, int]
    kinds: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    dora: int = 0
    unmatched: int = 0
    training: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Layer:
    kinds: set[str] = field(default_factory=set)
    rank: int | None = None
    alpha: float | None = None
    dora: bool = False
    inputs: int | None = None
    outputs: int | None = None


def summary(path: Path, header: Header) -> Summary:
    """Tell what an adapter file is; a header that is strange in places gives less, and no error."""
    names = [name for name in header.entries if len(name) <= _MAX_NAME and name.isprintable()][:MAX_TENSORS]
    layers: dict[tuple[str, str], _Layer] = {}
    matched = 0
    with path.open("rb") as file:
        for name in names:
            place = places.place(name, {})
            if place is None:
                continue
            matched += 1
            layer = layers.setdefault((place.part, place.layer), _Layer())
            _take(layer, place, header.entries[name], header.offsets[name], file)
    _give_alphas(layers, header.metadata)
    return Summary(
        style=places.style(names),
        base=_base(layers, header.metadata),
        layers=dict(Counter(part for part, _ in layers)),
        kinds=_counted(kind for layer in layers.values() for kind in layer.kinds),
        ranks=_counted(layer.rank for layer in layers.values() if layer.rank is not None),
        alphas=_counted(layer.alpha for layer in layers.values() if layer.alpha is not None),
        dora=sum(layer.dora for layer in layers.values()),
        unmatched=len(header.entries) - matched,
        training={own: text for key, own in TRAINING.items() if (text := header.metadata.get(key))},
        words=trained_words(header.metadata),
    )


def trained_words(metadata: Mapping[str, str], limit: int = _WORDS) -> dict[str, int]:
    """The words of ``ss_tag_frequency``, summed over its data sets, the most common first.

    kohya's scripts write it as JSON: data set -> word -> count. What is of another form is left out.
    """
    text = metadata.get("ss_tag_frequency", "")
    if not text or len(text) > _MAX_TEXT:
        return {}
    try:
        sets = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    counts: Counter[str] = Counter()
    for words in sets.values() if isinstance(sets, dict) else ():
        for word, count in words.items() if isinstance(words, dict) else ():
            if type(count) is int and 0 < count < 2**53 and word.strip():
                counts[word.strip()] += count
    return dict(counts.most_common(limit))


def _take(layer: _Layer, place: places.Place, entry: Entry, offset: int, file: BinaryIO) -> None:
    shape: Shape = entry.shape
    if place.kind:
        layer.kinds.add(place.kind)
    dimension = _RANKS.get((place.kind, place.field))
    if dimension is not None and len(shape) > dimension:
        layer.rank = shape[dimension]
    if place.field in ("dora_scale", "magnitude"):
        layer.dora = True
    if place.kind == "lora" and len(shape) > 1:
        if place.field == "down":
            layer.inputs = shape[1]
        elif place.field == "up":
            layer.outputs = shape[0]
    if place.field == "alpha":
        layer.alpha = _number(entry, offset, file)


def _number(entry: Entry, offset: int, file: BinaryIO) -> float | None:
    """A tensor of one number; None where it is another."""
    count = 1
    for side in entry.shape:
        count *= side
    if count != 1 or entry.dtype not in {*_FORMATS, "BF16"}:
        return None
    file.seek(offset)
    data = file.read(entry.nbytes)
    if entry.dtype == "BF16":  # the upper half of a float32
        data, kind = b"\0\0" + data, "<f"
    else:
        kind = _FORMATS[entry.dtype]
    return float(struct.unpack(kind, data)[0]) if len(data) == struct.calcsize(kind) else None


def _give_alphas(layers: Mapping[tuple[str, str], _Layer], metadata: Mapping[str, str]) -> None:
    """Alphas that stand in the header, and the rank for those that stand nowhere."""
    try:
        config = alphas.configuration(metadata.get(alphas.HEADER_KEY), alphas.HEADER_KEY)
        for part in {part for part, _ in layers}:
            ranks = {name: layer.rank for (own, name), layer in layers.items() if own == part and layer.rank}
            for name, alpha in alphas.of_layers(part, ranks, config, alphas.HEADER_KEY).items():
                if layers[part, name].alpha is None:
                    layers[part, name].alpha = alpha
    except ValueError:  # unusable: reading the file says why
        pass
    for layer in layers.values():
        if layer.alpha is None and layer.rank is not None:
            layer.alpha = float(layer.rank)


def _base(layers: Mapping[tuple[str, str], _Layer], metadata: Mapping[str, str]) -> str | None:
    shapes: dict[str, dict[str, Shape]] = {}
    for (part, name), layer in layers.items():
        if layer.inputs is not None and layer.outputs is not None:
            shapes.setdefault(part, {})[f"{name}.weight"] = (layer.outputs, layer.inputs)
    return fitting.family_of_base(shapes) or about.base_model(metadata)


def _counted(values: Iterable[_T]) -> dict[_T, int]:
    return dict(Counter(values).most_common())
