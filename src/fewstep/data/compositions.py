"""Drawings on plain backgrounds: which ones, with which captions, and their pixels."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.data import split
from fewstep.data.backgrounds import RGB
from fewstep.data.captions import variants
from fewstep.data.emoji import Drawing, Drawings
from fewstep.errors import DataError, UsageError

# What a mirror image contradicts: directions in the name, and anything written.
_SIDED: Final = re.compile(
    r"\b(?:left|right|leftwards|rightwards|clockwise|counterclockwise|button|sign|medal|globe|map|written|input"
    r"|abc|keycap|\d+|1st|2nd|3rd|hundred|yen|dollar|euro|pound|currency|copyright|registered|trade|calendar"
    r"|musical|question|check|pool|statue|zzz|tm)\b",
    re.IGNORECASE,
)


def mirrorable(label: str) -> bool:
    """Say whether the mirror image of a drawing still shows its label: no directions, nothing written."""
    return _SIDED.search(label) is None


@dataclass(frozen=True, slots=True)
class Composition:
    """One drawing on one background.

    Attributes:
        drawing: position in the drawing set.
        label: the object.
        style: style word.
        background: name of the background.
        rgb: its colour.
        captions: caption variants, the full one first.
        mirrorable: a mirrored image still fits the captions.
    """

    drawing: int
    label: str
    style: str
    background: str
    rgb: RGB
    captions: tuple[str, ...]
    mirrorable: bool


def compositions(
    items: Sequence[Drawing],
    backgrounds: Mapping[str, RGB],
    *,
    part: split.Part = "train",
    per_drawing: int = 8,
    caption_variants: int = 4,
    seed: int = 0,
    styles: Iterable[str] | None = None,
    groups: Iterable[str] | None = None,
    labels: Iterable[str] | None = None,
) -> list[Composition]:
    """List the compositions of one part of the split.

    Each drawing takes the `per_drawing` backgrounds whose hash with its names and the seed is smallest, so
    its choice does not depend on what other drawings there are; combinations that are always trained come
    first.

    Args:
        items: drawings of a set.
        backgrounds: name to colour.
        part: "train", "object" or "combination" (see `fewstep.data.split`).
        per_drawing: backgrounds a drawing, at most; a drawing may have fewer in a held-out part.
        caption_variants: 1 to 5 captions each.
        seed: changes the choice of backgrounds and keywords.
        styles: take only these; default all.
        groups: take only these; default all.
        labels: take only these objects; default all.

    Raises:
        UsageError: `per_drawing` under 1, or `caption_variants` out of range.
        DataError: nothing is left, or a label that no drawing has.
    """
    if per_drawing < 1:
        raise UsageError(f"backgrounds a drawing {per_drawing}: give 1 or more")
    wanted_styles = None if styles is None else frozenset(styles)
    wanted_groups = None if groups is None else frozenset(groups)
    wanted_labels = None if labels is None else frozenset(labels)
    unknown = sorted((wanted_labels or frozenset()) - {item.label for item in items})
    if unknown:
        raise DataError(
            f"labels {', '.join(unknown[:5])}: no drawing has them; see drawings.jsonl of the set"
        )
    found: list[Composition] = []
    for number, item in enumerate(items):
        if wanted_styles is not None and item.style not in wanted_styles:
            continue
        if wanted_groups is not None and item.group not in wanted_groups:
            continue
        if wanted_labels is not None and item.label not in wanted_labels:
            continue
        keys = {
            name: hashlib.sha256(f"{seed}|{item.label}|{item.style}|{name}".encode()).digest()
            for name in backgrounds
            if split.part(item.label, item.style, name) == part
        }
        chosen = sorted(
            keys, key=lambda name: ((item.label, item.style, name) not in split.ALWAYS_TRAINED, keys[name])
        )[:per_drawing]
        found += [
            Composition(
                drawing=number,
                label=item.label,
                style=item.style,
                background=name,
                rgb=backgrounds[name],
                captions=tuple(
                    variants(
                        item.label,
                        item.tags,
                        item.style,
                        name,
                        np.random.Generator(np.random.Philox(int.from_bytes(keys[name][:8], "little"))),
                        count=caption_variants,
                    )
                ),
                mirrorable=mirrorable(item.label),
            )
            for name in chosen
        ]
    if not found:
        raise DataError(f"no composition of part {part!r} is left of {len(items)} drawings; select more")
    return found


def compose(rgba: NDArray[np.uint8], rgb: ArrayLike) -> NDArray[np.float32]:
    """Lay drawings over plain colours, in sRGB values as image programs do.

    Args:
        rgba: uint8 (B, H, W, 4), straight alpha.
        rgb: colours (B, 3), 0 to 255.

    Returns:
        float32 (B, 3, H, W) in [-1, 1].
    """
    alpha = rgba[..., 3:].astype(np.float32) / 255
    colour = np.asarray(rgb, np.float32)[:, None, None, :]
    image = (rgba[..., :3].astype(np.float32) * alpha + colour * (1 - alpha)) / 127.5 - 1
    return np.ascontiguousarray(image.transpose(0, 3, 1, 2))


class ComposedDrawings:
    """Compositions with their pixels: the `Encodable` of the emoji set."""

    def __init__(self, drawings: Drawings, items: Sequence[Composition]) -> None:
        self.drawings = drawings
        self.items = tuple(items)

    def __len__(self) -> int:
        return len(self.items)

    def pixels(self, indices: Sequence[int]) -> NDArray[np.float32]:
        """Return the composed images float32 (B, 3, 128, 128) in [-1, 1]."""
        chosen = [self.items[i] for i in indices]
        return compose(self.drawings.rgba[[c.drawing for c in chosen]], [c.rgb for c in chosen])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the caption variants of one composition."""
        return self.items[index].captions

    def mirrorable(self, index: int) -> bool:
        """Say whether the mirrored drawing still fits its captions."""
        return self.items[index].mirrorable

    def fingerprint(self) -> str:
        """Return the hash of the drawing set and of every composition."""
        digest = hashlib.sha256(self.drawings.fingerprint.encode())
        for item in self.items:
            digest.update(json.dumps(asdict(item), ensure_ascii=False).encode())
        return digest.hexdigest()
