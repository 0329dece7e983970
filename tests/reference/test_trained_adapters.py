"""What `fewstep train lora`, `embedding` and `dreambooth` leave, opened by plain diffusers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families_builder
import numpy as np
import pytest
import torch
from families_builder import Case
from PIL import Image

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import check_fits, read_adapter
from fewstep.cli.main import main
from fewstep.models import adapters, lora_apply
from fewstep.models.adapters import LoraSpec
from fewstep.training import adapter_products, checkpointing
from fewstep.training.adapter_base import TaughtDenoiser, open_base
from fewstep.training.adapter_run import prepare
from fewstep.training.adapter_sections import Base
from fewstep.training.adapter_task import ROLE
from fewstep.training.recipe import parse_recipe

SIZE = 64


@dataclass(frozen=True)
class Trained:
    """A tiny Stable Diffusion 1 and what was trained on it."""

    base: Path
    pictures: Path
    out: dict[str, Path]
    runs: Path


def make_pictures(folder: Path, count: int = 4) -> Path:
    folder.mkdir()
    for i in range(count):
        array = np.full((SIZE, SIZE + 8 * i, 3), 250, np.uint8)
        array[8 * i : 8 * i + 24, 10:40] = (200, 40 * i, 60)
        Image.fromarray(array).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"apple {i}, red, on blue")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    base = families_builder.build(Case("sd1", "txt2img", scheduler="ddim"), root / "sd1")
    pictures = make_pictures(root / "pictures")
    out = {
        "lora": root / "red-one.safetensors",
        "embedding": root / "word-one.safetensors",
        "dreambooth": root / "all-one",
    }
    for kind, path in out.items():
        settings = [
            *("samples.num_inference_steps=2", "data.batch_size=2", "runtime.threads=1"),
            *("optimiser.learning_rate=0.02", "samples.every_images=4", "runtime.prefetch=0"),
            *("samples.prompts=[zzqx on blue, red zzqx]", f"pictures.width={SIZE // 2}"),
            *(f"pictures.height={SIZE // 2}", "runtime.device=cpu"),
        ]
        if kind == "lora":
            settings += ["lora.text_encoder=true", "licence=CC-BY-4.0"]
        if kind == "dreambooth":
            settings += ["prior={prompt: an apple, images: 2}", "samples.prompts=[]"]
        arguments = [item for setting in settings for item in ("--set", setting)]
        arguments += ["--model", str(base), "--images", "4", "--out", str(path), "--quiet"]
        arguments += ["--trigger", "zzqx", "--run", str(root / "runs" / kind)]
        assert main(["train", kind, str(pictures), *arguments]) == 0
    return Trained(base, pictures, out, root / "runs")


def pipeline(base: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    call = {"num_inference_steps": 2, "width": SIZE, "height": SIZE, "output_type": "np"}
    picture: np.ndarray = pipe("zzqx, apple", generator=generator, **call).images
    return picture


def test_a_lora_has_one_effect_in_diffusers_in_kohya_names_and_here(trained: Trained, tmp_path: Path) -> None:
    run = trained.runs / "lora"
    facts = json.loads((run / adapter_products.FACTS).read_text())
    state = safetensors.load_torch(checkpointing.weights(run, ROLE))
    header = dict(facts["header"])
    adapter_products.write_lora(tmp_path / "other.safetensors", state, facts, header, style="diffusers")
    drawn, weights = [], []
    for path in (trained.out["lora"], tmp_path / "other.safetensors"):
        pipe = pipeline(trained.base)
        pipe.load_lora_weights(str(path))
        drawn.append(pixels(pipe))
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        weights.append({"unet": pipe.unet.state_dict(), "text_encoder": pipe.text_encoder.state_dict()})
    plain = pipeline(trained.base)
    plain_state = {"unet": plain.unet.state_dict(), "text_encoder": plain.text_encoder.state_dict()}
    assert np.abs(drawn[0] - pixels(plain)).max() > 1e-3  # it does something
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-5)

    model = open_base(Base(path=str(trained.base)))
    for part, network in (("unet", model.network), ("text_encoder", model.text.encoders[0])):
        own = {n.removeprefix(f"{part}."): value for n, value in state.items() if n.startswith(f"{part}.")}
        adapters.load_adapter(network, own, LoraSpec(rank=16, alpha=facts["alpha"]))
        adapters.merge(network)
        for name, value in network.state_dict().items():
            for theirs in weights:
                torch.testing.assert_close(theirs[part][name], value, atol=1e-6, rtol=1e-6)
        assert not all(torch.equal(plain_state[part][n], v) for n, v in network.state_dict().items())


def test_a_lora_file_says_what_it_is(trained: Trained) -> None:
    path = trained.out["lora"]
    stored, header = safetensors.load_torch(path), safetensors.read_metadata(path)
    alphas = [value for name, value in stored.items() if name.endswith(".alpha")]
    assert alphas and all(float(value) == 16.0 for value in alphas)
    assert len(alphas) == sum(name.endswith(".lora_down.weight") for name in stored)
    assert {name.partition("_down_blocks")[0].partition("_text_model")[0] for name in stored} >= {
        "lora_unet",
        "lora_te",
    }
    assert header["modelspec.license"] == "CC-BY-4.0"
    assert header["ss_network_dim"] == "16" and float(header["ss_network_alpha"]) == 16.0
    assert header["ss_new_sd_model_hash"] == safetensors.folder_hash(trained.base)
    assert header["ss_output_name"] == header["modelspec.title"] == "red-one"
    assert header["modelspec.trigger_phrase"] == "zzqx"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert header["ss_base_model_version"] == "sd_v1"
    tags = json.loads(header["ss_tag_frequency"])["red-one"]
    assert tags["zzqx"] == tags["red"] == tags["on blue"] == 4 and tags["apple 0"] == 1
    adapter = read_adapter(path)
    model = open_base(Base(path=str(trained.base)))
    modules = {"unet": model.network, "text_encoder": model.text.encoders[0]}
    assert check_fits(adapter, lora_apply.shapes(modules)) == []


def test_sample_grids_have_a_column_for_every_strength(trained: Trained) -> None:
    (grid,) = sorted((trained.runs / "lora" / "samples").glob("*.png"))
    with Image.open(grid) as opened:
        # two prompts in rows, strengths 0, 0.5 and 1 in columns, margins of 2
        side = SIZE // 2
        assert opened.size == (3 * (side + 2) + 2, 2 * (side + 2) + 2)
        sheet = np.asarray(opened).astype(int)
    columns = [sheet[:, 2 + i * (side + 2) : 2 + i * (side + 2) + side] for i in range(3)]
    assert 0 < np.abs(columns[1] - columns[0]).max()
    assert 0 < np.abs(columns[2] - columns[1]).max()


def test_a_word_is_read_by_diffusers_and_means_the_same(trained: Trained) -> None:
    path = trained.out["embedding"]
    stored = safetensors.load_torch(path)
    assert {name: tuple(value.shape) for name, value in stored.items()} == {"emb_params": (4, 16)}
    assert (
        safetensors.read_metadata(path)["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    )
    pipe = pipeline(trained.base)
    pipe.load_textual_inversion(str(path), token="zzqx")  # noqa: S106 (a word)
    prompts = ["a zzqx, red", "red zzqx"]
    theirs, _ = pipe.encode_prompt(prompts, "cpu", 1, False)

    recipe = parse_recipe((trained.runs / "embedding" / "recipe.yaml").read_text())
    prepared = prepare(recipe, trained.runs / "embedding")
    word = prepared.task.roles[ROLE].weights
    checkpointing.copy_into(word, {"encoder_0": stored["emb_params"]}, path)
    ours = prepared.task.model.encode_text(prompts)["tokens"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    start = prepared.task.model.text.encoders[0].get_input_embeddings().known.weight
    assert (stored["emb_params"][:, None] - start[None]).abs().sum(-1).min() > 1e-3  # it was learnt


def test_dreambooth_leaves_a_folder_that_diffusers_opens(trained: Trained) -> None:
    out = trained.out["dreambooth"]
    assert len(list((trained.runs / "dreambooth").glob("class-*/*.png"))) == 2
    theirs, base = pipeline(out), pipeline(trained.base)
    state = safetensors.load_torch(checkpointing.weights(trained.runs / "dreambooth", ROLE))
    for name, value in theirs.unet.state_dict().items():
        assert torch.equal(value, state[name])
    assert not torch.equal(theirs.unet.conv_in.weight, base.unet.conv_in.weight)
    assert torch.equal(
        theirs.text_encoder.get_input_embeddings().weight, base.text_encoder.get_input_embeddings().weight
    )
    assert open_base(Base(path=str(out))).contract == open_base(Base(path=str(trained.base))).contract


FAMILIES = [
    Case("sd2", "txt2img"),
    Case("sdxl", "txt2img"),
    Case("sd3", "txt2img"),
    Case("sd3", "txt2img", parts="no-t5"),
    Case("pixart-alpha", "txt2img"),
    Case("pixart-sigma", "txt2img"),
]


def recipe_for(base: Path, pictures: Path, kind: str, *settings: str) -> Any:
    text = f"""
    kind: {kind}
    name: other
    base: {{path: {base}}}
    data: {{source: folder, path: {pictures}, batch_size: 2}}
    pictures: {{mirror: true, width: {SIZE}, height: {SIZE}, trigger: zzqx}}
    stop: {{images: 4}}
    runtime: {{threads: 1, device: cpu, prefetch: 0}}
    """
    return parse_recipe(text, settings)


def part_of_a_step(prepared: Any) -> tuple[torch.Tensor, Any]:
    """Losses of two pictures, with gradients; two draws so that the caption is there."""
    from fewstep.training.feed import collate

    task, rng = prepared.task, np.random.default_rng(1)
    samples = [task.draw(prepared.pictures.batch(np.array([i]), rng), rng) for i in range(2)]
    batch = {
        name: torch.from_numpy(value) if value.dtype != np.float64 else value
        for name, value in collate(samples).items()
    }
    role = task.roles[ROLE]
    role.module.train()
    losses, _ = task.loss(ROLE, batch, {ROLE: role.module}, {}, 0)
    losses.sum().backward()
    return losses, role


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.name)
def test_every_family_can_be_taught_a_lora(case: Case, trained: Trained, tmp_path: Path) -> None:
    base = families_builder.build(case, tmp_path / "base")
    text = case.family in ("sd2", "sdxl", "sd3") and not case.parts
    recipe = recipe_for(
        base,
        trained.pictures,
        "lora",
        f"lora={{rank: 2, text_encoder: {str(text).lower()}}}",
        "objective.caption_dropout=0",
        "runtime.gradient_checkpointing=true",
    )
    prepared = prepare(recipe, tmp_path / "run")
    losses, role = part_of_a_step(prepared)
    assert losses.shape == (2,) and losses.isfinite().all()
    state = role.weights.state_dict()
    moved = [name for name, p in role.weights.named_parameters() if p.grad is not None and p.grad.any()]
    # B starts at zero, so only its gradients are not
    assert {name.split(".")[0] for name in moved} == {name.split(".")[0] for name in state}
    facts = json.loads((tmp_path / "run" / adapter_products.FACTS).read_text())
    torch.manual_seed(0)
    state = {name: torch.randn_like(value) for name, value in state.items()}
    path = tmp_path / "other.safetensors"
    adapter_products.write_lora(path, state, facts, facts["header"])
    model = open_base(Base(path=str(base)))
    modules = {model.part: model.network}
    if text:
        modules |= dict(zip(model.opened.text_parts, model.text.encoders, strict=True))
    assert check_fits(read_adapter(path), lora_apply.shapes(modules)) == []


def test_sdxl_is_told_size_and_crop_and_learns_a_word_in_both_encoders(
    trained: Trained, tmp_path: Path
) -> None:
    base = families_builder.build(Case("sdxl", "txt2img"), tmp_path / "base")
    recipe = recipe_for(base, trained.pictures, "textual_inversion", "vectors=2")
    prepared = prepare(recipe, tmp_path / "run")
    # picture 3 is 88 x 64, cut to 64 x 64 in the middle
    sample = prepared.pictures.batch(np.array([3]), np.random.default_rng(0))
    assert sample["time_ids"].tolist() == [[64, 88, 0, 12, 64, 64]]
    _, role = part_of_a_step(prepared)
    assert {name: tuple(p.shape) for name, p in role.weights.named_parameters()} == {
        "encoder_0": (2, 16),
        "encoder_1": (2, 24),
    }
    assert all(p.grad is not None and p.grad.any() for p in role.weights.parameters())
    model = prepared.task.model
    ids = model.tokens(["red zzqx"])
    assert sorted(ids["ids_0"][ids["ids_0"] < 0].tolist()) == [-2, -1]


def test_the_base_is_called_as_drawing_calls_it(trained: Trained, tmp_path: Path) -> None:
    """The denoiser under training gives what the torch engine's backend gives, text encoding included."""
    from fewstep.engine import text as engine_text
    from fewstep.engine.backends.torch import TorchBackend

    for case in (Case("sdxl", "txt2img"), Case("pixart-alpha", "txt2img")):
        base = families_builder.build(case, tmp_path / case.name)
        backend = TorchBackend(base, threads=1)
        prompts = {engine_text.NEGATIVE: "", engine_text.PROMPT: "Red apple"}
        conditions, _ = engine_text.embed(backend, engine_text.tokenizers(backend.info), prompts)
        x = np.random.default_rng(0).standard_normal((2, backend.info.latent_channels, 8, 8), np.float32)
        t = np.array([500.0, 500.0], np.float32)
        expected = backend.denoise(x, t, conditions)
        model = open_base(Base(path=str(base)))
        denoiser = TaughtDenoiser(model, live=False).eval()
        given = model.encode_text(["", "Red apple"])
        if model.sized:
            given["time_ids"] = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, 6)
        with torch.no_grad():
            found = denoiser(torch.from_numpy(x), torch.from_numpy(t), given)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-4, rtol=1e-4)


def test_a_student_is_taught_at_its_own_times(trained: Trained, tmp_path: Path) -> None:
    import dataclasses
    import shutil

    from fewstep.models import load

    base = tmp_path / "base"
    shutil.copytree(trained.base, base)
    model = open_base(Base(path=str(base)))
    contract = dataclasses.replace(
        model.contract, guidance="off", guidance_scale=1.0, num_inference_steps=2, allowed_steps=(1, 2),
        spacing="trailing", solver="ddim", method="lightning",
    )  # fmt: skip
    with torch.no_grad():
        model.network.conv_in.weight.add_(1.0)
    load.save_student(base, "two", model.network, contract, half=False)
    recipe = recipe_for(base, trained.pictures, "lora", "base.student=two", "lora.rank=2")
    prepared = prepare(recipe, tmp_path / "run")
    student = prepared.task.model
    assert torch.equal(student.network.conv_in.weight, model.network.conv_in.weight)
    facts = json.loads((tmp_path / "run" / adapter_products.FACTS).read_text())
    assert facts["header"]["ss_new_sd_model_hash"] == safetensors.folder_hash(base / "students" / "two")
    rng = np.random.default_rng(0)
    sample = prepared.pictures.batch(np.array([0]), rng)
    assert {float(prepared.task.draw(sample, rng)["t"][0]) for _ in range(40)} == {499.0, 999.0}
    losses, _ = part_of_a_step(prepared)
    assert losses.isfinite().all()


def test_the_memory_estimate_counts_weights_and_what_backward_needs(trained: Trained, tmp_path: Path) -> None:
    from fewstep.training import adapter_memory

    found = {}
    for checkpointing_on in (False, True):
        recipe = recipe_for(
            trained.base,
            trained.pictures,
            "lora",
            f"runtime.gradient_checkpointing={str(checkpointing_on).lower()}",
            "lora.rank=2",
            "ema={}",
        )
        prepared = prepare(recipe, tmp_path / str(checkpointing_on))
        prepared.task.roles[ROLE].module.train()
        found[checkpointing_on] = adapter_memory.estimate(prepared.task, prepared.pictures)
    network = open_base(Base(path=str(trained.base))).network
    plain = sum(p.nbytes for p in network.parameters())
    own = sum(p.nbytes for p in prepared.task.roles[ROLE].weights.parameters())
    assert found[False].networks == found[True].networks == plain + own
    assert found[False].optimiser == 4 * own  # gradients, two averages of AdamW, and that of the weights
    assert 0 < found[True].activations < found[False].activations
