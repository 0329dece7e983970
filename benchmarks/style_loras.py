"""The style adapters of emoji-128 measured: style and concept accuracy by strength, beside captions alone.

Objects that no adapter was trained on are drawn in every style with the same prompts and seeds: at each
strength of the style's adapter, and without it by every caption that `recipes/emoji-128/styles.yaml` has
for the style. The best of these captions on these very pictures counts as what captions alone can do, which
flatters captions. The style judge is fitted on the training sets and first tried on styled drawings of the
same held-out objects; their row, "drawings", is the most that a model can reach. Concepts are judged by the
evaluator, which has never seen the styles.

    fewstep data styles && fewstep data styles --held-out
    python benchmarks/style_loras.py FOLDER_OF_ADAPTERS [--model weights/emoji-128] [--seeds 2]

An adapter's file is named after its style: gold.safetensors, pixel-art.safetensors. Writes table.md,
table.json and grid.png to --out. What is drawn is kept in --pictures, so a broken run goes on.
`--judge-only` stops after the judge's own accuracy, writes sets.png, and needs no adapters.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _running as running
import numpy as np
from PIL import Image

from fewstep.checkpoint import atomic
from fewstep.cli.evaluate import stages
from fewstep.data import split
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.captions import caption, object_text, with_article
from fewstep.data.compositions import compose
from fewstep.data.emoji import open_drawings
from fewstep.data.preparation import load_selection
from fewstep.data.style_sets import OBJECT, Styled, StyleSets, load_sets
from fewstep.engine.adapters import Catalogue
from fewstep.engine.engine import Engine
from fewstep.errors import DataError, UsageError
from fewstep.evaluation import accuracy, plots, stylejudge
from fewstep.evaluation.drawing import Job, Sampling, draw
from fewstep.evaluation.setfigures import share_interval
from fewstep.models.features import LoadedEvaluator, default_evaluator_folder, load_evaluator

ROOT = Path(__file__).resolve().parents[1]
STRENGTHS = (0.0, 0.5, 1.0)
BASE_DRAWINGS = 240
LEAST = 0.95  # what the judge must reach on styled drawings before it is used
SHOWN, CELL, GAP, COLOURS = 12, 98, 2, 256  # of the sheet of the sets
DRAWINGS, CAPTIONS = "drawings", "captions alone"


@dataclass(frozen=True)
class Row:
    """Figures of one style drawn in one way; each share with its interval, (value, low, high)."""

    style: str
    way: str
    prompt: str
    n: int
    style_right: tuple[float, float, float]
    concept_first: tuple[float, float, float]
    concept_in_five: tuple[float, float, float]


@dataclass(frozen=True)
class Judges:
    """Who says which style a picture has, and who says what it shows."""

    style: stylejudge.StyleJudge
    concept: LoadedEvaluator


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapters", type=Path, nargs="?", help="folder of adapters, STYLE.safetensors each")
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "emoji-128")
    parser.add_argument("--engine", default="auto", help="torch for a pipeline folder")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--strengths", type=float, nargs="+", default=list(STRENGTHS))
    parser.add_argument("--style", action="append", help="only this style; may be repeated")
    parser.add_argument("--objects", type=int, default=None, help="the first so many held-out objects")
    parser.add_argument("--seeds", type=int, default=2, help="pictures of every prompt")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--steps", type=int, default=None, help="default: the model's own")
    parser.add_argument("--student", default="none", help="who draws; default the model itself")
    parser.add_argument("--sets", type=Path, default=ROOT / ".cache" / "styles")
    parser.add_argument("--held-out", type=Path, default=ROOT / ".cache" / "styles-held-out")
    parser.add_argument("--drawings", type=Path, default=ROOT / ".cache" / "emoji-128" / "drawings")
    parser.add_argument("--pictures", type=Path, default=ROOT / "runs" / "styles" / "pictures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "styles")
    parser.add_argument("--show", default="red apple", help="object of the grid")
    parser.add_argument("--judge-only", action="store_true")
    return parser.parse_args()


def file_stem(style: str) -> str:
    return style.replace(" ", "-")


def stem_of(label: str) -> str:
    """The file stem of an object's picture, as `fewstep data styles` names it."""
    return Styled("", label, "", (0, 0, 0), "").stem


def pictures_of(folder: Path, style: str) -> dict[str, np.ndarray]:
    """Pictures that `fewstep data styles` wrote, by file stem."""
    files = sorted((folder / file_stem(style)).glob("*.png"))
    if not files:
        raise DataError(f"{folder / file_stem(style)}: no pictures; run 'fewstep data styles' (--held-out)")
    found = {}
    for file in files:
        with Image.open(file, formats=("PNG",)) as image:
            found[file.stem] = np.asarray(image.convert("RGB"), np.uint8)
    return found


def base_pictures(folder: Path, labels: set[str] | None, without: set[str], seed: int) -> np.ndarray:
    """Drawings as the model was trained on, on backgrounds that belong to its training part."""
    drawings, selection, colours = open_drawings(folder), load_selection(), load_backgrounds()
    rng = np.random.Generator(np.random.Philox(seed))
    wanted = [
        (number, name)
        for number, item in enumerate(drawings.items)
        if item.style in selection.styles and item.group in selection.groups and item.label not in without
        if labels is None or item.label in labels
        for name in colours
        if split.part(item.label, item.style, name) == "train"
    ]
    chosen = [wanted[i] for i in rng.permutation(len(wanted))[:BASE_DRAWINGS]]
    rgba = drawings.rgba[[number for number, _ in chosen]]
    laid = compose(rgba, [colours[name] for _, name in chosen])
    return np.rint((laid.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)


def show_sets(arguments: argparse.Namespace, sets: StyleSets) -> None:
    """Write sets.png: a row for each style, a column for each of the first objects, with few colours."""
    rows = []
    for style in sets.styles:
        found = pictures_of(arguments.sets, style)
        rows.append([found[stem_of(label)] for label in sets.objects[:SHOWN] if stem_of(label) in found])
    page = np.full((len(rows) * CELL - GAP, max(map(len, rows)) * CELL - GAP, 3), 255, np.uint8)
    for down, row in enumerate(rows):
        for across, picture in enumerate(row):
            small = Image.fromarray(picture).resize((CELL - GAP,) * 2, Image.Resampling.LANCZOS)
            top, left = down * CELL, across * CELL
            page[top : top + CELL - GAP, left : left + CELL - GAP] = np.asarray(small)
    write_small(Image.fromarray(page), arguments.out / "sets.png")


def write_small(image: Image.Image, path: Path) -> None:
    """Write a PNG with few colours, which makes it a third as large."""
    buffer = io.BytesIO()
    few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(buffer, "PNG", optimize=True)
    atomic.write_bytes(path, buffer.getvalue())


def save_grid(rows: list[list[plots.Tile | None]], path: Path, head: str) -> None:
    """Write a sheet with few colours."""
    plots.save_sheet(rows, path, heads=[head])
    with Image.open(path, formats=("PNG",)) as image:
        write_small(image, path)


def fitted(arguments: argparse.Namespace, sets: StyleSets) -> stylejudge.StyleJudge:
    """Fit the judge and try it on drawings of objects that it has not seen."""
    unseen = set(sets.held_out)
    shown = {stylejudge.BASE: base_pictures(arguments.drawings, None, unseen, 0)}
    tried = {stylejudge.BASE: base_pictures(arguments.drawings, unseen, set(), 1)}
    for style in sets.styles:
        shown[style] = np.stack(list(pictures_of(arguments.sets, style).values()))
        tried[style] = np.stack(list(pictures_of(arguments.held_out, style).values()))
    judge = stylejudge.fit(shown)
    counts = stylejudge.confusion(judge, tried)
    per_style = np.diag(counts) / counts.sum(1)
    print("the judge on drawings of held-out objects (rows: what they are, columns: what it says)")
    print(stylejudge.counted(judge.styles, counts))
    print(f"right: {np.trace(counts)} of {counts.sum()}; mean over styles {100 * per_style.mean():.1f}%")
    if per_style.mean() < LEAST:
        raise DataError(f"style judge: right in {100 * per_style.mean():.1f}% only; its figures mean nothing")
    return judge


def measured(
    style: str, way: str, prompt: str, labels: list[str], pictures: np.ndarray, judges: Judges
) -> Row:
    wanted = np.array([judges.concept.labels.index(label) for label in labels], np.int64)
    place = accuracy.ranks(judges.concept.run(pictures).concept_logits, wanted)
    groups = wanted if len(set(labels)) < len(labels) else None

    def share(hits: np.ndarray) -> tuple[float, float, float]:
        found = share_interval(np.asarray(hits, np.float64), groups=groups)
        return (found.value, found.low, found.high)

    hits = stylejudge.right(judges.style, style, pictures)
    return Row(style, way, prompt, len(labels), share(hits), share(place == 1), share(place <= 5))


def prompts_of(sets: StyleSets, style: str, label: str, strengths: list[float]) -> dict[str, str]:
    """Every way to ask for the style: with the adapter by strength, and by captions alone."""
    plain = caption(label, style=style)
    said = with_article(object_text(label))
    ways = {f"caption {OBJECT}, {style} style": plain}
    ways |= {f"caption {text}": text.replace(OBJECT, said) for text in sets.styles[style].captions}
    for strength in strengths:
        tag = f" <lora:{file_stem(style)}:{strength:g}>" if strength else ""
        ways[f"strength {strength:g}"] = plain + tag
    return ways


def run(arguments: argparse.Namespace) -> None:
    sets = load_sets()
    judge = fitted(arguments, sets)
    if arguments.judge_only:
        show_sets(arguments, sets)
        return
    if arguments.adapters is None or not arguments.adapters.is_dir():
        raise UsageError("adapters: give the folder of STYLE.safetensors files, or --judge-only")
    styles = [s for s in sets.styles if not arguments.style or s in arguments.style]
    missing = [s for s in styles if not (arguments.adapters / f"{file_stem(s)}.safetensors").is_file()]
    if missing or not styles:
        raise UsageError(f"{arguments.adapters}: no adapter of {', '.join(missing) or arguments.style}")
    labels = list(sets.held_out)[: arguments.objects]
    if arguments.show not in labels or arguments.seeds < 1:
        raise UsageError(f"--show is one of {', '.join(labels)}; --seeds is 1 or more")
    engine = Engine(
        arguments.model,
        arguments.engine,
        threads=arguments.threads,
        catalogue=Catalogue([arguments.adapters]),
    )
    sampling = Sampling(num_inference_steps=arguments.steps, student=arguments.student)
    judges = Judges(judge, load_evaluator(default_evaluator_folder()))
    rows: list[Row] = []
    grid: list[list[plots.Tile | None]] = []
    with stages(quiet=False) as report:
        for style in styles:
            found, shown = of_style(style, labels, sets, judges, engine, sampling, arguments, report)
            rows += found
            grid.append(shown)
    weights = engine.info.hash
    engine.close()
    command = running.command()
    text = table(rows, command)
    atomic.write_text(arguments.out / "table.md", text)
    content = {"command": command, "model": weights, "rows": [asdict(row) for row in rows]}
    atomic.write_text(arguments.out / "table.json", json.dumps(content, indent=1) + "\n")
    head = (
        f"{with_article(object_text(arguments.show))} in {len(styles)} styles, all with seed {arguments.seed}"
    )
    save_grid(grid, arguments.out / "grid.png", head)
    print(text)


def of_style(
    style: str,
    labels: list[str],
    sets: StyleSets,
    judges: Judges,
    engine: Engine,
    sampling: Sampling,
    arguments: argparse.Namespace,
    report: Any,
) -> tuple[list[Row], list[plots.Tile | None]]:
    """Draw and measure one style; its rows, and its line of the grid."""
    each = range(arguments.seed, arguments.seed + arguments.seeds)
    asked = [label for label in labels for _ in each]
    at = asked.index(arguments.show)
    rows: dict[str, Row] = {}
    shown: dict[str, np.ndarray] = {}
    likely: dict[str, float] = {}
    for way in prompts_of(sets, style, labels[0], arguments.strengths):
        prompts = {label: prompts_of(sets, style, label, arguments.strengths)[way] for label in labels}
        jobs = [Job(prompts[label], seed) for label in labels for seed in each]

        def told(done: int, total: int, way: str = way) -> None:
            report(f"{style}, {way}"[:60], done, total)

        drawn = np.stack(list(draw(engine, jobs, sampling, folder=arguments.pictures, on_image=told)))
        rows[way] = measured(style, way, prompts[labels[0]], asked, drawn, judges)
        likely[way] = float(judges.style.probabilities(drawn)[:, judges.style.styles.index(style)].mean())
        shown[way] = drawn[at]
    captions = [way for way in rows if way.startswith("caption ")]
    best = max(captions, key=lambda way: (rows[way].style_right[0], likely[way]))
    kept = [row for way, row in rows.items() if way not in captions]
    alone = rows[best]
    kept.append(Row(**{**asdict(alone), "way": CAPTIONS, "prompt": best.removeprefix("caption ")}))
    real = pictures_of(arguments.held_out, style)
    stems = {stem_of(label): label for label in labels}
    there = [stem for stem in real if stem in stems]
    styled = np.stack([real[stem] for stem in there])
    kept.append(measured(style, DRAWINGS, "", [stems[stem] for stem in there], styled, judges))
    line: list[plots.Tile | None] = [
        plots.Tile(shown[way], f"{style}, {way}") for way in rows if way not in captions
    ]
    said = best.removeprefix("caption ").replace(OBJECT, with_article(object_text(arguments.show)))
    return kept, [*line, None, plots.Tile(shown[best], f"captions alone: {said}")]


def table(rows: list[Row], command: str) -> str:
    def percent(share: tuple[float, float, float]) -> str:
        return f"{100 * share[0]:.0f}% ({100 * share[1]:.0f} to {100 * share[2]:.0f})"

    lines = [
        "# Style adapters of emoji-128",
        "",
        "Objects that no adapter was trained on. Style right: by the judge `fewstep.evaluation.stylejudge`;",
        "concept: by the evaluator, which has not seen the styles. In brackets 95% bootstrap intervals over",
        'objects. "drawings" are styled drawings of the same objects, the most that can be reached;',
        '"captions alone" is the caption of several that does best on these pictures, without an adapter.',
        "",
        "| style | drawn by | pictures | style right | concept first | concept in first five |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.style} | {row.way}{': ' + row.prompt if row.way == CAPTIONS else ''} | {row.n} | "
        f"{percent(row.style_right)} | {percent(row.concept_first)} | {percent(row.concept_in_five)} |"
        for row in rows
    ]
    return "\n".join([*lines, "", f"`{command}`", ""])


if __name__ == "__main__":
    running.guarded(run, parsed())
