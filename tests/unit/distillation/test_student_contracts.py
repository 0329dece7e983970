"""What a student's folder says to diffusers is what its contract says to us: times and scalings."""

from __future__ import annotations

import dataclasses
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny_stages as tiny
import torch

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.diffusion.prediction import Prediction
from fewstep.diffusion.sampler import sample
from fewstep.distillation import build, origins
from fewstep.distillation.products import other_times

METHODS: dict[str, dict[str, Any]] = {
    "progressive": {"method": "progressive", "teacher_steps": 8, "student_steps": 4},
    "lightning": {"method": "lightning", "teacher_steps": 8, "student_steps": 1, "distance": "l2"},
    "lcm": {"method": "lcm"},
    "lcm on another grid": {"method": "lcm", "num_steps": 20, "boundary_scaling": 0.0},
    "flash": {"method": "flash", "phases": [{"steps": 1, "mode_weights": [1.0]}]},
    "flash of 8": {"method": "flash", "phases": [{"steps": 1, "mode_weights": [1.0]}], "student_steps": 8},
    "dmd2": {"method": "dmd2"},
    "dmd2 of 3": {"method": "dmd2", "timesteps": [999.0, 666.0, 333.0]},
}


def contract_of(method: str | dict[str, Any], base: origins.Base | None = None) -> SamplingContract:
    section = METHODS[method] if isinstance(method, str) else method
    recipe = tiny.recipe({"methods": [section]})
    return build.build_stage(recipe, 0, base or tiny.base(), []).contract


def scheduler_of(contract: SamplingContract) -> Any:
    config = contract.scheduler_config()
    return getattr(diffusers, config["_class_name"]).from_config(config)


@pytest.mark.parametrize("method", METHODS)
def test_diffusers_visits_a_students_times_at_every_count_that_it_was_made_for(method: str) -> None:
    contract = contract_of(method)
    scheduler = scheduler_of(contract)
    for steps in contract.allowed_steps or (contract.num_inference_steps,):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == contract.grid(steps)[:-1].tolist(), steps
    assert other_times(contract) == {}


@pytest.mark.parametrize("spacing", ["trailing", "lcm"])
@pytest.mark.parametrize("solver", ["lcm", "tcd"])
def test_times_of_the_schedulers_that_pick(solver: str, spacing: str) -> None:
    base = tiny.base(solver=solver, spacing=spacing, guidance="off").contract
    scheduler = scheduler_of(base)
    for steps in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50) if spacing == "trailing" else (1, 2, 3, 4, 7, 8):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == base.grid(steps)[:-1].tolist()


@pytest.mark.parametrize("scaling", [0.0, 0.02, 10.0, None])
def test_diffusers_has_a_students_boundary_scaling(scaling: float | None) -> None:
    """At the least noise, where scalings of any size differ from none; without noise between steps."""
    contract = dataclasses.replace(contract_of("flash"), boundary_scaling=scaling, num_inference_steps=1)
    contract = dataclasses.replace(contract, timesteps={1: (19.0,)})
    scheduler, schedule = scheduler_of(contract), contract.make_schedule()
    scheduler.set_timesteps(timesteps=[19])
    x, raw = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).split(1)
    theirs = scheduler.step(raw, 19, x).prev_sample
    a, s = float(schedule.alpha(19.0)), float(schedule.sigma(19.0))
    x0 = a * x - s * raw
    ours = sample(
        lambda *_: Prediction(x0, s * x + a * raw),
        x,
        contract.grid(1),
        contract.make_solver(),
        schedule=schedule,
        noise=lambda _: torch.zeros_like(x),
    )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert torch.allclose(theirs, x0, atol=1e-3) == (scaling != 0.02)


@pytest.mark.parametrize("times", [[399.0], [999.0, 800.0, 300.0], [899.0, 499.0]])
def test_times_that_diffusers_would_not_visit_are_found(times: list[float]) -> None:
    contract = contract_of({"method": "dmd2", "timesteps": times})
    assert other_times(contract) == {len(times): [int(t) for t in times]}
    scheduler = scheduler_of(contract)
    scheduler.set_timesteps(timesteps=other_times(contract)[len(times)])
    np.testing.assert_array_equal(scheduler.timesteps, contract.grid()[:-1])


@pytest.mark.parametrize("method", ["progressive", "lcm", "flash", "dmd2"])
def test_students_of_a_flow_can_be_written(method: str) -> None:
    """Or a run would fail at its very end, when the student is written."""
    flow = tiny.base(schedule=ScheduleSpec(name="rectified_flow", shift=3.0), solver="flow_euler")
    section = METHODS[method] | ({"timesteps": [1.0, 0.5]} if method == "dmd2" else {})
    contract = contract_of(section | ({"solver": "ddim"} if method == "flash" else {}), flow)
    scheduler = scheduler_of(contract)
    assert type(scheduler).__name__.startswith("FlowMatch") and scheduler.config.shift == 3.0
    assert other_times(contract) == {}
