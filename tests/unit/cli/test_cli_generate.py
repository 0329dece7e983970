"""``fewstep generate`` on the fake backend: what is written, what is printed, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import generate
from fewstep.cli.main import main
from fewstep.engine import registry, upscale
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.prompt import containers, infotext

Output = pytest.CaptureFixture[str]
PROMPT = "a red apple"
NATIVE = ("--upscale", "none")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBackend:
    fake = FakeBackend()
    monkeypatch.setattr(generate, "open_engine", lambda model, engine, folders: Engine(backend=fake))
    monkeypatch.chdir(tmp_path)
    return fake


def pixels(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("outputs/*"))


@pytest.mark.usefixtures("backend")
def test_paths_and_nothing_else_go_to_stdout(tmp_path: Path, capsys: Output) -> None:
    assert main(["generate", PROMPT, "--n", "2", "--seed", "7", *NATIVE]) == 0
    paths = [str(Path("outputs") / name) for name in ("00001-7.png", "00002-8.png")]
    assert capsys.readouterr() == ("".join(f"{path}\n" for path in paths), "")
    assert files(tmp_path) == ["00001-7.png", "00002-8.png"]
    assert pixels(paths[0]).shape == (64, 64, 3)


@pytest.mark.usefixtures("backend")
def test_same_seed_same_bytes_in_a_new_file_and_other_seeds_differ() -> None:
    for seed in ("7", "7", "8"):
        assert main(["generate", PROMPT, "--seed", seed, *NATIVE]) == 0
    first, again, other = (
        Path("outputs", name).read_bytes() for name in ("00001-7.png", "00002-7.png", "00003-8.png")
    )
    assert first == again
    assert not np.array_equal(pixels("outputs/00001-7.png"), pixels("outputs/00003-8.png"))
    assert first != other


@pytest.mark.usefixtures("backend")
def test_a_deterministic_batch_equals_single_images_byte_for_byte() -> None:
    assert main(["generate", PROMPT, "--n", "3", "--out", "batch", "--deterministic", *NATIVE]) == 0
    for seed in range(3):
        assert (
            main(["generate", PROMPT, "--seed", str(seed), "--out", "single", "--deterministic", *NATIVE])
            == 0
        )
        name = f"{seed + 1:05d}-{seed}.png"
        assert Path("batch", name).read_bytes() == Path("single", name).read_bytes()


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("image_format", containers.FORMATS)
def test_file_holds_infotext_and_record(image_format: str, capsys: Output) -> None:
    arguments = [
        "--negative",
        "blue, dark",
        "--steps",
        "3",
        "--guidance",
        "2.5",
        "--solver",
        "euler",
        *NATIVE,
    ]
    assert main(["generate", PROMPT, *arguments, "--format", image_format, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    path = Path(printed["path"])
    assert path == Path("outputs", f"00001-0.{image_format}")
    with Image.open(path) as image:
        found = containers.decode(image)
    assert found.record is not None
    assert found.parameters is not None
    assert found.record.items() <= printed.items()
    assert {"path", "timings"} <= printed.keys() - found.record.keys()
    text = infotext.read(found.parameters)
    assert (text.prompt, text.negative_prompt) == (PROMPT, "blue, dark")
    expected = {"Steps": "3", "Sampler": "Euler", "CFG scale": "2.5", "Seed": "0", "Size": "64x64"}
    assert expected.items() <= text.fields.items()


@pytest.mark.usefixtures("backend")
def test_image_to_image_and_inpainting(tmp_path: Path) -> None:
    start = picture(tmp_path / "start.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert main(["generate", PROMPT, "--image", str(start), *NATIVE]) == 0
    assert main(["generate", PROMPT, "--image", str(start), "--mask", "mask.png", *NATIVE]) == 0
    _, painted = (Path("outputs", name) for name in files(tmp_path))
    np.testing.assert_array_equal(pixels(painted)[:, :32], pixels(start)[:, :32])
    assert not np.array_equal(pixels(painted)[:, 32:], pixels(start)[:, 32:])
    with Image.open("outputs/00001-0.png") as image:
        record = containers.decode(image).record
    assert record is not None
    assert record["task"] == "img2img"
    assert record["strength"] == 0.75
    assert len(record["init_image_hash"]) == 64


@pytest.mark.usefixtures("backend")
def test_upscale_auto_without_the_packages_draws_and_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setattr(upscale, "available", list)
    assert main(["generate", PROMPT, "--n", "2"]) == 0
    seen = capsys.readouterr()
    assert seen.err.count("not upscaled") == 1
    assert "pip install" in seen.err
    assert pixels(seen.out.splitlines()[0]).shape == (64, 64, 3)
    assert main(["generate", PROMPT, "--upscale", "anime"]) == 5


@pytest.mark.usefixtures("backend")
def test_upscaled_image_says_by_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def four_times(image: Any, name: str, **_: object) -> upscale.Upscaled:
        return upscale.Upscaled(image.repeat(4, 0).repeat(4, 1), "animevideo")

    monkeypatch.setattr(upscale, "upscale", four_times)
    assert main(["generate", PROMPT]) == 0
    with Image.open("outputs/00001-0.png") as image:
        assert image.size == (256, 256)
        text = infotext.read(containers.decode(image).parameters or "")
    assert text.fields["Size"] == "64x64"
    assert text.fields["Postprocess upscaler"] == "realesr-animevideov3-x4"


@pytest.mark.usefixtures("backend")
def test_a_prompt_too_long_is_cut_and_the_file_says_so(capsys: Output) -> None:
    assert main(["generate", " ".join(["red"] * 20 + ["zebra"]), "--json", *NATIVE]) == 0
    seen = capsys.readouterr()
    assert "warning: prompt longer than the encoder takes (16 tokens)" in seen.err
    assert "zebra" in seen.err
    with Image.open("outputs/00001-0.png") as image:
        record = containers.decode(image).record
    assert record is not None
    assert record["warnings"] == json.loads(seen.out)["warnings"] != []


REFUSED = [
    (["--steps", "0"], 2, "steps is 0: at least one step is needed, give --steps 1 or more"),
    (["--guidance", "nan"], 2, "guidance is nan"),
    (["--guidance-rescale", "nan"], 2, "guidance rescale is nan"),
    (["--size", "60x64"], 2, "width is 60: give --size in multiples of 8 pixels"),
    (["--size", "64x6400"], 2, "height is 6400: give --size from 32 to 256 pixels"),
    (["--size", "large"], 2, "--size is 'large': give width and height in pixels, such as 128x128"),
    (["--n", "0"], 2, "n is 0"),
    (["--seed", "-1"], 2, "seed is -1"),
    (["--solver", "ddin"], 2, "ddim"),
    (["--format", "pgn"], 2, "--format is 'pgn': did you mean png?"),
    (["--engine", "cuda"], 2, "--engine is 'cuda': give one of auto, openvino, torch"),
    (["--upscale", "huge"], 2, "upscaler 'huge' is not known"),
    (["--strength", "0.5"], 2, "strength is given without an image"),
    (["--mask", "mask.png"], 2, "mask is given without an image"),
    (["--image", "start.png", "--mask", "small.png"], 2, "mask is 32x32 and image is 64x64"),
    (["--image", "start.png", "--strength", "1.5"], 2, "strength is 1.5"),
    (["--image", "nothing.png"], 6, "nothing.png: no such file"),
    (["--image", "text.png"], 6, "text.png: not an image"),
    (["--image", "cut.png"], 6, "cut.png: damaged or cut off"),
    (["--image", "bomb.png"], 6, "bomb.png: too many pixels"),
    (["--out", "text.png"], 7, "text.png: no images can be written here"),
    (["--out", "text.png/sub"], 7, "choose another folder with --out"),
]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED)
def test_bad_input_is_one_line_and_draws_nothing(
    arguments: list[str], code: int, message: str, bomb: bytes, tmp_path: Path, capsys: Output
) -> None:
    picture(tmp_path / "start.png")
    picture(tmp_path / "mask.png")
    picture(tmp_path / "small.png", (32, 32))
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    (tmp_path / "cut.png").write_bytes((tmp_path / "start.png").read_bytes()[:2000])
    (tmp_path / "bomb.png").write_bytes(bomb)
    assert main(["generate", PROMPT, *NATIVE, *arguments]) == code
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("fewstep: error: ")
    assert message in seen.err
    assert seen.err.count("\n") == 1
    assert files(tmp_path) == []


@pytest.mark.usefixtures("backend")
def test_a_prompt_that_is_not_text_is_refused(capsys: Output) -> None:
    assert main(["generate", "caf\udce9"]) == 2
    assert "PROMPT is not valid text" in capsys.readouterr().err


@pytest.mark.usefixtures("backend")
def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fewstep.checkpoint.atomic.os.write", full)
    code = main(["generate", PROMPT, *NATIVE])
    monkeypatch.undo()
    assert code == 7
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/*")) + list(tmp_path.glob("outputs/.*"))


def test_ctrl_c_stops_after_the_step_and_leaves_no_file(
    backend: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    plain = backend.denoise

    def interrupted(*arguments: Any) -> Any:
        if backend.calls == 1:
            signal.raise_signal(signal.SIGINT)
        return plain(*arguments)

    monkeypatch.setattr(backend, "denoise", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main(["generate", PROMPT, *NATIVE]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert backend.calls == 2  # the step that was running was finished
    seen = capsys.readouterr()
    assert seen.err.startswith("fewstep: cancelled")
    assert seen.err.count("\n") == 1
    assert not list(tmp_path.glob("outputs/*")) + list(tmp_path.glob("outputs/.*"))


def test_a_second_ctrl_c_stops_at_once(
    backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on after the second interrupt")

    monkeypatch.setattr(backend, "denoise", interrupted)
    assert main(["generate", PROMPT, *NATIVE]) == 130
    assert capsys.readouterr().err == "fewstep: cancelled\n"


def test_a_model_that_gives_nan_is_an_error_and_not_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    engine = Engine(backend=FakeBackend(poison_after=2))
    monkeypatch.setattr(generate, "open_engine", lambda *arguments: engine)
    assert main(["generate", PROMPT, *NATIVE, "--out", str(tmp_path / "outputs")]) == 9
    assert "not finite" in capsys.readouterr().err
    assert files(tmp_path) == []


@pytest.fixture
def one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the model ``mine``, a pipeline folder, is there."""
    monkeypatch.setattr(registry, "bundled_folder", lambda: tmp_path / "none")
    monkeypatch.setattr(registry, "user_folder", lambda: tmp_path / "none")
    monkeypatch.setenv("FEWSTEP_MODELS", str(tmp_path / "models"))
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model_index.json").write_text("{}", encoding="utf-8")


@pytest.mark.usefixtures("one_model")
@pytest.mark.parametrize("name", ["yours", "../models/mine", "models/mine", "C:\\mine"])
def test_a_missing_model_lists_what_there_is_and_a_path_is_no_name(name: str, capsys: Output) -> None:
    assert main(["generate", PROMPT, "--model", name]) == 4
    err = capsys.readouterr().err
    assert "there are: mine" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("one_model")
def test_an_engine_never_runs_what_it_cannot(capsys: Output) -> None:
    assert main(["generate", PROMPT, "--model", "mine", "--engine", "openvino"]) == 2
    assert "fewstep export" in capsys.readouterr().err


@pytest.mark.usefixtures("one_model")
def test_models_lists_name_kind_and_origin(tmp_path: Path, capsys: Output) -> None:
    assert main(["models", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["name"], model["kind"], model["origin"]) == ("mine", "pipeline", "FEWSTEP_MODELS")
    assert model["default"] is True
    assert main(["models"]) == 0
    assert "mine" in capsys.readouterr().out.splitlines()[1]


def test_drawing_imports_neither_torch_nor_what_costs_start_up_time(tmp_path: Path) -> None:
    code = (
        "import sys; from fewstep.cli import generate; from fewstep.cli.main import main;"
        "from fewstep.engine.engine import Engine;"
        "generate.open_engine = lambda *arguments: Engine(None, 'fake');"
        "code = main(['generate', 'a red apple', '--upscale', 'none']);"
        "heavy = {'torch', 'diffusers', 'transformers', 'pydantic', 'rich', 'yaml', 'scipy'};"
        "found = heavy & set(sys.modules);"
        "sys.exit(code or ', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(Path("outputs", "00001-0.png"))
