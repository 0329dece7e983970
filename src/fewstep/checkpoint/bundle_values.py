"""Checks of the single values in ``bundle.json``; `fewstep.checkpoint.bundle` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check(values: Mapping[str, Any]) -> None:
    """Check numbers, texts and sizes that stand by themselves.

    Raises:
        ValueError: one is of the wrong kind or out of range; the message names it.
        KeyError: one is missing.
    """
    for key in ("latent_channels", "downscale", "text_length", "text_width", "size_multiple", "max_size"):
        if type(values[key]) is not int or not 0 < values[key] <= 65536:
            raise ValueError(f"{key} is {values[key]!r}, not a positive whole number")
    for key in ("scaling_factor", "shift_factor"):
        number = values[key]
        if (
            type(number) not in (int, float)
            or not abs(number) < 1e6
            or (key == "scaling_factor" and number <= 0)
        ):
            raise ValueError(f"{key} is {number!r}, not a usable number")
    for key in ("name", "licence"):
        if not isinstance(values[key], str) or not values[key]:
            raise ValueError(f"{key} is {values[key]!r}, not a text")
    if not isinstance(values["text_mask"], bool):
        raise ValueError(f"text_mask is {values['text_mask']!r}, not true or false")
    size = values["native_size"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
        raise ValueError(f"native_size is {size!r}, not [width, height]")


def texts(key: str, value: Any) -> dict[str, str]:
    """Return an object whose values are all texts, as a copy.

    Raises:
        ValueError: it is something else; the message begins with ``key``.
    """
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} is not an object of texts")
    return dict(value)
