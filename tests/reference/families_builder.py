"""Small random models of the real classes of every family, saved as diffusers saves them.

Each folder has real tokenizers and its family's own scheduler, and no ``fewstep.json``: how it is sampled is
derived. ``families_drawing`` draws with them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import string
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SIDE = 64
"""Pixels; 8x8 latents."""

_SD_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
_SD_ENDS = {"steps_offset": 1, "set_alpha_to_one": False}


@dataclass(frozen=True)
class Case:
    """One family drawn in one way."""

    family: str
    mode: str
    """txt2img, img2img, inpaint, inpaint-9 or instruct."""
    scheduler: str = "own"
    """``own`` is the family's."""
    negative: str = "green, blurry"
    parts: str = ""
    """``no-t5`` leaves SD3's T5 out; ``embedded`` is a U-Net that is told the guidance scale."""

    @property
    def name(self) -> str:
        """For test ids and table rows."""
        further = [
            self.scheduler if self.scheduler != "own" else "",
            self.parts,
            "" if self.negative else "no-negative",
        ]
        return "-".join([self.family, self.mode, *filter(None, further)])


CASES = (
    Case("sd1", "txt2img"),
    # diffusers' PNDM, cut for image-to-image, skips a noise level after its first step: see the test of it.
    Case("sd1", "img2img", scheduler="ddim"),
    Case("sd1", "inpaint"),
    Case("sd1", "inpaint-9"),
    Case("sd1", "instruct"),
    Case("sd1", "txt2img", scheduler="ddim"),
    Case("sd1", "txt2img", scheduler="euler"),
    Case("sd1", "txt2img", scheduler="euler-trailing"),
    Case("sd1", "txt2img", scheduler="dpmpp_2m"),
    Case("sd1", "txt2img", scheduler="unipc"),
    Case("sd1", "txt2img", scheduler="heun"),
    Case("sd1", "inpaint", scheduler="heun"),
    Case("sd1", "txt2img", scheduler="ddim", parts="embedded", negative=""),
    Case("sd2", "txt2img"),
    Case("sd2", "img2img"),
    Case("sd2", "inpaint"),
    Case("sd2", "inpaint-9"),
    Case("sdxl", "txt2img"),
    Case("sdxl", "txt2img", negative=""),
    Case("sdxl", "txt2img", scheduler="euler-trailing"),
    Case("sdxl", "img2img"),
    Case("sdxl", "inpaint"),
    Case("sdxl", "inpaint-9"),
    Case("sdxl", "instruct"),
    Case("sd3", "txt2img"),
    Case("sd3", "txt2img", parts="no-t5"),
    Case("sd3", "img2img"),
    Case("sd3", "inpaint"),
    Case("pixart-alpha", "txt2img"),
    Case("pixart-sigma", "txt2img"),
)
"""Every family in every mode that diffusers has a pipeline for, and some schedulers that are not its own."""

PIPELINES = {
    ("sd", "txt2img"): "StableDiffusionPipeline",
    ("sd", "img2img"): "StableDiffusionImg2ImgPipeline",
    ("sd", "inpaint"): "StableDiffusionInpaintPipeline",
    ("sd", "inpaint-9"): "StableDiffusionInpaintPipeline",
    ("sd", "instruct"): "StableDiffusionInstructPix2PixPipeline",
    ("sdxl", "txt2img"): "StableDiffusionXLPipeline",
    ("sdxl", "img2img"): "StableDiffusionXLImg2ImgPipeline",
    ("sdxl", "inpaint"): "StableDiffusionXLInpaintPipeline",
    ("sdxl", "inpaint-9"): "StableDiffusionXLInpaintPipeline",
    ("sdxl", "instruct"): "StableDiffusionXLInstructPix2PixPipeline",
    ("sd3", "txt2img"): "StableDiffusion3Pipeline",
    ("sd3", "img2img"): "StableDiffusion3Img2ImgPipeline",
    ("sd3", "inpaint"): "StableDiffusion3InpaintPipeline",
    ("pixart-alpha", "txt2img"): "PixArtAlphaPipeline",
    ("pixart-sigma", "txt2img"): "PixArtSigmaPipeline",
}


def build(case: Case, folder: Path) -> Path:
    """Save a case's model as diffusers saves it; returns the folder."""
    import diffusers

    torch.manual_seed(0)
    kind = "sd" if case.family in ("sd1", "sd2") else case.family
    parts = {"sd": _sd, "sdxl": _sdxl, "sd3": _sd3}.get(kind, _pixart)(
        case, folder.parent / f"{folder.name}-tok"
    )
    parts["scheduler"] = _scheduler(case)
    cls = getattr(diffusers, PIPELINES[kind, case.mode])
    with quiet():
        if kind == "sd":
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        elif kind == "sdxl":
            parts |= {"add_watermarker": False}
        cls(**parts).save_pretrained(folder)
    return folder


def stir(module: Any, *, gain: float = 1.0) -> None:
    """Random weights of ordinary size in every matrix and convolution, however the class starts them."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
        else:
            with torch.no_grad():
                parameter.add_(0.1 * torch.randn_like(parameter))


def _scheduler(case: Case) -> Any:
    import diffusers

    own = {"sd1": "pndm", "sd2": "ddim-v", "sdxl": "euler", "sd3": "flow"}.get(case.family, "pixart")
    name = own if case.scheduler == "own" else case.scheduler
    leading = {"timestep_spacing": "leading", "steps_offset": 1}
    made: dict[str, Any] = {
        "pndm": lambda: diffusers.PNDMScheduler(**_SD_BETAS, **_SD_ENDS, skip_prk_steps=True),
        "ddim": lambda: diffusers.DDIMScheduler(**_SD_BETAS, **_SD_ENDS, clip_sample=False),
        "ddim-v": lambda: diffusers.DDIMScheduler(
            **_SD_BETAS, **_SD_ENDS, clip_sample=False, prediction_type="v_prediction"
        ),
        "euler": lambda: diffusers.EulerDiscreteScheduler(**_SD_BETAS, **leading),
        "euler-trailing": lambda: diffusers.EulerDiscreteScheduler(
            **_SD_BETAS, timestep_spacing="trailing", steps_offset=1
        ),
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**_SD_BETAS, **leading),
        "unipc": lambda: diffusers.UniPCMultistepScheduler(
            **_SD_BETAS, timestep_spacing="linspace", steps_offset=1
        ),
        "heun": lambda: diffusers.HeunDiscreteScheduler(
            **_SD_BETAS, timestep_spacing="linspace", steps_offset=1
        ),
        "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "pixart": lambda: diffusers.DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=0.0001, beta_end=0.02, timestep_spacing="linspace"
        ),
    }
    return made[name]()


def _sd(case: Case, scratch: Path) -> dict[str, Any]:
    tokenizer = clip_tokenizer(scratch / "clip", pad="!" if case.family == "sd2" else "<|endoftext|>")
    second = case.family == "sd2"
    unet = _unet(
        case,
        cross_attention_dim=16,
        attention_head_dim=(2, 4) if second else 2,
        use_linear_projection=second,
    )
    return {
        "vae": _vae(4),
        "unet": unet,
        "text_encoder": _clip(tokenizer, hidden=16, act="gelu" if second else "quick_gelu"),
        "tokenizer": tokenizer,
    }


def _sdxl(case: Case, scratch: Path) -> dict[str, Any]:
    first = clip_tokenizer(scratch / "clip")
    second = clip_tokenizer(scratch / "clip_2", pad="!")
    unet = _unet(
        case,
        cross_attention_dim=40,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    )
    return {
        "vae": _vae(4, scaling_factor=0.13025),
        "unet": unet,
        "text_encoder": _clip(first, hidden=16, act="quick_gelu"),
        "text_encoder_2": _clip(second, hidden=24, act="gelu", projection=20),
        "tokenizer": first,
        "tokenizer_2": second,
    }


def _sd3(case: Case, scratch: Path) -> dict[str, Any]:
    from diffusers import SD3Transformer2DModel

    first = clip_tokenizer(scratch / "clip")
    second = clip_tokenizer(scratch / "clip_2", pad="!")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 20,
        out_channels=16,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    tokens = torch.randn(1, 9, 48)
    _settle(
        transformer,
        transformer.proj_out,
        lambda: (
            transformer(
                hidden_states=torch.randn(1, 16, 8, 8),
                timestep=torch.tensor([500.0]),
                encoder_hidden_states=tokens,
                pooled_projections=torch.randn(1, 36),
            ).sample
        ),
    )
    with_t5 = case.parts != "no-t5"
    third = t5_tokenizer() if with_t5 else None
    return {
        "vae": _vae(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        "transformer": transformer,
        "text_encoder": _clip(first, hidden=16, act="quick_gelu", projection=16),
        "text_encoder_2": _clip(second, hidden=24, act="gelu", projection=20),
        "text_encoder_3": _t5(48) if with_t5 else None,
        "tokenizer": first,
        "tokenizer_2": second,
        "tokenizer_3": third,
    }


def _pixart(case: Case, scratch: Path) -> dict[str, Any]:
    from diffusers import PixArtTransformer2DModel

    # 128 is what makes PixArt-alpha be told the resolution.
    alpha = case.family == "pixart-alpha"
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        sample_size=128 if alpha else 8,
        patch_size=2,
        caption_channels=32,
        use_additional_conditions=alpha,
        interpolation_scale=None if alpha else 1,
    )
    sizes = (
        {"resolution": torch.tensor([[64.0, 64.0]]), "aspect_ratio": torch.tensor([[1.0]])}
        if alpha
        else {"resolution": None, "aspect_ratio": None}
    )
    stir(transformer, gain=0.3)
    with torch.no_grad():
        # Much of the same in every patch: the last normalisation then keeps how large a patch's latents are.
        transformer.pos_embed.proj.weight.mul_(2.0)
        transformer.pos_embed.proj.bias.normal_(std=6.0)
    _fit_noise(
        transformer.eval(),
        lambda x: transformer(
            x,
            encoder_hidden_states=torch.randn(len(x), 9, 32),
            timestep=torch.linspace(100, 999, len(x)).round(),
            added_cond_kwargs={
                key: None if value is None else value.expand(len(x), -1) for key, value in sizes.items()
            },
        ),
    )
    return {
        "vae": _vae(4, scaling_factor=0.13025),
        "transformer": transformer,
        "text_encoder": _t5(32),
        "tokenizer": t5_tokenizer(),
    }


def _unet(case: Case, **settings: Any) -> Any:
    from diffusers import UNet2DConditionModel

    channels = {"inpaint-9": 9, "instruct": 8}.get(case.mode, 4)
    if case.parts == "embedded":
        settings["time_cond_proj_dim"] = 16
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        **settings,
    )
    added = None
    if settings.get("addition_embed_type"):
        added = {
            "text_embeds": torch.randn(1, 20),
            "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]]),
        }
    _settle(
        unet,
        unet.conv_out,
        lambda: (
            unet(
                torch.randn(1, channels, 8, 8),
                torch.tensor([500]),
                torch.randn(1, 9, settings["cross_attention_dim"]),
                added_cond_kwargs=added,
            ).sample
        ),
    )
    return unet


def _settle(network: Any, last: Any, call: Any) -> None:
    """Stir a denoiser, and scale its last layer so that its raw output has a standard deviation of about 0.5.

    Ordinary size, and small enough that the latents (1 / alpha times as large at the first time) stay below
    100: differences are absolute.
    """
    stir(network)
    network.eval()
    with torch.no_grad():
        spread = call().std() / 0.5
        last.weight /= spread
        last.bias /= spread


def _fit_noise(transformer: Any, call: Any) -> None:
    """Fit a transformer's last layer so that its first channels are about its input, as a trained one's are.

    PixArt's schedule ends at alpha = 0.006: what noise is not predicted becomes 160 times as much of x0
    there, and the latents of a network that knows nothing lose float32's digits to hundreds.
    """
    seen = []
    handle = transformer.proj_out.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    x = torch.randn(64, 4, 8, 8)
    with torch.no_grad():
        call(x)
        handle.remove()
        # (patch, patch, channel) is the order in which the outputs of a patch are folded back.
        patches = x.reshape(64, 4, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1)
        wanted = torch.cat([patches, 0.3 * torch.randn_like(patches)], dim=-1).reshape(-1, 32)
        inputs = torch.cat([seen[0].reshape(-1, seen[0].shape[-1]), torch.ones(64 * 16, 1)], dim=1)
        solved = torch.linalg.lstsq(inputs, wanted).solution
        transformer.proj_out.weight.copy_(solved[:-1].T)
        transformer.proj_out.bias.copy_(solved[-1])


def _vae(channels: int, **settings: Any) -> Any:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=2,
        latent_channels=channels,
        sample_size=SIDE,
        **settings,
    )
    stir(vae)
    return vae.eval()


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> Any:
    """A real CLIP tokenizer of letters, a few merges and the two markers."""
    from transformers import CLIPTokenizer

    letters = list(string.ascii_lowercase + string.digits + "!,.")
    merges = [
        "r e",
        "re d</w>",
        "b l",
        "bl u",
        "blu e</w>",
        "a p",
        "ap p",
        "l e</w>",
        "app le</w>",
        "o n</w>",
    ]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *(pair.replace(" ", "") for pair in merges)]
    vocab = {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = {"model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def t5_tokenizer() -> Any:
    """A real T5 tokenizer (Unigram) of letters and a few words."""
    from transformers import T5Tokenizer

    words = ["▁red", "▁apple", "▁on", "▁a", "▁blue", "▁table", "▁green"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(word, -3.0) for word in words] + [(letter, -5.0) for letter in string.ascii_lowercase + ",."]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _clip(tokenizer: Any, *, hidden: int, act: str, projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=projection or hidden,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
    stir(model)
    return model.eval()


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=64,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config)
    stir(model)
    return model.eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
