"""What the networks of a pipeline really see while they draw, for calibrating a quantised copy.

Activation ranges differ by an order of magnitude between the first and the last timesteps and between pure
noise and pictures, so they are recorded on whole trajectories from real prompts, drawn as the contract says:
guided where it guides, and in every step count that it was made for.
"""

from __future__ import annotations

import math
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


def trajectories(networks: Networks, prompts: Sequence[str], *, decode: bool = True) -> Calls:
    """Draw pictures with the contract's own settings, and keep calls of every part.

    Each prompt is drawn once, or as often as it takes to make `CALLS` denoiser calls: a model of few steps
    makes few in one picture. Where the contract names step counts, they take turns.

    Args:
        networks: the float networks.
        prompts: drawn at seeds 0, 1, ...
        decode: also decode the pictures and encode them again.

    Returns:
        Text: (ids[, mask]) of [empty, prompt]. Denoiser: (x, t, text) as it is called, about `CALLS` of them
        spread evenly over prompts and timesteps: guided, of batch 2 with the unconditional half first;
        else of the conditional row alone. Decoder: final latents before scaling; encoder: the decoded
        picture clipped to [-1, 1].
    """
    contract = networks.components.contract
    solver = contract.make_solver()
    schedule = solver.schedule(contract.make_schedule())
    grids = [contract.grid(count) for count in contract.allowed_steps or (contract.num_inference_steps,)]
    once = sum(len(grids[index % len(grids)]) - 1 for index in range(len(prompts)))
    pictures = list(prompts) * max(1, math.ceil(CALLS / once))
    total = sum(len(grids[index % len(grids)]) - 1 for index in range(len(pictures)))
    stride = max(1, total // CALLS)
    shape = (networks.latent_channels, networks.latent_size, networks.latent_size)
    calls: Calls = {"text_encoder": [], "denoiser": [], "vae_encoder": [], "vae_decoder": []}
    seen = 0

    for seed, prompt in enumerate(pictures):
        tokens = networks.tokens(["", prompt])
        text = networks.run("text_encoder", tokens)
        calls["text_encoder"].append(tokens)

        def model(x: np.ndarray, t: float, text: np.ndarray = text) -> np.ndarray:
            nonlocal seen
            rows = text if len(x) == 2 else text[1:]
            times = np.full(len(x), t, dtype=np.float32)
            if seen % stride == 0:
                calls["denoiser"].append([x.copy(), times, rows])
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
        grid = grids[seed % len(grids)]
        final = sampler.sample(denoise, x, grid, solver, schedule=contract.make_schedule(), noise=fresh)
        if not decode:
            continue
        latents = (final / networks.scaling_factor + networks.shift_factor).astype(np.float32)
        calls["vae_decoder"].append([latents])
        pixels = networks.run("vae_decoder", [latents])
        calls["vae_encoder"].append([np.clip(pixels, -1.0, 1.0)])
    return calls
