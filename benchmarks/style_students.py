"""Style adapters on students: how much of teacher + the same adapter a student keeps.

Every adapter of a folder is put on the teacher, at its own steps and guidance, and on each student, at the
student's steps. Objects that no adapter was trained on are drawn from text at 1:1, 1:2 and 2:1, and from a
plain drawing of the object (image-to-image) at strengths 0.3, 0.5 and 0.7, all with the same captions and
seeds. Shares are of the teacher's accuracy at the same task. Judges are those of `style_loras.py`; they look
at squares, so tall and wide pictures are made smaller and set into a square of their background's colour.

    python benchmarks/style_students.py weights/emoji-128-styles --student four --student two
    python benchmarks/style_students.py weights/emoji-128-styles --student four --student lcm=runs/lcm/student

A student is a name in the folder of --model, or NAME=PIPELINE: a folder that has a student of that name, or
that is a student itself. Pictures are kept, so a broken run goes on, and a later run with more students draws
only theirs. Writes table.md, table.json and grid.png to --out.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _running as running
import numpy as np
from _styles import (
    ROOT,
    Hits,
    Pictures,
    Report,
    Way,
    adapter_of,
    add_arguments,
    drawn,
    joined,
    judged,
    of_drawings,
    open_judges,
    percent,
    squared,
)
from style_loras import save_grid

from fewstep.checkpoint import atomic
from fewstep.cli.evaluate import stages
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.compositions import compose
from fewstep.data.emoji import open_drawings
from fewstep.data.style_sets import StyleSets, load_sets
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine.engine import Engine
from fewstep.errors import DataError, UsageError
from fewstep.evaluation import plots

TEACHER = "teacher"
DRAWINGS = "styled drawings"
GROUND = "sky blue"
SHOWN = ("1:1", "image 0.5", "1:2", "2:1")
WHAT = ("style", "concept")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is drawn."""

    name: str
    size: tuple[int, int] | None = None
    strength: float | None = None


TASKS = (
    Task(name="1:1"),
    Task(name="1:2", size=(96, 192)),
    Task(name="2:1", size=(192, 96)),
    Task(name="image 0.3", strength=0.3),
    Task(name="image 0.5", strength=0.5),
    Task(name="image 0.7", strength=0.7),
)


@dataclass(frozen=True, kw_only=True)
class Painter:
    """Who draws: an engine, and which of its networks."""

    name: str
    engine: Engine
    student: str

    def way(self, task: Task, adapter: Path) -> Way:
        return Way(
            engine=self.engine, student=self.student, adapter=adapter, size=task.size, strength=task.strength
        )

    def steps(self, task: Task) -> int:
        """How many are run."""
        info = self.engine.info
        contract = info.contract if self.student == "none" else info.student(self.student).contract
        grid = contract.grid(contract.num_inference_steps, contract.solver)
        kept = (
            grid if task.strength is None else truncate_for_strength(grid, task.strength, at_least_one=True)
        )
        return len(kept) - 1


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapters", type=Path, nargs="?", help="folder of adapters, STYLE.safetensors each")
    parser.add_argument("--student", action="append", metavar="NAME[=PIPELINE]", help="may be repeated")
    parser.add_argument("--style", action="append", help="only this style; may be repeated")
    parser.add_argument("--start", default="noto", help="emoji set of the plain drawings")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "style-students")
    add_arguments(parser, "style-students")
    return parser.parse_args()


def painters(arguments: argparse.Namespace) -> list[Painter]:
    def opened(folder: Path) -> Engine:
        return Engine(folder, arguments.engine, threads=arguments.threads)

    base = opened(arguments.model)
    found = [Painter(name=TEACHER, engine=base, student="none")]
    for text in arguments.student or [student.name for student in base.info.students]:
        name, equals, place = text.partition("=")
        if name in {painter.name for painter in found}:
            raise UsageError(f"--student {name}: is there already; give every student a name of its own")
        engine = opened(Path(place).expanduser()) if equals else base
        inside = name in {student.name for student in engine.info.students}
        if not equals and not inside:
            raise UsageError(f"--student {name}: {arguments.model} has none of that name; give NAME=PIPELINE")
        found.append(Painter(name=name, engine=engine, student=name if inside else "none"))
    return found


def starts(arguments: argparse.Namespace, labels: list[str]) -> list[Pictures]:
    """Plain drawings of the objects, in one of the base's own styles."""
    drawings = open_drawings(arguments.drawings)
    where = {item.label: n for n, item in enumerate(drawings.items) if item.style == arguments.start}
    missing = [label for label in labels if label not in where]
    if missing:
        raise DataError(f"{arguments.start} has no drawing of {missing[0]}; give another --start")
    colour = load_backgrounds()[GROUND]
    laid = compose(drawings.rgba[[where[label] for label in labels]], [colour] * len(labels))
    return list(np.rint((laid.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8))


def run(arguments: argparse.Namespace) -> None:
    if arguments.adapters is None:
        print("give the folder of style adapters, such as weights/emoji-128-styles")
        return
    sets: StyleSets = load_sets()
    styles = [s for s in sets.styles if not arguments.style or s in arguments.style]
    missing = [s for s in styles if not adapter_of(arguments.adapters, s).is_file()]
    if missing or not styles:
        raise UsageError(f"{arguments.adapters}: no adapter of {', '.join(missing) or arguments.style}")
    labels = list(sets.held_out)[: arguments.objects]
    if arguments.show not in labels or arguments.seeds < 1:
        raise UsageError(f"--show is one of {', '.join(labels)}; --seeds is 1 or more")
    judges = open_judges(arguments, sets)
    who, plain = painters(arguments), starts(arguments, labels)
    at = labels.index(arguments.show)
    found: dict[tuple[str, str, str], Hits] = {}
    grid: list[list[plots.Tile | None]] = []
    with stages(quiet=False) as report:
        for style in styles:
            adapter = adapter_of(arguments.adapters, style)
            tiles: dict[str, list[plots.Tile | None]] = {}
            for task in TASKS:
                for painter in who:
                    pictures = of_task(painter, task, adapter, labels, style, plain, arguments, report)
                    found[painter.name, task.name, style] = judged(pictures, labels, style, judges, arguments)
                    text = f"{style}, {painter.name}, {task.name}"
                    tile = plots.Tile(squared(pictures[at * arguments.seeds]), text)
                    tiles.setdefault(task.name, []).append(tile)
            grid.append([tile for name in SHOWN for tile in (*tiles[name], None)][:-1])
    facts = {
        p.name: {"weights": p.way(TASKS[0], adapter).weights(), "steps": {t.name: p.steps(t) for t in TASKS}}
        for p in who
    }
    for engine in {id(painter.engine): painter.engine for painter in who}.values():
        engine.close()
    for style in styles:
        found[DRAWINGS, TASKS[0].name, style], _ = of_drawings(labels, style, judges, arguments)
    write(arguments, styles, found, facts)
    head = f"{arguments.show}, seed {arguments.seed}: {', '.join(facts)}; from text, from a drawing, 1:2, 2:1"
    save_grid(grid, arguments.out / "grid.png", head)


def of_task(
    painter: Painter,
    task: Task,
    adapter: Path,
    labels: list[str],
    style: str,
    plain: list[Pictures],
    arguments: argparse.Namespace,
    report: Report,
) -> Pictures:
    return drawn(
        painter.way(task, adapter),
        labels,
        style,
        arguments,
        starts=None if task.strength is None else plain,
        title=f"{style}, {task.name}, {painter.name}",
        report=report,
    )


def write(
    arguments: argparse.Namespace,
    styles: list[str],
    found: dict[tuple[str, str, str], Hits],
    facts: dict[str, Any],
) -> None:
    command = running.command()
    lines = [
        "# Style adapters on students",
        "",
        f"{len(styles)} style adapters of emoji-128, trained on the base, drawn at strength 1 by the teacher",
        "and by its students: objects that no adapter was trained on, the same captions",
        f'`<object>, <style> style`, the same seeds. "image" starts from a plain drawing ({arguments.start},',
        f"on {GROUND}), its strength beside it; fewer steps are then run. 1:2 is 96x192 pixels, 2:1 is",
        "192x96: for the judges such pictures were made smaller and set into a square of their background's",
        "colour, which blurs the cells of pixel art. Style right: by the judge",
        "`fewstep.evaluation.stylejudge`; concept: by the evaluator, which has not seen the styles. Kept: as",
        "a share of the teacher with the same adapter at the same task. In brackets 95% bootstrap intervals",
        "over objects; with so few objects they are somewhat too narrow.",
        "",
        "| task | drawn by | steps | pictures | style right | concept first | style kept | concept kept |",
        "|---|---|---|---|---|---|---|---|",
    ]
    most = joined([found[DRAWINGS, TASKS[0].name, style] for style in styles])
    said = " | ".join(percent(most.of(what)) for what in WHAT)
    lines.append(f"| {DRAWINGS}, the most there is | - | - | {len(most.labels)} | {said} | - | - |")
    content: list[dict[str, Any]] = [
        {"task": DRAWINGS, "n": len(most.labels), **{what: tuple(most.of(what)) for what in WHAT}}
    ]
    for task in TASKS:
        whole = {name: joined([found[name, task.name, style] for style in styles]) for name in facts}
        for name, hits in whole.items():
            shares = {what: hits.of(what) for what in WHAT}
            kept = {what: None if name == TEACHER else hits.kept(what, whole[TEACHER]) for what in WHAT}
            said = " | ".join(map(percent, [*shares.values(), *kept.values()]))
            steps = facts[name]["steps"][task.name]
            lines.append(f"| {task.name} | {name} | {steps} | {len(hits.labels)} | {said} |")
            content.append(
                {"task": task.name, "drawn_by": name, "steps": steps, "n": len(hits.labels)}
                | {what: tuple(share) for what, share in shares.items()}
                | {f"{what}_kept": None if k is None else tuple(k) for what, k in kept.items()}
            )
    lines += ["", "Style right, then concept first, of each style in pictures:", ""]
    names = [*facts, DRAWINGS]
    lines += ["| style | task |" + "".join(f" {name} |" for name in names), "|---|---|" + "---|" * len(names)]
    by_style = []
    for style in styles:
        for task in TASKS:
            cells = []
            for name in names:
                own = found.get((name, task.name, style))
                if own is None:
                    cells.append(" |")
                    continue
                right = {what: int(getattr(own, what).sum()) for what in WHAT}
                cells.append(f" {right['style']}, {right['concept']} of {len(own.labels)} |")
                by_style.append({"style": style, "task": task.name, "drawn_by": name, **right})
            lines.append(f"| {style} | {task.name} |" + "".join(cells))
    lines += ["", f"![{arguments.show} in all styles, by the teacher and by students](grid.png)", ""]
    lines += [line for note in arguments.note for line in (note, "")]
    text = "\n".join([*lines, f"`{command}`", ""])
    atomic.write_text(arguments.out / "table.md", text)
    whole_content = {"command": command, "painters": facts, "rows": content, "by_style": by_style}
    atomic.write_text(arguments.out / "table.json", json.dumps(whole_content, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    running.guarded(run, parsed())
