"""Drawing with a network in training, as the finished model will be drawn with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.prediction import Denoiser
from fewstep.diffusion.sampler import sample


def draw(
    denoise: Denoiser, contract: SamplingContract, noise: Tensor, *, steps: int | None = None, seed: int = 0
) -> Tensor:
    """Follow a contract's grid from pure noise.

    Args:
        denoise: the student, or the guided teacher.
        contract: solver, schedule and grid.
        noise: (B, ...), standard normal.
        steps: a count that the contract allows; its own default when not given.
        seed: of the noise that a stochastic solver adds.

    Returns:
        (B, ...), clean.

    Raises:
        UsageError: a step count that the student was not made for.
    """
    rng = np.random.default_rng([seed, 0x64726177])

    def fresh(_index: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(noise.shape, dtype=np.float32)).to(noise)

    schedule = contract.make_schedule()
    with torch.no_grad():
        drawn: Tensor = sample(
            denoise, noise, contract.grid(steps), contract.make_solver(), schedule=schedule, noise=fresh
        )
    return drawn
