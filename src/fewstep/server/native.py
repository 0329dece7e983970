"""From the native API's bodies to orders, and from jobs to what it says of them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from fewstep.engine.adapters import AdapterUse
from fewstep.engine.hires import Hires
from fewstep.engine.outpaint import Outpaint
from fewstep.errors import UsageError
from fewstep.server import media
from fewstep.server.orders import Order, Upscale
from fewstep.server.schemas.native import (
    GenerateBody,
    HiresBody,
    JobState,
    JobView,
    ProgressView,
    UpscaleBody,
)

if TYPE_CHECKING:
    from fewstep.server.childjob import ChildJob
    from fewstep.server.orders import Progress
    from fewstep.server.pending import Pending
    from fewstep.server.schemas.live import Draw
    from fewstep.server.settings import ServerSettings
    from fewstep.server.tables import JobRow

_AS_IT_IS = (
    "prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "guidance_rescale", "solver", "eta",
    "n", "width", "height", "student", "clip_skip", "emphasis", "strength", "masked_content", "mask_blur",
    "only_masked", "padding", "invert_mask", "variation_seed", "variation_strength", "deterministic",
    "insist", "image_guidance_scale",
)  # fmt: skip
"""Fields whose name and meaning are those of `fewstep.engine.request.resolve`."""
_TITLE = 120
SEEDS = 2**32
"""Random seeds are below this, so that every client can hold one."""


def order(body: GenerateBody, settings: ServerSettings, *, owner: str) -> Order:
    """What a body asks for; pictures in it are decoded, which takes time.

    Raises:
        UsageError, DataError, TooLarge: a picture that cannot be used.
    """
    values: dict[str, Any] = {name: value for name in _AS_IT_IS if (value := getattr(body, name)) is not None}
    values["seed"] = secrets.randbelow(SEEDS) if body.seed is None else body.seed
    for name, field in (("image", "init_image"), ("mask", "mask")):
        if (text := getattr(body, name)) is not None:
            values[field] = media.decode_text(
                text, what=name, limits=settings.limits, mask=name == "mask", allow_urls=settings.allow_urls
            )
    values |= translated(body)
    return Order(
        settings=values, model=body.model, owner=owner, client="native", upscale=upscaling(body.upscale),
        save=body.save, parent=body.parent, deadline=body.deadline,
    )  # fmt: skip


def translated(body: GenerateBody | Draw) -> dict[str, Any]:
    """The settings of a body that the engine has types of its own for.

    Raises:
        UsageError: a second pass with one of width and height.
    """
    values: dict[str, Any] = {}
    if body.hires is not None:
        values["hires"] = _hires(body.hires)
    if body.outpaint is not None:
        values["outpaint"] = Outpaint(**body.outpaint.model_dump())
    if body.adapters:
        values["adapters"] = tuple(AdapterUse(**one.model_dump()) for one in body.adapters)
    return values


def job_view(job: JobRow, pending: Pending | ChildJob | None, position: int | None) -> JobView:
    """A job as the API shows it."""
    progress = None if pending is None else pending.progress
    return JobView(
        id=job.id, kind=job.kind, client=job.client, state=cast(JobState, job.state), title=_title(job.order),
        created=job.created,
        started=job.started, finished=job.finished, position=position,
        progress=None if progress is None else progress_view(progress), result=job.result, error=job.error,
    )  # fmt: skip


def _title(order: Mapping[str, Any]) -> str:
    """Of a recorded order: the name of what long work makes, or the beginning of a prompt."""
    body, settings = order.get("body"), order.get("settings")
    if isinstance(body, Mapping):
        text = body.get("name") or ", ".join(map(str, body.get("models") or ()))
    else:
        text = settings.get("prompt", "") if isinstance(settings, Mapping) else ""
    return str(text)[:_TITLE]


def progress_view(progress: Progress) -> ProgressView:
    """How far a job is, without its preview."""
    return ProgressView(
        step=progress.step, total=progress.total, image=progress.image, images=progress.images,
        seconds=round(progress.seconds, 4), message=progress.message,
    )  # fmt: skip


def _hires(body: HiresBody) -> Hires:
    if (body.width is None) != (body.height is None):
        raise UsageError("hires has one of width and height: give both, or a scale")
    size = None if body.width is None or body.height is None else (body.width, body.height)
    return Hires(
        scale=body.scale, size=size, steps=body.steps, strength=body.strength, upscaler=body.upscaler
    )


def upscaling(body: UpscaleBody) -> Upscale | None:
    """How every picture of an order is enlarged.

    Raises:
        UsageError: one of width and height.
    """
    if (body.width is None) != (body.height is None):
        raise UsageError("upscale has one of width and height: give both, or neither")
    if body.name == "none":
        return None
    return Upscale(name=body.name, width=body.width, height=body.height)
