"""Prompts on the command line: emphasis, styles, wildcards and choices."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import generate, templates
from fewstep.cli.main import main
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import DataError, NotFoundError, UsageError
from fewstep.prompt import containers, infotext

Output = pytest.CaptureFixture[str]
STYLES = 'name,prompt,negative_prompt\nink,"green, (dog:1.2)",blue\nframed,on {prompt},\n'


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    fake = FakeBackend()
    monkeypatch.setattr(generate, "open_engine", lambda *given: Engine(backend=fake))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "styles.csv").write_text(STYLES)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "colour.txt").write_text("red\ngreen\nblue\n")
    return tmp_path


def draw(capsys: Output, *given: str) -> list[dict[str, object]]:
    assert main(["generate", *given, "--upscale", "none", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def pixels(path: object) -> np.ndarray:
    with Image.open(str(path)) as image:
        return np.asarray(image.convert("RGB"))


def parameters(path: object) -> str:
    with Image.open(str(path)) as image:
        found = containers.decode(image).parameters
    assert found is not None
    return found


@pytest.mark.usefixtures("folder")
def test_emphasis_is_in_record_and_infotext(capsys: Output) -> None:
    prompt = "a (red:1.9) (apple:0.2)"
    (usual,) = draw(capsys, prompt)
    (other,) = draw(capsys, prompt, "--emphasis", "ignore")
    assert "emphasis" not in usual and other["emphasis"] == "ignore"
    (plain,) = draw(capsys, "a red apple")
    assert np.array_equal(pixels(other["path"]), pixels(plain["path"]))
    assert not np.array_equal(pixels(usual["path"]), pixels(plain["path"]))
    text = parameters(other["path"])
    assert infotext.read(text).fields["Emphasis"] == "Ignore"
    assert infotext.read(text).prompt == prompt


@pytest.mark.usefixtures("folder")
def test_unknown_emphasis_names_the_right_ones(capsys: Output) -> None:
    assert main(["generate", "a", "--emphasis", "no-norm"]) == 2
    assert "did you mean no_norm?" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_styles_are_put_in_and_the_template_is_kept(capsys: Output) -> None:
    (made,) = draw(capsys, "a dog", "--style", "framed", "--style", "ink", "--styles", "styles.csv")
    assert made["prompt"] == "on a dog, green, (dog:1.2)"
    assert made["negative_prompt"] == "blue"
    assert made["template"] == "a dog" and made["negative_template"] == ""
    assert made["styles"] == ["framed", "ink"]
    (typed,) = draw(capsys, "on a dog, green, (dog:1.2)", "--negative", "blue")
    assert np.array_equal(pixels(made["path"]), pixels(typed["path"]))


@pytest.mark.usefixtures("folder")
def test_each_image_has_its_own_prompt_and_the_bits_of_it_alone(capsys: Output) -> None:
    template = "a __colour__ {dog|apple}"
    made = draw(capsys, template, "--wildcards", "words", "--n", "6", "--seed", "4")
    assert [one["seed"] for one in made] == [4, 5, 6, 7, 8, 9]
    assert len({str(one["prompt"]) for one in made}) > 2
    for one in made:
        assert one["template"] == template and one["n"] == 6
        (again,) = draw(capsys, template, "--wildcards", "words", "--seed", str(one["seed"]))
        assert again["prompt"] == one["prompt"]
        (typed,) = draw(capsys, str(one["prompt"]), "--seed", str(one["seed"]))
        assert "template" not in typed
        assert np.array_equal(pixels(one["path"]), pixels(typed["path"]))
    text = parameters(made[0]["path"])
    fields = infotext.read(text)
    assert (fields.prompt, fields.fields["Template"]) == (made[0]["prompt"], template)


@pytest.mark.usefixtures("folder")
def test_variation_seeds_go_on_from_image_to_image(capsys: Output) -> None:
    vary = ["--variation-seed", "50", "--variation-strength", "0.3"]
    made = draw(capsys, "a {red|green|blue} dog", "--n", "3", *vary)
    assert [one["variation"]["seed"] for one in made] == [50, 51, 52]  # type: ignore[index]


def test_plain_prompt_is_one_request() -> None:
    (one,) = templates.texts("a dog", "__x__ | y", seed=3, n=5)
    assert (one.prompt, one.negative_prompt, one.first, one.count) == ("a dog", "__x__ | y", 0, 5)
    assert one.further == {} and one.warnings == ()


def test_template_without_any_choice_left_is_one_request() -> None:
    (one,) = templates.texts("a {dog}", "", seed=3, n=5)
    assert (one.prompt, one.count, one.further) == ("a dog", 5, {"template": "a {dog}"})


@pytest.mark.usefixtures("folder")
def test_unknown_wildcards_are_said(capsys: Output) -> None:
    assert main(["generate", "a __shade__ dog", "--wildcards", "words", "--upscale", "none"]) == 0
    assert "__shade__" in capsys.readouterr().err


def test_what_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "styles.csv"
    file.write_text(STYLES)
    with pytest.raises(UsageError, match="say with --styles FILE"):
        templates.texts("a", "", seed=0, n=1, styles=["ink"])
    with pytest.raises(NotFoundError, match="style 'inc' is not known: there is ink"):
        templates.texts("a", "", seed=0, n=1, styles=["inc"], styles_file=file)
    with pytest.raises(DataError, match="cannot be read"):
        templates.texts("a", "", seed=0, n=1, styles=["ink"], styles_file=tmp_path / "none.csv")
    with pytest.raises(NotFoundError, match="no such folder"):
        templates.texts("a", "", seed=0, n=1, wildcards=tmp_path / "none")
