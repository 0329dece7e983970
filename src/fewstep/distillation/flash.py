"""Flash Diffusion: Chadebec 2024 (2406.02347).

One start index for the whole batch is drawn from a mixture that moves to pure noise in phases. The student
does in one call what the teacher does in all its remaining steps; three terms are added, with weights by
phase: the distance to the teacher's result, distribution matching, and a GAN on features of the frozen
teacher. Written from the paper and from a description of its configurations.

Departures: the teacher's result is computed once per batch and serves the student and the discriminator;
phases are counted in optimiser steps, whatever the number of optimisers; distribution matching takes the x0
form for flows too; the fake score may be trained (`critic`) where the paper uses the student itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.noise_levels import phased_mixture_pmf, sample_t
from fewstep.diffusion.schedule import FlowSchedule, Schedule
from fewstep.diffusion.solvers import get_solver
from fewstep.diffusion.timesteps import make_grid
from fewstep.distillation import losses, targets
from fewstep.distillation.lightning import chosen
from fewstep.distillation.method import Context, Terms, normal
from fewstep.distillation.progressive import few_steps, picked
from fewstep.distillation.roles import ask, model_time
from fewstep.distillation.sections import FlashMethod, FlashPhase
from fewstep.errors import RecipeError
from fewstep.training.objectives.denoising import denoising
from fewstep.training.sections import Schedule as Rate
from fewstep.training.task import Role

DISCRIMINATOR, FAKE_SCORE = "discriminator", "fake_score"

Perceive = Any
"""``(x, model_time, conditions) -> list of features`` of the frozen teacher."""


class Flash:
    """See the module; the defining term is the distance to the end of the teacher's way from a phased start.

    Args:
        section: of the recipe.
        schedule: of all times.
        head: scores features of the frozen teacher; needed where the section has a discriminator.
        perceive: those features.
        fake_score: a copy of the teacher; needed where the section has a critic.
        student_type: what the fake score's output means.
        rate: learning rate of the critics over images seen.
    """

    def __init__(
        self,
        section: FlashMethod,
        schedule: Schedule,
        *,
        head: nn.Module | None = None,
        perceive: Perceive = None,
        fake_score: nn.Module | None = None,
        rate: Rate | None = None,
    ) -> None:
        self.section = section
        self.schedule = schedule
        self.solver = get_solver(section.solver)
        if self.solver.flow_only and not isinstance(schedule, FlowSchedule):
            raise RecipeError(f"solver {section.solver} is for flows only: use dpmpp_2m or ddim")
        self.grid = make_grid(schedule, "trailing", section.teacher_steps)
        self.perceive = perceive
        rate = rate or Rate()
        roles: dict[str, Role] = {}
        if section.discriminator is not None:
            assert head is not None
            targets.check_times("discriminator.timesteps", section.discriminator.timesteps, schedule)
            optimiser = section.discriminator.optimiser
            roles[DISCRIMINATOR] = Role(module=head, weights=head, optimiser=optimiser, schedule=rate)
        if section.critic is not None:
            assert fake_score is not None
            roles[FAKE_SCORE] = Role(
                module=fake_score, weights=fake_score, optimiser=section.critic, schedule=rate
            )
        self.roles: Mapping[str, Role] = roles

    def phase(self, step: int) -> FlashPhase:
        """The phase at an optimiser step; the last one stays."""
        for phase in self.section.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.section.phases[-1]

    def draw(self, shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, Any]:
        """Noises of the start, of the matching and of the discriminator, and their times."""
        return {
            "noise": normal(shape, rng),
            "matched": sample_t("uniform", rng, 1, self.schedule),
            "matching": normal(shape, rng),
            "level": rng.random(1),
            "renoise": normal(shape, rng),
        }

    def critics(self, step: int) -> Sequence[str]:
        """Those whose term has a weight in this phase."""
        phase = self.phase(step)
        active = {DISCRIMINATOR: phase.adversarial > 0, FAKE_SCORE: phase.distribution > 0}
        return tuple(name for name in self.roles if active[name])

    def student_loss(self, context: Context) -> tuple[Tensor, Terms]:
        """Distance, distribution matching and adversarial term by the weights of the phase, (B,)."""
        phase = self.phase(context.step)
        way = self._way(context)
        total = torch.zeros(len(context.x0), device=context.x0.device)
        terms: Terms = {}
        if phase.distill:
            distance = self._distance(context, way["student"], way["teacher"])
            terms["distill"] = distance.detach()
            total = total + phase.distill * distance
        if phase.distribution:
            matching = losses.pushed(way["student"], self._direction(context, way["student"], phase))
            terms["distribution"] = matching.detach()
            total = total + phase.distribution * matching
        if phase.adversarial:
            assert self.section.discriminator is not None
            (fake,) = self._scores(context, way["student"])
            adversarial = losses.generator_loss(self.section.discriminator.loss, fake)
            terms["adversarial"] = adversarial.detach()
            total = total + phase.adversarial * adversarial
        return total, terms

    def critic_loss(self, role: str, context: Context) -> tuple[Tensor, Terms]:
        """The discriminator's loss, or the fake score's denoising error on the student's samples, (B,)."""
        with torch.no_grad():
            way = self._way(context)
        fake = way["student"].detach()
        if role == FAKE_SCORE:
            t = context.drawn["matched"]
            network = context.networks[FAKE_SCORE]
            error = denoising(
                lambda x_t, time: network(x_t, time, context.conditions),
                fake,
                context.drawn["matching"],
                t,
                schedule=context.schedule,
                prediction_type=context.teacher.prediction_type,
            )
            return error, {}
        section = self.section.discriminator
        assert section is not None
        real = context.x0 if section.real == "data" else way["teacher"]
        fake_scores, real_scores = self._scores(context, fake, real)
        loss = losses.discriminator_loss(section.loss, real_scores, fake_scores)
        return loss, {"accuracy": losses.accuracy(real_scores.detach(), fake_scores.detach())}

    def contract(self, base: SamplingContract) -> SamplingContract:
        """LCM's sampler on trailing grids of 1 to 4 steps, guidance off."""
        steps = self.section.student_steps
        allowed = tuple(range(1, max(steps, 4) + 1))
        return few_steps(
            base,
            "flash",
            steps,
            solver="lcm",
            boundary_scaling=self.section.boundary_scaling,
            allowed_steps=allowed,
            timesteps=picked(base, allowed),
        )

    def _way(self, context: Context) -> dict[str, Any]:
        """Where the student and, if asked for, the teacher get to from one start; once a batch's part."""
        if "way" not in context.shared:
            phase, schedule, section = self.phase(context.step), context.schedule, self.section
            pmf = phased_mixture_pmf(section.teacher_steps, phase.mode_weights, section.variance)
            # One index and one scale for all images of the batch and all processes: they take equally long.
            start = int(context.rng.choice(section.teacher_steps, p=pmf))
            low, high = phase.guidance
            scale = float(low + (high - low) * context.rng.random())
            t = np.full(len(context.x0), self.grid[start])
            x_t = targets.noised(schedule, context.x0, context.drawn["noise"], t)
            teacher = None
            if phase.distill or (
                section.discriminator is not None and section.discriminator.real == "teacher"
            ):
                denoise = context.teacher.denoiser(context.conditions, context.null, scale)
                teacher = targets.solved(denoise, x_t, self.grid[start:], self.solver, schedule)
            prediction = context.predict(x_t, t)
            student = targets.boundary(prediction, x_t, t, schedule, section.boundary_scaling)
            context.shared["way"] = {"teacher": teacher, "student": student, "start": start, "t": t}
        way: dict[str, Any] = context.shared["way"]
        return way

    def _distance(self, context: Context, student: Tensor, teacher: Tensor) -> Tensor:
        if self.section.distance != "perceptual":
            return losses.DISTANCES[self.section.distance](student, teacher)
        times = model_time(context.schedule, 0.0, student)

        def network(x: Tensor) -> list[Tensor]:
            features: list[Tensor] = self.perceive(x, times, context.conditions)
            return features

        return losses.perceptual(network, student, teacher)

    def _direction(self, context: Context, student: Tensor, phase: FlashPhase) -> Tensor:
        schedule = context.schedule
        t = context.drawn["matched"]
        low, high = phase.guidance
        scale = float(low + (high - low) * context.rng.random())
        with torch.no_grad():
            x_t = schedule.forward(student, context.drawn["matching"], t)
            real = context.teacher.denoiser(context.conditions, context.null, scale)(x_t, t)
            if FAKE_SCORE in self.roles:
                kind = context.teacher.prediction_type
                fake = ask(context.networks[FAKE_SCORE], x_t, t, context.conditions, schedule, kind)
            else:
                fake = context.predict(x_t, t)
        return losses.matching_direction(student, real.x0, fake.x0)

    def _scores(self, context: Context, *samples: Tensor) -> list[Tensor]:
        """Logits of samples that are diffused by the same noise to the same drawn times."""
        section = self.section.discriminator
        assert section is not None
        t = chosen(context.drawn["level"], section.timesteps, (1.0,) * len(section.timesteps))
        scores = []
        for x0 in samples:
            x_t = context.schedule.forward(x0, context.drawn["renoise"], t)
            seen = self.perceive(x_t, model_time(context.schedule, t, x_t), context.conditions)
            scores.append(context.networks[DISCRIMINATOR](seen[-1]))
        return scores
