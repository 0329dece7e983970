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

from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.models.source import ModelSource

sys.path.append(str(Path(__file__).parent))
import families_drawing as drawing
import families_formats as formats
from families_builder import Case, build
from families_formats import BARE, FILES, LORAS, other_denoiser

LARGEST = 1e-4
SEEN = 1e-2


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_a_single_file_draws_what_diffusers_draws_of_the_folder(case: Case, tmp_path: Path) -> None:
    """Nothing but the file is there: the tokenizer is the package's, configs and schedule the family's."""
    ours, theirs, folder = formats.draw(case, "file", tmp_path)
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


@pytest.mark.parametrize("case", LORAS, ids=lambda case: case.name)
def test_an_adapter_draws_as_diffusers_does(case: Case, tmp_path: Path) -> None:
    ours, theirs, folder = formats.draw(case, "lora", tmp_path)
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
