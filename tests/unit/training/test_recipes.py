from __future__ import annotations

from pathlib import Path

import pytest
import tiny_runs

from fewstep.errors import NotFoundError, RecipeError, RunError
from fewstep.training import recipe as recipes
from fewstep.training.recipe import (
    check_resume,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_diff,
    recipe_names,
    recipe_schema,
)

MINIMAL = "kind: denoiser\ndata: {source: cache, path: x}\nmodel: {}\nstop: {images: 100}\n"


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        parse_recipe(text, overrides)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["denoiser", "autoencoder", "evaluator"])
def test_a_resolved_recipe_reads_back_equal(kind: str) -> None:
    recipe = tiny_runs.recipe(kind)
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("override", "key", "right"),
    [
        ("optimizer.learning_rate=1e-3", "optimizer", "optimiser"),
        ("optimiser.learning_rat=1", "optimiser.learning_rat", "learning_rate"),
        ("objective.schedule.zero_terminal_snr=true", "zero_terminal_snr", "rescale_zero_terminal_snr"),
        ("data.batchsize=3", "data.batchsize", "batch_size"),
        ("ema.halflife=3", "ema.halflife", "half_life_images"),
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(override: str, key: str, right: str) -> None:
    message = refused(MINIMAL, override)
    assert f"unknown key {key!r}" in message or key in message
    assert f"did you mean {right!r}?" in message


def test_a_key_like_nothing_lists_what_there_is() -> None:
    message = refused(MINIMAL, "stop.qqqqqqq=1")
    assert "there are: hours, images" in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("stop.images=0", "stop.images is 0"),
        ("stop.images=many", "stop.images is 'many'"),
        ("optimiser.learning_rate=-1", "optimiser.learning_rate is -1"),
        ("optimiser.learning_rate=.nan", "optimiser.learning_rate"),
        ("runtime.keep=1", "runtime.keep is 1: input should be greater than or equal to 2"),
        ("objective.caption_dropout=1.5", "objective.caption_dropout"),
        ("objective.prediction_type=v", "objective.prediction_type"),
        ("data.source=ftp", "data.source"),
        ("seed=1.5", "seed is 1.5"),
        ("kind=denoise", "kind is 'denoise'; use one of: autoencoder, denoiser, evaluator"),
        ("model=3", "model is 3"),
        ("stop=3", "stop is 3"),
        ("stop.images.more=3", "images is a value, not a section"),
        ("stop.images", "not of the form"),
        ("=3", "not of the form"),
        ("stop.images=[", "not valid YAML"),
    ],
)
def test_a_bad_value_is_told_with_its_key(override: str, told: str) -> None:
    assert told in refused(MINIMAL, override)


def test_bad_files_are_told() -> None:
    assert "not a mapping" in refused("- a\n")
    assert "not valid YAML" in refused("a: [")
    assert "given twice" in refused(MINIMAL + "seed: 1\nseed: 2\n")
    assert "stop is missing" in refused("kind: denoiser\ndata: {source: cache, path: x}\nmodel: {}\n")
    message = refused(
        "kind: autoencoder\ndata: {source: drawings, path: x}\nmodel: {}\nstop: {images: 1}\n"
        "objective: {l1: 0, multiscale_l1: 0, mse: 0}"
    )
    assert "all 0" in message


def test_numbers_are_read_as_people_write_them() -> None:
    recipe = parse_recipe(MINIMAL, ["optimiser.learning_rate=3e-4", "stop.images=1_000_000", "ema=null"])
    assert recipe.optimiser.learning_rate == 3e-4
    assert recipe.stop.images == 1_000_000
    assert recipe.ema is None


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_recipe(MINIMAL).seed = 3


def test_recipes_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "denoiser.yaml").write_text(MINIMAL)
    (tmp_path / "set" / "backgrounds.yaml").write_text("white: [255, 255, 255]")
    (tmp_path.parent / "outside.yaml").write_text(MINIMAL)
    monkeypatch.setattr(recipes, "_roots", lambda: [tmp_path])
    assert recipe_names() == ["set/denoiser"]
    assert load_recipe("set/denoiser") == load_recipe(tmp_path / "set" / "denoiser.yaml")
    for name in ("set/denoser", "../outside", "/etc/passwd", "set", "set/backgrounds", "missing.yaml"):
        with pytest.raises(NotFoundError, match="set/denoiser"):
            load_recipe(name)


def test_every_recipe_that_comes_with_the_package_is_valid() -> None:
    for name in recipe_names():
        assert load_recipe(name).stop.images > 0


def test_the_schema_tells_kinds_apart_and_closes_every_section() -> None:
    schema = recipe_schema()
    kinds = {"denoiser", "autoencoder", "evaluator", "lora", "dreambooth", "textual_inversion"}
    assert set(schema["discriminator"]["mapping"]) == kinds
    for name, section in schema["$defs"].items():
        if section.get("type") == "object":
            assert section["additionalProperties"] is False, name


def test_t09_allowed_changes_pass_and_others_need_override() -> None:
    old = parse_recipe(MINIMAL)
    longer = parse_recipe(MINIMAL, ["stop.images=200", "samples.prompts=[a]", "runtime.log_images=5"])
    assert [str(change) for change in check_resume(old, longer)] == [
        "stop.images: 100 -> 200",
        'samples.prompts: [] -> ["a"]',
        "runtime.log_images: 1000 -> 5",
    ]
    other = parse_recipe(MINIMAL, ["optimiser.learning_rate=1", "model.dropout=0.1", "ema=null"])
    with pytest.raises(RunError) as error:
        check_resume(old, other)
    for part in ("optimiser.learning_rate: 0.0001 -> 1", "model.dropout: null -> 0.1", "--override"):
        assert part in str(error.value)
    assert len(check_resume(old, other, override=True)) == len(recipe_diff(old, other)) >= 3
    assert recipe_diff(old, old) == []


def test_no_heavy_imports_for_reading_recipes() -> None:
    import subprocess
    import sys

    code = (
        "import sys, fewstep.training.recipe as r; r.recipe_schema(); r.recipe_names()\n"
        "assert not {'torch', 'diffusers', 'accelerate'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
