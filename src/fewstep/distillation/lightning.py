"""SDXL-Lightning: progressive adversarial distillation (Lin 2024, 2402.13929).

Written from the paper; its training code was never published. A stage's student does in one step what its
teacher does in n. The first stage asks for that by a distance, with guidance; later ones by a discriminator:

- `conditional`: D(x_t, x_s) sees where the jump began, so the student must keep the teacher's flow (section
  3.2).
- not conditional: D'(x_s), which lets the flow go for samples that are right in themselves (section 3.3).

"Real" is always the teacher's prediction, never an image. The discriminator is a trained copy of the
teacher's encoder, applied to both inputs with shared weights; its middle features are joined and a small head
scores them. The 1- and 2-step stages train at four times and compare renoised x0 (section 3.4).

What the paper leaves open and we chose: the head's depth (three strided blocks, as DMD2's), one discriminator
step per student step, no average of weights in the adversarial stages' discriminators.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.schedule import Schedule
from fewstep.diffusion.timesteps import make_grid
from fewstep.distillation import losses, targets
from fewstep.distillation.method import Context, Terms, indices, normal
from fewstep.distillation.progressive import few_steps, x0_of_jump
from fewstep.distillation.roles import model_time
from fewstep.distillation.sections import LightningMethod
from fewstep.distillation.stages import check_nested
from fewstep.models.discriminators import PairDiscriminator
from fewstep.training.sections import Schedule as Rate
from fewstep.training.task import Role

ROLE = "discriminator"


class Lightning:
    """See the module; the defining terms are the jump to x_{t - ns} and the pair discriminator.

    Args:
        section: of the recipe.
        schedule: of all times.
        discriminator: a new one; needed where the section has one.
        rate: its learning rate over images seen.
        perceive: ``(x, model_time, conditions) -> features`` for the perceptual distance.
    """

    def __init__(
        self,
        section: LightningMethod,
        schedule: Schedule,
        discriminator: PairDiscriminator | None = None,
        rate: Rate | None = None,
        perceive: Any = None,
    ) -> None:
        self.section = section
        self.ratio = check_nested(section.teacher_steps, section.student_steps)
        self.points = section.train_points or section.student_steps
        check_nested(section.teacher_steps, self.points)
        self.grid = make_grid(schedule, "trailing", section.teacher_steps)
        self.perceive = perceive
        self.roles: Mapping[str, Role] = {}
        if section.discriminator is not None:
            assert discriminator is not None
            if section.discriminator.renoise is not None:
                targets.check_times(
                    "discriminator.renoise.timesteps", section.discriminator.renoise.timesteps, schedule
                )
            self.roles = {
                ROLE: Role(
                    module=discriminator,
                    weights=discriminator,
                    optimiser=section.discriminator.optimiser,
                    schedule=rate or Rate(),
                )
            }

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """Where the jump begins, its noise, and the discriminator's."""
        drawn = {"point": np.full(1, rng.integers(self.points), np.float64), "noise": normal(shape, rng)}
        section = self.section.discriminator
        if section is not None and section.renoise is not None:
            # The time follows from this number and the weights, which change with the step.
            drawn |= {"level": rng.random(1), "renoise": normal(shape, rng)}
        if section is not None and section.r1:
            drawn["disturbance"] = normal(shape, rng)
        return drawn

    def critics(self, step: int) -> Sequence[str]:
        """The discriminator, in every batch."""
        return tuple(self.roles)

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """Distance to where the teacher lands, and what the discriminator says, (B,)."""
        jump = self._jump(context)
        total = torch.zeros(len(context.x0), device=context.x0.device)
        terms: Terms = {}
        if self.section.distance is not None:
            distance = self._distance(context, jump)
            total = total + distance
            terms["distance"] = distance.detach()
        section = self.section.discriminator
        if section is not None:
            (fake,) = self._scores(context, jump, jump["fake"])
            adversarial = losses.generator_loss(section.loss, fake)
            total = total + section.weight * adversarial
            terms["adversarial"] = adversarial.detach()
        return total, terms

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """The discriminator's loss on the same jumps, (B,)."""
        section = self.section.discriminator
        assert section is not None
        with torch.no_grad():
            jump = self._jump(context)
        ends = [jump["fake"].detach(), jump["real"]]
        if section.r1:
            ends.append(jump["real"] + section.r1_std * context.drawn["disturbance"])
        fake, real, *disturbed = self._scores(context, jump, *ends)
        loss = losses.discriminator_loss(section.loss, real, fake)
        terms = {"accuracy": losses.accuracy(real.detach(), fake.detach())}
        if disturbed:
            loss = loss + section.r1 * losses.approximate_r1(real, *disturbed)
        return loss, terms

    def contract(self, base: SamplingContract) -> SamplingContract:
        """DDIM on the trailing grid, guidance off."""
        return few_steps(base, "lightning", self.section.student_steps)

    def _jump(self, context: Context) -> dict[str, Any]:
        """Begin, end, the teacher's landing point and the student's; once per part of a batch."""
        shared = context.shared
        if "jump" not in shared:
            schedule = context.schedule
            start = indices(context.drawn["point"]) * (self.section.teacher_steps // self.points)
            stop = np.minimum(start + self.ratio, self.section.teacher_steps)
            t, s = self.grid[start], self.grid[stop]
            x_t = targets.noised(schedule, context.x0, context.drawn["noise"], t)
            denoise = context.teacher.denoiser(
                context.conditions,
                context.null,
                self.section.guidance_scale,
                self.section.guidance_rescale,
            )
            target = targets.rollout(denoise, x_t, self.grid, start, stop, schedule)
            prediction = context.predict(x_t, t)
            x_s = targets.moved(prediction, s, schedule)
            fake, real = x_s, target
            if self.section.discriminator is not None and self.section.discriminator.renoise is not None:
                fake, real = prediction.x0, x0_of_jump(x_t, target, t, s, schedule)
            shared["jump"] = {
                "t": t,
                "s": s,
                "x_t": x_t,
                "target": target,
                "x_s": x_s,
                "fake": fake,
                "real": real,
            }
        jump: dict[str, Any] = shared["jump"]
        return jump

    def _distance(self, context: Context, jump: Mapping[str, Any]) -> Tensor:
        if self.section.distance == "perceptual":
            s = np.maximum(jump["s"], 0.0)

            def network(x: Tensor) -> list[Tensor]:
                features: list[Tensor] = self.perceive(
                    x, model_time(context.schedule, s, x), context.conditions
                )
                return features

            return losses.perceptual(network, jump["x_s"], jump["target"])
        assert self.section.distance is not None
        return losses.DISTANCES[self.section.distance](jump["x_s"], jump["target"])

    def _scores(self, context: Context, jump: Mapping[str, Any], *ends: Tensor) -> list[Tensor]:
        """Logits of ends of the jump; with renoising, of x0 that is diffused to a drawn time first."""
        section = self.section.discriminator
        assert section is not None
        s, schedule = np.maximum(jump["s"], 0.0), context.schedule
        shown: Sequence[Tensor] = ends
        if section.renoise is not None:
            s = chosen(context.drawn["level"], section.renoise.timesteps, section.renoise.at(context.step))
            shown = [schedule.forward(end, context.drawn["renoise"], s) for end in ends]
        start = (jump["x_t"], model_time(schedule, jump["t"], jump["x_t"])) if section.conditional else None
        times = model_time(schedule, s, jump["x_t"])
        logits: list[Tensor] = context.networks[ROLE](shown, times, context.conditions, start)
        return logits


def chosen(level: FloatArray, values: Sequence[float], weights: Sequence[float]) -> FloatArray:
    """The value at the place ``level`` in [0, 1) of the distribution with these weights; (B,)."""
    edges = np.cumsum(np.asarray(weights, np.float64) / np.sum(weights))
    place = np.minimum(np.searchsorted(edges, level, "right"), len(values) - 1)
    return np.asarray(values, np.float64)[place]
