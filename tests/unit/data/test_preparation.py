"""Preparing the emoji set for a denoiser: selection file, and a cache that is what the networks compute."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from fewstep.data import preparation
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.compositions import ComposedDrawings, compositions
from fewstep.data.emoji import Drawing, Drawings
from fewstep.errors import RecipeError
from fewstep.models import autoencoder as autoencoders
from fewstep.models import load, text

ROOT = Path(__file__).parents[3]


@pytest.fixture
def drawings(tmp_path):
    """Three drawings of 16 px: a set as `build_drawings` leaves it, but smaller."""
    rgba = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 4), dtype=np.uint8)
    items = [
        Drawing(
            style=style,
            group=group,
            label=label,
            tags=("fruit",),
            icon=label,
            package="p",
            version="1",
            licence="MIT",
            split="train",
        )
        for label, style, group in (
            ("red apple", "noto", "food-drink"),
            ("red apple", "twemoji", "food-drink"),
            ("rocket", "noto", "travel-places"),
        )
    ]
    return Drawings(folder=tmp_path / "set", rgba=rgba, items=tuple(items), fingerprint="f" * 64, sources=())


def test_the_bundled_selection_is_what_the_model_card_says():
    chosen = preparation.load_selection()
    card = (ROOT / "recipes" / "emoji-128" / "card.md").read_text("utf-8")
    told = re.search(r"in four styles: (.*)\.\n", card)
    assert told is not None and sorted(re.findall(r'"([^"]+)"', told[1])) == sorted(chosen.styles)
    assert chosen.per_drawing == 8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("stiles: [noto]", "stiles"),
        ("styles: [notto]", "notto"),
        ("per_drawing: 0", "per_drawing"),
        ("caption_variants: 9", "caption_variants"),
        ("[", "not a selection"),
    ],
)
def test_bad_selection(tmp_path, content, reason):
    (tmp_path / "data.yaml").write_text(content)
    with pytest.raises(RecipeError, match=reason):
        preparation.load_selection(tmp_path / "data.yaml")


def test_cache_holds_what_the_networks_compute(drawings, tiny_components, tmp_path):
    load.save_pipeline(tmp_path / "parts", tiny_components, texts={}, half=False)
    selection = preparation.Selection(
        styles=("noto", "twemoji"), groups=("food-drink",), per_drawing=2, caption_variants=2, mirrored=False
    )
    calls = []
    cache = preparation.latents(
        tmp_path / "cache",
        drawings,
        autoencoder=tmp_path / "parts" / "vae",
        text_folder=tmp_path / "parts",
        selection=selection,
        on_progress=lambda *call: calls.append(call),
    )
    assert len(cache) == 4  # two styles of one object, two backgrounds each; the rocket is not selected
    assert {name for name, _, _ in calls} == {"latents", "text"}
    items = compositions(
        drawings.items,
        load_backgrounds(),
        per_drawing=2,
        caption_variants=2,
        styles=selection.styles,
        groups=selection.groups,
    )
    pixels = ComposedDrawings(drawings, items).pixels([0, 3])
    expected = autoencoders.encode(tiny_components.autoencoder, pixels)
    np.testing.assert_allclose(cache.latents[[0, 3], 0], expected, atol=2e-3, rtol=2e-3)
    row = cache.caption_of[3, 0]
    assert cache.captions[row] == items[3].captions[0]
    embedding = text.encode([cache.captions[row]], tiny_components.text_encoder, tiny_components.tokenizer)
    np.testing.assert_allclose(cache.text[row], embedding[0].numpy(), atol=2e-3, rtol=2e-3)
    assert json.loads((tmp_path / "cache" / "cache.json").read_text())["mirrored"] is False


def test_another_autoencoder_is_another_cache(drawings, tiny_components, tmp_path):
    from fewstep.errors import DataError

    load.save_pipeline(tmp_path / "parts", tiny_components, texts={}, half=False)
    arguments = {
        "text_folder": tmp_path / "parts",
        "selection": preparation.Selection(per_drawing=1, caption_variants=1, mirrored=False),
    }
    vae = tmp_path / "parts" / "vae"
    preparation.latents(tmp_path / "cache", drawings, autoencoder=vae, **arguments)
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.25}))
    with pytest.raises(DataError, match="other weights or data"):
        preparation.latents(tmp_path / "cache", drawings, autoencoder=vae, **arguments)


def test_own_images_are_encoded_from_the_command_line(tiny_components, tmp_path, capsys):
    from PIL import Image

    from fewstep.cli.main import main
    from fewstep.data.latent_cache import open_cache

    load.save_pipeline(tmp_path / "parts", tiny_components, texts={}, half=False)
    (tmp_path / "own").mkdir()
    for n in range(3):
        pixels = np.full((20, 24, 3), 60 * n, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{n}.png")
        (tmp_path / "own" / f"{n}.txt").write_text(f"red apples {n}")
    out = tmp_path / "cache"
    given = ["--autoencoder", str(tmp_path / "parts" / "vae"), "--text", str(tmp_path / "parts")]
    command = ["data", str(tmp_path / "own"), "--out", str(out), *given, "--quiet"]
    assert main([*command, "--size", "16x16"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    cache = open_cache(out)
    assert cache.latents.shape[2:] == (4, 8, 8)
    assert sorted(cache.captions) == ["", "red apples 0", "red apples 1", "red apples 2"]

    assert main(command) == 2
    assert "give all four" in capsys.readouterr().err
    assert main(["data", str(tmp_path / "none")]) != 0
