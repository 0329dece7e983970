"""A style for a student: an adapter of the base, one trained on the student, or the student trained on?

Held-out objects are drawn in the style by the teacher with the adapter of the base, by the student with that
adapter, by the student with the adapter that was trained on it, by students that were trained on from it, and
by the student without any. Judges and pictures are those of `style_loras.py`.

    fewstep train recipes/adapters/lora-on-a-student.yaml --set data.path=SETS/gold --set name=gold \
        --set stop.images=3000 --run RUN
    python benchmarks/lora_on_student.py FOLDER_WITH_ADAPTERS_OF_THE_STUDENT [--student four]

    fewstep distill emoji-128/continue --run CONTINUED/gold
    python benchmarks/lora_on_student.py FOLDER --student one --continued "a discriminator=CONTINUED" \
        --name continue-student

Writes NAME.md, .json and .png to --out.
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
    adapter_of,
    add_arguments,
    drawn,
    judged,
    of_drawings,
    open_judges,
    percent,
)
from style_loras import save_grid

from fewstep.checkpoint import atomic
from fewstep.cli.evaluate import stages
from fewstep.data.style_sets import load_sets
from fewstep.engine.engine import Engine
from fewstep.errors import UsageError
from fewstep.evaluation import plots
from fewstep.evaluation.trained import STUDENT

NAME = "lora-on-student"
DRAWINGS = "styled drawings of the same objects"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapters", type=Path, nargs="?", help="adapters trained on the student, by style")
    parser.add_argument("--of-base", type=Path, default=ROOT / "weights" / "emoji-128-styles")
    parser.add_argument("--student", default="lcm")
    parser.add_argument(
        "--continued", action="append", default=[], metavar="HOW=FOLDER",
        help="runs of fewstep distill that began at the student, FOLDER/STYLE of some styles",
    )  # fmt: skip
    parser.add_argument("--name", default=NAME, help="of the files")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    add_arguments(parser, NAME)
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    if arguments.adapters is None:
        print("give the folder of adapters that were trained on the student: STYLE.safetensors each")
        return
    sets = load_sets()
    styles = [style for style in sets.styles if adapter_of(arguments.adapters, style).is_file()]
    labels = list(sets.held_out)[: arguments.objects]
    if not styles or arguments.show not in labels or arguments.seeds < 1:
        raise UsageError(f"{arguments.adapters}: no STYLE.safetensors, or --show is none of {labels}")
    continued = dict(text.split("=", 1) for text in arguments.continued)
    judges = open_judges(arguments, sets)
    engine = Engine(arguments.model, arguments.engine, threads=arguments.threads)
    steps = engine.info.student(arguments.student).contract.num_inference_steps
    rows: dict[str, dict[str, Hits]] = {}
    grid: list[list[plots.Tile | None]] = []
    at = labels.index(arguments.show) * arguments.seeds
    with stages(quiet=False) as report:
        for style in styles:
            base, own = (adapter_of(folder, style) for folder in (arguments.of_base, arguments.adapters))
            few = f"student {arguments.student}, {steps} step{'s'[: steps > 1]}"
            ways = {
                "teacher, the base's adapter": Way(engine=engine, adapter=base),
                f"{few}, the base's adapter": Way(engine=engine, student=arguments.student, adapter=base),
                f"{few}, an adapter trained on it": Way(
                    engine=engine, student=arguments.student, adapter=own
                ),
                f"{few}, no adapter": Way(engine=engine, student=arguments.student),
            }
            own_engines = []
            for how, folder in continued.items():
                if not (Path(folder) / style / STUDENT).is_dir():
                    continue
                other = Engine(Path(folder) / style / STUDENT, "torch", threads=arguments.threads)
                own_engines.append(other)
                ways[f"{few}, trained on by {how}"] = Way(engine=other, steps=steps)
            found: dict[str, Hits] = {}
            tiles: list[plots.Tile | None] = []
            for name, way in ways.items():
                pictures = drawn(way, labels, style, arguments, title=f"{style}: {name}", report=report)
                found[name] = judged(pictures, labels, style, judges, arguments)
                tiles.append(plots.Tile(pictures[at], f"{style}: {name}"))
            found[DRAWINGS], _ = of_drawings(labels, style, judges, arguments)
            for other in own_engines:
                other.close()
            rows[style] = found
            grid.append(tiles)
    weights = {"model": engine.info.hash, "student": engine.info.student(arguments.student).hash}
    engine.close()
    write(arguments, rows, grid, weights)


def write(
    arguments: argparse.Namespace,
    rows: dict[str, dict[str, Hits]],
    grid: list[list[plots.Tile | None]],
    weights: dict[str, str],
) -> None:
    command = running.command()
    lines = [
        "# A style for a student: an adapter of the base, one of its own, or trained on",
        "",
        "Objects that no adapter was trained on; captions `<object>, <style> style`. Style right: by the",
        "judge `fewstep.evaluation.stylejudge`; concept: by the evaluator, which has not seen the styles. In",
        "brackets 95% bootstrap intervals over objects.",
        "",
        "| style | drawn by | pictures | style right | concept first |",
        "|---|---|---|---|---|",
    ]
    content = []
    for style, found in rows.items():
        for name, hits in found.items():
            shares = {what: hits.of(what) for what in ("style", "concept")}
            said = " | ".join(map(percent, shares.values()))
            lines.append(f"| {style} | {name} | {len(hits.labels)} | {said} |")
            figures = {what: tuple(share) for what, share in shares.items()}
            content.append({"style": style, "drawn_by": name, "n": len(hits.labels), **figures})
    lines += ["", f"![{arguments.show} in the same ways]({arguments.name}.png)", ""]
    lines += [line for note in arguments.note for line in (note, "")]
    text = "\n".join([*lines, f"`{command}`", ""])
    out = arguments.out
    atomic.write_text(out / f"{arguments.name}.md", text)
    atomic.write_text(
        out / f"{arguments.name}.json",
        json.dumps({"command": command, **weights, "rows": content}, indent=1) + "\n",
    )
    save_grid(grid, out / f"{arguments.name}.png", f"{arguments.show}, seed {arguments.seed}")
    print(text)


if __name__ == "__main__":
    running.guarded(run, parsed())
