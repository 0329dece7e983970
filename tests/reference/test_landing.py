"""``fewstep distill --into``: the base draws with the students of the stages that were named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_students import Drawings, Silent, ours

from fewstep.cli.main import main
from fewstep.data.latent_cache import build_cache
from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.distillation.products import narrowed
from fewstep.errors import UsageError
from fewstep.models import load
from fewstep.training import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def project(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, a cache and a recipe of two stages that makes students of 4 and of 2 steps."""
    monkeypatch.setattr(trainer, "TensorBoard", Silent)
    shutil.copytree(pipeline, tmp_path / "base")
    rng = np.random.default_rng(0)
    build_cache(
        tmp_path / "latents",
        Drawings(),
        lambda images: rng.standard_normal((len(images), 4, 8, 8)),
        lambda texts: rng.standard_normal((len(texts), 12, 16)),
        weights={"none": "none"},
    )

    def stage(steps: int, teacher: str) -> dict[str, Any]:
        method = {"method": "progressive", "teacher_steps": 2 * steps, "student_steps": steps}
        return {
            "name": f"steps-{steps}",
            "teacher": teacher,
            "methods": [method],
            "stop": {"images": 4},
            "optimiser": {"learning_rate": 3e-2},
            "ema": None,
        }

    recipe = {
        "kind": "distillation",
        "data": {"source": "cache", "path": str(tmp_path / "latents"), "batch_size": 2},
        "teacher": {"pipeline": str(tmp_path / "base")},
        "stages": [stage(4, "base"), stage(2, "previous")],
        "runtime": {"threads": 1, "device": "cpu", "prefetch": 0},
    }
    (tmp_path / "few.yaml").write_text(json.dumps(recipe))
    return tmp_path


def command(project: Path, *options: str) -> list[str]:
    run = ["distill", str(project / "few.yaml"), "--run", str(project / "run"), "--quiet"]
    return [*run, "--into", str(project / "base"), *options]


def test_the_base_gets_the_students_of_its_stages(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(project, "--student", "two=steps-2")) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(project / "run" / "student"),
        str(project / "base" / "students" / "two"),
    ]
    assert [c.allowed_steps for c in load.student_contracts(project / "base").values()] == [(2,)]
    assert np.array_equal(ours(project / "base", 2), ours(project / "run" / "student", 2))
    # A second call trains nothing and adds the other one.
    trained = {p: p.stat().st_mtime_ns for p in (project / "run").glob("0*/checkpoints/*")}
    assert main([*command(project, "--student", "four=steps-4"), "--resume"]) == 0
    assert trained == {p: p.stat().st_mtime_ns for p in (project / "run").glob("0*/checkpoints/*")}
    assert sorted(load.student_contracts(project / "base")) == ["four", "two"]
    assert not np.array_equal(ours(project / "base", 4), ours(project / "base", 2))


def test_a_student_is_landed_for_some_of_its_step_counts() -> None:
    schedule = ScheduleSpec(name="scaled_linear", beta_start=0.00085, beta_end=0.012)
    made = SamplingContract(
        method="flash", base_family="x", prediction_type="v_prediction", schedule=schedule, solver="lcm",
        allowed_steps=(1, 2, 4), num_inference_steps=4, native_sizes=((8, 8),),
        timesteps={1: (999.0,), 4: (999.0, 749.0, 499.0, 249.0)},
    )  # fmt: skip
    one = narrowed(made, [1])
    assert (one.allowed_steps, one.num_inference_steps, list(one.timesteps)) == ((1,), 1, [1])
    assert list(one.grid(1)[:-1]) == [999.0]
    with pytest.raises(UsageError, match="made for 1, 2, 4"):
        narrowed(made, [3])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--student", "two"], "give NAME=STAGE"),
        (["--student", "two=steps-2:two"], "give NAME=STAGE"),
        (["--student", "two=steps-3"], "no such stage; it has steps-4, steps-2"),
        (["--student", "../two=steps-2"], "student"),
        (["--student", "a=steps-2", "--student", "a=steps-4"], "twice"),
        ([], "--student is missing"),
    ],
)
def test_what_cannot_land_is_refused_before_training(
    project: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main(command(project, *options)) == 2
    assert said in capsys.readouterr().err
    assert not (project / "run").exists()
