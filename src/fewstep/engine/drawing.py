"""Latents and pixels of one request, or of several at once: the part of the engine below tokens and weights.

Requests that are drawn together share the calls of the network and nothing else: each has its own noise,
texts, picture, progress and end.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fewstep.diffusion import sampler
from fewstep.diffusion.timesteps import truncate_for_strength
from fewstep.engine import control, denoising, hires, pictures, starts, variation
from fewstep.engine.backends.base import Backend, Conditions, FloatArray, ModelInfo, f32, stacked
from fewstep.engine.request import GenerateRequest, GenerateResult, find_solver
from fewstep.errors import Cancelled, EngineError

if TYPE_CHECKING:
    from fewstep.engine.prompts import Encoded
    from fewstep.engine.tiling import Autoencoder


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
    """How many of this request are drawn together."""
    x0: FloatArray
    """Their denoised estimates (images, C, h, w), for previews; see `Engine.preview`."""


OnStep = Callable[[StepReport], None]
OnEnd = Callable[["Part"], None]


class Part:
    """One request while it is drawn. It ends with a `result`, or with an `error`, which disturbs no other.

    Args:
        request: what is drawn.
        on_step: told after every step.
        cancelled: asked before every step.
        on_end: told of the end as soon as there is one.
    """

    def __init__(
        self,
        request: GenerateRequest,
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        self.request = request
        self.on_step, self.cancelled = on_step, cancelled
        self.encoded: Encoded | None = None
        self.start = starts.Start()
        self.warnings: list[str] = []
        self.images: list[pictures.Image] = []
        self.result: GenerateResult | None = None
        self.error: Exception | None = None
        self._on_end = on_end

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return self.result is None and self.error is None

    def end(self, end: GenerateResult | Exception) -> None:
        """It has come to this."""
        if isinstance(end, Exception):
            self.error = end
        else:
            self.result = end
        if self._on_end is not None:
            self._on_end(self)

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """What is raised within is the end of this request alone."""
        try:
            yield
        except Exception as error:
            self.end(error)

    def outcome(self) -> GenerateResult:
        """The result, or its error, raised."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


@dataclass
class Piece:
    """The images of one request that are drawn in one batch."""

    part: Part
    first: int
    count: int
    _own: int = 0
    _before: int = 0

    def begin_second(self) -> None:
        """What comes now is the second pass."""
        self._before = self._own

    def tell(self, step: sampler.StepInfo, rows: slice) -> None:
        """One step of one pass is done; ``rows`` of the batch are this piece's."""
        if self._before == 0:
            self._own = step.total
        if self.part.on_step is None:
            return
        request = self.part.request
        each = self._own + (0 if request.hires is None else request.hires.runs)
        done = self.first * each + (self._before + step.index) * self.count + self.count - 1
        x0 = step.x if step.x0 is None else step.x0
        self.part.on_step(StepReport(done, request.n * each, self.first, self.count, f32(x0[rows])))


def batches(parts: Sequence[Part], most: int) -> Iterator[list[Piece]]:
    """The images of all requests in order, at most so many at once."""
    images = iter([(part, index) for part in parts for index in range(part.request.n)])
    while batch := list(itertools.islice(images, most)):
        pieces: list[Piece] = []
        for part, index in batch:
            if pieces and pieces[-1].part is part:
                pieces[-1].count += 1
            else:
                pieces.append(Piece(part, index, 1))
        yield pieces


def draw(
    backend: Backend, info: ModelInfo, coder: Autoencoder, pieces: Sequence[Piece], clock: Clock
) -> None:
    """Draw one batch, and append to ``images`` of those parts that have not ended.

    Args:
        backend: runs the networks; adapters are in the weights.
        info: the model.
        coder: decodes.
        pieces: of requests that are `batching.compatible`, with their texts and starts.
        clock: told of the time.
    """
    live = [piece for piece in pieces if piece.part.open]
    passes = [[piece.part.request for piece in live]]
    latents = sample(backend, info, live, passes[0], [piece.part.start for piece in live])
    live, latents = _open(live, latents)
    if live and (second := live[0].part.request.hires) is not None:
        for index, piece in enumerate(live):
            with piece.part.own():
                cancelled = piece.part.cancelled
                latents[index] = hires.enlarged(coder, latents[index], second, info.downscale, cancelled)
            piece.begin_second()
        live, latents = _open(live, latents)
        again = [hires.second_request(piece.part.request) for piece in live]
        latents = sample(backend, info, live, again, [starts.Start(latents=large) for large in latents])
        live, latents = _open(live, latents)
    clock.lap("denoise")
    if not live:
        return
    pixels = coder.decode(f32(np.concatenate(latents)))
    for piece, rows in zip(live, _rows(live), strict=True):
        with piece.part.own():
            check_finite(pixels[rows], "the decoder", piece.part.request)
            piece.part.images += [
                piece.part.start.finish(pictures.to_image(picture)) for picture in pixels[rows]
            ]
    clock.lap("decode")


def sample(
    backend: Backend,
    info: ModelInfo,
    pieces: Sequence[Piece],
    requests: Sequence[GenerateRequest],
    begun: Sequence[starts.Start],
) -> list[FloatArray]:
    """One pass over one batch.

    Args:
        backend: runs the denoiser.
        info: the model.
        pieces: none of them has ended.
        requests: of this pass, one per piece.
        begun: what each of them starts from.

    Returns:
        Latents (count, C, h, w) of every piece; of those that ended meanwhile they mean nothing.
    """
    if not pieces:
        return []
    request, start, places = requests[0], begun[0], _rows(pieces)
    contract = request.sampling(info)
    backend.control(control.fitted(request.control, request, start))
    solver = find_solver(contract, request.solver, request.eta)
    schedule = contract.make_schedule()
    own = solver.schedule(schedule)
    grid = contract.grid(request.num_inference_steps, solver.name)
    if start.latents is not None:
        grid = truncate_for_strength(grid, request.strength, at_least_one=True)
    down = info.downscale
    shape = (info.latent_channels, request.height // down, request.width // down)
    scale = contract.first_noise(float(grid[0]), solver.name)
    script = _script(info, pieces, requests, begun)
    denoise = denoising.scripted(backend, request, script, own, live=lambda: _live(pieces))
    eps, x, added = [], [], []
    for piece, one, place in zip(pieces, requests, begun, strict=True):
        eps.append(variation.batch_noise(one, piece.first, piece.count, shape, down))
        seeds = variation.seeds(one)[piece.first : piece.first + piece.count]
        x.append(place.first(eps[-1], grid, own, scale, one.strength, seeds))
        added.append(variation.step_noise(one, piece.first, piece.count, shape))
    adjust: starts.Adjust | None = None
    if start.cells is not None:
        each = [
            starts.keep_known(place, noise, own, float(grid[-1]))
            for place, noise in zip(begun, eps, strict=True)
        ]

        def adjust(x: FloatArray, t: float) -> FloatArray:
            return f32(np.concatenate([known(x[rows], t) for known, rows in zip(each, places, strict=True)]))

        denoise = starts.with_known(denoise, adjust, float(grid[0]))

    def stopped() -> bool:
        for piece in pieces:
            with piece.part.own():
                if piece.part.open and piece.part.cancelled is not None and piece.part.cancelled():
                    raise Cancelled(f"stopped by request after {script.step - 1} of {len(grid) - 1} steps")
        return not any(piece.part.open for piece in pieces)

    def report(step: sampler.StepInfo) -> None:
        script.step = step.index + 2  # steps of prompts are counted from 1, and this one is done
        for piece, one, rows in zip(pieces, requests, places, strict=True):
            if piece.part.open:
                with piece.part.own():
                    check_finite(step.x[rows], f"step {step.index + 1} of {step.total}", one)
                    piece.tell(step, rows)

    # Rows of a request that has failed go along, and are looked at by nobody.
    with contextlib.suppress(Cancelled), np.errstate(invalid="ignore", over="ignore"):
        drawn = sampler.sample(
            denoise,
            f32(np.concatenate(x)),
            grid,
            solver,
            schedule=schedule,
            noise=lambda index: np.concatenate([noise(index) for noise in added]),
            on_step=report,
            cancelled=stopped,
            adjust=adjust,
        )
        return [f32(drawn[rows]) for rows in places]
    return x


def check_finite(values: FloatArray | None, where: str, request: GenerateRequest) -> None:
    """Refuse to go on with NaN.

    Raises:
        EngineError: says where it appeared.
    """
    if values is not None and not np.isfinite(values).all():
        raise EngineError(
            f"{where} gave values that are not finite, so there is no picture (seed {request.seed}, "
            f"guidance {request.guidance_scale:g}, solver {request.solver}); try the model's own settings, "
            "and export the model again if that fails too"
        )


class Clock:
    """Seconds per stage; a stage that comes again adds up."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """What was done since the last call was this stage."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def read(self) -> dict[str, float]:
        """All stages so far, and ``total``."""
        return {**self._seconds, "total": time.perf_counter() - self._start}


def _script(
    info: ModelInfo,
    pieces: Sequence[Piece],
    requests: Sequence[GenerateRequest],
    begun: Sequence[starts.Start],
) -> denoising.Script:
    """The texts of all pieces, each at its own place in its own schedule."""
    encoded = [piece.part.encoded for piece in pieces]
    schedules = [texts.schedule(info, one) for texts, one in zip(encoded, requests, strict=True) if texts]

    def conditions(rows: Sequence[int]) -> Conditions:
        found = zip(encoded, rows, pieces, begun, strict=True)
        return stacked(
            [
                texts.text(row).repeat(piece.count).with_concat(start.concat)
                for texts, row, piece, start in found
                if texts
            ]
        )

    return denoising.Script(
        lambda step: tuple(zip(*(rows(step) for rows in schedules), strict=True)), conditions
    )


def _rows(pieces: Sequence[Piece]) -> list[slice]:
    ends = list(itertools.accumulate(piece.count for piece in pieces))
    return [slice(end - piece.count, end) for piece, end in zip(pieces, ends, strict=True)]


def _live(pieces: Sequence[Piece]) -> denoising.BoolArray | None:
    """(B,), False for rows that nobody wants any more; None when all are wanted."""
    if all(piece.part.open for piece in pieces):
        return None
    return np.repeat([piece.part.open for piece in pieces], [piece.count for piece in pieces])


def _open(pieces: Sequence[Piece], latents: Sequence[FloatArray]) -> tuple[list[Piece], list[FloatArray]]:
    kept = [index for index, piece in enumerate(pieces) if piece.part.open]
    return [pieces[index] for index in kept], [latents[index] for index in kept]
