"""Where CompVis' scripts put their files: numbered samples, and a grid of all of them. With metadata here."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic
from fewstep.cli import output
from fewstep.errors import OutputError
from fewstep.prompt import containers, infotext

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLES = "samples"
PADDING = 2
"""Black pixels around each image of a grid, as torchvision's ``make_grid`` has them."""


class NumberedFiles:
    """PNG files of one folder under rising numbers; a number whose file exists is passed over.

    Args:
        folder: exists.
        form: file name with one field for the number, such as ``{:05d}.png``.
        first: number to begin with.
    """

    def __init__(self, folder: Path, form: str, first: int) -> None:
        self._folder = folder
        self._form = form
        self._next = first

    def write(self, pixels: NDArray[np.uint8], record: Mapping[str, Any]) -> Path:
        """Write one image (H, W, 3), complete or not at all, and return its path.

        Args:
            pixels: 8-bit RGB.
            record: what `fewstep.prompt.infotext.from_record` takes; it goes into the file too.

        Raises:
            OutputError: it cannot be written.
        """
        data = containers.encode(pixels, "png", parameters=infotext.from_record(record), record=record)
        while True:
            path = self._folder / self._form.format(self._next)
            self._next += 1
            with _claimed(path) as free:
                if free:
                    atomic.write_bytes(path, data)
                    return path


def open_folders(outdir: Path) -> tuple[NumberedFiles, NumberedFiles]:
    """Make ``outdir`` and its folder of samples, and return the files of samples and of grids.

    Numbers begin as in CompVis' scripts: samples with the number of entries in ``outdir/samples``, grids with
    that in ``outdir`` less one, for the folder of samples. Hidden entries are not counted.

    Raises:
        OutputError: a folder cannot be made or written.
    """
    samples = outdir / SAMPLES
    for folder in (outdir, samples):
        with output.numbers(folder, 1):
            pass  # it is there, and a file could be made in it
    return (
        NumberedFiles(samples, "{:05d}.png", _entries(samples)),
        NumberedFiles(outdir, "grid-{:04d}.png", _entries(outdir) - 1),
    )


def grid(images: Sequence[NDArray[np.uint8]], columns: int) -> NDArray[np.uint8]:
    """Lay images of one size side by side, row by row, as torchvision's ``make_grid(nrow=columns)`` does.

    Args:
        images: (H, W, 3) each, at least one. One alone is returned without an edge, as there.
        columns: images in a row, from 1.
    """
    import numpy as np

    if len(images) == 1:
        return images[0]
    across = min(columns, len(images))
    down = math.ceil(len(images) / across)
    height, width = (side + PADDING for side in images[0].shape[:2])
    sheet = np.zeros((down * height + PADDING, across * width + PADDING, 3), np.uint8)
    for index, image in enumerate(images):
        top, left = (
            place * size + PADDING for place, size in zip(divmod(index, across), (height, width), strict=True)
        )
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _entries(folder: Path) -> int:
    return sum(not entry.name.startswith(".") for entry in os.scandir(folder))


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Hold a name against other processes, and say whether it is free; False when another one holds it."""
    claim = path.with_name(f".{path.name}.claim")
    try:
        os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        yield False
        return
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({reason}); choose another folder with --outdir"
        ) from error
    try:
        yield not os.path.lexists(path)
    finally:
        with contextlib.suppress(OSError):
            claim.unlink()
