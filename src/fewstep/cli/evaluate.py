"""``fewstep evaluate``: measures models on prompts, and lays several side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import choices, output
from fewstep.cli.installed import require
from fewstep.cli.interrupts import cancellable
from fewstep.cli.libraries import quiet_libraries
from fewstep.cli.progress import Report, progress
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.engine import Engine

ENGINES = ("auto", "openvino", "torch")
OUT = Path("runs/evaluation")
DRAWINGS = Path(".cache/emoji-128/drawings")


def command(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names of models; default the bundled one.", show_default=False)
    ] = None,
    folder: Annotated[
        list[Path] | None,
        typer.Option("--folder", metavar="DIR", help="A pipeline or bundle folder; may be repeated."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Lay the models side by side: the same prompts and seeds.")
    ] = False,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="SET",
            help="seen, combination, object, synonyms, contact, or FILE.txt; may be repeated; default seen.",
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Prompts of each set, at most.")] = 256,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale; 1 for none.")] = None,
    guidance_rescale: Annotated[
        float | None, typer.Option("--guidance-rescale", help="0 to 1, against over-exposure.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option("--solver", metavar="NAME", help="Such as ddim or dpmpp_2m.")
    ] = None,
    student: Annotated[
        str | None,
        typer.Option("--student", metavar="NAME|none", help="As in generate; default by the steps."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Image i is drawn from seed + i.")] = 0,
    diversity: Annotated[
        int, typer.Option("--diversity", help="Prompts that are drawn with four seeds; 0 for none.")
    ] = 16,
    selection: Annotated[
        Path | None,
        typer.Option("--selection", metavar="FILE", help="What was trained; default emoji-128's data.yaml."),
    ] = None,
    evaluator: Annotated[
        Path | None,
        typer.Option("--evaluator", metavar="DIR", help="Another evaluator than the bundled one."),
    ] = None,
    autoencoder: Annotated[
        Path | None, typer.Option("--autoencoder", metavar="DIR", help="Measure this vae folder as well.")
    ] = None,
    drawings: Annotated[
        Path, typer.Option("--drawings", metavar="DIR", help="Drawing set, from fewstep data emoji-128.")
    ] = DRAWINGS,
    engine: Annotated[
        str, typer.Option("--engine", metavar="|".join(ENGINES), help="See: fewstep doctor.")
    ] = "auto",
    models_dir: Annotated[
        list[Path] | None,
        typer.Option("--models-dir", metavar="DIR", help="More models; may be repeated."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of all results.")] = OUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not tables.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no notes on stderr.")] = False,
) -> None:
    """Measure models on prompts, and print every figure with its interval and its yardsticks.

    Pictures are kept in --out, so an interrupted evaluation goes on. Needs the extra "train", the drawing set
    and an evaluator.
    """
    choices.one_of("--engine", engine, ENGINES)
    wanted: list[str | Path | None] = [*(models or []), *(folder or [])]
    wanted = wanted or [None]
    if compare and len(wanted) < 2:
        raise UsageError("--compare needs two models or more: name them, or give --folder for each")
    if len(prompts or []) != len(set(prompts or [])):
        raise UsageError("--prompts names a set twice: give each once")
    if diversity < 0:
        raise UsageError(f"--diversity is {diversity}: give 0 or more")
    for package in ("torch", "torchmetrics", "matplotlib"):
        require("train", package, "evaluation")
    quiet_libraries()
    output.show_logs(quiet=quiet)
    from fewstep.data.emoji import open_drawings
    from fewstep.data.preparation import load_selection
    from fewstep.evaluation import pages, promptsets, tables
    from fewstep.evaluation.curves import images_seen
    from fewstep.evaluation.drawing import Job, Sampling
    from fewstep.evaluation.evaluate import Evaluation, evaluate
    from fewstep.evaluation.evaluate import compare as compared
    from fewstep.evaluation.featurenets import choose
    from fewstep.evaluation.reference import prepare
    from fewstep.models.features import default_evaluator_folder, load_evaluator

    judge = load_evaluator(evaluator or default_evaluator_folder())
    trained = load_selection(selection)
    pictures = open_drawings(drawings)
    sets = {
        Path(name).stem if name.endswith(".txt") else name: promptsets.build(
            name, n, items=pictures.items, backgrounds=judge.backgrounds, selection=trained, seed=seed
        )
        for name in prompts or ["seen"]
    }
    sampling = Sampling(
        num_inference_steps=steps, guidance_scale=guidance, guidance_rescale=guidance_rescale, solver=solver,
        student=student,
    )  # fmt: skip
    drawing, place = open_model(wanted[0], engine, models_dir or [])
    sampling.request(drawing.info, Job("", seed))  # a wrong setting is said before anything is computed
    done: dict[str, Evaluation] = {}
    with cancellable() as cancelled, stages(quiet=quiet) as report:
        reference = prepare(
            judge,
            choose(judge),
            pictures,
            trained,
            name=(evaluator or default_evaluator_folder()).resolve().name,
            on_progress=report,
            cancelled=cancelled,
        )
        for index, model in enumerate(wanted):
            if index:
                drawing.close()
                drawing, place = open_model(model, engine, models_dir or [])
            name = pages.folder_name(_name(place, drawing), list(done))
            done[name] = evaluate(
                drawing,
                reference,
                sets,
                sampling=sampling,
                seed=seed,
                diversity=diversity,
                autoencoder=autoencoder,
                images_seen=images_seen(place),
                folder=out / name / "pictures",
                on_progress=report,
                cancelled=cancelled,
            )
            pages.write(out / name, done[name], reference)
    if compare:
        comparison = compared(list(done.values()))
        pages.write_comparison(out, done, comparison)
        output.result(comparison.to_json().rstrip() if as_json else tables.comparison_table(comparison))
    else:
        for evaluation in done.values():
            output.result(
                evaluation.report.to_json().rstrip() if as_json else tables.table(evaluation.report)
            )
    if not quiet:
        output.note(f"written to {out}: " + ", ".join(done))


@contextlib.contextmanager
def stages(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows the progress of one stage after another."""
    current: str | None = None
    tell: Report | None = None
    with contextlib.ExitStack() as stack:

        def report(stage: str, done: int, total: int) -> None:
            nonlocal current, tell
            if stage != current or tell is None:
                stack.close()
                current, tell = stage, stack.enter_context(progress(stage, quiet=quiet))
            tell(done, total)

        yield report


def open_model(model: str | Path | None, engine: str, folders: Sequence[Path]) -> tuple[Engine, Path]:
    """Open a model by name, or the one in a folder; return it and its folder.

    Raises:
        NotFoundError, CheckpointError, DependencyError, UsageError: as `fewstep.engine.engine.Engine`.
    """
    from fewstep.engine import registry
    from fewstep.engine.engine import Engine

    if isinstance(model, Path):
        return Engine(model, engine), model
    entry = registry.find_for(engine, model, extra=folders)
    return Engine(entry, engine), entry.folder


def _name(folder: Path, drawing: Engine) -> str:
    """What to call a model: a run's "pipeline" folder says less than the run's name."""
    plain = folder.resolve()
    return plain.parent.name if plain.name in ("pipeline", "bundle") else drawing.info.name
