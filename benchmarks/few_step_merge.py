"""What `fewstep merge --mode make-few-step` leaves of a fine-tune of emoji-128.

A fine-tune of all weights on one style is made few-step by the difference between a student and their
common base, M times. Held-out objects are drawn in the style by the fine-tune with all its steps and
guidance, by the fine-tune in the student's steps without a merge, by each merge, and by the student of the
base, which has not learnt the style. Judges are those of `style_loras.py`.

    fewstep train dreambooth SETS/gold --model weights/emoji-128 --images 2400 --out FINETUNE
    python benchmarks/few_step_merge.py FINETUNE --style gold

Writes few-step-merge.md, .json and .png to --out; merges are made in --work.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _running as running
from _styles import (
    ROOT,
    Hits,
    Way,
    add_arguments,
    drawn,
    judged,
    of_drawings,
    open_judges,
    percent,
)
from style_loras import save_grid

from fewstep.checkpoint import atomic
from fewstep.cli import main as cli
from fewstep.cli.evaluate import stages
from fewstep.data.style_sets import load_sets
from fewstep.engine.engine import Engine
from fewstep.errors import UsageError
from fewstep.evaluation import plots

NAME = "few-step-merge"
DRAWINGS = "styled drawings of the same objects"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("finetune", type=Path, nargs="?", help="pipeline folder")
    parser.add_argument("--style", default="gold", help="what it was trained on")
    parser.add_argument("--student", default="lcm", help="of the folder of --model")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5, 1.0, 1.5], help="values of M")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / NAME)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    add_arguments(parser, NAME)
    return parser.parse_args()


def merged(arguments: argparse.Namespace, ratio: float) -> Path:
    out: Path = arguments.work / f"m{ratio:g}"
    models = [arguments.finetune, arguments.model / "students" / arguments.student, arguments.model]
    given = ["merge", *map(str, models), "--mode", "make-few-step", "-M", f"{ratio:g}", "--out", str(out)]
    arguments.work.mkdir(parents=True, exist_ok=True)
    if code := cli.main([*given, "--replace", "--quiet"]):
        raise UsageError(f"the merge with M {ratio:g} ended with exit code {code}")
    return out


def run(arguments: argparse.Namespace) -> None:
    if arguments.finetune is None:
        print("give the pipeline folder of a fine-tune of weights/emoji-128 on one style")
        return
    sets = load_sets()
    labels, style = list(sets.held_out)[: arguments.objects], arguments.style
    if style not in sets.styles or arguments.show not in labels or arguments.seeds < 1:
        raise UsageError(f"--style is one of {', '.join(sets.styles)}; --show is one of {', '.join(labels)}")
    judges = open_judges(arguments, sets)

    def opened(folder: Path) -> Engine:
        return Engine(folder, arguments.engine, threads=arguments.threads)

    base, tuned = opened(arguments.model), opened(arguments.finetune)
    steps = base.info.student(arguments.student).contract.num_inference_steps
    ways = {
        f"fine-tune, {tuned.info.contract.num_inference_steps} guided steps": Way(engine=tuned),
        f"fine-tune, {steps} guided steps": Way(engine=tuned, steps=steps),
        f"fine-tune, {steps} steps without guidance": Way(engine=tuned, steps=steps, guidance=1.0),
    }
    for ratio in arguments.ratios:
        ways[f"merged, M {ratio:g}, {steps} steps"] = Way(engine=opened(merged(arguments, ratio)))
    ways[f"student of the base, {steps} steps"] = Way(engine=base, student=arguments.student)
    rows: dict[str, Hits] = {}
    tiles: list[plots.Tile | None] = []
    at = labels.index(arguments.show) * arguments.seeds
    with stages(quiet=False) as report:
        for name, way in ways.items():
            pictures = drawn(way, labels, style, arguments, title=name, report=report)
            rows[name] = judged(pictures, labels, style, judges, arguments)
            tiles.append(plots.Tile(pictures[at], name))
    rows[DRAWINGS], _ = of_drawings(labels, style, judges, arguments)
    weights = {name: way.weights() for name, way in ways.items()}
    for engine in {id(way.engine): way.engine for way in ways.values()}.values():
        engine.close()
    write(arguments, rows, [tiles], weights)


def write(
    arguments: argparse.Namespace,
    rows: dict[str, Hits],
    grid: list[list[plots.Tile | None]],
    weights: dict[str, str],
) -> None:
    command = running.command()
    first = next(iter(rows.values()))
    lines = [
        "# A fine-tune made few-step by a merge",
        "",
        f"All weights of emoji-128 were trained on 40 pictures in {arguments.style} style; then",
        f"fine-tune + M (student `{arguments.student}` - base), `fewstep merge --mode make-few-step`.",
        f"Objects that were not trained in the style, captions `<object>, {arguments.style} style`. Style",
        "right: by the judge `fewstep.evaluation.stylejudge`; concept: by the evaluator, which has not seen",
        "the style. In brackets 95% bootstrap intervals over objects; the last two columns are shares of the",
        "first row.",
        "",
        "| drawn by | pictures | style right | concept first | style kept | concept kept |",
        "|---|---|---|---|---|---|",
    ]
    content = []
    for name, hits in rows.items():
        shares = {what: hits.of(what) for what in ("style", "concept")}
        kept = {
            what: None if hits is first or len(hits.labels) != len(first.labels) else hits.kept(what, first)
            for what in ("style", "concept")
        }
        said = " | ".join(map(percent, [*shares.values(), *kept.values()]))
        lines.append(f"| {name} | {len(hits.labels)} | {said} |")
        content.append(
            {
                "drawn_by": name,
                "weights": weights.get(name),
                "n": len(hits.labels),
                **{what: tuple(share) for what, share in shares.items()},
                **{f"{what}_kept": None if k is None else tuple(k) for what, k in kept.items()},
            }
        )
    lines += ["", f"![{arguments.show} in the same ways]({NAME}.png)", ""]
    lines += [line for note in arguments.note for line in (note, "")]
    text = "\n".join([*lines, f"`{command}`", ""])
    atomic.write_text(arguments.out / f"{NAME}.md", text)
    atomic.write_text(
        arguments.out / f"{NAME}.json", json.dumps({"command": command, "rows": content}, indent=1) + "\n"
    )
    head = f"{arguments.show}, {arguments.style} style, seed {arguments.seed}"
    save_grid(grid, arguments.out / f"{NAME}.png", head)
    print(text)


if __name__ == "__main__":
    running.guarded(run, parsed())
