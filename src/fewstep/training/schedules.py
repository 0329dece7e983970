"""Learning rate as a pure function of images seen: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from fewstep.training.sections import Schedule


def rate_factor(schedule: Schedule, images_seen: int, stop_images: int) -> float:
    """Factor on the base learning rate for the optimiser step that ends at ``images_seen``.

    Linear warm-up from 0 over ``warmup_images``, times one of: constant 1; half a cosine to ``final``
    (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts); a line to ``final``; or
    warm-up-stable-decay (Hu et al. 2024, arXiv 2404.06395, section 4.2; we decay linearly).

    Args:
        schedule: the recipe's section.
        images_seen: images consumed when this step is done, at least 1.
        stop_images: end of the schedule when it names none itself.

    Returns:
        A factor in [0, 1]; past the end of the schedule it stays at ``final``.
    """
    total = schedule.total_images or stop_images
    warmup = schedule.warmup_images
    ramp = min(1.0, images_seen / warmup) if warmup else 1.0
    if schedule.kind == "constant":
        return ramp
    start = warmup
    if schedule.kind == "wsd":
        start = max(warmup, total - (schedule.decay_images or max(1, total // 5)))
    done = min(1.0, max(0.0, (images_seen - start) / max(1, total - start)))
    shape = 0.5 * (1.0 + math.cos(math.pi * done)) if schedule.kind == "cosine" else 1.0 - done
    return ramp * (schedule.final + (1.0 - schedule.final) * shape)
