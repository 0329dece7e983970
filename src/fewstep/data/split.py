"""Which drawings and compositions training never sees.

Two kinds are held out: whole objects (in every style and on every background) and single combinations of
object, style and background whose parts are all trained. Both follow from a hash of the names alone, so a
drawing set that grows or loses a style keeps the split of what it had.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

Part = Literal["train", "object", "combination"]

OBJECT_MODULUS: Final = 50
COMBINATION_MODULUS: Final = 20

ALWAYS_TRAINED: Final = frozenset(
    {
        # Prompts of the README and the documents: what a newcomer types first must not be a held-out test.
        ("red apple", "noto", "sky blue"),
        ("red apple", "twemoji", "sky blue"),
        ("red apple", "fluent flat", "sky blue"),
        ("red apple", "noto", "white"),
        ("pizza", "noto", "yellow"),
        ("pizza", "fluent flat", "navy blue"),
        ("cat face", "twemoji", "pink"),
        ("cat face", "noto", "lavender"),
        ("dog face", "noto", "beige"),
        ("fox", "fluent flat", "mint green"),
        ("owl", "fluent flat", "navy blue"),
        ("tropical fish", "twemoji", "turquoise"),
        ("strawberry", "fluent flat", "white"),
        ("cactus", "noto", "orange"),
        ("rocket", "noto", "navy blue"),
        ("sunflower", "twemoji", "sky blue"),
    }
)
"""(label, style, background) that stay in the training part whatever their hash says."""

_TRAINED_LABELS: Final = frozenset(label for label, _, _ in ALWAYS_TRAINED)


def _bucket(name: str, modulus: int) -> int:
    return int(hashlib.sha256(name.encode("utf-8")).hexdigest(), 16) % modulus


def object_held_out(label: str) -> bool:
    """Say whether an object is held out whole: SHA-256 of the label is 0 modulo 50."""
    return label not in _TRAINED_LABELS and _bucket(label, OBJECT_MODULUS) == 0


def combination_held_out(label: str, style: str, background: str) -> bool:
    """Say whether one combination is held out: SHA-256 of "label|style|background" is 0 modulo 20.

    False for combinations in `ALWAYS_TRAINED`. Objects that are held out whole are not considered here.
    """
    if (label, style, background) in ALWAYS_TRAINED:
        return False
    return _bucket(f"{label}|{style}|{background}", COMBINATION_MODULUS) == 0


def part(label: str, style: str, background: str) -> Part:
    """Return the part a composition belongs to: `train`, `object` or `combination`."""
    if object_held_out(label):
        return "object"
    return "combination" if combination_held_out(label, style, background) else "train"
