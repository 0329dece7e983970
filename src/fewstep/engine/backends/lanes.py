"""How many calls of a small network run side by side on a CPU.

A second thread hardly shortens a call of a small network: the bundled denoiser takes 6.6 ms with one thread
and 6.0 ms with two, while two calls side by side take 8.2 ms together (AMD EPYC, two cores). So each call has
a thread of its own, and there are as many lanes as cores. See docs/adr/0025-lanes.md.
"""

from __future__ import annotations

import os

SMALL = 48 << 20
"""Bytes of weights up to which a denoiser counts as small. The bundled one has 12 MB; that of Stable
Diffusion 1, 860 MB in int8, has work for every core."""
MOST = 4
"""Lanes at most: not measured beyond two, and a picture alone has one lane's share of the threads."""


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
