"""Which models there are: bundled, in the folders of ``FEWSTEP_MODELS``, in the user's data folder, named.

A model is found by its name, never by a path: a name from a request must not reach other folders. What a
single file is, its header says; no tensor is read for it. Names that the operator gave to files and folders
elsewhere stand in `fewstep.engine.names`; nothing else is remembered.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fewstep.checkpoint import bundle
from fewstep.engine import names
from fewstep.errors import CheckpointError, NotFoundError

DEFAULT = "emoji-128"
"""Model that is used when none is named; the first one found where it is missing."""

Kind = Literal["bundle", "pipeline", "checkpoint"]
_ORDER: tuple[Kind, ...] = ("bundle", "pipeline", "checkpoint")
"""Of two models with one name the first counts."""

_KINDS: dict[str, tuple[Kind, ...]] = {
    "auto": _ORDER,
    "openvino": ("bundle",),
    "torch": ("pipeline", "checkpoint"),
}
"""What each engine draws with."""

_SUFFIX = ".safetensors"
NAMED = "named"
"""Where a model comes from that has its name from the operator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """A folder or file that holds a model; whether it is sound is found out when it is opened."""

    name: str
    folder: Path
    """A file for the kind ``checkpoint``."""
    kind: Kind
    origin: str
    """``bundled``, ``FEWSTEP_MODELS``, ``--models-dir``, ``user``, or ``named`` by `fewstep.engine.names`."""
    size: int
    """Bytes of all files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherFile:
    """A weight file that lies among the models and is none."""

    name: str
    path: Path
    what: str
    """As `fewstep.checkpoint.detect` says: ``lora``, ``vae``, ``denoiser`` ...; ``unknown``."""
    origin: str
    size: int


def models(extra: Sequence[Path] = ()) -> list[ModelEntry]:
    """Every model, in the order of search; of two with one name and kind, the first counts.

    Args:
        extra: more folders, searched first.
    """
    seen: dict[tuple[str, str], ModelEntry] = {}
    for origin, path in _paths(extra):
        if (entry := _entry(path, origin)) is not None:
            seen.setdefault((entry.name, entry.kind), entry)
    for model in named().values():
        if (entry := _named_entry(model)) is not None:
            seen.setdefault((entry.name, entry.kind), entry)
    return list(seen.values())


def others(extra: Sequence[Path] = ()) -> list[OtherFile]:
    """Weight files among the models that are none themselves, in the order of search."""
    found = []
    for origin, path in _paths(extra):
        if path.name.endswith(_SUFFIX) and path.is_file() and (what := _what(path)) != "checkpoint":
            size = path.stat().st_size
            found.append(OtherFile(name=path.stem, path=path, what=what, origin=origin, size=size))
    found += [
        OtherFile(name=model.name, path=model.path, what=model.kind, origin=NAMED, size=model.size)
        for model in named().values()
        if model.kind not in _ORDER and model.path.exists()
    ]
    return found


def named() -> dict[str, names.NamedModel]:
    """The names that were given; none, and a warning in the log, where their file is broken."""
    try:
        return names.read()
    except CheckpointError as error:
        _warn(str(error))
        return {}


@functools.cache
def _warn(text: str) -> None:
    """Once: a listing asks for the names several times."""
    logging.getLogger(__name__).warning("%s", text)


def identify(path: Path) -> tuple[str, str | None, int]:
    """What a model's file or folder is: (kind, family, bytes), as `fewstep.engine.names.NamedModel` has them.

    Raises:
        NotFoundError: nothing is there.
        CheckpointError: it is no model folder, a pickle, a broken file or one of no known kind.
    """
    from fewstep.checkpoint.detect import detect
    from fewstep.checkpoint.tensorfile import TensorFile
    from fewstep.models import families

    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder; check the path")
    if bundle.is_bundle(path):
        opened = bundle.open_bundle(path)
        return "bundle", None, sum(entry.size for entry in opened.files.values())
    if path.is_dir():
        return "pipeline", families.read_index(path).family.name, _size(path)
    with TensorFile(path) as file:
        found = detect(file.entries, file.metadata, path.name)
    return found.kind, found.family, path.stat().st_size


def find(
    name: str | None = None, *, kind: Kind | Sequence[Kind] | None = None, extra: Sequence[Path] = ()
) -> ModelEntry:
    """The model of that name; a bundle before a pipeline folder, and that before a single file.

    Args:
        name: None is `DEFAULT`.
        kind: only this kind, or these.
        extra: more folders, searched first.

    Raises:
        NotFoundError: there is none, or the name is a path; the message lists what there is.
    """
    kinds = _ORDER if kind is None else (kind,) if isinstance(kind, str) else tuple(kind)
    wanted = DEFAULT if name is None else name
    matches = [
        entry
        for origin, path in _paths(extra)
        if _may_be(path, wanted) and (entry := _entry(path, origin)) is not None
        if entry.name == wanted and entry.kind in kinds
    ]
    given = named().get(unicodedata.normalize("NFC", wanted))
    if given is not None and (entry := _named_entry(given)) is not None and entry.kind in kinds:
        matches.append(entry)
    if matches:
        return min(matches, key=lambda entry: _ORDER.index(entry.kind))
    known = [entry for entry in models(extra) if entry.kind in kinds]
    if name is None and known:
        return known[0]
    there = ", ".join(dict.fromkeys(entry.name for entry in known)) or "none"
    if given is not None:
        raise NotFoundError(_unfit(given))
    if "/" in wanted or "\\" in wanted or ".." in wanted:
        raise NotFoundError(
            f"model {wanted!r}: a model is named, not given as a path; there are: {there} "
            "(name more folders with --models-dir or FEWSTEP_MODELS)"
        )
    raise NotFoundError(
        f"model {wanted!r}: not found; there are: {there} (look with: fewstep models; name more folders with "
        "--models-dir or FEWSTEP_MODELS)"
    )


def find_for(engine: str, name: str | None = None, *, extra: Sequence[Path] = ()) -> ModelEntry:
    """The model of that name that an engine draws with, or of any kind: then the engine says what is wrong.

    Args:
        engine: ``auto``, ``openvino`` or ``torch``.
        name: as of `find`.
        extra: as of `find`.

    Raises:
        NotFoundError: as `find`.
    """
    try:
        return find(name, kind=_KINDS[engine], extra=extra)
    except NotFoundError:
        return find(name, extra=extra)


def before(engine: str, one: ModelEntry, other: ModelEntry) -> bool:
    """Whether, of two models with one name, an engine draws with the first in place of the second."""
    kinds = _KINDS.get(engine, _ORDER)
    places = [kinds.index(entry.kind) if entry.kind in kinds else len(kinds) for entry in (one, other)]
    return places[0] < places[1]


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


def _paths(extra: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(origin, path) of everything that may be a model: what lies in the folders, or a folder itself."""
    for origin, folder in _roots(extra):
        if _is_model_folder(folder) or folder.is_file():
            yield origin, folder
            continue
        try:
            inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        except OSError:  # unreadable folders hold none
            continue
        yield from ((origin, path) for path in inside)


def _is_model_folder(folder: Path) -> bool:
    return bundle.is_bundle(folder) or (folder / "model_index.json").is_file()


def _may_be(path: Path, name: str) -> bool:
    """Whether a path can have a name, without reading a file's header."""
    return path.stem == name if path.name.endswith(_SUFFIX) and path.is_file() else True


def _entry(path: Path, origin: str) -> ModelEntry | None:
    kind: Kind
    if bundle.is_bundle(path):
        kind = "bundle"
    elif (path / "model_index.json").is_file():
        kind = "pipeline"
    elif path.name.endswith(_SUFFIX) and path.is_file():
        if _what(path) != "checkpoint":
            return None
        size = path.stat().st_size
        return ModelEntry(name=path.stem, folder=path, kind="checkpoint", origin=origin, size=size)
    else:
        return None
    name = _bundle_name(path) if kind == "bundle" else path.resolve().name
    return ModelEntry(name=name, folder=path, kind=kind, origin=origin, size=_size(path))


def _named_entry(model: names.NamedModel) -> ModelEntry | None:
    """A named model, when it is one that draws and is still there."""
    there = model.path.is_file() if model.kind == "checkpoint" else _is_model_folder(model.path)
    if model.kind not in _ORDER or not there:
        return None
    return ModelEntry(name=model.name, folder=model.path, kind=model.kind, origin=NAMED, size=model.size)


def _unfit(model: names.NamedModel) -> str:
    """Why a name that was given draws nothing."""
    if not model.path.exists():
        return (
            f"model {model.name!r}: {model.path} is no longer there; put it back, or forget the name with: "
            f"fewstep models remove {model.name}"
        )
    use = {
        "lora": f"an adapter; give a model, and --lora {model.path.stem} --loras-dir {model.path.parent}",
        "denoiser": f"a denoiser alone; give the model that it belongs to, and --unet {model.path}",
        "vae": f"an autoencoder; give a model, and --vae {model.path}",
        "taesd": f"a tiny autoencoder; give a model, and --vae {model.path}",
    }
    article = "an" if model.kind[:1] in "aeiou" else "a"
    what = use.get(
        model.kind, f"{article} {model.kind}, of another kind than is drawn with here; give a whole model"
    )
    return f"model {model.name!r} is {what}"


def _size(path: Path) -> int:
    return sum(inside.stat().st_size for inside in path.rglob("*") if inside.is_file())


def _what(path: Path) -> str:
    """What a weight file is, by its header; ``unknown`` for what is refused."""
    from fewstep.checkpoint.detect import detect
    from fewstep.checkpoint.tensorfile import TensorFile

    try:
        with TensorFile(path) as file:
            return detect(file.entries, file.metadata, path.name).kind
    except (CheckpointError, NotFoundError, OSError):
        return "unknown"


def _bundle_name(folder: Path) -> str:
    """The name that a bundle gives itself; the folder's where it is not readable or not a plain name."""
    try:
        name = json.loads((folder / bundle.FILE_NAME).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return folder.resolve().name
    plain = isinstance(name, str) and 0 < len(name) <= 100 and not set(name) & set("/\\") and ".." not in name
    return name if plain else folder.resolve().name
