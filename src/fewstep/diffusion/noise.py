"""Per-image seeded noise: the same bits on every device, alone or in a batch.

The noise of image i of a request is a function of ``seed + i`` only. Raw bits come from numpy's Philox4x64-10
counter generator (Salmon 2011, "Parallel random numbers: as easy as 1, 2, 3") with the key (seed, stream);
each 64-bit word gives two 32-bit uniforms u = (k + 1/2) / 2**32, low half first, and the Box-Muller transform
(1958) turns the pair into sqrt(-2 ln u_1) (cos, sin)(2 pi u_2), computed in float64 and rounded once to
float32. The transform is written out here, not taken from numpy's ``Generator``, whose streams may change
between versions. The logarithm and the circular functions of another C
library may differ in float64's last bit, which survives the rounding about once in 10**8 values.
Values are within +-6.77. Seeds of other tools are not reproduced.

Stream 0 is the initial noise; stream 1 + i is what a stochastic solver adds in its step i.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fewstep.errors import UsageError

NoiseArray = npt.NDArray[np.float32]

_WORD = 2**64


def image_noise(seed: int, shape: tuple[int, ...], *, stream: int = 0) -> NoiseArray:
    """Standard normal noise of one image.

    Args:
        seed: 0 or more; taken modulo 2**64.
        shape: without a batch axis. Shapes of the same size hold the same values in C order; a smaller one
            holds the first values of a larger one.
        stream: 0 for the initial noise, 1 + i for solver step i.

    Returns:
        float32 array of that shape.

    Raises:
        UsageError: a negative seed.
    """
    if seed < 0:
        raise UsageError(f"seed is {seed}: give 0 or more")
    count = math.prod(shape)
    key = np.array([seed % _WORD, stream % _WORD], dtype=np.uint64)
    words = np.random.Philox(key=key).random_raw((count + 1) // 2)
    u1 = ((words & np.uint64(0xFFFFFFFF)).astype(np.float64) + 0.5) * 2.0**-32
    u2 = ((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(u1))
    angle = (2.0 * math.pi) * u2
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1)
    return pairs.reshape(-1)[:count].astype(np.float32).reshape(shape)


def batch_noise(seed: int, n: int, shape: tuple[int, ...], *, stream: int = 0) -> NoiseArray:
    """Noise of n images, (n, *shape): row i is ``image_noise(seed + i, shape, stream=stream)``."""
    return np.stack([image_noise(seed + i, shape, stream=stream) for i in range(n)])


def solver_noise(seed: int, n: int, shape: tuple[int, ...]) -> Callable[[int], NoiseArray]:
    """Noise for a stochastic solver in `sampler.sample`: step index -> array (n, *shape)."""
    return lambda index: batch_noise(seed, n, shape, stream=1 + index)
