"""Check 24: two processes distil what one does with twice the batch, and agree on what all images share.

What is drawn for one image (its noise, its place on the grid, its scale) follows from the seed and the
image's position in the run, whichever process holds it. What a batch shares (Flash's start and scale, the
step of DMD2's simulation) follows from the seed and the step, so every process draws the same.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import tiny_stages as tiny
import torch

from fewstep.distillation import build, origins
from fewstep.distillation.dmd import Dmd
from fewstep.distillation.flash import Flash
from fewstep.distillation.sections import DistillationRecipe
from fewstep.models.components import Components
from fewstep.models.denoiser import ConditionedUNet
from fewstep.training import checkpointing, trainer
from fewstep.training.feed import Plan, feed

# Adam divides by the size of gradients, so that rounding counts in full where they are tiny.
CALM = {"learning_rate": 1e-2, "eps": 1e-3}
JUDGED = {"method": "lightning", "teacher_steps": 4, "student_steps": 2, "guidance_scale": 2.0}
JUDGE = {"channels": 4, "optimiser": CALM}
PHASES = [
    {"steps": 4, "mode_weights": [0.25] * 4, "guidance": [1.0, 3.0], "distribution": 0.3, "adversarial": 0.1},
    {"steps": 4, "mode_weights": [0.4, 0.2, 0.2, 0.2], "guidance": [1.0, 3.0], "adversarial": 0.2},
]
METHODS: dict[str, dict[str, Any]] = {
    "lightning": JUDGED | {"distance": "l2", "discriminator": JUDGE | {"r1": 0.1}},
    "flash": {
        "method": "flash",
        "teacher_steps": 4,
        "solver": "ddim",
        "phases": PHASES,
        "discriminator": JUDGE,
        "critic": CALM,
    },
    "dmd2": {
        "method": "dmd2",
        "timesteps": [999.0, 499.0],
        "guidance_scale": 2.0,
        "discriminator": {"channels": 4},
        "critic": CALM,
    },
    # not huber, whose gradient is nearly a sign: it would make a step of a difference in the last bit
    "lcm": {"method": "lcm", "num_steps": 8, "guidance": [1.0, 3.0], "distance": "l2"},
    "progressive": JUDGED | {"method": "progressive"},
    "tapped": JUDGED | {"discriminator": JUDGE | {"tap": "down_blocks.0"}},
}
CRITICS = {
    "lightning": {"discriminator"},
    "flash": {"discriminator", "fake_score"},
    "dmd2": {"fake_score"},
    "tapped": {"discriminator"},
}


class Latents(tiny_runs.Latents):
    def __init__(self) -> None:
        super().__init__(shape=(4, 8, 8))


def recipe(method: str, mode: str = "full", steps: int = 6) -> DistillationRecipe:
    stage = {
        "methods": [METHODS[method]],
        "student": {"mode": mode, "lora": {"rank": 2, "targets": ["all-linear-conv"]}},
        "optimiser": CALM,
        "stop": {"images": 4 * steps},
        "ema": {"half_life_images": 20.0},
    }
    later = {"name": "later", "methods": [METHODS["progressive"] | {"guidance_scale": 1.0}]}
    stages = [stage, stage | later | {"student": {}, "stop": {"images": 8}}]
    return tiny.recipe(*stages, runtime=tiny.RECIPE["runtime"] | {"accumulation": 2})


class Silent:
    def __init__(self, folder: Path) -> None: ...
    def scalars(self, *_: Any) -> None: ...
    def image(self, *_: Any) -> None: ...
    def close(self) -> None: ...


def in_two_processes(work: Callable[[int], None]) -> None:
    """Run ``work(rank)`` in two forked processes, set up as torchrun does."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])

    def start(rank: int) -> Any:
        def child() -> None:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)  # what the parent knew does not count
            settings = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
            os.environ.update({name: str(value) for name, value in settings.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            work(rank)
            assert torch.distributed.get_world_size() == 2
            torch.distributed.destroy_process_group()

        return tiny_runs.fork(child)

    children = [start(rank) for rank in (0, 1)]
    for _ in range(2400):
        codes = [child.exitcode for child in children]
        if None not in codes or any(codes):
            break
        time.sleep(0.1)
    for child in children:
        child.join(1 if any(codes) else 30)  # one that failed leaves the other waiting
        child.kill()
        child.join()
    assert [child.exitcode for child in children] == [0, 0]


def noted(patch: pytest.MonkeyPatch, note: Callable[[Any], None]) -> None:
    """Have told what every part of a batch shares: step, and the start or the number of simulated steps."""
    way, sample = Flash._way, Dmd._sample

    def flash(self: Flash, context: Any) -> Any:
        found = way(self, context)
        note(["flash", context.step, found["start"], found["t"].tolist()[0]])
        return found

    def dmd(self: Dmd, context: Any) -> Any:
        if "sample" not in context.shared:
            note(["dmd2", context.step, int(copy.deepcopy(context.rng).integers(len(self.times)))])
        return sample(self, context)

    patch.setattr(Flash, "_way", flash)
    patch.setattr(Dmd, "_sample", dmd)


def same_weights(one: Path, two: Path, roles: set[str]) -> None:
    """Weights, averages and moments of the newest checkpoints, within 1e-5."""
    first, second = (checkpointing.latest(folder / "checkpoints") for folder in (one, two))
    assert first is not None and second is not None and first.images_seen == second.images_seen
    names = {name.removesuffix(".safetensors") for name in first.manifest["files"]}
    assert names == {name.removesuffix(".safetensors") for name in second.manifest["files"]}
    assert {name for name in names if "." not in name} == roles
    for name in sorted(names):
        theirs = second.tensors(name)
        for key, value in first.tensors(name).items():
            torch.testing.assert_close(theirs[key], value, atol=1e-5, rtol=1e-5, msg=f"{name}: {key}")


UNETS = [("lightning", "full"), ("tapped", "full"), ("flash", "lora"), ("dmd2", "full")]
POINTS = [("lightning", "full"), ("lightning", "lora"), ("flash", "full"), ("dmd2", "full"), ("lcm", "full")]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["points", "unet"])
def test_check_24_two_gloo_processes_equal_one_with_twice_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_components: Components, network: str
) -> None:
    """Each of two takes 2 images of every batch of 4, in two parts.

    There is a second stage, which starts from the first one's result, and one of the two is told to stop on
    the way: both do, and go on.
    """
    monkeypatch.setattr(trainer, "TensorBoard", Silent)

    def opened(_: Any) -> origins.Base:
        if network == "points":
            return tiny.base()
        unet = ConditionedUNet(copy.deepcopy(tiny_components.denoiser))
        return tiny.base(unet, Latents(), native_sizes=((16, 16),))

    monkeypatch.setattr(origins, "open_base", opened)
    cases = UNETS if network == "unet" else POINTS
    notes: list[Any] = []
    noted(monkeypatch, notes.append)

    def stopping(progress: Any) -> None:
        if progress.stop_images == 24 and progress.images_seen == 12:
            os.kill(os.getpid(), signal.SIGTERM)  # noticed after the next step, by both

    def work(rank: int) -> None:
        notes.clear()
        for method, mode in cases:
            folder = tmp_path / f"two-{method}-{mode}"
            done = tiny.distill(recipe(method, mode), folder, on_progress=stopping if rank == 0 else None)
            assert not done.finished and len(done.stages) == 1 and done.stages[0].images_seen == 16
            assert tiny.distill(recipe(method, mode), folder, resume=True).finished
        (tmp_path / f"notes-{rank}.json").write_text(json.dumps(notes))

    in_two_processes(work)
    for method, mode in cases:
        tiny.distill(recipe(method, mode), tmp_path / f"one-{method}-{mode}")
        one, two = tmp_path / f"one-{method}-{mode}", tmp_path / f"two-{method}-{mode}"
        same_weights(one / "00-only", two / "00-only", {"student", *CRITICS.get(method, ())})
        same_weights(one / "01-later", two / "01-later", {"student"})
    ranks = [json.loads((tmp_path / f"notes-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1] == notes
    for kind, method_steps in (("flash", 4), ("dmd2", 2)):
        assert len({note[2] for note in notes if note[0] == kind}) >= min(2, method_steps), kind


@pytest.mark.parametrize("method", [name for name in METHODS if name != "tapped"])
@pytest.mark.parametrize("world", [2, 4])
def test_check_24_an_image_draws_the_same_whichever_process_holds_it(method: str, world: int) -> None:
    task = build.build_stage(recipe(method), 0, tiny.base(), []).task

    def batches(rank: int, of: int, parts: int = 1) -> list[dict[str, Any]]:
        found = feed(tiny.Points(), task.draw, Plan(3, 8, parts, rank, of), start=16)
        return [part for _ in range(2) for part in next(found).parts]

    whole = batches(0, 1)
    assert len(np.unique(whole[0]["0.noise" if method != "dmd2" else "0.noise0"][:, 0])) == 8
    parts = 8 // world // 2 if world == 2 else 1
    shares = [batches(rank, world, parts) for rank in range(world)]
    for step in range(2):
        for key, value in whole[step].items():
            held = [share[step * parts + part][key] for share in shares for part in range(parts)]
            assert np.array_equal(np.concatenate(held), value), key
