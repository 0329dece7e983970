"""A distillation stage as it is published: the same losses on the same draws, computed the long way.

What Flash Diffusion's training code (gojasper/flash-diffusion 21e2bba) does and ours does not, each with a
switch of its own: the teacher's way is computed once for the student's step and again for the critic's; the
critic's step repeats all the rest of the student's forward pass too, encoders and losses, only to drop it;
the teacher has weights of its own; images and captions are encoded in every batch. All numbers come from our
own functions, so a difference in time is one of arrangement alone.

Kinder than that code: the empty caption is encoded once, not B times, and the captions once in a forward
pass, not twice; both halves of guidance are one call; the critic's step builds no graph of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.data.dataset import Encodable
from fewstep.distillation.roles import NetworkTeacher
from fewstep.distillation.task import STUDENT, TEACHER, StageTask
from fewstep.models import autoencoder as autoencoders
from fewstep.models import text
from fewstep.models.conditions import Conditions
from fewstep.models.denoiser import default_tap, features
from fewstep.training.sections import Schedule
from fewstep.training.task import Batch, Role, Sample, Task

Encode = Callable[[Batch], dict[str, Any]]
"""A batch with ``pixels`` and ``captions`` -> ``latents`` and conditions, as a latent cache has them."""
Loss = tuple[Tensor, dict[str, Tensor]]


class Wasteful:
    """A stage's task that computes again what the stage keeps.

    Args:
        stage: the task as it is.
        rollout: where the teacher and the student get to, again for every critic.
        losses: the student's losses and the encoding too, again for every critic.
        encode: called in every batch; None where the batches hold latents.
        latents: shape (1, ...) of one image's latents; needed with ``encode``.
    """

    def __init__(
        self,
        stage: StageTask,
        *,
        rollout: bool,
        losses: bool,
        encode: Encode | None = None,
        latents: tuple[int, ...] | None = None,
    ) -> None:
        self.stage, self.rollout, self.losses = stage, rollout, losses
        self.encode, self.latents = encode, latents
        self.roles: Mapping[str, Role] = stage.roles

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """What the stage draws; with ``encode``, beside pixels and captions in place of latents."""
        if self.encode is None:
            return self.stage.draw(sample, rng)
        drawn = self.stage.draw({"latents": np.zeros(self.latents or (), np.float32)}, rng)
        del drawn["latents"]
        return drawn | sample

    def active(self, images_seen: int) -> Sequence[str]:
        return self.stage.active(images_seen)

    def loss(
        self,
        role: str,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        shared: dict[str, Any],
        images_seen: int,
    ) -> Loss:
        if self.encode is not None:
            if "encoded" not in shared or (self.losses and role != STUDENT):
                shared["encoded"] = self.encode(batch)
            batch = batch | shared["encoded"]
        if role == STUDENT:
            return self.stage.loss(role, batch, modules, shared, images_seen)
        kept: dict[str, Any] = {} if self.rollout else shared
        if self.losses:
            self.stage.loss(STUDENT, batch, modules, kept, images_seen)
        return self.stage.loss(role, batch, modules, kept, images_seen)


class Recorded:
    """A task that remembers the losses (B,) of its last batch, by role."""

    def __init__(self, task: Task) -> None:
        self.task, self.roles = task, task.roles
        self.last: dict[str, Tensor] = {}

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return self.task.draw(sample, rng)

    def active(self, images_seen: int) -> Sequence[str]:
        return self.task.active(images_seen)

    def loss(
        self,
        role: str,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        shared: dict[str, Any],
        images_seen: int,
    ) -> Loss:
        loss, values = self.task.loss(role, batch, modules, shared, images_seen)
        self.last[role] = loss.detach().clone()
        return loss, values


def own_teacher(task: StageTask, network: nn.Module) -> None:
    """Let ``network`` teach a stage whose teacher was its student without the adapter; in place.

    Args:
        task: of one method.
        network: with the teacher's weights; called as ``network(x_t, model_time, conditions)``.
    """
    network.requires_grad_(False).eval()
    task.teacher = NetworkTeacher(network, task.schedule, task.teacher.prediction_type)
    role = Role(module=network, weights=network, optimiser=None, schedule=Schedule())
    task.roles = {**task.roles, TEACHER: role}
    (weighted,) = task.methods
    method: Any = weighted.method
    if getattr(method, "perceive", None) is None:
        return
    discriminator = method.section.discriminator
    tap = (discriminator.tap if discriminator is not None else None) or default_tap(network)

    def perceive(x: Tensor, time: Tensor, conditions: Conditions) -> list[Tensor]:
        return [features(network, tap, x, time, conditions)]

    method.perceive = perceive


def stir(task: StageTask, seed: int = 0, size: float = 0.01) -> None:
    """Give the student's adapter an effect; a new one has none, and would be its teacher; in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in task.roles[STUDENT].weights.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0.0, size, generator=generator)


class Uncached:
    """Samples as pixels and captions, with the captions that `CachedLatents` draws of the same samples.

    Args:
        samples: what a cache without mirrored copies was made of.
        variant_weights: as the cache is opened with.
    """

    def __init__(self, samples: Encodable, variant_weights: Sequence[float] | None = None) -> None:
        self.samples = samples
        kinds = len(samples.captions(0))
        weights = np.ones(kinds) if variant_weights is None else np.asarray(variant_weights, np.float64)
        self._thresholds = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
        draws = rng.random((len(indices), 2))[:, 0]
        kinds = np.minimum(np.searchsorted(self._thresholds, draws, "right"), len(self._thresholds) - 1)
        chosen = [self.samples.captions(int(i))[k] for i, k in zip(indices, kinds, strict=True)]
        return {"pixels": self.samples.pixels([int(i) for i in indices]), "captions": chosen}

    def fingerprint(self) -> str:
        return self.samples.fingerprint()


class Encoders:
    """Encodes a batch as a latent cache was encoded, rounded to float16 as a cache keeps it.

    Args:
        autoencoder: of a pipeline folder; brought to the memory format of `fewstep.data.preparation`.
        text_encoder: of the same folder.
        tokenizer: of the same folder.
    """

    def __init__(self, autoencoder: Any, text_encoder: Any, tokenizer: Any) -> None:
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """``latents`` (B, C, h, w), ``text`` (B, L, D) and ``uncond`` (L, D), float32."""
        encoded = autoencoders.encode(self.autoencoder, np.asarray(batch["pixels"]))
        latents = torch.from_numpy(encoded).half().float().contiguous(memory_format=torch.channels_last)
        told = text.encode([*batch["captions"], ""], self.text_encoder, self.tokenizer).half().float()
        return {"latents": latents, "text": told[:-1], "uncond": told[-1]}
