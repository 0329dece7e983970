"""How many calls of small networks run side by side on a CPU, and waiting for one's turn.

A second thread hardly shortens a call of a small network: the bundled denoiser takes 7.8 ms with one thread
and 7.6 ms with two, while two calls side by side take 9.6 ms together (AMD EPYC, two cores). So each call has
a thread of its own, and there are as many lanes as cores. See docs/adr/0025-lanes.md.
"""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Iterator

SMALL = 48 << 20
"""Bytes of weights up to which a denoiser counts as small. The bundled one has 12 MB; that of Stable
Diffusion 1, 860 MB in int8, has work for every core."""
MOST = 4
"""Lanes that a process has at most: what is between the calls is Python, which one thread runs at a time."""


def count(weights: int, threads: int | None) -> int:
    """Lanes for a denoiser.

    Args:
        weights: bytes of its weights.
        threads: inference threads that may be used; None is every core that this process may run on.
    """
    if weights > SMALL:
        return 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return min(threads or cores, MOST)


class Lanes:
    """Numbers from 0 on, each in the hands of one caller at a time.

    Args:
        number: of them.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for lane in range(number):
            self._free.put(lane)

    @contextlib.contextmanager
    def take(self, most: int) -> Iterator[list[int]]:
        """Wait for a lane, and take others that are free now, up to ``most`` in all."""
        taken = [self._free.get()]
        try:
            with contextlib.suppress(queue.Empty):
                while len(taken) < most:
                    taken.append(self._free.get_nowait())
            yield taken
        finally:
            for lane in taken:
                self._free.put(lane)
