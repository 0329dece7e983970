"""A request of a client in the server's words: the orders that it becomes, and what is to be said of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fewstep.engine import adapters as adapting
from fewstep.engine import prompts
from fewstep.errors import UsageError
from fewstep.prompt import styles as styling
from fewstep.prompt.networks import cut_networks
from fewstep.server.a1111 import fitting, names
from fewstep.server.a1111.options import EMPHASES
from fewstep.server.orders import Image, Order
from fewstep.server.schemas.a1111 import Generation

if TYPE_CHECKING:
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.server.settings import Limits

SEEDS = 2**32 - 1
"""Seeds that are drawn by lot are below, as in the WebUI."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setting:
    """Where a request is drawn."""

    info: ModelInfo
    owner: str
    options: dict[str, Any]
    """Of the caller, with those of the request."""
    limits: Limits
    styles: Sequence[styling.Style] = ()
    decode: Callable[..., Image]
    """A text of the request, what it is called, and ``mask=True`` for a mask -> pixels."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Wish:
    """What is to be drawn."""

    orders: list[Order]
    """More than one where every picture starts from a picture of its own."""
    body: Generation
    """With everything filled in."""
    images: int
    """Of all orders."""
    seed: int
    subseed: int
    asked: dict[str, Any] = field(default_factory=dict)
    """What is drawn otherwise than it was asked for, by the keys of infotexts."""
    comments: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Common:
    """What both kinds of requests share."""

    settings: dict[str, Any]
    asked: dict[str, Any]
    comments: list[str]
    images: int
    seed: int
    subseed: int


def common(body: Generation, at: Setting) -> Common:
    """Texts, seeds, and what is drawn with; everything but sizes and pictures.

    Raises:
        UsageError: a value out of range, a script, or a further model.
        NotFoundError: an unknown sampler, scheduler, style or student.
    """
    check_scripts(body)
    _check_models(body, at)
    images = body.batch_size * body.n_iter
    if images > at.limits.max_images:
        raise UsageError(
            f"batch_size {body.batch_size} x n_iter {body.n_iter} is {images} pictures: this server takes at "
            f"most {at.limits.max_images} in a request"
        )
    if body.steps is not None and body.steps > at.limits.max_steps:
        raise UsageError(f"steps is {body.steps}: this server takes at most {at.limits.max_steps}")
    prompt, negative = styling.apply(
        body.prompt, body.negative_prompt, styling.find(at.styles, body.styles or ())
    )
    comments: list[str] = []
    if body.disable_extra_networks:
        prompt, cut, _ = cut_networks(prompt)
        comments += [f"<{one.kind}:{one.name}> is left out, as disable_extra_networks says" for one in cut]
    fit = fitting.fitted(at.info, _asked(body, at, prompt, bool(negative.strip())))
    seed = by_lot(body.seed)
    settings = {
        **fit.settings, "prompt": prompt, "negative_prompt": negative, "seed": seed, "n": images,
        "emphasis": EMPHASES[str(at.options["emphasis"]).lower()],
    }  # fmt: skip
    subseed = by_lot(body.subseed)
    if body.subseed_strength > 0.0:
        settings |= {"variation_seed": subseed, "variation_strength": body.subseed_strength}
    skip = int(at.options["CLIP_stop_at_last_layers"]) - 1
    if skip > at.info.max_clip_skip:
        comments.append(
            f"CLIP_stop_at_last_layers {skip + 1} has no effect: {at.info.name} cannot skip so many"
        )
    elif skip:
        settings["clip_skip"] = skip
    comments += _without_effect(body)
    return Common(
        settings=settings, asked=fit.asked, comments=[*fit.comments, *comments], images=images, seed=seed,
        subseed=subseed,
    )  # fmt: skip


def by_lot(seed: int | None) -> int:
    """A seed; -1 and None are drawn by lot."""
    return secrets.randbelow(SEEDS) if seed is None or seed < 0 else seed


def seed_size(body: Generation, drawn: tuple[int, int], info: ModelInfo) -> dict[str, Any]:
    """The setting of ``seed_resize_from``, in the size that is drawn; empty where it is not asked for.

    Raises:
        UsageError: larger than what the model draws.
    """
    width, height = body.seed_resize_from_w or 0, body.seed_resize_from_h or 0
    if width <= 0 or height <= 0:
        return {}
    down = info.downscale
    scaled = (width * drawn[0] / body.width, height * drawn[1] / body.height)
    if max(scaled) > info.max_size:
        most = (info.max_size * body.width // drawn[0], info.max_size * body.height // drawn[1])
        raise UsageError(
            f"seed_resize_from is {width}x{height}: {info.name} takes at most {most[0]}x{most[1]} here"
        )
    wide, tall = (max(int(side) // down, 1) * down for side in scaled)
    return {"seed_resize": (wide, tall)}


def check_scripts(body: Generation) -> None:
    """Refuse scripts: there are none. One that is switched off is none.

    Raises:
        UsageError: with the name.
    """
    if body.script_name is not None:
        raise UsageError(f"script {body.script_name[:60]!r}: not found; there are: none")
    for name, script in body.alwayson_scripts.items():
        args = script.get("args", script) if isinstance(script, dict) else script
        if not _off(args):
            raise UsageError(f"always-on script {name[:60]!r}: not found; there are: none")


def _off(args: Any) -> bool:
    """Whether an always-on script's arguments ask for nothing: none, or a first one that says so."""
    if not args:
        return True
    units = list(args.values()) if isinstance(args, dict) else args
    if not isinstance(units, list):
        return False
    if units[0] is False:
        return True
    return all(isinstance(one, dict) and one.get("enabled", one.get("enable")) is False for one in units)


def _check_models(body: Generation, at: Setting) -> None:
    others = {
        "refiner_checkpoint": body.refiner_checkpoint,
        "hr_checkpoint_name": getattr(body, "hr_checkpoint_name", None),
    }
    for name, value in others.items():
        if value is None or value.lower() == "use same checkpoint" or value.startswith(at.info.name):
            continue
        raise UsageError(f"{name} is {value[:60]!r}: one model draws the whole picture here, leave it out")


def _asked(body: Generation, at: Setting, prompt: str, negative: bool) -> fitting.Asked:
    solver = spacing = None
    if (name := body.sampler_name or body.sampler_index) is not None:
        solver, spacing = names.sampler(name)
    if body.scheduler is not None:
        spacing = names.scheduler(body.scheduler).spacing or spacing
    for further in ("hr_sampler_name", "hr_scheduler"):
        text = getattr(body, further, None)
        if text is not None and not text.lower().startswith("use same"):
            (names.sampler if further == "hr_sampler_name" else names.scheduler)(text)
    uses, _ = prompts.adapters(prompt)
    few = bool(uses) and adapting.choose(at.info, uses)[1] is not None
    student = str(at.options["fewstep_student"])
    chosen = {"automatic": None, "none": "none"}.get(student.lower(), student)
    return fitting.Asked(
        num_inference_steps=body.steps, guidance_scale=body.cfg_scale, solver=solver, spacing=spacing,
        eta=body.eta, negative=negative, few_step_adapter=few, insist=bool(at.options["fewstep_insist"]),
        student=chosen,
    )  # fmt: skip


def _without_effect(body: Generation) -> list[str]:
    said = []
    if body.restore_faces:
        said.append("restore_faces has no effect: there are no face restorers")
    if body.tiling:
        said.append("tiling has no effect: pictures that repeat without a seam are not drawn")
    if body.s_churn:
        said.append("s_churn has no effect: no sampler here adds noise that way")
    for name, same in (("hr_sampler_name", "sampler"), ("hr_scheduler", "scheduler")):
        text = getattr(body, name, None)
        if text is not None and not text.lower().startswith("use same"):
            said.append(f"{name} has no effect: the second pass is drawn with the first one's {same}")
    for name, own in (("hr_prompt", body.prompt), ("hr_negative_prompt", body.negative_prompt)):
        if (text := getattr(body, name, None)) and text != own:
            said.append(f"{name} has no effect: the second pass is drawn with the first one's")
    return said
