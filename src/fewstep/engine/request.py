"""What is asked of the engine and what comes back: frozen values, checked once, here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewstep.diffusion.solvers import Solver, get_solver
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import adapters as adapting
from fewstep.engine import checks, choice, fit, masks, modes, prompts, variation
from fewstep.engine import control as controls
from fewstep.engine import embeddings as learned
from fewstep.engine import hires as second_pass
from fewstep.engine import tiling as tiles
from fewstep.errors import UsageError

if TYPE_CHECKING:
    from fewstep.diffusion.contract import SamplingContract
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.control import ControlUse
    from fewstep.engine.outpaint import Outpaint
    from fewstep.prompt.attention import EmphasisMode

Image = npt.NDArray[np.uint8]
"""Pixels (H, W, 3), 0 to 255, sRGB."""

Mask = npt.NDArray[np.uint8]
"""Weights (H, W): 0 keeps the picture, 255 redraws it, values between blend at the edge."""

MAX_IMAGES = 64

IMAGE_STRENGTH = modes.IMAGE_STRENGTH


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
    emphasis: EmphasisMode = "original"
    """How weights in the prompts are applied, see `fewstep.prompt.emphasis`."""
    first_steps: int | None = None
    """Of a second pass: the steps of the first, from which editing in the prompts counts on."""
    masking: masks.Masking = masks.PLAIN
    """How ``mask`` is used."""
    outpaint: Outpaint | None = None
    """By how much ``init_image`` is larger than the picture that was given; ``mask`` covers that part."""
    hires: second_pass.SecondPass | None = None
    """A second pass at a larger size."""
    variation: variation.Variation | None = None
    """The first noise lies between those of two seeds."""
    vae_tiling: bool = False
    """Encode and decode in tiles."""
    control: tuple[ControlUse, ...] = ()
    """Networks that steer the denoiser, and their pictures."""
    adapters: tuple[adapting.Chosen, ...] = ()
    """Adapters in the weights while it is drawn."""
    embeddings: tuple[learned.ChosenEmbedding, ...] = ()
    """Textual-inversion embeddings that the prompts name."""
    contract: SamplingContract | None = None
    """How it is sampled, where that is not as the model or the student says: an adapter for few steps, or
    settings that the user insists on."""
    insist: bool = False
    """Whether what does not fit is used all the same."""
    spacing: str | None = None
    """Of the times, where another than the contract's was asked for and is used."""

    def sampling(self, info: ModelInfo) -> SamplingContract:
        """How it is sampled."""
        return info.sampling(self.student) if self.contract is None else self.contract


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
    emphasis: EmphasisMode = "original",
    masked_content: str | None = None,
    mask_blur: int | None = None,
    only_masked: bool = False,
    padding: int | None = None,
    invert_mask: bool = False,
    outpaint: Outpaint | None = None,
    hires: second_pass.Hires | None = None,
    variation_seed: int | None = None,
    variation_strength: float | None = None,
    seed_resize: tuple[int, int] | None = None,
    tiling: bool | None = None,
    control: Sequence[ControlUse] = (),
    adapters: Sequence[adapting.AdapterUse] = (),
    insist: bool = False,
    spacing: str | None = None,
) -> GenerateRequest:
    """Fill in what was not given from the sampling contract of whoever draws, and check everything.

    Args:
        info: the model, from ``Engine.info``.
        prompt: what to draw, in the language of docs/guides/prompts.md; empty draws without a text. Its
            ``<lora:name:weight>`` tags are added to ``adapters``, and names of embeddings stand for their
            vectors, in the negative prompt too.
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
        emphasis: how weights in the prompts are applied: original, no_norm, ignore, or none, which reads
            brackets as text.
        masked_content: what stands under the mask at first, one of `fewstep.engine.masks.CONTENTS`; None is
            ``original`` at strength 1. Anything else is seen below strength 1 only.
        mask_blur: standard deviation of the mask's edge in pixels of the picture; None is 0.
        only_masked: draw the part around the mask at the model's size, and put it back into the picture.
        padding: pixels around that part; None is 32.
        invert_mask: redraw what is black.
        outpaint: extend the picture and draw the new part.
        hires: a second pass at a larger size.
        variation_seed: go towards its noise; None is seed + 1.
        variation_strength: how far, 0 to 1.
        seed_resize: (width, height) in pixels: keep what the seed draws at that size in the middle.
        tiling: encode and decode in tiles; None does so above 4 times the native pixels.
        control: control networks with their pictures.
        adapters: names and weights of adapters.
        insist: use settings that do not fit a model or an adapter of few steps; otherwise what fits is used
            in their place. A warning says so either way.
        spacing: of the times, a name of ``fewstep.diffusion.timesteps.SPACINGS``; None is the model's own.

    Raises:
        UsageError: a value out of range, two that contradict each other, or an embedding that was given by
            itself and does not fit.
        NotFoundError: the model has no student of that name.
        CheckpointError: an adapter's file is none.
    """
    guided = guidance_scale is not None or guidance_rescale is not None or bool(negative_prompt)
    tagged, odd_tags = prompts.adapters(prompt)
    chosen_adapters, adapted, notes = adapting.choose(info, [*adapters, *tagged])
    drawn_by = None
    if adapted is None or student is not None:
        drawn_by = choice.choose(info, student, num_inference_steps=num_inference_steps, guided=guided)
    own = info.contract if drawn_by is None else drawn_by.contract
    warnings: list[str] = [*info.notes, *notes, *odd_tags]
    checks.check_text("prompt", prompt)
    checks.check_text("negative prompt", negative_prompt)
    checks.check_whole("seed", seed, 0, 2**63 - 1, "--seed")
    checks.check_whole("n", n, 1, MAX_IMAGES, "--n")
    steps = own.num_inference_steps if num_inference_steps is None else num_inference_steps
    checks.check_whole("steps", steps, 1, own.schedule.num_train_timesteps, "--steps")
    if drawn_by is not None and not insist:
        choice.check_fits(
            drawn_by, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, solver=solver, eta=eta,
        )  # fmt: skip
    contract, asked, misfits = fit.fitted(
        adapted or own, fit.Settings(
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, solver=solver,
        ), insist=insist,
    )  # fmt: skip
    warnings += misfits
    steps = asked.num_inference_steps or contract.num_inference_steps
    spaced = contract
    if spacing is not None:
        spaced, misfits = fit.spaced(contract, spacing, steps, insist=insist)
        warnings += misfits
    respaced, contract = spaced is not contract, spaced
    chosen = find_solver(contract, asked.solver, eta)
    chosen.start(contract.make_schedule())
    grid = contract.grid(steps, chosen.name)
    scale, rescale = checks.guidance(contract, asked.guidance_scale, asked.guidance_rescale)
    if negative_prompt and (scale == 1.0 or not contract.negative_prompt_effective):
        reason = "this model, or guidance 1, does not use it"
        if drawn_by is not None:
            reason = f"student {drawn_by.name!r} does not use it; give --student none for the base model"
        warnings.append(f"the negative prompt has no effect: {reason}")
    taken = modes.take_in(
        info, init_image, mask, content=masked_content, blur=mask_blur, only_masked=only_masked,
        padding=padding, inverted=invert_mask, extended=outpaint,
    )  # fmt: skip
    init_image, mask = taken.image, taken.mask
    warnings += taken.warnings
    size = modes.size(info, width, height, taken)
    if size != info.native_size:
        native = "x".join(map(str, info.native_size))
        warnings.append(f"size {size[0]}x{size[1]}: the model was trained at {native}, others may look worse")
    checks.check_inputs(info, init_image, mask, strength)
    image_scale = checks.image_guidance(info, image_guidance_scale)
    skip = 0 if clip_skip is None else clip_skip
    if skip:
        checks.check_clip_skip(info, skip)
    if init_image is None and strength is not None:
        text = "strength is given without an image: give --image, or leave --strength out"
        raise UsageError(text, field="image")
    strength, odd = modes.strength(info, taken, strength)
    warnings += odd
    if init_image is not None:
        kept = len(truncate_for_strength(grid, strength, at_least_one=True)) - 1
        if rounded := choice.rounded_up(strength, steps):
            warnings.append(rounded)
        if drawn_by is not None and (warning := choice.shortened(drawn_by, strength, kept, steps)):
            warnings.append(warning)
    warnings += prompts.warnings(
        info, contract, prompt=prompt, negative_prompt=negative_prompt, steps=steps,
        runs=steps if init_image is None else kept, guidance_scale=scale, emphasis=emphasis,
    )  # fmt: skip
    second = None
    if hires is not None:
        if init_image is not None:
            raise UsageError("hires is for drawings from text: leave --image out, or --hires")
        second, contract, odd = second_pass.resolve(
            info, hires, size=size, steps=steps, student=drawn_by, contract=contract, insist=insist
        )
        warnings += odd
    largest = size if second is None else (second.width, second.height)
    request = GenerateRequest(
        model=info.name, prompt=prompt, negative_prompt=negative_prompt, num_inference_steps=steps,
        guidance_scale=scale, guidance_rescale=rescale, solver=chosen.name, seed=seed, n=n, width=size[0],
        height=size[1], init_image=init_image, strength=strength, mask=mask, eta=eta,
        deterministic=deterministic, warnings=tuple(warnings),
        student=None if drawn_by is None else drawn_by.name, clip_skip=skip, image_guidance_scale=image_scale,
        emphasis=emphasis,
        masking=taken.masking, outpaint=taken.outpaint, hires=second,
        variation=variation.resolve(seed, variation_seed, variation_strength, seed_resize, info.downscale),
        vae_tiling=tiles.wanted(info, *largest, tiling), control=controls.resolve(control),
        adapters=chosen_adapters, contract=None if contract == own else contract, insist=insist,
        spacing=spacing if respaced else None,
    )  # fmt: skip
    passes = [request] if second is None else [request, second_pass.second_request(request)]
    checks.check_classes(info, [line for one in passes for line in prompts.whole(info, one)])
    texts = [text for one in passes for text in prompts.read(info, one)]
    named, odd_names = learned.choose(info, texts)
    return dataclasses.replace(request, embeddings=named, warnings=(*request.warnings, *odd_names))


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
