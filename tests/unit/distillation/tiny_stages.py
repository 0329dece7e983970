"""Stages small enough for tests: exact students, a hundred parameters, no files unless a run is wanted."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.schedule import FlowSchedule, Schedule, make_schedule
from fewstep.diffusion.toys import GaussianMixture
from fewstep.distillation import build, origins, run, sections
from fewstep.distillation.method import Context, Method
from fewstep.distillation.roles import ExactTeacher, Teacher
from fewstep.distillation.task import StageTask
from fewstep.models.conditions import Conditions
from fewstep.models.mlp import MLPDenoiser
from fewstep.training.feed import Fed, Plan, collate, feed
from fewstep.training.logs import Loggers
from fewstep.training.loop import Hooks, Loop
from fewstep.training.state import weights_digest
from fewstep.training.trainer import make_accelerator, make_state

PLAIN = make_schedule("scaled_linear")
ZERO_SNR = make_schedule("scaled_linear", rescale_zero_terminal_snr=True)
FLOW = FlowSchedule()
SCHEDULES: dict[str, Schedule] = {"plain": PLAIN, "zero_snr": ZERO_SNR, "flow": FLOW}


class Told(nn.Module):
    """A network that gives what a function says; with ``sample`` as its type, a student without any error.

    Args:
        function: ``(x_t, t, conditions) -> raw output``, with t (B,) on the host as the schedule counts it.
        schedule: to undo what it makes of times for networks.
    """

    def __init__(self, function: Callable[[Tensor, Any, Conditions], Tensor], schedule: Schedule) -> None:
        super().__init__()
        self.function, self.scale = function, float(np.asarray(schedule.model_time(1.0)))
        self.calls: list[tuple[Tensor, np.ndarray, Conditions]] = []

    def forward(self, x_t: Tensor, model_time: Tensor, conditions: Conditions) -> Tensor:
        t = model_time.double().numpy() / self.scale
        self.calls.append((x_t, t, conditions))
        return self.function(x_t, t, conditions)


def exact(mixture: GaussianMixture, schedule: Schedule) -> Told:
    """The mixture's own x0 as a network of type ``sample``."""

    def x0(x_t: Tensor, t: Any, conditions: Conditions) -> Tensor:
        labels = None if conditions.classes is None else conditions.classes.numpy()
        return mixture.posterior_mean(x_t, t, schedule, labels)

    return Told(x0, schedule)


def points(mixture: GaussianMixture, n: int, seed: int = 0) -> tuple[Tensor, Conditions]:
    """Points in float64, and their labels as classes."""
    x0, labels = mixture.sample(np.random.default_rng(seed), n)
    return torch.from_numpy(x0), Conditions(classes=torch.from_numpy(labels))


def drawn(method: Method, shape: Sequence[int], dtype: torch.dtype, seed: int = 0) -> dict[str, Any]:
    """What `Method.draw` gives for a whole batch, as a context holds it."""
    rng = np.random.default_rng(seed)
    each = collate([method.draw((1, *shape[1:]), rng) for _ in range(shape[0])])
    return {k: v if v.dtype == np.float64 else torch.from_numpy(v).to(dtype) for k, v in each.items()}


def context(
    method: Method,
    x0: Tensor,
    student: nn.Module,
    teacher: Teacher | GaussianMixture,
    schedule: Schedule = PLAIN,
    *,
    student_type: str = "sample",
    conditions: Conditions | None = None,
    null: Conditions | None = None,
    step: int = 0,
    networks: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
    **changes: Any,
) -> Context:
    """What a method's losses are given; ``changes`` go in place of what it draws."""
    if isinstance(teacher, GaussianMixture):
        teacher = ExactTeacher(teacher, schedule, "sample")
    return Context(
        x0=x0,
        drawn=drawn(method, tuple(x0.shape), x0.dtype, seed) | changes,
        conditions=Conditions() if conditions is None else conditions,
        null=null,
        step=step,
        rng=np.random.default_rng([seed, step]),
        student=student,
        student_type=student_type,
        teacher=teacher,
        schedule=schedule,
        networks=networks or {},
    )


RECIPE: dict[str, Any] = {
    "kind": "distillation",
    "data": {"source": "points", "batch_size": 4},
    "teacher": {"pipeline": "none"},
    "runtime": {"threads": 1, "device": "cpu", "log_images": 4, "prefetch": 0, "checkpoint_minutes": 60.0},
}
STAGE: dict[str, Any] = {"name": "only", "stop": {"images": 48}, "optimiser": {"learning_rate": 1e-2}}


def recipe(*stages: Mapping[str, Any], **changes: Any) -> sections.DistillationRecipe:
    """A recipe of stages, each given as its keys that are not as in `STAGE`."""
    values = RECIPE | {"stages": [STAGE | dict(stage) for stage in stages]} | changes
    return sections.DistillationRecipe.model_validate_json(json.dumps(values))


class Points:
    """Points of four classes that follow from the index; infinite ones on demand."""

    def __init__(self, size: int = 16, poisoned: Sequence[int] = ()) -> None:
        self.size, self.poisoned = size, set(poisoned)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        self.asked += indices.tolist()
        own = np.stack([np.random.default_rng(int(i)).standard_normal(2) for i in indices])
        own[[i in self.poisoned for i in indices.tolist()]] = np.inf
        return {"latents": own.astype(np.float32), "classes": (indices % 4).astype(np.int64)}

    def fingerprint(self) -> str:
        return f"points-{self.size}"


def base(network: nn.Module | None = None, dataset: Any = None, **contract: Any) -> origins.Base:
    """A network on points (or whatever fits ``dataset``) as what is distilled, as if it had been loaded."""
    torch.manual_seed(0)
    network = MLPDenoiser(width=8, depth=2, classes=4) if network is None else network
    network.eval().requires_grad_(False)
    dataset = Points() if dataset is None else dataset
    fields: dict[str, Any] = {
        "base_family": "toy",
        "prediction_type": "v_prediction",
        "schedule": ScheduleSpec(rescale_zero_terminal_snr=True),
        "native_sizes": ((1, 1),),
    }
    made = SamplingContract(**fields | contract)
    sample = {
        key: torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
        for key, value in dataset.batch(np.zeros(1, np.int64), np.random.default_rng(0)).items()
    }
    classes = network.classes if isinstance(network, MLPDenoiser) else None
    opened = None if network is None else lambda: copy.deepcopy(network)
    return origins.Base(made, made.make_schedule(), dataset, opened, None, None, sample, classes)


class Run:
    """A stage in the real training loop, one batch at a time, without files."""

    def __init__(
        self, stage: build.Stage | StageTask, recipe: sections.DistillationRecipe, dataset: Any = None
    ) -> None:
        self.task = stage if isinstance(stage, StageTask) else stage.task
        self.recipe = recipe
        accelerator = make_accelerator(recipe)
        self.state = make_state(self.task, recipe, accelerator)
        hooks = Hooks(loggers=Loggers(()), on_progress=lambda _: None)
        self.loop = Loop(self.task, recipe, self.state, Path("none"), accelerator, hooks)
        plan = Plan(recipe.seed, recipe.data.batch_size, recipe.runtime.accumulation)
        self.batches = feed(Points() if dataset is None else dataset, self.task.draw, plan, start=0)

    def step(self, batches: int = 1) -> None:
        """Train."""
        for _ in range(batches):
            self.loop.step(next(self.batches))

    def batch(self) -> tuple[Fed, dict[str, Any]]:
        """The next batch, and its first part on the device."""
        fed = next(self.batches)
        return fed, self.loop._on_device(fed.parts[0])

    def gradients(self, role: str, batch: dict[str, Any], seen: int = 0) -> dict[str, Tensor | None]:
        """Gradients in all roles' parameters after one role's turn, by "role/parameter"; then none again."""
        losses = {role: torch.zeros(())}
        self.loop._part_gradients(batch, [self.state.roles[role]], losses, 1.0, True, seen)
        found: dict[str, Tensor | None] = {}
        for name, state in self.state.roles.items():
            for parameter, value in state.role.module.named_parameters():
                found[f"{name}/{parameter}"] = value.grad
                value.grad = None
        return found


def live(gradients: Mapping[str, Tensor | None], role: str) -> bool:
    """Whether any gradient of a role is there and not 0."""
    return any(v is not None and bool(v.any()) for k, v in gradients.items() if k.startswith(f"{role}/"))


def batch_context(run: Run, batch: dict[str, Any], seen: int = 0, **changes: Any) -> Context:
    """The context of a task's first method for a batch."""
    modules = {name: role.role.module for name, role in run.state.roles.items()}
    made = run.task._context(0, batch, modules, {}, seen // run.recipe.data.batch_size)
    return dataclasses.replace(made, **changes)


def fit(
    method: Method,
    student: nn.Module,
    make: Callable[[int], Context],
    steps: int,
    *,
    rate: float = 1e-2,
    critic: nn.Module | None = None,
    critic_rate: float = 1e-2,
    role: str = "discriminator",
    betas: tuple[float, float] = (0.9, 0.99),
) -> list[float]:
    """Train in a plain loop, student then critic in every batch; returns the student's losses."""
    ours = torch.optim.Adam(student.parameters(), lr=rate, betas=betas)
    theirs = (
        None if critic is None else torch.optim.Adam(critic.parameters(), lr=critic_rate, betas=(0.0, 0.99))
    )
    found = []
    for step in range(steps):
        told = make(step)
        loss = method.student_loss(told)[0].mean()
        ours.zero_grad()
        loss.backward()
        ours.step()
        found.append(float(loss.detach()))
        if theirs is not None:
            theirs.zero_grad()
            method.critic_loss(role, told)[0].mean().backward()
            theirs.step()
    return found


def null_of(mixture: GaussianMixture) -> Conditions:
    """The class that means none."""
    return Conditions(classes=torch.tensor([int(mixture.labels.max()) + 1]))


LIGHTNING = {
    "methods": [
        {
            "method": "lightning",
            "teacher_steps": 4,
            "student_steps": 2,
            "discriminator": {"channels": 4, "r1": 0.1, "renoise": {"later_weights": [5.0, 1.0, 1.0, 1.0],
                                                                    "later_from_step": 7}},
        }
    ],
    "student_every": 2,
    "critic_warmup_steps": 3,
}  # fmt: skip
PHASES = [
    {"steps": 3, "mode_weights": [0.0, 0.0, 0.5, 0.5], "guidance": [1.0, 3.0]},
    {"steps": 3, "mode_weights": [0.25] * 4, "guidance": [1.0, 3.0], "distribution": 0.3, "adversarial": 0.1},
    {"steps": 3, "mode_weights": [0.4, 0.2, 0.2, 0.2], "guidance": [1.0, 3.0], "adversarial": 0.2},
]
FLASH = {
    "methods": [
        {
            "method": "flash",
            "teacher_steps": 4,
            "solver": "ddim",
            "phases": PHASES,
            "discriminator": {"channels": 4},
            "critic": {"learning_rate": 1e-3},
        }
    ]
}
DMD = {
    "methods": [{"method": "dmd2", "timesteps": [999.0, 499.0], "discriminator": {"channels": 4}}],
    "student_every": 3,
    "critic_warmup_steps": 2,
}
PROGRESSIVE = {"methods": [{"method": "progressive", "teacher_steps": 4, "student_steps": 2}]}
LCM = {"methods": [{"method": "lcm", "num_steps": 8, "guidance": [1.0, 3.0]}]}
CONVERSION = {"methods": [{"method": "conversion", "guidance_scale": 2.0, "unconditional": 0.3}]}
STAGES: dict[str, dict[str, Any]] = {
    "progressive": PROGRESSIVE,
    "lightning": LIGHTNING,
    "conversion": CONVERSION,
    "lcm": LCM,
    "flash": FLASH,
    "dmd2": DMD,
}
ADAPTER = {"mode": "lora", "lora": {"rank": 2, "targets": ["all-linear-conv"]}}
RUNS = STAGES | {"lightning_lora": LIGHTNING | {"student": ADAPTER}}
CRITICS = {"lightning": {"discriminator"}, "flash": {"discriminator", "fake_score"}, "dmd2": {"fake_score"}}


def network_run(kind: str, mode: str = "full", dataset: Any = None, **changes: Any) -> Run:
    student = ADAPTER | {"mode": mode}
    made = recipe(STAGES[kind] | {"student": student} | changes)
    return Run(build.build_stage(made, 0, base(), []), made, dataset)


def digests(stage: Run) -> dict[str, str]:
    """Of weights and moments of every role."""
    found = {}
    for name, state in stage.state.roles.items():
        entries = [] if state.optimiser is None else state.optimiser.state.values()
        moments = [float(t.double().sum()) for entry in entries for t in entry.values()]
        average = [] if state.ema is None else [float(t.sum()) for t in state.ema.state_dict().values()]
        found[name] = weights_digest(state.role.module) + repr((moments, average))
    return found


def toy(kind: str, accumulation: int = 2, **runtime: Any) -> sections.DistillationRecipe:
    """A pretraining of three steps in place of the exact teacher, then twelve steps of a method."""
    pretrain = {
        "name": "pretrain",
        "student": {"start": "random"},
        "methods": [{"method": "conversion"}],
        "stop": {"images": 12},
    }
    return recipe(
        pretrain,
        RUNS[kind] | {"name": "few", "teacher": "previous", "ema": {"half_life_images": 20.0}},
        teacher={
            "mixture": {
                "kind": "two_modes",
                "width": 8,
                "depth": 2,
                "schedule": {"rescale_zero_terminal_snr": True},
            }
        },
        runtime=RECIPE["runtime"] | {"accumulation": accumulation} | runtime,
    )


def distill(recipe: sections.DistillationRecipe, folder: Path, **arguments: Any) -> run.DistillationResult:
    return run.distill(recipe, run_folder=folder, show_progress=False, **arguments)


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 2)))


def lcm_section(**changes: Any) -> sections.LcmMethod:
    values: dict[str, Any] = {"guidance": (1.0, 1.0), "distance": "l2", "boundary_scaling": 0.0}
    return sections.LcmMethod(method="lcm", **values | changes)


def flash_section(**changes: Any) -> sections.FlashMethod:
    phase = sections.FlashPhase(steps=1, mode_weights=(1.0, 1.0, 1.0, 1.0), guidance=(1.0, 1.0))
    values: dict[str, Any] = {"phases": (phase,), "solver": "ddim", "boundary_scaling": 0.0}
    return sections.FlashMethod(method="flash", **values | changes)


class Scored(nn.Module):
    """A fake score that is a formula."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.denoiser = network

    def forward(self, x_t: Tensor, time: Tensor, conditions: Conditions, logits: bool = False) -> Tensor:
        output: Tensor = self.denoiser(x_t, time, conditions)
        return output
