"""The same picture by fewstep and by diffusers, for ``test_families.py`` and ``benchmarks/parity.py``.

Both sides start from the same noise. Where a diffusers pipeline draws noise itself (image-to-image, and the
sample of the autoencoder's posterior), `shared_noise` hands it ours, and zeros for the posterior, whose mean
fewstep takes.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from families_builder import PIPELINES, SIDE, Case, quiet

from fewstep.diffusion.noise import image_noise
from fewstep.diffusion.scheduler_reading import from_scheduler_config
from fewstep.engine.adapters import Catalogue
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

PROMPT = "A red apple on a blue table, painted"
GUIDANCE = 2.0
IMAGE_GUIDANCE = 1.5
STEPS = 5
SEED = 7
STRENGTH = 0.6


def draw_ours(folder: Path, case: Case, *, model: Any = None, loras: Any = (), **changes: Any) -> np.ndarray:
    """The latents that fewstep decodes, (1, C, h, w).

    ``model`` is drawn with in place of the folder, which then only says by which scheduler; ``loras`` are
    folders of adapters.
    """
    catalogue = Catalogue(loras)
    engine = Engine(folder if model is None else model, "torch", threads=1, catalogue=catalogue)
    seen = []
    decode = engine.backend.decode

    def watch(latents: np.ndarray) -> np.ndarray:
        seen.append(latents.copy())
        return decode(latents)

    engine.backend.decode = watch  # type: ignore[method-assign]
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    given: dict[str, Any] = {
        "prompt": PROMPT,
        "negative_prompt": case.negative,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "solver": from_scheduler_config(config)["solver"],
        "seed": SEED,
        "width": SIDE,
        "height": SIDE,
    }
    if case.mode != "txt2img":
        given["init_image"] = picture()
    if case.mode == "img2img":
        given["strength"] = STRENGTH
    if case.mode.startswith("inpaint"):
        given["mask"] = mask(case)
    if case.mode == "instruct":
        given["image_guidance_scale"] = IMAGE_GUIDANCE
    engine.generate(resolve(engine.info, **(given | changes)))
    engine.close()
    return seen[0]


def draw_theirs(folder: Path, case: Case, *, change: Any = None, **changes: Any) -> np.ndarray:
    """The latents of diffusers' pipeline for the same mode, (1, C, h, w); ``change`` is given the pipe."""
    import diffusers
    from PIL import Image

    kind = "sd" if case.family in ("sd1", "sd2") else case.family
    name = PIPELINES[kind, case.mode]
    cls = getattr(diffusers, name)
    with quiet():
        further: dict[str, Any] = {"sd": {"safety_checker": None}, "sdxl": {"add_watermarker": False}}.get(
            kind, {}
        )
        if case.parts == "no-t5":
            further |= {"text_encoder_3": None, "tokenizer_3": None}
        pipe = cls.from_pretrained(folder, **further)
    if change is not None:
        change(pipe)
    pipe.set_progress_bar_config(disable=True)
    channels = pipe.vae.config.latent_channels
    noise = torch.from_numpy(image_noise(SEED, (channels, SIDE // 8, SIDE // 8)))[None]
    given: dict[str, Any] = {
        "prompt": PROMPT,
        "num_inference_steps": STEPS,
        "guidance_scale": GUIDANCE,
        "output_type": "latent",
        "return_dict": False,
    }
    if case.negative:
        given["negative_prompt"] = case.negative
    if case.mode in ("txt2img", "inpaint", "inpaint-9"):
        given |= {"height": SIDE, "width": SIDE}
    if case.mode != "img2img":
        given["latents"] = noise.clone()
    if case.mode != "txt2img":
        given["image"] = Image.fromarray(picture())
    if case.mode == "img2img":
        given["strength"] = STRENGTH
    if case.mode.startswith("inpaint"):
        given |= {"mask_image": Image.fromarray(mask(case)), "strength": 1.0}
    if case.mode == "instruct":
        given["image_guidance_scale"] = IMAGE_GUIDANCE
    if case.family.startswith("pixart"):
        # fewstep draws at the size that is asked for, and reads the caption in small letters, stripped.
        given |= {"use_resolution_binning": False, "clean_caption": False}
    with quiet(), shared_noise(cls, noise), torch.no_grad():
        result = pipe(**(given | changes))
    latents = result[0] if isinstance(result, tuple) else result.images
    return np.asarray(latents.float().numpy())


@contextlib.contextmanager
def shared_noise(cls: Any, noise: torch.Tensor) -> Iterator[None]:
    """diffusers draws our noise for latents, and nothing around the mean of the autoencoder's posterior."""
    module = importlib.import_module(cls.__module__)

    def latents(shape: Any, **_: Any) -> torch.Tensor:
        assert tuple(shape) == tuple(noise.shape)
        return noise.clone()

    def nothing(shape: Any, **_: Any) -> torch.Tensor:
        return torch.zeros(tuple(shape))

    with (
        mock.patch.object(module, "randn_tensor", latents),
        mock.patch("diffusers.models.autoencoders.vae.randn_tensor", nothing),
    ):
        yield


def picture() -> np.ndarray:
    """(64, 64, 3) uint8, smooth, with all colours."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = np.stack([np.sin(7 * x + 2 * y), np.cos(5 * y), np.sin(9 * x * y + 1)], axis=-1)
    return np.asarray((127.5 + 120 * waves), dtype=np.uint8)


def mask(case: Case) -> np.ndarray:
    """(64, 64) uint8. For a 4-channel model it ends at latent cells: both ways to shrink it agree there."""
    made = np.zeros((SIDE, SIDE), dtype=np.uint8)
    if case.mode == "inpaint":
        made[16:48, 8:40] = 255
    else:
        made[13:47, 10:41] = 255
    return made
