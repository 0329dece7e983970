"""The quality dial: few steps by a model's students, all steps by the model itself, and what each takes here.

A stop is a setting of the form's ``student``, ``num_inference_steps``, ``solver`` and ``guidance_scale`` that
belong together. Its time is that of one picture of the model's own size, drawn on this machine, and is kept
in a file by the hash of the model; where none was measured yet, none is shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fewstep.checkpoint import atomic
from fewstep.errors import OutputError
from fewstep.studio.client import Api, ApiError
from fewstep.studio.words import Words

TEACHER: Final = "none"
"""In place of a student's name: the model itself."""
_FILE: Final = "times.json"
_ROUNDS: Final = 2
"""Pictures of each stop: the first loads the networks, and is not what the next one takes."""
_PROMPT: Final = "a red apple"
_measuring: set[str] = set()


@dataclass(frozen=True, slots=True)
class Stop:
    """One setting.

    Args:
        name: of the stop, unique in a model: ``four:4``.
        student: who draws; `TEACHER` is the model itself.
        steps: how many.
        solver: its own.
        guidance: its own scale.
        negative: whether a negative prompt has an effect.
    """

    name: str
    student: str
    steps: int
    solver: str
    guidance: float
    negative: bool

    def values(self) -> dict[str, Any]:
        """Of the form, by name."""
        return {
            "student": self.student, "num_inference_steps": self.steps, "solver": self.solver,
            "guidance_scale": self.guidance,
        }  # fmt: skip


def stops(model: Mapping[str, Any]) -> list[Stop]:
    """Stops of a model, the fewest steps first, the model itself last.

    Args:
        model: as ``/api/v1/models/NAME`` describes it.
    """
    found = [
        _stop(one["name"], steps, one["contract"]) for one in model["students"] for steps in one["steps"]
    ]
    found.sort(key=lambda stop: stop.steps)
    contract = model["contract"]
    return [*found, _stop(TEACHER, contract["num_inference_steps"], contract)]


def contract_of(model: Mapping[str, Any], student: str | None) -> dict[str, Any]:
    """How a student, or the model itself, is sampled."""
    named = (one for one in model["students"] if one["name"] == student)
    found: dict[str, Any] = next((one["contract"] for one in named), model["contract"])
    return found


def usual(model: Mapping[str, Any]) -> Stop:
    """Where the dial stands at first: the most steps of a student, else the model itself."""
    found = stops(model)
    return found[-2] if len(found) > 1 else found[-1]


def matching(model: Mapping[str, Any], values: Mapping[str, Any]) -> Stop | None:
    """The stop whose settings stand in a form, if there is one."""
    return next(
        (
            stop for stop in stops(model)
            if all(values.get(name) == value for name, value in stop.values().items())
        ),
        None,
    )  # fmt: skip


def choices(words: Words, model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(label, name) of the stops of a model, with the times that were measured.

    Students that have a number of steps in common are named: one that was distilled here often has the steps
    of one that came with its teacher.
    """
    measured, found = times(model["hash"]), stops(model)
    students = [stop for stop in found if stop.student != TEACHER]
    named = {
        one.student for one in students for other in students
        if one.steps == other.steps and one.student != other.student
    }  # fmt: skip
    return [
        (_label(words, stop, measured.get(stop.name), named=stop.student in named), stop.name)
        for stop in found
    ]


def times(model_hash: str) -> dict[str, float]:
    """Seconds by name of a stop that were measured for a model; none where none were."""
    found = _read().get(model_hash)
    return {str(name): float(seconds) for name, seconds in found.items()} if isinstance(found, dict) else {}


async def measure(api: Api, model: Mapping[str, Any]) -> AsyncIterator[None]:
    """Draw a picture for each stop without a time, and keep what it took.

    Yields:
        After each stop. Nothing when all are measured, or another page measures them.

    Raises:
        ApiError: the server refuses, or has other work to do.
    """
    known, model_hash = times(model["hash"]), model["hash"]
    missing = [stop for stop in stops(model) if stop.name not in known]
    if not missing or model_hash in _measuring:
        return
    _measuring.add(model_hash)
    try:
        for stop in missing:
            seconds = [await _drawn(api, model["name"], stop) for _ in range(_ROUNDS)]
            await asyncio.to_thread(_keep, model_hash, stop.name, min(seconds))
            yield
    finally:
        _measuring.discard(model_hash)


def folder() -> Path:
    """Where the studio keeps its files: ``studio`` in the server's data, see `fewstep.studio.quiet`."""
    return Path(os.environ.get("GRADIO_TEMP_DIR", tempfile.gettempdir())).parent


async def _drawn(api: Api, model: str, stop: Stop) -> float:
    body = {"kind": "generate", "prompt": _PROMPT, "seed": 0, "model": model, "save": False, **stop.values()}
    placed = await api.post("/api/v1/jobs", body)
    async for job in api.watch(placed["id"]):
        if job["state"] == "done":
            return float(job["result"]["timings"]["total"])
    raise ApiError(job.get("error") or f"the measurement was {job['state']}")


def _stop(student: str, steps: int, contract: Mapping[str, Any]) -> Stop:
    return Stop(
        name=f"{student}:{steps}", student=student, steps=steps, solver=contract["solver"],
        guidance=contract["guidance_scale"],
        negative=contract["negative_prompt_effective"] and contract["guidance_scale"] != 1.0,
    )  # fmt: skip


def _label(words: Words, stop: Stop, seconds: float | None, *, named: bool) -> str:
    steps = words("create.step" if stop.steps == 1 else "create.steps", n=stop.steps)
    parts = [words("create.teacher"), steps] if stop.student == TEACHER else [steps]
    if named:
        parts.append(stop.student)
    if seconds is not None:
        parts.append(words("create.seconds", n=f"{seconds:.2f}" if seconds < 9.995 else f"{seconds:.0f}"))
    return " · ".join(parts)


def _read() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder() / _FILE).read_text("utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _keep(model_hash: str, name: str, seconds: float) -> None:
    found = _read()
    of_model = found.get(model_hash)
    found[model_hash] = {**(of_model if isinstance(of_model, dict) else {}), name: round(seconds, 4)}
    with contextlib.suppress(OSError, OutputError):  # then it is measured again
        folder().mkdir(parents=True, exist_ok=True)
        atomic.write_text(folder() / _FILE, json.dumps(found, indent=1))
