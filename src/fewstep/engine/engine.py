"""From a request to pixels: tokenise, embed, sample, decode. Numpy throughout; a backend runs the networks.

The same request gives the same bits on the same machine, versions, backend and thread setting. See
docs/concepts/engine.md for what a batch changes.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fewstep.checkpoint import bundle
from fewstep.diffusion import sampler
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import (
    adapters,
    control,
    denoising,
    embeddings,
    hires,
    modes,
    pictures,
    prompts,
    registry,
    starts,
    text,
    tiling,
    variation,
)
from fewstep.engine.backends.base import Backend, FloatArray, ModelInfo, f32
from fewstep.engine.request import GenerateRequest, GenerateResult, find_solver
from fewstep.engine.tokens import Tokens
from fewstep.errors import EngineError, NotFoundError, UsageError
from fewstep.models.source import ModelSource

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
        model: an entry or a name of the registry, a folder or file as `Path`, what a model is put together
            from, or None for the default model.
        backend: ``auto`` takes OpenVINO for a bundle and torch for a pipeline folder; or a backend object.
        threads: inference threads; None is the backend's own choice, every core.
        catalogue: the adapters that requests may name; None is those of the usual folders.
        learned: the embeddings that prompts may name; None is those of the usual folders.

    Raises:
        NotFoundError: no such model.
        CheckpointError: the model is broken.
        DependencyError: the backend's package is missing; never is another one taken silently.
        UsageError: the backend cannot run this kind of folder.
    """

    def __init__(
        self,
        model: registry.ModelEntry | ModelSource | Path | str | None = None,
        backend: Backend | str = "auto",
        *,
        threads: int | None = None,
        catalogue: adapters.Catalogue | None = None,
        learned: embeddings.EmbeddingCatalogue | None = None,
    ) -> None:
        started = time.perf_counter()
        self.backend: Backend = (
            open_backend(model, backend, threads=threads) if isinstance(backend, str) else backend
        )
        self._tokens: tuple[Tokens, ...] | None = None
        # What requests may name, where that is not what lies in the usual folders.
        named = {"adapters": catalogue, "embeddings": learned}
        self._named: dict[str, Any] = {what: own for what, own in named.items() if own is not None}
        self._lock = threading.Lock()
        self.load_seconds = time.perf_counter() - started

    @property
    def info(self) -> ModelInfo:
        """What the model is, for `fewstep.engine.request.resolve`."""
        return dataclasses.replace(self.backend.info, **self._named) if self._named else self.backend.info

    def prepare(self, request: GenerateRequest) -> None:
        """Begin to load what a request needs, and return at once; `generate` does it too."""
        rows = self._chunk(request)
        sizes = {min(rows, request.n), request.n % rows or rows}
        each = denoising.evaluations(self.info, request)
        batches = [each * size for size in sizes]
        if each == 2 and request.sampling(self.info).guidance_interval is not None:
            batches += list(sizes)
        passes = [request] if request.hires is None else [request, hires.second_request(request)]
        chunks = prompts.chunks(self.info, passes, self._tokenizers)
        for one in passes:
            self.backend.prepare(
                one.width,
                one.height,
                batches=tuple(dict.fromkeys(batches)),
                encode=hires.encodes(request, one),
                student=request.student,
                **tiling.prepared(self.info, one),
                chunks=chunks,
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
            CheckpointError: an adapter does not fit the model, or an embedding has broken values.
            UsageError: the backend takes no adapters.
            EngineError: the model failed or gave values that are not finite.
        """
        with self._lock:
            said = self.backend.adapt(
                adapters.applied(request.adapters, lenient=request.insist), request.student
            )
            try:
                return self._generate(request, on_step, cancelled, said)
            finally:
                if request.adapters:
                    self.backend.adapt(())

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
        said: Sequence[str],
    ) -> GenerateResult:
        clock = _Clock()
        self.prepare(request)
        encoded, warnings = self._embed(request)
        clock.lap("text")
        coder = tiling.Autoencoder(self.backend, request.vae_tiling)
        start = starts.make(coder, request)
        for latents in (start.latents, start.concat):
            _check_finite(latents, "the encoder", request)
        clock.lap("encode")
        images: list[pictures.Image] = []
        rows = self._chunk(request)
        for first in range(0, request.n, rows):
            count = min(rows, request.n - first)
            told = _Told(on_step, request, first, count)
            drawn_latents = self._sample(request, encoded, start, told, cancelled)
            if request.hires is not None:
                large = hires.enlarged(coder, drawn_latents, request.hires, self.info.downscale, cancelled)
                told.begin_second()
                again = starts.Start(latents=large)
                drawn_latents = self._sample(hires.second_request(request), encoded, again, told, cancelled)
            clock.lap("denoise")
            pixels = coder.decode(drawn_latents)
            _check_finite(pixels, "the decoder", request)
            images += [start.finish(pictures.to_image(picture)) for picture in pixels]
            clock.lap("decode")
        warnings = [*request.warnings, *said, *warnings, *start.warnings]
        return GenerateResult(
            images=images,
            seeds=variation.seeds(request),
            record=self._record(request, warnings),
            timings=clock.finish(),
            warnings=warnings,
        )

    def _chunk(self, request: GenerateRequest) -> int:
        if request.deterministic:
            return 1
        # Many prompts joined by AND make many rows of one image.
        most = self.backend.rows * 3 // max(denoising.evaluations(self.info, request), 3)
        return max(1, min(most, request.n))

    def _tokenizers(self) -> tuple[Tokens, ...]:
        if self._tokens is None:
            self._tokens = text.tokenizers(self.info)
        return self._tokens

    def _embed(self, request: GenerateRequest) -> tuple[prompts.Encoded, list[str]]:
        """Conditions of all texts of all passes: the one place where a text becomes numbers."""
        passes = [request] if request.hires is None else [request, hires.second_request(request)]
        learned = embeddings.load(request.embeddings)
        encoded, warnings = prompts.encode(self.backend, self._tokenizers(), passes, learned)
        _check_finite(encoded.conditions.tokens, "the text encoder", request)
        return encoded, warnings

    def _sample(
        self,
        request: GenerateRequest,
        encoded: prompts.Encoded,
        start: starts.Start,
        told: _Told,
        cancelled: Callable[[], bool] | None,
    ) -> FloatArray:
        first, count = told.first, told.count
        contract = request.sampling(self.info)
        self.backend.control(control.fitted(request.control, request, start))
        solver = find_solver(contract, request.solver, request.eta)
        schedule = contract.make_schedule()
        own = solver.schedule(schedule)
        grid = contract.grid(request.num_inference_steps, solver.name)
        if start.latents is not None:
            grid = truncate_for_strength(grid, request.strength, at_least_one=True)
        down = self.info.downscale
        shape = (self.info.latent_channels, request.height // down, request.width // down)
        eps = variation.batch_noise(request, first, count, shape, down)
        script = denoising.Script(
            encoded.schedule(self.info, request),
            lambda row: encoded.text(row).repeat(count).with_concat(start.concat),
        )
        denoise = denoising.scripted(self.backend, request, script, own)
        scale = contract.first_noise(float(grid[0]), solver.name)
        seeds = variation.seeds(request)[first : first + count]
        x = start.first(eps, grid, own, scale, request.strength, seeds)
        adjust = None
        if start.cells is not None:
            adjust = starts.keep_known(start, eps, own, float(grid[-1]))
            denoise = starts.with_known(denoise, adjust, float(grid[0]))

        def report(step: sampler.StepInfo) -> None:
            _check_finite(step.x, f"step {step.index + 1} of {step.total}", request)
            script.step = step.index + 2  # steps of prompts are counted from 1, and this one is done
            told.step(step)

        return f32(
            sampler.sample(
                denoise,
                x,
                grid,
                solver,
                schedule=schedule,
                noise=variation.step_noise(request, first, count, shape),
                on_step=report,
                cancelled=cancelled,
                adjust=adjust,
            )
        )

    def _record(self, request: GenerateRequest, warnings: list[str]) -> dict[str, Any]:
        image = request.init_image is not None
        task = modes.task(request)
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
        if request.emphasis != "original":
            further["emphasis"] = request.emphasis
        further |= modes.record(request)
        further |= adapters.record(request.adapters)
        further |= embeddings.record(request.embeddings)
        if request.insist and request.contract is not None:
            further["insist"] = True
        if request.spacing is not None:
            further["spacing"] = request.spacing
        if self.info.parts:
            further["parts"] = {part: dict(own) for part, own in self.info.parts.items()}
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
    model: registry.ModelEntry | ModelSource | Path | str | None,
    name: str = "auto",
    *,
    threads: int | None = None,
) -> Backend:
    """The backend that runs a model; see `Engine`."""
    if name not in BACKENDS:
        raise UsageError(f"engine {name!r} is not known: give one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give 1 or more")
    if name == "fake":
        from fewstep.engine.backends.fake import FakeBackend

        return FakeBackend()
    source, kind = _locate(model, name)
    folder = source.base
    if kind == "bundle" and (source.denoiser or source.vae):
        raise UsageError(
            f"{folder}: a runtime bundle, whose parts cannot be changed; give its pipeline folder"
        )
    if kind == "bundle" and name == "torch":
        raise UsageError(f"{folder}: a runtime bundle, which torch cannot run; give its pipeline folder")
    if kind != "bundle" and name == "openvino":
        what = "a pipeline folder" if kind == "pipeline" else "a single file"
        raise UsageError(f"{folder}: {what}, which openvino cannot run; export it first: fewstep export")
    if kind == "bundle":
        from fewstep.engine.backends.openvino import OpenVINOBackend

        return OpenVINOBackend(bundle.open_bundle(folder), threads=threads)
    from fewstep.engine.backends.torch import TorchBackend

    return TorchBackend(source, threads=threads)


def _locate(
    model: registry.ModelEntry | ModelSource | Path | str | None, engine: str
) -> tuple[ModelSource, registry.Kind]:
    if isinstance(model, str) or model is None:
        model = registry.find_for(engine, model)
    if isinstance(model, registry.ModelEntry):
        return ModelSource(base=model.folder), model.kind
    source = ModelSource(base=model) if isinstance(model, Path) else model
    base = source.base
    if bundle.is_bundle(base):
        return source, "bundle"
    if (base / "model_index.json").is_file():
        return source, "pipeline"
    if base.is_file():
        return source, "checkpoint"
    raise NotFoundError(
        f"{base}: no bundle.json or model_index.json here; give a model's folder or its .safetensors file"
    )


class _Told:
    """Counts the steps of the images that are drawn together, over both passes, and tells of each."""

    def __init__(
        self, on_step: Callable[[StepReport], None] | None, request: GenerateRequest, first: int, count: int
    ) -> None:
        self.first, self.count = first, count
        self._on_step, self._request = on_step, request
        self._before = 0
        self._own = 0

    def begin_second(self) -> None:
        """What comes now is the second pass."""
        self._before = self._own

    def step(self, step: sampler.StepInfo) -> None:
        """One step of one pass is done."""
        if self._before == 0:
            self._own = step.total
        if self._on_step is None:
            return
        second = self._request.hires
        each = self._own + (0 if second is None else second.runs)
        done = self.first * each + (self._before + step.index) * self.count + self.count - 1
        x0 = step.x if step.x0 is None else step.x0
        self._on_step(StepReport(done, self._request.n * each, self.first, self.count, f32(x0)))


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
