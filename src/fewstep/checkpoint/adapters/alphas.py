"""What peft's configuration says about alpha: in a safetensors header, or in ``adapter_config.json``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from fewstep.checkpoint.adapters import names

HEADER_KEY = "lora_adapter_metadata"
"""The header key that diffusers reads and writes."""

CONFIG_FILE = "adapter_config.json"
"""The file that peft writes beside the tensors."""

_NAME = re.compile(r"\^?[A-Za-z0-9_.]+")
_MAX_TEXT = 1_000_000


def checked(value: float, what: str) -> float:
    """A number above 0 and below infinity.

    Tools disagree on an alpha of 0: some take it for the rank, some for no effect.

    Raises:
        ValueError: it is something else.
    """
    if not 0 < value < math.inf:
        raise ValueError(f"{what} is {value}")
    return value


def configuration(text: str | None, source: str) -> dict[str, Any] | None:
    """The configuration that stands in a text from ``source``; None where there is no text.

    Raises:
        ValueError: it is not a JSON object.
    """
    if text is None:
        return None
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError(f"{len(text)} characters")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError("not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(_unusable(source, error)) from error
    return config


def of_layers(
    part: str, ranks: Mapping[str, int], config: Mapping[str, Any] | None, source: str
) -> dict[str, float]:
    """Alpha by layer as a configuration says; empty where it says nothing about this part.

    Keys may begin with the part's name, as diffusers writes them. Entries of ``alpha_pattern`` are the names
    of layers or their ends; the first that fits counts, and one that fits none is ignored, as in peft.
    Regular expressions, which peft would run, are refused.

    Args:
        part: such as ``unet``.
        ranks: of the layers that have one.
        config: as `configuration` returns it.
        source: where it stood, for messages.

    Raises:
        ValueError: it cannot be used; the message says why.
    """
    if config is None or not ranks:
        return {}
    every = (*names.DENOISERS, *names.TEXT_ENCODERS)
    prefixed = [key for key in config if key.startswith(tuple(f"{name}." for name in every))]
    mine = {key.removeprefix(f"{part}."): config[key] for key in prefixed if key.startswith(f"{part}.")}
    if prefixed and not mine:
        return {}
    if not prefixed:
        mine = {key.removeprefix("base_model.model."): value for key, value in config.items()}
    try:
        return _of_part(part, ranks, mine)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(_unusable(source, error)) from error


def _of_part(part: str, ranks: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, float]:
    usual = float(
        config["lora_alpha"] if "lora_alpha" in config or "alpha" not in config else config["alpha"]
    )
    order: dict[str, tuple[int, float]] = {}
    for number, (pattern, value) in enumerate((config.get("alpha_pattern") or {}).items()):
        if not _NAME.fullmatch(pattern):
            raise ValueError(f"alpha_pattern {pattern!r} is not the name of a layer")
        order[pattern] = (number, float(value))
    found: dict[str, float] = {}
    for layer in ranks:
        spellings = {layer, names.without_text_model(layer)} if part in names.TEXT_ENCODERS else {layer}
        ends = {f"^{whole}" for whole in spellings}
        for whole in spellings:
            words = whole.split(".")
            ends |= {".".join(words[at:]) for at in range(len(words))}
        found[layer] = min((order[end] for end in ends & order.keys()), default=(0, usual))[1]
    if config.get("use_rslora"):  # scaled by alpha / sqrt(rank), Kalajdzievski 2023, 2312.03732
        found = {layer: value * math.sqrt(ranks[layer]) for layer, value in found.items()}
    return found


def _unusable(source: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:100]
    return f"its {source} cannot be used ({type(error).__name__}: {reason})"
