"""Writes what an evaluation found: JSON, Markdown, one line a picture, and the sheets to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from fewstep.checkpoint import atomic
from fewstep.errors import UsageError
from fewstep.evaluation import curves, judging, plots, tables
from fewstep.evaluation.evaluate import Evaluation, SetResult
from fewstep.evaluation.judging import Pictures
from fewstep.evaluation.reference import Reference
from fewstep.evaluation.report import Comparison, shown

MOST_ON_SHEET: Final = 100
_MOST_NEIGHBOURS: Final = 30
_MOST_COMPARED: Final = 48


def write(folder: Path, evaluation: Evaluation, reference: Reference) -> list[Path]:
    """Write one evaluation: report.json, report.md, images.jsonl, and per set contact, failures and nearest.

    Args:
        folder: made when it is missing; files of the same names are replaced.
        evaluation: of one model.
        reference: that it was measured against.

    Returns:
        The files, the report first.

    Raises:
        OutputError: they cannot be written.
    """
    report = evaluation.report
    files = [folder / "report.json", folder / "report.md", folder / "images.jsonl"]
    atomic.write_text(files[0], report.to_json())
    atomic.write_text(files[1], tables.markdown(report))
    rows = [row for part in evaluation.sets for row in rows_of(part, reference, report.model.seed)]
    atomic.write_text(files[2], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    for part in evaluation.sets:
        files += _sheets(folder, part, evaluation, reference)
    return files


def write_comparison(
    folder: Path, evaluations: Mapping[str, Evaluation], comparison: Comparison
) -> list[Path]:
    """Write several models side by side: compare.json, compare.md, per set a sheet and maybe a curve.

    Args:
        folder: made when it is missing.
        evaluations: name to evaluation, in the comparison's order.
        comparison: of them.

    Returns:
        The files.

    Raises:
        OutputError: they cannot be written.
    """
    files = [folder / "compare.json", folder / "compare.md"]
    atomic.write_text(files[0], comparison.to_json())
    atomic.write_text(files[1], tables.comparison_markdown(comparison))
    for index, part in enumerate(next(iter(evaluations.values())).sets):
        path = folder / f"compare-{part.name}.png"
        pictures: dict[str, Pictures] = {
            f"{chr(ord('A') + i)} {name}": evaluation.sets[index].pictures[:_MOST_COMPARED]
            for i, (name, evaluation) in enumerate(evaluations.items())
        }
        title = f"{part.name}: the same prompts and seeds, " + ", ".join(pictures)
        groups = max(1, 12 // len(pictures))
        plots.side_by_side(pictures, part.prompts[:_MOST_COMPARED], path, title=title, groups=groups)
        files.append(path)
        files += _curve(folder, part.name, comparison)
    return files


def rows_of(part: SetResult, reference: Reference, seed: int) -> list[dict[str, Any]]:
    """Return what is known of each picture of a set, JSON-able."""
    labels, verdicts = reference.evaluator.labels, part.verdicts
    rows = []
    for i, prompt in enumerate(part.prompts):
        near = reference.trained[int(part.neighbours.row[i, 0])]
        rows.append(
            {
                "set": part.name,
                "prompt": prompt.text,
                "seed": seed + i,
                "label": prompt.label,
                "style": prompt.style,
                "background": prompt.background,
                "part": prompt.part,
                "rank": _asked(int(verdicts.rank[i])),
                "answers": [labels[k] for k in verdicts.answers[i]],
                "style_right": _yes(int(verdicts.style[i])),
                "background_right": _yes(int(verdicts.background[i])),
                "nearest": near.captions[0],
                "nearest_distance": round(float(part.neighbours.distance[i, 0]), 4),
            }
        )
    return rows


def _sheets(folder: Path, part: SetResult, evaluation: Evaluation, reference: Reference) -> list[Path]:
    model, card = evaluation.report.model, evaluation.report.evaluator
    origin = f"{part.name}: {model.line()}"
    yardstick = f"evaluator {card.name} {card.hash[:10]}"
    files = [folder / f"{kind}-{part.name}.png" for kind in ("contact", "nearest", "failures")]
    plots.contact_sheet(part.pictures[:MOST_ON_SHEET], part.prompts[:MOST_ON_SHEET], files[0], title=origin)
    _nearest(part, reference, files[1], f"{origin}; {yardstick}")
    answers = [[reference.evaluator.labels[k] for k in row] for row in part.verdicts.answers]
    ranks = [int(rank) for rank in part.verdicts.rank]
    failed = plots.failures(
        part.pictures,
        _real(part, reference),
        part.prompts,
        ranks,
        answers,
        files[2],
        title=f"{origin}; worst ranks by {yardstick}, {len(reference.evaluator.labels)} concepts",
    )
    return files if failed else files[:2]


def _nearest(part: SetResult, reference: Reference, path: Path, title: str) -> None:
    """The pictures that lie nearest to a training drawing: where copies would be seen."""
    order = np.argsort(part.neighbours.distance[:, 0], kind="stable")[:_MOST_NEIGHBOURS]
    found = [reference.trained[int(part.neighbours.row[i, 0])] for i in order]
    plots.neighbours(
        part.pictures[order],
        _fitted(judging.composed(reference.drawings, found), part.pictures),
        [part.prompts[i] for i in order],
        [
            f"{part.neighbours.distance[i, 0]:.3f}: {near.label}, {near.style}, {near.background}"
            for i, near in zip(order, found, strict=True)
        ],
        path,
        title=f"{title}; the {len(order)} nearest to a training drawing",
    )


def _real(part: SetResult, reference: Reference) -> list[Any]:
    places, pictures = judging.real_pictures(
        part.prompts, reference.drawings, reference.backgrounds, reference.selection.styles
    )
    found: list[Any] = [None] * len(part.prompts)
    for place, picture in zip(places, _fitted(pictures, part.pictures), strict=True):
        found[int(place)] = picture
    return found


def _fitted(pictures: Pictures, like: Pictures) -> Pictures:
    """Bring real drawings to the size of drawn pictures, for a sheet."""
    if not len(pictures) or pictures.shape[1:] == like.shape[1:]:
        return pictures
    from PIL import Image

    size = (like.shape[2], like.shape[1])
    return np.stack([np.asarray(Image.fromarray(picture).resize(size)) for picture in pictures])


def _curve(folder: Path, name: str, comparison: Comparison) -> list[Path]:
    """A curve, where the models' cards name at least two different numbers of images."""
    series = {
        text: curves.points(comparison.reports, name, figure)
        for figure, text in (("top1", "concept first"), ("top5", "concept in first five"))
    }
    if min(len({images for images, _ in found}) for found in series.values()) < 2:
        return []
    card = comparison.reports[0].evaluator
    own = "; ".join(f"{figure.text} {shown(figure)}" for figure in card.figures[:2])
    path = folder / f"curve-{name}.png"
    foot = f"evaluator {card.name} {card.hash[:10]}; on real held-out drawings: {own}"
    curves.plot(series, path, title=f"{name}: accuracy by images seen", foot=foot)
    return [path]


def _asked(rank: int) -> int | None:
    return None if rank == judging.NOT_ASKED else rank


def _yes(value: int) -> bool | None:
    return None if value == judging.NOT_ASKED else value == 1


def folder_name(name: str, taken: Sequence[str]) -> str:
    """Return a folder name for a model that no other has.

    Raises:
        UsageError: nothing of the name can stand in a folder's.
    """
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.")
    if not plain:
        raise UsageError(f"model {name!r}: give it a name with letters or digits")
    number, found = 1, plain
    while found in taken:
        number += 1
        found = f"{plain}-{number}"
    return found
