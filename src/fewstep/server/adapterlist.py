"""What adapter files say of themselves, and whether a model takes them; told from their headers alone."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fewstep.checkpoint import header, safetensors
from fewstep.checkpoint.adapters import about
from fewstep.checkpoint.adapters.fitting import FAMILIES
from fewstep.errors import FewstepError, NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.engine.adapters import AdapterEntry, Catalogue
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.server.pool import Pool

PICTURES: Final = (".png", ".preview.png", ".jpg", ".jpeg", ".preview.jpg", ".webp", ".preview.webp")
"""Ends of the names of pictures that web UIs keep beside an adapter."""
MAX_PICTURE: Final = 4 << 20
"""Bytes of one that is given out."""
_TITLES: Final[Mapping[str, str]] = {
    "fewstep-emoji": "emoji-128", "sd1": "SD1", "sd15": "SD1", "sd2": "SD2", "sdxl": "SDXL",
    "sdxl-refiner": "SDXL refiner", "sd3": "SD3",
}  # fmt: skip
"""Family of a model -> the families of adapters that it takes."""
_CROSS: Final = re.compile(r"attn2[._]to_k[._]lora(?:_down|_A|\.down)\b|attn2[._]to_k\.lora")
_MOST_WORDS: Final = 5
_LONGEST: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Of one file."""

    alias: str | None = None
    family: str | None = None
    trigger_words: tuple[str, ...] = ()
    broken: str | None = None
    """Why it cannot be read."""


def facts(path: Path) -> Facts:
    """What a file says; read once, and again when it has changed."""
    try:
        state = path.stat()
    except OSError:
        return Facts(broken="the file is no longer there")
    return _facts(path, state.st_size, state.st_mtime_ns)


def unfit(pool: Pool, name: str, info: ModelInfo, found: Facts) -> str | None:
    """Why a model does not take an adapter; None where nothing speaks against it.

    Args:
        pool: of the models.
        name: of the model in it.
        info: of that model.
        found: of the adapter.
    """
    if found.broken is not None:
        return found.broken
    own = _TITLES.get(info.family)
    if found.family is not None and own is not None and found.family != own:
        return f"it was made for {found.family}, and {info.name} is {own}"
    try:
        pool.adaptable(name)
    except UsageError as error:
        return str(error)
    return None


def usual_weight(entry: AdapterEntry, info: ModelInfo) -> float:
    """The weight that an adapter has when none is asked for."""
    from fewstep.engine import adapters

    try:
        chosen = adapters.choose(info, [adapters.AdapterUse(name=entry.name)])[0]
    except FewstepError:
        return 1.0
    return chosen[0].weight


def picture(known: Catalogue, name: str) -> Path:
    """The picture beside an adapter's file.

    Raises:
        NotFoundError: there is no such adapter, or no picture of it.
    """
    found = next((entry for entry in known.entries() if entry.name == name), None)
    path = None if found is None else picture_beside(found.path)
    if path is None:
        raise NotFoundError("there is no such adapter, or no picture beside its file")
    return path


def picture_beside(path: Path) -> Path | None:
    """A picture of the same name as a file; None where there is none that may be given out."""
    for end in PICTURES:
        beside = path.with_name(path.stem + end)
        # A link would lead anywhere.
        if beside.is_file() and not beside.is_symlink() and beside.stat().st_size <= MAX_PICTURE:
            return beside
    return None


@functools.lru_cache(maxsize=4096)
def _facts(path: Path, size: int, modified: int) -> Facts:
    try:
        metadata = safetensors.read_metadata(path)
        return Facts(
            alias=about.alias(metadata), family=_family(path, metadata), trigger_words=_words(metadata)
        )
    except FewstepError:
        return Facts(broken="it is no adapter file that can be read")


def _family(path: Path, metadata: Mapping[str, str]) -> str | None:
    """By the width of the text that its layers read; by what its header says where that cannot be told."""
    for name, entry in header.read(path).entries.items():
        if _CROSS.search(name) and len(entry.shape) > 1 and "up" not in name.rsplit("lora", 1)[-1]:
            if (found := FAMILIES.get(entry.shape[1])) is not None:
                return found
            break
    stated = metadata.get("ss_base_model_version", "")
    return _TITLES.get(stated) or about.base_model(metadata)


def _words(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """What its authors name, else the words that most of its training pictures have in common."""
    stated = metadata.get("modelspec.trigger_phrase", "").strip()
    if stated:
        return (stated[:_LONGEST],)
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        counts: dict[str, int] = {}
        for tags in folders.values():
            for tag, count in tags.items():
                counts[str(tag).strip()] = counts.get(str(tag).strip(), 0) + int(count)
        most = max(counts.values(), default=0)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return ()
    usual = [tag for tag, count in counts.items() if tag and count > 1 and count * 2 >= most]
    usual.sort(key=lambda tag: -counts[tag])
    return tuple(tag[:_LONGEST] for tag in usual[:_MOST_WORDS])
