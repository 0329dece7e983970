"""What is asked of the engine and what comes back: frozen values, checked once, here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.diffusion.solvers import Solver, get_solver
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import checks, choice
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo

Image = npt.NDArray[np.uint8]
"""Pixels (H, W, 3), 0 to 255, sRGB."""

Mask = npt.NDArray[np.uint8]
"""Weights (H, W): 0 keeps the picture, 255 redraws it, values between blend at the edge."""

MAX_IMAGES = 64

IMAGE_STRENGTH = 0.75
"""Strength of image-to-image when none is given."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerateRequest:
    """One complete order: nothing is left to be filled in. `resolve` makes it."""

    model: str
    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    guidance_rescale: float
    solver: str
    seed: int
    """Image i is drawn from the noise of seed + i."""
    n: int
    width: int
    """Pixels that are drawn, before any upscaling."""
    height: int
    init_image: Image | None = None
    """Of any size; it is brought to width x height."""
    strength: float = 1.0
    """Share of the steps that is done on ``init_image``."""
    mask: Mask | None = None
    """Of the size of ``init_image``."""
    eta: float | None = None
    deterministic: bool = False
    """Draw in batches of one, so that each image has the bits that it has alone."""
    warnings: tuple[str, ...] = ()
    """What was found odd but not wrong."""
    student: str | None = None
    """Whose denoiser draws, by name; None is the model's own."""
    clip_skip: int = 0
    """Last layers of the text encoder that are left out."""
    image_guidance_scale: float = 1.0
    """Of instruct models: how strongly the picture guides; 1 is no guidance by it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerateResult:
    """What was drawn."""

    images: list[Image]
    seeds: list[int]
    record: dict[str, Any]
    """Everything that decided the pixels, JSON-ready and the same for the same request: no times, no
    paths."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds of: text, encode, denoise, decode, total."""
    warnings: list[str] = field(default_factory=list)


def resolve(
    info: ModelInfo,
    *,
    prompt: str,
    negative_prompt: str = "",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    guidance_rescale: float | None = None,
    solver: str | None = None,
    seed: int = 0,
    n: int = 1,
    width: int | None = None,
    height: int | None = None,
    init_image: Image | None = None,
    strength: float | None = None,
    mask: Mask | None = None,
    eta: float | None = None,
    deterministic: bool = False,
    student: str | None = None,
    clip_skip: int | None = None,
    image_guidance_scale: float | None = None,
) -> GenerateRequest:
    """Fill in what was not given from the sampling contract of whoever draws, and check everything.

    Args:
        info: the model, from ``Engine.info``.
        prompt: what to draw; empty draws without a text.
        negative_prompt: what to stay away from; works through guidance.
        num_inference_steps: from 1; None is the model's default.
        guidance_scale: 1 is no guidance; None is the model's default.
        guidance_rescale: 0 to 1; None is the model's default.
        solver: a name of ``fewstep.diffusion.solvers.SOLVERS``; None is the model's own.
        seed: from 0.
        n: number of images, 1 to 64.
        width: pixels; None is the model's native width, or follows ``init_image``'s shape.
        height: pixels; as ``width``.
        init_image: (H, W, 3) uint8: start from this picture.
        strength: how much of it may change, above 0 to 1; None is 0.75, and 1 with a mask.
        mask: (H, W) uint8 of the picture's size, 255 where it is redrawn.
        eta: for solvers that have it.
        deterministic: batches of one.
        student: name of a student of the model, "none" for the model itself; None leaves it to the step
            count, see `fewstep.engine.choice`.
        clip_skip: last layers of a CLIP text encoder to leave out, as diffusers counts them; None is none.
        image_guidance_scale: for instruct models, from 1; None is 1.5.

    Raises:
        UsageError: a value out of range, or two that contradict each other.
        NotFoundError: the model has no student of that name.
    """
    guided = guidance_scale is not None or guidance_rescale is not None or bool(negative_prompt)
    drawn_by = choice.choose(info, student, num_inference_steps=num_inference_steps, guided=guided)
    contract = info.contract if drawn_by is None else drawn_by.contract
    warnings: list[str] = []
    checks.check_text("prompt", prompt)
    checks.check_text("negative prompt", negative_prompt)
    checks.check_whole("seed", seed, 0, 2**63 - 1, "--seed")
    checks.check_whole("n", n, 1, MAX_IMAGES, "--n")
    steps = contract.num_inference_steps if num_inference_steps is None else num_inference_steps
    limit = contract.schedule.num_train_timesteps
    checks.check_whole("steps", steps, 1, limit, "--steps")
    if drawn_by is not None:
        choice.check_fits(
            drawn_by, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, solver=solver, eta=eta,
        )  # fmt: skip
    chosen = find_solver(contract, solver, eta)
    chosen.start(contract.make_schedule())
    grid = contract.grid(steps, chosen.name)
    scale, rescale = checks.guidance(contract, guidance_scale, guidance_rescale)
    if negative_prompt and (scale == 1.0 or not contract.negative_prompt_effective):
        reason = "this model, or guidance 1, does not use it"
        if drawn_by is not None:
            reason = f"student {drawn_by.name!r} does not use it; give --student none for the base model"
        warnings.append(f"the negative prompt has no effect: {reason}")
    size = checks.size(info, width, height, init_image)
    if size != info.native_size:
        native = "x".join(map(str, info.native_size))
        warnings.append(f"size {size[0]}x{size[1]}: the model was trained at {native}, others may look worse")
    checks.check_image(init_image, mask)
    checks.check_inputs(info, init_image, mask, strength)
    image_scale = checks.image_guidance(info, image_guidance_scale)
    skip = 0 if clip_skip is None else clip_skip
    if skip:
        checks.check_clip_skip(info, skip)
    if init_image is None and strength is not None:
        raise UsageError("strength is given without an image: give --image, or leave --strength out")
    if strength is None:
        whole = init_image is None or mask is not None or info.inputs == "instruct"
        strength = 1.0 if whole else IMAGE_STRENGTH
    if init_image is not None:
        kept = len(truncate_for_strength(grid, strength)) - 1
        if drawn_by is not None and (warning := choice.shortened(drawn_by, strength, kept, steps)):
            warnings.append(warning)
    return GenerateRequest(
        model=info.name, prompt=prompt, negative_prompt=negative_prompt, num_inference_steps=steps,
        guidance_scale=scale, guidance_rescale=rescale, solver=chosen.name, seed=seed, n=n, width=size[0],
        height=size[1], init_image=init_image, strength=float(strength), mask=mask, eta=eta,
        deterministic=deterministic, warnings=tuple(warnings),
        student=None if drawn_by is None else drawn_by.name, clip_skip=skip, image_guidance_scale=image_scale,
    )  # fmt: skip


def find_solver(contract: SamplingContract, name: str | None, eta: float | None) -> Solver:
    """The solver of a request; the contract's own parameters hold for the contract's own solver only.

    Raises:
        UsageError: unknown name, or a parameter that the solver does not have.
    """
    if name is None or name == contract.solver:
        own = contract.eta if eta is None else eta
        return get_solver(
            contract.solver, eta=own, gamma=contract.gamma, boundary_scaling=contract.boundary_scaling
        )
    return get_solver(name, eta=eta)
