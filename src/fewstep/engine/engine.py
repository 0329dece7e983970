"""From a request to pixels: tokenise, embed, sample, decode. Numpy throughout; a backend runs the networks.

The same request gives the same bits on the same machine, versions, backend and thread setting. See
docs/concepts/engine.md for what a batch changes.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from fewstep.checkpoint import bundle
from fewstep.engine import (
    adapters,
    denoising,
    drawing,
    embeddings,
    hires,
    pictures,
    prompts,
    records,
    registry,
    starts,
    text,
    tiling,
    variation,
)
from fewstep.engine.backends.base import Backend, FloatArray, ModelInfo, f32
from fewstep.engine.drawing import Part
from fewstep.engine.drawing import StepReport as StepReport
from fewstep.engine.request import GenerateRequest, GenerateResult
from fewstep.engine.tokens import Tokens
from fewstep.errors import NotFoundError, UsageError
from fewstep.models.source import ModelSource

BackendName = Literal["auto", "openvino", "torch", "fake"]
BACKENDS: tuple[str, ...] = ("auto", "openvino", "torch", "fake")


class Engine:
    """One model on one backend. Requests from several threads wait for one another.

    Args:
        model: an entry or a name of the registry, a folder or file as `Path`, what a model is put together
            from, or None for the default model.
        backend: ``auto`` takes OpenVINO for a bundle and torch for a pipeline folder; or a backend object.
        threads: inference threads; None is the backend's own choice, every core.
        rows: images in one call of the denoiser; None is the backend's own choice. Servers that draw several
            orders together (`fewstep.engine.batching`) want more than one.
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
        rows: int | None = None,
        catalogue: adapters.Catalogue | None = None,
        learned: embeddings.EmbeddingCatalogue | None = None,
    ) -> None:
        started = time.perf_counter()
        self.backend: Backend = (
            open_backend(model, backend, threads=threads, rows=rows) if isinstance(backend, str) else backend
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

    def prepare(self, request: GenerateRequest, images: int | None = None) -> None:
        """Begin to load what a request needs, and return at once; `generate` does it too.

        ``images`` is how many are drawn, where that is not the request's own number.
        """
        count = request.n if images is None else images
        rows = self._chunk(request, count)
        sizes = {min(rows, count), count % rows or rows}
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
        part = Part(request, on_step, cancelled)
        self.draw([part])
        return part.outcome()

    def draw(self, parts: Sequence[Part]) -> None:
        """Draw requests that are `fewstep.engine.batching.compatible` in the same batches.

        Each part has ended afterwards, in its own way and as it would have alone. What fails in a call that
        several share is raised, and those that have not ended then are as good as not begun.

        Raises:
            CheckpointError, UsageError: as `generate`.
            EngineError: the model failed.
        """
        first = parts[0].request
        with self._lock:
            said = self.backend.adapt(adapters.applied(first.adapters, lenient=first.insist), first.student)
            try:
                self._draw(parts, said)
            finally:
                if first.adapters:
                    self.backend.adapt(())

    def preview(self, x0: FloatArray) -> list[pictures.Image]:
        """Decode denoised estimates of `StepReport`, from within ``on_step`` only; costs a decode."""
        return [pictures.to_image(pixels) for pixels in self.backend.decode(f32(x0))]

    def close(self) -> None:
        """Let go of the networks."""
        with self._lock:
            self.backend.close()

    def _draw(self, parts: Sequence[Part], said: Sequence[str]) -> None:
        clock = drawing.Clock()
        first, count = parts[0].request, sum(part.request.n for part in parts)
        self.prepare(first, count)
        for part in parts:
            with part.own():
                part.encoded, part.warnings = self._embed(part.request)
        clock.lap("text")
        coder = tiling.Autoencoder(self.backend, first.vae_tiling)
        for part in parts:
            with part.own():
                part.start = starts.make(coder, part.request)
                for latents in (part.start.latents, part.start.concat):
                    drawing.check_finite(latents, "the encoder", part.request)
        clock.lap("encode")
        for pieces in drawing.batches(parts, self._chunk(first, count)):
            drawing.draw(self.backend, self.info, coder, pieces, clock)
            for part in {id(piece.part): piece.part for piece in pieces}.values():
                if part.open and len(part.images) == part.request.n:
                    part.end(self._result(part, said, clock))

    def _result(self, part: Part, said: Sequence[str], clock: drawing.Clock) -> GenerateResult:
        request = part.request
        warnings = [*request.warnings, *said, *part.warnings, *part.start.warnings]
        described = self.backend.describe(request.student)
        return GenerateResult(
            images=part.images,
            seeds=variation.seeds(request),
            record=records.drawn(self.info, described, request, warnings),
            timings=clock.read(),
            warnings=warnings,
        )

    def _chunk(self, request: GenerateRequest, count: int) -> int:
        if request.deterministic:
            return 1
        # Many prompts joined by AND make many rows of one image.
        most = self.backend.rows * 3 // max(denoising.evaluations(self.info, request), 3)
        return max(1, min(most, count))

    def _tokenizers(self) -> tuple[Tokens, ...]:
        if self._tokens is None:
            self._tokens = text.tokenizers(self.info)
        return self._tokens

    def _embed(self, request: GenerateRequest) -> tuple[prompts.Encoded, list[str]]:
        """Conditions of all texts of all passes: the one place where a text becomes numbers."""
        passes = [request] if request.hires is None else [request, hires.second_request(request)]
        learned = embeddings.load(request.embeddings)
        encoded, warnings = prompts.encode(self.backend, self._tokenizers(), passes, learned)
        drawing.check_finite(encoded.conditions.tokens, "the text encoder", request)
        return encoded, warnings


def open_backend(
    model: registry.ModelEntry | ModelSource | Path | str | None,
    name: str = "auto",
    *,
    threads: int | None = None,
    rows: int | None = None,
) -> Backend:
    """The backend that runs a model; see `Engine`."""
    if name not in BACKENDS:
        raise UsageError(f"engine {name!r} is not known: give one of {', '.join(BACKENDS)}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}: give 1 or more")
    if rows is not None and rows < 1:
        raise UsageError(f"rows is {rows}: give 1 or more")
    if name == "fake":
        from fewstep.engine.backends.fake import FakeBackend

        return FakeBackend() if rows is None else FakeBackend(rows=rows)
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

        return OpenVINOBackend(bundle.open_bundle(folder), threads=threads, rows=rows or 1)
    from fewstep.engine.backends.torch import TorchBackend

    opened = TorchBackend(source, threads=threads)
    opened.rows = rows or opened.rows
    return opened


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
