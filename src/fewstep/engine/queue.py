"""A bounded queue of work with deadlines, cancelling and batches, and the threads that do the work.

Threads only, no asyncio: a caller bridges with `Task.add_done_callback`, or `asyncio.wrap_future` of
`Task.future`. All times are of one monotonic clock, so that setting the system's clock changes nothing. The
queue's lock is never held while somebody else's code runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

from fewstep.engine.tasks import Event, Result, State, Task
from fewstep.errors import EngineError, Expired, NotReady, QueueFull, Stopping

_log = logging.getLogger("fewstep.queue")

Order = TypeVar("Order")

_RECENT = 32
"""Orders whose seconds the waiting time is estimated from."""
_STOPPING = "the server is stopping: send the order again when it has started"


class WorkQueue(Generic[Order, Result]):
    """Orders wait here in the order of their arrival until a worker thread takes them.

    Args:
        run: does some orders; it ends each with `Task.finish` or `Task.fail`, the sooner the better. What it
            leaves open fails: with the exception that it raises, if it does.
        size: orders that may wait; those that a worker has, or is about to take, do not count.
        workers: threads, one per device.
        batch: ``batch(first, other)`` says whether two orders can be done in one call of ``run``; None is
            never. A worker takes the oldest order and those behind it that go with it, and waits for none.
        most: orders in one call.
        clock: monotonic seconds.
        restarts: how often a thread that died is started again; a call of ``run`` that ends well counts from
            0 again. After that the queue is `broken`.
        backoff: seconds until the first restart, doubled for every further one.
        on_event: told what becomes of every task, by ``queued``, ``started`` and ``finished``, in this
            order. ``finished`` comes before any caller has the result. What it raises is logged.

    A thread dies of an exception that is no `Exception`, such as SystemExit. Its orders fail with NotReady,
    and those that wait too when no other thread is left.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Task[Result]]], None],
        *,
        size: int,
        workers: int = 1,
        batch: Callable[[Order, Order], bool] | None = None,
        most: int = 1,
        clock: Callable[[], float] = time.monotonic,
        restarts: int = 3,
        backoff: float = 0.5,
        on_event: Callable[[Task[Result], Event], None] | None = None,
    ) -> None:
        self._run, self._batch, self._most = run, batch, most
        self._size, self._workers, self._restarts, self._backoff = size, workers, restarts, backoff
        self._clock, self._on_event = clock, on_event
        self._changed = threading.Condition()
        # All of these only with `_changed` held.
        self._queued: deque[Task[Result]] = deque()
        self._live: list[Task[Result]] = []
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._announced = 0  # accepted, and on_event is being told of it
        self._alive = 0
        self._busy = 0
        self._deaths = 0
        self._again: list[float] = []  # times at which a dead thread is started again
        self._draining = self._closed = self._broken = False
        self._threads: list[threading.Thread] = []
        with self._changed:
            for _ in range(workers):
                self._start()
        keeper = threading.Thread(target=self._keep, name="fewstep-queue", daemon=True)
        self._threads.append(keeper)
        keeper.start()

    @property
    def depth(self) -> int:
        """Orders that wait."""
        with self._changed:
            return len(self._queued)

    @property
    def running(self) -> int:
        """Orders that a worker has."""
        with self._changed:
            return len(self._live)

    @property
    def healthy(self) -> bool:
        """Whether every worker thread lives."""
        with self._changed:
            return self._alive == self._workers and not self._closed

    @property
    def broken(self) -> bool:
        """Whether threads died more often than they are started again."""
        with self._changed:
            return self._broken

    def position(self, task: Task[Result]) -> int:
        """1 for the order that is next, and so on; 0 when it does not wait."""
        with self._changed:
            return self._queued.index(task) + 1 if task in self._queued else 0

    def check_room(self) -> None:
        """Raise what `submit` would raise now."""
        with self._changed:
            self._admit()

    def submit(self, order: Order, *, deadline: float | None = None, owner: str = "") -> Task[Result]:
        """Let an order wait.

        Args:
            order: what `Task.order` is.
            deadline: seconds from now until it must have ended; None is any time.
            owner: whose it is.

        Raises:
            QueueFull: as many as may wait do; ``retry_after`` is estimated from the last orders.
            NotReady: the queue is being drained, is broken, or has no worker now.
        """
        with self._changed:
            self._admit()
            self._announced += 1
        now = self._clock()
        task: Task[Result] = Task(
            order, owner, now, None if deadline is None else now + deadline, clock=self._clock, end=self._end
        )
        self._tell(task, "queued")
        with self._changed:
            self._announced -= 1
            refusal = self._refusal()
            if refusal is None and task.state == "queued":  # or on_event has cancelled it
                self._queued.append(task)
                self._changed.notify_all()
        if refusal is not None:
            self._end(task, "failed", error=refusal)
        return task

    def tick(self) -> None:
        """Do what is due by the clock: end orders that waited too long, start dead threads again.

        It happens by itself at the right time of the system's clock; this is for another clock that jumped.
        """
        with self._changed:
            now = self._clock()
            late = [task for task in self._queued if task.late]
            due = 0 if self._closed else sum(at <= now for at in self._again)
            self._again = [at for at in self._again if at > now]
            for _ in range(due):
                self._start()
            if due:
                self._changed.notify_all()
        for task in late:
            self._expire(task)

    def drain(self, grace: float) -> bool:
        """Take nothing more, and let what runs come to its end.

        Orders that wait fail with Stopping. Those that run have ``grace`` seconds; then they are told to stop
        at their next step, which fails them with Stopping too, and this returns without waiting for it.

        Returns:
            Whether all had ended by then.
        """
        with self._changed:
            self._draining = True
            waiting = list(self._queued)
        for task in waiting:
            self._end(task, "failed", error=Stopping(_STOPPING), only="queued")
        until = self._clock() + grace
        with self._changed:
            self._changed.notify_all()
            while self._busy and (left := until - self._clock()) > 0:
                if not self._changed.wait(left):
                    break
            for task in self._live:
                task.stop(_STOPPING)
            return not self._busy

    def close(self, timeout: float | None = None) -> bool:
        """Stop everything at its next step and wait for the threads; whether they ended in ``timeout``."""
        self.drain(0.0)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = [one for one in self._threads if one is not threading.current_thread()]
        for thread in threads:
            thread.join(timeout)
        return not any(thread.is_alive() for thread in threads)

    def _admit(self) -> None:
        refusal = self._refusal()
        if refusal is not None:
            raise refusal
        # Workers that wait take an order each, so that these do not count, whenever they wake up.
        if len(self._queued) + self._announced >= self._size + self._alive - self._busy:
            mean = sum(self._recent) / max(len(self._recent), 1)
            seconds = max(1.0, mean * len(self._queued) / self._workers)
            raise QueueFull(
                f"the queue is full, {self._size} orders wait: try again in {seconds:.0f} s", seconds
            )

    def _refusal(self) -> NotReady | None:
        if self._draining:
            return Stopping(_STOPPING)
        if self._broken:
            return NotReady(f"the worker broke down {self._deaths} times: restart the server and see its log")
        if not self._alive:
            return NotReady("the worker broke down and is being started again: try again in a moment")
        return None

    def _keep(self) -> None:
        """The thread that looks after time."""
        while True:
            self.tick()
            with self._changed:
                if self._closed:
                    return
                times = [task.deadline for task in self._queued if task.deadline is not None] + self._again
                wait = min(times) - self._clock() if times else None
                if wait is None or wait > 0:
                    self._changed.wait(wait)

    def _start(self) -> None:
        self._alive += 1
        thread = threading.Thread(target=self._work, name="fewstep-worker", daemon=True)
        self._threads = [one for one in self._threads if one.is_alive()] + [thread]
        thread.start()

    def _work(self) -> None:
        tasks: list[Task[Result]] = []
        try:
            while self._take(tasks):
                self._do(tasks)
                tasks.clear()  # nothing is kept while it waits
        except BaseException as death:
            self._died(tasks, death)
        else:
            with self._changed:
                self._alive -= 1

    def _take(self, tasks: list[Task[Result]]) -> bool:
        """Wait for an order, and put it and what goes with it into ``tasks``; False when all is closed."""
        self.tick()
        with self._changed:
            while (first := next((task for task in self._queued if not task.late), None)) is None:
                if self._closed:
                    return False
                self._changed.wait()
            self._busy += 1
            self._begin(first, tasks)
            others = list(self._queued) if self._batch is not None and self._most > 1 else []
        for other in others:
            if len(tasks) < self._most and self._fits(first, other):
                with self._changed:
                    if other.state == "queued" and not other.late:  # or it was cancelled meanwhile
                        self._begin(other, tasks)
        return True

    def _begin(self, task: Task[Result], tasks: list[Task[Result]]) -> None:
        self._queued.remove(task)
        self._live.append(task)
        tasks.append(task)
        task.begin()

    def _fits(self, first: Task[Result], other: Task[Result]) -> bool:
        assert self._batch is not None
        try:
            return self._batch(first.order, other.order)
        except Exception:
            _log.exception("whether two orders can be done together cannot be told")
            return False

    def _do(self, tasks: Sequence[Task[Result]]) -> None:
        began = self._clock()
        for task in tasks:
            self._tell(task, "started")
        error: Exception = EngineError("the order came to no end in its worker, a bug of fewstep")
        try:
            self._run(list(tasks))
        except Exception as raised:
            error = raised
        for task in tasks:
            task.fail(error)  # of those that are still open
        with self._changed:
            self._busy -= 1
            self._deaths = 0
            self._recent.append((self._clock() - began) / len(tasks))
            self._changed.notify_all()

    def _died(self, tasks: list[Task[Result]], death: BaseException) -> None:
        _log.error("a worker thread died", exc_info=death)
        with self._changed:
            self._busy -= bool(tasks)
            self._alive -= 1
            self._deaths += 1
            if self._deaths > self._restarts:
                self._broken = True
            else:
                self._again.append(self._clock() + self._backoff * 2 ** (self._deaths - 1))
            refusal = self._refusal() or NotReady("the worker broke down: send the order again")
            lost = [*tasks, *(self._queued if not self._alive else ())]
            self._changed.notify_all()
        for task in lost:
            self._end(task, "failed", error=refusal)

    def _expire(self, task: Task[Result]) -> None:
        waited = self._clock() - task.submitted
        error = Expired(f"the order waited {waited:.1f} s and did not start by its deadline: try again later")
        self._end(task, "expired", error=error)

    def _end(
        self,
        task: Task[Result],
        state: State,
        *,
        result: Any = None,
        error: Exception | None = None,
        only: Literal["queued", "running"] | None = None,
    ) -> bool:
        """End a task, unless it has ended already; with ``only``, if it is in that state."""
        with self._changed:
            if task.done or (only is not None and task.state != only):
                return False
            for place in (self._queued, self._live):
                if task in place:
                    place.remove(task)
            task.state, task.ended = state, self._clock()
            self._changed.notify_all()
        self._tell(task, "finished")
        if error is None:
            task.future.set_result(result)
        else:
            task.future.set_exception(error)
        return True

    def _tell(self, task: Task[Result], event: Event) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(task, event)
        except Exception:
            _log.exception("on_event failed at %s of task %s", event, task.id)
