"""What a run folder tells: which stage draws what, and what its training took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep.errors import DataError
from fewstep.evaluation import trained


def make_run(folder: Path, stages: dict[str, dict[str, Any]], **recipe: Any) -> Path:
    """Write a run folder; a stage is its contract's fields, its log's (images, seconds) and its data."""
    named = {"kind": "distillation", "seed": 3, "data": {"batch_size": 16}, "runtime": {"threads": 2}}
    folder.mkdir(parents=True)
    text = yaml.safe_dump(named | recipe | {"stages": [{"name": name} for name in stages]})
    (folder / "recipe.yaml").write_text(text)
    for place, (name, facts) in enumerate(stages.items()):
        part = folder / f"{place:02d}-{name}"
        state = part / "checkpoints" / "0000000100" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text(json.dumps({"data": facts.get("data")}))
        log = [json.dumps({"images": i, "seconds": s}) for i, s in facts.get("log", [])]
        (part / "progress.jsonl").write_text("\n".join([*log, '{"images": 9']))  # cut short by a crash
        if "contract" in facts:
            (part / "done.json").write_text(json.dumps({"contract": facts["contract"]}))
    return folder


def test_time_and_images_of_all_stages_up_to_the_students_count(tmp_path: Path) -> None:
    stages: dict[str, dict[str, Any]] = {
        "eight": {"log": [(100, 60.0), (200, 120.0)], "data": "a"},
        # killed after 90 s, gone on with a new clock
        "four": {"log": [(50, 30.0), (100, 90.0), (150, 30.0), (200, 60.0)], "data": "b"},
    }
    run = make_run(tmp_path / "run", stages)
    found = trained.read(run)
    assert (found.minutes, found.images) == (4.5, 400)
    assert (found.stages, found.seed, found.batch_size, found.threads) == (("eight", "four"), 3, 16, 2)
    assert found.data == "b"
    first = trained.read(run, "eight")
    assert (first.minutes, first.images, first.stages, first.data) == (2.0, 200, ("eight",), "a")
    with pytest.raises(DataError, match="no stage 'two'; there are: eight, four"):
        trained.read(run, "two")


def test_each_step_count_is_drawn_by_the_last_stage_that_was_made_for_it(tmp_path: Path) -> None:
    stages: dict[str, dict[str, Any]] = {
        "mse-8": {"contract": {"allowed_steps": [8]}},
        "conditional-4": {"contract": {"allowed_steps": [4]}},
        "unconditional-4": {"contract": {"allowed_steps": None, "num_inference_steps": 4}},
        "two": {},  # not finished
    }
    run = make_run(tmp_path / "run", stages)
    assert trained.chosen_stages(run, (1, 2, 4, 8)) == {"mse-8": (8,), "unconditional-4": (4,)}
    assert trained.last_stage(run) == "two"
    with pytest.raises(DataError, match="no stage has reached its stop"):
        trained.chosen_stages(make_run(tmp_path / "begun", {"one": {}}), (1,))


def test_a_run_folder_is_known_by_its_recipe(tmp_path: Path) -> None:
    assert trained.is_run(make_run(tmp_path / "run", {"one": {}}))
    assert not trained.is_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("kind: denoiser\n")
    assert not trained.is_run(tmp_path)
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(DataError, match="cannot be read"):
        trained.is_run(tmp_path)
