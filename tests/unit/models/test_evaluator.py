"""The evaluator network, and the folder it is kept in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.checkpoint import safetensors
from fewstep.errors import CheckpointError, NotFoundError, OutputError, RecipeError, UsageError
from fewstep.models import evaluator, features
from fewstep.models.evaluator import Evaluator, EvaluatorConfig
from fewstep.models.features import load_evaluator, save_evaluator

TINY = {
    "styles": 2,
    "text_width": 6,
    "side": 16,
    "channels": [4, 8],
    "blocks": [1, 2],
    "embedding": 5,
    "dropout": 0.5,
}
LABELS = ("fox", "goose", "red apple")


def tiny(*, seed: int = 0, random: bool = True) -> Evaluator:
    torch.manual_seed(seed)
    network = evaluator.build(TINY).eval()
    if random:  # so that the blocks are more than their shortcuts
        with torch.no_grad():
            for value in network.parameters():
                value.add_(torch.randn_like(value) * 0.1)
            for name, value in network.named_buffers():
                if name.endswith("running_var"):
                    value.uniform_(0.5, 2.0)
                if name.endswith("num_batches_tracked"):
                    value.fill_(100_000)  # more than float16 holds
    return network


def images(count: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-1, 1, (count, 3, side, side)).astype(np.float32)
    )


def embeddings() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, 6)).astype(np.float32)


def save(folder: Path, network: Evaluator | None = None, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "labels": LABELS,
        "trained": (True, False, True),
        "text_embeddings": embeddings(),
        "styles": ("noto", "twemoji"),
        "backgrounds": {"sky blue": (135, 206, 235)},
        "meta": {"images_seen": 12, "drawings": "abc", "licence": "MIT"},
    }
    return save_evaluator(folder, network or tiny(), **(arguments | changes))


def test_shapes_and_ranges() -> None:
    output = tiny()(images())
    assert output.features.shape == (3, 8) and (output.features >= 0).all()
    torch.testing.assert_close(output.concept.norm(dim=-1), torch.ones(3))
    assert output.concept.shape == (3, 5) and output.style.shape == (3, 2)


def test_large_pictures_are_averaged_over_areas() -> None:
    small = images()
    large = small.repeat_interleave(3, -1).repeat_interleave(3, -2)
    # what is finer than the network's pixels must not matter, only its mean
    ripple = torch.tensor([0.1, 0.0, -0.1]).repeat(16)
    for given in (large, large + ripple):
        torch.testing.assert_close(tiny()(given).features, tiny()(small).features, atol=1e-5, rtol=1e-4)


def test_what_is_said_of_a_picture_does_not_depend_on_the_batch() -> None:
    network = tiny()
    together = network(images())
    for found, whole in zip(network(images()[1:2]), together, strict=True):
        torch.testing.assert_close(found, whole[1:2], atol=1e-5, rtol=1e-4)
    dropped = network.concept_head(network.dropout(together.features))
    torch.testing.assert_close(torch.nn.functional.normalize(dropped), together.concept)


def test_a_block_by_hand() -> None:
    """He 2016, figure 4e, with batch statistics in training and their running means in evaluation."""
    block = tiny(random=False).stages[0].train()
    torch.nn.init.dirac_(block.conv1.weight)
    torch.nn.init.dirac_(block.conv2.weight)
    x = images(2, 8).repeat(1, 2, 1, 1)[:, :4] * 3 + 1

    def normalised(values: torch.Tensor) -> torch.Tensor:
        mean, variance = values.mean((0, 2, 3), True), values.var((0, 2, 3), False, True)
        return torch.relu((values - mean) / (variance + 1e-5).sqrt())

    torch.testing.assert_close(block(x), x + normalised(normalised(x)), atol=1e-5, rtol=1e-5)
    for _ in range(200):  # the running means get there
        block(x)
    torch.testing.assert_close(block.eval()(x), x + normalised(normalised(x)), atol=0.02, rtol=0.02)


def test_a_stage_halves_its_shortcut_by_averaging() -> None:
    block = tiny(random=False).stages[1].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = images(2, 8).repeat(1, 2, 1, 1)[:, :4]
    means = x.reshape(2, 4, 4, 2, 4, 2).mean((3, 5))
    expected = torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], means)
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-4)


def test_concept_logits_are_cosines_over_the_temperature() -> None:
    network, texts = tiny(), torch.from_numpy(embeddings())
    output = network(images())
    mapped = texts @ network.text_map.weight.T + network.text_map.bias
    cosines = torch.nn.functional.cosine_similarity(output.concept[:, None], mapped[None], dim=-1)
    torch.testing.assert_close(network.concept_logits(output, texts), cosines * network.log_scale.exp())
    assert evaluator.build(TINY).log_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        network.log_scale.fill_(9.0)
    torch.testing.assert_close(network.concept_logits(output, texts), cosines * 100)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"chanels": [4]}, "unknown key 'chanels'; there are: blocks, channels"),
        ({"channels": [4, 8, 8]}, "3 channels but 2 blocks"),
        ({"channels": [4, 1024]}, "at most 512"),
        ({"side": 18}, "cannot be halved 2 times"),
        ({"styles": 0}, "styles"),
        ({"dropout": 1.0}, "dropout"),
        ({"styles": "two"}, "styles"),
    ],
)
def test_a_wrong_configuration_is_told_in_one_line(change: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as error:
        evaluator.build(TINY | change)
    assert "\n" not in str(error.value)


def test_the_default_is_small_and_has_few_enough_features() -> None:
    network = Evaluator(EvaluatorConfig(styles=6))
    assert 2e6 < sum(value.numel() for value in network.parameters()) < 4e6
    assert network(images(1, 64)).features.shape == (1, 256)


def test_a_saved_evaluator_says_the_same(tmp_path: Path) -> None:
    network = tiny()
    digest = save(tmp_path / "e", network, texts={"NOTICE": "n"})
    loaded = load_evaluator(tmp_path / "e")
    assert loaded.hash == digest == safetensors.folder_hash(tmp_path / "e")
    assert (loaded.labels, loaded.trained, loaded.styles) == (
        LABELS,
        (True, False, True),
        ("noto", "twemoji"),
    )
    assert loaded.backgrounds == {"sky blue": (135, 206, 235)}
    assert loaded.meta == {"images_seen": 12, "drawings": "abc", "licence": "MIT"}
    assert (tmp_path / "e" / "NOTICE").read_text() == "n"
    assert not loaded.module.training
    assert not any(value.requires_grad for value in loaded.module.parameters())
    np.testing.assert_allclose(loaded.text_embeddings, embeddings(), atol=2e-3)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(loaded.module.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_run_judges_bytes_in_batches(tmp_path: Path) -> None:
    save(tmp_path / "e")
    loaded = load_evaluator(tmp_path / "e")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)
    found = loaded.run(pixels, batch_size=2)
    scaled = torch.from_numpy(pixels.astype(np.float32).transpose(0, 3, 1, 2)) / 127.5 - 1
    output = loaded.module(scaled)
    logits = loaded.module.concept_logits(output, torch.from_numpy(loaded.text_embeddings))
    for array, tensor, width in (
        (found.features, output.features, 8),
        (found.concept_logits, logits, 3),
        (found.style_logits, output.style, 2),
    ):
        assert array.dtype == np.float32 and array.shape == (5, width)
        np.testing.assert_allclose(array, tensor.numpy(), atol=1e-4)
    none = loaded.run(pixels[:0])
    assert (none.features.shape, none.concept_logits.shape, none.style_logits.shape) == (
        (0, 8),
        (0, 3),
        (0, 2),
    )
    for wrong, told in ((pixels.astype(np.float32), "uint8"), (pixels[0], "uint8"), (pixels[:, :8], "48x8")):
        with pytest.raises(UsageError, match=told):
            loaded.run(wrong)
    with pytest.raises(UsageError, match="batch_size 0"):
        loaded.run(pixels, batch_size=0)


def test_the_hash_follows_the_weights_and_the_texts(tmp_path: Path) -> None:
    first = save(tmp_path / "a")
    assert save(tmp_path / "b") == first
    assert save(tmp_path / "c", tiny(seed=1)) != first
    assert save(tmp_path / "d", text_embeddings=embeddings() + 1) != first
    with pytest.raises(OutputError, match="exists"):
        save(tmp_path / "a")
    assert save(tmp_path / "a", tiny(seed=1), replace=True) != first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": ("fox", "fox", "owl")}, "twice"),
        ({"labels": (), "trained": ()}, "missing"),
        ({"trained": (True,)}, "1 flags"),
        ({"styles": ("noto",)}, "1 styles but a head for 2"),
        ({"text_embeddings": np.zeros((3, 7), np.float32)}, "text embeddings"),
    ],
)
def test_parts_that_do_not_fit_are_refused_on_both_ends(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        save(tmp_path / "e", **change)
    assert not (tmp_path / "e").exists()
    if "text_embeddings" not in change:
        save(tmp_path / "e")
        edit(tmp_path / "e", **{key: list(value) for key, value in change.items()})
        with pytest.raises(CheckpointError, match=told):
            load_evaluator(tmp_path / "e")


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"auto_map": {"x": "y.Z"}}, "unknown key 'auto_map'"),
        ({"kind": "other"}, "kind"),
        ({"format": 2}, "format"),
        ({"model": {**TINY, "extra": 1}}, "unknown key 'model.extra'"),
        ({"model": {**TINY, "channels": [4, 16]}}, "weights do not fit"),
        ({"sha256": "0" * 64}, "not the weights"),
        ({"backgrounds": {"x": [0, 0, 256]}}, "backgrounds.x"),
    ],
)
def test_hostile_or_damaged_configurations_are_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    save(tmp_path / "e")
    edit(tmp_path / "e", **changes)
    with pytest.raises(CheckpointError, match=told) as error:
        load_evaluator(tmp_path / "e")
    assert "\n" not in str(error.value)


def test_pickles_and_missing_files_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "e")
    weights = tmp_path / "e" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"\x80\x04\x95" + bytes(50))
    with pytest.raises(CheckpointError, match="pickle"):
        load_evaluator(tmp_path / "e")
    weights.write_bytes(whole[:-8])
    with pytest.raises(CheckpointError):
        load_evaluator(tmp_path / "e")
    (tmp_path / "e" / "config.json").write_text("[")
    with pytest.raises(CheckpointError):
        load_evaluator(tmp_path / "e")
    with pytest.raises(NotFoundError, match="fewstep train emoji-128/evaluator"):
        load_evaluator(tmp_path / "nothing")


def test_the_folder_in_the_wheel() -> None:
    folder = features.default_evaluator_folder()
    assert folder.parts[-3:] == ("fewstep", "bundled", "emoji-evaluator")
