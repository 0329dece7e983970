"""Names out of weight files in messages: they are anybody's text, and can be long or steer a terminal."""

from __future__ import annotations

from collections.abc import Collection

_SHOWN = 10


def shown(name: str, limit: int = 80) -> str:
    """A name for a message: one line, printable, not long."""
    text = name if len(name) <= limit else name[: limit - 3] + "..."
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def first(names: Collection[str]) -> str:
    """The first ten of some names, for a message."""
    listed = ", ".join(shown(name) for name in list(names)[:_SHOWN])
    return (listed + (" ..." if len(names) > _SHOWN else "")) or "none"
