"""A second pass at a larger size: upscale what was drawn, add noise, and draw the last steps again.

AUTOMATIC1111's web UI calls it "Hires. fix". Steps are counted as in all of fewstep: ``num_inference_steps``
is the whole grid, of which ``strength`` says how much is run. A1111's "Hires steps" are those that run, and
so that key of infotexts holds them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.engine import choice, fit, pictures, upscale
from fewstep.engine.backends.base import FloatArray, f32
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo, StudentInfo
    from fewstep.engine.request import GenerateRequest
    from fewstep.engine.tiling import Autoencoder

STRENGTH = 0.5
"""When none is given."""
UPSCALERS: tuple[str, ...] = ("auto", "latent", "lanczos", "nearest", *upscale.FILES)
"""``latent`` enlarges the latents; the others the decoded picture. ``auto`` is Real-ESRGAN where it is
installed, else ``lanczos``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hires:
    """A second pass as it is asked for; None is left to the first pass."""

    scale: float | None = None
    """Times the size of the first pass; either this or ``size``."""
    size: tuple[int, int] | None = None
    """(width, height) in pixels."""
    steps: int | None = None
    """Of the whole grid; None is the first pass's."""
    strength: float | None = None
    """Share of them that is run, above 0 to 1; None is 0.5. At least one step is run."""
    upscaler: str = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondPass:
    """A second pass with nothing left open."""

    width: int
    height: int
    num_inference_steps: int
    strength: float
    upscaler: str
    """Of `UPSCALERS`, but not ``auto``."""
    runs: int
    """Steps that are run."""
    scale: float | None = None
    """As it was asked for; None where the size was."""

    def record(self) -> dict[str, Any]:
        """For records, JSON-ready."""
        return dataclasses.asdict(self) | {"upscaler": upscale.FILES.get(self.upscaler, self.upscaler)}


def resolve(
    info: ModelInfo,
    wanted: Hires,
    *,
    size: tuple[int, int],
    steps: int,
    student: StudentInfo | None,
    contract: SamplingContract,
    insist: bool = False,
) -> tuple[SecondPass, SamplingContract, tuple[str, ...]]:
    """Check a second pass, and say what is odd about it.

    Args:
        info: the model.
        wanted: as it was asked for.
        size: (width, height) of the first pass.
        steps: of the first pass.
        student: who draws, if not the model itself.
        contract: of whoever draws.
        insist: keep a step count that does not fit, as in the first pass.

    Returns:
        The pass; the contract, made wider where the user insists on steps that it excludes; warnings.

    Raises:
        UsageError: a value out of range, or steps that the student was not made for.
    """
    large = _size(info, wanted, size)
    if wanted.upscaler not in UPSCALERS:
        raise UsageError(
            f"hires upscaler {wanted.upscaler!r} is not known: give one of {', '.join(UPSCALERS)}"
        )
    strength = STRENGTH if wanted.strength is None else float(wanted.strength)
    if not 0.0 < strength <= 1.0:  # also refuses NaN
        raise UsageError(f"hires strength is {strength}: give --hires-strength above 0, at most 1")
    count = steps if wanted.steps is None else wanted.steps
    limit = contract.schedule.num_train_timesteps
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or not 1 <= count <= limit:
        raise UsageError(f"hires steps is {count}: give --hires-steps a whole number from 1 to {limit}")
    if student is not None and not insist:
        choice.check_fits(
            student, num_inference_steps=count, guidance_scale=None, guidance_rescale=None, solver=None,
            eta=None,
        )  # fmt: skip
    contract, fitting, misfits = fit.fitted(
        contract, fit.Settings(num_inference_steps=int(count)), insist=insist
    )
    warnings = [f"hires: {misfit}" for misfit in misfits]
    count = fitting.num_inference_steps or int(count)
    runs = max(int(count * strength), 1)
    if note := choice.rounded_up(strength, count):
        warnings.append(f"hires: {note}")
    if student is not None and (note := choice.shortened(student, strength, runs, count)):
        warnings.append(f"hires: {note}")
    upscaler = wanted.upscaler
    if upscaler == "auto":
        upscaler = upscale.DEFAULT if upscale.DEFAULT in upscale.available() else "lanczos"
    made = SecondPass(
        width=large[0], height=large[1], num_inference_steps=count, strength=strength,
        upscaler=upscaler, runs=runs, scale=wanted.scale,
    )  # fmt: skip
    return made, contract, tuple(warnings)


def second_request(request: GenerateRequest) -> GenerateRequest:
    """The order for the second pass: the same text, seeds and guidance, another size and other steps."""
    second = request.hires
    assert second is not None
    return dataclasses.replace(
        request, width=second.width, height=second.height, strength=second.strength,
        num_inference_steps=second.num_inference_steps, first_steps=request.num_inference_steps, hires=None,
    )  # fmt: skip


def encodes(request: GenerateRequest, one: GenerateRequest) -> bool:
    """Whether a pass of a request (``one``) encodes a picture."""
    second = request.hires
    if second is None or one.hires is not None:
        return request.init_image is not None
    return second.upscaler != "latent"


def enlarged(
    coder: Autoencoder,
    latents: FloatArray,
    second: SecondPass,
    downscale: int,
    cancelled: Callable[[], bool] | None = None,
) -> FloatArray:
    """What the second pass starts from.

    Args:
        coder: decodes and encodes, if the upscaler works on pixels.
        latents: (B, C, h, w) of the first pass.
        second: size and upscaler.
        downscale: pixels per latent cell.
        cancelled: asked between tiles of Real-ESRGAN.

    Returns:
        (B, C, H, W) of the second pass's size.

    Raises:
        DependencyError, EngineError, Cancelled: as `upscale.upscale`.
    """
    if second.upscaler == "latent":
        return bilinear(latents, second.height // downscale, second.width // downscale)
    rows = []
    for pixels in coder.decode(latents):
        image = pictures.to_image(pixels)
        if second.upscaler in upscale.FILES:
            image = upscale.upscale(image, second.upscaler, cancelled=cancelled).image
        method = "nearest" if second.upscaler == "nearest" else "lanczos"
        rows.append(pictures.to_pixels(pictures.resized(image, second.width, second.height, method)))
    return coder.encode_image(np.stack(rows))


def bilinear(array: FloatArray, height: int, width: int) -> FloatArray:
    """Resize (B, C, h, w) to (B, C, height, width) as torch does, with pixel centres at halves.

    The web UI's "Latent" does the same.
    """
    for axis, wanted in ((2, height), (3, width)):
        count = array.shape[axis]
        place = np.clip((np.arange(wanted) + 0.5) * count / wanted - 0.5, 0.0, None)
        low = np.minimum(place.astype(np.int64), count - 1)
        high = np.minimum(low + 1, count - 1)
        share = (place - low).astype(np.float32).reshape([-1 if axis == other else 1 for other in range(4)])
        array = array.take(low, axis) * (np.float32(1.0) - share) + array.take(high, axis) * share
    return f32(array)


def _size(info: ModelInfo, wanted: Hires, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the second pass; a scale is rounded to sizes that can be drawn."""
    step = info.size_multiple
    if (wanted.scale is None) == (wanted.size is None):
        raise UsageError("hires needs a scale or a size: give --hires 2, or --hires WxH")
    if wanted.scale is not None:
        scale = float(wanted.scale)
        if not 1.0 <= scale <= 8.0:  # also refuses NaN
            raise UsageError(f"hires scale is {scale}: give --hires a number from 1 to 8, or WxH")
        large = (round(size[0] * scale / step) * step, round(size[1] * scale / step) * step)
    else:
        assert wanted.size is not None
        large = wanted.size
    for name, value in zip(("width", "height"), large, strict=True):
        if value % step or not 4 * step <= value <= info.max_size:
            raise UsageError(
                f"hires {name} is {value}: give --hires so that it is a multiple of {step} from "
                f"{4 * step} to {info.max_size} pixels"
            )
    return large
