"""The same latents as diffusers, whatever a model lies in: one file, a denoiser on a base, an adapter."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint import conversion
from fewstep.engine.adapters import AdapterUse
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.models import clip_tokenizer
from fewstep.models.source import ModelSource

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import families_drawing as drawing
import tiny_files as tiny
from families_builder import PIPELINES, Case, _scheduler, _settle, build, quiet, stir

LARGEST = 1e-4
SEEN = 1e-2

FILES = (
    Case("sd1", "txt2img"),
    Case("sd2", "txt2img"),
    Case("sdxl", "txt2img"),
    Case("sd3", "txt2img", parts="no-t5"),
)
BARE = tuple(Case(f, "txt2img") for f in ("sd1", "sd2", "sdxl", "sd3", "pixart-alpha", "pixart-sigma"))


def _clip(width: int, act: str, projection: bool, layers: int = 2) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=clip_tokenizer.SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        max_position_embeddings=clip_tokenizer.LENGTH,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
    )
    made = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    stir(made)
    return made.eval()


def _vae(family: str) -> Any:
    from diffusers import AutoencoderKL

    with_quant = family != "sd3"
    scale, shift = {"sdxl": (0.13025, None), "sd3": (1.5305, 0.0609)}.get(family, (0.18215, None))
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=2,
        latent_channels=16 if family == "sd3" else 4,
        use_quant_conv=with_quant,
        use_post_quant_conv=with_quant,
        scaling_factor=scale,
        shift_factor=shift,
    )
    stir(vae)
    return vae.eval()


def _denoiser(family: str) -> Any:
    if family == "sd3":
        from diffusers import SD3Transformer2DModel

        network: Any = SD3Transformer2DModel(
            num_layers=2,
            attention_head_dim=64,
            num_attention_heads=2,
            caption_projection_dim=128,
            joint_attention_dim=192,
            pooled_projection_dim=192,
            pos_embed_max_size=8,
            sample_size=128,
        )
        given = {
            "hidden_states": torch.randn(1, 16, 8, 8),
            "timestep": torch.tensor([500.0]),
            "encoder_hidden_states": torch.randn(1, 9, 192),
            "pooled_projections": torch.randn(1, 192),
        }
        _settle(network, network.proj_out, lambda: network(**given).sample)
        return network
    network = tiny.unet(family)
    width = 128 if family == "sdxl" else 64
    added = {"text_embeds": torch.randn(1, 64), "time_ids": torch.ones(1, 6)} if family == "sdxl" else None
    _settle(
        network,
        network.conv_out,
        lambda: (
            network(
                torch.randn(1, 4, 8, 8),
                torch.tensor([500]),
                torch.randn(1, 9, width),
                added_cond_kwargs=added,
            ).sample
        ),
    )
    return network


def whole(case: Case, folder: Path) -> Path:
    """A pipeline folder with CLIP's own vocabulary, in shapes that a single file's keys can tell."""
    import diffusers

    torch.manual_seed(0)
    family = case.family
    end, first = clip_tokenizer.END, clip_tokenizer.FIRST
    parts: dict[str, Any] = {"vae": _vae(family), "scheduler": _scheduler(case)}
    parts["transformer" if family == "sd3" else "unet"] = _denoiser(family)
    if family in ("sd1", "sd2"):
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        parts["text_encoder"] = (
            _clip(64, "quick_gelu", False) if family == "sd1" else _clip(64, "gelu", False, layers=23)
        )
        parts["tokenizer"] = clip_tokenizer.tokenizer(end if family == "sd1" else first)
    else:
        parts["text_encoder"] = _clip(64, "quick_gelu", family == "sd3")
        parts["text_encoder_2"] = _clip(128 if family == "sd3" else 64, "gelu", True)
        parts |= {"tokenizer": clip_tokenizer.tokenizer(end), "tokenizer_2": clip_tokenizer.tokenizer(first)}
    if family == "sd3":
        parts |= {"text_encoder_3": None, "tokenizer_3": None}
    if family == "sdxl":
        parts["add_watermarker"] = False
    kind = "sd" if family in ("sd1", "sd2") else family
    with quiet():
        getattr(diffusers, PIPELINES[kind, case.mode])(**parts).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_a_single_file_draws_what_diffusers_draws_of_the_folder(case: Case, tmp_path: Path) -> None:
    """Nothing but the file is there: the tokenizer is the package's, configs and schedule the family's."""
    folder = whole(case, tmp_path / "folder")
    file = tmp_path / "alone" / "model.safetensors"
    conversion.convert(folder, file, conversion.Options())
    ours = drawing.draw_ours(folder, case, model=file)
    theirs = drawing.draw_theirs(folder, case)
    assert theirs.std() > 0.1
    assert np.abs(ours - theirs).max() <= LARGEST
    # and the folder, through the other reader, gives the same bits
    assert np.array_equal(ours, drawing.draw_ours(folder, case))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def get(case: Case) -> Path:
        if case.name not in made:
            made[case.name] = build(case, tmp_path_factory.mktemp("base") / case.name)
        return made[case.name]

    return get


def other_denoiser(folder: Path, out: Path) -> tuple[Path, Path]:
    """A file with other weights for a folder's denoiser, and a copy of the folder that has them."""
    copy = Path(shutil.copytree(folder, out / "copy"))
    part = copy / ("unet" if (copy / "unet").is_dir() else "transformer")
    file = next(part.glob("*.safetensors"))
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: value + 0.1 * value.std() * torch.randn(value.shape, generator=generator)
        if value.ndim > 1
        else value
        for name, value in tensors.items()
    }
    save_file(changed, file, {"format": "pt"})
    return Path(shutil.copy(file, out / "denoiser.safetensors")), copy


@pytest.mark.parametrize("case", BARE, ids=lambda case: case.name)
def test_a_denoiser_on_a_base_draws_as_diffusers_does(case: Case, folders: Any, tmp_path: Path) -> None:
    base = folders(case)
    file, copy = other_denoiser(base, tmp_path)
    theirs = drawing.draw_theirs(copy, case)
    assert np.abs(theirs - drawing.draw_ours(base, case)).max() > SEEN
    for own in (file, copy / file.parent.name, copy):
        if own.exists():
            ours = drawing.draw_ours(base, case, model=ModelSource(base=base, denoiser=own))
            # other weights than the settled ones make larger latents
            assert np.abs(ours - theirs).max() <= LARGEST * max(1.0, float(theirs.std()))


def adapter(folder: Path, path: Path, seed: int = 0) -> Path:
    """A LoRA of the attention of a folder's denoiser, in diffusers' names, large enough to be seen."""
    part = "unet" if (folder / "unet").is_dir() else "transformer"
    weights = load_file(next((folder / part).glob("*.safetensors")))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in weights.items():
        if name.endswith(("to_q.weight", "to_v.weight")) and value.ndim == 2:
            layer = f"{part}.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(2, value.shape[1], generator=generator)
            tensors[f"{layer}.lora_B.weight"] = 0.3 * torch.randn(value.shape[0], 2, generator=generator)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_an_adapter_draws_as_diffusers_does(family: str, folders: Any, tmp_path: Path) -> None:
    case = Case(family, "txt2img", parts="no-t5" if family == "sd3" else "")
    folder = folders(case)
    file = adapter(folder, tmp_path / "loras" / "style.safetensors")

    def load(pipe: Any) -> None:
        pipe.load_lora_weights(file.parent, weight_name=file.name)
        pipe.fuse_lora(lora_scale=0.7)

    use = AdapterUse(name="style", weight=0.7)
    ours = drawing.draw_ours(folder, case, loras=[file.parent], adapters=[use])
    theirs = drawing.draw_theirs(folder, case, change=load)
    assert np.abs(ours - theirs).max() <= LARGEST
    assert np.abs(ours - drawing.draw_ours(folder, case)).max() > SEEN


@pytest.mark.parametrize("kind", ["file", "folder", "pipeline"])
def test_an_autoencoder_of_its_own_decodes_as_diffusers_does(kind: str, folders: Any, tmp_path: Path) -> None:
    from fewstep.models import load

    case = Case("sdxl", "txt2img")
    base = folders(case)
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    file = next((copy / "vae").glob("*.safetensors"))
    changed = {name: value * 1.1 for name, value in load_file(file).items()}
    save_file(changed, file, {"format": "pt"})
    vae = {"file": file, "folder": copy / "vae", "pipeline": copy}[kind]
    engine = Engine(ModelSource(base=base, vae=vae), "torch", threads=1)
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    auto = load.autoencoder(copy / "vae")
    with torch.no_grad():
        expected = auto.decode(torch.from_numpy(latents) / auto.config.scaling_factor).sample.numpy()
    np.testing.assert_allclose(engine.backend.decode(latents), expected, atol=1e-5)
    assert engine.info.parts["vae"]["name"] == {"file": "diffusion_pytorch_model", "folder": "vae"}.get(
        kind, "copy"
    )
    engine.close()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_taesd_decodes_and_encodes_as_diffusers_does(kind: str, folders: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny_auto = AutoencoderTiny(latent_channels=4)
    tiny_auto.save_pretrained(tmp_path / "taesd")
    path = tmp_path / "taesd"
    if kind == "file":
        path = path / "diffusion_pytorch_model.safetensors"
    engine = Engine(ModelSource(base=folders(Case("sd1", "txt2img")), vae=path), "torch", threads=1)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, 4, 8, 8), dtype=np.float32)
    pixels = rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    with torch.no_grad():
        decoded = tiny_auto.decode(torch.from_numpy(latents)).sample.numpy()
        encoded = tiny_auto.encode(torch.from_numpy(pixels)).latents.numpy()
    np.testing.assert_allclose(engine.backend.decode(latents), decoded, atol=1e-5)
    np.testing.assert_allclose(engine.backend.encode_image(pixels), encoded, atol=1e-5)
    result = engine.generate(
        resolve(engine.info, prompt="a red apple", num_inference_steps=2, width=64, height=64)
    )
    assert result.record["parts"]["vae"]["name"] == path.stem
    engine.close()
