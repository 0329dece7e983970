"""What a caller of `fewstep.engine.queue.WorkQueue` holds: one order, how far it is, and its end."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Literal, TypeVar

from fewstep.errors import Cancelled, Expired, NotReady, Stopping

_log = logging.getLogger("fewstep.queue")

Result = TypeVar("Result")

State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
Event = Literal["queued", "started", "finished"]


class Task(Generic[Result]):
    """One order in a queue, which makes it. Times are seconds of the queue's clock."""

    def __init__(
        self,
        order: Any,
        owner: str,
        submitted: float,
        deadline: float | None,
        *,
        clock: Callable[[], float],
        end: Callable[..., bool],
    ) -> None:
        self.id = secrets.token_hex(16)
        self.order = order
        self.owner = owner
        self.state: State = "queued"
        self.submitted = submitted
        self.deadline = deadline
        self.started: float | None = None
        self.ended: float | None = None
        self.future: Future[Result] = Future()
        """For `asyncio.wrap_future` and the like; its own ``cancel`` does nothing, see `cancel`."""
        self.future.set_running_or_notify_cancel()
        self._clock, self._end = clock, end
        self._cancelled = False
        self._stopping: str | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state not in ("queued", "running")

    @property
    def late(self) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self._clock() >= self.deadline

    @property
    def waited(self) -> float:
        """Seconds in the queue."""
        until = self.started if self.started is not None else self.ended
        return (self._clock() if until is None else until) - self.submitted

    @property
    def seconds(self) -> float:
        """Seconds since a worker took it, up to its end; 0 when none has."""
        if self.started is None:
            return 0.0
        return (self._clock() if self.ended is None else self.ended) - self.started

    def cancelled(self) -> bool:
        """Whether its worker is to stop: it was cancelled, is late, or the queue is being closed."""
        return self._cancelled or self._stopping is not None or self.late

    def cancel(self) -> bool:
        """Leave the queue and never run, or stop at the next step.

        A result that is ready before the next step is given all the same.

        Returns:
            False when it had ended; as often as it is asked before that, True.
        """
        if self.done:
            return False
        self._cancelled = True
        error = Cancelled("stopped by request before it began")
        return self._end(self, "cancelled", error=error, only="queued") or not self.done

    def stop(self, why: str) -> None:
        """Let it stop at its next step for a reason that is not its caller's; it fails with Stopping then."""
        self._stopping = why

    def begin(self) -> None:
        """A worker has taken it."""
        self.state, self.started = "running", self._clock()

    def finish(self, result: Result) -> bool:
        """End it with what was made; False when it had ended."""
        return self._end(self, "done", result=result)

    def fail(self, error: Exception) -> bool:
        """End it with an error; False when it had ended.

        Cancelled becomes Expired or Stopping where not the caller but the deadline or the queue stopped it,
        and MemoryError becomes NotReady.
        """
        if isinstance(error, Cancelled) and not self._cancelled:
            if self._stopping is not None:
                error = Stopping(self._stopping)
            elif self.late:
                error = Expired(
                    f"the order was not done by its deadline, {self.seconds:.1f} s after it began ({error}): "
                    "ask for less, or give it more time"
                )
        elif isinstance(error, MemoryError):
            error = NotReady("out of memory while drawing: ask for fewer or smaller pictures")
        state: State = "failed"
        if isinstance(error, (Cancelled, Expired)):
            state = "cancelled" if isinstance(error, Cancelled) else "expired"
        return self._end(self, state, error=error)

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end and return what was made, or raise what it failed with.

        Raises:
            TimeoutError: it has not ended after so many seconds.
        """
        return self.future.result(timeout)

    def add_done_callback(self, callback: Callable[[Task[Result]], None]) -> None:
        """Call ``callback`` with this once it has ended: in the thread that ends it, at once if it has.

        That is a worker's thread for orders that ran. What it raises is logged.
        """

        def call(_: Future[Result]) -> None:
            try:
                callback(self)
            except Exception:
                _log.exception("a callback of task %s failed", self.id)

        self.future.add_done_callback(call)
