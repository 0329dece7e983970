"""ControlNets and T2I-adapters against diffusers' pipelines, on small random networks."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from fewstep.diffusion.noise import image_noise
from fewstep.engine.control import ControlUse

sys.path.append(str(Path(__file__).parent))
from families_builder import SIDE, Case, build, quiet, stir
from families_drawing import GUIDANCE, PROMPT, SEED, STEPS, draw_ours, picture, shared_noise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
]

CLOSE = 1e-4
SD1 = Case("sd1", "txt2img", scheduler="ddim")
SDXL = Case("sdxl", "txt2img", scheduler="euler-trailing")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Family -> (pipeline folder, its U-Net); Stable Diffusion's blocks in the order that adapters need."""
    root = tmp_path_factory.mktemp("controlled")
    found = {}
    for case in (SD1, SDXL):
        folder = build(case, root / case.family)
        torch.manual_seed(1)
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
        if case is SD1:
            # An adapter adds before a block's downsampling, which plain blocks have no place for.
            config = dict(unet.config) | {
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            }
            unet = diffusers.UNet2DConditionModel.from_config(config)
            stir(unet, gain=0.5)
            unet.save_pretrained(folder / "unet")
        found[case.family] = (folder, unet)
    return found


@pytest.fixture(scope="module")
def networks(models, tmp_path_factory):
    """Name -> folder of a control network."""
    root = tmp_path_factory.mktemp("control")
    torch.manual_seed(2)
    for name, family in (("edges", "sd1"), ("lines", "sd1"), ("large", "sdxl")):
        net = diffusers.ControlNetModel.from_unet(
            models[family][1], conditioning_embedding_out_channels=(8, 8, 8, 8)
        )
        stir(net, gain=0.5)
        net.save_pretrained(root / name)
    for name, channels in (("sketch", 1), ("colour", 3)):
        adapter = diffusers.T2IAdapter(
            in_channels=channels, channels=[8, 16], num_res_blocks=1, downscale_factor=8,
            adapter_type="full_adapter",
        )  # fmt: skip
        stir(adapter)
        adapter.save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


def controlled(folder, case, pipeline, further, **given):
    """The latents of a diffusers pipeline with control networks."""
    cls = getattr(diffusers, pipeline)
    with quiet():
        pipe = cls.from_pretrained(folder, **further)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(image_noise(SEED, (4, SIDE // 8, SIDE // 8)))[None]
    settings = {
        "prompt": PROMPT, "negative_prompt": case.negative, "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE, "output_type": "latent", "height": SIDE, "width": SIDE,
        "latents": noise.clone(),
    }  # fmt: skip
    with quiet(), shared_noise(cls, noise), torch.no_grad():
        return pipe(**(settings | given)).images.float().numpy()


def pil(array):
    from PIL import Image

    return Image.fromarray(array)


def other_picture():
    return np.ascontiguousarray(picture()[::-1, :, ::-1])


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_controlnet(models, networks, scale):
    folder, _ = models["sd1"]
    plain = draw_ours(folder, SD1)
    ours = draw_ours(
        folder, SD1, control=[ControlUse(folder=networks["edges"], image=picture(), scale=scale)]
    )
    net = diffusers.ControlNetModel.from_pretrained(networks["edges"])
    theirs = controlled(
        folder, SD1, "StableDiffusionControlNetPipeline", {"controlnet": net, "safety_checker": None},
        image=pil(picture()), controlnet_conditioning_scale=scale,
    )  # fmt: skip
    assert np.abs(ours - theirs).max() < CLOSE
    assert np.abs(ours - plain).max() > 100 * CLOSE


def test_two_controlnets_add_up(models, networks):
    folder, _ = models["sd1"]
    uses = [
        ControlUse(folder=networks["edges"], image=picture(), scale=0.5),
        ControlUse(folder=networks["lines"], image=other_picture(), scale=0.8),
    ]
    nets = [diffusers.ControlNetModel.from_pretrained(use.folder) for use in uses]
    theirs = controlled(
        folder, SD1, "StableDiffusionControlNetPipeline", {"controlnet": nets, "safety_checker": None},
        image=[pil(use.image) for use in uses], controlnet_conditioning_scale=[use.scale for use in uses],
    )  # fmt: skip
    assert np.abs(draw_ours(folder, SD1, control=uses) - theirs).max() < CLOSE


def test_controlnet_of_sdxl(models, networks):
    folder, _ = models["sdxl"]
    net = diffusers.ControlNetModel.from_pretrained(networks["large"])
    theirs = controlled(
        folder, SDXL, "StableDiffusionXLControlNetPipeline", {"controlnet": net, "add_watermarker": False},
        image=pil(picture()), controlnet_conditioning_scale=0.7,
    )  # fmt: skip
    use = ControlUse(folder=networks["large"], image=picture(), scale=0.7)
    assert np.abs(draw_ours(folder, SDXL, control=[use]) - theirs).max() < CLOSE


@pytest.mark.parametrize(("name", "scale"), [("colour", 1.0), ("colour", 0.3), ("sketch", 0.8)])
def test_adapter(models, networks, name, scale):
    folder, _ = models["sd1"]
    adapter = diffusers.T2IAdapter.from_pretrained(networks[name])
    shown = pil(picture()).convert("L") if name == "sketch" else pil(picture())
    theirs = controlled(
        folder, SD1, "StableDiffusionAdapterPipeline", {"adapter": adapter, "safety_checker": None},
        image=shown, adapter_conditioning_scale=scale,
    )  # fmt: skip
    # PIL rounds grey to whole levels.
    grey = np.asarray(shown.convert("RGB"))
    ours = draw_ours(folder, SD1, control=[ControlUse(folder=networks[name], image=grey, scale=scale)])
    assert np.abs(ours - theirs).max() < CLOSE
    assert np.abs(ours - draw_ours(folder, SD1)).max() > 100 * CLOSE


def test_two_adapters_add_up(models, networks):
    folder, _ = models["sd1"]
    uses = [
        ControlUse(folder=networks["colour"], image=picture(), scale=0.6),
        ControlUse(folder=networks["colour"], image=other_picture(), scale=0.5),
    ]
    adapters = [diffusers.T2IAdapter.from_pretrained(use.folder) for use in uses]
    both = diffusers.MultiAdapter(adapters)
    theirs = controlled(
        folder, SD1, "StableDiffusionAdapterPipeline", {"adapter": both, "safety_checker": None},
        image=[pil(use.image) for use in uses], adapter_conditioning_scale=[use.scale for use in uses],
    )  # fmt: skip
    assert np.abs(draw_ours(folder, SD1, control=uses) - theirs).max() < CLOSE


def test_a_controlnet_and_an_adapter_at_once(models, networks):
    """No pipeline of diffusers takes both; each has to matter beside the other."""
    folder, _ = models["sd1"]
    net, adapter = (
        ControlUse(folder=networks[name], image=picture(), scale=0.8) for name in ("edges", "colour")
    )
    both = draw_ours(folder, SD1, control=[net, adapter])
    for one in (net, adapter):
        assert np.abs(both - draw_ours(folder, SD1, control=[one])).max() > 100 * CLOSE


def test_the_next_request_is_free_of_them(models, networks):
    from fewstep.engine.engine import Engine
    from fewstep.engine.request import resolve

    folder, _ = models["sd1"]
    engine = Engine(folder, "torch", threads=1)
    given = {"prompt": PROMPT, "num_inference_steps": 2, "width": SIDE, "height": SIDE}
    plain = engine.generate(resolve(engine.info, **given)).images[0]
    use = ControlUse(folder=networks["edges"], image=picture())
    steered = engine.generate(resolve(engine.info, **given, control=[use]))
    assert steered.record["control"][0]["name"] == "edges"
    assert not np.array_equal(steered.images[0], plain)
    assert np.array_equal(engine.generate(resolve(engine.info, **given)).images[0], plain)
    engine.close()
