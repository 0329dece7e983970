"""Distillations whose numbers are not finite: faults T12 and T13."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "distillation"))
import tiny_stages as tiny
from tiny_stages import CRITICS, STAGES, digests, distill, network_run, toy

from fewstep.distillation import dmd, losses, run
from fewstep.errors import RunError
from fewstep.training import trainer
from fewstep.training.loop import Loop


@pytest.fixture(autouse=True, scope="module")
def no_tensorboard() -> Iterator[None]:
    """It takes a second to import, and says nothing here."""

    class Silent:
        def __init__(self, folder: Path) -> None: ...
        def scalars(self, *_: Any) -> None: ...
        def image(self, *_: Any) -> None: ...
        def close(self) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "TensorBoard", Silent)
        yield


@pytest.mark.parametrize("kind", STAGES)
def test_t12_a_poisoned_batch_moves_only_roles_whose_loss_stayed_finite(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that start from pure noise do not even look at the sample in some batches: those go on."""
    stage = network_run(kind, dataset=tiny.Points(poisoned=range(0, 16, 3)))
    finite: list[dict[str, bool]] = []
    real = Loop._update

    def update(self: Loop, active: Any, sums: Any, fed: Any) -> None:
        finite.append({role.name: math.isfinite(float(sums[role.name])) for role in active})
        real(self, active, sums, fed)

    monkeypatch.setattr(Loop, "_update", update)
    before = digests(stage)
    for _ in range(9):
        stage.step()
        after = digests(stage)
        changed = {name for name in after if after[name] != before[name]}
        assert changed == {name for name, good in finite[-1].items() if good}
        before = after
    skipped = {name: sum(step.get(name) is False for step in finite) for name in stage.state.roles}
    assert {name: state.guard.skipped for name, state in stage.state.roles.items()} == skipped
    assert sum(skipped.values()) > 0
    for state in stage.state.roles.values():
        assert all(bool(p.isfinite().all()) for p in state.role.module.parameters())


def test_t12_too_many_in_a_row_stop_the_distillation_with_diagnostics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = losses.discriminator_loss
    monkeypatch.setattr(losses, "discriminator_loss", lambda *a: real(*a) * math.nan)
    with pytest.raises(RunError, match=r"discriminator: .* not finite in 3 steps in a row"):
        distill(toy("lightning", max_nonfinite=3), tmp_path)
    record = json.loads((tmp_path / "01-few" / "diagnostics" / "0000000008.json").read_text())
    assert record["role"] == "discriminator" and record["images_seen"] == 8
    assert not (tmp_path / "01-few" / run.DONE).exists()


@pytest.mark.parametrize("mode", ["full", "lora"])
@pytest.mark.parametrize("kind", CRITICS)
def test_t13_nan_in_a_critic_leaves_the_student_training(
    kind: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = network_run(kind, mode, student_every=1, critic_warmup_steps=0)
    real = losses.discriminator_loss
    monkeypatch.setattr(losses, "discriminator_loss", lambda *a: real(*a) * math.nan)
    before = digests(stage)
    stage.step(9)
    after = digests(stage)
    poisoned = "fake_score" if kind == "dmd2" else "discriminator"
    assert after[poisoned] == before[poisoned]
    assert stage.state.roles[poisoned].guard.skipped > 0
    others = {name for name in after if name not in (poisoned, "teacher")}
    assert all(after[name] != before[name] for name in others) and "student" in others
    assert all(stage.state.roles[name].guard.skipped == 0 for name in others)


@pytest.mark.parametrize("kind", CRITICS)
def test_t13_nan_in_the_student_leaves_its_critics_training(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = network_run(kind, student_every=1, critic_warmup_steps=0)
    real = losses.generator_loss
    monkeypatch.setattr(losses, "generator_loss", lambda *a: real(*a) * math.nan)
    stage.step(3)  # the first phase of Flash has no discriminator yet
    before = digests(stage)
    stage.step(2)
    after = digests(stage)
    assert after["student"] == before["student"]
    assert stage.state.roles["student"].guard.in_a_row >= 2
    assert all(after[name] != before[name] for name in CRITICS[kind])


def test_t13_nan_in_the_fake_score_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = network_run("dmd2", student_every=1, critic_warmup_steps=0)
    real = dmd.denoising
    monkeypatch.setattr(dmd, "denoising", lambda *a, **b: real(*a, **b) * math.nan)
    before = digests(stage)
    stage.step(2)
    after = digests(stage)
    assert after["fake_score"] == before["fake_score"] and after["student"] != before["student"]
    assert {n: s.guard.skipped for n, s in stage.state.roles.items()} == {
        "student": 0,
        "teacher": 0,
        "fake_score": 2,
    }
