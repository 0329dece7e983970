"""Students beside their teacher: one table, grown row by row, of the same held-out prompts and seeds.

The teacher is drawn with guidance at 32 steps, and at 1, 2, 4 and 8 with DDIM and DPM++ 2M: the baselines.
Each student is drawn at those of 1, 2, 4 and 8 steps that it was made for. A student is a pipeline or bundle
folder; the run folder of a distillation, of which each step count is drawn by the last stage that was made
for it, and whose training time, images, seed and data stand in the table; or a folder that holds a student
of that name.

What is measured is kept: pictures in --pictures, rows in OUT/table.json. A second call measures only what is
new or has changed, so the table can grow over days. Without a teacher, page and plot are made anew from
table.json. --time measures milliseconds of the table's rows instead, in turn; run it on a quiet machine.

    python benchmarks/students.py weights/emoji-128 flash=runs/flash lcm=runs/lcm
    python benchmarks/students.py weights/emoji-128 flash=runs/flash lcm=runs/lcm --time
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import os
import platform
from pathlib import Path

import _running as running
from first_picture import cpu

from fewstep.checkpoint import atomic
from fewstep.cli.evaluate import stages
from fewstep.data.emoji import open_drawings
from fewstep.data.preparation import load_selection
from fewstep.engine.engine import Engine
from fewstep.errors import UsageError
from fewstep.evaluation import plots, studentpages, trained
from fewstep.evaluation.drawing import Job
from fewstep.evaluation.featurenets import choose
from fewstep.evaluation.reference import Limits, prepare
from fewstep.evaluation.studentcosts import Timed, take_turns
from fewstep.evaluation.students import Entrant, World, grow, make_world, plan, sheet_pictures
from fewstep.evaluation.studenttable import BASE_ROW, STEPS, TEACHER, Table, Times
from fewstep.models.features import default_evaluator_folder, load_evaluator

ROOT = Path(__file__).resolve().parents[1]
SHEET = 12
ACROSS = 18


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path, nargs="?", help="pipeline or bundle folder")
    parser.add_argument("students", nargs="*", metavar="NAME=FOLDER", help="a student's folder or its run's")
    parser.add_argument("--rows", action="append", metavar="PATTERN", help="only these, such as 'teacher-*'")
    parser.add_argument("--n", type=int, default=2000, help="pictures of every row")
    parser.add_argument("--seed", type=int, default=0, help="picture i is drawn from seed + i")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "students")
    parser.add_argument("--pictures", type=Path, default=ROOT / "runs" / "students" / "pictures")
    parser.add_argument("--drawings", type=Path, default=ROOT / ".cache" / "emoji-128" / "drawings")
    parser.add_argument("--selection", type=Path, default=None, help="what was trained; default data.yaml")
    parser.add_argument("--evaluator", type=Path, default=None)
    parser.add_argument("--anew", action="store_true", help="leave out what table.json holds")
    parser.add_argument("--note", action="append", default=[], help="a sentence for the page; kept")
    parser.add_argument("--time", action="store_true", help="milliseconds of rows that are measured")
    parser.add_argument("--rounds", type=int, default=15, help="of --time")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    file = arguments.out / "table.json"
    before = Table.from_json(file.read_text("utf-8")) if file.is_file() and not arguments.anew else None
    if arguments.teacher is None:
        if before is None:
            print(f"nothing is measured in {arguments.out} yet; give a teacher and students, see --help")
            return
        write(arguments.out, before)
        return
    entrants = [Entrant(name=TEACHER, folder=arguments.teacher)]
    for text in arguments.students:
        entrants += students_of(text, arguments.pictures.parent / "networks")
    command = running.command()
    if arguments.time:
        if before is None:
            raise UsageError(f"{file}: no such table; measure the rows first, without --time")
        times = timed(arguments, entrants, before)
        write(arguments.out, told(dataclasses.replace(before, times=times), command, arguments.note))
        return
    world = open_world(arguments)
    table = before or Table(subject=world.subject)
    if table.subject.key != world.subject.key:
        raise UsageError(
            f"{file}: was measured on other prompts, numbers or drawings, or with another evaluator; give "
            "another --out, or --anew to leave out what it holds"
        )
    table = told(table, command, arguments.note)

    def wanted(name: str) -> bool:
        return not arguments.rows or any(fnmatch.fnmatch(name, p) for p in arguments.rows)

    with stages(quiet=False) as report:
        table = grow(
            table,
            world,
            entrants,
            lambda folder: open_engine(folder, arguments),
            wanted=wanted,
            on_table=lambda grown: atomic.write_text(file, grown.to_json()),
            on_progress=report,
        )
    sheets(arguments, entrants, world, table)
    write(arguments.out, table)


def told(table: Table, command: str, notes: list[str]) -> Table:
    return dataclasses.replace(
        table,
        notes=tuple(dict.fromkeys([*table.notes, *notes])),
        commands=tuple(dict.fromkeys([*table.commands, command])),
    )


def students_of(text: str, networks: Path) -> list[Entrant]:
    """Read NAME=FOLDER; of a run folder every stage that draws a step count."""
    name, equals, place = text.partition("=")
    if not equals or name == TEACHER:
        raise UsageError(f"{text}: give students as NAME=FOLDER, of another name than {TEACHER}")
    folder = Path(place).expanduser()
    if not trained.is_run(folder):
        run = folder.resolve().parent
        known = folder.name == trained.STUDENT and trained.is_run(run)
        return [Entrant(name=name, folder=folder, training=trained.read(run) if known else None)]
    return [
        Entrant(
            name=name,
            folder=folder / trained.STUDENT
            if stage == trained.last_stage(folder)
            else stage_network(folder, stage, networks / f"{name}-{stage}"),
            steps=counts,
            training=trained.read(folder, stage),
        )
        for stage, counts in trained.chosen_stages(folder, STEPS).items()
    ]


def stage_network(run: Path, stage: str, out: Path) -> Path:
    """Write the student of an earlier stage as `fewstep distill` writes that of the last one."""
    from fewstep.distillation.run import student
    from fewstep.distillation.sections import DistillationRecipe
    from fewstep.models import load
    from fewstep.models.components import Components
    from fewstep.models.denoiser import ConditionedUNet
    from fewstep.training.recipe import parse_as

    recipe = parse_as(DistillationRecipe, (run / trained.RECIPE).read_text("utf-8"), source=str(run))
    network, contract = student(recipe, run, stage=stage)
    if recipe.teacher.pipeline is None or not isinstance(network, ConditionedUNet):
        raise UsageError(f"{run}: a toy; give the run of a pipeline folder")
    base = load.pipeline(Path(recipe.teacher.pipeline).expanduser())
    parts = Components(base.autoencoder, network.network, base.text_encoder, base.tokenizer, contract)
    load.save_pipeline(out, parts, texts={}, replace=True)
    return out


def open_engine(folder: Path, arguments: argparse.Namespace) -> Engine:
    return Engine(folder, arguments.engine, threads=arguments.threads)


def open_world(arguments: argparse.Namespace) -> World:
    folder = arguments.evaluator or default_evaluator_folder()
    judge = load_evaluator(folder)
    with stages(quiet=False) as report:
        reference = prepare(
            judge,
            choose(judge),
            open_drawings(arguments.drawings),
            load_selection(arguments.selection),
            name=folder.resolve().name,
            limits=Limits(trained=Limits().reference),  # nearest drawings are not looked for here
            on_progress=report,
        )
    return make_world(reference, arguments.n, arguments.pictures, seed=arguments.seed)


def timed(arguments: argparse.Namespace, entrants: list[Entrant], table: Table) -> Times:
    """Time every row that is measured and whose weights are at hand."""
    rows: list[Timed] = []
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    for entrant in entrants:
        engine = open_engine(entrant.folder, arguments)
        for planned in plan(entrant, engine.info):
            row, student = table.row(planned.name), planned.sampling.student
            own = [s.hash for s in engine.info.students if s.name == student]
            if row is not None and row.weights == (own or [engine.info.hash])[0]:
                rows.append(Timed(planned.name, row.weights, engine, planned.sampling))
    prompts = (ROOT / "recipes" / "emoji-128" / "prompts.txt").read_text("utf-8").splitlines()
    jobs = [Job(prompt, arguments.seed) for prompt in prompts]
    with stages(quiet=False) as report:
        found = take_turns(
            rows, jobs, arguments.rounds, on_progress=lambda done, total: report("rounds", done, total)
        )
    machine = {
        "processor": cpu(),
        "cores": str(os.cpu_count()),
        "threads": "all" if arguments.threads is None else str(arguments.threads),
        "python": platform.python_version(),
    }
    if load_before is not None:
        machine["load before"] = f"{load_before:.1f}"
    return Times(rounds=arguments.rounds, machine=machine, rows=tuple(found))


def sheets(arguments: argparse.Namespace, entrants: list[Entrant], world: World, table: Table) -> None:
    """The teacher beside each student, and beside the fewest steps of all that are at hand."""
    count = min(SHEET, world.subject.pictures)
    found: dict[str, dict[str, tuple[int, plots.Pictures]]] = {}
    for entrant in entrants:
        engine = open_engine(entrant.folder, arguments)
        kept = [p for p in plan(entrant, engine.info) if table.row(p.name) is not None]
        shown = [p for p in kept if p.name == BASE_ROW or entrant.name != TEACHER]
        found.setdefault(entrant.name, {}).update(sheet_pictures(engine, shown, world, count))
        engine.close()
    teacher = found.pop(TEACHER)
    prompts, groups = world.prompts[:count], {}
    for name, rows in found.items():
        groups[f"sheet-{name}"] = rows
    if len(found) > 1:
        fewest = [min(rows.items(), key=lambda row: row[1][0]) for rows in found.values() if rows]
        groups["sheet"] = dict(fewest)
    for name, rows in groups.items():
        ordered = sorted(rows.items(), key=lambda entry: (entry[0].rpartition("-")[0], -entry[1][0]))
        pictures = {key: value[1] for key, value in (*teacher.items(), *ordered)}
        if len(pictures) < 2:
            continue
        title = "the same prompts and seeds: " + ", ".join(pictures)
        across = max(1, ACROSS // (len(pictures) + 1))
        plots.side_by_side(pictures, [*prompts], arguments.out / f"{name}.png", title=title, groups=across)


def write(out: Path, table: Table) -> None:
    page = studentpages.markdown(table)
    atomic.write_text(out / "table.json", table.to_json())
    atomic.write_text(out / "table.md", page)
    studentpages.plot(table, out / "steps.png")
    print(page)


if __name__ == "__main__":
    running.guarded(run, parsed())
