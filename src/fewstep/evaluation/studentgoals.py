"""Students against their teacher: paired differences, ratios with intervals, and the goals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError
from fewstep.evaluation.distances import fid_caution
from fewstep.evaluation.intervals import Interval, mean_interval
from fewstep.evaluation.setfigures import half_sample_interval
from fewstep.evaluation.studenttable import BASE_ROW, TEACHER, Row, Subject, Table


class Against(NamedTuple):
    """A row beside the teacher at its full number of steps, on the same prompts and seeds.

    Attributes:
        accuracy: difference of prompt accuracy, a share; intervals draw whole prompts.
        fid: FID over the teacher's; None where either was not measured.
        evaluations: how many times fewer network evaluations.
    """

    accuracy: Interval
    fid: Interval | None
    evaluations: float


def against(row: Row, teacher: Row, subject: Subject) -> Against:
    """Compare two rows in pairs.

    Raises:
        UsageError: they have other numbers of pictures.
    """
    if not len(row.right) == len(teacher.right) == subject.pictures:
        raise UsageError(f"{row.name} and {teacher.name} have other numbers of pictures; measure them anew")
    gain = _right(row) - _right(teacher)
    return Against(
        accuracy=mean_interval(gain, groups=subject.groups()),
        fid=_ratio(row, teacher, subject),
        evaluations=teacher.evaluations / row.evaluations,
    )


def _ratio(row: Row, teacher: Row, subject: Subject) -> Interval | None:
    """FID over the teacher's, its interval from the same halves of the prompts in both."""
    own, base = row.figure("fid"), teacher.figure("fid")
    if own is None or base is None or not row.fid_halves or len(row.fid_halves) != len(teacher.fid_halves):
        return None
    # in the order in which `half_sample_interval` asks: the whole, then one half after another
    values = iter(
        [a / b for a, b in zip((own.value, *row.fid_halves), (base.value, *teacher.fid_halves), strict=True)]
    )
    return half_sample_interval(lambda _: next(values), subject.prompts, halves=len(row.fid_halves))


def _right(row: Row) -> NDArray[np.float64]:
    return np.array([answer == "1" for answer in row.right], np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What is wanted of the best student of some step count, beside the teacher.

    Attributes:
        steps: of the student.
        fid: FID over the teacher's, at most.
        accuracy: whether its prompt accuracy must be the teacher's or more.
        evaluations: how many times fewer, at least.
    """

    steps: int
    fid: float
    accuracy: bool
    evaluations: float


GOALS: Final = (
    Goal(steps=4, fid=1.10, accuracy=True, evaluations=16.0),
    Goal(steps=1, fid=1.35, accuracy=False, evaluations=16.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a goal was met, by which row, and the line that says so; ``met`` None where nothing tells."""

    goal: Goal
    met: bool | None
    row: str | None
    text: str


def verdict(goal: Goal, table: Table) -> Verdict:
    """Judge a goal by its best row: one that meets it goes first, then the lowest FID.

    Figures decide; where an interval reaches over the limit, the words say so.
    """
    steps = "1 step" if goal.steps == 1 else f"{goal.steps} steps"
    head = f"{steps} without guidance"
    subject, teacher = table.subject, table.row(BASE_ROW)
    rows = [row for row in table.rows if row.entrant != TEACHER and row.steps == goal.steps]
    unguided = [row for row in rows if row.guidance_scale == 1.0]
    missing = None
    if teacher is None:
        missing = f"{BASE_ROW} is not measured"
    elif not unguided:
        missing = "no student of that kind is measured"
    elif fid_caution(subject.reference, subject.pictures, subject.evaluator.feature_dims):
        missing = f"FID of {subject.pictures} pictures says too little"
    if teacher is None or missing is not None:
        return Verdict(goal=goal, met=None, row=None, text=f"{head}: not decided, {missing}")
    judged = []
    for row in unguided:
        found = against(row, teacher, subject)
        if found.fid is not None:
            conditions = _conditions(goal, found, found.fid)
            judged.append((not all(met for met, _ in conditions), found.fid.value, row, conditions))
    if not judged:
        return Verdict(goal=goal, met=None, row=None, text=f"{head}: not decided, FID is not measured")
    missed, _, best, conditions = min(judged, key=lambda entry: entry[:2])
    word = "missed" if missed else "met"
    said = "; ".join(text for _, text in conditions)
    return Verdict(goal=goal, met=not missed, row=best.name, text=f"{head}: {word} by {best.name}: {said}")


def _conditions(goal: Goal, found: Against, ratio: Interval) -> list[tuple[bool, str]]:
    conditions = []
    if goal.accuracy:
        met, value = found.accuracy.value >= 0, points(found.accuracy)
        unsure = found.accuracy.low < 0 <= found.accuracy.high
        text = f"prompt accuracy {value} of the teacher's, wanted 0 or more: {_words(met, unsure)}"
        conditions.append((met, text))
    met, unsure = ratio.value <= goal.fid, ratio.low <= goal.fid < ratio.high
    text = f"FID {times(ratio)} the teacher's, wanted {goal.fid:.2f}x or less: {_words(met, unsure)}"
    conditions.append((met, text))
    met = found.evaluations >= goal.evaluations
    text = f"{found.evaluations:g} times fewer network evaluations, wanted {goal.evaluations:g}: "
    conditions.append((met, text + _words(met, False)))
    return conditions


def _words(met: bool, unsure: bool) -> str:
    if met:
        return "met, though the interval reaches over the limit" if unsure else "met"
    return "missed, though the interval reaches over the limit" if unsure else "missed"


def points(interval: Interval) -> str:
    """Write a difference of shares in percentage points, with its interval."""
    value, low, high = (100 * number for number in interval)
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def times(interval: Interval) -> str:
    """Write a ratio with its interval."""
    return f"{interval.value:.2f}x [{interval.low:.2f}, {interval.high:.2f}]"
