"""A distilled adapter in plain diffusers draws what ``fewstep generate`` draws with the student's folder.

The user does what every card of a LoRA says: load the base, load the adapter, take the scheduler of the
student's folder, and draw. Weights are float16 in all folders; the student's are rounded after merging, the
adapter's are added in float32, hence the tolerance: half a level of 255 for the median pixel (a quarter is
rounding), 2 levels for the worst.
"""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_students import PROMPT, SEED, Drawings, Silent, ours

from fewstep.data.latent_cache import build_cache
from fewstep.diffusion.noise import image_noise, solver_noise
from fewstep.distillation.products import finish
from fewstep.distillation.run import distill
from fewstep.distillation.sections import DistillationRecipe
from fewstep.models import load
from fewstep.training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

SHAPE = (4, 8, 8)
METHODS: dict[str, dict[str, Any]] = {
    "progressive": {"teacher_steps": 8, "student_steps": 4, "guidance_scale": 2.0},
    "lightning": {"teacher_steps": 8, "student_steps": 4, "guidance_scale": 2.0, "distance": "l2"},
    "lcm": {"guidance": [2.0, 4.0]},
    "lcm-own-grid": {"method": "lcm", "num_steps": 20, "guidance": [2.0, 4.0]},
    "flash": {
        "teacher_steps": 4,
        "phases": [{"steps": 9, "mode_weights": [1.0, 1.0], "guidance": [2.0, 2.0]}],
    },
    "dmd2": {"guidance_scale": 2.0},
    "dmd2-late": {"method": "dmd2", "timesteps": [899.0, 399.0, 99.0], "guidance_scale": 2.0},
}
MEDIAN, WORST = 0.5, 2.0
"""Levels of 255 between a picture of plain diffusers, not rounded, and ours."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    rng = np.random.default_rng(0)
    build_cache(
        folder := tmp_path_factory.mktemp("cache") / "latents",
        Drawings(),
        lambda images: rng.standard_normal((len(images), *SHAPE)),
        lambda texts: rng.standard_normal((len(texts), 12, 16)),
        weights={"none": "none"},
    )
    return folder


@pytest.fixture(scope="module")
def students(pipeline, cache, tmp_path_factory):
    """Folders of LoRA students by method, distilled for three steps at a rate that shows."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            stage = {
                "name": "few",
                "student": {"mode": "lora", "lora": {"rank": 4, "alpha": 6.0}},
                "methods": [{"method": name} | METHODS[name]],
                "stop": {"images": 6},
                "optimiser": {"learning_rate": 3e-2},
                "ema": None,
            }
            recipe = DistillationRecipe.model_validate_json(
                json.dumps(
                    {
                        "kind": "distillation",
                        "data": {"source": "cache", "path": str(cache), "batch_size": 2},
                        "teacher": {"pipeline": str(pipeline)},
                        "stages": [stage],
                        "runtime": {"threads": 1, "device": "cpu", "prefetch": 0},
                    }
                )
            )
            folder = tmp_path_factory.mktemp(name)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(trainer, "TensorBoard", Silent)
                assert distill(recipe, run_folder=folder, show_progress=False).finished
            made[name] = finish(recipe, folder)
        return made[name]

    return of


def plain(base: Path, student: Path) -> Any:
    """What a user of plain diffusers makes of a base and of the folder of a student."""
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
        pipe.load_lora_weights(student / "adapter")
        name = json.loads((student / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
        pipe.scheduler = getattr(diffusers, name).from_pretrained(student / "scheduler")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe: Any, monkeypatch: pytest.MonkeyPatch, **given: Any) -> np.ndarray:
    """Drawn from our noise, also where the scheduler adds some: seeds of theirs make other noise."""
    from diffusers.schedulers import scheduling_lcm

    added, noise = itertools.count(), solver_noise(SEED, 1, SHAPE)
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: torch.from_numpy(noise(next(added))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture: np.ndarray = pipe(
            PROMPT,
            latents=torch.from_numpy(image_noise(SEED, SHAPE))[None],
            guidance_scale=1.0,
            height=64,
            width=64,
            output_type="np",
            **given,
        ).images[0]
    return 255.0 * picture


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Ours is rounded to whole levels, which alone makes a median of a quarter and a worst of a half."""
    assert expected.std() > 20
    apart = np.abs(found - expected)
    assert np.median(apart) <= MEDIAN and apart.max() <= WORST


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("progressive", (4,)),
        ("lightning", (4,)),
        ("lcm", (1, 2, 3, 4, 7, 8)),
        ("lcm-own-grid", (1, 2, 3, 4, 6)),
        ("flash", (1, 2, 3, 4)),
        ("dmd2", (4,)),
    ],
)
def test_an_adapter_in_plain_diffusers_draws_as_the_student(pipeline, students, monkeypatch, name, steps):
    """With nothing but a number of steps."""
    student = students(name)
    contract = load.contract(student)
    assert contract.guidance == "off" and set(steps) <= set(contract.allowed_steps or ())
    pipe = plain(pipeline, student)
    for count in steps:
        expected = ours(student, count)
        assert_same(theirs(pipe, monkeypatch, num_inference_steps=count), expected)
    pipe.disable_lora()
    alone = theirs(pipe, monkeypatch, num_inference_steps=steps[-1])
    assert np.median(np.abs(alone - expected)) > 5.0, "the adapter itself would not show"


@pytest.mark.parametrize("name", ["progressive", "lightning"])
def test_euler_is_as_good_as_ddim(pipeline, students, monkeypatch, name):
    """As cards of SDXL-Lightning say; its most noise is 4096 times the data, where DDIM has none of them."""
    from diffusers import EulerDiscreteScheduler

    student = students(name)
    pipe = plain(pipeline, student)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert_same(theirs(pipe, monkeypatch, num_inference_steps=4), ours(student, 4))


def test_times_that_diffusers_does_not_pick_stand_in_the_card(pipeline, students, monkeypatch):
    student = students("dmd2-late")
    card = (student / "README.md").read_text("utf-8")
    assert card.startswith((pipeline / "README.md").read_text("utf-8").rstrip())
    (call,) = [line.strip() for line in card.splitlines() if line.startswith("    pipe(")]
    assert call == "pipe(prompt, timesteps=[899, 399, 99], guidance_scale=1)"
    pipe, expected = plain(pipeline, student), ours(student, 3)
    assert_same(theirs(pipe, monkeypatch, timesteps=[899, 399, 99]), expected)
    untold = theirs(pipe, monkeypatch, num_inference_steps=3)
    assert np.median(np.abs(untold - expected)) > 5.0
    assert "timesteps" not in (students("dmd2") / "README.md").read_text("utf-8")
