"""Whether an adapter fits a base, why not, and what its file says about itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import (
    AdapterFile,
    Full,
    LoHa,
    LoKr,
    Lora,
    alias,
    base_model,
    check_fits,
    family,
    short_hash,
)
from fewstep.checkpoint.adapters import deltas as kinds
from fewstep.checkpoint.adapters.fitting import family_of_base
from fewstep.errors import CheckpointError, NotFoundError

K = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
FC = "text_model.encoder.layers.0.mlp.fc1"


def lora(out: int, width: int, *kernel: int, **more: Any) -> Lora:
    ones = (1,) * len(kernel)
    return Lora(down=torch.zeros(2, width, *kernel), up=torch.zeros(out, 2, *ones), alpha=2.0, **more)


def adapter(
    metadata: dict[str, str] | None = None, unmatched: tuple[str, ...] = (), **parts: Any
) -> AdapterFile:
    return AdapterFile(name="a", parts=parts, metadata=metadata or {}, unmatched=unmatched)


def base(width: int = 768, **more: Any) -> dict[str, dict[str, tuple[int, ...]]]:
    unet = {f"{K}.weight": (640, width), "conv_in.weight": (320, 4, 3, 3), "conv_in.bias": (320,)}
    unet |= {"proj.weight": (320, 320, 1, 1), "norm.weight": (320,), "norm.bias": (320,)}
    return {"unet": unet, **more}


@pytest.mark.parametrize(
    ("width", "expected"),
    [(768, "SD1"), (1024, "SD2"), (2048, "SDXL"), (1280, "SDXL refiner"), (384, "emoji-128"), (8, None)],
)
def test_families_are_told_by_the_width_of_the_text(width: int, expected: str | None) -> None:
    assert family(adapter(unet={K: lora(640, width)})) == expected
    loha = LoHa(
        w1_a=torch.zeros(640, 2),
        w1_b=torch.zeros(2, width),
        w2_a=torch.zeros(640, 2),
        w2_b=torch.zeros(2, width),
        alpha=1.0,
    )
    lokr = LoKr(w1=torch.zeros(2, 2), w2=torch.zeros(320, width // 2), alpha=1.0)
    assert family(adapter(unet={K: loha})) == family(adapter(unet={K: lokr})) == expected
    assert family_of_base(base(width)) == expected


def test_families_without_cross_attention() -> None:
    conv = {"conv_in": lora(320, 4, 3, 3)}
    assert family(adapter(unet=conv)) is None
    assert family(adapter(unet=conv, metadata={"ss_base_model_version": "sdxl_base_v1-0"})) == "SDXL"
    assert family(adapter(text_encoder={FC: lora(4096, 1024)})) == "SD2"
    assert family(adapter(text_encoder={FC: lora(3072, 768)})) is None  # SD1 or SDXL
    assert family(adapter(transformer={"transformer_blocks.0.attn.to_q": lora(1536, 1536)})) == "SD3"
    assert family(adapter(unet={K: Full(diff=torch.zeros(3))})) is None
    # shapes come before what the header says
    assert family(adapter(unet={K: lora(640, 768)}, metadata={"ss_base_model_version": "sdxl_x"})) == "SD1"
    assert family_of_base({"transformer": {"transformer_blocks.0.attn.to_q.weight": (1536, 1536)}}) == "SD3"
    assert family_of_base({}) is None


def test_an_adapter_that_fits() -> None:
    text = {"encoder.layers.0.mlp.fc1.weight": (8, 6), "encoder.layers.0.mlp.fc1.bias": (8,)}
    nested = {f"text_model.{name}": size for name, size in text.items()}
    fitting = adapter(
        unet={
            K: lora(640, 768, dora_scale=torch.ones(1, 768)),
            "conv_in": lora(320, 4, 3, 3, dora_scale=torch.ones(320, 1, 1, 1), diff_b=torch.zeros(320)),
            "proj": lora(320, 320),  # as a linear layer, the base has a 1x1 convolution
            "norm": Full(diff=torch.zeros(320), diff_b=torch.zeros(320), norm=True),
        },
        text_encoder={FC: lora(8, 6)},
        text_encoder_2={FC: lora(8, 6)},
        unmatched=("bundle_emb.cat.emb_params",),
    )
    assert check_fits(fitting, base(text_encoder=text, text_encoder_2=nested)) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            adapter(unet={K: lora(640, 2048)}),
            ["it was made for SDXL and the base is SD1", "weights of (640, 2048)"],
        ),
        (adapter(unet={"conv_9": lora(4, 4)}), ["unet has no layer 'conv_9'"]),
        (adapter(unet={"conv_in": lora(320, 4)}), ["weights of (320, 4), the base's is (320, 4, 3, 3)"]),
        (adapter(unet={"conv_in": lora(320, 8, 3, 3)}), ["(320, 8, 3, 3)"]),
        (adapter(unet={"proj": lora(320, 320, 3, 3)}), ["(320, 320, 3, 3)"]),
        (adapter(text_encoder={FC: lora(8, 6)}), ["the base has no text_encoder, for which it has 1 layers"]),
        (adapter(unet={}, unmatched=("x\x1b[31m", "bundle_emb.x")), [r"nobody knows what 'x\x1b[31m' is"]),
        (
            adapter(unet={"proj": lora(320, 320, diff_b=torch.zeros(320))}),
            ["bias of (320,), the base has none"],
        ),
        (adapter(unet={"norm": Full(diff_b=torch.zeros(3))}), ["bias of (3,), the base has (320,)"]),
        (adapter(unet={"norm": Full(diff=torch.zeros(3))}), ["weights of (3,)"]),
        (
            adapter(unet={"proj": lora(320, 320, dora_scale=torch.ones(3, 1))}),
            ["dora_scale (3, 1) is neither"],
        ),
        (
            adapter(unet={"proj": lora(320, 320, dora_scale=torch.ones(1, 1, 320))}),
            ["dora_scale (1, 1, 320)"],
        ),
    ],
)
def test_A14_everything_that_does_not_fit_is_told(given: AdapterFile, told: list[str]) -> None:
    found = check_fits(given, base())
    assert len(found) == len(told)
    for sentence, part in zip(found, told, strict=True):
        assert part in sentence and sentence.isprintable()


@pytest.mark.parametrize(
    ("made_for", "weight", "expected"),
    [
        ((4, 6), (4, 6), True),
        ((4, 6), (4, 6, 1, 1), True),
        ((4, 6, 1, 1), (4, 6), True),
        ((4, 54), (4, 6, 3, 3), True),
        ((4, 6, 9), (4, 6, 3, 3), False),
        ((4, 6, 3, 3), (4, 54), False),
        ((4, 6, 3, 1), (4, 6, 1, 3), False),
        ((6, 4), (4, 6), False),
        ((4,), (4,), True),
        ((4,), (4, 1), False),
        ((4, 1), (4,), False),
    ],
)
def test_shapes_that_are_the_same_numbers(made_for: Any, weight: Any, expected: bool) -> None:
    assert kinds.reaches(made_for, weight) is expected


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0", "ss_v2": "False"}, "SDXL"),
        ({"ss_base_model_version": "sd_v1"}, "SD1"),
        ({"ss_base_model_version": "sd_v2_v"}, "SD2"),
        ({"ss_base_model_version": "sd3_m"}, "SD3"),
        ({"ss_v2": "True"}, "SD2"),
        ({"ss_v2": "False"}, None),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "SDXL"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "SD1"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v/lora"}, "SD2"),
        ({"modelspec.architecture": "stable-diffusion-3-medium/lora"}, "SD3"),
        ({"modelspec.architecture": "flux-1-dev/lora"}, None),
        ({}, None),
    ],
)
def test_base_model_that_the_header_names(metadata: dict[str, str], expected: str | None) -> None:
    assert base_model(metadata) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("cat_v2", "cat_v2"), ("", None), ("a\nb", None), ("x" * 201, None)]
)
def test_alias(name: str, expected: str | None) -> None:
    assert alias({"ss_output_name": name}) == expected
    assert alias({}) is None


def test_short_hash_is_that_of_the_web_ui(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"x.lora_down.weight": torch.arange(6.0).reshape(2, 3), "x.alpha": torch.tensor(1.0)}
    safetensors.save_torch(path, tensors, {"ss_output_name": "a"})
    body = path.read_bytes()
    body = body[8 + int.from_bytes(body[:8], "little") :]
    assert len(body) == 28
    expected = hashlib.sha256(body).hexdigest()[:12]
    assert short_hash(path) == expected
    safetensors.save_torch(path, tensors, {"ss_output_name": "another header"})
    assert short_hash(path) == expected
    safetensors.save_torch(path, tensors, {"sshs_model_hash": "0123456789abcdef" * 4})
    assert short_hash(path) == "0123456789ab"
    for nonsense in ("", "<script>alert(1)</script>", "ABCDEF012345", "0123"):
        safetensors.save_torch(path, tensors, {"sshs_model_hash": nonsense})
        assert short_hash(path) == expected
    with pytest.raises(NotFoundError):
        short_hash(tmp_path / "none")
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(CheckpointError):
        short_hash(path)
