"""Single files against diffusers' own converters, published configs, and pictures of the same networks."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils as theirs
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import tiny_files as tiny

from fewstep.checkpoint import conversion, detect, folder_writing, single_file
from fewstep.checkpoint.keymaps.moves import original_shape
from fewstep.checkpoint.parts import original_naming
from fewstep.checkpoint.tensorfile import Entry

FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "sd35", "pixart-alpha", "pixart-sigma")


def equal(ours: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert ours.keys() == other.keys()
    return all(
        ours[name].dtype == other[name].dtype and torch.equal(ours[name], other[name]) for name in ours
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_C01_parts_to_a_single_file_and_back_are_bit_equal(family: str, tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", family)
    again: dict[str, tiny.State] = {}
    with single_file.open_file(path) as reader:
        assert list(reader.detected.parts) == sorted(
            tiny.networks(family), key=list(reader.detected.parts).index
        )
        for name, module in tiny.networks(family).items():
            again[name] = dict(reader.part(name).tensors())
            assert equal(again[name], tiny.state(module)), name
    found, parts = tiny.views(again)
    assert found.family is not None
    single_file.write(tmp_path / "again.safetensors", parts, family=found.family)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_unet_is_what_diffusers_converts(family: str, tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", family)
    config = dict(tiny.networks(family)["unet"].config)
    assert equal(
        dict(single_file.read_part(path, "unet")), theirs.convert_ldm_unet_checkpoint(load_file(path), config)
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_vae_is_what_diffusers_converts(family: str, tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", family)
    config = dict(tiny.networks(family)["vae"].config)
    assert equal(
        dict(single_file.read_part(path, "vae")), theirs.convert_ldm_vae_checkpoint(load_file(path), config)
    )


@pytest.mark.parametrize("family", ["sd3", "sd35"])
def test_transformer_of_sd3_is_what_diffusers_converts(family: str, tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", family)
    ours = dict(single_file.read_part(path, "transformer"))
    assert equal(ours, theirs.convert_sd3_transformer_checkpoint_to_diffusers(load_file(path)))


@pytest.mark.parametrize(
    ("family", "part", "prefix"),
    [
        ("sd1", "text_encoder", None),
        ("sd2", "text_encoder", "cond_stage_model.model."),
        ("sdxl", "text_encoder", None),
        ("sdxl", "text_encoder_2", "conditioner.embedders.1.model."),
        ("sd3", "text_encoder", "text_encoders.clip_l.transformer."),
        ("sd3", "text_encoder_2", "text_encoders.clip_g.transformer."),
    ],
)
def test_text_encoders_are_what_diffusers_converts(
    family: str, part: str, prefix: str | None, tmp_path: Path
) -> None:
    path = tiny.save(tmp_path / "model.safetensors", family)
    ours, loaded = dict(single_file.read_part(path, part)), load_file(path)
    module = tiny.networks(family)[part]
    if prefix is not None and prefix.endswith("model."):
        their = theirs.convert_open_clip_checkpoint(module, loaded, prefix=prefix)
    else:
        their = theirs.convert_ldm_clip_checkpoint(loaded, prefix)
    assert equal(ours, {name: value for name, value in their.items() if name != "logit_scale"})


def test_projection_that_sd3_leaves_out_is_the_identity_as_in_diffusers(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", "sd3")
    loaded = load_file(path)
    del loaded["text_encoders.clip_l.transformer.text_projection.weight"]
    save_file(loaded, path)
    conversion.convert(path, tmp_path / "model", conversion.Options())
    their = theirs.create_diffusers_clip_model_from_ldm(
        type(tiny.networks("sd3")["text_encoder"]),
        checkpoint=dict(loaded),
        config=str(tmp_path / "model"),
        subfolder="text_encoder",
        local_files_only=True,
    )
    ours = dict(single_file.read_part(path, "text_encoder"))
    assert equal(ours, dict(their.state_dict()))
    assert torch.equal(ours["text_projection.weight"], torch.eye(64))
    conversion.convert(tmp_path / "model", tmp_path / "back.safetensors", conversion.Options())
    assert equal(load_file(tmp_path / "back.safetensors"), loaded)


def test_t5_of_sd3_is_what_diffusers_converts(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", "sd3")
    ours = dict(single_file.read_part(path, "text_encoder_3"))
    assert equal(ours, theirs.convert_sd3_t5_checkpoint_to_diffusers(load_file(path)))


def test_unused_layer_of_sd2_is_left_out_as_diffusers_leaves_it(tmp_path: Path) -> None:
    """The authors' file has 24 layers and a projection; the network that is used has 23 and none."""
    path = tiny.save(tmp_path / "model.safetensors", "sd2")
    prefix = "cond_stage_model.model."
    loaded = load_file(path)
    last = f"{prefix}transformer.resblocks.22."
    loaded |= {
        name.replace(".22.", ".23."): value + 1 for name, value in loaded.items() if name.startswith(last)
    }
    loaded |= {f"{prefix}text_projection": torch.ones(64, 64), f"{prefix}logit_scale": torch.ones(())}
    found = detect.detect({name: Entry("F32", tuple(value.shape)) for name, value in loaded.items()})
    part = found.parts["text_encoder"]
    ours = dict(single_file.view(part, tiny.Memory(loaded)).tensors())
    module = tiny.networks("sd2")["text_encoder"]
    assert part.config["num_hidden_layers"] == 23
    assert equal(ours, theirs.convert_open_clip_checkpoint(module, loaded, prefix=prefix))
    assert len([name for name in found.left_out if ".23." in name]) == 12
    assert {f"{prefix}text_projection", f"{prefix}logit_scale"} < set(found.left_out)


# What their repositories say of the published models; only what keys, shapes and the family's rule give.
UNETS: dict[str, dict[str, Any]] = {
    "sd1": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "sd2": {
        "sample_size": 96,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAES = {
    "sd1": {"sample_size": 512, "latent_channels": 4, "scaling_factor": 0.18215},
    "sd2": {"sample_size": 768, "latent_channels": 4, "scaling_factor": 0.18215},
    "sdxl": {"sample_size": 1024, "latent_channels": 4, "scaling_factor": 0.13025},
    "sd3": {"sample_size": 1024, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609}
    | {"use_quant_conv": False, "use_post_quant_conv": False},
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
} | {
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
OPENCLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23} | {
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
OPENCLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32} | {
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
SD3S: dict[str, dict[str, Any]] = {
    "sd3": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 192,
    },
    "sd35_medium": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "sd35_large": {
        "num_layers": 38,
        "num_attention_heads": 38,
        "caption_projection_dim": 2432,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
}
for known in SD3S.values():
    known |= {"sample_size": 128, "patch_size": 2, "in_channels": 16, "attention_head_dim": 64} | {
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "out_channels": 16,
    }


def shapes_only(networks: dict[str, Any], prediction: str | None = None) -> dict[str, Entry]:
    """The header of a single file of networks that are on the meta device."""
    entries = {
        part: {name: Entry("F16", tuple(value.shape)) for name, value in tiny.state(module).items()}
        for part, module in networks.items()
    }
    found = detect.detect_folder(entries, prediction_type=prediction)
    assert found.family is not None
    header: dict[str, Entry] = {}
    for part in found.parts.values():
        prefix, keymap = original_naming(part, found.family)
        for name, (_, shape) in part.places.items():
            place = keymap.backward(name)
            assert place is not None
            whole = original_shape([shape] * place.count, place.change)
            assert whole is not None
            header[prefix + place.original] = Entry("F16", whole)
    return header


def named_by_diffusers(header: dict[str, Entry]) -> str:
    tensors = {name: torch.empty(entry.shape, device="meta") for name, entry in header.items()}
    found: str = theirs.infer_diffusers_model_type(tensors)
    return found


def agrees(config: dict[str, Any], published: dict[str, Any], class_defaults: Any = None) -> None:
    for key, value in published.items():
        found = tuple(config[key]) if isinstance(config[key], list) else config[key]
        assert found == value, key
    rest = config.keys() - published.keys() if class_defaults is not None else set()
    for key in rest:
        if not key.startswith("_"):
            found = tuple(config[key]) if isinstance(config[key], list) else config[key]
            assert found == class_defaults[key], key


def on_meta(family: str, channels: int = 4) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    levels = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2} | {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with torch.device("meta"):
        made: dict[str, Any] = {"vae": AutoencoderKL(**levels, **VAES[family])}
        if family in UNETS:
            made["unet"] = UNet2DConditionModel(in_channels=channels, **UNETS[family])
        if family == "sd2":
            made["text_encoder"] = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **OPENCLIP_H))
        if family in ("sd1", "sdxl"):
            made["text_encoder"] = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **CLIP_L))
        if family == "sdxl":
            made["text_encoder_2"] = CLIPTextModelWithProjection(
                CLIPTextConfig(vocab_size=49408, **OPENCLIP_G)
            )
    return made


@pytest.mark.parametrize(
    ("family", "channels", "variant", "name"),
    [
        ("sd1", 4, "text", "v1"),
        ("sd1", 9, "inpainting", "inpainting"),
        ("sd1", 8, "instruct", "instruct-pix2pix"),
        ("sd2", 4, "text", "v2"),
        ("sd2", 9, "inpainting", "inpainting_v2"),
        ("sdxl", 4, "text", "xl_base"),
        ("sdxl", 9, "inpainting", "xl_inpaint"),
    ],
)
def test_published_models_are_told_apart_as_diffusers_does(
    family: str, channels: int, variant: str, name: str
) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    prediction = "v_prediction" if family == "sd2" else None
    header = shapes_only(on_meta(family, channels), prediction)
    assert named_by_diffusers(header) == name
    found = detect.detect(header, name="model.safetensors", prediction_type=prediction)
    assert (found.kind, found.family, found.variant, found.left_out) == ("checkpoint", family, variant, ())
    config = found.parts["unet"].config
    small = dict(UNet2DConditionModel(block_out_channels=(32,) * 4).config)
    agrees(config, UNETS[family] | {"in_channels": channels, "out_channels": 4, "layers_per_block": 2}, small)
    plain = dict(AutoencoderKL(norm_num_groups=1, block_out_channels=(1,)).config) | {"norm_num_groups": 32}
    blocks = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    agrees(found.parts["vae"].config, VAES[family] | blocks, plain)
    texts = {"vocab_size": 49408, "max_position_embeddings": 77}
    first = OPENCLIP_H if family == "sd2" else CLIP_L
    agrees(found.parts["text_encoder"].config, texts | first)
    if family == "sdxl":
        agrees(found.parts["text_encoder_2"].config, texts | OPENCLIP_G)


@pytest.mark.parametrize("name", SD3S)
def test_published_sd3_models_are_told_apart_as_diffusers_does(name: str) -> None:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        networks = {"transformer": SD3Transformer2DModel(**SD3S[name]), **on_meta("sd3")}
    header = shapes_only(networks)
    assert named_by_diffusers(header) == name
    found = detect.detect(header)
    assert (found.family, found.prediction_type) == ("sd3", "flow_prediction")
    agrees(found.parts["transformer"].config, {"dual_attention_layers": (), "qk_norm": None} | SD3S[name])
    agrees(found.parts["vae"].config, VAES["sd3"])


def test_published_t5_is_described_as_published() -> None:
    from transformers import T5Config, T5EncoderModel

    published = {"vocab_size": 32128, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_layers": 24} | {
        "num_heads": 64,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
    }
    with torch.device("meta"):
        module = T5EncoderModel(T5Config(**published))
    found = detect.detect({n: Entry("F16", tuple(v.shape)) for n, v in tiny.state(module).items()})
    assert found.kind == "text_encoder"
    agrees(found.parts["text_encoder"].config, published)


@pytest.mark.parametrize(
    ("family", "sizes", "tokens", "scale"), [("pixart-alpha", True, 120, 2), ("pixart-sigma", False, 300, 2)]
)
def test_published_pixart_models_are_described_as_published(
    family: str, sizes: bool, tokens: int, scale: int
) -> None:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        module = PixArtTransformer2DModel(
            caption_channels=4096, interpolation_scale=scale, use_additional_conditions=sizes
        )
    header = shapes_only({"transformer": module})
    header |= {
        "pos_embed": Entry("F16", (1, 4096, 1152)),
        "y_embedder.y_embedding": Entry("F16", (tokens, 4096)),
    }
    found = detect.detect(header)
    assert (found.family, set(found.left_out)) == (family, {"pos_embed", "y_embedder.y_embedding"})
    agrees(found.parts["transformer"].config, {}, dict(module.config))


def vocabulary(folder: Path) -> Path:
    """A CLIP vocabulary of single letters, small enough for the tiny text encoders."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["!", *letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_converted_folder_draws_what_the_networks_draw(family: str, tmp_path: Path) -> None:
    """The folder's configs, not only its weights, are right: heads, activations, scales, tokenizers."""
    import diffusers
    from transformers import CLIPTokenizer

    source = tiny.save(tmp_path / "model.safetensors", family)
    options = conversion.Options(tokenizer=vocabulary(tmp_path / "clip"))
    assert conversion.convert(source, tmp_path / "model", options) == []
    name = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[family]
    cls = getattr(diffusers, name)
    end = "<|endoftext|>"
    tokens = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end}
    first, second = (
        CLIPTokenizer.from_pretrained(
            tmp_path / "clip",
            model_max_length=16,
            **tokens,
            pad_token=padding,
        )
        for padding in (end, "!")
    )
    parts = {**tiny.networks(family), "tokenizer": first}
    if family == "sdxl":
        parts["tokenizer_2"] = second
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = folder_writing.scheduler_config("sd1" if family == "sd1" else "sdxl", "epsilon")
    own = cls(**parts, scheduler=getattr(diffusers, scheduler["_class_name"]).from_config(scheduler))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = cls.from_pretrained(tmp_path / "model")
    for each in ("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",):
        getattr(opened, each).model_max_length = 16
        text = {"padding": "max_length", "max_length": 16}
        assert getattr(opened, each)("a red z", **text) == getattr(own, each)("a red z", **text)
    pictures = []
    for pipeline in (own, opened):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        pictures.append(
            pipeline(
                "a red z",
                num_inference_steps=2,
                guidance_scale=3.0,
                height=32,
                width=32,
                output_type="np",
                generator=generator,
            ).images[0]
        )
    assert np.isfinite(pictures[0]).all() and pictures[0].std() > 0.01
    # Weights lie elsewhere in memory, and the kernels add up in another order.
    np.testing.assert_allclose(*pictures, atol=1e-3)


def test_a_tokenizer_folder_of_the_packages_vocabulary_is_clips(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    from fewstep.checkpoint.tokenizers import tokenizers
    from fewstep.models import clip_tokenizer

    sizes = {"text_encoder": clip_tokenizer.SIZE, "text_encoder_2": clip_tokenizer.SIZE}
    made = tokenizers("sdxl", None, packaged=clip_tokenizer.files, sizes=sizes)
    prompts = ["a photograph of an astronaut, 4k", "Grüße aus Tübingen! 😀", "x" * 300, ""]
    for (name, files), padding in zip(made.items(), (clip_tokenizer.END, clip_tokenizer.FIRST), strict=True):
        (tmp_path / name).mkdir()
        for file, data in files.items():
            (tmp_path / name / file).write_bytes(data)
        opened, own = CLIPTokenizer.from_pretrained(tmp_path / name), clip_tokenizer.tokenizer(padding)
        how = {"padding": "max_length", "truncation": True}
        assert opened(prompts, **how)["input_ids"] == own(prompts, **how)["input_ids"]
        assert len(opened("", **how)["input_ids"]) == 77


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3"])
def test_diffusers_opens_folders_and_the_single_files_of_folders(family: str, tmp_path: Path) -> None:
    """File -> folder -> file by us, both opened by the libraries, the file with the folder as its config."""
    import diffusers
    import transformers

    source = tiny.save(tmp_path / "model.safetensors", family)
    conversion.convert(source, tmp_path / "model", conversion.Options())
    conversion.convert(tmp_path / "model", tmp_path / "back.safetensors", conversion.Options())
    assert (tmp_path / "back.safetensors").stat().st_size >= source.stat().st_size
    for part, module in tiny.networks(family).items():
        name = type(module).__name__
        cls = getattr(diffusers, name, None) or getattr(transformers, name)
        assert equal(tiny.state(cls.from_pretrained(tmp_path / "model" / part)), tiny.state(module)), part
        if not hasattr(cls, "from_single_file"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = cls.from_single_file(
                str(tmp_path / "back.safetensors"),
                config=str(tmp_path / "model" / part),
                local_files_only=True,
            )
        assert equal(dict(opened.state_dict()), tiny.state(tiny.networks(family)[part]))
