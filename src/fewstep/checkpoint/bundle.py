"""The runtime bundle: a folder that the torch-free engine draws from.

::

    bundle.json                     what this module reads and writes; every other file is listed in it
    tokenizer.json                  Hugging Face `tokenizers` file
    text_encoder.xml/.bin           OpenVINO IR: (ids[, mask]) -> (B, L, D)
    denoiser.xml/.bin               OpenVINO IR: (x, t, text) -> raw model output, shape of x
    vae_encoder.xml/.bin            OpenVINO IR: pixels in [-1, 1] -> latent mean, before scaling
    vae_decoder.xml/.bin            OpenVINO IR: latents, before scaling -> pixels in about [-1, 1]

The sampling contract is carried as opaque JSON; `fewstep.diffusion.contract` reads it. Reading is strict: a
key that this version does not know may change what the model draws, so it is an error and not a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.checkpoint import atomic
from fewstep.errors import CheckpointError, NotFoundError

FORMAT_VERSION = 1
FILE_NAME = "bundle.json"
TOKENIZER = "tokenizer.json"
PARTS = ("text_encoder", "denoiser", "vae_encoder", "vae_decoder")

_MAX_BYTES = 1_000_000  # a real bundle.json has a few kilobytes
_AGAIN = "export it again with: fewstep export PIPELINE --out BUNDLE"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a bundle: SHA-256 as 64 hexadecimal digits, and size in bytes."""

    sha256: str
    size: int


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
    """Versions of what made the bundle, and ``source``: the hash of the pipeline folder's weights."""
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def hash(self) -> str:
        """SHA-256 over the recorded weight file hashes: ``folder_hash`` of an intact bundle."""
        weights = sorted(name for name in self.files if name.endswith(".bin"))
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


def describe_files(folder: str | os.PathLike[str]) -> dict[str, FileEntry]:
    """Hash and size of every file that a bundle lists, for a folder that is being written.

    Raises:
        NotFoundError: one of them is not there yet.
    """
    from fewstep.checkpoint.safetensors import sha256_file

    names = [TOKENIZER, *(f"{part}.{suffix}" for part in PARTS for suffix in ("xml", "bin"))]
    entries = {}
    for name in names:
        digest = sha256_file(Path(folder) / name)
        entries[name] = FileEntry(sha256=digest, size=(Path(folder) / name).stat().st_size)
    return entries


def write(bundle: Bundle) -> None:
    """Write ``bundle.json`` into ``bundle.folder``: the last file of a bundle to appear.

    Raises:
        OutputError: the file cannot be written.
    """
    record: dict[str, Any] = {
        entry.name: getattr(bundle, entry.name) for entry in fields(Bundle) if entry.name != "folder"
    }
    record["files"] = {name: asdict(entry) for name, entry in sorted(bundle.files.items())}
    for key in ("contract", "precision", "made_by"):
        record[key] = dict(record[key])
    record["attribution"] = [dict(entry) for entry in bundle.attribution]
    text = json.dumps(record, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False)
    atomic.write_text(bundle.folder / FILE_NAME, text + "\n")


def _parse(root: Path, file: Path, raw: Any) -> Bundle:
    if not isinstance(raw, dict) or "format_version" not in raw:
        raise CheckpointError(f"{file}: not a description of a fewstep bundle; {_AGAIN}")
    if raw["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{file}: format version {raw['format_version']!r}, this fewstep reads {FORMAT_VERSION}; "
            f"update fewstep, or {_AGAIN}"
        )
    wanted = {entry.name for entry in fields(Bundle)} - {"folder"}
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
    for key in ("latent_channels", "downscale", "text_length", "text_width", "size_multiple", "max_size"):
        if type(values[key]) is not int or not 0 < values[key] <= 65536:
            raise ValueError(f"{key} is {values[key]!r}, not a positive whole number")
    for key in ("scaling_factor", "shift_factor"):
        number = values[key]
        if (
            type(number) not in (int, float)
            or not abs(number) < 1e6
            or (key == "scaling_factor" and number <= 0)
        ):
            raise ValueError(f"{key} is {number!r}, not a usable number")
    for key in ("name", "licence"):
        if not isinstance(values[key], str) or not values[key]:
            raise ValueError(f"{key} is {values[key]!r}, not a text")
    if not isinstance(values["text_mask"], bool):
        raise ValueError(f"text_mask is {values['text_mask']!r}, not true or false")
    size = values["native_size"]
    if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
        raise ValueError(f"native_size is {size!r}, not [width, height]")
    values["native_size"] = (size[0], size[1])
    if not isinstance(values["contract"], dict):
        raise ValueError("contract is not an object")
    for key in ("precision", "made_by"):
        values[key] = MappingProxyType(_texts(key, values[key]))
    if set(values["precision"]) != set(PARTS):
        raise ValueError(f"precision does not name exactly {', '.join(PARTS)}")
    values["attribution"] = tuple(_texts("attribution", entry) for entry in values["attribution"])
    values["files"] = MappingProxyType(_files(values["files"]))
    return Bundle(folder=root, **values)


def _texts(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} is not an object of texts")
    return dict(value)


def _files(value: Any) -> dict[str, FileEntry]:
    expected = {TOKENIZER, *(f"{part}.{suffix}" for part in PARTS for suffix in ("xml", "bin"))}
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
