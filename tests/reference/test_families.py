"""Small random models of every family: fewstep's latents are those of diffusers' pipelines.

Both start from the same noise, with guidance, in float32, by each family's own scheduler; see
``families_builder`` and ``families_drawing``. The models have no ``fewstep.json``, so the contract that is
derived is tested too.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.engine.backends.base import Conditions
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError
from fewstep.models import load

sys.path.append(str(Path(__file__).parent))
import families_drawing as drawing
from families_builder import CASES, Case, build

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers"),
]

LARGEST = 1e-4
"""Largest absolute difference of the final latents."""
SEEN = 1e-3
"""What a wrong constant or weight must differ by at least."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Case -> its folder, built when it is first asked for."""
    root, built = tmp_path_factory.mktemp("families"), {}

    def folder(case: Case) -> Path:
        if case not in built:
            built[case] = build(case, root / case.name)
        return built[case]

    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_C05_family_draws_as_diffusers(case, folders):
    folder = folders(case)
    ours, theirs = drawing.draw_ours(folder, case), drawing.draw_theirs(folder, case)
    assert ours.shape == theirs.shape and theirs.std() > 0.3
    assert np.abs(ours - theirs).max() <= LARGEST


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.scheduler == "own" and not case.parts], ids=lambda case: case.name
)
def test_raw_outputs_have_ordinary_size(case, folders):
    """Nothing is tested where an output is next to nothing."""
    engine = Engine(folders(case), "torch", threads=1)
    rng = np.random.default_rng(0)
    given = {"prompt": drawing.PROMPT, "width": 64, "height": 64}
    if case.mode == "instruct":
        given["init_image"] = drawing.picture()
    told = engine._embed(resolve(engine.info, **given))[0].conditions
    c = engine.info.latent_channels
    if engine.info.inputs != "latents":
        channels = {"inpaint": c + 1, "instruct": c}[engine.info.inputs]
        told = told.with_concat(rng.standard_normal((1, channels, 8, 8), dtype=np.float32))
    x = rng.standard_normal((2, c, 8, 8), dtype=np.float32)
    raw = engine.backend.denoise(x, np.full(2, 500, dtype=np.float32), told)
    assert 0.3 < raw.std() < 3
    assert 0.3 < told.tokens.std() < 3
    engine.close()


def _copied(folders, case, tmp_path) -> Path:
    return Path(shutil.copytree(folders(case), tmp_path / "model"))


def _change_scheduler(folder: Path, **changes: object) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        (Case("sd1", "txt2img"), {"beta_end": 0.0125}),
        (Case("sd1", "txt2img"), {"set_alpha_to_one": True}),
        (Case("sd2", "txt2img"), {"beta_start": 0.0009}),
        (Case("sd2", "txt2img"), {"prediction_type": "epsilon"}),
        (Case("sdxl", "txt2img"), {"beta_schedule": "linear"}),
        (Case("sdxl", "txt2img"), {"timestep_spacing": "linspace"}),
        (Case("sd3", "txt2img"), {"shift": 2.9}),
        (Case("pixart-alpha", "txt2img"), {"beta_end": 0.0202}),
        (Case("pixart-sigma", "txt2img"), {"timestep_spacing": "trailing"}),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "-".join(map(str, value)),
)
def test_another_schedule_constant_is_seen(case, changes, folders, tmp_path):
    """The comparison above would fail if one constant were wrong on our side."""
    changed = _copied(folders, case, tmp_path)
    _change_scheduler(changed, **changes)
    ours, theirs = drawing.draw_ours(changed, case), drawing.draw_theirs(folders(case), case)
    assert np.abs(ours - theirs).max() > SEEN


_KEYS = {
    "sd1": ("unet", "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v.weight"),
    "sd2": ("text_encoder", "text_model.encoder.layers.3.mlp.fc1.weight"),
    "sdxl": ("unet", "add_embedding.linear_1.weight"),
    "sd3": ("transformer", "context_embedder.weight"),
    "pixart-alpha": ("transformer", "adaln_single.emb.resolution_embedder.linear_1.weight"),
    "pixart-sigma": ("transformer", "caption_projection.linear_1.weight"),
}


@pytest.mark.parametrize("family", _KEYS)
@pytest.mark.parametrize("how", ["zeroed", "dropped"])
def test_A10_a_missing_weight_is_seen(family, how, folders, tmp_path):
    """A tensor of zeros changes the latents, and one that is missing is refused."""
    case = Case(family, "txt2img")
    folder = _copied(folders, case, tmp_path)
    part, key = _KEYS[family]
    file = next((folder / part).glob("*.safetensors"))
    tensors = safetensors.load(file)
    # transformers 5 left out the prefix that earlier versions wrote
    key = key if key in tensors else key.removeprefix("text_model.")
    if how == "dropped":
        del tensors[key]
        safetensors.save(file, tensors, {"format": "pt"})
        with pytest.raises(CheckpointError, match=f"{key} is missing") as caught:
            drawing.draw_ours(folder, case)
        assert "\n" not in str(caught.value) and load.check_index(folder).family.title in str(caught.value)
        return
    tensors[key] = np.zeros_like(tensors[key])
    safetensors.save(file, tensors, {"format": "pt"})
    ours, theirs = drawing.draw_ours(folder, case), drawing.draw_theirs(folders(case), case)
    assert np.abs(ours - theirs).max() > SEEN


def test_pndm_image_to_image_is_right_where_diffusers_skips_a_level(folders):
    """diffusers lists PNDM's second time twice; cutting the list for a strength takes one of the first away.

    What is left is a trial step without its correction's time, and the third evaluation is a level too clean.
    With the times of an uncut run from there on, its pipeline gives our latents.
    """
    import diffusers

    case = Case("sd1", "img2img")
    folder = folders(case)
    ours = drawing.draw_ours(folder, case)
    assert np.abs(ours - drawing.draw_theirs(folder, case)).max() > SEEN

    def right(pipe, steps, strength, device):
        kept = int(steps * strength)
        rest = sorted(set(pipe.scheduler.timesteps.tolist()), reverse=True)[steps - kept :]
        return torch.tensor([rest[0], rest[1], *rest[1:]]), kept

    cls = diffusers.StableDiffusionImg2ImgPipeline
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "get_timesteps", right)
        theirs = drawing.draw_theirs(folder, case)
    assert np.abs(ours - theirs).max() <= LARGEST


@pytest.mark.parametrize(
    "case", [Case("sdxl", "txt2img"), Case("sd3", "txt2img")], ids=lambda case: case.name
)
def test_clip_skip_is_diffusers(case, folders):
    """Without guidance: diffusers' pipelines skip no layers for the negative prompt, we do."""
    folder = folders(case)
    plain = drawing.draw_ours(folder, case, guidance_scale=1.0)
    ours = drawing.draw_ours(folder, case, guidance_scale=1.0, clip_skip=1)
    theirs = drawing.draw_theirs(folder, case, guidance_scale=1.0, clip_skip=1)
    assert np.abs(ours - plain).max() > SEEN
    assert np.abs(ours - theirs).max() <= LARGEST


def test_clip_skip_of_one_encoder_is_an_earlier_state_through_the_last_normalisation(folders):
    """The formula of diffusers' StableDiffusionPipeline, whose own fails with transformers 5."""
    engine = Engine(folders(Case("sd1", "txt2img")), "torch", threads=1)
    request = resolve(engine.info, prompt=drawing.PROMPT, clip_skip=2)
    ours = engine._embed(request)[0].conditions.tokens
    encoder = engine.backend._text.encoders[0]
    ids = torch.from_numpy(engine._tokens[0].encode({"negative": "", "prompt": drawing.PROMPT})[0])
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).hidden_states
        expected = encoder.final_layer_norm(states[-3]).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert engine.info.max_clip_skip == 3
    engine.close()


@pytest.mark.parametrize(
    ("case", "settings"),
    [
        (Case("sd3", "txt2img"), {}),
        (
            Case("sdxl", "txt2img"),
            {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.9, 1.2, 1.0, 0.8]},
        ),
    ],
    ids=["sd3-shift", "sdxl-statistics"],
)
def test_pictures_are_decoded_and_encoded_as_diffusers_does(case, settings, folders, tmp_path):
    """Scale and shift of the latents, or their statistics, on the way out and in."""
    folder = _copied(folders, case, tmp_path)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    engine = Engine(folder, "torch", threads=1)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((1, engine.info.latent_channels, 8, 8), dtype=np.float32)
    pixels = rng.uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32)
    ours = engine.backend.decode(latents), engine.backend.encode_image(pixels)
    auto = load.autoencoder(folder / "vae")
    scale, shift = auto.config.scaling_factor, auto.config.shift_factor or 0.0
    mean, std = (
        torch.tensor(settings.get(key, [default])).view(1, -1, 1, 1)
        for key, default in (("latents_mean", 0.0), ("latents_std", 1.0))
    )
    with torch.no_grad():
        decoded = auto.decode(torch.from_numpy(latents) * std / scale + mean + shift).sample
        encoded = (auto.encode(torch.from_numpy(pixels)).latent_dist.mode() - mean - shift) * scale / std
    assert decoded.std() > 0.05 and encoded.std() > 0.05
    np.testing.assert_allclose(ours[0], decoded.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours[1], encoded.numpy(), atol=1e-5)
    raw = engine.backend.encode_image(pixels, scaled=False)
    np.testing.assert_allclose(raw, (encoded * std / scale + mean + shift).numpy(), atol=1e-5)
    engine.close()


def test_chunks_of_text_stand_behind_one_another(folders):
    """Two chunks of 77 tokens, as a long prompt has them, reach the network; T5's tokens come once."""
    from fewstep.engine.backends.base import chained, stacked

    engine = Engine(folders(Case("sd3", "txt2img")), "torch", threads=1)
    engine._embed(resolve(engine.info, prompt=""))
    encoded = [tokens.encode({"a": "a red apple", "b": "blue"}) for tokens in engine._tokens]
    ids, masks = [list(part) for part in zip(*((ids, mask) for ids, mask, _ in encoded), strict=True)]
    first = engine.backend.encode_text(ids, masks)
    second = engine.backend.encode_text([*ids[:2], None], [*masks[:2], None])
    both = chained([first, second])
    assert first.tokens.shape[1] == 77 + 256 and second.tokens.shape[1] == 77
    assert both.tokens.shape == (2, 77 + 256 + 77, 48)
    assert np.array_equal(both.pooled, first.pooled)
    x = np.random.default_rng(0).standard_normal((2, 16, 8, 8), dtype=np.float32)
    t = np.full(2, 500, dtype=np.float32)
    one, two = engine.backend.denoise(x, t, first), engine.backend.denoise(x, t, both)
    assert np.abs(one - two).max() > SEEN
    alone = stacked([both.rows(slice(1, 2)), both.rows(slice(0, 1))])
    np.testing.assert_allclose(engine.backend.denoise(x[::-1].copy(), t, alone)[::-1], two, atol=1e-5)
    engine.close()


def test_sizes_that_are_not_square_agree_too(folders):
    """SDXL is told height and width; PixArt-alpha the resolution and the aspect ratio."""
    for family in ("sdxl", "pixart-alpha"):
        case = Case(family, "txt2img")
        engine = Engine(folders(case), "torch", threads=1)
        engine.backend.prepare(96, 64, batches=(1,), encode=False)
        told, _ = engine._embed(resolve(engine.info, prompt=drawing.PROMPT))
        one = told.text(1)
        x = np.random.default_rng(0).standard_normal((1, 4, 8, 12), dtype=np.float32)
        ours = engine.backend.denoise(x, np.full(1, 400, dtype=np.float32), one)
        with torch.no_grad():
            theirs = _plainly(folders(case), family, x, one)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        engine.close()


def _plainly(folder: Path, family: str, x: np.ndarray, told: Conditions) -> np.ndarray:
    """One call of the bare network for a picture of 96x64 pixels."""
    tokens, t = torch.from_numpy(told.tokens), torch.tensor([400])
    if family == "sdxl":
        added = {
            "text_embeds": torch.from_numpy(told.pooled),
            "time_ids": torch.tensor([[64.0, 96.0, 0.0, 0.0, 64.0, 96.0]]),
        }
        network = load.denoiser(folder / "unet")
        return network(torch.from_numpy(x), t, tokens, added_cond_kwargs=added).sample.numpy()
    added = {"resolution": torch.tensor([[64.0, 96.0]]), "aspect_ratio": torch.tensor([[64 / 96]])}
    network = load.transformer(folder, load.check_index(folder))
    raw = network(
        torch.from_numpy(x),
        encoder_hidden_states=tokens,
        timestep=t,
        added_cond_kwargs=added,
        encoder_attention_mask=torch.from_numpy(told.mask),
    ).sample
    return raw[:, :4].numpy()
