"""Improved distribution matching distillation: Yin 2024 (DMD2, 2405.14867), after Yin 2023 (DMD, 2311.18828).

The student's samples are pushed along the difference of two scores: that of the guided teacher, and that of
the student's own distribution, which the fake score learns all the time (it takes a step in every batch, the
student in every few: two time scales). A GAN on the fake score's features keeps the samples near real data.
With `simulate` the student is trained on inputs that it will meet: what it makes itself of its own earlier
steps.

Written from the papers and from a description of the published settings. Departures: the discriminator's
gradient into the fake score's body is scaled by `critic_weight` as theirs, but both share one optimiser with
one learning rate; the matching runs in float32, not float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.noise_levels import sample_t
from fewstep.diffusion.schedule import Schedule
from fewstep.distillation import losses, targets
from fewstep.distillation.method import Context, Terms, normal
from fewstep.distillation.progressive import few_steps
from fewstep.distillation.roles import ask, model_time
from fewstep.distillation.sections import DmdMethod
from fewstep.errors import RecipeError
from fewstep.models.discriminators import ScoringDenoiser
from fewstep.training.objectives.denoising import denoising
from fewstep.training.sections import Schedule as Rate
from fewstep.training.task import Role

FAKE_SCORE = "fake_score"


class Dmd:
    """See the module; the defining term is the push along x0_fake - x0_real.

    Args:
        section: of the recipe.
        schedule: of all times.
        fake_score: a copy of what the student starts from, so that its output means the same, with a scoring
            head.
        rate: its learning rate over images seen.
    """

    def __init__(
        self, section: DmdMethod, schedule: Schedule, fake_score: ScoringDenoiser, rate: Rate | None = None
    ) -> None:
        self.section, self.schedule = section, schedule
        self.times = np.asarray(section.timesteps, np.float64)
        targets.check_times("timesteps", section.timesteps, schedule)
        if np.any(np.diff(self.times) >= 0):
            raise RecipeError(
                f"timesteps {list(section.timesteps)} are not falling: give the noisiest first, each once"
            )
        self.roles: Mapping[str, Role] = {
            FAKE_SCORE: Role(
                module=fake_score, weights=fake_score, optimiser=section.critic, schedule=rate or Rate()
            )
        }

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """Noises of the student's steps and of all that is noised again, with times."""
        terminal, section = self.schedule.terminal, self.section
        low, high = section.least * terminal, section.most * terminal
        if self.schedule.num_train_timesteps and terminal > 1.0:
            low, high = np.ceil(low), np.floor(high)
        drawn: dict[str, Any] = {f"noise{k}": normal(shape, rng) for k in range(len(self.times))}
        drawn |= {
            "matched": sample_t("uniform", rng, 1, self.schedule, low=low, high=high),
            "matching": normal(shape, rng),
            "lesson": sample_t("uniform", rng, 1, self.schedule),
            "teaching": normal(shape, rng),
            "judged": sample_t("uniform", rng, 1, self.schedule),
            "judging": normal(shape, rng),
        }
        if section.discriminator is not None and section.discriminator.r1:
            drawn["disturbance"] = normal(shape, rng)
        return drawn

    def critics(self, step: int) -> Sequence[str]:
        """The fake score, in every batch."""
        return (FAKE_SCORE,)

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """The push of the two scores, and the adversarial term, (B,)."""
        section = self.section
        sample = self._sample(context)
        matching = losses.pushed(sample, self._direction(context, sample))
        total, terms = section.distribution * matching, {"distribution": matching.detach()}
        if section.discriminator is not None:
            adversarial = losses.generator_loss(section.discriminator.loss, self._logits(context, sample))
            terms["adversarial"] = adversarial.detach()
            total = total + section.discriminator.weight * adversarial
        return total, terms

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """Denoising error on the student's samples, and the discriminator's loss, (B,)."""
        with torch.no_grad():
            sample = self._sample(context)
        sample = sample.detach()
        network = context.networks[FAKE_SCORE]
        loss = denoising(
            lambda x_t, time: network(x_t, time, context.conditions),
            sample,
            context.drawn["teaching"],
            context.drawn["lesson"],
            schedule=self.schedule,
            prediction_type=context.student_type,
        )
        terms: Terms = {"denoising": loss.detach()}
        section = self.section.discriminator
        if section is not None:
            fake, real = self._logits(context, sample), self._logits(context, context.x0)
            adversarial = losses.discriminator_loss(section.loss, real, fake)
            terms |= {"adversarial": adversarial.detach(), "accuracy": losses.accuracy(real, fake).detach()}
            if section.r1:
                near = context.x0 + section.r1_std * context.drawn["disturbance"]
                penalty = losses.approximate_r1(real, self._logits(context, near))
                adversarial = adversarial + section.r1 * penalty
            loss = loss + section.critic_weight * adversarial
        return loss, terms

    def contract(self, base: SamplingContract) -> SamplingContract:
        """LCM's sampler (x0, then fresh noise) at the student's own times, guidance off."""
        n = len(self.times)
        times = {n: tuple(self.times.tolist())}
        return few_steps(base, "dmd2", n, solver="lcm", boundary_scaling=0.0, timesteps=times)

    def _sample(self, context: Context) -> Tensor:
        """The student's x0 at one of its times, the same for the whole batch; once per part of a batch."""
        if "sample" not in context.shared:
            schedule = self.schedule
            last = int(context.rng.integers(len(self.times)))
            if self.section.simulate:
                x_t = context.drawn["noise0"]
                with torch.no_grad():
                    for k in range(last):
                        x0 = context.predict(x_t, self._times(k, x_t)).x0
                        x_t = schedule.forward(x0, context.drawn[f"noise{k + 1}"], self._times(k + 1, x_t))
            else:
                noise = context.drawn["noise0"]
                x_t = targets.noised(schedule, context.x0, noise, self._times(last, noise))
            context.shared["sample"] = context.predict(x_t, self._times(last, x_t)).x0
        sample: Tensor = context.shared["sample"]
        return sample

    def _times(self, k: int, like: Tensor) -> FloatArray:
        return np.full(len(like), self.times[k])

    def _direction(self, context: Context, sample: Tensor) -> Tensor:
        t, kind = context.drawn["matched"], context.student_type
        with torch.no_grad():
            x_t = self.schedule.forward(sample, context.drawn["matching"], t)
            guided = context.teacher.denoiser(context.conditions, context.null, self.section.guidance_scale)
            real = guided(x_t, t)
            fake = ask(context.networks[FAKE_SCORE], x_t, t, context.conditions, self.schedule, kind)
        return losses.matching_direction(sample, real.x0, fake.x0)

    def _logits(self, context: Context, x0: Tensor) -> Tensor:
        t = context.drawn["judged"]
        x_t = self.schedule.forward(x0, context.drawn["judging"], t)
        logits: Tensor = context.networks[FAKE_SCORE](
            x_t, model_time(self.schedule, t, x_t), context.conditions, logits=True
        )
        return logits
