"""The table of students as a page of Markdown, and as curves over the step count."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fewstep.evaluation import plots
from fewstep.evaluation.distances import fid_caution
from fewstep.evaluation.report import Figure, shown
from fewstep.evaluation.studentgoals import GOALS, against, points, times, verdict
from fewstep.evaluation.studenttable import BASE_ROW, STEPS, TEACHER, TEACHER_STEPS, Row, Table, seeds

_HEADS: Final = (
    "row", "steps", "solver", "guidance", "network evaluations", "prompt accuracy ↑",
    "less the teacher's, points", "all three right ↑", "KID ↓", "FID ↓", "over the teacher's ↓",
    "precision ↑", "recall ↑", "ms an image",
)  # fmt: skip
_COLOURS: Final = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d00060",
    "#56b4e9",
    "#8c6d31",
    "#404040",
    "#7b3fb0",
    "#7fb800",
)
_FID_TICKS: Final = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def markdown(table: Table) -> str:
    """Return the whole table as a page: what was drawn, the goals, the rows, the trainings, the yardstick."""
    lines = ["# Students of emoji-128", "", *_subject(table)]
    lines += ["", "## Goals", "", *(f"- {verdict(goal, table).text}." for goal in GOALS)]
    lines += ["", "Of several students the best one counts: one that meets the goal, then the lowest FID."]
    lines += ["", "## Table", "", *_pipes(_HEADS, _rows(table)), "", *_notes(table)]
    lines += _trainings(table) + _seeds(table)
    lines += ["", "## Yardstick", "", *(f"- {line}" for line in table.subject.evaluator.lines())]
    if table.commands:
        lines += ["", "## Commands", "", *(f"    {command}" for command in table.commands)]
    return "\n".join(lines) + "\n"


def _subject(table: Table) -> list[str]:
    subject = table.subject
    prompts, (least, rest) = f"{subject.prompts:,}", divmod(subject.pictures, subject.prompts)
    each = f"{least} or {least + 1} seeds" if rest else f"{least} seed{'s' if least > 1 else ''}"
    lines = [
        f"Every row draws the same {subject.pictures:,} pictures: {prompts} held-out combinations of object, "
        f"style and background, {each} each, picture i from prompt i modulo {prompts} and seed "
        f"{subject.seed} + i. {subject.available:,} such combinations exist for this selection; their parts "
        "are trained, never together. Intervals are 95% and draw whole prompts; differences and ratios are "
        "taken in pairs, picture by picture.",
        f"Distances are to {subject.reference:,} real training compositions. The first row has the real "
        f"drawings of the {prompts} prompts, once each. Prompt accuracy: the object that was asked for ranks "
        "first among all concepts. Network evaluations are counted calls for one picture; a guided step is "
        "two. FID is too high by a bias that falls with the number of pictures and is in both parts of a "
        "ratio, which it pulls towards 1; KID has none.",
    ]
    return [line for text in (*lines, *table.notes) for line in (text, "")][:-1]


def _rows(table: Table) -> list[tuple[str, ...]]:
    teacher = table.row(BASE_ROW)
    real = {figure.name: figure for figure in table.subject.real}
    ends = [_cell(real.get(name)) for name in ("precision", "recall")]
    found = [
        (
            *("real drawings", "", "", "", "", _cell(real.get("top1")), ""),
            *(_cell(real.get(name)) for name in ("all", "kid", "fid")),
            *("", *ends, ""),
        )
    ]
    for row in table.ordered():
        accuracy = ratio = ""
        if teacher is not None and row.name != BASE_ROW:
            beside = against(row, teacher, table.subject)
            accuracy = points(beside.accuracy).replace(" points", "")
            ratio = "" if beside.fid is None else times(beside.fid)
        timing = table.timing(row)
        found.append(
            (
                row.name,
                str(row.steps),
                row.solver,
                "none" if row.guidance_scale == 1.0 else f"{row.guidance_scale:g}",
                str(row.evaluations),
                _cell(row.figure("top1")),
                accuracy,
                *(_cell(row.figure(name)) for name in ("all", "kid", "fid")),
                ratio,
                *(_cell(row.figure(name)) for name in ("precision", "recall")),
                "" if timing is None else f"{timing.median:.0f}",
            )
        )
    return found


def _notes(table: Table) -> list[str]:
    subject, notes = table.subject, [f"The teacher's is {BASE_ROW}: guided, {TEACHER_STEPS} steps."]
    caution = fid_caution(subject.reference, subject.pictures, subject.evaluator.feature_dims)
    notes += [f"{caution}."] if caution else []
    engines = {" ".join(f"{k} {v}" for k, v in row.engine.items()): None for row in table.ordered()}
    if len(engines) > 1:
        notes.append(
            "Rows were drawn by different engines, which moves figures a little: " + "; ".join(engines)
        )
    elif engines:
        notes.append(f"Engine: {next(iter(engines))}.")
    teacher = table.row(BASE_ROW)
    if teacher is not None:
        notes.append(f"Teacher: {teacher.weights[:10]}.")
        other = [r.name for r in table.ordered() if r.entrant != TEACHER and r.teacher != teacher.weights]
        if other:
            notes.append(
                "Measured beside an earlier teacher, of which they may be students: " + ", ".join(other)
            )
    if table.times is not None:
        said = ", ".join(f"{key} {value}" for key, value in table.times.machine.items())
        notes.append(
            "Milliseconds: whole calls that draw one image, after a first one; median of "
            f"{table.times.rounds} rounds, rows in turn; {said}."
        )
        faster = [(row.name, t.speedup) for row in table.ordered() if (t := table.timing(row)) is not None]
        ratios = [f"{n} {s:.1f}" for n, s in faster if s is not None and n.partition("-")[0] != TEACHER]
        notes += ["Times faster than the teacher, median of the rounds: " + ", ".join(ratios) + "."] * bool(
            ratios
        )
    return [line for note in notes for line in (note, "")][:-1]


def _trainings(table: Table) -> list[str]:
    rows, known = [], set()
    for row in table.ordered():
        if row.training is None or (row.entrant, row.training) in known:
            continue
        known.add((row.entrant, row.training))
        t = row.training
        threads = "all" if t.threads is None else str(t.threads)
        data = "" if t.data is None else t.data[:10]
        cells = (row.entrant, row.method, ", ".join(t.stages), str(t.seed), f"{t.minutes:.1f}", threads)
        rows.append((*cells, f"{t.images:,}", data, row.weights[:10]))
    if not rows:
        return []
    heads = ("student", "method", "stages", "seed", "minutes", "threads", "images", "data", "weights")
    return ["", "## Training", "", *_pipes(heads, rows)]


def _seeds(table: Table) -> list[str]:
    found = seeds(table)
    if not found:
        return []
    rows = [
        (
            *(what, row.name, str(row.training.seed if row.training else "")),
            *(_cell(row.figure(name)) for name in ("top1", "fid", "kid")),
        )
        for what, rows in found
        for row in rows
    ]
    heads = ("what", "row", "seed of training", "prompt accuracy ↑", "FID ↓", "KID ↓")
    return ["", "## Seeds of training", "", *_pipes(heads, rows)]


def _cell(figure: Figure | None) -> str:
    return "" if figure is None else shown(figure)


def _pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def plot(table: Table, path: Path) -> bool:
    """Plot prompt accuracy and FID over the teacher's against the step count, a line each.

    Args:
        table: with the teacher's full row.
        path: PNG file.

    Returns:
        Whether there was anything to plot.

    Raises:
        OutputError: the file cannot be written.
    """
    teacher = table.row(BASE_ROW)
    if teacher is None:
        return False
    figure = plots.new_figure(1100, 520)
    left = figure.add_axes((0.06, 0.13, 0.41, 0.77))
    right = figure.add_axes((0.56, 0.13, 0.41, 0.77))
    for number, (name, rows) in enumerate(_series(table).items()):
        # a little apart, so that intervals do not hide each other
        shift = 2 ** (0.05 * (number - len(_series(table)) / 2))
        style: dict[str, Any] = {
            "color": _COLOURS[number % len(_COLOURS)],
            "linestyle": "--" if name.startswith(TEACHER) else "-",
            "marker": "o",
            "capsize": 2,
            "linewidth": 1.2,
            "markersize": 4,
            "label": name,
        }
        shares = [(row.steps * shift, row.figure("top1")) for row in rows]
        _line(left, [(x, f.value, f.low, f.high) for x, f in shares if f is not None], style)
        ratios = [(row.steps * shift, against(row, teacher, table.subject).fid) for row in rows]
        _line(right, [(x, *r) for x, r in ratios if r is not None], style)
    full = teacher.figure("top1")
    if full is not None:
        left.axhline(full.value, color="black", linewidth=1)
        left.axhspan(full.low or full.value, full.high or full.value, color="black", alpha=0.08)
    for limit, text in (
        (1.0, "teacher, 32 steps"),
        (1.10, "1.10: goal of 4 steps"),
        (1.35, "1.35: of 1 step"),
    ):
        right.axhline(limit, color="black", linewidth=1, linestyle="-" if limit == 1.0 else ":")
        right.text(23, limit, text, fontsize=6.5, va="bottom", ha="right")
    for axes, label in (
        (left, "prompt accuracy (line: teacher, 32 steps)"),
        (right, "FID over the teacher's"),
    ):
        axes.set_xscale("log", base=2)
        axes.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axes.set_xlim(0.8, 24)  # room for words on the right
        axes.set_xlabel("steps")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    # The axis begins where there is something to see: what is compared may lie within a few points.
    lows = [f.low or f.value for row in table.rows if (f := row.figure("top1")) is not None]
    left.set_ylim(math.floor(20 * max(0.0, min(lows, default=0.0) - 0.05)) / 20, 1)
    left.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    right.set_yscale("log")
    low, high = right.get_ylim()
    right.set_yticks([tick for tick in _FID_TICKS if low <= tick <= high])
    right.minorticks_off()
    right.yaxis.set_major_formatter("{x:g}")
    for axes in (left, right):
        axes.tick_params(axis="y", labelsize=7)
    left.legend(fontsize=7, loc="best")
    subject = table.subject
    foot = f"{subject.pictures:,} pictures of {subject.prompts:,} held-out combinations; 95% intervals"
    figure.text(0.01, 0.015, f"{foot}; evaluator {subject.evaluator.hash[:10]}", fontsize=6.5)
    plots.save_figure(figure, path)
    return True


def _series(table: Table) -> dict[str, list[Row]]:
    """Lines of the plot: the teacher by solver, then the students; fewest steps first."""
    found: dict[str, list[Row]] = {}
    for row in reversed(table.ordered()):
        if row.name != BASE_ROW:
            name = f"{TEACHER}, {row.solver}" if row.entrant == TEACHER else row.entrant
            found.setdefault(name, []).append(row)
    return dict(reversed(found.items()))


def _line(axes: Any, points_: Sequence[tuple[float, float, float | None, float | None]], style: Any) -> None:
    if not points_:
        return
    x, y = [p[0] for p in points_], [p[1] for p in points_]
    below = [max(0.0, p[1] - (p[1] if p[2] is None else p[2])) for p in points_]
    above = [max(0.0, (p[1] if p[3] is None else p[3]) - p[1]) for p in points_]
    axes.errorbar(x, y, (below, above), **style)
