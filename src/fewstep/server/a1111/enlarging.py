"""What the Extras do to pictures, one after the other, within the server's limits."""

from __future__ import annotations

import asyncio
import html
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewstep.engine.upscaling import enlarge
from fewstep.errors import Cancelled, Expired, QueueFull, UsageError
from fewstep.prompt import containers
from fewstep.server import drawing
from fewstep.server.a1111 import names
from fewstep.server.a1111.desk import Desk, decoder
from fewstep.server.a1111.tracking import Tracked
from fewstep.server.schemas.a1111 import Extras

if TYPE_CHECKING:
    from starlette.requests import Request

    from fewstep.server.orders import Image
    from fewstep.server.services import Services
    from fewstep.server.settings import Limits


@dataclass(frozen=True, slots=True)
class Made:
    """Files, and what was done as HTML."""

    files: list[bytes]
    html_info: str


def wanted(body: Extras) -> enlarge.Extras:
    """The options of a request.

    Raises:
        UsageError: face restorers, which there are none of.
        NotFoundError, DependencyError: an upscaler that there is not.
    """
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if getattr(body, name) > 0.0:
            raise UsageError(f"{name} is {getattr(body, name):g}: there are no face restorers, give 0")
    to_size = body.resize_mode == 1
    visibility = body.extras_upscaler_2_visibility
    second = names.upscaler(body.upscaler_2)
    return enlarge.Extras(
        upscaler=names.upscaler(body.upscaler_1), upscaler_2=second if visibility else "none",
        visibility=visibility, scale=None if to_size else body.upscaling_resize,
        size=(body.upscaling_resize_w, body.upscaling_resize_h) if to_size else None,
        crop=body.upscaling_crop,
    )  # fmt: skip


async def run(
    texts: list[str], body: Extras, services: Services, desk: Desk, task: Tracked, request: Request
) -> Made:
    """Enlarge pictures, one at a time for the whole server.

    Stops at the next tile when the client goes away, is told to, or the time is over.

    Raises:
        UsageError, NotFoundError, DependencyError, DataError, TooLarge: as the request asks.
        QueueFull: too many wait already.
        Expired, Cancelled: stopped.
    """
    limits = services.settings.limits
    if len(texts) > limits.max_images:
        raise UsageError(f"{len(texts)} pictures: this server takes at most {limits.max_images} in a request")
    options = await asyncio.to_thread(wanted, body)
    if desk.waiting >= limits.queue:
        raise QueueFull(f"{desk.waiting} requests wait for the upscaler: try again later", retry_after=5.0)
    stop = threading.Event()
    deadline = time.monotonic() + limits.deadline
    watching = asyncio.create_task(_stop_when_gone(request, stop))
    desk.waiting += 1
    try:
        async with asyncio.timeout(limits.deadline):
            await desk.bench.acquire()
        try:
            work = asyncio.to_thread(_enlarged, texts, options, services, task, stop, deadline)
            return await asyncio.shield(asyncio.ensure_future(work))
        finally:
            stop.set()
            desk.bench.release()
    except TimeoutError:
        raise Expired(
            f"the upscaler was not free within {limits.deadline:g} seconds: try again later"
        ) from None
    finally:
        desk.waiting -= 1
        watching.cancel()


def _enlarged(
    texts: list[str],
    options: enlarge.Extras,
    services: Services,
    task: Tracked,
    stop: threading.Event,
    deadline: float,
) -> Made:
    decode = decoder(services)
    files, lines = [], []

    def cancelled() -> bool:
        return stop.is_set() or task.interrupted or time.monotonic() > deadline

    for index, text in enumerate(texts):
        what = "image" if len(texts) == 1 else f"imageList {index}"
        image = decode(text, what)
        _check_output(image, options, services.settings.limits, what)
        try:
            made = enlarge.extras(
                image, options, threads=services.settings.threads, on_progress=task.tell_tiles,
                cancelled=cancelled,
            )  # fmt: skip
        except Cancelled:
            if not stop.is_set() and not task.interrupted:
                raise Expired("the pictures were not enlarged by the deadline: ask for less") from None
            raise
        task.done += 1
        sections = {"postprocessing": made.infotext, "extras": made.infotext} if made.infotext else {}
        files.append(containers.encode(made.image, "png", record={"extras": made.record}, sections=sections))
        lines.append(made.infotext)
    return Made(files, "".join(f"<p>{html.escape(line)}</p>" for line in dict.fromkeys(lines) if line))


def _check_output(image: Image, options: enlarge.Extras, limits: Limits, what: str) -> None:
    if options.upscaler == "none":
        return
    width, height = enlarge.target(image.shape[1], image.shape[0], options)
    if width * height > limits.max_output:
        raise UsageError(
            f"{what}: the result would be {width}x{height}; this server makes at most {limits.max_output} "
            "pixels a picture, give a smaller factor or size"
        )


async def _stop_when_gone(request: Any, stop: threading.Event) -> None:
    await drawing.gone(request)
    stop.set()
