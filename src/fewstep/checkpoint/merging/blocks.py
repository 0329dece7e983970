"""A multiplier for every block of a U-Net ("MBW"), under the names that merge tools have in common.

``IN00`` … are CompVis' input blocks, ``M00`` the middle, ``OUT00`` … the output blocks, with ``OUT`` of the
highest number also for the last norm and convolution. ``BASE`` is all else: text encoders, and the embeddings
of time and of SDXL's sizes. ``VAE`` is the autoencoder, which goes by ``BASE`` where it is not named. Stable
Diffusion 1 and 2 have IN00-IN11 and OUT00-OUT11, XL has IN00-IN08 and OUT00-OUT08.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import TypeVar

from fewstep.errors import UsageError

BASE, MIDDLE, VAE = "BASE", "M00", "VAE"

K = TypeVar("K")

_PLACE = re.compile(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.")
_END = "out"
_NUMBERED = {"input_blocks": "IN", "output_blocks": "OUT"}
_RANGE = re.compile(r"([A-Z]+)(\d+)-([A-Z]+)(\d+)")
_ALIASES = {"MID": MIDDLE, "M": MIDDLE, "MID00": MIDDLE}


def assign(names: Mapping[K, str]) -> tuple[dict[K, str], list[str]]:
    """The blocks of a U-Net.

    Args:
        names: of its tensors in CompVis' naming, without the U-Net's prefix, by any keys.

    Returns:
        The block of every tensor, and the blocks that there are in their order, without ``BASE``.
    """
    found = {key: _block_of(name) for key, name in names.items()}
    there = sorted(set(found.values()) - {BASE, _END}, key=lambda block: ("IMO".index(block[0]), block))
    last = there[-1] if there and there[-1].startswith("OUT") else BASE
    return {key: last if block == _END else block for key, block in found.items()}, there


def read_weights(text: str, blocks: Collection[str], default: float) -> dict[str, float]:
    """Multipliers by block.

    Args:
        text: numbers for all blocks, without ``BASE`` or with it in front; or pairs such as
            ``IN00=0.2,IN04-IN08=0.5,M00=1``; separated by commas or spaces.
        blocks: of the U-Net, in their order.
        default: M of what is not named.

    Returns:
        A multiplier for every block, ``BASE`` and ``VAE``.

    Raises:
        UsageError: a block that the model has not, one named twice, a wrong count, or no finite number.
    """
    items = [item for item in re.split(r"[,\s]+", text.strip()) if item]
    known = [BASE, *blocks]
    if not blocks:
        raise UsageError("--blocks: the model has no U-Net; leave it out, and give one --ratio")
    if not items:
        raise UsageError("--blocks is empty; give pairs such as IN00=0.2,M00=0.5")
    found: dict[str, float] = {}
    if any("=" in item for item in items):
        for item in items:
            name, sign, value = item.partition("=")
            if not sign:
                raise UsageError(f"--blocks: {item!r} has no value; give pairs such as IN00=0.2,M00=0.5")
            for block in _named(name, [*known, VAE]):
                if block in found:
                    raise UsageError(f"--blocks names {block} twice; give it once")
                found[block] = _number(value, item)
    else:
        if len(items) not in (len(blocks), len(known)):
            raise UsageError(
                f"--blocks has {len(items)} numbers, and this model has {len(blocks)} blocks "
                f"({', '.join(blocks)}); give {len(blocks)}, or {len(known)} with BASE in front"
            )
        named = known if len(items) == len(known) else list(blocks)
        found = {block: _number(value, value) for block, value in zip(named, items, strict=True)}
    weights = {block: found.get(block, default) for block in known}
    weights[VAE] = found.get(VAE, weights[BASE])
    return weights


def _block_of(name: str) -> str:
    found = _PLACE.match(name)
    if found is not None:
        start = _NUMBERED.get(found[1])
        return f"{start}{int(found[2]):02d}" if start else MIDDLE
    return _END if name.startswith("out.") else BASE


def _named(text: str, known: list[str]) -> list[str]:
    """The blocks of a name or a range."""
    name = text.strip().upper()
    ends = _RANGE.fullmatch(name)
    if ends is not None and ends[1] == ends[3]:
        blocks = [f"{ends[1]}{number:02d}" for number in range(int(ends[2][:4]), int(ends[4][:4]) + 1)]
    else:
        blocks = [_ALIASES.get(name, name)]
    unknown = [block for block in blocks if block not in known]
    if unknown or not blocks:
        raise UsageError(f"--blocks: the model has no {(unknown or [text])[0]}; it has {', '.join(known)}")
    return blocks


def _number(text: str, item: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--blocks: {item!r} is no finite number; give numbers such as 0.5")
    return value


def out_of_range(weights: Mapping[str, float]) -> list[str]:
    """Blocks whose multiplier is not between 0 and 1."""
    return [block for block, value in weights.items() if not 0.0 <= value <= 1.0]
