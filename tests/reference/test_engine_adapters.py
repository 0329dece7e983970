"""Adapters in the torch engine: nothing of one request is left in the next, and all of a file or nothing."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.engine.adapters import AdapterUse, Catalogue
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled, CheckpointError

sys.path.append(str(Path(__file__).parent))
from families_builder import Case, build

SIDE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(Case("sd1", "txt2img"), tmp_path_factory.mktemp("base") / "sd1")


def lora(folder: Path, seed: int) -> dict[str, torch.Tensor]:
    """Of the denoiser and of the text encoder, under kohya's names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for part, prefix, ends in (
        ("unet", "lora_unet", ("attn2.to_q", "attn1.to_v")),
        ("text_encoder", "lora_te", ("self_attn.q_proj", "mlp.fc1")),
    ):
        for name, value in load_file(next((folder / part).glob("*.safetensors"))).items():
            layer = name.removesuffix(".weight")
            if layer.endswith(ends) and value.ndim == 2 and name.endswith(".weight"):
                layer = layer if part == "unet" or layer.startswith("text_model") else f"text_model.{layer}"
                stem = f"{prefix}_{layer.replace('.', '_')}"
                tensors[f"{stem}.lora_down.weight"] = torch.randn(2, value.shape[1], generator=generator)
                tensors[f"{stem}.lora_up.weight"] = 0.3 * torch.randn(value.shape[0], 2, generator=generator)
                tensors[f"{stem}.alpha"] = torch.tensor(2.0)
    assert any(name.startswith("lora_te_") for name in tensors)
    return tensors


@pytest.fixture(scope="module")
def loras(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "wool")):
        save_file(lora(folder, seed), place / f"{name}.safetensors")
    good = lora(folder, 2)
    first = next(iter(good))
    stem = first.rpartition(".lora_")[0]
    save_file({**good, f"{stem}.strange": torch.ones(2)}, place / "odd.safetensors")
    save_file({**good, "bundle_emb.word.string_to_param.*": torch.ones(1, 16)}, place / "emb.safetensors")
    wide = {name: value[:, :3].contiguous() if "lora_down" in name else value for name, value in good.items()}
    save_file(wide, place / "wide.safetensors")
    save_file({**good, f"{stem}.alpha": torch.tensor(float("nan"))}, place / "nan.safetensors")
    poisoned = {name: value.clone() for name, value in good.items()}
    poisoned[list(poisoned)[-2]][0, 0] = float("inf")
    save_file(poisoned, place / "inf.safetensors")
    rank = {**good, f"{stem}.lora_down.weight": torch.zeros(100_000, 16)}
    rank[f"{stem}.lora_up.weight"] = torch.zeros(16, 100_000)
    save_file(rank, place / "rank.safetensors")
    return place


@pytest.fixture(scope="module")
def engine(folder: Path, loras: Path) -> Any:
    drawing = Engine(folder, "torch", threads=1, catalogue=Catalogue([loras]))
    yield drawing
    drawing.close()


def order(engine: Engine, *uses: AdapterUse, **given: Any) -> Any:
    given = {"num_inference_steps": 2, "width": SIDE, "height": SIDE, "seed": 3} | given
    return resolve(engine.info, prompt="a red apple", adapters=uses, **given)


def weights(engine: Engine) -> str:
    """A hash over all networks that an adapter can change."""
    digest = hashlib.sha256()
    backend: Any = engine.backend
    backend.prepare(SIDE, SIDE, batches=(1,), encode=False)
    for network in (backend._networks[None], backend._text):
        for name, value in network.state_dict().items():
            digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


INK, WOOL = AdapterUse(name="ink"), AdapterUse(name="wool", weight=0.5, text_weight=-0.5)


def test_O14_an_adapter_of_one_request_is_not_seen_in_the_next(
    engine: Engine, folder: Path, loras: Path
) -> None:
    orders = ((INK,), (WOOL,), (INK,), (), (INK, WOOL))
    alone = []
    for uses in orders:
        solo = Engine(folder, "torch", threads=1, catalogue=Catalogue([loras]))
        alone.append(solo.generate(order(solo, *uses)).images[0])
        solo.close()
    together = [engine.generate(order(engine, *uses)).images[0] for uses in orders]
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)
    assert np.array_equal(together[0], together[2])
    different = [together[0], together[1], together[3], together[4]]
    for index, one in enumerate(different):
        assert all(not np.array_equal(one, other) for other in different[index + 1 :])


def test_A15_weights_are_the_same_bits_after_adapters(engine: Engine) -> None:
    before = weights(engine)
    for uses in ((INK,), (WOOL,), (INK, WOOL)):
        engine.generate(order(engine, *uses))
        assert weights(engine) == before
    engine.backend.adapt(order(engine, INK).adapters and _applied(engine, INK))
    assert weights(engine) != before
    engine.backend.adapt(())
    assert weights(engine) == before


def _applied(engine: Engine, *uses: AdapterUse) -> Any:
    from fewstep.engine.adapters import applied

    return applied(order(engine, *uses).adapters, lenient=False)


def test_A15_also_when_the_request_is_cancelled(engine: Engine) -> None:
    before = weights(engine)
    with pytest.raises(Cancelled):
        engine.generate(order(engine, INK), cancelled=lambda: True)
    assert weights(engine) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("odd", "nobody knows what"),
        ("wide", "does not fit"),
        ("nan", "alpha"),
        ("inf", "not finite"),
        ("rank", "rank"),
    ],
)
def test_A14_a_file_that_does_not_fit_changes_nothing(name: str, words: str, engine: Engine) -> None:
    before = weights(engine)
    with pytest.raises(CheckpointError, match=words) as caught:
        engine.generate(order(engine, INK, AdapterUse(name=name)))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert weights(engine) == before


def test_A14_an_adapter_of_another_family_is_refused_with_the_reason(
    engine: Engine, tmp_path: Path, folder: Path
) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {
        f"{layer}.lora_down.weight": torch.zeros(2, 2048),
        f"{layer}.lora_up.weight": torch.zeros(640, 2),
    }
    save_file(tensors, tmp_path / "xl.safetensors")
    drawing = Engine(folder, "torch", threads=1, catalogue=Catalogue([tmp_path]))
    with pytest.raises(CheckpointError, match="does not fit"):
        drawing.generate(order(drawing, AdapterUse(name="xl")))
    drawing.close()


def test_unknown_tensors_are_left_out_with_a_word_where_the_user_insists(engine: Engine) -> None:
    result = engine.generate(order(engine, AdapterUse(name="odd"), insist=True))
    (said,) = [warning for warning in result.warnings if "odd.safetensors" in warning]
    assert "1 tensors are unknown and left out, the first: " in said and "strange" in said
    assert said in result.record["warnings"]


def test_embeddings_inside_are_left_out_with_a_word(engine: Engine) -> None:
    result = engine.generate(order(engine, AdapterUse(name="emb")))
    assert any("embeddings, which are not used" in warning for warning in result.warnings)


def test_weight_zero_draws_as_without(engine: Engine) -> None:
    off = engine.generate(order(engine, AdapterUse(name="ink", weight=0.0)))
    assert np.array_equal(off.images[0], engine.generate(order(engine)).images[0])
    only_text = engine.generate(order(engine, AdapterUse(name="ink", weight=0.0, text_weight=1.0)))
    assert not np.array_equal(off.images[0], only_text.images[0])


def test_an_adapter_goes_into_a_network_that_was_loaded_by_its_first_call(
    engine: Engine, folder: Path, loras: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation draws without preparing; weights loaded in inference mode could not be changed again."""
    solo = Engine(folder, "torch", threads=1, catalogue=Catalogue([loras]))
    monkeypatch.setattr(solo.backend, "prepare", lambda *_, **__: None)
    solo.generate(order(solo))
    found = solo.generate(order(solo, INK)).images[0]
    solo.close()
    assert np.array_equal(found, engine.generate(order(engine, INK)).images[0])
