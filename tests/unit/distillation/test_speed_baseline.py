"""What `benchmarks/distillation_speed.py` compares is the same training: equal losses, step after step."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_stages as tiny
import torch
from torch import Tensor

from fewstep.data.latent_cache import build_cache
from fewstep.distillation import build, origins, sections
from fewstep.distillation.task import StageTask
from fewstep.models import autoencoder as autoencoders
from fewstep.models import text
from fewstep.models.components import Components
from fewstep.models.denoiser import ConditionedUNet
from fewstep.training.feed import Plan, feed

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))
import _baseline

# In these three steps of the tiny curricula student and critics all learn, the student in the last at least.
FIRST = {"flash": 3, "lightning": 4}
WASTE: dict[str, dict[str, bool]] = {
    "rollout": {"rollout": True, "losses": False},
    "losses": {"rollout": False, "losses": True},
    "both": {"rollout": True, "losses": True},
}


def adapted(kind: str, base: origins.Base) -> StageTask:
    """A stage whose adapter has an effect."""
    stage = build.build_stage(recipe_of(kind), 0, base, []).task
    _baseline.stir(stage, size=0.1)
    return stage


def recipe_of(kind: str) -> sections.DistillationRecipe:
    return tiny.recipe(tiny.STAGES[kind] | {"student": tiny.ADAPTER})


class Stage:
    """A stage of `tiny_stages` in the training loop, as it is or arranged the long way."""

    def __init__(
        self, kind: str, base: origins.Base, *, teacher: Any = None, dataset: Any = None, **waste: Any
    ) -> None:
        recipe, stage = recipe_of(kind), adapted(kind, base)
        if teacher is not None:
            _baseline.own_teacher(stage, teacher)
        self.task = _baseline.Recorded(_baseline.Wasteful(stage, **waste) if waste else stage)
        made: Any = SimpleNamespace(task=self.task)
        self.run = tiny.Run(made, recipe)
        self.size = recipe.data.batch_size
        self.batches = feed(
            base.dataset if dataset is None else dataset,
            self.task.draw,
            Plan(recipe.seed, self.size),
            start=FIRST[kind] * self.size,
        )
        self.calls = 0
        self.networks = [stage.roles[name].module for name in ("student", "teacher") if name in stage.roles]
        for network in self.networks:
            network.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1

    def step(self, replaced: dict[str, Any] | None = None) -> dict[str, Tensor]:
        """The losses of the next batch, by which student and critics have learnt then."""
        self.task.last.clear()
        fed = next(self.batches)
        fed.parts[0] |= replaced or {}
        self.run.loop.step(fed)
        return dict(self.task.last)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(found) >= 1
    for role, loss in expected.items():
        torch.testing.assert_close(found[role], loss, rtol=1e-6, atol=1e-6, msg=role)


@pytest.mark.parametrize("own", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("waste", WASTE)
@pytest.mark.parametrize("kind", FIRST)
def test_every_arrangement_has_the_same_losses(kind: str, waste: str, own: bool) -> None:
    """Also after steps that followed from them, so gradients are equal as well."""
    base = tiny.base()
    ours = Stage(kind, base)
    teacher = base.open_network() if own else None
    theirs = Stage(kind, base, teacher=teacher, **WASTE[waste])
    for _ in range(3):
        expected = ours.step()
        assert_equal(theirs.step(), expected)
    assert {"student", "discriminator"} <= expected.keys()


def test_what_is_said_to_be_done_again_is_done_again() -> None:
    base = tiny.base()
    calls = {}
    for kind in FIRST:
        for name, waste in ({"none": {}} | WASTE).items():
            stage = Stage(kind, base, **waste)
            stage.step()
            calls[kind, name] = stage.calls
    # Flash has two critics here, and distribution matching is one call beside the way
    way = calls["flash", "none"] - 1
    assert way > 1
    assert calls["flash", "rollout"] == 3 * way + 1
    assert calls["flash", "losses"] == way + 3
    assert calls["flash", "both"] == 3 * way + 3
    assert [calls["lightning", name] for name in ("none", "rollout", "losses", "both")] == [3, 6, 3, 6]


def test_a_teacher_of_its_own_shares_nothing_with_the_student() -> None:
    base = tiny.base()
    assert len(Stage("flash", base).networks) == 1
    student, teacher = Stage("flash", base, teacher=base.open_network(), **WASTE["both"]).networks
    assert not set(student.parameters()) & set(teacher.parameters())


@pytest.mark.parametrize(
    ("kind", "role"), [("flash", "student"), ("flash", "discriminator"), ("lightning", "discriminator")]
)
def test_another_teacher_is_noticed(kind: str, role: str) -> None:
    base = tiny.base()
    student = adapted(kind, base).roles["student"].module  # its adapter stays on
    expected, found = Stage(kind, base).step(), Stage(kind, base, teacher=student).step()
    assert not torch.allclose(found[role], expected[role], rtol=1e-4, atol=1e-6)


class Pictures:
    """Sixteen pictures of 16 px with three captions each."""

    def __len__(self) -> int:
        return 16

    def pixels(self, indices: Sequence[int]) -> np.ndarray:
        each = [np.random.default_rng(i).uniform(-1, 1, (3, 16, 16)) for i in indices]
        return np.stack(each).astype(np.float32)

    def captions(self, index: int) -> Sequence[str]:
        return (f"{'abcdefgh'[index % 8]} apple", "apple", "red apple")

    def mirrorable(self, index: int) -> bool:
        return False

    def fingerprint(self) -> str:
        return "pictures"


def test_encoding_every_batch_gives_what_the_cache_holds(tiny_components: Components, tmp_path: Path) -> None:
    parts = copy.deepcopy(tiny_components)
    encode = _baseline.Encoders(parts.autoencoder, parts.text_encoder, parts.tokenizer)
    cache = build_cache(
        tmp_path / "cache",
        Pictures(),
        lambda images: autoencoders.encode(parts.autoencoder, images),
        lambda captions: text.encode(captions, parts.text_encoder, parts.tokenizer).numpy(),
        weights={},
        mirrored=False,
    )
    network: Any = parts.denoiser
    base = tiny.base(ConditionedUNet(network), cache)
    uncached = _baseline.Uncached(Pictures())
    indices, seeds = np.arange(16), [np.random.default_rng(1) for _ in range(2)]
    expected, batch = cache.batch(indices, seeds[0]), uncached.batch(indices, seeds[1])
    assert batch["captions"] == expected["captions"] and len(set(batch["captions"])) > 2
    for key, value in encode(batch).items():
        np.testing.assert_allclose(value, expected[key], rtol=2e-3, atol=2e-3, err_msg=key)

    ours = Stage("flash", base)
    theirs = Stage(
        "flash",
        base,
        teacher=base.open_network(),
        dataset=uncached,
        rollout=True,
        losses=True,
        encode=encode,
        latents=(1, 4, 8, 8),
    )
    kept: list[dict[str, Any]] = []

    def keep(batch: dict[str, Any]) -> dict[str, Any]:
        kept.append(encode(batch))
        return kept[-1]

    wasteful: Any = theirs.task.task
    wasteful.encode = keep
    for number in range(2):
        found = theirs.step()
        # Flash's two critics repeat the student's forward pass, and encode in it
        assert len(kept) == 3 * (number + 1)
        # The same batch to the last bit: encoding other pictures beside it may round the cache's otherwise
        assert_equal(found, ours.step({key: value.numpy() for key, value in kept[-1].items()}))
