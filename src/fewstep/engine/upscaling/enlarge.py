"""What the Extras tab of AUTOMATIC1111's web UI does with a picture: to a factor or a size, by two upscalers.

An upscaler is run as often as the target needs, at most three times, as there; Lanczos brings what came out
to the exact size. Transparency is kept: colours run on under what is transparent, so that none bleeds in, and
the alpha channel is enlarged by the same network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.engine import masks, pictures
from fewstep.engine.upscaling import catalogue, tiles
from fewstep.engine.upscaling.catalogue import Network, Upscaler
from fewstep.engine.upscaling.networks import runner
from fewstep.engine.upscaling.tiles import Runner
from fewstep.errors import Cancelled, UsageError

Image = npt.NDArray[np.uint8]

MAX_PIXELS = 2**26
"""Most pixels of a result and of anything on the way to it, 8192x8192: 0.2 GB each as 8-bit RGB, of which
five are in memory at worst (two results, their blend, one being resized, one being encoded)."""
MAX_FACTOR = 16.0
MAX_PASSES = 3
"""Runs of one upscaler over its own result, as in the web UI."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What is asked for; the fields of the web UI's API are in brackets."""

    upscaler: str = "auto"
    """A name of `catalogue.names`, or ``none`` to leave the picture as it is [upscaler_1]."""
    upscaler_2: str = "none"
    """Blended over the first [upscaler_2]."""
    visibility: float = 0.0
    """Of the second, 0 to 1 [extras_upscaler_2_visibility]."""
    scale: float | None = None
    """Times the size, above 0 to 16 [upscaling_resize]; None is 4 where no size is given."""
    size: tuple[int, int] | None = None
    """(width, height) that the result covers [upscaling_resize_w, upscaling_resize_h]."""
    crop: bool = True
    """Cut what goes over ``size`` off evenly; else one side may be larger [upscaling_crop]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Enlarged:
    """A result and how it was made."""

    image: Image
    """Channels as of the picture that was given."""
    record: dict[str, Any] = field(default_factory=dict)
    """JSON-ready."""
    infotext: str = ""
    """The items that the web UI writes: "Postprocess upscale by: 2, Postprocess upscaler: …"."""


Step = Network | Runner
"""One pass: a network of the catalogue, or one that is open already."""


def check(options: Extras, others: Mapping[str, Runner] | None = None) -> None:
    """Refuse options that do not fit together or cannot be run here, before any work.

    Args:
        options: what is asked for.
        others: further networks that may be named.

    Raises:
        UsageError: a value out of range, or an unknown upscaler.
        DependencyError: an upscaler that is not installed.
    """
    for name in (options.upscaler, options.upscaler_2):
        if name.lower() != "none" and name not in (others or {}):
            catalogue.resolve(name)
    if not 0.0 <= options.visibility <= 1.0:  # also refuses NaN
        raise UsageError(f"visibility is {options.visibility}: give 0 to 1")
    if options.scale is not None and options.size is not None:
        raise UsageError("both a factor and a size are given: give one of them")
    if options.scale is not None and not 0.0 < options.scale <= MAX_FACTOR:
        raise UsageError(f"factor is {options.scale}: give a number above 0, at most {MAX_FACTOR:g}")
    if options.size is not None and min(options.size) < 1:
        raise UsageError(f"size is {options.size[0]}x{options.size[1]}: give at least 1 pixel a side")


def target(width: int, height: int, options: Extras) -> tuple[int, int]:
    """(width, height) before cropping.

    Raises:
        UsageError: more than `MAX_PIXELS`.
    """
    if options.size is None:
        factor = 4.0 if options.scale is None else options.scale
        wanted = max(round(width * factor), 1), max(round(height * factor), 1)
    else:
        factor = max(options.size[0] / width, options.size[1] / height)
        wanted = (
            max(round(width * factor), options.size[0]), max(round(height * factor), options.size[1])
        )  # fmt: skip
    _check_pixels(*wanted, "the result")
    return wanted


def passes(upscaler: Upscaler, width: int, height: int, wanted: tuple[int, int]) -> list[Step]:
    """The networks that are run one after the other; empty where nothing is to be larger.

    Of several scales the smallest that is enough is taken, else the largest. Noise is removed once.

    Raises:
        UsageError: what is between two of them has more than `MAX_PIXELS`.
    """
    need = max(wanted[0] / width, wanted[1] / height)
    made: list[Step] = []
    reached = 1
    while len(made) < MAX_PASSES and (reached < need - 1e-9 or (upscaler.cleans and not made)):
        networks = upscaler.again if made and upscaler.again else upscaler.networks
        scale = min((s for s in networks if reached * s >= need - 1e-9), default=max(networks))
        made.append(networks[scale])
        reached *= scale
        _check_pixels(width * reached, height * reached, f"what {upscaler.name} makes on the way")
    return made


def extras(
    image: Image,
    options: Extras,
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    others: Mapping[str, Runner] | None = None,
) -> Enlarged:
    """Enlarge a picture, or only clean it.

    Args:
        image: (H, W, 3) uint8, or (H, W, 4) with alpha.
        options: what is asked for.
        threads: CPU threads; None is all cores.
        on_progress: told (done, total) runs of networks.
        cancelled: asked before each of them.
        others: further networks that ``options`` may name, open already.

    Raises:
        UsageError: as `check`, or a result that is too large.
        DependencyError, EngineError, Cancelled: as the networks.
    """
    others = others or {}
    check(options, others)
    if image.ndim != 3 or image.shape[2] not in (3, 4) or image.dtype != np.uint8 or 0 in image.shape:
        raise UsageError(f"image has shape {image.shape}, {image.dtype}: give 8-bit RGB(A), (H, W, 3 or 4)")
    if options.upscaler.lower() == "none":
        return Enlarged(image=image)
    height, width = image.shape[:2]
    wanted = target(width, height, options)
    asked = [options.upscaler]
    if options.upscaler_2.lower() != "none" and options.visibility > 0.0:
        asked.append(options.upscaler_2)
    used = [name if name in others else catalogue.resolve(name) for name in asked]
    plans = {name: _plan(name, others, width, height, wanted) for name in used}
    alpha = image[..., 3] if image.shape[2] == 4 else None
    told = _Told(on_progress, _runs(plans.values(), width, height, alpha))
    work = _Work(threads, told, cancelled)
    results = [_by(name, image, alpha, plans[name], wanted, work) for name in used]
    made = results[0] if len(results) == 1 else blend(results[0], results[1], options.visibility)
    if options.size is not None and options.crop:
        made = cropped(made, *options.size)
    record, text = _records(options, used, plans, made)
    return Enlarged(image=made, record=record, infotext=text)


def blend(first: Image, second: Image, visibility: float) -> Image:
    """``first`` at visibility 0, ``second`` at 1; as Pillow blends, which is what the web UI uses."""
    from PIL import Image as PILImage

    return np.asarray(PILImage.blend(PILImage.fromarray(first), PILImage.fromarray(second), visibility))


def cropped(image: Image, width: int, height: int) -> Image:
    """The middle of a picture that is at least as large."""
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


class _Told:
    def __init__(self, on_progress: Callable[[int, int], None] | None, total: int) -> None:
        self._on_progress, self._total, self._done = on_progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


@dataclass(frozen=True, slots=True)
class _Work:
    threads: int | None
    told: _Told
    cancelled: Callable[[], bool] | None


def _plan(
    name: str, others: Mapping[str, Runner], width: int, height: int, wanted: tuple[int, int]
) -> list[Step]:
    if name in catalogue.PLAIN:
        return []
    if name not in others:
        return passes(catalogue.UPSCALERS[name], width, height, wanted)
    own = others[name]
    need, reached, count = max(wanted[0] / width, wanted[1] / height), 1, 0
    # A network of scale 1 cleans, and is run once whatever the size.
    while count < MAX_PASSES and (
        (own.scale > 1 and reached < need - 1e-9) or (own.scale == 1 and not count)
    ):
        reached, count = reached * own.scale, count + 1
        _check_pixels(width * reached, height * reached, f"what {name} makes on the way")
    return [own] * count


def _runs(plans: Any, width: int, height: int, alpha: Image | None) -> int:
    total = 0
    for networks in plans:
        reached = 1
        for network in networks:
            total += tiles.count(height * reached, width * reached, network.geometry)
            reached *= network.scale
    return total * (2 if _has_edges(alpha) else 1)


def _has_edges(alpha: Image | None) -> bool:
    return alpha is not None and int(alpha.min()) != int(alpha.max())


def _by(
    name: str,
    image: Image,
    alpha: Image | None,
    networks: Sequence[Step],
    wanted: tuple[int, int],
    work: _Work,
) -> Image:
    """A picture by one upscaler, in the size that is wanted."""
    if work.cancelled is not None and work.cancelled():
        raise Cancelled("stopped by request before upscaling")
    method = "nearest" if name == "nearest" else "lanczos"
    colours = image[..., :3]
    if alpha is not None and method == "lanczos" and int(alpha.min()) == 0:
        colours = masks.filled(colours, np.where(alpha == 0, 255, 0).astype(np.uint8))
    made = pictures.resized(_through(np.ascontiguousarray(colours), networks, work), *wanted, method)
    if alpha is None:
        return made
    plane = alpha
    if networks and _has_edges(alpha):
        plane = _through(np.repeat(alpha[..., None], 3, axis=2), networks, work)[..., 1]
        # Networks overshoot at edges and shift plain areas by a few levels: stay between the neighbours.
        low, high = _neighbours(alpha, plane.shape[0] // alpha.shape[0])
        plane = np.clip(plane, low, high)
    resized = pictures.resized(np.ascontiguousarray(plane), *wanted, method)
    return np.concatenate([made, resized[..., None]], axis=2)


def _through(image: Image, networks: Sequence[Step], work: _Work) -> Image:
    for network in networks:
        with contextlib.ExitStack() as stack:
            ready = network
            if isinstance(ready, Network):
                ready = stack.enter_context(runner(ready, work.threads))
            image = tiles.enlarge(image, ready, on_tile=work.told, cancelled=work.cancelled)
    return image


def _neighbours(alpha: Image, scale: int) -> tuple[Image, Image]:
    """Least and largest alpha of the 3x3 pixels around each, ``scale`` times as large."""
    from PIL import Image as PILImage
    from PIL import ImageFilter

    picture = PILImage.fromarray(np.pad(alpha, 1, mode="edge"))
    found = []
    for kind in (ImageFilter.MinFilter(3), ImageFilter.MaxFilter(3)):
        plane = np.asarray(picture.filter(kind))[1:-1, 1:-1]
        found.append(plane.repeat(scale, axis=0).repeat(scale, axis=1))
    return found[0], found[1]


def _check_pixels(width: int, height: int, what: str) -> None:
    if width * height > MAX_PIXELS:
        raise UsageError(
            f"{what} would be {width}x{height}: at most {MAX_PIXELS:,} pixels are made, such as 8192x8192; "
            "give a smaller factor or size, or an upscaler of a smaller factor"
        )


def _records(
    options: Extras, used: Sequence[str], plans: Mapping[str, Sequence[Step]], made: Image
) -> tuple[dict[str, Any], str]:
    """The JSON record and the web UI's items, whose keys and order are those of its postprocessing script."""
    shown = [_shown(name, plans) for name in used]
    items: dict[str, object] = {}
    record: dict[str, Any] = {"upscaler": shown[0]}
    if options.size is not None:
        record["size"] = list(options.size)
        items["Postprocess upscale to"] = f"{options.size[0]}x{options.size[1]}"
    else:
        record["scale"] = 4.0 if options.scale is None else options.scale
        items["Postprocess upscale by"] = f"{record['scale']:g}"
    if options.size is not None and options.crop:
        record["crop"] = True
        items["Postprocess crop to"] = f"{made.shape[1]}x{made.shape[0]}"
    items["Postprocess upscaler"] = shown[0]
    if len(shown) > 1:
        record |= {"upscaler_2": shown[1], "visibility": options.visibility}
        items["Postprocess upscaler 2"] = shown[1]
    from fewstep.prompt import infotext

    return record, infotext.write("", fields=items)


def _shown(name: str, plans: Mapping[str, Sequence[Step]]) -> str:
    """As records call an upscaler: its network's file, where there is one."""
    first = next(iter(plans[name]), None)
    return first.name if isinstance(first, Network) else name
