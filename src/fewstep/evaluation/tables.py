"""Reports as text: a table for the terminal and Markdown for documents, yardsticks beside the figures."""

from __future__ import annotations

import io
from collections.abc import Sequence

from fewstep.evaluation.report import Comparison, Difference, Figure, Report, SetReport, shown

_HEADS = ("figure", "model [95% interval]", "real drawings", "chance", "n")


def table(report: Report, *, width: int = 110) -> str:
    """Return one report as a table of plain text, ``width`` characters wide."""
    lines = [f"model: {report.model.line()}"]
    for part in report.sets:
        lines += ["", *_set_table(part, width)]
    if report.autoencoder:
        lines += ["", *_grid(("figure", "value [95% interval]", "n"), _autoencoder_rows(report), width)]
    return "\n".join([*lines, "", *report.evaluator.lines()])


def markdown(report: Report) -> str:
    """Return one report as a page of Markdown."""
    lines = [f"# Evaluation of {report.model.name}", "", report.model.line() + "."]
    for part in report.sets:
        lines += ["", f"## {part.name}: {part.images} images of {part.prompts} prompts", ""]
        lines += _pipes(_HEADS, [_cells(figure) for figure in part.figures])
        lines += ["", *part.notes] if part.notes else []
    if report.autoencoder:
        lines += ["", f"## Autoencoder {(report.autoencoder_hash or '')[:10]}", ""]
        lines += _pipes(("figure", "value [95% interval]", "n"), _autoencoder_rows(report))
    lines += ["", "## Yardstick", "", *(f"- {line}" for line in report.evaluator.lines())]
    return "\n".join(lines) + "\n"


def comparison_table(comparison: Comparison, *, width: int = 110) -> str:
    """Return several models side by side, then the paired differences and the yardstick."""
    reports = comparison.reports
    lines = [f"{_letter(i)}: {report.model.line()}" for i, report in enumerate(reports)]
    heads = ("figure", *(f"{_letter(i)}" for i in range(len(reports))), "real drawings", "chance", "n")
    for name in _common_sets(reports):
        lines += ["", f"{name}:", *_grid(heads, _side_by_side(reports, name), width)]
    if all(report.autoencoder for report in reports):
        lines += ["", *_grid(("autoencoder", *heads[1 : 1 + len(reports)]), _autoencoders(reports), width)]
    if comparison.differences:
        rows = [_difference_cells(d, reports) for d in comparison.differences]
        lines += ["", *_grid(("set", "figure", "models", "difference [95% interval]", "n"), rows, width)]
    return "\n".join([*lines, "", *reports[0].evaluator.lines()])


def comparison_markdown(comparison: Comparison) -> str:
    """Return the same as a page of Markdown."""
    reports = comparison.reports
    lines = ["# Comparison", "", *(f"- {_letter(i)}: {r.model.line()}" for i, r in enumerate(reports))]
    heads = ("figure", *(f"{_letter(i)}" for i in range(len(reports))), "real drawings", "chance", "n")
    for name in _common_sets(reports):
        lines += ["", f"## {name}", "", *_pipes(heads, _side_by_side(reports, name))]
    if all(report.autoencoder for report in reports):
        lines += ["", "## Autoencoder", ""]
        lines += _pipes(("figure", *heads[1 : 1 + len(reports)]), _autoencoders(reports))
    if comparison.differences:
        rows = [_difference_cells(d, reports) for d in comparison.differences]
        lines += ["", "## Paired differences", ""]
        lines += _pipes(("set", "figure", "models", "difference [95% interval]", "n"), rows)
    lines += ["", "## Yardstick", "", *(f"- {line}" for line in reports[0].evaluator.lines())]
    return "\n".join(lines) + "\n"


def _cells(figure: Figure) -> tuple[str, ...]:
    real = "" if figure.real is None else shown(figure, figure.real)
    chance = "" if figure.chance is None else shown(figure, figure.chance)
    return (_arrow(figure), shown(figure), real, chance, str(figure.n))


def _arrow(figure: Figure) -> str:
    return figure.text + {"higher": " ↑", "lower": " ↓"}.get(figure.better, "")


def _set_table(part: SetReport, width: int) -> list[str]:
    lines = [f"{part.name}: {part.images} images of {part.prompts} prompts"]
    lines += _grid(_HEADS, [_cells(figure) for figure in part.figures], width)
    return lines + [f"  note: {note}" for note in part.notes]


def _autoencoder_rows(report: Report) -> list[tuple[str, ...]]:
    return [(_arrow(figure), shown(figure), str(figure.n)) for figure in report.autoencoder]


def _common_sets(reports: Sequence[Report]) -> list[str]:
    names = [{part.name for part in report.sets} for report in reports]
    return [part.name for part in reports[0].sets if all(part.name in known for known in names)]


def _side_by_side(reports: Sequence[Report], name: str) -> list[tuple[str, ...]]:
    parts = [next(part for part in report.sets if part.name == name) for report in reports]
    rows = []
    for figure in parts[0].figures:
        same = [part.figure(figure.name) for part in parts]
        cells = _cells(figure)
        rows.append((cells[0], *("" if other is None else shown(other) for other in same), *cells[2:]))
    return rows


def _autoencoders(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    columns = [[shown(figure) for figure in report.autoencoder] for report in reports]
    names = [_arrow(figure) for figure in reports[0].autoencoder]
    return list(zip(names, *columns, strict=True))


def _difference_cells(difference: Difference, reports: Sequence[Report]) -> tuple[str, ...]:
    percent = all(
        figure.unit == "%"
        for report in reports
        for part in report.sets
        if part.name == difference.set and (figure := part.figure(difference.figure)) is not None
    )
    scale, unit = (100.0, " points") if percent else (1.0, "")
    value = f"{scale * difference.value:+.1f}" if percent else f"{difference.value:+.4f}"
    low, high = (
        f"{scale * end:+.1f}" if percent else f"{end:+.4f}" for end in (difference.low, difference.high)
    )
    pair = f"{difference.model} over {difference.over}"
    return (difference.set, difference.text, pair, f"{value} [{low}, {high}]{unit}", str(difference.n))


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns by rich, written to a string: the same text in a pipe as on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, head in enumerate(heads):
        made.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))  # Text: no markup out of names
    buffer = io.StringIO()
    Console(file=buffer, width=width, force_terminal=False, color_system=None).print(made)
    return [line.rstrip() for line in buffer.getvalue().rstrip().splitlines()]


def _pipes(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
