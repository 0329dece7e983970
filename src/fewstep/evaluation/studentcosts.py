"""What a picture costs: network evaluations, counted where they happen, and milliseconds, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fewstep.engine.backends.base import Applied, Backend, Conditions, FloatArray, IntArray, Placed
from fewstep.engine.control import ControlUse
from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest
from fewstep.errors import UsageError
from fewstep.evaluation.drawing import Job, Sampling
from fewstep.evaluation.studenttable import BASE_ROW, Timing


class Counted:
    """Counts the rows that a denoiser is asked for; see `fewstep.engine.backends.base.Backend`."""

    def __init__(self, inner: Backend) -> None:
        self.name, self.info, self.rows = inner.name, inner.info, inner.rows
        self.evaluations = 0
        self._inner = inner

    def describe(self, student: str | None = None) -> Mapping[str, str]:
        """As the backend says."""
        return self._inner.describe(student)

    def prepare(
        self,
        width: int,
        height: int,
        *,
        batches: tuple[int, ...],
        encode: bool,
        student: str | None = None,
        tile: tuple[int, int] | None = None,
        chunks: int = 1,
    ) -> None:
        """Passed on."""
        self._inner.prepare(
            width, height, batches=batches, encode=encode, student=student, tile=tile, chunks=chunks
        )

    def control(self, uses: Sequence[ControlUse]) -> None:
        """Passed on."""
        self._inner.control(uses)

    def adapt(self, adapters: Sequence[Applied], student: str | None = None) -> tuple[str, ...]:
        """Passed on."""
        return self._inner.adapt(adapters, student)

    def encode_text(
        self,
        ids: Sequence[IntArray | None],
        masks: Sequence[IntArray | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Conditions:
        """Passed on."""
        return self._inner.encode_text(ids, masks, clip_skip, placed)

    def denoise(
        self, x: FloatArray, t: FloatArray, conditions: Conditions, student: str | None = None
    ) -> FloatArray:
        """Passed on and counted: a guided step asks for two rows."""
        self.evaluations += len(x)
        return self._inner.denoise(x, t, conditions, student)

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """Passed on."""
        return self._inner.encode_image(pixels, scaled=scaled)

    def decode(self, latents: FloatArray) -> FloatArray:
        """Passed on."""
        return self._inner.decode(latents)

    def close(self) -> None:
        """Passed on."""
        self._inner.close()


def evaluations(engine: Engine, request: GenerateRequest) -> int:
    """Draw one picture, and count how often the network was evaluated for it."""
    counted = Counted(engine.backend)
    Engine(backend=counted).generate(request)
    return counted.evaluations


@dataclass(frozen=True, slots=True)
class Timed:
    """A row that is timed: its name, the hash of its weights, an open engine, and how it is drawn."""

    row: str
    weights: str
    engine: Engine
    sampling: Sampling


def take_turns(
    rows: Sequence[Timed],
    jobs: Sequence[Job],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time whole calls that draw one picture, rows in turn, so that whatever else goes on meets all alike.

    Every row draws once before the clock starts. Round k draws job k; every other round goes backwards.

    Args:
        rows: what is timed.
        jobs: pictures to draw, used in a circle.
        rounds: how many times each row is timed.
        clock: seconds.
        on_progress: told (rounds done, rounds).

    Raises:
        UsageError: no rows, jobs or rounds.
    """
    if not rows or not jobs or rounds < 1:
        raise UsageError(f"timing {len(rows)} rows in {rounds} rounds: give one of each or more")
    for timed in rows:
        timed.engine.generate(timed.sampling.request(timed.engine.info, jobs[0]))
    seconds: dict[str, list[float]] = {timed.row: [] for timed in rows}
    for number in range(rounds):
        job = jobs[number % len(jobs)]
        for timed in rows if number % 2 == 0 else rows[::-1]:
            request = timed.sampling.request(timed.engine.info, job)
            started = clock()
            timed.engine.generate(request)
            seconds[timed.row].append(clock() - started)
        if on_progress is not None:
            on_progress(number + 1, rounds)
    base = seconds.get(BASE_ROW)
    return [
        Timing(
            row=timed.row,
            weights=timed.weights,
            median=1000 * statistics.median(own),
            least=1000 * min(own),
            most=1000 * max(own),
            speedup=None
            if base is None
            else statistics.median(b / o for b, o in zip(base, own, strict=True)),
        )
        for timed in rows
        for own in [seconds[timed.row]]
    ]
