"""What a caller's requests are doing, for ``/progress`` and ``/internal/progress``.

Every caller sees its own tasks alone. Previews are decoded only while somebody looks.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from fewstep.server.orders import Image, Progress

_LOOKING = 10.0
"""Seconds for which previews are made after somebody asked for one."""
_KEPT = 256
"""Tasks that have ended and are still known by their name."""
_FIRST = 0.01
"""Progress of a task that has begun: 0 means idle."""


class Tracked:
    """One request, from its arrival to its end."""

    def __init__(self, name: str, owner: str, job: str, orders: int, looking: Callable[[], bool]) -> None:
        self.name = name
        self.owner = owner
        self.job = job
        self.orders = orders
        self.done = 0
        """Orders that have ended."""
        self.timestamp = time.strftime("%Y%m%d%H%M%S")
        self.running = False
        self.interrupted = False
        self.skipped = False
        self.ended = False
        self.step = 0
        self.total = 0
        self.preview: Image | None = None
        self.preview_id = -1
        self._began: float | None = None
        self._looking = looking

    def tell(self, progress: Progress) -> None:
        """Listen to an order; called in the worker's thread."""
        if self._began is None:
            self._began = time.monotonic()
        self.running = True
        self.step, self.total = progress.step, progress.total
        if progress.preview is not None and self._looking():
            self.preview = progress.preview()
            self.preview_id += 1

    def tell_tiles(self, done: int, total: int) -> None:
        """Listen to an upscaler, which has tiles in place of steps."""
        self.tell(Progress(step=done, total=total, image=0, images=1, seconds=0.0))

    @property
    def share(self) -> float:
        """How much is done, 0 to 1; 0 while it waits."""
        if self.ended:
            return 1.0
        if not self.running:
            return 0.0
        own = self.step / self.total if self.total else 0.0
        return min(max((self.done + own) / self.orders, _FIRST), 1.0)

    @property
    def eta(self) -> float:
        """Seconds until it is done, by its own pace; 0 where that is not known."""
        share = self.share
        if self._began is None or share <= _FIRST or self.ended:
            return 0.0
        return (time.monotonic() - self._began) * (1.0 - share) / share


class Tracker:
    """The tasks of all callers. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._tasks: OrderedDict[tuple[str, str], Tracked] = OrderedDict()
        self._looked: dict[str, float] = {}
        self._clock = clock

    def begin(self, owner: str, job: str, *, name: str | None = None, orders: int = 1) -> Tracked:
        """A new task; one of the same name is forgotten."""
        task = Tracked(
            name or secrets.token_hex(8), owner, job, max(orders, 1), lambda: self._is_looking(owner)
        )
        with self._lock:
            self._tasks.pop((owner, task.name), None)
            self._tasks[owner, task.name] = task
        return task

    def end(self, task: Tracked) -> None:
        """It is over, however that came."""
        task.ended, task.running = True, False
        task.preview = None
        with self._lock:
            over = [key for key, one in self._tasks.items() if one.ended]
            for key in over[:-_KEPT]:
                del self._tasks[key]

    def find(self, owner: str, name: str) -> Tracked | None:
        """A task by its name, while it is known."""
        with self._lock:
            return self._tasks.get((owner, name))

    def active(self, owner: str) -> list[Tracked]:
        """Tasks that have not ended, those that run first."""
        with self._lock:
            found = [one for (of, _), one in self._tasks.items() if of == owner and not one.ended]
        return sorted(found, key=lambda one: not one.running)

    def look(self, owner: str) -> None:
        """Somebody asked for a preview: make them for a while."""
        with self._lock:
            self._looked[owner] = self._clock()

    def _is_looking(self, owner: str) -> bool:
        with self._lock:
            return self._clock() - self._looked.get(owner, float("-inf")) < _LOOKING
