"""Names and multipliers of blocks."""

from __future__ import annotations

import importlib.util
import math

import pytest

from fewstep.checkpoint.merging import blocks
from fewstep.errors import UsageError

SD1 = [f"IN{n:02d}" for n in range(12)] + ["M00"] + [f"OUT{n:02d}" for n in range(12)]
SDXL = [f"IN{n:02d}" for n in range(9)] + ["M00"] + [f"OUT{n:02d}" for n in range(9)]


def names(count: int) -> list[str]:
    found = [f"input_blocks.{n}.0.weight" for n in range(count)]
    found += [f"middle_block.{n}.norm.weight" for n in range(3)]
    found += [f"output_blocks.{n}.1.proj.bias" for n in range(count)]
    return [*found, "out.0.weight", "out.2.bias", "time_embed.0.weight", "label_emb.0.0.weight"]


@pytest.mark.parametrize(("count", "expected"), [(12, SD1), (9, SDXL)])
def test_blocks_in_their_order(count: int, expected: list[str]) -> None:
    given = {name: name for name in reversed(names(count))}
    of, there = blocks.assign(given)
    assert there == expected
    assert of["input_blocks.3.0.weight"] == "IN03"
    assert of["middle_block.2.norm.weight"] == "M00"
    assert of["output_blocks.0.1.proj.bias"] == "OUT00"
    assert of["out.0.weight"] == of["out.2.bias"] == f"OUT{count - 1:02d}"
    assert of["time_embed.0.weight"] == of["label_emb.0.0.weight"] == "BASE"


@pytest.mark.skipif(importlib.util.find_spec("sd_mecha") is None, reason="sd-mecha is not installed")
@pytest.mark.parametrize(("config", "base"), [("sd1-ldm", "sd1"), ("sdxl-sgm", "sdxl")])
def test_blocks_are_those_of_sd_mecha(config: str, base: str) -> None:
    import sd_mecha
    from sd_mecha.extensions import merge_methods, model_configs

    prefix = "model.diffusion_model."
    keys = [key for key in model_configs.resolve(config).keys() if key.startswith(prefix)]
    of, _ = blocks.assign({key: key.removeprefix(prefix) for key in keys})
    kind = {"sd1": "convert_sd1_blocks_to_ldm", "sdxl": "convert_sdxl_blocks_to_sgm"}[base]
    chosen = merge_methods.resolve(kind)
    assert sd_mecha is not None and chosen is not None
    source = {"IN": "input_blocks", "OU": "output_blocks", "M0": "middle_block", "BA": ""}
    assert all(source[block[:2]] in key or ".out." in key for key, block in of.items())


def test_pairs_ranges_and_defaults() -> None:
    found = blocks.read_weights("in00=0.1, IN04-IN06=0.5 MID=1", SDXL, 0.25)
    assert found["IN00"] == 0.1
    assert [found[f"IN{n:02d}"] for n in range(3, 8)] == [0.25, 0.5, 0.5, 0.5, 0.25]
    assert found["M00"] == 1.0
    assert found["BASE"] == found["VAE"] == found["OUT00"] == 0.25
    assert blocks.read_weights("BASE=0.7", SDXL, 0.0)["VAE"] == 0.7
    assert blocks.read_weights("BASE=0.7,VAE=0", SDXL, 0.0)["VAE"] == 0.0
    assert blocks.out_of_range({"A": -0.1, "B": 0.0, "C": 1.0, "D": 1.1}) == ["A", "D"]


def test_lists_of_numbers() -> None:
    found = blocks.read_weights(",".join(str(n / 100) for n in range(25)), SD1, 0.9)
    assert (found["IN00"], found["M00"], found["OUT11"], found["BASE"]) == (0.0, 0.12, 0.24, 0.9)
    found = blocks.read_weights(" ".join(str(n / 100) for n in range(20)), SDXL, 0.9)
    assert (found["BASE"], found["IN00"], found["OUT08"]) == (0.0, 0.01, 0.19)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("IN09=1", "no IN09; it has BASE, IN00"),
        ("IN05-IN09=1", "no IN09"),
        ("IN05-IN04=1", "no IN05-IN04"),
        ("IN00-OUT01=1", "no IN00-OUT01"),
        ("IN00-IN99999999999=1", "no IN09"),
        ("IN00=1,IN00=2", "names IN00 twice"),
        ("IN00-IN02=1,IN01=2", "names IN01 twice"),
        ("IN00=x", "'IN00=x' is no finite number"),
        ("IN00=nan", "is no finite number"),
        ("IN00=1,0.5", "'0.5' has no value"),
        ("1,2,3", "has 3 numbers, and this model has 19 blocks"),
        (" , ", "is empty"),
    ],
)
def test_bad_weights_are_a_sentence(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        blocks.read_weights(text, SDXL, 0.5)
    assert said in str(error.value)
    assert "give" in str(error.value) or "it has" in str(error.value)


def test_a_model_without_a_unet_has_no_blocks() -> None:
    with pytest.raises(UsageError, match="no U-Net"):
        blocks.read_weights("IN00=1", [], 0.5)
    assert math.isfinite(blocks.read_weights("IN00=1", ["IN00"], 0.5)["IN00"])
