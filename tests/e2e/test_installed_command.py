"""The installed command with the bundled model, each time in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.prompt import containers, infotext

pytestmark = pytest.mark.slow

BUNDLE = Path(fewstep.__file__).parent / "bundled" / "emoji-128"
COMMAND = Path(sys.executable).with_name("fewstep.exe" if sys.platform == "win32" else "fewstep")
PROMPT = "a red apple, noto style, on a sky blue background"
# Enough to run every part of the engine; what the picture shows is not judged here.
FAST = ("--steps", "4")


@pytest.fixture(autouse=True, scope="module")
def bundled_model() -> None:
    if not (BUNDLE / "bundle.json").is_file():
        pytest.fail(f"{BUNDLE} is missing: it belongs to the repository; make it with make train-bundled")
    if not COMMAND.is_file():
        pytest.fail(f"{COMMAND} is missing: install the package, pip install -e .")


# Models of the person who runs the tests must not take the bundled model's place.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "FEWSTEP_MODELS"}


def run(*arguments: str | Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
        encoding="utf-8",
    )
    assert done.returncode == code, done.stderr
    return done


def draw(folder: Path, *arguments: str | Path, prompt: str = PROMPT) -> Path:
    lines = run("generate", prompt, *FAST, "--out", folder, *arguments, cwd=folder.parent).stdout.splitlines()
    assert len(lines) == 1
    return folder.parent / lines[0]


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("native") / "out", "--seed", "5", "--upscale", "none")


def test_default_is_512_pixels_where_the_upscaler_is_installed(tmp_path: Path) -> None:
    path = draw(tmp_path / "out", "--seed", "5")
    assert path.name == "00001-5.png"
    side = 512 if importlib.util.find_spec("ncnn") else 128
    assert pixels(path).shape == (side, side, 3)


def test_upscale_none_is_the_native_size(native: Path) -> None:
    assert pixels(native).shape == (128, 128, 3)


def test_same_seed_same_bytes_and_another_seed_another_picture(native: Path, tmp_path: Path) -> None:
    again = draw(tmp_path / "out", "--seed", "5", "--upscale", "none")
    other = draw(tmp_path / "out", "--seed", "6", "--upscale", "none")
    assert again.read_bytes() == native.read_bytes()
    assert not np.array_equal(pixels(other), pixels(native))


def test_image_is_found_again_with_deterministic_in_a_batch(native: Path, tmp_path: Path) -> None:
    arguments = ("--seed", "4", "--n", "2", "--deterministic", "--upscale", "none", "--out", tmp_path / "out")
    lines = run("generate", PROMPT, *FAST, *arguments, cwd=tmp_path).stdout.splitlines()
    assert [Path(line).name for line in lines] == ["00001-4.png", "00002-5.png"]
    np.testing.assert_array_equal(pixels(tmp_path / lines[1]), pixels(native))


def test_image_to_image_stays_near_at_low_strength(native: Path, tmp_path: Path) -> None:
    common = ("--image", native, "--seed", "9", "--upscale", "none", "--steps", "8")
    # Another object and background: of one full prompt the model draws nearly the same from every seed.
    prompt = "a banana, twemoji style, on a navy blue background"
    near = draw(tmp_path / "out", *common, "--strength", "0.2", prompt=prompt)
    far = draw(tmp_path / "out", *common, "--strength", "1.0", prompt=prompt)
    start = pixels(native).astype(float)
    assert np.abs(pixels(near) - start).mean() < np.abs(pixels(far) - start).mean()


def test_inpainting_keeps_the_pixels_that_are_not_masked(native: Path, tmp_path: Path) -> None:
    mask = np.zeros((128, 128), np.uint8)
    mask[:, 64:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    arguments = ("--image", native, "--mask", tmp_path / "mask.png", "--strength", "1", "--seed", "9")
    path = draw(tmp_path / "out", *arguments, "--upscale", "none")
    np.testing.assert_array_equal(pixels(path)[:, :64], pixels(native)[:, :64])
    assert not np.array_equal(pixels(path)[:, 64:], pixels(native)[:, 64:])


def test_json_record_and_infotext_tell_the_same(tmp_path: Path) -> None:
    arguments = ("generate", PROMPT, *FAST, "--negative", "blue, dark", "--seed", "3", "--json")
    done = run(*arguments, "--out", tmp_path / "out", cwd=tmp_path)
    printed = json.loads(done.stdout)
    with Image.open(tmp_path / printed["path"]) as image:
        found = containers.decode(image)
    assert found.record is not None
    assert found.parameters is not None
    assert found.record.items() <= printed.items()
    text = infotext.read(found.parameters)
    assert (text.prompt, text.negative_prompt) == (PROMPT, "blue, dark")
    assert text.fields["Seed"] == str(printed["seed"]) == "3"
    assert text.fields["Steps"] == "4"
    assert text.fields["Size"] == "128x128"
    assert len(text.fields["Model hash"]) == 10
    assert infotext.write(text.prompt, text.negative_prompt, text.fields) == found.parameters


@pytest.mark.parametrize("image_format", ["jpg", "webp"])
def test_other_formats_carry_the_same_text(image_format: str, native: Path, tmp_path: Path) -> None:
    path = draw(tmp_path / "out", "--seed", "5", "--upscale", "none", "--format", image_format)
    assert path.suffix == f".{image_format}"
    shown = run("info", path, cwd=tmp_path).stdout
    assert shown == run("info", native, cwd=tmp_path).stdout
    assert shown.startswith(PROMPT)


def test_info_of_the_bundled_model(tmp_path: Path) -> None:
    facts = json.loads(run("info", BUNDLE, "--json", cwd=tmp_path).stdout)
    assert (facts["kind"], facts["name"]) == ("bundle", "emoji-128")


def test_models_and_doctor_find_the_bundled_model(tmp_path: Path) -> None:
    models = json.loads(run("models", "--json", cwd=tmp_path).stdout)["models"]
    assert "emoji-128" in [model["name"] for model in models]
    assert json.loads(run("doctor", "--json", cwd=tmp_path).stdout)["engine"]["name"] == "openvino"


def test_no_torch_is_imported_to_draw(tmp_path: Path) -> None:
    code = (
        "import sys; from fewstep.cli.main import main;"
        f"code = main(['generate', 'an apple', '--steps', '1', '--out', {str(tmp_path / 'out')!r}]);"
        "found = {'torch', 'diffusers', 'transformers', 'pydantic', 'rich'} & set(sys.modules);"
        "sys.exit(code or ', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr


def test_help_is_quick(tmp_path: Path) -> None:
    import time

    times = []
    for _ in range(3):
        start = time.perf_counter()
        run("--help", cwd=tmp_path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.6, times  # a loose bound; benchmarks measure the real one
