"""The report card of a distillation: steps against the distance from the teacher and against time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fewstep.studio.dial import TEACHER
from fewstep.studio.markup import text
from fewstep.studio.words import Words

BEGIN: Final = "teacher_distance/"
_SHOWN: Final = (1, 2, 4, 8)
"""Step counts of a student that may have any of many."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to draw.

    Args:
        model: by name.
        student: of the model; `TEACHER` is the model itself.
        steps: how many.
        distance: last that was measured; None where none was, and of the teacher.
        seconds: of one picture on this machine.
        image: id in the history.
        taught: whether it is the student of this run.
    """

    model: str
    student: str
    steps: int
    distance: float | None = None
    seconds: float | None = None
    image: str | None = None
    taught: bool = False

    def body(self, prompt: str, seed: int) -> dict[str, Any]:
        """Its order of one picture."""
        return {
            "prompt": prompt, "seed": seed, "model": self.model, "student": self.student,
            "num_inference_steps": self.steps,
        }  # fmt: skip

    def drawn(self, job: Mapping[str, Any]) -> Row:
        """With the time and the picture of a job that is done."""
        result = job["result"]
        images = result.get("images") or [None]
        return replace(self, seconds=result["timings"]["total"], image=images[0])


def distances(stages: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Step count to the last distance that was measured in the last stage that has any."""
    for stage in reversed(stages):
        found = {
            int(name.removeprefix(BEGIN)): float(points[-1][1])
            for name, points in stage["values"].items()
            if name.startswith(BEGIN) and name.removeprefix(BEGIN).isdecimal() and points
        }
        if found:
            return dict(sorted(found.items()))
    return {}


def rows(
    model: Mapping[str, Any], student: str, measured: Mapping[int, float], teacher: Mapping[str, Any]
) -> list[Row]:
    """Of the student at its step counts, then of the teacher.

    Args:
        model: what draws with the student, as ``/api/v1/models/NAME`` describes it: a bundle that has it
            among its students, or the student as a model of its own.
        student: its name.
        measured: see `distances`.
        teacher: as ``/api/v1/models/NAME`` describes it.
    """
    among = next((one for one in model["students"] if one["name"] == student), None)
    counts = list(among["steps"]) if among else list(measured) or [model["num_inference_steps"]]
    if len(counts) > len(_SHOWN):
        counts = [count for count in counts if count in _SHOWN]
    found = [
        Row(model["name"], student if among else TEACHER, count, measured.get(count), taught=True)
        for count in sorted(counts)
    ]
    return [*found, Row(teacher["name"], TEACHER, teacher["num_inference_steps"])]


def card(words: Words, found: Sequence[Row]) -> str:
    """HTML of the card."""
    drawn = any(row.image for row in found)
    heads = ["who", "steps_short", "distance", "seconds", *(["same"] if drawn else [])]
    lines = []
    for row in found:
        who = words("distil.student" if row.taught else "distil.teacher")
        cells = [
            who, str(row.steps), "—" if row.distance is None else f"{row.distance:.4f}",
            "—" if row.seconds is None else f"{row.seconds:.2f}",
        ]  # fmt: skip
        line = "".join(f"<td>{text(cell)}</td>" for cell in cells)
        if drawn:
            said = text(f"{who}, {row.steps}")
            source = f"/api/v1/images/{text(row.image)}/file"
            line += f'<td><img src="{source}" alt="{said}"></td>' if row.image else "<td></td>"
        lines.append(f'<tr data-steps="{row.steps}" data-taught="{str(row.taught).lower()}">{line}</tr>')
    head = "".join(f'<th scope="col">{text(words(f"distil.{name}"))}</th>' for name in heads)
    measured = any(row.distance is not None for row in found)
    note = words("distil.distance_info" if measured else "distil.no_distance")
    return (
        f"<h4>{text(words('distil.card'))}</h4><table class='card'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table><p><small>{text(note)}</small></p>"
    )
