"""What a run tells the world: progress.jsonl, TensorBoard, a bar. A logger that fails never stops a run."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from fewstep.checkpoint import atomic

_log = logging.getLogger("fewstep.training")

Image = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands: images, rate in images per second, seconds left, and the last logged values.

    ``stop_images`` is how many it will see; of a run that ends by the clock, as far as the rate tells.
    """

    images_seen: int
    stop_images: int
    images_per_second: float
    seconds_left: float
    values: Mapping[str, float]


class Logger(Protocol):
    """Takes values and sample grids; may fail."""

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Values by name."""
        ...

    def image(self, images_seen: int, name: str, image: Image) -> None:
        """A picture (H, W, 3) in 0..255."""
        ...

    def close(self) -> None:
        """Flush."""
        ...


class ProgressFile:
    """A JSON line per logged moment in ``progress.jsonl``; what is past a resumed checkpoint is dropped."""

    def __init__(self, path: Path, images_seen: int = 0) -> None:
        self._path = path
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _images_in(line) <= images_seen]
            if len(kept) != len(lines):
                atomic.write_text(path, "".join(f"{line}\n" for line in kept))

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Append a line; numbers that are not finite become null, which JSON has no other word for."""
        plain = {key: value if math.isfinite(value) else None for key, value in values.items()}
        atomic.append_line(self._path, json.dumps({"images": images_seen, **plain}))

    def image(self, images_seen: int, name: str, image: Image) -> None:
        """Pictures go to the samples folder, not here."""

    def close(self) -> None:
        """Every line is written at once; nothing to do."""


class TensorBoard:
    """Event files in ``logs/``; tensorboard is imported at the first value."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def _open(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        return self._writer

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Write values."""
        for key, value in values.items():
            self._open().add_scalar(key, value, images_seen)

    def image(self, images_seen: int, name: str, image: Image) -> None:
        """Write a picture."""
        self._open().add_image(name, image, images_seen, dataformats="HWC")

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


class Loggers:
    """Several loggers as one; one that raises is warned about once and left out from then on."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = list(loggers)

    def scalars(self, images_seen: int, values: Mapping[str, float]) -> None:
        """Pass on to every logger."""
        self._each("scalars", images_seen, values)

    def image(self, images_seen: int, name: str, image: Image) -> None:
        """Pass on to every logger."""
        self._each("image", images_seen, name, image)

    def close(self) -> None:
        """Close every logger."""
        self._each("close")

    def _each(self, method: str, *arguments: object) -> None:
        for logger in list(self._loggers):
            try:
                getattr(logger, method)(*arguments)
            except Exception as error:
                self._loggers.remove(logger)
                reason = f"{type(error).__name__}: {error}"
                _log.warning("%s failed and is left out: %s", type(logger).__name__, reason)


class Bar:
    """A rich progress bar on stderr when that is a terminal; plain lines through `logging` otherwise."""

    def __init__(self, stop_images: int, *, show: bool) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._show = show
        self._logged: Mapping[str, float] | None = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("images"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("images", total=stop_images, note="")

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show where the run stands."""
        if not self._show:
            return
        losses = " ".join(f"{key} {value:.4f}" for key, value in progress.values.items() if "loss" in key)
        note = f"{progress.images_per_second:.1f} images/s {losses}"
        if self._bar is not None:
            self._bar.update(
                self._task, completed=progress.images_seen, total=progress.stop_images, note=note
            )
        elif progress.values is not self._logged:
            left = _clock(progress.seconds_left)
            _log.info("%d of %d images, %s, %s left", progress.images_seen, progress.stop_images, note, left)
        self._logged = progress.values


def _images_in(line: str) -> float:
    try:
        return float(json.loads(line)["images"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut short by a crash


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
