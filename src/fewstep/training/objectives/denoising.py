"""Conditional denoising: pure functions of tensors returning one loss per sample.

Ho et al. 2020 (arXiv 2006.11239), algorithm 1 and equation 14, for any prediction type and weighting;
captions are dropped as in Ho and Salimans 2022 (arXiv 2207.12598), algorithm 1, by whoever builds the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fewstep.diffusion import prediction
from fewstep.diffusion.schedule import Schedule

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""``network(x_t, model_time) -> raw output`` with the conditions closed over."""


def denoising(
    network: Network,
    x0: torch.Tensor,
    eps: torch.Tensor,
    t: np.ndarray[Any, np.dtype[np.float64]],
    *,
    schedule: Schedule,
    prediction_type: str,
    weight: np.ndarray[Any, np.dtype[np.float64]] | None = None,
) -> torch.Tensor:
    """Weighted mean squared error between the network's raw output and its target.

    Args:
        network: called once with x_t = alpha x0 + sigma eps and the model's time (B,).
        x0: clean latents (B, C, h, w), scaled.
        eps: standard normal noise of the same shape.
        t: times on the host (B,), as the schedule counts them.
        schedule: the forward process.
        prediction_type: what the raw output means.
        weight: (B,), on the host; None for 1.

    Returns:
        (B,) in float32 or the latents' type.
    """
    x_t = schedule.forward(x0, eps, t)
    model_time = torch.from_numpy(np.asarray(schedule.model_time(t))).to(x0.device, torch.float32)
    output = network(x_t, model_time).to(x0.dtype)
    target = prediction.target(x0, eps, t, schedule, prediction_type)
    error: torch.Tensor = (output - target).square().flatten(1).mean(1)
    if weight is None:
        return error
    return error * torch.from_numpy(np.asarray(weight)).to(error.device, error.dtype)
