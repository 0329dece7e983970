"""Which adapter files there are, and which of them a request asks for. An adapter is a name, never a path.

Names are the stems of files that were found in the folders of ``--loras-dir``, of ``FEWSTEP_LORAS``, and in
the user's data folder, their sub-folders included; a name from a request can reach no other file. What a
trainer called its file (``ss_output_name``) is a second name, as in AUTOMATIC1111's web UI.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.engine.backends.base import Applied
from fewstep.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo

MAX_ADAPTERS = 64
"""In one request."""
MAX_FILES = 20_000
"""Files that are looked at; a folder with more is not one of adapters."""

_SUFFIX = ".safetensors"
_SHOWN = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """One adapter of a request, as it was asked for."""

    name: str
    """Of the `Catalogue`."""
    weight: float | None = None
    """In the denoiser, any finite number; None is what its authors give it, 1 where they are not known."""
    text_weight: float | None = None
    """In the text encoders; None is ``weight``."""

    def __post_init__(self) -> None:
        for value in (self.weight, self.text_weight):
            if value is not None and not math.isfinite(value):
                raise UsageError(f"weight of adapter {self.name!r:.100} is {value}: give a finite number")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """One adapter of a request, found and with its weights."""

    name: str
    path: Path
    weight: float
    text_weight: float
    hash: str
    """Twelve digits, see `fewstep.checkpoint.adapters.short_hash`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterEntry:
    """An adapter file; whether it is sound is found out when it is opened."""

    name: str
    path: Path
    origin: str
    """``--loras-dir``, ``FEWSTEP_LORAS`` or ``user``."""


class Catalogue:
    """The adapters that there are; looked for at the first question, and again where a name is not known.

    Args:
        extra: more folders, searched first.
    """

    def __init__(self, extra: Sequence[Path] = ()) -> None:
        self._extra = tuple(extra)
        self._found: dict[str, AdapterEntry] | None = None

    def entries(self) -> list[AdapterEntry]:
        """Every adapter in the order of search; of two with one name the first counts."""
        found: dict[str, AdapterEntry] = {}
        for origin, folder in _roots(self._extra):
            for path in _files(folder):
                found.setdefault(path.stem, AdapterEntry(name=path.stem, path=path, origin=origin))
        self._found = found
        return list(found.values())

    def find(self, name: str) -> AdapterEntry:
        """The adapter of that name, or of that second name.

        Raises:
            UsageError: there is none; the message lists what there is.
        """
        for _ in range(2):
            if self._found is not None and name in self._found and self._found[name].path.is_file():
                return self._found[name]
            self.entries()
        known = self._found or {}
        for entry in known.values():
            if _alias(entry.path) == name:
                return entry
        names = sorted(known)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        there = ", ".join(names[:_SHOWN]) or "none"
        raise UsageError(
            f"adapter {name!r:.100}: not found; there are: {there}{more} (name more folders with --loras-dir "
            "or FEWSTEP_LORAS)",
            field="adapters",
        )


def choose(
    info: ModelInfo, uses: Sequence[AdapterUse]
) -> tuple[tuple[Chosen, ...], SamplingContract | None, tuple[str, ...]]:
    """Find the adapters of a request.

    Returns:
        The adapters, one that was named twice with the sum of its weights; the contract of the one among
        them that makes a model draw in few steps, None where none does; and warnings.

    Raises:
        UsageError: unknown, too many, or two with contracts of their own.
        CheckpointError: a file that is no adapter.
    """
    if not uses:
        return (), None, ()
    if len(uses) > MAX_ADAPTERS:
        raise UsageError(
            f"{len(uses)} adapters: at most {MAX_ADAPTERS} are taken, leave some out", field="adapters"
        )
    catalogue = info.adapters or Catalogue()
    chosen: dict[str, Chosen] = {}
    contracts: dict[str, SamplingContract] = {}
    warnings: list[str] = []
    for use in uses:
        entry = catalogue.find(use.name)
        found, said = _recognised(entry.path, info)
        warnings += said
        usual = 1.0 if found is None else found.lora_weight
        weight = usual if use.weight is None else float(use.weight)
        text = weight if use.text_weight is None else float(use.text_weight)
        if found is not None and weight:
            contracts[entry.name] = found.contract
        before = chosen.pop(entry.name, None)
        if before is not None:
            weight, text = before.weight + weight, before.text_weight + text
        chosen[entry.name] = Chosen(
            name=entry.name, path=entry.path, weight=weight, text_weight=text, hash=_hash(entry.path)
        )
    if len(contracts) > 1:
        both = " and ".join(repr(name) for name in contracts)
        raise UsageError(
            f"adapters {both} each say how to draw in few steps: give one of them", field="adapters"
        )
    return tuple(chosen.values()), next(iter(contracts.values()), None), tuple(warnings)


def applied(chosen: Sequence[Chosen], *, lenient: bool) -> tuple[Applied, ...]:
    """What a backend is given."""
    return tuple(
        Applied(path=one.path, weight=one.weight, text_weight=one.text_weight, lenient=lenient)
        for one in chosen
    )


def record(chosen: Sequence[Chosen]) -> dict[str, Any]:
    """What an image's record says of them; nothing without any."""
    if not chosen:
        return {}
    keys = ("name", "weight", "text_weight", "hash")
    return {"adapters": [{key: getattr(one, key) for key in keys} for one in chosen]}


def read_use(text: str) -> AdapterUse:
    """Read ``NAME[:WEIGHT[:TEXTWEIGHT]]``, as ``--lora`` takes it.

    Raises:
        UsageError: another form.
    """
    name, *numbers = text.split(":")
    try:
        weights = [float(number) for number in numbers]
    except ValueError:
        weights = [math.nan]
    if not name.strip() or len(weights) > 2 or not all(map(math.isfinite, weights)):
        raise UsageError(f"--lora is {text!r:.200}: give NAME, NAME:WEIGHT or NAME:WEIGHT:TEXTWEIGHT")
    weight, text_weight = [*weights, None, None][:2]
    return AdapterUse(name=name.strip(), weight=weight, text_weight=text_weight)


def user_folder() -> Path:
    """Where a user's own adapters are looked for, besides ``FEWSTEP_LORAS``."""
    import platformdirs

    return Path(platformdirs.user_data_dir("fewstep", appauthor=False)) / "loras"


def _roots(extra: Sequence[Path]) -> list[tuple[str, Path]]:
    named = [Path(part) for part in os.environ.get("FEWSTEP_LORAS", "").split(os.pathsep) if part]
    return [
        *(("--loras-dir", folder) for folder in extra),
        *(("FEWSTEP_LORAS", folder) for folder in named),
        ("user", user_folder()),
    ]


def _files(folder: Path) -> Iterator[Path]:
    """Files in a folder and below, in alphabetical order; links to folders are not followed."""
    seen = 0
    for current, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            seen += 1
            if seen > MAX_FILES:
                return
            if name.endswith(_SUFFIX) and not name.startswith("."):
                yield Path(current, name)


def _alias(path: Path) -> str | None:
    from fewstep.checkpoint import safetensors
    from fewstep.checkpoint.adapters import alias

    try:
        return alias(safetensors.read_metadata(path))
    except (CheckpointError, LookupError):
        return None


def _hash(path: Path) -> str:
    from fewstep.checkpoint.adapters import short_hash

    return short_hash(path)


def _recognised(path: Path, info: ModelInfo) -> tuple[Any, tuple[str, ...]]:
    from fewstep.models import families, opening

    family = families.named(info.family)
    return (None, ()) if family is None else opening.recognised(path, "lora", family)
