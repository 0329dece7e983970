import numpy as np
import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

IMAGE = np.full((64, 64, 3), 90, dtype=np.uint8)
MASK = np.zeros((64, 64), dtype=np.uint8)
MASK[16:48, 16:48] = 255
KEYS = {
    "task", "model", "model_hash", "licence", "engine", "prompt", "negative_prompt", "num_inference_steps",
    "guidance_scale", "guidance_rescale", "solver", "eta", "seed", "n", "width", "height", "strength",
    "deterministic", "warnings",
}  # fmt: skip


@pytest.mark.parametrize(
    "given", [{}, {"init_image": IMAGE}, {"init_image": IMAGE, "mask": MASK}, {"width": 128, "height": 128}]
)
def test_records_say_nothing_of_modes_that_were_not_asked_for(given):
    engine = Engine(backend=FakeBackend())
    made = engine.generate(resolve(engine.info, prompt="a red apple", **given))
    assert set(made.record) == KEYS


@pytest.mark.parametrize(
    ("steps", "strength", "runs"), [(4, 0.2, 1), (4, 0.24, 1), (4, 0.25, 1), (4, 0.5, 2), (1, 0.9, 1)]
)
def test_a_strength_above_nothing_runs_a_step(steps, strength, runs):
    backend = FakeBackend()
    engine = Engine(backend=backend)
    request = resolve(
        engine.info, prompt="a red apple", init_image=IMAGE, num_inference_steps=steps, strength=strength,
        guidance_scale=1.0,
    )  # fmt: skip
    made = engine.generate(request)
    assert backend.calls == runs
    said = [warning for warning in made.warnings if f"leaves none of {steps} steps, so one is run" in warning]
    assert bool(said) == (steps * strength < 1)
    assert made.record["warnings"] == made.warnings


def test_the_step_that_is_run_is_the_last_one():
    seen = []
    engine = Engine(backend=FakeBackend())
    request = resolve(engine.info, prompt="", init_image=IMAGE, num_inference_steps=4, strength=0.1)
    engine.generate(request, on_step=seen.append)
    assert [(report.index, report.total) for report in seen] == [(0, 1)]


def test_a_student_is_told_of_both():
    info = FakeBackend(students={"quick": (4,)}).info
    warnings = resolve(info, prompt="", init_image=IMAGE, num_inference_steps=4, strength=0.1).warnings
    assert any("so one is run" in warning for warning in warnings)
    assert any("leaves 1 of the 4 steps that student 'quick'" in warning for warning in warnings)
