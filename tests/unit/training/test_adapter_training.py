"""Adapter training in its parts: recipes, the folder's samples, the learnt word, prior, times, memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "reference"))

import families_builder

from fewstep.diffusion.contract import SamplingContract, ScheduleSpec
from fewstep.errors import RecipeError
from fewstep.models import adapters
from fewstep.models.adapters import LoraSpec
from fewstep.training import adapter_data, adapter_task
from fewstep.training.adapter_data import PictureSet
from fewstep.training.adapter_memory import Memory
from fewstep.training.objectives.textual_inversion import EmbeddingWithWord, WordTokens, start_vectors
from fewstep.training.recipe import dump_recipe, parse_recipe

MINIMAL = """
kind: {kind}
name: mine
base: {{path: nowhere}}
data: {{source: folder, path: pictures}}
pictures: {{trigger: zzq}}
stop: {{images: 8}}
"""


def pictures(**changes: Any) -> PictureSet:
    """Three of the folder and two of the class; view v of picture i holds 10 i + v everywhere."""
    latents = np.zeros((5, 4, 1, 1, 1), np.float32)
    latents += 10 * np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1, 1)
    latents += np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1, 1)
    values: dict[str, Any] = {
        "latents": latents,
        "time_ids": np.zeros((5, 4, 6), np.float32),
        "mirrorable": np.array([True, False, True, True, True]),
        "captions": ("", "zzq, a", "zzq, b", "a class"),
        "caption_of": np.array([1, 2, 1, 3, 3]),
        "own": 3,
        "repeats": 2,
        "prior_weight": 0.5,
        "key": "k",
    }
    return PictureSet(**(values | changes))


@pytest.mark.parametrize("kind", ["lora", "dreambooth", "textual_inversion"])
def test_recipes_are_strict_and_come_back_equal(kind: str) -> None:
    recipe = parse_recipe(MINIMAL.format(kind=kind))
    assert parse_recipe(dump_recipe(recipe)) == recipe
    for wrong, says in (
        ("pictures.triger=a", "did you mean 'trigger'"),
        ("name='a:b'", "name is 'a:b'"),
        ("name='../a'", "name is"),
        ("pictures.trigger='<lora'", "trigger is"),
        ("data.source=cache", "adapters learn from a folder"),
        ("data.options={a: 1}", "adapters learn from a folder"),
    ):
        with pytest.raises(RecipeError, match=says.replace(".", r"\.")):
            parse_recipe(MINIMAL.format(kind=kind), [wrong])


def test_a_word_needs_a_name_and_is_there_or_not() -> None:
    with pytest.raises(RecipeError, match="trigger is missing"):
        parse_recipe(MINIMAL.format(kind="textual_inversion"), ["pictures.trigger=null"])
    with pytest.raises(RecipeError, match="0 and 1 only"):
        parse_recipe(MINIMAL.format(kind="textual_inversion"), ["strengths=[0.5]"])


def test_an_epoch_has_every_picture_and_as_many_of_the_class() -> None:
    data = pictures()
    assert len(data) == 12
    rng = np.random.default_rng(0)
    batch = data.batch(np.arange(12), rng)
    which = (batch["latents"].ravel() // 10).astype(int)
    assert sorted(which[:6].tolist()) == [0, 0, 1, 1, 2, 2]
    assert set(which[6:].tolist()) <= {3, 4}
    assert batch["weight"].tolist() == [1.0] * 6 + [0.5] * 6
    assert batch["rows"].tolist() == [1, 2, 1, 1, 2, 1] + [3] * 6


def test_only_what_may_be_mirrored_is_and_the_cut_is_drawn() -> None:
    data = pictures()
    rng = np.random.default_rng(0)
    views = {i: set() for i in range(3)}
    for _ in range(200):
        for i, value in enumerate(data.batch(np.arange(3), rng)["latents"].ravel().astype(int).tolist()):
            views[i].add(value - 10 * i)
    assert views == {0: {0, 1, 2, 3}, 1: {0, 1}, 2: {0, 1, 2, 3}}
    one_by_one, together = np.random.default_rng(5), np.random.default_rng(5)
    singles = [data.batch(np.array([i]), one_by_one)["latents"] for i in range(3)]
    assert np.array_equal(np.concatenate(singles), data.batch(np.arange(3), together)["latents"])


def test_tags_are_counted() -> None:
    assert list(adapter_data.tag_frequency(["b, a", "a", "a , c"]).items()) == [("a", 3), ("b", 1), ("c", 1)]


def test_learnt_rows_take_the_place_of_negative_ids() -> None:
    known = nn.Embedding(5, 3)
    word = nn.Parameter(torch.randn(2, 3))
    ids = torch.tensor([[4, -1, -2, 0]])
    found = EmbeddingWithWord(known, word)(ids)
    expected = torch.stack([known.weight[4], word[0], word[1], known.weight[0]])[None]
    assert torch.equal(found, expected)
    found.sum().backward()
    assert torch.equal(word.grad, torch.ones(2, 3))
    assert known.weight.grad[1:4].abs().sum() == 0


def test_a_word_is_found_as_a_word_in_a_text_of_fixed_length(tmp_path: Path) -> None:
    tokenizer = families_builder.clip_tokenizer(tmp_path)
    plain = tokenizer("red zq apple", padding="max_length", max_length=9).input_ids
    tokens = WordTokens(tokenizer, "zq", 2)
    ids, mask = tokens(["red zq apple", "red azq apple", "zq " * 20], 9)
    begin, end = plain[0], tokenizer.eos_token_id
    red = plain[1]
    assert ids[0, :4].tolist() == [begin, red, -1, -2]
    assert ids[0, 5] == end and mask[0].tolist() == [1] * 6 + [0] * 3
    assert (ids[1] >= 0).all()  # "azq" is another word
    assert ids.shape == (3, 9) and ids[2, -1] == end
    encoder = SimpleNamespace(get_input_embeddings=lambda: nn.Embedding(100, 4))
    table = encoder.get_input_embeddings()
    encoder.get_input_embeddings = lambda: table
    started = start_vectors(encoder, tokenizer, "red apple", 3)
    assert torch.equal(started, table.weight[torch.tensor([red, int(ids[0, 4]), red])])
    assert torch.equal(start_vectors(encoder, tokenizer, "", 2)[1], table.weight.mean(0))
    with pytest.raises(RecipeError, match="the text encoder knows"):
        WordTokens(tokenizer, "red", 1)


def test_class_pictures_weigh_lambda_in_the_loss() -> None:
    contract = SamplingContract(
        base_family="sd15", prediction_type="v_prediction", native_sizes=((8, 8),), schedule=ScheduleSpec()
    )
    model = SimpleNamespace(contract=contract, schedule=contract.make_schedule(), student=None)
    recipe = parse_recipe(MINIMAL.format(kind="dreambooth"), ["objective.caption_dropout=0"])
    module: Any = nn.Identity()
    module.forward = lambda x_t, model_time, given: 0.0 * x_t + given["tokens"].mean()
    task = adapter_task.AdapterTask(recipe, model, nn.Linear(1, 1), module)  # type: ignore[arg-type]
    task.tables = {"tokens": torch.zeros(4, 2, 3)}
    rng = np.random.default_rng(0)
    sample = task.draw(pictures(prior_weight=0.25).batch(np.array([0, 11]), rng), rng)
    batch = {k: torch.from_numpy(v) if v.dtype != np.float64 else v for k, v in sample.items()}
    losses, _ = task.loss("adapter", batch, {"adapter": module}, {}, 0)
    t = batch["t"]
    alpha, sigma = model.schedule.alpha(t), model.schedule.sigma(t)
    noise, x0 = (batch[name].flatten().numpy() for name in ("noise", "latents"))
    expected = np.square(alpha * noise - sigma * x0) * np.array([1.0, 0.25])  # the target of v is its error
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


def test_times_follow_the_base_or_the_student() -> None:
    table = SamplingContract(base_family="sd15", native_sizes=((8, 8),))
    flow = SamplingContract(
        base_family="sd3",
        prediction_type="flow_prediction",
        schedule=ScheduleSpec(name="rectified_flow", shift=3.0),
        solver="flow_euler",
        native_sizes=((8, 8),),
    )
    student = SamplingContract(
        base_family="sd15",
        method="lightning",
        native_sizes=((8, 8),),
        guidance="off",
        num_inference_steps=2,
        allowed_steps=(1, 2),
    )
    kinds = []
    for contract in (table, flow, student):
        model: Any = SimpleNamespace(contract=contract, schedule=contract.make_schedule())
        kinds.append(adapter_task.default_levels(model))
    assert [levels.kind for levels in kinds] == ["uniform", "logit_normal", "discrete"]
    assert kinds[2].options == {"times": [499.0, 999.0]}


def test_strength_scales_what_a_lora_adds() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    x = torch.randn(2, 4)
    plain = network[0](x)
    for parameter in adapters.add_lora(
        network, LoraSpec(rank=2, alpha=3.0, targets=("0",)), seed=0
    ).parameters():
        nn.init.normal_(parameter)
    whole = network[0](x)
    with adapters.at_strength(network, 0.5):
        torch.testing.assert_close(network[0](x), (plain + whole) / 2)
    with adapters.at_strength(network, 0.0):
        assert torch.equal(network[0](x), plain)
    assert torch.equal(network[0](x), whole)


def test_dropout_is_for_training_only() -> None:
    network = nn.Sequential(nn.Linear(64, 4))
    weights = adapters.add_lora(network, LoraSpec(rank=2, targets=("0",), dropout=0.5), seed=0)
    nn.init.normal_(next(p for n, p in weights.named_parameters() if n.endswith("lora_B.weight")))
    x = torch.randn(1, 64)
    network.train()
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_memory_is_told_in_megabytes() -> None:
    memory = Memory(networks=3 * 2**20, optimiser=2**20, activations=2 * 2**20)
    assert memory.total == 6 * 2**20
    assert str(memory).startswith("about 6 MB (networks 3, optimiser 1, activations 2)")
