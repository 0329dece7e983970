"""Checkpoints by the hash of their file: tables in YAML, one that comes with the package and the user's own.

The format stands in the guide fewstep-checkpoints; it is read strictly.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.published import Kind, Published, find
from fewstep.errors import FewstepError, UsageError

TABLE = "known_hashes.yaml"
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """A checkpoint whose settings are known."""

    contract: SamplingContract
    kind: Kind
    why: str
    """What it was recognised by."""
    key: str | None = None
    """Of `fewstep.diffusion.published`; None where the contract is not a published one."""
    lora_weight: float = 1.0
    """Weight that its authors apply the adapter with."""

    @property
    def method(self) -> str:
        """What made the weights."""
        return self.contract.method

    @property
    def steps(self) -> int:
        """Default number of steps; ``contract.allowed_steps`` has all."""
        return self.contract.num_inference_steps

    @property
    def base_family(self) -> str:
        """Family of the base weights."""
        return self.contract.base_family


def known_hashes() -> dict[str, Recognised]:
    """The table that comes with the package and the user's own, whose entries count where both have one.

    Raises:
        UsageError: a table does not follow its format; the message says where.
    """
    shipped = Path(__file__).with_name(TABLE)
    return {**read_hashes(shipped), **read_hashes(user_table())}


def user_table() -> Path:
    """Where a user's own table of hashes is looked for."""
    import platformdirs

    return Path(platformdirs.user_config_dir("fewstep", appauthor=False)) / TABLE


def read_hashes(path: Path) -> dict[str, Recognised]:
    """Read one table of hashes; none where there is no file.

    Raises:
        UsageError: it cannot be read or does not follow the format: unknown keys, a hash that is none or is
            given twice, an unknown checkpoint, a broken contract.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a readable YAML file") from error
    try:
        return _parse(yaml.load(text, Loader=_Loader))  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise UsageError(f"{path}: not valid YAML ({problem}); correct the file") from None
    except FewstepError as error:
        raise UsageError(f"{path}: {error}") from None


def from_published(row: Published, *, why: str, kind: Kind | None = None) -> Recognised:
    """A published checkpoint; ``kind`` in place of its own."""
    return Recognised(
        contract=row.contract, kind=kind or row.kind, why=why, key=row.key, lora_weight=row.lora_weight
    )


class _Loader(yaml.SafeLoader):
    """YAML where a key given twice is an error."""


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[object] = set()
    for key_node, _ in node.value:
        if key_node.value in seen:
            problem = f"{key_node.value!r} is given twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.add(key_node.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def _parse(data: object) -> dict[str, Recognised]:
    table = _mapping(data, "the table", ("version", "hashes"))
    if table.get("version") != 1 or isinstance(table["version"], bool):
        raise UsageError(f"version is {table.get('version')!r}: give 1")
    entries = table.get("hashes")
    if not isinstance(entries, dict):
        raise UsageError(f"hashes is {entries!r}: give hashes and what they are of, or {{}}")
    found: dict[str, Recognised] = {}
    for digest, entry in entries.items():
        if not isinstance(digest, str) or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            raise UsageError(f"{digest!r} is not a SHA-256: give 64 hexadecimal digits in quotes")
        if digest.lower() in found:
            raise UsageError(f"{digest!r} is given twice: keep one")
        try:
            found[digest.lower()] = _entry(entry)
        except FewstepError as error:
            raise UsageError(f"{digest[:10]}…: {error}") from None
    return found


def _entry(entry: object) -> Recognised:
    why = "its hash in a table"
    if isinstance(entry, str):
        return from_published(find(entry), why=why)
    given = _mapping(entry, "the entry", ("checkpoint", "contract", "kind"))
    kind = given.get("kind")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"kind is {kind!r}: give one of {', '.join(KINDS)}")
    if ("checkpoint" in given) == ("contract" in given):
        raise UsageError("it has both a checkpoint and a contract, or neither: give one of them")
    if "checkpoint" in given:
        return from_published(find(str(given["checkpoint"])), why=why, kind=kind)
    if kind is None:
        raise UsageError(f"it has a contract without a kind: add one of {', '.join(KINDS)}")
    try:
        text = json.dumps(given["contract"])
    except (TypeError, ValueError):
        raise UsageError("contract has a value that JSON does not: give texts, numbers and lists") from None
    return Recognised(contract=SamplingContract.from_json(text), kind=kind, why=why)


def _mapping(data: object, what: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise UsageError(f"{what} is {data!r}: give a mapping with {', '.join(keys)}")
    for key in data:
        if key not in keys:
            near = difflib.get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]}?" if near else f"only {', '.join(keys)} may stand there"
            raise UsageError(f"{what} has the unknown key {key!r}: {hint}")
    return data
