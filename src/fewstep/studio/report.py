"""The report card of a distillation: what was done; steps against the distance from the teacher and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from fewstep.studio.dial import TEACHER
from fewstep.studio.markup import rows as table
from fewstep.studio.markup import text
from fewstep.studio.words import Words
from fewstep.studio.working import lasting

BEGIN: Final = "teacher_distance/"
METHODS: Final[Mapping[str, str]] = {
    "flash": "Flash Diffusion", "lightning": "SDXL-Lightning", "lcm": "LCM", "dmd2": "DMD2",
    "progressive": "Progressive Distillation",
}  # fmt: skip
"""Names of the methods, which no language translates."""
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
        usual: whether it is the number of steps that the student was made for.
    """

    model: str
    student: str
    steps: int
    distance: float | None = None
    seconds: float | None = None
    image: str | None = None
    taught: bool = False
    usual: bool = False

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

    def among(self, pictures: Sequence[Mapping[str, Any]], prompt: str, seed: int) -> Row:
        """With the newest picture of the history that `body` would draw, if there is one.

        Args:
            pictures: of ``/api/v1/images``, the newest first.
            prompt: that was drawn.
            seed: of the picture.
        """
        wanted = {
            "model": self.model, "num_inference_steps": self.steps, "prompt": prompt, "seed": seed,
        }  # fmt: skip
        jobs = Counter(one["job_id"] for one in pictures)
        for one in pictures:
            record = one["record"]
            student = (record.get("student") or {}).get("name", TEACHER)
            # Of several that were drawn together each has the time of all.
            alone = jobs[one["job_id"]] == 1 and not record.get("adapters")
            if alone and student == self.student and wanted.items() <= record.items():
                seconds = (record.get("history") or {}).get("timings", {}).get("total")
                return replace(self, seconds=seconds, image=one["id"])
        return self

    def called(self, words: Words) -> str:
        """Who draws, and in how many steps."""
        who = words("distil.student" if self.taught else "distil.teacher")
        steps = words("create.step" if self.steps == 1 else "create.steps", n=self.steps)
        return words("distil.row", who=who, steps=steps)


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
    own = (among["contract"] if among else model)["num_inference_steps"]
    counts = list(among["steps"]) if among else list(measured) or [own]
    if len(counts) > len(_SHOWN):
        counts = [count for count in counts if count in _SHOWN or count == own]
    found = [
        Row(
            model["name"], student if among else TEACHER, count, measured.get(count), taught=True,
            usual=count == own,
        )
        for count in sorted(counts)
    ]  # fmt: skip
    return [*found, Row(teacher["name"], TEACHER, teacher["num_inference_steps"])]


def usual(found: Sequence[Row]) -> Row | None:
    """Of the student's rows the one that it was made for, else the most steps; None where there are none."""
    taught = [row for row in found if row.taught]
    return next((row for row in taught if row.usual), taught[-1] if taught else None)


def facts(
    words: Words,
    job: Mapping[str, Any],
    order: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    pictures: int | None,
) -> list[tuple[str, object]]:
    """What was done, as names and values.

    Args:
        words: texts.
        job: that is done.
        order: of the job.
        stages: of ``/api/v1/jobs/ID/curves``.
        pictures: of the dataset, where it is still there.
    """
    method = METHODS.get(order.get("method") or "", order.get("recipe") or "")
    dataset = order.get("dataset") or ""
    if dataset and pictures is not None:
        dataset = words("distil.dataset", name=dataset, n=pictures)
    precision = order.get("bundle_precision") or "int8"
    bundle = job["result"].get("bundle")
    return [
        (words("distil.name"), order.get("name")),
        (words("distil.method"), method),
        (words("distil.model"), order.get("model")),
        (words("distil.pictures"), dataset),
        (words("distil.seen"), _seen(stages)),
        (words("distil.batch_size"), order.get("batch_size")),
        (words("distil.seed"), order.get("seed")),
        (words("distil.took"), _took(words, job, stages)),
        (
            words("distil.on_dial"),
            bundle and words("distil.on_dial_value", model=bundle, precision=precision),
        ),
    ]


def card(
    words: Words,
    found: Sequence[Row],
    *,
    about: Sequence[tuple[str, object]] = (),
    sample: str | None = None,
    evaluated: str = "",
) -> str:
    """HTML of the card.

    Args:
        words: texts.
        found: ways to draw.
        about: see `facts`.
        sample: address of the last sample grid.
        evaluated: HTML of what `fewstep.studio.evaluations.table` makes.
    """
    grid = ""
    if sample:
        said, place = text(words("distil.last_sample")), text(sample)
        grid = (
            f'<figure class="last"><a href="{place}" target="_blank"><img src="{place}" alt="{said}"></a>'
            f"<figcaption>{said}</figcaption></figure>"
        )
    return (
        f'<section class="report"><h4>{text(words("distil.card"))}</h4>'
        f'<div class="about">{table(list(about))}{grid}</div>{_ways(words, found)}{evaluated}</section>'
    )


def _ways(words: Words, found: Sequence[Row]) -> str:
    """HTML of the table of ways to draw."""
    if not found:
        return ""
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
            said = text(row.called(words))
            source = f"/api/v1/images/{text(row.image)}/file"
            line += f'<td><img src="{source}" alt="{said}"></td>' if row.image else "<td></td>"
        lines.append(f'<tr data-steps="{row.steps}" data-taught="{str(row.taught).lower()}">{line}</tr>')
    head = "".join(f'<th scope="col">{text(words(f"distil.{name}"))}</th>' for name in heads)
    measured = any(row.distance is not None for row in found)
    note = words("distil.distance_info" if measured else "distil.no_distance")
    return (
        f"<div class='wide'><table class='card'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div><p><small>{text(note)}</small></p>"
    )


def _seen(stages: Sequence[Mapping[str, Any]]) -> str:
    """Images of all stages, and of each where there are several."""
    counts = [
        int(max(points[-1][0] for points in stage["values"].values() if points))
        for stage in stages
        if any(stage["values"].values())
    ]
    if not counts:
        return ""
    parts = f" = {' + '.join(f'{count:,}' for count in counts)}" if len(counts) > 1 else ""
    return f"{sum(counts):,}{parts}"


def _took(words: Words, job: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> str:
    """Time of the job, and of training alone: what was done before a stop counts in the latter only."""
    whole = max((job.get("finished") or 0) - (job.get("started") or 0), 0)
    training = sum(_trained(stage["values"].get("seconds") or ()) for stage in stages)
    if not 0 < training <= whole:
        return lasting(words, max(whole, training))
    return words("distil.took_value", whole=lasting(words, whole), training=lasting(words, training))


def _trained(points: Sequence[Sequence[float]]) -> float:
    """Seconds of a stage: they begin anew when it goes on after a stop."""
    values = [float(point[1]) for point in points]
    ends = [one for one, after in pairwise(values) if after < one]
    return sum(ends) + (values[-1] if values else 0.0)
