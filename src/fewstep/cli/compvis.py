"""Draws what the options of CompVis' ``txt2img.py`` and ``img2img.py`` ask for, in their order and files.

What follows the scripts: iterations around batches of prompts, one noise for all with ``--fixed_code``, where
files go and how they are numbered, the grid. What does not: every image has its own seed, and the settings go
into the files. docs/guides/txt2img.md has the whole comparison.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import compvis_files, compvis_model, output, sources
from fewstep.cli.compvis_order import Order, Shot, check, plan, read_prompts, say_defaults
from fewstep.cli.interrupts import cancellable
from fewstep.cli.libraries import quiet_libraries
from fewstep.cli.progress import Report, progress
from fewstep.engine import finished
from fewstep.errors import OutputError, UsageError

if TYPE_CHECKING:
    from fewstep.engine.engine import Engine

_FULL = {"float32", "fp32", "f32"}

# The engine's errors name the options of `fewstep generate`.
_FLAG = re.compile(r"--(?:steps|guidance|solver|size|image|n|out)(?![\w-])")
_OURS = {
    "--steps": "--ddim_steps",
    "--guidance": "--scale",
    "--solver": "--plms and --dpm_solver",
    "--image": "--init-img",
    "--n": "--n_samples",
    "--out": "--outdir",
}
_SIZE = {"txt2img": "--W and --H", "img2img": "an --init-img"}


def run(order: Order) -> None:
    """Draw everything, write the files, and print their paths, the grid's last.

    Raises:
        UsageError, NotFoundError, CheckpointError, DataError, DependencyError: an option, or what it names,
            cannot be used; nothing is drawn or written.
        OutputError: the folder cannot be written.
        EngineError: the model failed.
        Cancelled: after an interrupt; the images that were done are kept.
    """
    check(order)
    prompts = read_prompts(order.from_file) if order.from_file is not None else [order.prompt]
    image = _read_image(order.init_img)
    config = compvis_model.read_config(order.config) if order.config is not None else None
    output.show_logs(quiet=order.quiet)
    folders = {"loras": order.loras_dir, "embeddings": order.embeddings_dir}
    drawing = open_engine(order.ckpt, **{name: value for name, value in folders.items() if value})
    compvis_model.check_latents(drawing.info, order.channels, order.downscale)
    if order.config is not None and config is not None:
        compvis_model.check_config(order.config, config, drawing.info)
    say: Callable[[str], None] = (lambda text: None) if order.quiet else output.note
    with _in_our_words(order.task):
        shots = plan(order, drawing.info, prompts, image, say)
        samples, grids = compvis_files.open_folders(order.outdir)
    say_defaults(order, drawing.info, shots[0].request, say)
    paths: list[Path] = []
    try:
        images: list[finished.Picture] = []
        with contextlib.closing(_draw(order, drawing, shots, say)) as drawn:
            for picture in drawn:
                if not order.skip_save:
                    paths.append(samples.write(picture.pixels, picture.record))
                if not order.skip_grid:
                    images.append(picture)
        if not order.skip_grid:
            paths.append(_write_grid(grids, images, order.n_rows or order.n_samples))
    finally:
        # Not while the bar is shown, which takes stdout for itself on a terminal.
        for path in paths:
            output.result(str(path))


def open_engine(ckpt: str | None, *, loras: Sequence[Path] = (), embeddings: Sequence[Path] = ()) -> Engine:
    """Open the model of ``--ckpt``, with further folders of adapters and of embeddings.

    Raises:
        NotFoundError, CheckpointError, DependencyError: as `compvis_model.find_model` and the engine.
    """
    model = compvis_model.find_model(ckpt)
    from fewstep.engine.engine import Engine

    quiet_libraries()
    return Engine(model, **sources.catalogues(loras, embeddings))


def _read_image(path: Path | None) -> Any:
    if path is None:
        return None
    from fewstep.data import images

    return images.open_image(path)


def _draw(
    order: Order, drawing: Engine, shots: list[Shot], say: Callable[[str], None]
) -> Generator[finished.Picture]:
    """Every image in the order of the script: iterations around batches."""
    total = order.n_iter * sum(shot.request.n for shot in shots)
    done = 0
    said: set[str] = set()
    with cancellable() as cancelled, progress(f"{total} images, step", quiet=order.quiet) as report:
        for shot in shots * order.n_iter:
            offset = shot.place if order.fixed_code else done
            request = dataclasses.replace(shot.request, seed=order.seed + offset)
            result = drawing.generate(
                request, on_step=_counted(report, done, total, request.n), cancelled=cancelled
            )
            for warning in [*result.warnings, *_precision(order, result.record)]:
                if warning not in said:
                    said.add(warning)
                    say(f"warning: {warning}")
            for index in range(request.n):
                yield finished.finish(request, result, index, "none", cancelled=cancelled)
            done += request.n


def _counted(report: Report, before: int, total: int, n: int) -> Callable[[Any], None]:
    """Count the steps of all images from those of one request that follows ``before`` images."""

    def on_step(step: Any) -> None:
        each = step.total // n
        report(before * each + step.index + 1, total * each)

    return on_step


def _precision(order: Order, record: dict[str, Any]) -> list[str]:
    has = record["engine"].get("precision")
    if order.precision != "full" or has is None or has in _FULL:
        return []
    return [f"--precision full has no effect: this model runs in {has} here"]


def _write_grid(grids: compvis_files.NumberedFiles, images: Sequence[finished.Picture], columns: int) -> Path:
    """Write the grid of all images, with the parameters of the first and the seeds of all."""
    sheet = compvis_files.grid([picture.pixels for picture in images], columns)
    facts = {"images": len(images), "columns": columns, "seeds": [picture.seed for picture in images]}
    return grids.write(sheet, {**images[0].record, "grid": facts})


@contextlib.contextmanager
def _in_our_words(task: compvis_model.Task) -> Iterator[None]:
    """Let errors of the engine name the options of these commands."""
    words = _OURS | {"--size": _SIZE[task]}
    try:
        yield
    except (UsageError, OutputError) as error:
        text = _FLAG.sub(lambda match: words.get(match[0], match[0]), str(error))
        raise type(error)(text) from error
