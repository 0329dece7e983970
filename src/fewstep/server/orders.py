"""What every API's order becomes, and what comes back: the words between routes and the generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""Pixels (H, W, 3), 0 to 255, sRGB."""

Client = Literal["a1111", "openai", "native", "live"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Upscale:
    """Enlarge every picture before it is given out: to a size, or by the network's own factor."""

    name: str = "auto"
    """An upscaler of `fewstep.engine.upscaling.catalogue`, or ``auto``."""
    width: int | None = None
    """Pixels; with ``height``, or neither."""
    height: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Order:
    """Pictures to draw. Checked and filled in by `fewstep.engine.request.resolve` when it is submitted."""

    settings: Mapping[str, Any]
    """Keyword arguments of `fewstep.engine.request.resolve`; ``prompt`` at least."""
    model: str | None = None
    """A name of the registry; None is the server's model."""
    owner: str = ""
    """Name of the key that asked; pictures and jobs are its own."""
    client: Client = "native"
    upscale: Upscale | None = None
    save: bool = True
    """Keep the pictures in the history."""
    parent: str | None = None
    """Id of the picture in the history that this one was made from."""
    deadline: float | None = None
    """Seconds from now; None is the server's."""
    recorded: bool = True
    """Whether the order is a job in the database; pictures that are seen for a moment only are none."""
    idempotency_key: str | None = None
    """The caller's name for this one order: sent again, it is not done again."""
    fingerprint: str | None = None
    """Of the request that the key stands for, see `fewstep.server.jobstore.fingerprint`."""
    job_id: str | None = None
    """Of a job that is recorded already, when it is done again; None records one."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further entries of the pictures' infotext."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progress:
    """How far an order is. Made in the worker's thread after every step."""

    step: int
    """Steps that are done, over all pictures of the order."""
    total: int
    image: int
    """First of the pictures that are being drawn, from 0."""
    images: int
    """How many the order has."""
    seconds: float
    """Since it began to run."""
    message: str | None = None
    """What long work says of itself."""
    preview: Callable[[], Image] | None = None
    """The denoised estimate of picture ``image`` as pixels; a decode, within the callback only."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """Pictures of an order."""

    images: list[Image]
    seeds: list[int]
    records: list[dict[str, Any]]
    """One per picture: everything that decided its pixels, JSON-ready."""
    infotexts: list[str]
    """One per picture, as the WebUI writes it."""
    ids: list[str]
    """In the history; empty when they were not kept."""
    timings: Mapping[str, float]
    """Seconds of: text, encode, denoise, decode, upscale, total; and waited."""
    warnings: list[str]
    width: int
    """Of the finished pictures."""
    height: int
    drawn_width: int
    """Before upscaling."""
    drawn_height: int
