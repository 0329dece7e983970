"""Pictures that steer a drawing through a network beside the denoiser: ControlNets and T2I-adapters.

Only a backend that can run such networks takes them; the others refuse. A network is a folder in diffusers'
layout, found by its name among the models, or given by the operator as a path on the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.engine import pictures, registry
from fewstep.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.engine.pictures import Image
    from fewstep.engine.request import GenerateRequest
    from fewstep.engine.starts import Start

CLASSES: tuple[str, ...] = ("ControlNetModel", "T2IAdapter")
"""Accepted ``_class_name`` of a control network's ``config.json``."""
MAX_SCALE = 10.0
MAX_CONTROLS = 8


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ControlUse:
    """One control network of a request, and the picture it is shown."""

    folder: Path = field(repr=False)
    image: Image
    """(H, W, 3) uint8, of any size: edges, a depth map or a pose, as the network was trained with."""
    scale: float = 1.0
    """How strongly it steers; 0 is not at all."""

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.resolve().name


def resolve(uses: Sequence[ControlUse]) -> tuple[ControlUse, ...]:
    """Check the control networks of a request.

    Raises:
        UsageError: too many, a scale out of range, or a picture that is none.
    """
    if len(uses) > MAX_CONTROLS:
        raise UsageError(f"{len(uses)} control networks: give at most {MAX_CONTROLS}")
    for use in uses:
        if not (math.isfinite(use.scale) and 0.0 <= use.scale <= MAX_SCALE):
            raise UsageError(f"control scale is {use.scale}: give --control-scale from 0 to {MAX_SCALE:g}")
        if use.image.ndim != 3 or use.image.shape[2] != 3 or use.image.dtype.name != "uint8":
            raise UsageError(
                f"control image has shape {use.image.shape}, {use.image.dtype}: give 8-bit RGB pixels"
            )
    return tuple(uses)


def refuse(backend: str, uses: Sequence[ControlUse]) -> None:
    """What a backend without control networks says of them.

    Raises:
        UsageError: there are some.
    """
    if uses:
        raise UsageError(
            f"control {uses[0].name!r}: engine {backend} runs no control networks; give a pipeline folder as "
            "--model and --engine torch, or leave --control out"
        )


def fitted(uses: Sequence[ControlUse], request: GenerateRequest, start: Start) -> list[ControlUse]:
    """The same with pictures in the size that is drawn; those of the picture's own size are cut as it is."""
    found = []
    for use in uses:
        image = use.image
        if start.region is not None and start.whole is not None and image.shape == start.whole.shape:
            image = start.region.cut(image)
        image = pictures.resized(image, request.width, request.height)
        found.append(ControlUse(folder=use.folder, image=image, scale=use.scale))
    return found


def record(uses: Sequence[ControlUse]) -> list[dict[str, Any]]:
    """For records, JSON-ready."""
    return [
        {"name": use.name, "scale": use.scale, "image_hash": hashlib.sha256(use.image.tobytes()).hexdigest()}
        for use in uses
    ]


def find(name: str, extra: Sequence[Path] = ()) -> Path:
    """The folder of a control network. For the command line only: what comes over a network must be a name.

    Args:
        name: of a folder among the models, or a path (with a separator, or ``.`` first).
        extra: more folders of models, searched first.

    Raises:
        NotFoundError: there is none; the message lists what there is.
    """
    if "/" in name or "\\" in name or name.startswith("."):
        folder = Path(name)
        if _kind(folder) is None:
            kinds = " or ".join(CLASSES)
            raise NotFoundError(f"{folder}: no config.json of a {kinds} here; give the folder of one")
        return folder
    known = named(extra)
    if name in known:
        return known[name]
    there = ", ".join(sorted(known)) or "none"
    raise NotFoundError(
        f"control {name!r}: not found; there are: {there} (put its folder among the models, see "
        "--models-dir, or give its path)"
    )


def named(extra: Sequence[Path] = ()) -> dict[str, Path]:
    """Name -> folder of every control network among the models; of two with one name the first counts."""
    found: dict[str, Path] = {}
    for root in registry.roots(extra):
        try:
            inside = sorted(path for path in root.iterdir() if not path.name.startswith("."))
        except OSError:
            continue
        for path in inside:
            if _kind(path) is not None:
                found.setdefault(path.name, path)
    return found


def _kind(folder: Path) -> str | None:
    """The class of a control network's folder, or None for any other folder."""
    try:
        text = (folder / "config.json").read_text(encoding="utf-8")
        kind = json.loads(text)["_class_name"] if len(text) < 2**20 else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if kind in CLASSES else None
