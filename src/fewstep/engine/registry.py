"""Which models there are: bundled, in the folders of ``FEWSTEP_MODELS``, and in the user's data folder.

A model is found by its name, never by a path: a name from a request must not reach other folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep.checkpoint import bundle
from fewstep.errors import NotFoundError

DEFAULT = "emoji-128"
"""Model that is used when none is named; the first one found where it is missing."""

Kind = Literal["bundle", "pipeline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A folder that holds a model; whether it is sound is found out when it is opened."""

    name: str
    folder: Path
    kind: Kind
    origin: str
    """``bundled``, ``FEWSTEP_MODELS``, ``--models-dir`` or ``user``."""
    size: int
    """Bytes of all files."""


def models(extra: Sequence[Path] = ()) -> list[ModelEntry]:
    """Every model, in the order of search; of two with one name and kind, the first counts.

    Args:
        extra: more folders, searched first.
    """
    seen: dict[tuple[str, str], ModelEntry] = {}
    for origin, folder in _roots(extra):
        for entry in _in_folder(folder, origin):
            seen.setdefault((entry.name, entry.kind), entry)
    return list(seen.values())


def find(name: str | None = None, *, kind: Kind | None = None, extra: Sequence[Path] = ()) -> ModelEntry:
    """The model of that name; a bundle before a pipeline folder.

    Args:
        name: None is `DEFAULT`.
        kind: only this kind.
        extra: more folders, searched first.

    Raises:
        NotFoundError: there is none, or the name is a path; the message lists what there is.
    """
    known = [entry for entry in models(extra) if kind is None or entry.kind == kind]
    wanted = DEFAULT if name is None else name
    matches = sorted((entry for entry in known if entry.name == wanted), key=lambda entry: entry.kind)
    if matches:
        return matches[0]
    if name is None and known:
        return known[0]
    names = ", ".join(dict.fromkeys(entry.name for entry in known)) or "none"
    if "/" in wanted or "\\" in wanted or ".." in wanted:
        raise NotFoundError(
            f"model {wanted!r}: a model is named, not given as a path; there are: {names} "
            "(name more folders with --models-dir or FEWSTEP_MODELS)"
        )
    raise NotFoundError(
        f"model {wanted!r}: not found; there are: {names} (look with: fewstep models; name more folders with "
        "--models-dir or FEWSTEP_MODELS)"
    )


def bundled_folder() -> Path:
    """Where models that come with the package are."""
    return Path(__file__).resolve().parent.parent / "bundled"


def user_folder() -> Path:
    """Where a user's own models are looked for, besides ``FEWSTEP_MODELS``."""
    import platformdirs

    return Path(platformdirs.user_data_dir("fewstep", appauthor=False)) / "models"


def roots(extra: Sequence[Path] = ()) -> list[Path]:
    """Folders that are searched for models, in their order."""
    return [folder for _, folder in _roots(extra)]


def _roots(extra: Sequence[Path]) -> list[tuple[str, Path]]:
    named = [Path(part) for part in os.environ.get("FEWSTEP_MODELS", "").split(os.pathsep) if part]
    return [
        *(("--models-dir", Path(folder)) for folder in extra),
        *(("FEWSTEP_MODELS", folder) for folder in named),
        ("bundled", bundled_folder()),
        ("user", user_folder()),
    ]


def _in_folder(folder: Path, origin: str) -> list[ModelEntry]:
    """The models in a folder, or the folder itself when it is one. Unreadable folders hold none."""
    own = _entry(folder, origin)
    if own is not None:
        return [own]
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [entry for path in inside if (entry := _entry(path, origin)) is not None]


def _entry(folder: Path, origin: str) -> ModelEntry | None:
    kind: Kind
    if bundle.is_bundle(folder):
        kind = "bundle"
    elif (folder / "model_index.json").is_file():
        kind = "pipeline"
    else:
        return None
    name = _bundle_name(folder) if kind == "bundle" else folder.resolve().name
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ModelEntry(name=name, folder=folder, kind=kind, origin=origin, size=size)


def _bundle_name(folder: Path) -> str:
    """The name that a bundle gives itself; the folder's where it is not readable or not a plain name."""
    try:
        name = json.loads((folder / bundle.FILE_NAME).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name
    plain = isinstance(name, str) and 0 < len(name) <= 100 and not set(name) & set("/\\") and ".." not in name
    return name if plain else folder.resolve().name
