"""A stage as a task of the training loop: a student, its methods' critics, and the sum of their losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.schedule import Schedule
from fewstep.distillation import conditioned
from fewstep.distillation.method import Context, Method
from fewstep.distillation.roles import Teacher
from fewstep.models.conditions import Conditions
from fewstep.training.task import Batch, Role, Sample

STUDENT, TEACHER = "student", "teacher"
_STREAM = 0x64697374  # "dist": apart from the other streams of the same seed


@dataclass(frozen=True)
class Weighted:
    """A method with its weight in the student's loss."""

    weight: float
    method: Method


class StageTask:
    """See `fewstep.training.task.Task`.

    Samples hold ``latents`` (1, ...), any of ``text``, ``pooled``, ``time_ids``, ``classes``, ``concat``,
    ``mid_residual``, ``residuals.0`` and so on, ``adapter_residuals.0`` and so on, with a batch axis of 1,
    and ``uncond``, the embedding of the empty caption (L, D).

    Args:
        student: the role that learns.
        student_type: what its output means.
        teacher: whoever teaches.
        teacher_role: its network as a frozen role, when it is not the student's own.
        methods: what is asked of the student.
        schedule: of all times.
        seed: of the recipe.
        batch_size: images per optimiser step.
        student_every: batches per step of the student.
        critic_warmup_steps: batches that train the critics alone at first.
        null_class: the class that means none, for models with classes.
    """

    def __init__(
        self,
        *,
        student: Role,
        student_type: str,
        teacher: Teacher,
        teacher_role: Role | None,
        methods: Sequence[Weighted],
        schedule: Schedule,
        seed: int,
        batch_size: int,
        student_every: int = 1,
        critic_warmup_steps: int = 0,
        null_class: int | None = None,
    ) -> None:
        self.teacher, self.schedule, self.methods = teacher, schedule, tuple(methods)
        self.student_type = student_type
        self._seed, self._batch_size, self._null_class = seed, batch_size, null_class
        self._every, self._warmup = student_every, critic_warmup_steps
        roles = {STUDENT: student}
        if teacher_role is not None:
            roles[TEACHER] = teacher_role
        self._owner: dict[str, tuple[int, str]] = {}
        for place, weighted in enumerate(self.methods):
            for name, role in weighted.method.roles.items():
                unique = name if name not in roles else f"{name}-{place}"
                roles[unique] = role
                self._owner[unique] = (place, name)
        for role in roles.values():
            if role.optimiser is not None:  # networks that were loaded or merged come frozen
                role.weights.requires_grad_(True)
        self.roles: Mapping[str, Role] = roles

    def draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Every method's draws, each from a stream of its own, so that methods do not disturb each other."""
        latents = np.asarray(sample["latents"], np.float32)
        drawn: Sample = {"latents": latents}
        for name in filter(conditioned.is_condition, sample):
            value = np.asarray(sample[name])
            drawn[name] = value if value.dtype.kind == "i" else value.astype(np.float32)
        if "uncond" in sample:
            drawn["uncond"] = np.asarray(sample["uncond"], np.float32)
        streams = rng.spawn(len(self.methods))
        for place, (weighted, stream) in enumerate(zip(self.methods, streams, strict=True)):
            for key, value in weighted.method.draw(latents.shape, stream).items():
                drawn[f"{place}.{key}"] = value
        return drawn

    def active(self, images_seen: int) -> Sequence[str]:
        """The student in its turn and after the warm-up, then the critics that the methods want now."""
        step = images_seen // self._batch_size
        wanted = [
            role
            for role, (place, name) in self._owner.items()
            if name in self.methods[place].method.critics(step)
        ]
        turn = step >= self._warmup and (step - self._warmup) % self._every == self._every - 1
        return (STUDENT, *wanted) if turn or not wanted else tuple(wanted)

    def loss(
        self,
        role: str,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        shared: dict[str, Any],
        images_seen: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the methods' losses, or that of one critic."""
        step = images_seen // self._batch_size
        if role != STUDENT:
            place, name = self._owner[role]
            return self.methods[place].method.critic_loss(
                name, self._context(place, batch, modules, shared, step)
            )
        total = torch.zeros(len(batch["latents"]), device=batch["latents"].device)
        values: dict[str, Tensor] = {}
        for place, weighted in enumerate(self.methods):
            loss, terms = weighted.method.student_loss(self._context(place, batch, modules, shared, step))
            total = total + weighted.weight * loss
            prefix = "" if len(self.methods) == 1 else f"{place}."
            values |= {f"{prefix}{key}": value for key, value in terms.items()}
        return total, values

    def _context(
        self, place: int, batch: Batch, modules: Mapping[str, nn.Module], shared: dict[str, Any], step: int
    ) -> Context:
        conditions, null = conditions_of(batch, self._null_class)
        start = f"{place}."
        networks = {name: modules[unique] for unique, (owner, name) in self._owner.items() if owner == place}
        return Context(
            x0=batch["latents"],
            drawn={key.removeprefix(start): value for key, value in batch.items() if key.startswith(start)},
            conditions=conditions,
            null=null,
            step=step,
            rng=np.random.default_rng([self._seed, step, place, _STREAM]),
            student=modules[STUDENT],
            student_type=self.student_type,
            teacher=self.teacher,
            schedule=self.schedule,
            networks=networks,
            shared=shared.setdefault(f"method{place}", {}),
        )


def conditions_of(
    batch: Mapping[str, Any], null_class: int | None = None
) -> tuple[Conditions, Conditions | None]:
    """The conditions of a batch, and the empty ones of one image."""
    found: dict[str, Any] = {name: batch[name] for name in conditioned.SINGLE if name in batch}
    for name in conditioned.LISTS:
        count = sum(key.startswith(f"{name}.") for key in batch)
        found[name] = tuple(batch[f"{name}.{i}"] for i in range(count))
    empty: dict[str, Any] = {}
    if "uncond" in batch and "text" in found:
        empty["text"] = batch["uncond"][None]
    if "classes" in found and null_class is not None:
        empty["classes"] = torch.full((1,), null_class, device=found["classes"].device)
    if "pooled" in found:
        empty["pooled"] = torch.zeros_like(found["pooled"][:1])
    return Conditions(**found), Conditions(**empty) if empty else None
