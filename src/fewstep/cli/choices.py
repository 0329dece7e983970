"""Checks of option values that say what would have been right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fewstep.errors import UsageError


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """Return ``value`` when it is allowed.

    Raises:
        UsageError: it is not; the message names the nearest allowed value, or all.
    """
    if value in allowed:
        return value
    from difflib import get_close_matches

    near = get_close_matches(value, allowed, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(allowed)}"
    raise UsageError(f"{option} is {value!r}: {hint}")


def size(option: str, value: str) -> tuple[int, int]:
    """Read "WIDTHxHEIGHT" in pixels; whether the model can draw it is not checked here.

    Raises:
        UsageError: the text has another form.
    """
    match = re.fullmatch(r"(\d{1,6})[xX×](\d{1,6})", value.strip())
    if match is None:
        raise UsageError(f"{option} is {value!r}: give width and height in pixels, such as 128x128")
    return int(match[1]), int(match[2])


def text(option: str, value: str) -> str:
    """Return a text that can be written to a file.

    Raises:
        UsageError: it holds bytes that the terminal's encoding does not know, or a null character.
    """
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise UsageError(f"{option} is not valid text: type it in the terminal's own encoding, best UTF-8")
    return value
