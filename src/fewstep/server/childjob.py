"""Long work that was taken, as its callers hold it, and its order as it is recorded."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fewstep.errors import DataError
from fewstep.server.orders import Progress
from fewstep.server.schemas.work import BODIES, WorkBody

if TYPE_CHECKING:
    from fewstep.engine.tasks import Task
    from fewstep.server.tables import JobRow
    from fewstep.server.workplan import Plan

_log = logging.getLogger("fewstep.server")


class ChildJob:
    """Work that was taken. ``future`` ends with its result, or with the error that ended it."""

    def __init__(self, job_id: str, owner: str, body: WorkBody, plan: Plan) -> None:
        self.id, self.owner, self.body, self.plan = job_id, owner, body, plan
        self.future: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()
        self.progress: Progress | None = None
        self.task: Task[dict[str, Any]] | None = None
        self._listeners: list[Callable[[Progress], None]] = []
        self._started = time.monotonic()

    def cancel(self) -> bool:
        """Leave the queue, or save and stop; False when it had ended."""
        return self.task is not None and self.task.cancel()

    def listen(self, listener: Callable[[Progress], None]) -> None:
        """Tell of all progress from now on, in the worker's thread."""
        self._listeners = [*self._listeners, listener]

    def unlisten(self, listener: Callable[[Progress], None]) -> None:
        """Tell no more."""
        self._listeners = [one for one in self._listeners if one != listener]

    def begin(self) -> None:
        """It runs from now on."""
        self._started = time.monotonic()
        self.tell(0, 0, None)

    def tell(self, done: int, total: int, message: str | None) -> None:
        """It is so far; a listener that fails stops no work."""
        seconds = time.monotonic() - self._started
        self.progress = Progress(step=done, total=total, image=0, images=0, seconds=seconds, message=message)
        for listener in self._listeners:
            try:
                listener(self.progress)
            except Exception:
                _log.exception("a listener of job %s failed", self.id)


def order_of(row: JobRow) -> WorkBody:
    """The order of a recorded job.

    Raises:
        DataError: it is of another version of fewstep.
    """
    from pydantic import ValidationError

    try:
        values = dict(row.order["body"])
        if row.kind == "upscale" and not values.get("images"):
            values["image"] = "in the folder of the job"
        return BODIES[row.kind].model_validate(values)
    except (KeyError, TypeError, ValidationError):
        raise DataError("the record of this job is of another version of fewstep: order it anew") from None
