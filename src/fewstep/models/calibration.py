"""What the networks of a pipeline really see while they draw, for calibrating a quantised copy.

Activation ranges differ by an order of magnitude between the first and the last timesteps and between pure
noise and pictures, so they are recorded on whole guided trajectories from real prompts, not on random
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fewstep.diffusion import guidance, noise, prediction, sampler

if TYPE_CHECKING:
    from fewstep.models.components import Components

PROMPTS = (
    "a red apple, noto style, on a sky blue background",
    "a yellow banana, twemoji style, on a white background",
    "a smiling face",
    "a dog, fluent 3d style",
    "a house with a garden, fluent flat style, on a grey background",
    "a blue car, emojione style",
    "a cat face, firefox style, on a pink background",
    "a slice of pizza",
    "a green tree on a black background",
    "a rocket, noto style",
    "a birthday cake, fluent 3d style",
    "a red heart",
    "an umbrella with rain drops, twemoji style, on a light green background",
    "a guitar",
    "a woman with red hair",
    "a football, on a grass green background",
    "a cup of coffee, fluent flat style",
    "a whale, emojione style",
)
"""Prompts when none are given. The bundled model's own recipe gives more."""

CALLS = 96
"""Denoiser calls to keep, spread evenly over prompts and timesteps."""

Calls = dict[str, list[list[np.ndarray]]]
"""Part -> recorded calls, each a list of the part's inputs in order."""


class Networks(Protocol):
    """The networks of a pipeline as numpy functions; see ``fewstep.models.export``."""

    components: Components
    latent_channels: int
    latent_size: int
    scaling_factor: float
    shift_factor: float

    def run(self, part: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run one part."""

    def tokens(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Inputs of the text encoder for B prompts."""


def trajectories(networks: Networks, prompts: Sequence[str]) -> Calls:
    """Draw one picture per prompt with the contract's own settings, and keep calls of every part.

    Args:
        networks: the float networks.
        prompts: one picture each, drawn at seeds 0, 1, ...

    Returns:
        Text: (ids[, mask]) of [empty, prompt]. Denoiser: (x, t, text) of batch 2, unconditional half first,
        about `CALLS` of them spread evenly over prompts and timesteps. Decoder: final latents before
        scaling; encoder: the decoded picture clipped to [-1, 1].
    """
    contract = networks.components.contract
    solver = contract.make_solver()
    schedule = solver.schedule(contract.make_schedule())
    grid = contract.grid()
    steps = len(grid) - 1
    stride = max(1, (len(prompts) * steps) // CALLS)
    shape = (networks.latent_channels, networks.latent_size, networks.latent_size)
    calls: Calls = {"text_encoder": [], "denoiser": [], "vae_encoder": [], "vae_decoder": []}
    seen = 0

    for seed, prompt in enumerate(prompts):
        tokens = networks.tokens(["", prompt])
        text = networks.run("text_encoder", tokens)
        calls["text_encoder"].append(tokens)

        def model(x: np.ndarray, t: float, text: np.ndarray = text) -> np.ndarray:
            nonlocal seen
            rows = text if len(x) == 2 else text[1:]
            times = np.full(len(x), t, dtype=np.float32)
            if seen % stride == 0:
                both = x if len(x) == 2 else np.concatenate([x, x])
                calls["denoiser"].append([both.copy(), np.full(2, t, dtype=np.float32), text])
            seen += 1
            return networks.run("denoiser", [x, times, rows])

        denoise = prediction.adapt(model, schedule, contract.prediction_type)
        if contract.guidance == "classifier_free":
            denoise = guidance.classifier_free(
                denoise, None, scale=contract.guidance_scale, rescale=contract.guidance_rescale,
                interval=contract.guidance_interval, schedule=schedule,
                prediction_type=contract.prediction_type, batched=True,
            )  # fmt: skip
        x = noise.batch_noise(seed, 1, shape)
        fresh = noise.solver_noise(seed, 1, shape)
        final = sampler.sample(denoise, x, grid, solver, schedule=contract.make_schedule(), noise=fresh)
        latents = (final / networks.scaling_factor + networks.shift_factor).astype(np.float32)
        calls["vae_decoder"].append([latents])
        pixels = networks.run("vae_decoder", [latents])
        calls["vae_encoder"].append([np.clip(pixels, -1.0, 1.0)])
    return calls
