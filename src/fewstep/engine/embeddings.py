"""Which textual-inversion embeddings there are, and which of them the prompts of a request name.

An embedding's names are the stem of its file and, where the file says it, the word that it was trained for.
Files are found in the folders of ``--embeddings-dir``, of ``FEWSTEP_EMBEDDINGS``, and in the user's data
folder, their sub-folders included; ``--embedding`` gives a single one. A prompt can reach no other file.

A folder may hold embeddings of any model. A name of one that cannot be used stays a word, which is said; one
that was given by itself is an error then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import embeddings as files
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.prompt.embedding_names import Names

if TYPE_CHECKING:
    from fewstep.engine.backends.base import FloatArray, ModelInfo

MAX_FILES = 20_000
"""Files that are looked at; a folder with more is not one of embeddings."""

Learned = Mapping[str, tuple["FloatArray | None", ...]]
"""Name -> its vectors (n, width) for every text encoder, None for one that reads the name as text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingEntry:
    """An embedding file; whether it is sound is found out when a prompt names it."""

    name: str
    path: Path
    origin: str
    """``--embedding``, ``--embeddings-dir``, ``FEWSTEP_EMBEDDINGS`` or ``user``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenEmbedding:
    """An embedding that a prompt names, and that fits the model."""

    name: str
    path: Path
    header: files.Header
    slots: tuple[str | None, ...]
    """For every text encoder: which of the header's tables it is given."""
    hash: str
    """The first twelve digits of the file's SHA-256."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Vectors for every text encoder; 0 for one that reads the name as text."""
        return tuple(0 if slot is None else self.header.tables[slot].vectors for slot in self.slots)


class EmbeddingCatalogue:
    """The embeddings that there are; looked for in every request, since any word may name one.

    Args:
        folders: more folders, searched first.
        given: single files, before all folders.

    Raises:
        NotFoundError: a given file is not there.
        CheckpointError: a given file is a pickle, or no embedding.
    """

    def __init__(self, folders: Sequence[Path] = (), given: Sequence[Path] = ()) -> None:
        self._folders = tuple(folders)
        self._given = tuple(given)
        self._tokens: dict[Path, tuple[tuple[int, int], str | None]] = {}
        for path in self._given:
            files.read_header(path)

    def entries(self) -> list[EmbeddingEntry]:
        """Every name of every embedding in the order of search; of two with one name the first counts."""
        found: dict[str, EmbeddingEntry] = {}
        for origin, path in self._paths():
            for name in (path.stem, self._token(path)):
                if name and name not in found:
                    found[name] = EmbeddingEntry(name=name, path=path, origin=origin)
        return list(found.values())

    def given(self) -> tuple[Path, ...]:
        """The single files."""
        return self._given

    def _paths(self) -> Iterator[tuple[str, Path]]:
        yield from (("--embedding", path) for path in self._given)
        for origin, folder in _roots(self._folders):
            yield from ((origin, path) for path in _files(folder))

    def _token(self, path: Path) -> str | None:
        """The word that a file was trained for; None where it says none or cannot be read."""
        try:
            status = path.stat()
            stamp = (status.st_size, status.st_mtime_ns)
            if path not in self._tokens or self._tokens[path][0] != stamp:
                self._tokens[path] = (stamp, files.read_header(path).token)
            return self._tokens[path][1]
        except (CheckpointError, NotFoundError, OSError):
            return None


def choose(info: ModelInfo, texts: Iterable[str]) -> tuple[tuple[ChosenEmbedding, ...], tuple[str, ...]]:
    """Find the embeddings that some texts name.

    Args:
        info: the model.
        texts: without weights and other grammar.

    Returns:
        Those that can be used, in the order of search, and a warning for each that cannot be.

    Raises:
        UsageError: a file that was given by itself does not fit the model.
        CheckpointError: a file that was given by itself cannot be read.
    """
    catalogue = info.embeddings or EmbeddingCatalogue()
    entries = {entry.name: entry for entry in catalogue.entries()}
    if not entries:
        return (), ()
    names = Names(entries)
    said = {name for text in dict.fromkeys(texts) for _, name in names.split(text) if name is not None}
    chosen: list[ChosenEmbedding] = []
    warnings: list[str] = []
    for entry in entries.values():
        if entry.name in said:
            try:
                chosen.append(_fitted(info, entry))
            except (CheckpointError, UsageError) as error:
                if entry.origin == "--embedding":
                    raise
                warnings.append(
                    f"embedding {entry.name!r:.100} is not used, its name is read as text: {error}"
                )
    used = {one.path for one in chosen}
    for path in catalogue.given():
        if path not in used:
            word = " or ".join(entry.name for entry in entries.values() if entry.path == path)
            warnings.append(f"embedding {path.name!r:.100} is not used: no prompt has its name, {word}")
    return tuple(chosen), tuple(warnings)


def load(chosen: Sequence[ChosenEmbedding]) -> Learned:
    """Read the vectors of embeddings; imports torch where there are any.

    Raises:
        NotFoundError, CheckpointError: as `fewstep.checkpoint.embeddings.read_vectors`.
    """
    learned = {}
    for one in chosen:
        tables = files.read_vectors(one.path, one.header)
        learned[one.name] = tuple(None if slot is None else tables[slot] for slot in one.slots)
    return learned


def record(chosen: Sequence[ChosenEmbedding]) -> dict[str, Any]:
    """What an image's record says of them; nothing without any."""
    if not chosen:
        return {}
    return {"embeddings": [{"name": one.name, "hash": one.hash} for one in chosen]}


def user_folder() -> Path:
    """Where a user's own embeddings are looked for, besides ``FEWSTEP_EMBEDDINGS``."""
    import platformdirs

    return Path(platformdirs.user_data_dir("fewstep", appauthor=False)) / "embeddings"


def _fitted(info: ModelInfo, entry: EmbeddingEntry) -> ChosenEmbedding:
    """An embedding with the table of each text encoder.

    Raises:
        UsageError: it does not fit the model.
        CheckpointError: it cannot be read.
    """
    from fewstep.checkpoint.safetensors import sha256_file

    header = files.read_header(entry.path)
    slots = _slots(info, entry, header)
    for encoder, slot in zip(info.encoders, slots, strict=True):
        room = encoder.length - 2
        if slot is not None and header.tables[slot].vectors > room:
            raise UsageError(
                f"{entry.path}: has {header.tables[slot].vectors} vectors, and a text encoder of {info.name} "
                f"reads {room} at once; train one with fewer"
            )
    return ChosenEmbedding(
        name=entry.name, path=entry.path, header=header, slots=slots, hash=sha256_file(entry.path)[:12]
    )


def _slots(info: ModelInfo, entry: EmbeddingEntry, header: files.Header) -> tuple[str | None, ...]:
    takes = [encoder.vector_width for encoder in info.encoders]
    clips = [width for width in takes if width]
    if not clips:
        raise UsageError(
            f"{entry.path}: model {info.name} reads token ids alone and takes no vectors; embeddings are for "
            "pipeline folders and single files with a CLIP text encoder, which torch draws"
        )
    wanted: list[str] = []
    for place, width in enumerate(clips):
        # One encoder takes any table of its width; of two, each has its own.
        usual = ("clip_l", "clip_g")[place : place + 1] if len(clips) > 1 else (files.ANY, "clip_l", "clip_g")
        fitting = [slot for slot in usual if slot in header.tables and header.tables[slot].width == width]
        if not fitting:
            own = clips[0] if len(clips) == 1 else f"{clips[0]} (clip_l) and {clips[1]} (clip_g)"
            raise UsageError(
                f"{entry.path}: its vectors have {header.widths()} numbers, and model {info.name} takes "
                f"{own}; take an embedding that was trained for this kind of model"
            )
        wanted.append(fitting[0])
    return tuple(wanted.pop(0) if width else None for width in takes)


def _roots(extra: Sequence[Path]) -> list[tuple[str, Path]]:
    named = [Path(part) for part in os.environ.get("FEWSTEP_EMBEDDINGS", "").split(os.pathsep) if part]
    return [
        *(("--embeddings-dir", folder) for folder in extra),
        *(("FEWSTEP_EMBEDDINGS", folder) for folder in named),
        ("user", user_folder()),
    ]


def _files(folder: Path) -> Iterator[Path]:
    """Files in a folder and below, safetensors before pickles; links to folders are not followed."""
    seen = 0
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        order = sorted(names, key=lambda name: (not name.endswith(files.SUFFIX), name))
        for name in order:
            seen += 1
            if seen > MAX_FILES:
                return
            if name.lower().endswith((files.SUFFIX, *files.PICKLES)) and not name.startswith("."):
                yield Path(current, name)
