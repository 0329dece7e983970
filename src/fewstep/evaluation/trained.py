"""What the run folder of a distillation tells of its training: time, images, seed and data.

Evaluation does not import distillation, so the folder is read as what it is: YAML, JSON and lines of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml
from pydantic import ConfigDict

from fewstep.errors import DataError

RECIPE: Final = "recipe.yaml"
STUDENT: Final = "student"
"""In a run folder: the pipeline folder of the last stage's student."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a student came about.

    Attributes:
        seed: of the recipe.
        stages: names of the stages up to the student's own, in order; all of them took of the time.
        minutes: wall-clock time in the training loop over these stages, sample grids and checkpoints
            included, loading left out. What a killed process did after its last log line is missing.
        images: images seen over these stages.
        batch_size: of the recipe.
        threads: of the recipe; None is torch's own choice.
        data: fingerprint of the data in the newest checkpoint; None where there is none left.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    seed: int
    stages: tuple[str, ...]
    minutes: float
    images: int
    batch_size: int
    threads: int | None
    data: str | None


def is_run(folder: Path) -> bool:
    """Say whether a folder is the run folder of a distillation."""
    return (folder / RECIPE).is_file() and "stages" in _recipe(folder)


def chosen_stages(run: Path, counts: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Say which stage's student draws in which step count: the last finished one that was made for it.

    Args:
        run: a run folder.
        counts: step counts that are wanted.

    Returns:
        Name of a stage to its counts, in the order of the stages; stages without any are left out.

    Raises:
        DataError: a file of the folder cannot be read, or no stage is finished.
    """
    finished: list[tuple[str, tuple[int, ...]]] = []
    for name, folder in _stages(run):
        if (folder / "done.json").is_file():
            contract = _json(folder / "done.json").get("contract", {})
            allowed = contract.get("allowed_steps") or [contract.get("num_inference_steps")]
            finished.append((name, tuple(allowed)))
    if not finished:
        raise DataError(f"{run}: no stage has reached its stop; go on with: fewstep distill --resume")
    chosen: dict[str, list[int]] = {name: [] for name, _ in finished}
    for count in counts:
        able = [name for name, allowed in finished if count in allowed]
        if able:
            chosen[able[-1]].append(count)
    return {name: tuple(found) for name, found in chosen.items() if found}


def last_stage(run: Path) -> str:
    """Return the name of the stage whose student stands in ``RUN/student``."""
    return _stages(run)[-1][0]


def read(run: Path, stage: str | None = None) -> Training:
    """Read how the student of a stage was trained.

    Args:
        run: a run folder.
        stage: name of a stage; default the last.

    Raises:
        DataError: a file of the folder cannot be read, or there is no such stage.
    """
    recipe, parts = _recipe(run), _stages(run)
    names = [name for name, _ in parts]
    if stage is not None and stage not in names:
        raise DataError(f"{run}: no stage {stage!r}; there are: {', '.join(names)}")
    parts = parts if stage is None else parts[: names.index(stage) + 1]
    seconds, images, data = 0.0, 0, None
    for _, folder in parts:
        lines = _lines(folder / "progress.jsonl")
        seconds += _seconds(lines)
        images += int(max((line.get("images", 0) for line in lines), default=0))
        states = sorted((folder / "checkpoints").glob("*/state.json"))
        data = _json(states[-1]).get("data", data) if states else data
    section = recipe.get("data", {})
    return Training(
        seed=int(recipe.get("seed", 0)),
        stages=tuple(name for name, _ in parts),
        minutes=round(seconds / 60, 2),
        images=images,
        batch_size=int(section.get("batch_size", 0)),
        threads=(recipe.get("runtime") or {}).get("threads"),
        data=data,
    )


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """Sum up a clock that starts at 0 in every process of a run."""
    total = before = 0.0
    for line in lines:
        now = line.get("seconds")
        if now is None:
            continue
        if now < before:
            total += before
        before = float(now)
    return total + before


def _stages(run: Path) -> list[tuple[str, Path]]:
    names = [str(stage.get("name")) for stage in _recipe(run)["stages"]]
    return [(name, run / f"{place:02d}-{name}") for place, name in enumerate(names)]


def _recipe(run: Path) -> dict[str, Any]:
    file = run / RECIPE
    try:
        found = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{file}: cannot be read ({reason}); give the run folder of a distillation") from None
    return found if isinstance(found, dict) else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); give a complete run folder") from None
    return found if isinstance(found, dict) else {}


def _lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that a crash cut short is left out."""
    try:
        texts = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            found.append(line)
    return found
