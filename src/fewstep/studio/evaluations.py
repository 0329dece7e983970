"""Evaluations of a student and its teacher: what is ordered, what became of it, and its figures as a table.

The server keeps them as jobs, so they are found by whom they measured: nothing is kept here, and a page that
is loaded again finds them as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fewstep.studio import working
from fewstep.studio.client import Api
from fewstep.studio.markup import text
from fewstep.studio.report import Row
from fewstep.studio.words import Words

SET: Final = "seen"
PROMPTS: Final = 64
"""Of an order that says nothing else."""
FIGURES: Final = ("top1", "style", "background", "all", "kid", "recall", "diversity")
"""Those of a report that are shown."""
GOING: Final = ("queued", "running")
_JOBS: Final = 200
_ORDERS: Final = 20
"""Orders that are looked into, of the newest jobs with the right models."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is known of one way to draw.

    Args:
        row: the way.
        job: its newest evaluation.
        report: of the newest one that is done.
    """

    row: Row
    job: Mapping[str, Any]
    report: Mapping[str, Any] | None

    @property
    def going(self) -> bool:
        """Whether it is being measured."""
        return self.job["state"] in GOING


def body(row: Row, prompts: int = PROMPTS) -> dict[str, Any]:
    """The order that measures one way to draw.

    Args:
        row: the way.
        prompts: how many; an eighth of them, sixteen at most, are drawn with four seeds.
    """
    return {
        "kind": "evaluate", "models": [row.model], "student": row.student, "prompts": [SET], "n": prompts,
        "num_inference_steps": row.steps, "diversity": min(16, prompts // 8),
    }  # fmt: skip


async def found(api: Api, rows: Sequence[Row]) -> list[Evaluated]:
    """What was measured of some ways to draw, or is being measured, in their order.

    Raises:
        ApiError: the server does not answer.
    """
    models = {row.model for row in rows}
    jobs = (await api.get("/api/v1/jobs", kind="evaluate", limit=_JOBS))["jobs"]
    # The title of an evaluation is the names of its models: orders of others need not be asked for.
    mine = [job for job in jobs if job["title"] in models][:_ORDERS]
    orders = [(job, (await api.get(f"/api/v1/jobs/{job['id']}/order"))["order"]) for job in mine]
    made = []
    for row in rows:
        of_row = [job for job, order in orders if _is_of(order, row)]
        if of_row:
            made.append(Evaluated(row, of_row[0], next(filter(None, map(_report, of_row)), None)))
    return made


async def looked(api: Api, evaluated: Sequence[Evaluated]) -> list[Evaluated] | None:
    """What becomes of those that are being measured; None when one of them has ended, or nothing is.

    Args:
        api: of the visitor.
        evaluated: what `found` found.

    Raises:
        ApiError: the server does not answer.
    """
    now = []
    for one in evaluated:
        job = await api.get(f"/api/v1/jobs/{one.job['id']}") if one.going else one.job
        now.append(replace(one, job=job))
    ended = [before for before, after in zip(evaluated, now, strict=True) if before.going and not after.going]
    return None if ended or not any(one.going for one in now) else now


def table(words: Words, evaluated: Sequence[Evaluated]) -> str:
    """HTML of the figures, a column for each way that was measured; the empty text where none was."""
    done = [(one.row, report) for one in evaluated if (report := one.report) is not None]
    if not done:
        return ""
    first = _figures(done[0][1])
    heads = [words("distil.figure"), *(row.called(words) for row, _ in done), words("distil.real")]
    lines = []
    for name in FIGURES:
        values = [_figures(report).get(name) for _, report in done]
        if not any(values):
            continue
        real = (first.get(name) or {}).get("real")
        cells = [
            *("—" if value is None else _shown(value) for value in values),
            "—" if real is None else _plain(real, first[name].get("unit") or ""),
        ]
        line = "".join(f"<td>{cell}</td>" for cell in cells)
        said = text(words(f"distil.figure_{name}"))
        lines.append(f'<tr data-figure="{name}"><th scope="row">{said}</th>{line}</tr>')
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heads)
    counts = sorted({one["prompts"] for _, report in done for one in report["sets"] if one["name"] == SET})
    note = words("distil.evaluated_info", n=", ".join(map(str, counts)))
    return (
        f"<h4>{text(words('distil.evaluated'))}</h4><div class='wide'><table class='card figures'>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
        f"<p><small>{text(note)}</small></p>"
    )


def told(words: Words, evaluated: Sequence[Evaluated]) -> str:
    """HTML of what is being measured, waits, or came to nothing."""
    return "".join(
        f"<div data-state='{text(one.job['state'])}'><b>{text(one.row.called(words))}</b>{line}</div>"
        for one in evaluated
        if (line := working.line(one.job, words))
    )


def _is_of(order: Mapping[str, Any], row: Row) -> bool:
    asked = (order["models"], order["student"], order["num_inference_steps"])
    return asked == ([row.model], row.student, row.steps) and SET in order["prompts"]


def _report(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of a job that is done; None for one that is not, and for what is none that can be read here."""
    reports = (job.get("result") or {}).get("reports") or []
    if job["state"] != "done" or len(reports) != 1:
        return None
    report = reports[0]
    return report if isinstance(report, Mapping) and isinstance(report.get("sets"), list) else None


def _figures(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {figure["name"]: figure for one in report["sets"] for figure in one["figures"]}


def _shown(figure: Mapping[str, Any]) -> str:
    """HTML of a value with its interval."""
    unit = figure.get("unit") or ""
    said, low, high = _plain(figure["value"], unit), figure.get("low"), figure.get("high")
    if low is None or high is None:
        return said
    return f"{said} <small>[{_plain(low, unit)}, {_plain(high, unit)}]</small>"


def _plain(value: float, unit: str) -> str:
    """HTML of a number."""
    return text(f"{100 * value:.1f}%" if unit == "%" else f"{value:.4f}")
