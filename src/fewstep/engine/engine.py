"""From a request to pixels: tokenise, embed, sample, decode. Numpy throughout; a backend runs the networks.

The same request gives the same bits on the same machine, versions, backend and thread setting. See
docs/concepts/engine.md for what a batch changes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewstep.checkpoint import bundle
from fewstep.diffusion import noise, sampler
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import denoising, pictures, registry, starts, text
from fewstep.engine.backends.base import Backend, Conditions, FloatArray, ModelInfo, f32
from fewstep.engine.request import GenerateRequest, GenerateResult, find_solver
from fewstep.engine.tokens import Tokens
from fewstep.errors import EngineError, NotFoundError, UsageError

BackendName = Literal["auto", "openvino", "torch", "fake"]
BACKENDS: tuple[str, ...] = ("auto", "openvino", "torch", "fake")


@dataclass(frozen=True, slots=True)
class StepReport:
    """What ``on_step`` is told after every step."""

    index: int
    """Steps that are done in this request, less one: counts over all images, from 0."""
    total: int
    """Steps of the whole request."""
    image: int
    """First of the images that are being drawn, from 0."""
    images: int
    """How many are drawn together."""
    x0: FloatArray
    """Their denoised estimates (images, C, h, w), for previews; see `Engine.preview`."""


class Engine:
    """One model on one backend. Requests from several threads wait for one another.

    Args:
        model: an entry or a name of the registry, a folder as `Path`, or None for the default model.
        backend: ``auto`` takes OpenVINO for a bundle and torch for a pipeline folder; or a backend object.
        threads: inference threads; None is the backend's own choice, every core.

    Raises:
        NotFoundError: no such model.
        CheckpointError: the model is broken.
        DependencyError: the backend's package is missing; never is another one taken silently.
        UsageError: the backend cannot run this kind of folder.
    """

    def __init__(
        self,
        model: registry.ModelEntry | Path | str | None = None,
        backend: Backend | str = "auto",
        *,
        threads: int | None = None,
    ) -> None:
        started = time.perf_counter()
        self.backend: Backend = (
            open_backend(model, backend, threads=threads) if isinstance(backend, str) else backend
        )
        self._tokens: tuple[Tokens, ...] | None = None
        self._lock = threading.Lock()
        self.load_seconds = time.perf_counter() - started

    @property
    def info(self) -> ModelInfo:
        """What the model is, for `fewstep.engine.request.resolve`."""
        return self.backend.info

    def prepare(self, request: GenerateRequest) -> None:
        """Begin to load what a request needs, and return at once; `generate` does it too."""
        rows = self._chunk(request)
        sizes = {min(rows, request.n), request.n % rows or rows}
        each = denoising.evaluations(self.info, request)
        batches = [each * size for size in sizes]
        if each == 2 and self.info.sampling(request.student).guidance_interval is not None:
            batches += list(sizes)
        self.backend.prepare(
            request.width,
            request.height,
            batches=tuple(dict.fromkeys(batches)),
            encode=request.init_image is not None,
            student=request.student,
        )

    def generate(
        self,
        request: GenerateRequest,
        on_step: Callable[[StepReport], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> GenerateResult:
        """Draw the images of a request.

        Args:
            request: from `fewstep.engine.request.resolve` with this engine's ``info``.
            on_step: told after every step.
            cancelled: asked before every step.

        Raises:
            Cancelled: ``cancelled`` said so; nothing is kept.
            EngineError: the model failed or gave values that are not finite.
        """
        with self._lock:
            return self._generate(request, on_step, cancelled)

    def preview(self, x0: FloatArray) -> list[pictures.Image]:
        """Decode denoised estimates of `StepReport`, from within ``on_step`` only; costs a decode."""
        return [pictures.to_image(pixels) for pixels in self.backend.decode(f32(x0))]

    def close(self) -> None:
        """Let go of the networks."""
        with self._lock:
            self.backend.close()

    def _generate(
        self,
        request: GenerateRequest,
        on_step: Callable[[StepReport], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> GenerateResult:
        clock = _Clock()
        self.prepare(request)
        conditions, warnings = self._embed(request)
        clock.lap("text")
        start = starts.make(self.backend, request)
        for latents in (start.latents, start.concat):
            _check_finite(latents, "the encoder", request)
        clock.lap("encode")
        images: list[pictures.Image] = []
        rows = self._chunk(request)
        for first in range(0, request.n, rows):
            count = min(rows, request.n - first)
            drawn_latents = self._sample(request, conditions, start, first, count, on_step, cancelled)
            clock.lap("denoise")
            pixels = self.backend.decode(drawn_latents)
            _check_finite(pixels, "the decoder", request)
            images += [start.finish(pictures.to_image(picture)) for picture in pixels]
            clock.lap("decode")
        seeds = [request.seed + index for index in range(request.n)]
        warnings = [*request.warnings, *warnings, *start.warnings]
        return GenerateResult(
            images=images,
            seeds=seeds,
            record=self._record(request, warnings),
            timings=clock.finish(),
            warnings=warnings,
        )

    def _chunk(self, request: GenerateRequest) -> int:
        return 1 if request.deterministic else max(1, min(self.backend.rows, request.n))

    def _embed(self, request: GenerateRequest) -> tuple[Conditions, list[str]]:
        """Conditions of two rows, the negative prompt's first: the one place where a text becomes numbers."""
        if self._tokens is None:
            self._tokens = text.tokenizers(self.info)
        texts = {text.NEGATIVE: request.negative_prompt, text.PROMPT: request.prompt}
        conditions, warnings = text.embed(self.backend, self._tokens, texts, clip_skip=request.clip_skip)
        _check_finite(conditions.tokens, "the text encoder", request)
        return conditions, warnings

    def _sample(
        self,
        request: GenerateRequest,
        conditions: Conditions,
        start: starts.Start,
        first: int,
        count: int,
        on_step: Callable[[StepReport], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> FloatArray:
        contract = self.info.sampling(request.student)
        solver = find_solver(contract, request.solver, request.eta)
        schedule = contract.make_schedule()
        own = solver.schedule(schedule)
        grid = contract.grid(request.num_inference_steps, solver.name)
        if start.latents is not None:
            grid = truncate_for_strength(grid, request.strength)
        down = self.info.downscale
        shape = (self.info.latent_channels, request.height // down, request.width // down)
        seed = request.seed + first
        eps = noise.batch_noise(seed, count, shape)
        negative, conditional = (
            conditions.rows(slice(row, row + 1)).repeat(count).with_concat(start.concat) for row in (0, 1)
        )
        denoise = denoising.denoiser(self.backend, request, negative, conditional, own)
        scale = contract.first_noise(float(grid[0]), solver.name)
        x = start.first(eps, grid, own, scale, request.strength)
        adjust = None
        if start.cells is not None:
            adjust = starts.keep_known(start, eps, own, float(grid[-1]))
            denoise = starts.with_known(denoise, adjust, float(grid[0]))

        def report(step: sampler.StepInfo) -> None:
            _check_finite(step.x, f"step {step.index + 1} of {step.total}", request)
            if on_step is not None:
                done = first * step.total + step.index * count + count - 1
                x0 = step.x if step.x0 is None else step.x0
                on_step(StepReport(done, request.n * step.total, first, count, f32(x0)))

        return f32(
            sampler.sample(
                denoise,
                x,
                grid,
                solver,
                schedule=schedule,
                noise=noise.solver_noise(seed, count, shape),
                on_step=report,
                cancelled=cancelled,
                adjust=adjust,
            )
        )

    def _record(self, request: GenerateRequest, warnings: list[str]) -> dict[str, Any]:
        image = request.init_image is not None
        task = "inpaint" if request.mask is not None else "img2img" if image else "txt2img"
        drawn_by: dict[str, Any] = {}
        if request.student is not None:
            student = self.info.student(request.student)
            facts = {"name": student.name, "method": student.contract.method, "hash": student.hash}
            drawn_by = {"student": facts}
        further: dict[str, Any] = {}
        if request.clip_skip:
            further["clip_skip"] = request.clip_skip
        if self.info.inputs == "instruct":
            further["image_guidance_scale"] = request.image_guidance_scale
        return {
            "task": task,
            "model": self.info.name,
            "model_hash": self.info.hash,
            **drawn_by,
            "licence": self.info.licence,
            "engine": dict(self.backend.describe(request.student)),
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "guidance_rescale": request.guidance_rescale,
            **further,
            "solver": request.solver,
            "eta": request.eta,
            "seed": request.seed,
            "n": request.n,
            "width": request.width,
            "height": request.height,
            "strength": request.strength if image else None,
            "deterministic": request.deterministic,
            "warnings": list(warnings),
        }


def open_backend(
    model: registry.ModelEntry | Path | str | None, name: str = "auto", *, threads: int | None = None
) -> Backend:
    """The backend that runs a model; see `Engine`."""
    if name not in BACKENDS:
        raise UsageError(f"engine {name!r} is not known: give one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give 1 or more")
    if name == "fake":
        from fewstep.engine.backends.fake import FakeBackend

        return FakeBackend()
    kinds: dict[str, registry.Kind | None] = {"auto": None, "openvino": "bundle", "torch": "pipeline"}
    folder, kind = _locate(model, kinds[name])
    if kind == "bundle" and name == "torch":
        raise UsageError(f"{folder}: a runtime bundle, which torch cannot run; give its pipeline folder")
    if kind == "pipeline" and name == "openvino":
        raise UsageError(
            f"{folder}: a pipeline folder, which openvino cannot run; export it first: fewstep export"
        )
    if kind == "bundle":
        from fewstep.engine.backends.openvino import OpenVINOBackend

        return OpenVINOBackend(bundle.open_bundle(folder), threads=threads)
    from fewstep.engine.backends.torch import TorchBackend

    return TorchBackend(folder, threads=threads)


def _locate(
    model: registry.ModelEntry | Path | str | None, wanted: registry.Kind | None
) -> tuple[Path, registry.Kind]:
    if isinstance(model, Path):
        if bundle.is_bundle(model):
            return model, "bundle"
        if (model / "model_index.json").is_file():
            return model, "pipeline"
        raise NotFoundError(f"{model}: no bundle.json or model_index.json here; give a model's folder")
    entry = model if isinstance(model, registry.ModelEntry) else _named(model, wanted)
    return entry.folder, entry.kind


def _named(name: str | None, wanted: registry.Kind | None) -> registry.ModelEntry:
    """The model of that name in the wanted kind, or in any kind: then the error is about the kind."""
    try:
        return registry.find(name, kind=wanted)
    except NotFoundError:
        return registry.find(name)


def _check_finite(values: FloatArray | None, where: str, request: GenerateRequest) -> None:
    if values is not None and not np.isfinite(values).all():
        raise EngineError(
            f"{where} gave values that are not finite, so there is no picture (seed {request.seed}, "
            f"guidance {request.guidance_scale:g}, solver {request.solver}); try the model's own settings, "
            "and export the model again if that fails too"
        )


class _Clock:
    """Seconds per stage; a stage that comes again adds up."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def finish(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._start}
