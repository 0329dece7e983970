"""From the options of `fewstep generate` that name a mode to what the engine is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli import choices
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.control import ControlUse
    from fewstep.engine.hires import Hires
    from fewstep.engine.outpaint import Outpaint


def outpaint(value: str | None) -> Outpaint | None:
    """``left,right,top,bottom`` in pixels.

    Raises:
        UsageError: not four whole numbers.
    """
    if value is None:
        return None
    from fewstep.engine.outpaint import Outpaint

    parts = value.split(",")
    if len(parts) != 4 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise UsageError(
            f"--outpaint {value!r:.80}: give four whole numbers of pixels, left,right,top,bottom, "
            "such as 0,64,0,0"
        )
    left, right, top, bottom = (int(part) for part in parts)
    return Outpaint(left=left, right=right, top=top, bottom=bottom)


def hires(value: str | None, steps: int | None, strength: float | None, upscaler: str | None) -> Hires | None:
    """A second pass: ``--hires`` is a scale such as 2, or a size such as 256x192.

    Raises:
        UsageError: neither, or one of the other options without it.
    """
    if value is None:
        further = {"--hires-steps": steps, "--hires-strength": strength, "--hires-upscaler": upscaler}
        for flag, given in further.items():
            if given is not None:
                raise UsageError(f"{flag} is given without --hires: give --hires too, such as 2")
        return None
    from fewstep.engine.hires import Hires

    method = "auto" if upscaler is None else upscaler
    if "x" in value.lower():
        return Hires(size=choices.size("--hires", value), steps=steps, strength=strength, upscaler=method)
    try:
        scale = float(value)
    except ValueError:
        raise UsageError(
            f"--hires {value!r:.80}: give a scale such as 2, or a size such as 256x192"
        ) from None
    return Hires(scale=scale, steps=steps, strength=strength, upscaler=method)


def controls(
    names: Sequence[str], images: Sequence[Path], scales: Sequence[float], folders: Sequence[Path]
) -> list[ControlUse]:
    """Control networks, each with its picture and, if any are given, its scale.

    Raises:
        UsageError: as many networks as pictures are needed, and as many scales or none.
        NotFoundError: no such network, or no such picture.
    """
    if len(names) != len(images):
        raise UsageError(
            f"{len(names)} --control and {len(images)} --control-image: give one picture for each network"
        )
    if scales and len(scales) != len(names):
        raise UsageError(
            f"{len(names)} --control and {len(scales)} --control-scale: give one for each network, or none"
        )
    if not names:
        return []
    from fewstep.data.images import open_image
    from fewstep.engine.control import ControlUse, find

    return [
        ControlUse(folder=find(name, folders), image=open_image(image), scale=scale)
        for name, image, scale in zip(names, images, scales or [1.0] * len(names), strict=True)
    ]


def class_prompt(prompt: str, name: str | None) -> str:
    """The prompt, or the class that ``--class`` gives in its place.

    Raises:
        UsageError: both are given.
    """
    if name is None:
        return prompt
    if prompt:
        raise UsageError(
            f"--class is {name!r} and the prompt is {prompt!r:.100}: give one of them, '' for none"
        )
    return name
