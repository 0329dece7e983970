"""Values out of files, made fit for JSON and to be shown: they are anybody's text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 1_000_000
"""Characters of one text that are shown."""

_MAX_DEPTH = 20
_SHOWN = 300


def plain(value: Any, depth: int = 0) -> Any:
    """A value that JSON has: texts that can be printed, no number that is not finite, not endlessly deep."""
    if isinstance(value, str):
        text = value if len(value) <= MAX_TEXT else f"{value[:_SHOWN]}... ({len(value)} characters)"
        # Lone surrogates, which JSON can spell, are no characters that a terminal takes.
        return str(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth >= _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, depth + 1) for inner in value]
    return plain(str(value))
