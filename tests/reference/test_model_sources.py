"""What a model may be put together from, what is refused and how it is said, and what is recognised."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint.tensorfile import TensorFile
from fewstep.cli import main as cli
from fewstep.diffusion.published import find
from fewstep.engine import registry
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.models import model_parts, opening, overlays
from fewstep.models.source import ModelSource

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import tiny_files as tiny
from families_builder import Case, build

LIGHTNING = "sdxl_lightning_4step_unet"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {f: build(Case(f, "txt2img"), place / f) for f in ("sd1", "sdxl", "pixart-alpha")}


def unet_of(folder: Path, out: Path) -> Path:
    return Path(shutil.copy(next((folder / "unet").glob("*.safetensors")), out))


def test_a_published_denoiser_is_drawn_as_its_authors_mean_it(bases: dict[str, Path], tmp_path: Path) -> None:
    """By its name alone: four steps of Euler at trailing times, without guidance."""
    file = unet_of(bases["sdxl"], tmp_path / f"{LIGHTNING}.safetensors")
    source = ModelSource(base=bases["sdxl"], denoiser=file)
    engine = Engine(source, "torch", threads=1)
    assert (
        engine.info.name == LIGHTNING and engine.info.contract == find("sdxl-lightning-4step-unet").contract
    )
    seen: list[float] = []
    denoise = engine.backend.denoise

    def watch(x: Any, t: Any, *rest: Any) -> Any:
        seen.extend(t.tolist())
        return denoise(x, t, *rest)

    engine.backend.denoise = watch  # type: ignore[method-assign]
    result = engine.generate(resolve(engine.info, prompt="a red apple", width=64, height=64))
    assert seen == [999, 749, 499, 249]
    record = result.record
    assert (record["num_inference_steps"], record["solver"], record["guidance_scale"]) == (4, "euler", 1.0)
    assert record["parts"]["unet"]["name"] == LIGHTNING
    engine.close()


def test_by_another_name_it_is_any_model_of_the_family(bases: dict[str, Path], tmp_path: Path) -> None:
    file = unet_of(bases["sdxl"], tmp_path / "mine.safetensors")
    opened = opening.open_model(ModelSource(base=bases["sdxl"], denoiser=file))
    plain = opening.open_model(ModelSource(base=bases["sdxl"]))
    assert opened.contract == plain.contract and opened.contract.method == "base"
    assert opened.hash != plain.hash and opened.notes == ()


def test_a_name_of_another_family_is_said_and_not_followed(bases: dict[str, Path], tmp_path: Path) -> None:
    file = unet_of(bases["sd1"], tmp_path / f"{LIGHTNING}.safetensors")
    engine = Engine(ModelSource(base=bases["sd1"], denoiser=file), "torch", threads=1)
    assert engine.info.contract.method == "base"
    request = resolve(engine.info, prompt="a", width=64, height=64)
    assert any("recognised" in warning and "made for sdxl" in warning for warning in request.warnings)
    engine.close()


def test_a_name_that_contradicts_itself_is_said(bases: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(next((bases["sdxl"] / "unet").glob("*.safetensors")))
    file = tmp_path / f"{LIGHTNING}.safetensors"
    save_file(tensors, file, {"modelspec.title": "sdxl_lightning_8step_unet"})
    opened = opening.open_model(ModelSource(base=bases["sdxl"], denoiser=file))
    assert opened.contract.method == "base"
    assert "different checkpoints" in opened.notes[0]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("lora", r"an adapter; give a model, and this file's name with --lora"),
        ("vae", r"an autoencoder alone; .* --vae"),
        ("unet", r"a denoiser alone; .* --unet"),
        ("pixart", r"a denoiser alone; .* --unet"),
        ("no-clip", r"holds no text_encoder; give a pipeline folder of Stable Diffusion 1"),
        ("vocabulary", r"knows 99 tokens, and CLIP's vocabulary has 49408"),
        ("no-vae", r"holds no autoencoder; give one of its family with --vae"),
        ("pickle", r"a pickle checkpoint.*fewstep convert --allow-pickle"),
        ("missing", r"no such file"),
    ],
)
def test_files_that_are_no_model_are_refused_with_what_to_do(
    kind: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "lora":
        save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 8)}, path)
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04" + bytes(100))
    elif kind == "pixart":
        tiny.save(path, "pixart-alpha")
    elif kind != "missing":
        only = {
            "vae": ["vae"],
            "unet": ["unet"],
            "no-clip": ["unet", "vae"],
            "no-vae": ["unet", "text_encoder"],
        }
        if kind in ("vae",):
            save_file(tiny.state(tiny.networks("sd1")["vae"]), path)
        else:
            tiny.save(path, "sd1", only.get(kind))
    if kind == "no-vae":
        monkeypatch.setattr("fewstep.models.clip_tokenizer.SIZE", 99)
    error = NotFoundError if kind == "missing" else CheckpointError
    with pytest.raises(error, match=words) as caught:
        opening.open_model(ModelSource(base=path))
    assert "\n" not in str(caught.value)


def test_t5_needs_a_folder(tmp_path: Path) -> None:
    """SD3 draws without; PixArt has no other reader of text."""
    path = tiny.save(tmp_path / "model.safetensors", "pixart-sigma")
    with pytest.raises(CheckpointError, match="--unet"):
        opening.open_model(ModelSource(base=path))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("denoiser", "is of the family sd1, not sdxl"),
        ("lora", "holds no unet of Stable Diffusion XL, but an adapter"),
        ("vae", "has 16 latent channels, and sdxl has 4"),
        ("text", "its denoiser has cross_attention_dim 64, and the base's has 16; give a denoiser of Stable"),
        ("narrow", r"part\.safetensors: the U-Net takes 112 numbers .* the parts are of different models"),
    ],
)
def test_parts_of_other_models_are_refused(
    part: str, words: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "part.safetensors"
    given: dict[str, Path] = {"vae": path} if part == "vae" else {"denoiser": path}
    if part == "denoiser":
        unet_of(bases["sd1"], path)
    elif part == "lora":
        save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 8)}, path)
    elif part == "vae":
        save_file(tiny.state(tiny.networks("sd3")["vae"]), path)
    else:
        save_file(tiny.state(tiny.networks("sd1" if part == "text" else "sdxl")["unet"]), path)
    with pytest.raises(CheckpointError, match=words):
        opening.open_model(ModelSource(base=bases["sd1" if part == "text" else "sdxl"], **given))


def test_networks_have_no_memory_before_their_tensors_come(tmp_path: Path) -> None:
    """So that there is never a second copy; buffers, which no file has, are there."""
    path = tiny.save(tmp_path / "model.safetensors", "sd3")
    for name, part in overlays.detect(path).parts.items():
        network = model_parts.empty(part.class_name, part.config)
        assert all(value.is_meta for value in network.parameters()), name
        assert not any(value.is_meta for value in network.buffers()), name
    other = torch.nn.Linear(2, 2)
    assert not other.weight.is_meta


def test_a_bundle_takes_no_parts(tmp_path: Path) -> None:
    base = registry.find("emoji-128").folder
    with pytest.raises(UsageError, match="a runtime bundle, whose parts cannot be changed"):
        Engine(ModelSource(base=base, vae=tmp_path), "auto")


# --- the registry and the command line ---------------------------------------------------------------------


@pytest.fixture
def models(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "models"
    place.mkdir()
    monkeypatch.setattr(registry, "user_folder", lambda: tmp_path / "user")
    monkeypatch.setenv("FEWSTEP_MODELS", str(place))
    shutil.copytree(bases["sdxl"], place / "base-xl")
    tiny.save(place / "one.safetensors", "sd1")
    unet_of(bases["sdxl"], place / f"{LIGHTNING}.safetensors")
    save_file(tiny.state(tiny.networks("sd1")["vae"]), place / "some-vae.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 8)}, place / "style.safetensors")
    (place / "broken.safetensors").write_bytes(b"{}")
    return place


def test_single_files_are_models_and_others_are_what_they_are(models: Path) -> None:
    found = {entry.name: entry.kind for entry in registry.models()}
    assert found == {"base-xl": "pipeline", "one": "checkpoint", "emoji-128": "bundle"}
    assert registry.find("one").folder == models / "one.safetensors"
    assert registry.find_for("torch", "one").kind == "checkpoint"
    others = {other.name: other.what for other in registry.others()}
    assert others == {
        LIGHTNING: "denoiser", "some-vae": "vae", "style": "lora", "broken": "unknown"
    }  # fmt: skip
    for name in (LIGHTNING, "style", "../models/one", str(models / "one.safetensors"), "one.safetensors"):
        with pytest.raises(NotFoundError):
            registry.find(name)


def test_only_headers_are_read_and_only_of_files_that_may_be_meant(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = TensorFile.__init__

    def watch(self: TensorFile, path: Any) -> None:
        opened.append(Path(path).name)
        plain(self, path)

    monkeypatch.setattr(TensorFile, "__init__", watch)
    monkeypatch.setattr(TensorFile, "read", lambda *arguments: pytest.fail("a tensor was read"))
    assert registry.find().name == "emoji-128" and registry.find("base-xl").kind == "pipeline"
    assert opened == []
    registry.find("one")
    assert opened == ["one.safetensors"]
    registry.models()
    registry.others()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_models_are_listed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models", "list", "--json")
    found = json.loads(out)
    assert code == 0 and {one["kind"] for one in found["others"]} == {"denoiser", "vae", "lora", "unknown"}
    assert "one" in {one["name"] for one in found["models"]}
    code, out, _ = run(capsys, "models")
    assert any(line.split()[:3] == ["-", "style", "lora"] for line in out.splitlines())
    code, _, err = run(capsys, "models", "delete")
    assert code == 2 and "ACTION is 'delete'" in err


def test_the_command_line_takes_paths_by_options_of_their_own(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    unet = str(models / f"{LIGHTNING}.safetensors")
    code, said, err = run(
        capsys, "generate", "a red apple", "--model", "base-xl", "--unet", unet, "--size", "64x64",
        "--out", out, "--json", "--upscale", "none", "--steps", "30",
    )  # fmt: skip
    assert code == 0, err
    record = json.loads(said)
    assert record["model"] == LIGHTNING and record["num_inference_steps"] == 4
    assert "30 steps on SDXL-Lightning" in err and "--insist keeps 30" in err
    code, _, err = run(capsys, "generate", "a", "--model", str(models / "base-xl"), "--out", out)
    assert code == 4 and "a model is named, not given as a path" in err
    code, _, err = run(capsys, "generate", "a", "--model", "one", "--checkpoint", unet, "--out", out)
    assert code == 2 and "give one of them" in err
    code, _, err = run(capsys, "generate", "a", "--checkpoint", unet, "--out", out)
    assert code == 3 and "a denoiser alone" in err
    code, _, err = run(capsys, "generate", "a", "--unet", str(tmp_path / "none"), "--out", out)
    assert code == 4 and "--unet is" in err


def test_adapters_on_the_command_line(
    bases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    (tmp_path / "loras").mkdir()
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)}
    save_file(tensors, tmp_path / "loras" / "ink.safetensors")
    common = [
        "generate", "a red apple", "--checkpoint", str(bases["sd1"]), "--loras-dir", str(tmp_path / "loras"),
        "--size", "64x64", "--steps", "2", "--out", str(tmp_path / "out"), "--json", "--upscale", "none",
    ]  # fmt: skip
    code, said, err = run(capsys, *common, "--lora", "ink:0.5")
    assert code == 0, err
    record = json.loads(said)
    ((one),) = record["adapters"]
    assert (one["name"], one["weight"], one["text_weight"]) == ("ink", 0.5, 0.5)
    from PIL import Image

    with Image.open(record["path"]) as picture:
        assert f'Lora hashes: "ink: {one["hash"]}"' in picture.info["parameters"]
    code, _, err = run(capsys, *common, "--lora", "../loras/ink")
    assert code == 2 and "there are: ink" in err


def test_a_bundle_refuses_adapters_and_says_what_takes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"unet.x.lora_A.weight": torch.ones(2, 8)}, tmp_path / "ink.safetensors")
    code, _, err = run(
        capsys, "generate", "a", "--lora", "ink", "--loras-dir", str(tmp_path), "--out", str(tmp_path / "o")
    )  # fmt: skip
    assert (
        code == 2 and "adapter 'ink': a runtime bundle takes no adapters" in err and "--engine torch" in err
    )
