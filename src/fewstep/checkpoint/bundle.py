"""The runtime bundle: a folder that the torch-free engine draws from.

::

    bundle.json                     what this module reads and writes; every other file is listed in it
    tokenizer.json                  Hugging Face `tokenizers` file
    text_encoder.xml/.bin           OpenVINO IR: (ids[, mask]) -> (B, L, D)
    denoiser.xml/.bin               OpenVINO IR: (x, t, text) -> raw model output, shape of x
    vae_encoder.xml/.bin            OpenVINO IR: pixels in [-1, 1] -> latent mean, before scaling
    vae_decoder.xml/.bin            OpenVINO IR: latents, before scaling -> pixels in about [-1, 1]
    students/NAME.xml/.bin          none or more: OpenVINO IR of further denoisers, which share all the rest

Sampling contracts are carried as opaque JSON; `fewstep.diffusion.contract` reads them. Reading is strict: a
key that this version does not know may change what the model draws, so it is an error and not a warning.
Format 2 is format 1 with ``students``; a bundle without any is written as format 1, which older readers open.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.checkpoint import atomic, bundle_values
from fewstep.errors import CheckpointError, NotFoundError, UsageError

FORMAT_VERSIONS = (1, 2)
"""Versions that are read: without students, and with."""
FILE_NAME = "bundle.json"
TOKENIZER = "tokenizer.json"
PARTS = ("text_encoder", "denoiser", "vae_encoder", "vae_decoder")
STUDENTS = "students"
"""Folder of the students, in a bundle and in a pipeline folder."""

_STUDENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_MAX_BYTES = 1_000_000  # a real bundle.json has a few kilobytes
_AGAIN = "export it again with: fewstep export PIPELINE --out BUNDLE"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a bundle: SHA-256 as 64 hexadecimal digits, and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """A further denoiser, that shares the bundle's text encoder and autoencoder."""

    name: str
    contract: Mapping[str, Any]
    """Its own sampling contract as JSON object, opaque here."""
    precision: str
    """fp16 | int8."""
    source: str
    """Hash of the weights that it was made from."""

    @property
    def part(self) -> str:
        """What `Bundle.path` and `Bundle.part_hash` call its network; its files follow from it."""
        return student_part(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What ``bundle.json`` says, checked. Sizes are (width, height) in pixels."""

    folder: Path
    name: str
    contract: Mapping[str, Any]
    """The sampling contract as JSON object, opaque here."""
    latent_channels: int
    downscale: int
    """Pixels per latent cell along one side."""
    scaling_factor: float
    """The denoiser sees ``(mean - shift_factor) * scaling_factor``."""
    shift_factor: float
    text_length: int
    text_width: int
    text_mask: bool
    """Whether the text encoder takes the attention mask of the tokenizer as a second input."""
    native_size: tuple[int, int]
    size_multiple: int
    """Width and height must be multiples of this many pixels."""
    max_size: int
    """Largest width and height in pixels."""
    precision: Mapping[str, str]
    """Part -> fp16 | int8 | int8_weights."""
    files: Mapping[str, FileEntry]
    licence: str
    """SPDX expression of the weights' terms."""
    attribution: tuple[Mapping[str, str], ...]
    """One object per source that asks to be named (author, url, licence, changes ...)."""
    made_by: Mapping[str, str]
    """Versions of what made the bundle, ``source``: the hash of the pipeline folder's weights, and the hashes
    of its ``text_encoder`` and ``vae``, which a student must have too."""
    students: tuple[Student, ...] = ()
    """In the order in which they are considered for a step count."""

    @property
    def format_version(self) -> int:
        """1 without students, 2 with."""
        return 2 if self.students else 1

    @property
    def hash(self) -> str:
        """SHA-256 over the recorded weight file hashes: ``folder_hash`` of an intact bundle.

        Students do not count: the pictures of the base stay those of the same model when one is added.
        """
        weights = sorted(f"{part}.bin" for part in PARTS)
        lines = "".join(f"{self.files[name].sha256}  {name}\n" for name in weights)
        return hashlib.sha256(lines.encode()).hexdigest()

    def path(self, part: str) -> Path:
        """The ``.xml`` file of a part."""
        return self.folder / f"{part}.xml"

    def part_hash(self, part: str) -> str:
        """One hash for both files of a part, from the recorded hashes."""
        both = self.files[f"{part}.xml"].sha256 + self.files[f"{part}.bin"].sha256
        return hashlib.sha256(both.encode()).hexdigest()

    def verify(self) -> None:
        """Read every file and compare its hash with the recorded one.

        Raises:
            CheckpointError: a file differs.
        """
        # Imported here: the engine opens bundles without it, and it costs 13 ms.
        from fewstep.checkpoint.safetensors import sha256_file

        for name, entry in self.files.items():
            if sha256_file(self.folder / name) != entry.sha256:
                raise CheckpointError(
                    f"{self.folder / name}: differs from its recorded hash (damaged); {_AGAIN}"
                )


def is_bundle(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder claims to be a bundle; says nothing about whether it is a sound one."""
    return (Path(folder) / FILE_NAME).is_file()


def open_bundle(folder: str | os.PathLike[str], *, verify: bool = False) -> Bundle:
    """Read a bundle's description and check that every file is there in its recorded size.

    Args:
        folder: the bundle.
        verify: also compare every file's hash (reads all of it; about 0.1 s for 50 MB).

    Raises:
        NotFoundError: no such folder, or no ``bundle.json`` in it.
        CheckpointError: broken, of another format version, or with missing, cut or damaged files.
    """
    root = Path(folder)
    file = root / FILE_NAME
    if not file.is_file():
        what = "no bundle.json here" if root.is_dir() else "no such folder"
        raise NotFoundError(f"{root}: {what}, so it is not a runtime bundle; make one with: fewstep export")
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(
                f"{file}: {file.stat().st_size} bytes, too large for a bundle.json; {_AGAIN}"
            )
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); {_AGAIN}") from None
    bundle = _parse(root, file, raw)
    for name, entry in bundle.files.items():
        path = root / name
        size = path.stat().st_size if path.is_file() else None
        if size != entry.size:
            state = "missing" if size is None else f"{size} bytes instead of {entry.size}"
            raise CheckpointError(f"{path}: {state}; {_AGAIN}")
    if verify:
        bundle.verify()
    return bundle


def student_part(name: str) -> str:
    """The part of a student's network, also the beginning of its files' names.

    Raises:
        UsageError: not a name of a student. Only plain ones are: a name must not reach another file, nor
            differ from another one by its case alone.
    """
    if _STUDENT_NAME.fullmatch(name) is None or name == "none":
        raise UsageError(
            f"{name!r} is not a name for a student: give up to 40 of a-z, 0-9, - and _, and not 'none'"
        )
    return f"{STUDENTS}/{name}"


def describe_files(folder: str | os.PathLike[str], students: Sequence[str] = ()) -> dict[str, FileEntry]:
    """Hash and size of every file that a bundle lists, for a folder that is being written.

    Args:
        folder: where the files are.
        students: names of the students.

    Raises:
        NotFoundError: one of them is not there yet.
        UsageError: not a name of a student.
    """
    from fewstep.checkpoint.safetensors import sha256_file

    entries = {}
    for name in _file_names(students):
        digest = sha256_file(Path(folder) / name)
        entries[name] = FileEntry(sha256=digest, size=(Path(folder) / name).stat().st_size)
    return entries


def write(bundle: Bundle) -> None:
    """Write ``bundle.json`` into ``bundle.folder``: the last file of a bundle to appear.

    Raises:
        OutputError: the file cannot be written.
    """
    record: dict[str, Any] = {
        entry.name: getattr(bundle, entry.name)
        for entry in fields(Bundle)
        if entry.name not in ("folder", "students")
    }
    record["format_version"] = bundle.format_version
    if bundle.students:
        record["students"] = [asdict(student) for student in bundle.students]
    record["files"] = {name: asdict(entry) for name, entry in sorted(bundle.files.items())}
    for key in ("contract", "precision", "made_by"):
        record[key] = dict(record[key])
    record["attribution"] = [dict(entry) for entry in bundle.attribution]
    text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    atomic.write_text(bundle.folder / FILE_NAME, text + "\n")


def _parse(root: Path, file: Path, raw: Any) -> Bundle:
    if not isinstance(raw, dict) or "format_version" not in raw:
        raise CheckpointError(f"{file}: not a description of a fewstep bundle; {_AGAIN}")
    version = raw["format_version"]
    if version not in FORMAT_VERSIONS:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        raise CheckpointError(
            f"{file}: format version {version!r}, this fewstep reads {known}; update fewstep, or {_AGAIN}"
        )
    wanted = {"format_version"} | {entry.name for entry in fields(Bundle)} - {"folder"}
    if version == 1:
        wanted -= {"students"}
    for problem, names in (("lacks", wanted - raw.keys()), ("has the unknown key", raw.keys() - wanted)):
        if names:
            raise CheckpointError(f"{file}: {problem} {', '.join(sorted(map(repr, names)))}; {_AGAIN}")
    try:
        return _build(root, raw)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: {error}; {_AGAIN}") from None


def _build(root: Path, raw: dict[str, Any]) -> Bundle:
    """Turn the JSON object into a Bundle; ValueError, TypeError or KeyError name what is wrong."""
    values = dict(raw)
    del values["format_version"]
    bundle_values.check(values)
    values["native_size"] = tuple(values["native_size"])
    if not isinstance(values["contract"], dict):
        raise ValueError("contract is not an object")
    for key in ("precision", "made_by"):
        values[key] = MappingProxyType(bundle_values.texts(key, values[key]))
    if set(values["precision"]) != set(PARTS):
        raise ValueError(f"precision does not name exactly {', '.join(PARTS)}")
    values["attribution"] = tuple(
        bundle_values.texts("attribution", entry) for entry in values["attribution"]
    )
    values["students"] = _students(values.get("students", []))
    names = [student.name for student in values["students"]]
    values["files"] = MappingProxyType(_files(values["files"], _file_names(names)))
    return Bundle(folder=root, **values)


def _students(value: Any) -> tuple[Student, ...]:
    if not isinstance(value, list):
        raise ValueError("students is not a list")
    found = []
    for entry in value:
        if not isinstance(entry, dict) or set(entry) != {"name", "contract", "precision", "source"}:
            raise ValueError("students has an entry that is not {name, contract, precision, source}")
        contract = entry["contract"]
        texts = bundle_values.texts("students", {key: entry[key] for key in ("name", "precision", "source")})
        if not isinstance(contract, dict):
            raise ValueError(f"students has {texts['name']!r}, whose contract is not an object")
        found.append(Student(contract=contract, **texts))
    names = [student.name for student in found]
    if len(set(names)) != len(names):
        raise ValueError(f"students names one twice: {', '.join(names)}")
    return tuple(found)


def _file_names(students: Sequence[str]) -> list[str]:
    """Every file that a bundle lists, without ``bundle.json``."""
    parts = [*PARTS, *map(student_part, students)]
    return [TOKENIZER, *(f"{part}.{suffix}" for part in parts for suffix in ("xml", "bin"))]


def _files(value: Any, names: Sequence[str]) -> dict[str, FileEntry]:
    expected = set(names)
    # Exactly these names: a bundle cannot point outside its folder.
    if not isinstance(value, dict) or set(value) != expected:
        raise ValueError(f"files does not list exactly {', '.join(sorted(expected))}")
    entries = {}
    for name, entry in value.items():
        if not isinstance(entry, dict) or set(entry) != {"sha256", "size"}:
            raise ValueError(f"files[{name!r}] is not {{sha256, size}}")
        digest, size = entry["sha256"], entry["size"]
        if not (isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")):
            raise ValueError(f"files[{name!r}].sha256 is not 64 hexadecimal digits")
        if type(size) is not int or size < 0:
            raise ValueError(f"files[{name!r}].size is not a size in bytes")
        entries[name] = FileEntry(sha256=digest, size=size)
    return entries
