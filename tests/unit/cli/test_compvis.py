"""``fewstep txt2img`` and ``img2img`` on the fake backend: every option of CompVis' scripts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import compvis
from fewstep.cli.main import main
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest, GenerateResult
from fewstep.prompt import containers, infotext

Output = pytest.CaptureFixture[str]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
TEXT = Path("outputs/txt2img-samples")
CHANGED = Path("outputs/img2img-samples")


class Watched(Engine):
    """Remembers what was asked for."""

    def __init__(self, backend: FakeBackend) -> None:
        super().__init__(backend=backend)
        self.requests: list[GenerateRequest] = []

    def generate(self, request: GenerateRequest, *arguments: Any, **named: Any) -> GenerateResult:
        self.requests.append(request)
        return super().generate(request, *arguments, **named)


def install(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Watched:
    engine = Watched(backend)
    monkeypatch.setattr(compvis, "open_engine", lambda ckpt: engine)
    return engine


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    """A model of 64x64 pixels, 5 steps, guidance 2, DDIM."""
    monkeypatch.chdir(tmp_path)
    return install(FakeBackend(students={"four": (4,)}), monkeypatch)


@pytest.fixture
def stable_diffusion(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    monkeypatch.chdir(tmp_path)
    backend = FakeBackend()
    contract = dataclasses.replace(
        backend.info.contract, base_family="sd15", native_sizes=((512, 512),), solver="plms"
    )
    backend.info = dataclasses.replace(
        backend.info, contract=contract, native_size=(512, 512), max_size=2048, name="sd15"
    )
    return install(backend, monkeypatch)


def pixels(path: str | Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def record(path: str | Path) -> dict[str, Any]:
    with Image.open(path) as image:
        found = containers.decode(image).record
    assert found is not None
    return found


def picture(path: Path, size: tuple[int, int] = (64, 64)) -> str:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def seeds(engine: Watched) -> list[int]:
    return [request.seed + index for request in engine.requests for index in range(request.n)]


# --- txt2img ---


def test_without_options_two_iterations_of_three_images_and_a_grid(engine: Watched, capsys: Output) -> None:
    assert main(["txt2img"]) == 0
    assert names(TEXT) == ["grid-0000.png", "samples"]
    samples = [f"{number:05d}.png" for number in range(6)]
    assert names(TEXT / "samples") == samples
    seen = capsys.readouterr()
    paths = [*(TEXT / "samples" / name for name in samples), TEXT / "grid-0000.png"]
    assert seen.out == "".join(f"{path}\n" for path in paths)
    assert seen.err == (
        "fewstep: not given, so taken from fake: --W 64, --H 64, --ddim_steps 5, --scale 2, sampler ddim\n"
    )
    assert seeds(engine) == [42, 43, 44, 45, 46, 47]
    assert [request.n for request in engine.requests] == [3, 3]
    assert pixels(paths[-1]).shape == (2 * 66 + 2, 3 * 66 + 2, 3)


@pytest.mark.usefixtures("engine")
def test_prompt_and_metadata_of_every_file_and_of_the_grid() -> None:
    assert main(["txt2img", "--prompt", "a red apple, on a plate", "--seed", "7", "--n_iter", "1"]) == 0
    for index in range(3):
        path = TEXT / "samples" / f"{index:05d}.png"
        with Image.open(path) as image:
            found = containers.decode(image)
        assert found.record is not None
        assert found.record["seed"] == 7 + index
        assert found.record["task"] == "txt2img"
        assert "n" not in found.record
        text = infotext.read(found.parameters or "")
        assert text.prompt == "a red apple, on a plate"
        assert {"Seed": str(7 + index), "Steps": "5", "Sampler": "DDIM"}.items() <= text.fields.items()
    first, grid = record(TEXT / "samples" / "00000.png"), record(TEXT / "grid-0000.png")
    assert grid.pop("grid") == {"images": 3, "columns": 3, "seeds": [7, 8, 9]}
    assert grid == first


@pytest.mark.usefixtures("engine")
def test_an_image_of_a_run_is_the_one_that_generate_draws_from_its_seed(
    engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fewstep.cli import generate

    monkeypatch.setattr(generate, "open_engine", lambda *arguments: engine)
    assert main(["txt2img", "--prompt", "a red apple", "--n_iter", "2", "--n_samples", "1"]) == 0
    assert main(["generate", "a red apple", "--seed", "43", "--upscale", "none", "--quiet"]) == 0
    np.testing.assert_array_equal(pixels(TEXT / "samples" / "00001.png"), pixels("outputs/00001-43.png"))


@pytest.mark.usefixtures("engine")
def test_outdir() -> None:
    assert main(["txt2img", "--outdir", "there/now", "--n_iter", "1"]) == 0
    assert names(Path("there/now")) == ["grid-0000.png", "samples"]


@pytest.mark.usefixtures("engine")
def test_skip_grid() -> None:
    assert main(["txt2img", "--skip_grid", "--n_iter", "1"]) == 0
    assert names(TEXT) == ["samples"]
    assert len(names(TEXT / "samples")) == 3


@pytest.mark.usefixtures("engine")
def test_skip_save() -> None:
    assert main(["txt2img", "--skip_save", "--n_iter", "1"]) == 0
    assert names(TEXT) == ["grid-0000.png", "samples"]
    assert names(TEXT / "samples") == []


@pytest.mark.parametrize("option", ["--ddim_steps", "--steps"])
def test_ddim_steps(option: str, engine: Watched) -> None:
    assert main(["txt2img", option, "3", "--n_iter", "1"]) == 0
    assert engine.requests[0].num_inference_steps == 3


@pytest.mark.parametrize(
    ("arguments", "solver"),
    [
        ([], "ddim"),
        (["--plms"], "plms"),
        (["--dpm_solver"], "dpmpp_2m"),
        (["--plms", "--dpm_solver"], "dpmpp_2m"),
    ],
)
def test_plms_and_dpm_solver(arguments: list[str], solver: str, engine: Watched) -> None:
    assert main(["txt2img", "--n_iter", "1", *arguments]) == 0
    assert engine.requests[0].solver == solver


def test_fixed_code_uses_the_same_noise_in_every_iteration(engine: Watched) -> None:
    assert main(["txt2img", "--fixed_code", "--n_samples", "2", "--n_iter", "3"]) == 0
    assert seeds(engine) == [42, 43] * 3
    drawn = [pixels(TEXT / "samples" / f"{number:05d}.png") for number in range(6)]
    np.testing.assert_array_equal(drawn[0], drawn[2])
    np.testing.assert_array_equal(drawn[1], drawn[5])
    assert not np.array_equal(drawn[0], drawn[1])
    assert record(TEXT / "samples" / "00005.png")["seed"] == 43


def test_fixed_code_uses_the_same_noise_in_every_batch_of_prompts(engine: Watched) -> None:
    Path("prompts.txt").write_text("a red dog\na blue dog\na green dog\n", encoding="utf-8")
    arguments = ["txt2img", "--from-file", "prompts.txt", "--n_samples", "2", "--n_iter", "2"]
    assert main([*arguments, "--fixed_code"]) == 0
    assert seeds(engine) == [42, 43, 42] * 2
    engine.requests.clear()
    assert main(arguments) == 0
    assert seeds(engine) == [42, 43, 44, 45, 46, 47]


def test_ddim_eta(engine: Watched) -> None:
    assert main(["txt2img", "--ddim_eta", "0.5", "--n_iter", "1"]) == 0
    assert engine.requests[0].eta == 0.5
    assert record(TEXT / "samples" / "00000.png")["eta"] == 0.5
    assert main(["txt2img", "--ddim_eta", "0", "--plms", "--n_iter", "1"]) == 0


def test_n_iter_and_n_samples(engine: Watched) -> None:
    assert main(["txt2img", "--n_iter", "3", "--n_samples", "2"]) == 0
    assert [request.n for request in engine.requests] == [2, 2, 2]


def test_height_and_width(engine: Watched) -> None:
    assert main(["txt2img", "--H", "32", "--W", "96", "--n_iter", "1"]) == 0
    assert pixels(TEXT / "samples" / "00000.png").shape == (32, 96, 3)
    assert (engine.requests[0].width, engine.requests[0].height) == (96, 32)


def test_height_alone_leaves_the_width_to_the_model(engine: Watched, capsys: Output) -> None:
    assert main(["txt2img", "--H", "32", "--n_iter", "1"]) == 0
    assert (engine.requests[0].width, engine.requests[0].height) == (64, 32)
    assert "taken from fake: --W 64, --ddim_steps" in capsys.readouterr().err


@pytest.mark.usefixtures("engine")
def test_n_rows_is_the_number_of_columns() -> None:
    assert main(["txt2img", "--n_rows", "4", "--n_iter", "2"]) == 0
    assert pixels(TEXT / "grid-0000.png").shape == (2 * 66 + 2, 4 * 66 + 2, 3)


@pytest.mark.parametrize(("scale", "rows"), [("1.0", 2), ("1.5", 4)])
def test_scale_of_exactly_1_skips_the_pass_without_prompt(
    scale: str, rows: int, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    plain = engine.backend.denoise

    def counted(x: Any, *arguments: Any) -> Any:
        seen.add(len(x))
        return plain(x, *arguments)

    monkeypatch.setattr(engine.backend, "denoise", counted)
    assert main(["txt2img", "--scale", scale, "--n_samples", "2", "--n_iter", "1"]) == 0
    assert engine.requests[0].guidance_scale == float(scale)
    assert seen == {rows}


@pytest.mark.parametrize("option", ["--from-file", "--from_file"])
def test_from_file_draws_every_line_once_in_an_iteration_and_a_short_last_batch_works(
    option: str, engine: Watched
) -> None:
    Path("prompts.txt").write_bytes("\ufeffa red dog\r\n\r\na blue dog\r\na green dög\r\n".encode())
    assert main(["txt2img", option, "prompts.txt", "--n_samples", "2", "--n_iter", "2"]) == 0
    lines = ["a red dog", "a blue dog", "a green dög"]
    assert [(request.prompt, request.n) for request in engine.requests] == [(line, 1) for line in lines * 2]
    assert [record(TEXT / "samples" / name)["prompt"] for name in names(TEXT / "samples")] == lines * 2
    assert pixels(TEXT / "grid-0000.png").shape == (3 * 66 + 2, 2 * 66 + 2, 3)


def test_seed(engine: Watched) -> None:
    assert main(["txt2img", "--seed", "100", "--n_iter", "1"]) == 0
    assert seeds(engine) == [100, 101, 102]


@pytest.mark.usefixtures("engine")
def test_the_same_options_give_the_same_bytes() -> None:
    for folder in ("one", "two"):
        assert main(["txt2img", "--outdir", folder]) == 0
    for name in ("samples/00004.png", "grid-0000.png"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_precision_full_says_when_the_model_has_none(
    engine: Watched, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    for has, said in (("int8", 1), ("float32", 0)):
        monkeypatch.setattr(engine.backend, "describe", lambda student, has=has: {"precision": has})
        assert main(["txt2img", "--precision", "full"]) == 0
        assert (
            capsys.readouterr().err.count("--precision full has no effect: this model runs in int8") == said
        )
    monkeypatch.setattr(engine.backend, "describe", lambda student: {"precision": "int8"})
    assert main(["txt2img", "--precision", "autocast"]) == 0
    assert "precision" not in capsys.readouterr().err


@pytest.mark.usefixtures("engine")
def test_c_and_f_and_config_that_are_the_models_change_nothing() -> None:
    Path("v.yaml").write_text("model: {params: {parameterization: v, channels: 4}}", encoding="utf-8")
    arguments = ["txt2img", "--n_iter", "1"]
    assert main([*arguments, "--outdir", "a"]) == 0
    assert main([*arguments, "--outdir", "b", "--C", "4", "--f", "8", "--config", "v.yaml"]) == 0
    assert Path("a/samples/00002.png").read_bytes() == Path("b/samples/00002.png").read_bytes()


@pytest.mark.usefixtures("engine")
def test_quiet(capsys: Output) -> None:
    assert main(["txt2img", "--quiet", "--n_iter", "1", "--H", "32", "--precision", "full"]) == 0
    assert capsys.readouterr().err == ""


def test_an_empty_prompt_is_one(engine: Watched) -> None:
    assert main(["txt2img", "--prompt", "", "--n_iter", "1"]) == 0
    assert engine.requests[0].prompt == ""


def test_progress_counts_the_steps_of_all_images(engine: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    labels: list[str] = []

    @contextlib.contextmanager
    def watched(label: str, *, quiet: bool = False) -> Iterator[Any]:
        labels.append(label)
        yield lambda done, total: seen.append((done, total))

    monkeypatch.setattr(compvis, "progress", watched)
    assert main(["txt2img", "--n_samples", "2", "--n_iter", "2", "--ddim_steps", "3"]) == 0
    assert labels == ["4 images, step"]
    assert seen == [(2, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]


# --- whose defaults, and who draws ---


def test_stable_diffusion_takes_the_scripts_defaults(stable_diffusion: Watched, capsys: Output) -> None:
    assert main(["txt2img", "--n_iter", "1", "--n_samples", "1"]) == 0
    (request,) = stable_diffusion.requests
    assert (request.width, request.height, request.num_inference_steps) == (512, 512, 50)
    assert (request.guidance_scale, request.solver, request.eta) == (7.5, "ddim", None)
    assert (
        "taken from CompVis' script: --W 512, --H 512, --ddim_steps 50, --scale 7.5"
        in capsys.readouterr().err
    )


def test_a_distilled_stable_diffusion_keeps_its_own(stable_diffusion: Watched) -> None:
    backend: Any = stable_diffusion.backend
    contract = dataclasses.replace(
        backend.info.contract,
        method="lcm",
        solver="lcm",
        num_inference_steps=4,
        guidance="off",
        guidance_scale=1.0,
    )
    backend.info = dataclasses.replace(backend.info, contract=contract)
    assert main(["txt2img", "--n_iter", "1", "--n_samples", "1"]) == 0
    (request,) = stable_diffusion.requests
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (4, 1.0, "lcm")


@pytest.mark.parametrize(
    ("arguments", "student"),
    [
        ([], None),
        (["--ddim_steps", "4"], "four"),
        (["--ddim_steps", "4", "--plms"], None),
        (["--ddim_steps", "4", "--ddim_eta", "0"], None),
        (["--ddim_steps", "4", "--scale", "3"], None),
        (["--ddim_steps", "4", "--student", "none"], None),
        (["--student", "four"], "four"),
    ],
)
def test_student(arguments: list[str], student: str | None, engine: Watched, capsys: Output) -> None:
    assert main(["txt2img", "--n_iter", "1", *arguments]) == 0
    assert engine.requests[0].student == student
    err = capsys.readouterr().err
    assert ("taken from student four of fake" in err) == (student is not None)
    assert ("drawn by student four" in err) == (student is not None and "--student" not in arguments)


# --- img2img ---


def test_img2img_defaults_and_metadata(engine: Watched, tmp_path: Path, capsys: Output) -> None:
    start = picture(tmp_path / "start.png")
    assert main(["img2img", "--init-img", start, "--prompt", "a blue dog"]) == 0
    assert seeds(engine) == [42, 43]
    assert names(CHANGED) == ["grid-0000.png", "samples"]
    assert names(CHANGED / "samples") == ["00000.png", "00001.png"]
    found = record(CHANGED / "samples" / "00001.png")
    assert (found["task"], found["strength"], found["seed"]) == ("img2img", 0.75, 43)
    assert len(found["init_image_hash"]) == 64
    assert capsys.readouterr().err == (
        "fewstep: not given, so taken from fake: --ddim_steps 5, --scale 2, sampler ddim\n"
    )


def test_img2img_of_stable_diffusion_takes_the_scripts_defaults(
    stable_diffusion: Watched, tmp_path: Path
) -> None:
    start = picture(tmp_path / "start.png", (130, 100))
    assert main(["img2img", "--init_img", start, "--n_samples", "1"]) == 0
    (request,) = stable_diffusion.requests
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (50, 5.0, "ddim")
    assert (request.width, request.height) == (128, 96)


def test_img2img_shrinks_the_image_to_the_models_multiple(
    engine: Watched, tmp_path: Path, capsys: Output
) -> None:
    start = picture(tmp_path / "start.png", (70, 50))
    assert main(["img2img", "--init-img", start]) == 0
    assert (engine.requests[0].width, engine.requests[0].height) == (64, 48)
    assert pixels(CHANGED / "samples" / "00000.png").shape == (48, 64, 3)
    assert "image resized from 70x50 to 64x48" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", [["--plms"], ["--dpm_solver"], ["--ddim_eta", "1"]])
def test_img2img_with_every_sampler(sampler: list[str], engine: Watched, tmp_path: Path) -> None:
    start = picture(tmp_path / "start.png")
    assert main(["img2img", "--init-img", start, *sampler]) == 0
    expected = {"--plms": "plms", "--dpm_solver": "dpmpp_2m", "--ddim_eta": "ddim"}
    assert engine.requests[0].solver == expected[sampler[0]]


def test_img2img_fixed_code(engine: Watched, tmp_path: Path) -> None:
    start = picture(tmp_path / "start.png")
    assert main(["img2img", "--init-img", start, "--fixed_code", "--n_iter", "2"]) == 0
    assert seeds(engine) == [42, 43, 42, 43]


@pytest.mark.parametrize(
    ("strength", "steps", "drawn"),
    [("0.2", 4, 1), ("0", 5, 1), ("0.01", 49, 1), ("0.5", 4, 2), ("0.99", 4, 3), ("1", 4, 4)],
)
def test_strength_draws_its_share_of_the_steps_and_at_least_one(
    strength: str, steps: int, drawn: int, engine: Watched, tmp_path: Path, capsys: Output
) -> None:
    start = picture(tmp_path / "start.png")
    arguments = ["--strength", strength, "--ddim_steps", str(steps), "--n_samples", "1", "--scale", "1"]
    assert main(["img2img", "--init-img", start, *arguments]) == 0
    backend: Any = engine.backend
    assert backend.calls == drawn
    said = f"--strength {strength} of {steps} steps is less than one: 1 step is drawn"
    assert (said in capsys.readouterr().err) == (int(float(strength) * steps) == 0)
