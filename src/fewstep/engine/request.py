"""What is asked of the engine and what comes back: frozen values, checked once, here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.diffusion.solvers import Solver, get_solver
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import choice
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo

Image = npt.NDArray[np.uint8]
"""Pixels (H, W, 3), 0 to 255, sRGB."""

Mask = npt.NDArray[np.uint8]
"""Weights (H, W): 0 keeps the picture, 255 redraws it, values between blend at the edge."""

MAX_IMAGES = 64
MAX_PROMPT = 20_000
"""Characters: far more than any encoder reads, and little enough to tokenise at once."""
MAX_GUIDANCE = 100.0

IMAGE_STRENGTH = 0.75
"""Strength of image-to-image when none is given."""

IMAGE_GUIDANCE = 1.5
"""Guidance by the picture of instruct models when none is given (Brooks 2022, 2211.09800)."""


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
    _check_text("prompt", prompt)
    _check_text("negative prompt", negative_prompt)
    _check_whole("seed", seed, 0, 2**63 - 1, "--seed")
    _check_whole("n", n, 1, MAX_IMAGES, "--n")
    steps = contract.num_inference_steps if num_inference_steps is None else num_inference_steps
    limit = contract.schedule.num_train_timesteps
    _check_whole("steps", steps, 1, limit, "--steps")
    if drawn_by is not None:
        choice.check_fits(
            drawn_by, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, solver=solver, eta=eta,
        )  # fmt: skip
    chosen = find_solver(contract, solver, eta)
    chosen.start(contract.make_schedule())
    grid = contract.grid(steps, chosen.name)
    scale, rescale = _guidance(contract, guidance_scale, guidance_rescale)
    if negative_prompt and (scale == 1.0 or not contract.negative_prompt_effective):
        reason = "this model, or guidance 1, does not use it"
        if drawn_by is not None:
            reason = f"student {drawn_by.name!r} does not use it; give --student none for the base model"
        warnings.append(f"the negative prompt has no effect: {reason}")
    size = _size(info, width, height, init_image)
    if size != info.native_size:
        native = "x".join(map(str, info.native_size))
        warnings.append(f"size {size[0]}x{size[1]}: the model was trained at {native}, others may look worse")
    _check_image(init_image, mask)
    _check_inputs(info, init_image, mask, strength)
    image_scale = _image_guidance(info, image_guidance_scale)
    skip = 0 if clip_skip is None else clip_skip
    if skip:
        _check_clip_skip(info, skip)
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


def _check_text(name: str, value: str) -> None:
    if len(value) > MAX_PROMPT:
        raise UsageError(f"{name} has {len(value)} characters: at most {MAX_PROMPT} are taken, shorten it")


def _check_whole(name: str, value: int, low: int, high: int, flag: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise UsageError(f"{name} is {value!r}: give {flag} a whole number")
    if value < low:
        need = "at least one step is needed, " if name == "steps" else ""
        raise UsageError(f"{name} is {value}: {need}give {flag} {low} or more")
    if value > high:
        raise UsageError(f"{name} is {value}: give {flag} at most {high}")


def _guidance(contract: SamplingContract, scale: float | None, rescale: float | None) -> tuple[float, float]:
    value = contract.guidance_scale if scale is None else float(scale)
    if not math.isfinite(value):
        raise UsageError(f"guidance is {value}: give --guidance a finite number, 1 for no guidance")
    if contract.guidance == "off" and value != 1.0:
        raise UsageError(f"guidance is {value:g}: this model draws without, leave --guidance out")
    low, high = contract.guidance_range or (1.0, MAX_GUIDANCE)
    # Without guidance at all is always possible: it is one evaluation instead of two.
    if value != 1.0 and not low <= value <= high:
        raise UsageError(f"guidance is {value:g}: give --guidance from {low:g} to {high:g}")
    again = contract.guidance_rescale if rescale is None else float(rescale)
    if not 0.0 <= again <= 1.0:
        raise UsageError(f"guidance rescale is {again}: give --guidance-rescale a number from 0 to 1")
    return value, again


def _size(info: ModelInfo, width: int | None, height: int | None, image: Image | None) -> tuple[int, int]:
    step = info.size_multiple
    if width is None and height is None:
        if image is None:
            return info.native_size
        return _like(info, image.shape[1], image.shape[0])
    chosen = (
        info.native_size[0] if width is None else width,
        info.native_size[1] if height is None else height,
    )
    low = 4 * step
    for name, value in zip(("width", "height"), chosen, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value % step:
            raise UsageError(f"{name} is {value}: give --size in multiples of {step} pixels")
        if not low <= value <= info.max_size:
            raise UsageError(f"{name} is {value}: give --size from {low} to {info.max_size} pixels")
    return int(chosen[0]), int(chosen[1])


def _like(info: ModelInfo, width: int, height: int) -> tuple[int, int]:
    """About as many pixels as the native size, in the shape of a picture."""
    step, (native_w, native_h) = info.size_multiple, info.native_size
    factor = math.sqrt(native_w * native_h / (width * height))

    def rounded(side: int) -> int:
        return min(max(round(side * factor / step) * step, 4 * step), info.max_size // step * step)

    return rounded(width), rounded(height)


def _check_image(image: Image | None, mask: Mask | None) -> None:
    if image is not None and (image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8):
        raise UsageError(f"image has shape {image.shape}, {image.dtype}: give 8-bit RGB pixels (H, W, 3)")
    if mask is None:
        return
    if image is None:
        raise UsageError("mask is given without an image: give --image, or leave --mask out")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise UsageError(f"mask has shape {mask.shape}, {mask.dtype}: give 8-bit grey pixels (H, W)")
    if mask.shape != image.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (mask.shape, image.shape)]
        raise UsageError(f"mask is {sizes[0]} and image is {sizes[1]}: give both in the same size")
    if not mask.any():
        raise UsageError("mask is black everywhere, so nothing would be drawn: paint white what may change")


def _check_inputs(info: ModelInfo, image: Image | None, mask: Mask | None, strength: float | None) -> None:
    """What an instruct model must have, and what it has no use for."""
    if info.inputs != "instruct":
        return
    if image is None:
        raise UsageError(f"model {info.name} changes a picture by an instruction: give --image")
    if mask is not None:
        raise UsageError(f"model {info.name} changes the whole picture: leave --mask out")
    if strength is not None and strength != 1.0:
        raise UsageError(
            f"strength is {strength}: model {info.name} is shown the picture beside the noise; leave "
            "--strength out, and say with --image-guidance how much of it should stay"
        )


def _image_guidance(info: ModelInfo, scale: float | None) -> float:
    if info.inputs != "instruct":
        if scale is not None and scale != 1.0:
            raise UsageError(
                f"image guidance is {scale}: model {info.name} takes no instructions, leave "
                "--image-guidance out"
            )
        return 1.0
    value = IMAGE_GUIDANCE if scale is None else float(scale)
    if not 1.0 <= value <= MAX_GUIDANCE:  # also refuses NaN
        raise UsageError(f"image guidance is {value}: give --image-guidance from 1 to {MAX_GUIDANCE:g}")
    return value


def _check_clip_skip(info: ModelInfo, value: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and 0 <= value <= info.max_clip_skip:
        return
    if info.max_clip_skip == 0:
        raise UsageError(
            f"clip skip is {value}: model {info.name} has no layers to skip, leave --clip-skip out"
        )
    raise UsageError(f"clip skip is {value}: give --clip-skip from 0 to {info.max_clip_skip}")
