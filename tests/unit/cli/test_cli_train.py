"""``fewstep train`` up to the point where training begins; runs themselves are tested in training."""

import json
from pathlib import Path

import pytest
import yaml

from fewstep.cli.main import main
from fewstep.cli.train import _run_folder

Output = pytest.CaptureFixture[str]

RECIPE = """
kind: denoiser
data: {source: cache, path: nowhere}
model: {}
stop: {images: 100}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return str(path)


def test_dry_run_prints_the_resolved_recipe(recipe: str, capsys: Output) -> None:
    assert main(["train", recipe, "--dry-run", "--set", "stop.images=7", "--set", "seed=3"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["stop"]["images"] == 7
    assert resolved["seed"] == 3
    assert resolved["runtime"]["keep"] >= 2  # a default, written out


def test_schema_is_json(capsys: Output) -> None:
    assert main(["train", "--schema"]) == 0
    assert "$defs" in json.loads(capsys.readouterr().out)


def test_unknown_key_names_the_nearest_right_one(recipe: str, capsys: Output) -> None:
    assert main(["train", recipe, "--set", "optimiser.learning_rat=1", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert "learning_rate" in err
    assert err.count("\n") == 1


def test_unknown_recipe_and_no_recipe(capsys: Output) -> None:
    assert main(["train", "no-such-recipe"]) == 4
    assert main(["train"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize(
    ("name", "folder"),
    [("emoji-128/denoiser", "runs/emoji-128/denoiser"), ("../some/where/own.yaml", "runs/own")],
)
def test_default_run_folder(name: str, folder: str) -> None:
    assert _run_folder(name) == Path(folder)
