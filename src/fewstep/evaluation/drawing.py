"""Draws many different prompts through an engine's backend, several at once, and keeps what was drawn.

One request of the engine draws one prompt; a batch here holds different prompts, each with its own seed. An
image has the pixels that ``Engine.generate`` gives for its prompt and seed alone, within the 1/255 that a
batch may change (see docs/concepts/engine.md), and exactly where the backend draws one at a time. Prompts are
read as everywhere, with their grammar; one that has any, or is long, is a request of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from fewstep import __version__
from fewstep.checkpoint import atomic
from fewstep.diffusion import noise, sampler
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import adapters, denoising, embeddings, pictures, prompts, starts, text, tiling
from fewstep.engine.backends.base import Backend, Conditions, FloatArray, ModelInfo, f32, stacked
from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest, find_solver, resolve
from fewstep.engine.tokens import Tokens
from fewstep.errors import EngineError

logger = logging.getLogger(__name__)

Image = NDArray[np.uint8]
BATCH = 16
"""Images in one batch where the backend gains from batches at all."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image: a prompt, and the seed of its noise."""

    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How everything is drawn; None is the model's own choice, as in ``fewstep generate``."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    solver: str | None = None
    student: str | None = None
    """Name of a student, or "none" for the model itself; None leaves it to the step count."""

    def request(self, info: ModelInfo, job: Job) -> GenerateRequest:
        """Return the engine's request of one job, with every default filled in.

        Raises:
            UsageError: a value out of range for this model.
        """
        return resolve(
            info,
            prompt=job.prompt,
            seed=job.seed,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale,
            solver=self.solver,
            student=self.student,
        )


def draw(
    engine: Engine,
    jobs: Sequence[Job],
    sampling: Sampling | None = None,
    *,
    folder: Path | None = None,
    batch: int | None = None,
    on_image: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Iterator[Image]:
    """Draw every job, in their order.

    Args:
        engine: an open engine that nobody else uses meanwhile.
        jobs: what to draw.
        sampling: steps, guidance, solver; default the model's own.
        folder: where images are kept as PNG. What is there already, drawn by the same model in the same way,
            is not drawn again, so an interrupted evaluation goes on.
        batch: images in one batch; default 1 on backends that gain nothing from batches, else `BATCH`.
        on_image: told (done, total) after every image.
        cancelled: asked before every step.

    Yields:
        Pixels (H, W, 3) uint8.

    Raises:
        UsageError: a setting out of range for this model, or a batch under 1.
        Cancelled: ``cancelled`` said so; the images drawn before are kept in ``folder``.
        EngineError: the model gave values that are not finite.
        OutputError: an image cannot be written.
    """
    requests = [(sampling or Sampling()).request(engine.info, job) for job in jobs]
    together = batch or (1 if engine.backend.rows == 1 else BATCH)
    tokens = text.tokenizers(engine.info)
    plain = [prompts.plain(engine.info, request, lambda: tokens) for request in requests]
    files = [
        None if folder is None else folder / _file_name(engine, request, plain=simple)
        for request, simple in zip(requests, plain, strict=True)
    ]
    found = {i: image for i, file in enumerate(files) if (image := _kept(file)) is not None}
    missing = [i for i in range(len(jobs)) if i not in found]
    for done in range(len(jobs)):
        if done not in found:
            rows = list(itertools.takewhile(plain.__getitem__, missing[:together])) or missing[:1]
            missing = missing[len(rows) :]
            if plain[done]:
                drawn = draw_batch(engine.backend, tokens, [requests[i] for i in rows], cancelled)
            else:
                drawn = [_alone(engine, requests[done], cancelled)]
            found.update(zip(rows, drawn, strict=True))
            for i in rows:
                file = files[i]
                if file is not None:
                    _keep(file, found[i], requests[i])
        yield found.pop(done)
        if on_image is not None:
            on_image(done + 1, len(jobs))


def draw_batch(
    backend: Backend,
    tokens: tuple[Tokens, ...],
    requests: Sequence[GenerateRequest],
    cancelled: Callable[[], bool] | None = None,
) -> list[Image]:
    """Draw one image of each request; they may differ in prompt, seed and picture to start from only.

    Adapters of the requests are not put on: they have to be on already, see ``Backend.adapt``.

    Args:
        backend: runs the networks.
        tokens: the model's tokenizers, from `fewstep.engine.text.tokenizers`.
        requests: B requests without a mask, and plain (`fewstep.engine.prompts.plain`); all with a picture
            to start from, or none.
        cancelled: asked before every step.

    Returns:
        B images (H, W, 3) uint8.

    Raises:
        Cancelled, EngineError: as `draw`.
    """
    first, info = requests[0], backend.info
    contract = first.sampling(info)
    solver = find_solver(contract, first.solver, first.eta)
    schedule = contract.make_schedule()
    own = solver.schedule(schedule)
    coder = tiling.Autoencoder(backend, first.vae_tiling)
    start = _start(coder, requests)
    negative, conditional = (half.with_concat(start.concat) for half in _embed(backend, tokens, requests))
    denoise = denoising.denoiser(backend, first, negative, conditional, own)
    grid = contract.grid(first.num_inference_steps, solver.name)
    if start.latents is not None:
        grid = truncate_for_strength(grid, first.strength, at_least_one=True)
    scale = contract.first_noise(float(grid[0]), solver.name)
    shape = (info.latent_channels, first.height // info.downscale, first.width // info.downscale)

    def fresh(stream: int) -> FloatArray:
        return np.stack([noise.image_noise(r.seed, shape, stream=stream) for r in requests])

    latents = sampler.sample(
        denoise,
        start.first(fresh(0), grid, own, scale, first.strength),
        grid,
        solver,
        schedule=schedule,
        noise=lambda index: fresh(1 + index),
        cancelled=cancelled,
    )
    pixels = coder.decode(f32(latents))
    for request, image in zip(requests, pixels, strict=True):
        if not np.isfinite(image).all():
            raise EngineError(
                f"{request.prompt!r} (seed {request.seed}): the model gave values that are not finite, so "
                "there is no picture; try the model's own settings, and export the model again if that fails"
            )
    return [pictures.to_image(image) for image in pixels]


def _start(coder: tiling.Autoencoder, requests: Sequence[GenerateRequest]) -> starts.Start:
    """What each of them starts from, in one."""
    first = starts.make(coder, requests[0])
    if first.latents is None:
        return first
    others = [starts.make(coder, request).latents for request in requests[1:]]
    latents = [first.latents, *(latent for latent in others if latent is not None)]
    return dataclasses.replace(first, latents=np.concatenate(latents))


def _alone(engine: Engine, request: GenerateRequest, cancelled: Callable[[], bool] | None) -> Image:
    """One image as ``fewstep generate`` draws it."""
    result = engine.generate(request, cancelled=cancelled)
    for warning in result.warnings:
        logger.warning("%r: %s", request.prompt, warning)
    return result.images[0]


def _embed(
    backend: Backend, tokens: tuple[Tokens, ...], requests: Sequence[GenerateRequest]
) -> tuple[Conditions, Conditions]:
    """Conditions of the negative prompts and of the prompts, B rows each.

    In the pairs that the engine makes, because a quantised text encoder may round a row by what is beside it.
    """
    pairs = []
    for request in requests:
        texts = {text.NEGATIVE: request.negative_prompt, text.PROMPT: request.prompt}
        pair, warnings = text.embed(backend, tokens, texts, clip_skip=request.clip_skip)
        for warning in warnings:
            logger.warning("%s", warning)
        pairs.append(pair)
    both = stacked(pairs)
    return both.rows(slice(0, None, 2)), both.rows(slice(1, None, 2))


def _file_name(engine: Engine, request: GenerateRequest, *, plain: bool) -> str:
    """A readable name, and the hash of everything that decides the pixels."""
    said = engine.backend.describe(request.student)
    run_by = {key: value for key, value in said.items() if key != "threads"}
    weights = engine.info.hash
    if request.student is not None:
        weights += engine.info.student(request.student).hash
    key = {
        "fewstep": __version__,
        "model": weights,
        "contract": request.sampling(engine.info).to_json(),
        "engine": run_by,
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.num_inference_steps,
        "guidance": [request.guidance_scale, request.guidance_rescale],
        "solver": request.solver,
        "size": [request.width, request.height],
        **adapters.record(request.adapters),
        **embeddings.record(request.embeddings),
    }
    if not plain:
        key["text"] = "with grammar"  # images that were drawn from the bare text have other names
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"[^a-z0-9]+", "-", request.prompt.lower()).strip("-")[:80].rstrip("-")
    return f"{words or 'empty'}-{request.seed}-{digest[:12]}.png"


def _kept(file: Path | None) -> Image | None:
    """An image that was drawn before; None where there is none, or a damaged one."""
    if file is None or not file.is_file():
        return None
    try:
        with PILImage.open(file, formats=("PNG",)) as image:
            return np.asarray(image.convert("RGB"), dtype=np.uint8)
    except (OSError, ValueError, SyntaxError):  # Pillow raises SyntaxError for a broken PNG
        return None


def _keep(file: Path, image: Image, request: GenerateRequest) -> None:
    from PIL.PngImagePlugin import PngInfo

    said = PngInfo()
    said.add_itxt("prompt", request.prompt)
    said.add_text("seed", str(request.seed))
    buffer = io.BytesIO()
    PILImage.fromarray(image).save(buffer, format="PNG", pnginfo=said)
    atomic.write_bytes(file, buffer.getvalue())
