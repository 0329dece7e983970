"""What ``fewstep upscale`` does with files: which are read, what they become, and where that goes."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewstep import __version__
from fewstep.checkpoint import atomic
from fewstep.cli import output
from fewstep.cli.interrupts import cancellable
from fewstep.cli.progress import progress
from fewstep.cli.sources import open_model as open_engine
from fewstep.data import images, layers
from fewstep.engine.upscaling import catalogue, enlarge, restoring
from fewstep.errors import Cancelled, DataError, FewstepError, NotFoundError, OutputError, UsageError
from fewstep.prompt import containers

if TYPE_CHECKING:
    from fewstep.engine.upscaling.tiles import Runner

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
_KINDS: Mapping[str, containers.Format] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What is done to every picture."""

    options: enlarge.Extras
    others: Mapping[str, Runner]
    restoration: restoring.Restoration | None
    out: Path
    image_format: containers.Format | None
    """None is that of the picture, and PNG for those that are read and not written."""
    threads: int | None
    overwrite: bool
    as_json: bool
    quiet: bool

    def settings(self) -> dict[str, Any]:
        """What decides the pixels, JSON-ready, to compare with what made an older file."""
        made: dict[str, Any] = {"options": dataclasses.asdict(self.options)}
        if (again := self.restoration) is not None:
            model = again.drawing.info.hash
            made["restore"] = [again.strength, again.where, model, dict(again.settings)]
        return dict(json.loads(json.dumps(made)))


def show(*, as_json: bool) -> None:
    """Print what there is, one upscaler per line, and whether it can be used here."""
    for name in catalogue.PLAIN:
        row = {"name": name, "scales": [], "installed": True, "cleans": False, "networks": []}
        output.result_json(row) if as_json else output.result(f"{name:24} any size")
    for one in catalogue.UPSCALERS.values():
        scales = sorted(one.networks)
        here = catalogue.installed(one)
        if as_json:
            files = [one.networks[scale].file for scale in scales]
            output.result_json(
                {
                    "name": one.name,
                    "scales": scales,
                    "installed": here,
                    "cleans": one.cleans,
                    "networks": files,
                }
            )
        else:
            times = ", ".join(f"{scale}x" for scale in scales)
            output.result(f"{one.name:24} {times}{'' if here else '  (not installed)'}")


def opened(names: Sequence[str]) -> tuple[list[str], dict[str, Runner]]:
    """Open what is named by a file; the names that stand for them, and the networks.

    Raises:
        NotFoundError, CheckpointError, DependencyError: as `other_files.SpandrelRunner`.
    """
    from fewstep.engine.upscaling import other_files

    made: list[str] = []
    others: dict[str, Runner] = {}
    for name in names:
        if name.lower().endswith(other_files.SUFFIXES):
            runner = other_files.SpandrelRunner(name)
            others[runner.name] = runner
            made.append(runner.name)
        else:
            made.append(name)
    return made, others


def expanded(given: Sequence[Path]) -> list[Path]:
    """Files from files, folders and patterns, each once, in their order; a folder's are sorted by name.

    Raises:
        UsageError: nothing is given.
        NotFoundError: a folder without images, or a pattern that fits nothing.
    """
    if not given:
        raise UsageError("no picture is given: name images, folders or patterns, or give --list")
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(
                one for one in path.iterdir() if one.suffix.lower() in _SUFFIXES and one.is_file()
            )
            if not inside:
                raise NotFoundError(f"{path}: no images in this folder; name one that has some")
            found += inside
        elif not path.exists() and glob.has_magic(str(path)):
            fitting = sorted(one for one in map(Path, glob.glob(str(path), recursive=True)) if one.is_file())
            if not fitting:
                raise NotFoundError(f"{path}: no file fits this pattern; check it")
            found += fitting
        else:
            found.append(path)
    return list({one.absolute(): one for one in found}.values())


def restoration(
    strength: float | None, where: str, *, model: str | None, prompt: str | None, **settings: Any
) -> restoring.Restoration | None:
    """Open the model that draws anew, if one is asked for.

    Raises:
        UsageError: options for it without ``--restore``, or a strength out of range.
        NotFoundError, CheckpointError, DependencyError: as the engine.
    """
    if strength is None:
        if prompt is not None:
            raise UsageError("a prompt is for drawing anew: give --restore a strength too, such as 0.2")
        return None
    if not 0.0 < strength <= 1.0:  # also refuses NaN
        raise UsageError(f"--restore is {strength}: give a strength above 0, at most 1")
    if prompt is None:
        raise UsageError("--restore draws the picture anew: say what it shows with --prompt")
    drawing = open_engine(model, "auto", [])
    return restoring.Restoration(
        drawing=drawing, strength=strength, settings={"prompt": prompt, **settings}, where=where
    )


def run(sources: Sequence[Path], order: Order) -> None:
    """Make every picture, print each path, and go on where one cannot be used.

    Raises:
        DataError: some could not be used; all others are done.
        Cancelled: stopped by the user; what is done stays.
        OutputError, EngineError: nothing more can be made.
    """
    failed: list[FewstepError] = []
    done = 0
    taken: set[Path] = {one.resolve() for one in sources}
    _check_writable(order.out)
    with cancellable() as cancelled:
        for index, source in enumerate(sources):
            label = (
                f"{source.name}: tile"
                if len(sources) == 1
                else f"{index + 1}/{len(sources)} {source.name}: tile"
            )
            try:
                if cancelled():
                    raise Cancelled("stopped by request")
                _one(source, order, taken, label, cancelled)
                done += 1
            except Cancelled as error:
                left = len(sources) - done - len(failed)
                raise Cancelled(
                    f"{error}; {done} done, {left} left, the same command goes on there"
                ) from None
            except (DataError, UsageError, _Unfit) as error:
                if len(sources) == 1:
                    raise
                named = str(error) if str(source) in str(error) else f"{source}: {error}"
                output.note(f"error: {named}")
                failed.append(error)
    if failed:
        raise DataError(
            f"{len(failed)} of {len(sources)} pictures cannot be used, see above; the other {done} are done"
        )


class _Unfit(OutputError):
    """A result that its format cannot hold: of one picture, and not of the disk."""


def _one(source: Path, order: Order, taken: set[Path], label: str, cancelled: Callable[[], bool]) -> None:
    begun = time.perf_counter()
    layer = layers.open_layers(source)
    digest = hashlib.sha256(layer.pixels.tobytes()).hexdigest()
    kind = order.image_format or _KINDS.get(layer.kind, "png")
    settings = order.settings()
    path, before = _place(order.out, source.stem, kind, digest, taken)
    taken.add(path.resolve())
    if before is not None and not order.overwrite:
        if not order.quiet:
            other = "" if before == settings else ", made with other settings"
            output.note(f"{source}: {path} exists already{other}; --overwrite makes it again")
        if order.as_json:
            output.result_json({"source": str(source), "path": str(path), "skipped": True})
        return
    notes = [f"{what} cannot be kept" for what in layer.lost]
    pixels = layer.pixels
    if kind == "jpg" and pixels.shape[2] == 4:
        notes.append("JPEG has no transparency: laid over white; --format png keeps it")
        pixels = _over_white(pixels)
    with progress(label, quiet=order.quiet) as report:
        how: dict[str, Any] = {
            "threads": order.threads, "on_progress": report, "cancelled": cancelled, "others": order.others,
        }  # fmt: skip
        if order.restoration is None:
            made = enlarge.extras(pixels, order.options, **how)
        else:
            made = restoring.restored(pixels, order.options, order.restoration, **how)
    result = _grey(made.image) if layer.grey and order.restoration is None else made.image
    extras = {
        "fewstep": __version__, **made.record, "source_hash": digest, "width": result.shape[1],
        "height": result.shape[0], "settings": settings,
    }  # fmt: skip
    atomic.write_bytes(path, _encoded(result, kind, layer.metadata, made.infotext, extras))
    if not order.quiet:
        if order.restoration is not None:
            notes.append(_told(made.record["restore"]))
        for note in notes:
            output.note(f"{source}: {note}")
    if order.as_json:
        seconds = round(time.perf_counter() - begun, 3)
        output.result_json({"source": str(source), "path": str(path), **extras, "seconds": seconds})
    else:
        output.result(str(path))


def _place(
    out: Path, stem: str, kind: str, digest: str, taken: set[Path]
) -> tuple[Path, dict[str, Any] | None]:
    """The name of a result, and the settings of the file that has it if that is of the same picture.

    A file of another picture is never replaced: a number is added instead.
    """
    number = 1
    while True:
        path = out / (f"{stem}.{kind}" if number == 1 else f"{stem}-{number}.{kind}")
        number += 1
        if path.resolve() in taken:
            continue
        if not path.exists():
            return path, None
        before = _made_of(path)
        if before is not None and before.get("source_hash") == digest:
            return path, before.get("settings") or {}


def _made_of(path: Path) -> dict[str, Any] | None:
    """What a file says of its enlarging, from its header alone; None where it says nothing."""
    try:
        image, _ = images.open_header(path, max_pixels=enlarge.MAX_PIXELS)
        text = image.info.get("fewstep")
        record = json.loads(text) if isinstance(text, str) else containers.decode(image).record
    except Exception:  # whatever it is, it was not made here
        return None
    extras = record.get("extras") if isinstance(record, dict) else None
    return extras if isinstance(extras, dict) else None


def _encoded(
    pixels: NDArray[np.uint8],
    kind: containers.Format,
    before: containers.Metadata,
    infotext: str,
    extras: Mapping[str, Any],
) -> bytes:
    """The file, with what the picture said of its making, and what was done where the web UI writes it."""
    sections = {"postprocessing": infotext, "extras": infotext} if infotext else {}
    parameters = before.parameters or ""
    if kind != "png" and infotext:  # one text has to hold both
        parameters = f"{parameters}, {infotext}" if parameters else infotext
    try:
        return containers.encode(
            pixels, kind, parameters=parameters, record={**(before.record or {}), "extras": dict(extras)},
            sections=sections,
        )  # fmt: skip
    except OutputError as error:
        raise _Unfit(str(error)) from error


def _told(record: Mapping[str, Any]) -> str:
    size = f"{record['width']}x{record['height']}"
    if record["where"] == "whole":
        return f"drawn anew whole at {size} by {record['model']}, then enlarged"
    return f"enlarged, then drawn anew in {record['tiles']} tiles of {size} by {record['model']}"


def _over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    alpha = pixels[..., 3:].astype(np.float32) / np.float32(255.0)
    mixed = pixels[..., :3] * alpha + np.float32(255.0) * (np.float32(1.0) - alpha)
    return np.asarray(mixed + np.float32(0.5), dtype=np.uint8)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture without colours stays one: networks tint it a little. With alpha it stays RGBA."""
    grey = np.asarray(pixels[..., :3].mean(axis=2, dtype=np.float32) + np.float32(0.5), dtype=np.uint8)
    if pixels.shape[2] == 3:
        return grey
    return np.concatenate([np.repeat(grey[..., None], 3, axis=2), pixels[..., 3:]], axis=2)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        atomic.sweep(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{folder}: no images can be written here ({reason}); choose another folder with --out"
        ) from error
