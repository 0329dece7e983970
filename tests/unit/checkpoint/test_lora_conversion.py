"""C02: between kohya's and diffusers' files nothing changes but names; what a style cannot say is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewstep.checkpoint import safetensors
from fewstep.checkpoint.adapters import AdapterFile, Lora, read_adapter, save_adapter, short_hash
from fewstep.checkpoint.adapters import deltas as kinds
from fewstep.errors import UsageError

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
LAYERS: dict[str, dict[str, tuple[int, ...]]] = {
    "unet": {
        f"{ATTENTION}.attn1.to_q": (6, 6),
        f"{ATTENTION}.attn2.to_k": (6, 5),
        f"{ATTENTION}.attn2.to_out.0": (6, 6),
        f"{ATTENTION}.ff.net.0.proj": (12, 6),
        "down_blocks.1.attentions.0.proj_in": (6, 6, 1, 1),
        "down_blocks.0.downsamplers.0.conv": (6, 4, 3, 3),
        "up_blocks.0.upsamplers.0.conv": (6, 6, 3, 3),
        "mid_block.resnets.1.time_emb_proj": (6, 7),
        "time_embedding.linear_1": (7, 4),
    },
    "text_encoder": {
        "text_model.encoder.layers.0.self_attn.q_proj": (5, 5),
        "text_model.encoder.layers.1.mlp.fc1": (8, 5),
    },
    "text_encoder_2": {"text_model.encoder.layers.0.self_attn.out_proj": (5, 5)},
}
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def lora(shape: tuple[int, ...], rank: int, kind: torch.dtype, generator: torch.Generator) -> dict[str, Any]:
    out, *inputs = shape
    ones = (1,) * len(inputs[1:])
    return {
        "down": torch.randn(rank, *inputs, generator=generator).to(kind),
        "up": torch.randn(out, rank, *ones, generator=generator).to(kind),
    }


@st.composite
def adapters(draw: st.DrawFn) -> AdapterFile:
    """A LoRA or DoRA of some layers, each with a rank and an alpha of its own."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    parts: dict[str, dict[str, Any]] = {}
    for part in draw(st.sets(st.sampled_from(sorted(LAYERS)), min_size=1)):
        dora = draw(st.booleans())
        for layer in draw(st.sets(st.sampled_from(sorted(LAYERS[part])), min_size=1)):
            shape, kind = LAYERS[part][layer], draw(st.sampled_from(TYPES))
            pieces = lora(shape, draw(st.integers(1, 9)), kind, generator)
            if dora:
                pieces["dora_scale"] = torch.rand(shape[0], *(1 for _ in shape[1:]), generator=generator).to(
                    kind
                )
            alpha = draw(st.floats(1e-6, 1e6, allow_subnormal=False))
            parts.setdefault(part, {})[layer] = Lora(alpha=alpha, **pieces)
    return AdapterFile(name="drawn", parts=parts, metadata={"ss_output_name": "drawn"})


def same(one: AdapterFile, other: AdapterFile) -> bool:
    """Whether two adapters have the same tensors, bit by bit, and the same alphas."""
    if {p: v.keys() for p, v in one.parts.items()} != {p: v.keys() for p, v in other.parts.items()}:
        return False
    for part, layers in one.parts.items():
        for layer, delta in layers.items():
            pair = (delta, other.parts[part][layer])
            mine, theirs = (dict(kinds.tensors(value)) for value in pair)
            if type(pair[0]) is not type(pair[1]) or mine.keys() != theirs.keys():
                return False
            if not all(bits(value, theirs[name]) for name, value in mine.items()):
                return False
            if kinds.scale(pair[0]) != kinds.scale(pair[1]):
                return False
    return True


def bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def contents(path: Path) -> tuple[str, dict[str, str]]:
    """Hash of all tensors as they stand there, and the header's texts, which the library orders by chance."""
    return short_hash(path), safetensors.read_metadata(path)


QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(adapter=adapters())
def test_C02_kohya_to_diffusers_to_kohya_is_the_same_file(tmp_path: Path, adapter: AdapterFile) -> None:
    for style in ("kohya", "kohya-compvis"):
        first, middle, last = (tmp_path / f"{style}-{name}.safetensors" for name in "abc")
        save_adapter(first, adapter, style=style)
        save_adapter(middle, read_adapter(first), style="diffusers")
        save_adapter(last, read_adapter(middle), style=style)
        before, after = safetensors.load_torch(first), safetensors.load_torch(last)
        assert before.keys() == after.keys()
        assert all(bits(before[name], after[name]) for name in before)
        assert contents(first) == contents(last)
        assert same(read_adapter(middle), adapter) and same(read_adapter(last), adapter)


@QUICK
@given(adapter=adapters())
def test_C02_diffusers_to_kohya_to_diffusers_is_the_same_file(tmp_path: Path, adapter: AdapterFile) -> None:
    first, middle, last = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_adapter(first, adapter, style="diffusers")
    save_adapter(middle, read_adapter(first), style="kohya")
    save_adapter(last, read_adapter(middle), style="diffusers")
    assert contents(first) == contents(last)
    assert same(read_adapter(first), adapter)


@pytest.mark.parametrize("kind", TYPES)
def test_C02_a_trainer_s_file_comes_back_with_its_alphas_in_their_own_type(tmp_path: Path, kind: Any) -> None:
    """kohya saves alpha in the type of the other tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (layer, shape) in enumerate(LAYERS["unet"].items()):
        pieces = lora(shape, number + 1, kind, generator)
        base = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{base}.lora_{side}.weight": pieces[side] for side in ("down", "up")}
        tensors[f"{base}.alpha"] = torch.tensor(number + 0.5, dtype=kind)
    first, middle, last = (tmp_path / name for name in "abc")
    safetensors.save_torch(first, tensors)
    save_adapter(middle, read_adapter(first), style="diffusers")
    save_adapter(last, read_adapter(middle), style="kohya")
    found = safetensors.load_torch(last)
    assert found.keys() == tensors.keys() and all(bits(found[name], tensors[name]) for name in tensors)
    assert short_hash(first) == short_hash(last) != short_hash(middle)


def test_C02_alpha_is_written_where_there_was_none(tmp_path: Path) -> None:
    """Without alpha the scale is 1 to everybody; a file that says so cannot be read otherwise."""
    pieces = lora((6, 6), 3, torch.float32, torch.Generator().manual_seed(1))
    tensors = {
        "lora_unet_conv_in.lora_down.weight": pieces["down"],
        "lora_unet_conv_in.lora_up.weight": pieces["up"],
    }
    safetensors.save_torch(tmp_path / "a", tensors)
    save_adapter(tmp_path / "b", read_adapter(tmp_path / "a"), style="kohya")
    found = safetensors.load_torch(tmp_path / "b")
    assert found.pop("lora_unet_conv_in.alpha") == 3.0 and found.keys() == tensors.keys()
    save_adapter(tmp_path / "c", read_adapter(tmp_path / "a"), style="diffusers")
    config = json.loads(safetensors.read_metadata(tmp_path / "c")["lora_adapter_metadata"])
    assert config == {"unet.r": 3, "unet.lora_alpha": 3.0, "unet.target_modules": ["conv_in"]}


def test_C02_an_entry_scale_becomes_the_alpha_that_means_the_same(tmp_path: Path) -> None:
    pieces = lora((6, 6), 3, torch.float16, torch.Generator().manual_seed(1))
    tensors = {
        "lora_unet_conv_in.lora_down.weight": pieces["down"],
        "lora_unet_conv_in.lora_up.weight": pieces["up"],
        "lora_unet_conv_in.alpha": torch.tensor(3.0),
        "lora_unet_conv_in.scale": torch.tensor(0.1),  # times 3 no number of single precision
    }
    safetensors.save_torch(tmp_path / "a", tensors)
    expected = float(tensors["lora_unet_conv_in.scale"])
    for style in ("kohya", "diffusers"):
        save_adapter(tmp_path / style, read_adapter(tmp_path / "a"), style=style)
        delta = read_adapter(tmp_path / style).parts["unet"]["conv_in"]
        assert kinds.scale(delta) == expected
    alpha = safetensors.load_torch(tmp_path / "kohya")["lora_unet_conv_in.alpha"]
    assert alpha.dtype == torch.float64


def lycoris(generator: torch.Generator) -> dict[str, dict[str, torch.Tensor]]:
    """One layer of each other kind, as LyCORIS names it; weights are (8, 6) or (8, 6, 3, 3)."""

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    alpha = {"alpha": torch.tensor(1.5)}
    return {
        "loha": {
            "hada_w1_a": r(8, 2),
            "hada_w1_b": r(2, 6),
            "hada_w2_a": r(8, 2),
            "hada_w2_b": r(2, 6),
            **alpha,
        },
        "loha_conv": {
            "hada_w1_a": r(2, 8),
            "hada_w1_b": r(2, 6),
            "hada_w2_a": r(2, 8),
            "hada_w2_b": r(2, 6),
            "hada_t1": r(2, 2, 3, 3),
            "hada_t2": r(2, 2, 3, 3),
            **alpha,
        },
        "lokr": {"lokr_w1": r(2, 2), "lokr_w2": r(4, 3), **alpha},
        "lokr_low": {
            "lokr_w1_a": r(2, 1),
            "lokr_w1_b": r(1, 2),
            "lokr_w2_a": r(4, 1),
            "lokr_w2_b": r(1, 3),
            **alpha,
        },
        "lokr_conv": {
            "lokr_w1": r(2, 2),
            "lokr_w2_a": r(1, 4),
            "lokr_w2_b": r(1, 3),
            "lokr_t2": r(1, 1, 3, 3),
            **alpha,
        },
        "locon": {
            "lora_down.weight": r(2, 6, 1, 1),
            "lora_mid.weight": r(2, 2, 3, 3),
            "lora_up.weight": r(8, 2, 1, 1),
            **alpha,
        },
        "diff": {"diff": r(8, 6), "diff_b": r(8)},
        "bias": {"lora_down.weight": r(2, 6), "lora_up.weight": r(8, 2), "diff_b": r(8), **alpha},
        "norm": {"w_norm": r(8), "b_norm": r(8)},
        "dora_in": {
            "lora_down.weight": r(2, 6),
            "lora_up.weight": r(8, 2),
            "dora_scale": r(1, 6),
            **alpha,
        },
    }


@pytest.mark.parametrize("name", lycoris(torch.Generator()))
def test_C02_other_kinds_keep_kohya_names_and_diffusers_has_none_for_them(tmp_path: Path, name: str) -> None:
    pieces = lycoris(torch.Generator().manual_seed(2))[name]
    tensors = {f"lora_unet_mid_block_x.{key}": value for key, value in pieces.items()}
    safetensors.save_torch(tmp_path / "a", tensors)
    adapter = read_adapter(tmp_path / "a")
    assert not adapter.unmatched and list(adapter.parts["unet"]) == ["mid_block.x"]
    save_adapter(tmp_path / "b", adapter, style="kohya")
    found = safetensors.load_torch(tmp_path / "b")
    assert found.keys() == tensors.keys() and all(bits(found[key], tensors[key]) for key in tensors)
    with pytest.raises(UsageError, match=r"'mid_block\.x'.*use the style kohya"):
        save_adapter(tmp_path / "c", adapter, style="diffusers")
    assert not (tmp_path / "c").exists()


def test_text_encoders_have_the_prefixes_of_their_family(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    text = {
        "text_model.encoder.layers.0.mlp.fc1": Lora(alpha=1.0, **lora((8, 5), 2, torch.float32, generator))
    }

    def prefixes(**parts: dict[str, Any]) -> set[str]:
        save_adapter(tmp_path / "a", AdapterFile(name="a", parts=parts), style="kohya")
        return {"_".join(name.split("_")[:2]) for name in safetensors.load(tmp_path / "a")}

    def cross_attention(width: int) -> dict[str, Lora]:
        return {f"{ATTENTION}.attn2.to_k": Lora(alpha=1.0, **lora((6, width), 2, torch.float32, generator))}

    assert prefixes(text_encoder=text) == {"lora_te"}
    assert prefixes(unet=cross_attention(768), text_encoder=text) == {"lora_unet", "lora_te"}
    assert prefixes(unet=cross_attention(2048), text_encoder=text) == {"lora_unet", "lora_te1"}
    assert prefixes(text_encoder=text, text_encoder_2=text) == {"lora_te1", "lora_te2"}
    assert prefixes(text_encoder=text, text_encoder_3=text) == {"lora_te1", "lora_te3"}
    transformer = {
        "transformer_blocks.0.attn.to_q": Lora(alpha=1.0, **lora((4, 4), 1, torch.float32, generator))
    }
    assert prefixes(transformer=transformer) == {"lora_transformer"}


def test_the_upsampler_of_the_first_block_stands_where_its_family_has_it(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    plain = Lora(alpha=1.0, **lora((4, 4), 1, torch.float32, generator))

    def stems(*layers: str) -> set[str]:
        adapter = AdapterFile(name="a", parts={"unet": dict.fromkeys(layers, plain)})
        save_adapter(tmp_path / "a", adapter, style="kohya-compvis")
        assert read_adapter(tmp_path / "a").parts["unet"].keys() == set(layers)
        return {
            name.partition(".")[0].removeprefix("lora_unet_") for name in safetensors.load(tmp_path / "a")
        }

    assert "output_blocks_2_2_conv" in stems("up_blocks.0.upsamplers.0.conv")
    sd1 = stems(
        "up_blocks.0.upsamplers.0.conv", "up_blocks.1.upsamplers.0.conv", "up_blocks.3.resnets.0.conv1"
    )
    assert {"output_blocks_2_1_conv", "output_blocks_5_2_conv"} <= sd1


def one(**changes: Any) -> AdapterFile:
    pieces = lora((4, 4), 1, torch.float32, torch.Generator().manual_seed(5))
    return AdapterFile(**{"name": "a", "parts": {"unet": {"conv_in": Lora(alpha=1.0, **pieces)}}, **changes})


def test_texts_travel_and_hashes_of_the_old_file_do_not(tmp_path: Path) -> None:
    texts = {"ss_output_name": "x", "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}
    adapter = one(metadata={**texts, "modelspec.hash_sha256": "0x00"}, contract_json='{"steps": 4}')
    for style in ("kohya", "diffusers"):
        save_adapter(tmp_path / "a", adapter, style=style)
        found = read_adapter(tmp_path / "a")
        assert found.metadata == {"ss_output_name": "x"} and found.contract_json == '{"steps": 4}'
        assert found.style == style and found.name == "a"


def dora_on_one_layer() -> AdapterFile:
    plain = one().parts["unet"]["conv_in"]
    assert isinstance(plain, Lora)
    dora = Lora(alpha=1.0, down=plain.down, up=plain.up, dora_scale=torch.ones(4, 1))
    return one(parts={"unet": {"conv_in": plain, "conv_out": dora}})


@pytest.mark.parametrize(
    ("make", "style", "told"),
    [
        (
            lambda: one(unmatched=("what.is.this",)),
            "kohya",
            r"1 tensors of 'a' .*'what\.is\.this'.*keep the file",
        ),
        (lambda: one(metadata={"format": "pt"}), "kohya", "'format' is written by this function"),
        (lambda: one(metadata={"lora_adapter_metadata": "{}"}), "diffusers", "use another name"),
        (dora_on_one_layer, "diffusers", "only some layers of unet have a DoRA scale; use the style kohya"),
        (
            lambda: one(parts={"unet": {"hidden_1": one().parts["unet"]["conv_in"]}}),
            "kohya",
            "style diffusers",
        ),
        (
            lambda: one(parts={"unet": dict.fromkeys(("a.b", "a_b"), one().parts["unet"]["conv_in"])}),
            "kohya",
            "'a_b' could not be read back",
        ),
        (
            lambda: one(parts={"unet": {"x.y": one().parts["unet"]["conv_in"]}}),
            "kohya-compvis",
            "'x.y' could not be read back",
        ),
    ],
)
def test_what_would_be_lost_is_refused(
    tmp_path: Path, make: Callable[[], AdapterFile], style: Any, told: str
) -> None:
    with pytest.raises(UsageError, match=told) as error:
        save_adapter(tmp_path / "x.safetensors", make(), style=style)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
