"""Which published checkpoint a file is, so that it is drawn as its authors meant it.

What is looked at, in this order: a sampling contract of ours (``fewstep.contract`` in the header,
``fewstep.json``), the file's hash in a table, and its names: the file's own and those in the header
(``modelspec.title``; ``ss_output_name`` of kohya's scripts). Where names contradict each other, or the
header's ``modelspec.architecture`` or ``modelspec.prediction_type``, that is reported and nothing is chosen.
``modelspec.resolution`` is not used: tools write the size of fine-tuning there, or a default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.checkpoint import safetensors
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.published import Kind, Published, named, plain
from fewstep.errors import CheckpointError
from fewstep.models.known_hashes import Recognised, from_published, known_hashes
from fewstep.models.load import CONTRACT_FILE

__all__ = ["Recognised", "Unclear", "identify", "known_hashes", "recognise"]

CONTRACT = "fewstep.contract"
"""Header key of a sampling contract, as adapters are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Unclear:
    """It looks like a published checkpoint, but what there is does not say which, or contradicts itself."""

    why: str
    """One line with what there is and how to settle it."""
    candidates: tuple[str, ...] = ()
    """Keys of the checkpoints that it may be."""


_SETTLE = "rename the file to its published name, or list its hash (guide: fewstep-checkpoints)"
_NAME_KEYS = ("modelspec.title", "ss_output_name")
_ANY_NAME = frozenset(
    {"pytorch-lora-weights", "adapter-model", "diffusion-pytorch-model", "pytorch-model", "model", "unet"}
)
"""Names of files that say nothing: the folder's is looked at instead, up to a repository's."""
_PARENTS = 4  # hub caches: models--owner--name/snapshots/<revision>/unet/file
_STEPS = re.compile(r"(?<!\d)(\d{1,3})[\s_-]?steps?(?![a-z])")
_ARCHITECTURES = {
    "stable-diffusion-v1": "sd15",
    "stable-diffusion-v2": "sd21",
    "stable-diffusion-xl": "sdxl",
    "stable-diffusion-3": "sd3",
}
"""Beginnings of ``modelspec.architecture``."""


def recognise(
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    kind: Kind | None = None,
    known: Mapping[str, Recognised] | None = None,
) -> Recognised | Unclear | None:
    """Which checkpoint a file, a folder or a name is; None if nothing says so.

    Args:
        path: a safetensors file or a pipeline folder; or only a name, such as ``ByteDance/SDXL-Lightning``.
        metadata: the file's header; None reads it where there is a file.
        kind: what the file holds, where the caller knows it.
        known: SHA-256 in small letters -> what it is; None is `known_hashes`. A file is hashed only if there
            are any.

    Raises:
        CheckpointError: the file is a pickle or broken, or carries a contract of ours that is.
        UsageError: a table of hashes does not follow its format.
    """
    file = Path(path)
    there = file.is_file()
    if metadata is None:
        metadata = safetensors.read_metadata(file) if there else {}
    if (own := _own_contract(file, metadata)) is not None:
        contract, where = own
        return Recognised(
            contract=contract, kind=kind or ("lora" if where == CONTRACT else "full"), why=f"its {where}"
        )
    known = known_hashes() if known is None else known
    if known and there and (listed := known.get(safetensors.sha256_file(file))) is not None:
        if kind not in (None, listed.kind):
            said = f"its hash is listed as {_kind_name(listed.kind)}, its content is {_kind_name(kind)}"
            return Unclear(why=f"{_shown(file)}: {said}; correct the table")
        return listed
    return identify(file, metadata=metadata, kind=kind)


def identify(
    path: str | Path, *, metadata: Mapping[str, str], kind: Kind | None = None
) -> Recognised | Unclear | None:
    """`recognise` by names and header alone; reads no file."""
    path = Path(path)
    said = [(source, text, named(text)) for source, text in _names(path, metadata)]
    telling = [(source, text, rows) for source, text, rows in said if rows]
    if not telling:
        return None
    rows = [row for row in telling[0][2] if all(row in others for _, _, others in telling[1:])]
    candidates = tuple(row.key for row in rows)
    if not rows:
        each = "; ".join(f"{source} is {_shown(text)}" for source, text, _ in telling)
        return Unclear(why=f"{each}: these are different checkpoints; {_SETTLE}")
    contradiction = (
        _wrong_steps(rows, said)
        or (kind and _wrong_kind(rows, kind, "its content"))
        or _wrong_header(rows, metadata)
    )
    if contradiction:
        return Unclear(why=f"{_shown(path)}: {contradiction}; {_SETTLE}", candidates=candidates)
    left = [row for row in rows if kind in (None, row.kind)]
    if len(left) > 1:
        keys = tuple(row.key for row in left)
        which = f"any of {len(left)} checkpoints, {keys[0]} to {keys[-1]}"
        return Unclear(why=f"{_shown(path)}: this may be {which}; {_SETTLE}", candidates=keys)
    return from_published(
        left[0], why=" and ".join(f"{source} {_shown(text)}" for source, text, _ in telling)
    )


def _own_contract(file: Path, metadata: Mapping[str, str]) -> tuple[SamplingContract, str] | None:
    beside = None if CONTRACT in metadata else _contract_file(file)
    if CONTRACT not in metadata and beside is None:
        return None
    where = CONTRACT if beside is None else CONTRACT_FILE
    try:
        text = metadata[CONTRACT] if beside is None else beside.read_text(encoding="utf-8")
        return SamplingContract.from_json(text), where
    except (OSError, UnicodeDecodeError, CheckpointError) as error:
        raise CheckpointError(f"{file}: its {where}: {error}; export it again") from error


def _contract_file(path: Path) -> Path | None:
    """Our contract in a folder; for a file only where its name says nothing, as in ``unet/``."""
    if path.is_dir():
        folders = [path]
    else:
        folders = list(path.parents)[:2] if _says_nothing(path.name) else []
    return next((f / CONTRACT_FILE for f in folders if (f / CONTRACT_FILE).is_file()), None)


def _shown(text: object) -> str:
    """A text from a file for a message: in quotes, on one line, not long."""
    return repr(str(text)[-80:])


def _says_nothing(name: str) -> bool:
    return plain(name) in _ANY_NAME


def _names(path: Path, metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(source, text) of every name that is given."""
    if not _says_nothing(path.name):
        yield "the name", path.name
    else:
        for folder in list(path.parents)[:_PARENTS]:
            name = folder.name.rpartition("--")[2]  # hub caches write models--owner--name
            if named(name):
                yield "the folder", name
                break
    for key in _NAME_KEYS:
        if metadata.get(key):
            yield key, metadata[key]


def _wrong_steps(rows: list[Published], said: list[tuple[str, str, tuple[Published, ...]]]) -> str | None:
    for source, text, _ in said:
        for count in map(int, _STEPS.findall(text.lower())):
            if not any(_draws_in(row, count) for row in rows):
                others = " or ".join(dict.fromkeys(str(row.named_steps) for row in rows if row.named_steps))
                return f"{source} {_shown(text)} says {count} steps, the rest says {others or 'other counts'}"
    return None


def _draws_in(row: Published, count: int) -> bool:
    return row.contract.allowed_steps is None or count in row.contract.allowed_steps


def _wrong_kind(rows: list[Published], kind: Kind, source: str) -> str | None:
    if any(row.kind == kind for row in rows):
        return None
    return f"the name stands for {_kind_name(rows[0].kind)}, {source} is {_kind_name(kind)}"


def _kind_name(kind: Kind) -> str:
    return {"full": "a whole model", "unet": "a denoiser", "lora": "an adapter"}[kind]


def _wrong_header(rows: list[Published], metadata: Mapping[str, str]) -> str | None:
    architecture = metadata.get("modelspec.architecture", "").lower()
    family = next((f for start, f in _ARCHITECTURES.items() if architecture.startswith(start)), None)
    families = {row.contract.base_family for row in rows}
    if family is not None and family not in families:
        names = ", ".join(sorted(families))
        return f"the name stands for {names}, modelspec.architecture is {_shown(architecture)}"
    if architecture.endswith("/lora") and (wrong := _wrong_kind(rows, "lora", "modelspec.architecture")):
        return wrong
    predicts = metadata.get("modelspec.prediction_type", "").lower()
    # The standard has no word for x0, and tools write epsilon for whatever is not v.
    if predicts == "v" and all(row.contract.prediction_type != "v_prediction" for row in rows):
        own = rows[0].contract.prediction_type
        return f"the name stands for a model that predicts {own}, modelspec.prediction_type is v"
    return None
