"""Class-conditional models: DiT against diffusers' pipeline, and what a class may be called."""

import contextlib
import json
from unittest import mock

import numpy as np
import pytest
import torch

from fewstep.cli.main import main
from fewstep.diffusion.noise import image_noise
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, UsageError
from fewstep.models import families

SIDE, SEED, STEPS = 64, 7, 5
LABELS = {"0": "tench, Tinca tinca", "3": "tabby cat", "10": "crane (bird)"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        norm_num_groups=4, sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8), norm_num_groups=2, latent_channels=4, mid_block_add_attention=False,
        sample_size=SIDE,
    )  # fmt: skip
    for module in (transformer, vae):
        for parameter in module.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for table in (m for m in transformer.modules() if isinstance(m, torch.nn.Embedding)):
        torch.nn.init.normal_(table.weight)  # classes as different as texts are
    with torch.no_grad():
        made = transformer(torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.tensor([3])).sample
        transformer.proj_out_2.weight /= made.std()
        transformer.proj_out_2.bias /= made.std()
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    out = tmp_path_factory.mktemp("dit") / "model"
    diffusers.DiTPipeline(transformer.eval(), vae, scheduler).save_pretrained(out)
    index = json.loads((out / "model_index.json").read_text())  # which diffusers saves without the names
    (out / "model_index.json").write_text(json.dumps({**index, "id2label": LABELS}))
    return out


@pytest.fixture(scope="module")
def engine(folder):
    made = Engine(folder, "torch", threads=1)
    yield made
    made.close()


def draw(engine, prompt, **given):
    settings = {"seed": SEED, "num_inference_steps": STEPS, "solver": "ddim", "guidance_scale": 3.0}
    request = resolve(engine.info, prompt=prompt, **(settings | given))
    seen = []
    decode = engine.backend.decode
    with mock.patch.object(engine.backend, "decode", lambda x: seen.append(x.copy()) or decode(x)):
        engine.generate(request)
    return seen[0]


@contextlib.contextmanager
def our_noise():
    noise = torch.from_numpy(image_noise(SEED, (4, SIDE // 8, SIDE // 8)))[None]
    with mock.patch("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda *_, **__: noise.clone()):
        yield


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_picture_is_that_of_diffusers(folder, engine, guidance):
    import diffusers

    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    decode = pipe.vae.decode

    def watch(latents, *arguments, **named):
        seen.append(latents * pipe.vae.config.scaling_factor)
        return decode(latents, *arguments, **named)

    with our_noise(), torch.no_grad(), mock.patch.object(pipe.vae, "decode", watch):
        pipe([3], guidance_scale=guidance, num_inference_steps=STEPS)
    ours = draw(engine, "Tabby cat", guidance_scale=guidance)
    # Guidance from a time with little signal makes large latents of random weights: a share of them.
    assert np.abs(ours - seen[0].numpy()).max() < 1e-5 * ours.std()
    assert np.abs(ours - draw(engine, "10", guidance_scale=guidance)).max() > 0.05 * ours.std()


def test_names_and_numbers(engine):
    by_number = draw(engine, "0")
    for name in ("tench", " Tinca Tinca "):
        np.testing.assert_array_equal(draw(engine, name), by_number)
    assert not np.array_equal(draw(engine, ""), by_number)  # no class at all
    assert not np.array_equal(draw(engine, "0", negative_prompt="3"), by_number)
    changes = draw(engine, "[tench:tabby cat:0.5]")
    assert not np.array_equal(changes, by_number) and not np.array_equal(changes, draw(engine, "3"))
    assert engine.info.classes["tinca tinca"] == 0 and engine.info.classes["999"] == 999


@pytest.mark.parametrize("prompt", ["dog", "1000", "-1", "(tench:1.2)", "tench BREAK 3", "tench, tabby cat"])
def test_what_is_no_class_is_refused_in_one_line(prompt, engine):
    with pytest.raises(UsageError, match="give a number from 0 to 999 or one of 4 names, such as") as caught:
        resolve(engine.info, prompt=prompt)
    assert "\n" not in str(caught.value)


def test_the_command_line(folder, engine, tmp_path, monkeypatch, capsys):
    from fewstep.cli import generate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "open_engine", lambda *_, **__: engine)
    options = ["--steps", "2", "--upscale", "none", "--json"]
    assert main(["generate", "", "--class", "tench", *options]) == 0
    assert main(["generate", "0", *options]) == 0
    by_name, by_number = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (by_name["prompt"], by_number["prompt"]) == ("tench", "0")
    from PIL import Image

    pictures = [np.asarray(Image.open(record["path"])) for record in (by_name, by_number)]
    np.testing.assert_array_equal(*pictures)
    assert main(["generate", "a dog", "--class", "3", *options]) == 2
    assert "--class is '3' and the prompt is 'a dog': give one of them" in capsys.readouterr().err


def test_a_model_of_texts_has_no_classes(tmp_path, monkeypatch, capsys):
    from fewstep.cli import generate
    from fewstep.engine.backends.fake import FakeBackend

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "open_engine", lambda *_, **__: Engine(backend=FakeBackend()))
    assert main(["generate", "", "--class", "3"]) == 2
    assert "--class is '3': fake draws a text, leave --class out" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [["tench"], {"0": 5}, {"x": "tench"}, {"-1": "tench"}, "tench"])
def test_broken_names_are_refused(labels, folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "id2label": labels}))
    with pytest.raises(CheckpointError, match="id2label"):
        families.read_index(tmp_path)


def test_published_folders_name_an_older_class(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    index["transformer"][1] = "Transformer2DModel"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert families.read_index(tmp_path).classes["transformer"] == "DiTTransformer2DModel"
