"""Students of points in the plane, drawn for measuring: the same noises for teacher and student."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.diffusion.arrays import FloatArray
from fewstep.diffusion.contract import SamplingContract
from fewstep.diffusion.prediction import Denoiser
from fewstep.distillation import origins
from fewstep.distillation.drawing import draw
from fewstep.distillation.roles import ExactTeacher, NetworkTeacher
from fewstep.distillation.run import stage_folders, student
from fewstep.distillation.sections import DistillationRecipe
from fewstep.errors import RecipeError
from fewstep.models.conditions import Conditions

FLOW_STEPS = 200
"""Steps of DDIM that stand for the exact flow."""
NUDGE = 1e-2
"""Length of the movement that sensitivity is measured with."""


@dataclass(frozen=True, slots=True, eq=False)
class ToyDrawing:
    """Points that a student or the teacher makes of the same noises.

    Attributes:
        name: of the stage, or of the teacher and its solver.
        steps: network evaluations.
        points: (N, 2).
        moved: (N, 2), from noises that were moved by `NUDGE`.
        ends: (N, 2), where the teacher's exact (guided) flow takes the noises.
        data: (N, 2), points of the mixture.
    """

    name: str
    steps: int
    points: NDArray[np.float64]
    moved: NDArray[np.float64]
    ends: NDArray[np.float64]
    data: NDArray[np.float64]


def draw_all(
    recipe: DistillationRecipe, run_folder: Path, *, count: int = 2000, seed: int = 1
) -> list[ToyDrawing]:
    """Draw with the teacher and with every finished stage of a toy recipe.

    Args:
        recipe: with a mixture as teacher.
        run_folder: of the finished run.
        count: points, N.
        seed: of noises and data.

    Raises:
        RecipeError: the teacher is no mixture.
        RunError: a stage is not finished.
    """
    base = origins.open_base(recipe)
    if base.mixture is None or base.null_class is None:
        raise RecipeError("teacher is a pipeline: points are drawn of mixtures only")
    rng = np.random.default_rng([seed, 0x706F696E])
    data, _ = base.mixture.sample(rng, count)
    noise = rng.standard_normal((count, data.shape[1]))
    nudge = rng.standard_normal(noise.shape)
    moved = noise + NUDGE * nudge / np.linalg.norm(nudge, axis=1, keepdims=True)
    # Classes in turn, so that all are drawn whatever the count
    labels = np.unique(base.mixture.labels)
    classes = torch.from_numpy(labels[np.arange(count) % len(labels)])
    conditions = Conditions(classes=classes)
    null = Conditions(classes=torch.full((1,), base.null_class))
    scale = guidance_of(recipe)
    exact = ExactTeacher(base.mixture, base.schedule).denoiser(conditions, null, scale)

    def both(
        denoise: Denoiser, contract: SamplingContract, steps: int | None = None
    ) -> tuple[FloatArray, FloatArray]:
        drawn = [
            draw(denoise, contract, torch.from_numpy(x), steps=steps, seed=seed).numpy()
            for x in (noise, moved)
        ]
        return drawn[0], drawn[1]

    flow = dataclasses.replace(base.contract, num_inference_steps=FLOW_STEPS)
    ends, ends_moved = both(exact, flow)
    found = [ToyDrawing("teacher, exact flow", FLOW_STEPS, ends, ends_moved, ends, data)]
    for steps in (1, 2, 4, 8):
        points, near = both(exact, flow, steps)
        found.append(ToyDrawing("teacher, DDIM", steps, points, near, ends, data))
    for section in recipe.stages[: len(stage_folders(recipe, run_folder))]:
        network, contract = student(recipe, run_folder, stage=section.name)
        if contract.method == "conversion":
            continue
        network.double()
        denoise = NetworkTeacher(network, base.schedule, contract.prediction_type).denoiser(conditions)
        points, near = both(denoise, contract)
        steps = contract.num_inference_steps
        found.append(ToyDrawing(f"{section.name} ({contract.method})", steps, points, near, ends, data))
    return found


def guidance_of(recipe: DistillationRecipe) -> float:
    """The guidance scale that a recipe's students have taken in: that of the first method that names one."""
    for stage in recipe.stages:
        for method in stage.methods:
            scale = getattr(method, "guidance_scale", 1.0)
            if scale != 1.0:
                return float(scale)
    return 1.0
