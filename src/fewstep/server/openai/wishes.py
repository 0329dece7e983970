"""What a client of pictures wants, checked and in the server's words, and the order that it becomes."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import UsageError
from fewstep.server import sizes, steps
from fewstep.server.orders import Image, Order, Upscale

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fewstep.engine.backends.base import ModelInfo

Kind = Literal["png", "jpeg", "webp"]

SEEDS = 2**32
"""Seeds that are drawn by lot are below: what every client can show."""


class Refused(UsageError):
    """A value of a request that is not taken; ``param`` is the name of its field or file."""

    def __init__(self, param: str, message: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """Pictures and the form in which they are wanted."""

    settings: Mapping[str, Any]
    """Of `Order`, without what depends on the model."""
    model: str | None
    n: int
    size: tuple[int, int] | None
    """(width, height) in pixels; None is left open."""
    strength: float | None = None
    """Of a picture without a mask: what is under one is drawn anew, unless ``settings`` say otherwise."""
    level: int | None = None
    """Of `fewstep.server.steps.of_level`; None is the model's default, or what ``settings`` say."""
    quality: str = "auto"
    """The level as it is reported."""
    kind: Kind = "png"
    compression: int = 100
    """Quality of jpeg and webp, 0 to 100."""
    as_url: bool = False
    stream: bool = False
    partial: int = 0
    """Pictures before the last one."""
    identifier: str | None = None
    """Of a user of the client; given back."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """Pictures that are to be changed."""

    image: Image
    mask: npt.NDArray[np.uint8] | None = None
    """(H, W), 255 where it is redrawn."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.image.shape[1], self.image.shape[0]


def order(
    wish: Wish,
    info: ModelInfo,
    *,
    owner: str,
    save: bool,
    source: Source | None = None,
    job_id: str | None = None,
) -> Order:
    """The order of a wish.

    Args:
        wish: what is wanted.
        info: of the model that draws.
        owner: name of the key that asked.
        save: keep the pictures.
        source: what is changed.
        job_id: of the job that records it.

    Raises:
        UsageError: a size whose shape cannot be drawn.
    """
    settings = {"seed": secrets.randbelow(SEEDS), **wish.settings, "n": wish.n}
    if wish.level is not None:
        settings["num_inference_steps"] = steps.of_level(info, wish.level)
    size = wish.size
    if source is not None:
        settings |= {"init_image": source.image}
        if source.mask is not None:
            settings["mask"] = source.mask
        elif wish.strength is not None and info.inputs != "instruct":
            settings.setdefault("strength", wish.strength)
        size = size or source.size
    upscale: Upscale | None = Upscale()
    if size is not None:
        planned = sizes.plan(info, *size)
        settings |= {"width": planned.width, "height": planned.height}
        upscale = planned.upscale
    return Order(
        settings=settings, model=wish.model, owner=owner, client="openai", upscale=upscale, save=save,
        job_id=job_id,
    )  # fmt: skip


def partial_steps(total: int, wanted: int) -> tuple[int, ...]:
    """After which of ``total`` steps a picture is shown: at most ``wanted``, evenly, never after the last."""
    found = {round((index + 1) * total / (wanted + 1)) for index in range(wanted)}
    return tuple(sorted(step for step in found if 1 <= step < total))
