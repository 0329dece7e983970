"""One way from any API's order to pictures: checked, recorded, queued, drawn, finished, kept.

An order is checked before it is taken, and recorded before it is acknowledged. The queue's thread draws;
another thread upscales and keeps, so that the next order is drawn meanwhile. Callers hold a `Pending`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.engine import batching, finished
from fewstep.engine.queue import WorkQueue
from fewstep.engine.request import GenerateRequest, GenerateResult, resolve
from fewstep.errors import Cancelled, Expired, FewstepError, NotReady, QueueFull, Stopping
from fewstep.prompt import containers, infotext
from fewstep.prompt.networks import cut_networks
from fewstep.server import drawing, limits, orderfiles
from fewstep.server.ids import new_id
from fewstep.server.orders import Drawn, Order
from fewstep.server.pending import KnownJob, OnProgress, Pending, finish

if TYPE_CHECKING:
    from starlette.requests import Request

    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.engine import Engine, StepReport
    from fewstep.engine.registry import ModelEntry
    from fewstep.engine.tasks import Task
    from fewstep.server.history import History
    from fewstep.server.jobstore import JobStore
    from fewstep.server.metrics import Metrics
    from fewstep.server.pool import Pool
    from fewstep.server.settings import ServerSettings

_log = logging.getLogger("fewstep.server")

_BEHIND = 8
"""Orders that may be finished later than they are drawn, before drawing waits for it."""
_LASTING = 0.5
"""Seconds of drawing after which an order is recorded as running."""


class Generator:
    """See the module. Safe to use from several threads; calls may wait for the database or a model's header.

    Args:
        settings: limits, deadlines, sizes of the queue and of batches.
        pool: the models.
        jobs: where orders are recorded.
        history: where pictures are kept.
        metrics: what is counted.
        kept_as: format and quality in which an owner's pictures are kept.
    """

    def __init__(
        self,
        settings: ServerSettings,
        pool: Pool,
        *,
        jobs: JobStore,
        history: History,
        metrics: Metrics,
        kept_as: Callable[[str], tuple[containers.Format, int]] = lambda owner: ("png", 95),
    ) -> None:
        self._settings = settings
        self.pool = pool
        self._jobs = jobs
        self._history = history
        self._metrics = metrics
        self._kept_as = kept_as
        self._inputs = settings.data / "inputs"
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}
        self._running: list[Pending] = []
        self._chosen: dict[str, str] = {}
        self._behind = threading.BoundedSemaphore(_BEHIND)
        self._finisher = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="fewstep-finish")
        self.queue: WorkQueue[Pending, GenerateResult] = WorkQueue(
            self._run, size=settings.limits.queue, batch=self._together, most=settings.batch
        )
        metrics.watch(lambda: self.queue.depth, lambda: self.queue.running)

    def submit(self, order: Order, on_progress: OnProgress | None = None) -> Pending:
        """Check an order, record it, and put it into the queue.

        Args:
            order: what to draw.
            on_progress: told after every step, in the worker's thread.

        Raises:
            UsageError, NotFoundError, CheckpointError: the order cannot be drawn.
            QueueFull: too many wait.
            NotReady: the server is stopping, or its worker is broken.
            OutputError: the order cannot be recorded.
            ConflictError: its idempotency key was used for another one.
            KnownJob: it was used for this one, which has ended; one that is on its way is returned.
        """
        try:
            order = self._adaptable(order)
            request = self.request(order)
            if order.parent is not None:
                self._history.get(order.parent, order.owner if self._settings.keys else None)
            self._room()
        except FewstepError as error:
            self._metrics.rejected(_reason(error))
            raise
        known = None
        job_id = order.job_id or (new_id() if not order.recorded else "")
        if not job_id:
            job_id, known = self._record(order)
        if known is not None:
            return known
        pending = Pending(order, request, job_id, on_progress)
        with self._lock:
            self._pending[job_id] = pending
        most = self._settings.limits.deadline
        deadline = most if order.deadline is None else min(order.deadline, most)
        try:
            pending.task = self.queue.submit(pending, deadline=deadline, owner=order.owner)
        except FewstepError as error:
            self._forget(pending)
            self._metrics.rejected(_reason(error))
            if order.job_id is not None:
                self._state(pending, "failed", error=str(error))
            elif order.recorded:
                self._jobs.discard(job_id)
            raise
        pending.task.add_done_callback(lambda task: self._ended(pending, task))
        return pending

    def request(self, order: Order) -> GenerateRequest:
        """What an order means for the engine, checked against the limits; raises as `submit`."""
        return limits.checked(self.pool.info(order.model), order, self._settings.limits)

    def models(self) -> list[ModelEntry]:
        """Every model that can be asked for."""
        return self.pool.models()

    def info(self, model: str | None = None) -> ModelInfo:
        """What a model is; raises as `Pool.info`."""
        return self.pool.info(model)

    def pending(self, job_id: str) -> Pending | None:
        """An order that has not ended, by the id of its job."""
        with self._lock:
            return self._pending.get(job_id)

    def current(self, owner: str | None = None) -> Pending | None:
        """What is being drawn now, of an owner or of anybody."""
        with self._lock:
            running = list(self._running)
        return next((one for one in running if owner is None or one.order.owner == owner), None)

    def waiting(self, owner: str | None = None) -> list[Pending]:
        """Orders that have not ended, in the order of their arrival."""
        with self._lock:
            return [one for one in self._pending.values() if owner is None or one.order.owner == owner]

    def interrupt(self, owner: str | None = None) -> bool:
        """Cancel what is being drawn for an owner; whether there was anything."""
        current = self.current(owner)
        return current is not None and current.cancel()

    async def draw(
        self, order: Order, request: Request | None = None, on_progress: OnProgress | None = None
    ) -> Drawn:
        """Draw an order and wait for it; when the client goes away meanwhile, it is cancelled.

        Args:
            order: what to draw.
            request: whose client is watched, its body read already; None watches nobody.
            on_progress: told after every step, in the worker's thread.

        Raises:
            As `submit`; Cancelled, Expired, EngineError by the drawing.
        """
        return await finish(await drawing.submit(self, order, on_progress), request)

    async def ainfo(self, model: str | None = None) -> ModelInfo:
        """As `info`, for an event loop."""
        return await asyncio.to_thread(self.pool.info, model)

    def set_model(self, owner: str, name: str) -> None:
        """What an owner's orders are drawn with when they name no model; raises as `Pool.info`."""
        self.pool.info(name)
        with self._lock:
            self._chosen[owner] = name

    def model_of(self, owner: str) -> str:
        """Name of the model that an owner's orders are drawn with when they name none."""
        with self._lock:
            chosen = self._chosen.get(owner)
        return chosen or self.pool.default

    def warm_up(self) -> None:
        """Load the networks that draw an order without further wishes: one step that nobody sees."""
        self._warm("none")

    def warm_rest(self, go_on: Callable[[], bool]) -> None:
        """Load the default model's other denoisers, one by one, while nobody asks for anything.

        Args:
            go_on: asked before each of them.
        """
        # The fewest steps first: pictures that somebody waits for while typing.
        for student in sorted(self.pool.info().students, key=lambda one: min(one.steps)):
            if not go_on() or self.pool.loaded() != self.pool.default:
                return
            self._warm(student.name, min(student.steps))

    def _warm(self, student: str, steps: int = 1) -> None:
        with self.pool.using() as engine:
            engine.generate(resolve(engine.info, prompt="", num_inference_steps=steps, student=student))

    def again(self, job_id: str, values: Mapping[str, Any], owner: str) -> Pending:
        """Queue a recorded job once more; raises as `submit`, and DataError when its record is damaged."""
        return self.submit(orderfiles.from_json(values, self._inputs, owner=owner, job_id=job_id))

    def drain(self, grace: float) -> bool:
        """Take nothing more, give running orders so many seconds, and finish what was drawn."""
        calm = self.queue.drain(grace)
        self._finisher.shutdown(wait=True)
        return calm

    def close(self) -> None:
        """Stop everything at the next step, and let go of the models."""
        self.queue.close()
        self._finisher.shutdown(wait=True)
        self.pool.close()

    def _adaptable(self, order: Order) -> Order:
        """The order, of a form of its model that takes adapters where it asks for any."""
        tagged = cut_networks(str(order.settings.get("prompt", "")))[1]
        if not order.settings.get("adapters") and not any(one.kind == "lora" for one in tagged):
            return order
        own = self.pool.default if order.model is None else order.model
        name = self.pool.adaptable(own)
        return order if name == own else dataclasses.replace(order, model=name)

    def _room(self) -> None:
        """Refuse before anything is written; the queue itself decides in the end."""
        self.queue.check_room()

    def _record(self, order: Order) -> tuple[str, Pending | None]:
        """The id of a new job, or one that is on its way already."""
        values = orderfiles.to_json(order, self._inputs)
        row, new = self._jobs.add(
            values, kind="generate", client=order.client, owner=order.owner,
            idempotency_key=order.idempotency_key, fingerprint=order.fingerprint,
        )  # fmt: skip
        if new:
            return row.id, None
        if (known := self.pending(row.id)) is None:
            raise KnownJob(row.id)
        return row.id, known

    def _together(self, first: Pending, other: Pending) -> bool:
        same = (first.order.model or self.pool.default) == (other.order.model or self.pool.default)
        return same and batching.compatible(self.pool.info(first.order.model), first.request, other.request)

    def _run(self, tasks: Sequence[Task[GenerateResult]]) -> None:
        """In the worker's thread: draw one order, or several together."""
        pendings: list[Pending] = [task.order for task in tasks]
        for one, task in zip(pendings, tasks, strict=True):
            one.task = task  # `submit` may not have come to it yet
        with self._lock:
            self._running = pendings
        self._metrics.batch(len(tasks))
        try:
            with self.pool.using(pendings[0].order.model) as engine:
                self._draw(engine, tasks, pendings)
        finally:
            with self._lock:
                self._running = []

    def _draw(
        self, engine: Engine, tasks: Sequence[Task[GenerateResult]], pendings: Sequence[Pending]
    ) -> None:
        for one in pendings:
            one.begin()
        # Only where it lasts: a commit costs as much as a step. After a crash both states are unfinished.
        lasting = threading.Timer(_LASTING, self._lasting, [pendings])
        lasting.daemon = True
        lasting.start()

        def told(one: Pending) -> Callable[[StepReport], None]:
            return lambda step: one.report(step, lambda: engine.preview(step.x0[:1])[0])

        def ended(index: int, end: GenerateResult | FewstepError) -> None:
            if isinstance(end, FewstepError):
                tasks[index].fail(end)
                return
            self._behind.acquire()
            if not tasks[index].finish(end):
                self._behind.release()

        try:
            batching.generate_batch(
                engine, [one.request for one in pendings], on_step=[told(one) for one in pendings],
                cancelled=[task.cancelled for task in tasks], on_end=ended,
            )  # fmt: skip
        finally:
            lasting.cancel()

    def _lasting(self, pendings: Sequence[Pending]) -> None:
        for one in pendings:
            self._state(one, "running")

    def _ended(self, pending: Pending, task: Task[GenerateResult]) -> None:
        """The queue is done with an order: finish it, or say why not."""
        try:
            result = task.result(0)
        except FewstepError as error:
            self._failed(pending, error)
        except BaseException as error:
            self._failed(pending, error)
        else:
            try:
                self._finisher.submit(self._finish, pending, result)
            except RuntimeError:  # it was shut down while this was drawn
                self._behind.release()
                self._failed(pending, Stopping("the server is stopping: send the order again"))

    def _finish(self, pending: Pending, result: GenerateResult) -> None:
        try:
            drawn = self._finished(pending, result)
            ids = {"images": drawn.ids, "seeds": drawn.seeds, "infotexts": drawn.infotexts}
            self._state(
                pending, "done",
                result={**ids, "warnings": drawn.warnings, "timings": dict(drawn.timings),
                        "width": drawn.width, "height": drawn.height},
            )  # fmt: skip
            self._metrics.finished(pending.order.client, "done", len(drawn.images), drawn.timings)
            self._forget(pending)
            pending.future.set_result(drawn)
        except BaseException as error:
            self._failed(pending, error)
        finally:
            self._behind.release()

    def _finished(self, pending: Pending, result: GenerateResult) -> Drawn:
        order, request = pending.order, pending.request
        name = "none" if order.upscale is None else order.upscale.name
        size = None
        if order.upscale is not None and order.upscale.width and order.upscale.height:
            size = (order.upscale.width, order.upscale.height)
        pictures = [
            finished.finish(
                request, result, index, name, size=size, cancelled=pending.task.cancelled, further=order.extra
            )
            for index in range(request.n)
        ]
        records = [picture.record for picture in pictures]
        warnings = list(dict.fromkeys([*result.warnings, *(p.warning for p in pictures if p.warning)]))
        ids: list[str] = []
        if order.save and self._settings.save:
            try:
                image_format, quality = self._kept_as(order.owner)
                for picture in pictures:
                    kept = self._history.add(
                        picture.pixels, picture.record, owner=order.owner, client=order.client,
                        job_id=pending.id, parent=order.parent, timings=result.timings,
                        image_format=image_format, quality=quality,
                    )  # fmt: skip
                    ids.append(kept.id)
            except FewstepError as error:
                # The pictures are there; that they cannot be kept must not take them from the caller.
                _log.warning("pictures of job %s cannot be kept: %s", pending.id, error)
                self._metrics.unsaved(len(pictures) - len(ids))
                warnings.append("the pictures could not be kept in the history: the disk cannot be written")
        height, width = pictures[0].pixels.shape[:2]
        return Drawn(
            images=[picture.pixels for picture in pictures],
            seeds=list(result.seeds),
            records=records,
            infotexts=[infotext.from_record(record) for record in records],
            ids=ids,
            timings={
                **result.timings,
                "upscale": sum(picture.seconds for picture in pictures),
                "waited": pending.task.waited,
            },
            warnings=warnings,
            width=width,
            height=height,
            drawn_width=request.width,
            drawn_height=request.height,
        )

    def _failed(self, pending: Pending, error: BaseException) -> None:
        state = "failed"
        for kind, name in ((Cancelled, "cancelled"), (Expired, "expired"), (Stopping, "cut_off")):
            if isinstance(error, kind):
                state = name
        if not isinstance(error, FewstepError):
            _log.error("job %s failed", pending.id, exc_info=error)
        shown = str(error) if isinstance(error, FewstepError) else "a bug of fewstep; see the server's log"
        self._state(pending, state, error=shown)
        self._metrics.finished(pending.order.client, state, 0, {})
        self._forget(pending)
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            pending.future.set_exception(error)

    def _forget(self, pending: Pending) -> None:
        with self._lock:
            self._pending.pop(pending.id, None)

    def _state(self, pending: Pending, state: str, **values: Any) -> None:
        """Record a state; a database that fails now is logged, and stops no drawing."""
        if not pending.order.recorded:
            return
        try:
            if state != "running":
                values["started"] = pending.started
            self._jobs.set_state(pending.id, state, **values)
        except Exception:
            _log.exception("state %s of job %s cannot be recorded", state, pending.id)


def _reason(error: FewstepError) -> str:
    if isinstance(error, QueueFull):
        return "full"
    return "not_ready" if isinstance(error, NotReady) else "invalid"
