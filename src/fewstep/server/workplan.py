"""The words between orders of long work and processes: commands, plans, folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.engine import registry
from fewstep.errors import NotFoundError

if TYPE_CHECKING:
    from fewstep.server.settings import ServerSettings

Product = Literal["lora", "embedding", "model", "report", "pictures", "download"]
"""A download is a model or an adapter, which is known when it is there."""
SUFFIX = ".safetensors"
_SAMPLES = ("*.png", "samples/*.png", "*/*.png", "*/samples/*.png")
"""Below the run folder: of trainings, of the stages of distillations, of evaluations."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line."""

    name: str
    options: tuple[tuple[str, str], ...] = ()
    flags: tuple[str, ...] = ()
    positionals: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As `fewstep.cli.child` reads it."""
        return {
            "command": self.name,
            "arguments": {
                "options": [list(pair) for pair in self.options], "flags": list(self.flags),
                "positionals": list(self.positionals),
            },
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Commands, one after the other, and what they leave."""

    commands: tuple[Command, ...]
    product: Product
    name: str | None = None
    """Of the product."""
    made: Path | None = None
    """Where the commands leave it."""
    recipe: str | None = None
    """Text of `Run.recipe`, which is written before they begin."""
    published: str | None = None
    """Name of its file or folder in the folder of its kind."""
    bundle: str | None = None
    """Name of a runtime bundle that is made beside it, in `Run.made`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """The folder of a job, and what lies where in it."""

    folder: Path

    @property
    def work(self) -> Path:
        """Run folder of a training: checkpoints, logs, samples; it outlives an interruption."""
        return self.folder / "run"

    @property
    def made(self) -> Path:
        """Results, until they are published."""
        return self.folder / "made"

    @property
    def inputs(self) -> Path:
        """Pictures that are enlarged."""
        return self.folder / "inputs"

    @property
    def recipe(self) -> Path:
        """A recipe that the server wrote."""
        return self.folder / "recipe.yaml"

    def samples(self) -> dict[str, Path]:
        """Pictures that were drawn so far, by name; those of a training are numbered by images seen."""
        found = {
            "-".join(part for part in path.relative_to(self.work).parts if part != "samples"): path
            for pattern in _SAMPLES
            for path in self.work.glob(pattern)
        }
        return dict(sorted(found.items()))


Find = Callable[[str | None, Sequence[registry.Kind]], registry.ModelEntry]
"""Finds a model by name among those of some kinds; raises NotFoundError."""


def finder(settings: ServerSettings) -> Find:
    """Looks among the models of a server and those that were made on it."""
    folders = (*settings.models_dirs, models_folder(settings))

    def find(name: str | None, kinds: Sequence[registry.Kind]) -> registry.ModelEntry:
        try:
            return registry.find(name, kind=kinds, extra=folders)
        except NotFoundError:
            there = [entry.name for entry in registry.models(folders) if entry.kind in kinds]
            listed = ", ".join(dict.fromkeys(there)) or "none"
            raise NotFoundError(
                f"model {name or registry.DEFAULT!r:.100}: there is none of kind {' or '.join(kinds)} with "
                f"this name; there are: {listed}"
            ) from None

    return find


def search_path(settings: ServerSettings) -> str:
    """``FEWSTEP_MODELS`` of a process: the server's folders, and the models that were made on it."""
    folders = [*settings.models_dirs, models_folder(settings)]
    given = os.environ.get("FEWSTEP_MODELS", "")
    return os.pathsep.join([*(str(folder.absolute()) for folder in folders), *([given] if given else [])])


def models_folder(settings: ServerSettings) -> Path:
    """Models that were made on a server."""
    return settings.data / "models"


def drafts(job_id: str) -> str:
    """Name of what a job has merged, until it is kept."""
    return f"draft-{job_id[:16]}"


def loras_folder(settings: ServerSettings) -> Path:
    """Adapters that were made on a server."""
    return settings.data / "loras"


def embeddings_folder(settings: ServerSettings) -> Path:
    """Learnt words that were made on a server."""
    return settings.data / "embeddings"


def given(**values: object) -> list[tuple[str, str]]:
    """Options of the values that are not None."""
    return [(name, str(value)) for name, value in values.items() if value is not None]


def setting(key: str, value: object) -> list[tuple[str, str]]:
    """``--set``, whose value is read as YAML: JSON is YAML, and a text in quotes stays one."""
    return [] if value is None else [("set", f"{key}={json.dumps(value)}")]
