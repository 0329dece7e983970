"""What a file is: families, variants, layouts, prediction types, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_files as tiny
import torch

from fewstep.checkpoint import detect, single_file
from fewstep.checkpoint.tensorfile import Entry
from fewstep.errors import CheckpointError

ARCHITECTURE = "modelspec.architecture"


def header(tensors: dict[str, torch.Tensor]) -> dict[str, Entry]:
    return dict(tiny.Memory(tensors).entries)


def original(family: str, only: str | None = None) -> dict[str, Entry]:
    """A tiny model's header under its authors' names."""
    from fewstep.checkpoint.keymaps.moves import original_shape
    from fewstep.checkpoint.parts import original_naming

    found, _ = tiny.views({n: t for n, t in tiny.states(family).items() if only in (None, n)})
    made = {}
    assert found.family is not None
    for part in found.parts.values():
        prefix, keymap = original_naming(part, found.family)
        for name, (_, shape) in part.places.items():
            place = keymap.backward(name)
            assert place is not None
            whole = original_shape([shape] * place.count, place.change)
            assert whole is not None
            made[prefix + place.original] = Entry("F32", whole)
    return made


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_bare_unet_of_either_naming(family: str, prefix: str) -> None:
    names = original(family, "unet")
    bare = {prefix + name.removeprefix("model.diffusion_model."): entry for name, entry in names.items()}
    for tensors, layout in ((bare, "original"), (header(tiny.states(family)["unet"]), "diffusers")):
        found = detect.detect(tensors, name="v2-1_768.safetensors")
        assert (found.kind, found.family, list(found.parts)) == ("denoiser", family, ["unet"])
        part = found.parts["unet"]
        assert (part.layout, part.prefix) == (layout, prefix if layout == "original" else "")
        assert part.config["cross_attention_dim"] == (128 if family == "sdxl" else 64)


@pytest.mark.parametrize("family", ["sd3", "sd35", "pixart-alpha", "pixart-sigma"])
def test_a_bare_transformer_of_either_naming(family: str) -> None:
    wanted = "sd3" if family == "sd35" else family
    for tensors in (original(family, "transformer"), header(tiny.states(family)["transformer"])):
        found = detect.detect(tensors)
        assert (found.kind, found.family, list(found.parts)) == ("denoiser", wanted, ["transformer"])


def test_a_student_that_is_told_the_guidance_scale_is_known_in_diffusers_names() -> None:
    names = header(tiny.states("sd1")["unet"]) | {"time_embedding.cond_proj.weight": Entry("F32", (32, 256))}
    assert detect.detect(names).parts["unet"].config["time_cond_proj_dim"] == 256


@pytest.mark.parametrize(("channels", "variant"), [(4, "text"), (9, "inpainting"), (8, "instruct")])
def test_variants_by_input_channels(channels: int, variant: str) -> None:
    names = header(tiny.states("sd1")["unet"]) | {"conv_in.weight": Entry("F32", (32, channels, 3, 3))}
    assert detect.detect(names).variant == variant


@pytest.mark.parametrize("channels", [3, 5, 7])
def test_other_input_channels_are_refused(channels: int) -> None:
    names = header(tiny.states("sd2")["unet"]) | {"conv_in.weight": Entry("F32", (32, channels, 3, 3))}
    with pytest.raises(CheckpointError, match=f"family sd2 and takes {channels} channels"):
        detect.detect(names)


@pytest.mark.parametrize(
    ("name", "metadata", "marked", "given", "wanted"),
    [
        ("model", {}, False, None, (None, "")),
        ("v2-1_768-ema-pruned", {}, False, None, ("v_prediction", "name")),
        ("v2-1_512-ema-pruned", {}, False, None, ("epsilon", "name")),
        ("x1768", {}, False, None, (None, "")),
        ("mine_vpred", {}, False, None, ("v_prediction", "name")),
        ("v2-1_512", {ARCHITECTURE: "stable-diffusion-v2-768-v"}, False, None, ("v_prediction", "metadata")),
        ("v2-1_768", {ARCHITECTURE: "stable-diffusion-v2-512"}, False, None, ("epsilon", "metadata")),
        ("v2-1_768", {"modelspec.prediction_type": "epsilon"}, False, None, ("epsilon", "metadata")),
        ("v2-1_512", {"modelspec.prediction_type": "v"}, False, None, ("v_prediction", "metadata")),
        ("v2-1_512", {"modelspec.prediction_type": "epsilon"}, True, None, ("v_prediction", "keys")),
        ("v2-1_768", {}, True, "epsilon", ("epsilon", "given")),
    ],
)  # fmt: skip
def test_what_stable_diffusion_2_predicts(
    name: str, metadata: dict[str, str], marked: bool, given: str | None, wanted: tuple[str | None, str]
) -> None:
    tensors = original("sd2") | ({"v_pred": Entry("F32", (0,))} if marked else {})
    found = detect.detect(tensors, metadata, f"{name}.safetensors", prediction_type=given)
    assert (found.prediction_type, found.prediction_source) == wanted


def test_velocity_of_sdxl_is_marked_in_its_keys() -> None:
    marks = {"v_pred": Entry("F32", (0,)), "ztsnr": Entry("F32", (0,))}
    found = detect.detect(original("sdxl") | marks)
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)
    assert set(found.left_out) == set(marks)
    plain = detect.detect(original("sdxl"), name="sd_xl_base_1.0.safetensors")
    assert (plain.prediction_type, plain.prediction_source, plain.zero_terminal_snr) == (
        "epsilon",
        "family",
        False,
    )


def test_what_is_no_part_of_the_model_is_left_out_and_listed() -> None:
    beside = {
        "betas": (1000,),
        "alphas_cumprod": (1000,),
        "model_ema.diffusion_modelout2bias": (4,),
        "model_ema.decay": (),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
        "cond_stage_model.logit_scale": (),
        "global_step": (),
    }
    extra = {name: Entry("F32", shape) for name, shape in beside.items()}
    found = detect.detect(original("sd1") | extra)
    assert set(found.left_out) == set(beside)
    assert set(found.parts) == {"unet", "vae", "text_encoder"}


def test_text_encoders_under_the_spellings_that_are_in_use() -> None:
    sd1 = original("sd1")
    old = {name.replace("transformer.text_model.", "transformer."): entry for name, entry in sd1.items()}
    sgm = {
        name.replace("cond_stage_model.", "conditioner.embedders.0."): entry for name, entry in sd1.items()
    }
    assert sd1.keys() != old.keys() != sgm.keys()
    for spelt in (old, sgm):
        found = detect.detect(spelt).parts["text_encoder"]
        assert found.shapes == detect.detect(sd1).parts["text_encoder"].shapes
    sd2 = original("sd2")
    sgm2 = {
        name.replace("cond_stage_model.", "conditioner.embedders.0."): entry for name, entry in sd2.items()
    }
    assert detect.detect(sgm2).family == "sd2"


def test_an_autoencoder_alone_has_a_config_when_its_family_is_said() -> None:
    both = (_vae_only(), header(tiny.states("sd1")["vae"]))
    for names in both:
        alone = detect.detect(names)
        assert (alone.kind, alone.family, alone.parts["vae"].config) == ("vae", None, {})
        xl = detect.detect(names, family="sdxl").parts["vae"].config
        assert (xl["scaling_factor"], xl["sample_size"]) == (0.13025, 1024)
        assert detect.detect(names, family="sd1").parts["vae"].config["scaling_factor"] == 0.18215


def _vae_only() -> dict[str, Entry]:
    return {
        n.removeprefix("first_stage_model."): e for n, e in original("sd1").items() if n.startswith("first")
    }


def test_an_autoencoder_in_the_names_of_old_diffusers() -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    names = header(tiny.states("sd1")["vae"])
    for new, word in old.items():
        names = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{word}."): e for name, e in names.items()
        }
    assert "decoder.mid_block.attentions.0.query.weight" in names
    assert detect.detect(names).parts["vae"].shapes.keys() == tiny.states("sd1")["vae"].keys()


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 8)}, "lora"),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (4, 8)}, "lora"),
        ({"unet.a.attn1.processor.to_q_lora.down.weight": (4, 8)}, "lora"),
        ({"emb_params": (3, 768)}, "embedding"),
        ({"clip_l": (3, 768), "clip_g": (3, 1280)}, "embedding"),
        ({"string_to_param.*": (3, 768)}, "embedding"),
        ({"<cat-toy>": (768,)}, "embedding"),
        (
            {"encoder.layers.0.weight": (64, 3, 3, 3), "decoder.layers.2.conv.0.weight": (64, 64, 3, 3)},
            "taesd",
        ),
        ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "taesd"),
    ],
)
def test_small_files(names: dict[str, tuple[int, ...]], kind: str) -> None:
    found = detect.detect({name: Entry("F16", shape) for name, shape in names.items()})
    assert (found.kind, found.parts) == (kind, {})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"control_model.time_embed.0.weight": (4, 4)}, "is a ControlNet"),
        ({"edm_mean": (1, 4, 1, 1)}, "is Playground 2.5"),
        ({"edm_vpred.sigma_max": ()}, "is CosXL"),
        ({"cc_projection.weight": (4, 4)}, "is Zero123"),
        ({"model.diffusion_model.label_emb.weight": (1000, 4)}, "is an upscaler"),
        ({"class_embedding.weight": (4, 4)}, "class embeddings"),
    ],
)
def test_foreign_models_are_named(extra: dict[str, tuple[int, ...]], message: str) -> None:
    names = original("sd1") if "class_embedding.weight" not in extra else header(tiny.states("sd1")["unet"])
    with pytest.raises(CheckpointError, match=message) as caught:
        detect.detect(
            names | {name: Entry("F32", shape) for name, shape in extra.items()}, name="x.safetensors"
        )
    assert str(caught.value).startswith("x.safetensors: ")


def test_the_refiner_is_recognised_and_refused() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        refiner = UNet2DConditionModel(
            block_out_channels=(384, 768, 1536, 1536),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=1280,
            attention_head_dim=(6, 12, 24, 24),
            transformer_layers_per_block=4,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2560,
        )
    names = {name: Entry("F16", tuple(value.shape)) for name, value in refiner.state_dict().items()}
    with pytest.raises(CheckpointError, match="is the refiner of Stable Diffusion XL"):
        detect.detect(names)


def test_a_wrong_family_is_said_with_what_was_found() -> None:
    with pytest.raises(CheckpointError, match=r"is of the family sd1, not sdxl; its first keys: ") as caught:
        detect.detect(original("sd1"), name="x.safetensors", family="sdxl")
    assert str(caught.value).count("model.diffusion_model.") <= 10


def test_something_unknown_is_said_with_its_first_ten_keys() -> None:
    names = {f"blob.{i}": Entry("F32", (2,)) for i in range(30)}
    with pytest.raises(CheckpointError, match=r"no weight file of a known kind; 30 tensors") as caught:
        detect.detect(names)
    assert "blob.9 ..." in str(caught.value)
    assert "blob.10" not in str(caught.value)


def test_a_tensor_without_a_place_is_an_error_in_either_naming() -> None:
    for names in (original("sd1"), header(tiny.states("sd1")["unet"])):
        prefix = "model.diffusion_model." if len(names) > 700 else ""
        with pytest.raises(CheckpointError, match=r"1 tensors have no place in the unet of sd1"):
            detect.detect(names | {f"{prefix}extra_layer.weight": Entry("F32", (2, 2))})


def test_unets_averages_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny.save(tmp_path / "model.safetensors", "sd1")
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        single_file.open_file(path, ema=True)
    loaded = load_file(path)
    prefix = "model.diffusion_model."
    for name in [name for name in loaded if name.startswith(prefix)]:
        loaded["model_ema.diffusion_model" + name.removeprefix(prefix).replace(".", "")] = loaded[name] + 1
    save_file(loaded, path)
    plain = dict(single_file.read_part(path, "unet"))
    with single_file.open_file(path, ema=True) as reader:
        averaged = dict(reader.part("unet").tensors())
        assert torch.equal(
            dict(reader.part("vae").tensors())["quant_conv.bias"], loaded["first_stage_model.quant_conv.bias"]
        )
    assert averaged.keys() == plain.keys()
    assert all(torch.equal(averaged[name], plain[name] + 1) for name in plain)
