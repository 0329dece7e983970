"""What one order may ask for, checked before it waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewstep.engine import upscale as upscaling
from fewstep.engine.request import GenerateRequest, resolve
from fewstep.engine.upscaling import catalogue
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.server.orders import Order
    from fewstep.server.settings import Limits

_LARGEST_UPSCALE = 16
"""Times the pixels, where an upscaler is asked for without a size."""


def checked(info: ModelInfo, order: Order, limits: Limits) -> GenerateRequest:
    """What an order means for the engine.

    Args:
        info: the model that will draw it.
        order: what is asked for.
        limits: of the server.

    Raises:
        UsageError: more than the server takes, or a setting that `fewstep.engine.request.resolve` refuses.
        DependencyError: an upscaler that is not installed.
        NotFoundError, CheckpointError: as there.
    """
    settings = order.settings
    for what in ("prompt", "negative_prompt"):
        if len(settings.get(what) or "") > limits.max_prompt:
            text = f"{what} is longer than {limits.max_prompt} characters: shorten it"
            raise UsageError(text, field=what)
    for what, most in (("n", limits.max_images), ("num_inference_steps", limits.max_steps)):
        value = settings.get(what)
        if value is not None and value > most:
            raise UsageError(f"{what} is {value}: this server takes at most {most}", field=what)
    request = resolve(info, **settings)
    _check_work(request, limits)
    if len(request.adapters) > limits.max_adapters:
        text = f"{len(request.adapters)} adapters: this server takes at most {limits.max_adapters}"
        raise UsageError(text, field="adapters")
    _check_output(request, order, limits)
    _check_upscaler(order)
    return request


def _check_work(request: GenerateRequest, limits: Limits) -> None:
    work = request.width * request.height * request.num_inference_steps
    if request.hires is not None:
        work += request.hires.width * request.hires.height * request.hires.runs
    if work * request.n > limits.max_work:
        raise UsageError(
            f"{request.n} x {request.width}x{request.height} in {request.num_inference_steps} steps: "
            f"this server takes at most {limits.max_work} pixels times steps; ask for fewer or smaller ones",
            field="n" if request.n > 1 and work <= limits.max_work else "width",
        )


def _check_output(request: GenerateRequest, order: Order, limits: Limits) -> None:
    width, height = request.width, request.height
    if request.hires is not None:
        width, height = request.hires.width, request.hires.height
    pixels, upscale = width * height, order.upscale
    if upscale is not None and upscale.width is not None and upscale.height is not None:
        pixels = upscale.width * upscale.height
    elif upscale is not None and upscale.name != "none":
        pixels *= _LARGEST_UPSCALE
    if pixels > limits.max_output:
        raise UsageError(
            f"a picture of {pixels} pixels: this server makes at most {limits.max_output}; ask for less",
            field="width" if order.upscale is None else "upscale",
        )


def _check_upscaler(order: Order) -> None:
    if order.upscale is None or order.upscale.name == "none":
        return
    if order.upscale.width is None:
        upscaling.check_name(order.upscale.name)
    else:
        catalogue.resolve(order.upscale.name)
