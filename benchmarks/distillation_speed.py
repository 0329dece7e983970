"""Optimiser steps of distillation: fewstep beside the arrangement of Flash Diffusion's published code.

Flash in its adversarial phases and Lightning's first adversarial stage, on emoji-128, by our own training
loop. Beside them four more arrangements of the same losses (`_baseline`), each with one more thing done the
long way, so that the differences say where the time goes; the last is the baseline. Before anything is timed,
every arrangement must give the same losses of student and critic on one batch, to 1e-6. The arrangements then
take turns at the same optimiser steps, and each round gives one ratio; preparing the batch is in the clock.
Peak memory comes from processes that hold one arrangement alone. Prints tables; a run with the default sizes
writes docs/results/distillation_speed.json.

    python benchmarks/distillation_speed.py [--rounds 7] [--steps 1] [--batch-size 16] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import _baseline
import numpy as np
import torch

from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.compositions import ComposedDrawings, compositions
from fewstep.data.emoji import open_drawings
from fewstep.data.preparation import load_selection
from fewstep.diffusion.noise_levels import phased_mixture_pmf
from fewstep.distillation import build, origins
from fewstep.distillation.sections import DistillationRecipe, FlashMethod
from fewstep.training.feed import Dataset, Fed, Plan, feed
from fewstep.training.logs import Loggers
from fewstep.training.loop import Hooks, Loop
from fewstep.training.recipe import parse_as
from fewstep.training.state import cpu_model
from fewstep.training.trainer import make_accelerator, make_state

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "results" / "distillation_speed.json"
CACHE = ROOT / ".cache" / "emoji-128"
STAGES = {"flash": "flash", "lightning": "conditional-4"}
DEFAULTS = {"rounds": 7, "steps": 1, "batch_size": 16}
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Arrangement:
    """What is done the long way; see `_baseline`."""

    name: str
    rollout: bool = False
    losses: bool = False
    encoders: bool = False
    teacher: bool = False


FEWSTEP = Arrangement("fewstep")
BASELINE = Arrangement("all else again for the critic: baseline", True, True, True, True)
CHAIN = (
    FEWSTEP,
    Arrangement("rollout again for the critic", rollout=True),
    Arrangement("encoders in every batch", rollout=True, encoders=True),
    Arrangement("teacher of its own", rollout=True, encoders=True, teacher=True),
    BASELINE,
)
"""Each does what the one before it does, and one thing more."""


def read(kind: str, batch_size: int, threads: int) -> DistillationRecipe:
    """The recipe with the one stage that is measured.

    Lightning's stage is taught by the base model in place of the stage before it: the same network with other
    weights, and still the one that the student's adapter sits on.
    """
    file = ROOT / "recipes" / "emoji-128" / f"{kind}.yaml"
    recipe = parse_as(DistillationRecipe, file.read_text(encoding="utf-8"), source=str(file))
    stage = next(stage for stage in recipe.stages if stage.name == STAGES[kind])
    data, runtime, teacher = recipe.data, recipe.runtime, recipe.teacher
    return recipe.model_copy(
        update={
            "stages": (stage.model_copy(update={"teacher": "base"}),),
            "stop": stage.stop,
            "data": data.model_copy(update={"batch_size": batch_size, "path": str(ROOT / data.path)}),
            "teacher": teacher.model_copy(update={"pipeline": str(ROOT / str(teacher.pipeline))}),
            "runtime": runtime.model_copy(update={"threads": threads, "device": "cpu"}),
        }
    )


def adversarial_steps(recipe: DistillationRecipe) -> range:
    """Optimiser steps in which student and discriminator both learn: in Flash, the last phases."""
    (stage,) = recipe.stages
    (method,) = stage.methods
    if not isinstance(method, FlashMethod):
        return range(stage.critic_warmup_steps, stage.stop.images // recipe.data.batch_size)
    calm = [phase.steps for phase in method.phases if not phase.adversarial]
    return range(sum(calm), sum(phase.steps for phase in method.phases))


def teacher_steps(recipe: DistillationRecipe) -> float:
    """Steps of the teacher in an adversarial batch, in the mean over those phases."""
    (method,) = recipe.stages[0].methods
    if not isinstance(method, FlashMethod):
        return method.teacher_steps / method.student_steps  # type: ignore[union-attr]
    count = method.teacher_steps
    means = []
    for phase in method.phases:
        if phase.adversarial:
            pmf = phased_mixture_pmf(count, phase.mode_weights, method.variance)
            means += [float((count - np.arange(count)) @ pmf)] * phase.steps
    return statistics.fmean(means)


def uncached(recipe: DistillationRecipe) -> _baseline.Uncached:
    """What the latent cache was made of."""
    selection, drawings = load_selection(), open_drawings(CACHE / "drawings")
    items = compositions(
        drawings.items,
        load_backgrounds(),
        per_drawing=selection.per_drawing,
        caption_variants=selection.caption_variants,
        styles=selection.styles,
        groups=selection.groups,
        labels=selection.labels,
    )
    samples = ComposedDrawings(drawings, items)
    manifest = json.loads((Path(recipe.data.path) / "cache.json").read_text("utf-8"))
    if manifest["data"] != samples.fingerprint() or manifest["mirrored"]:
        sys.exit(
            f"{recipe.data.path}: not made of {CACHE}/drawings by recipes/emoji-128/data.yaml; build it again"
        )
    return _baseline.Uncached(samples, recipe.data.options.get("variant_weights"))  # type: ignore[arg-type]


class Side:
    """A stage in the training loop, without files.

    Args:
        recipe: of one stage.
        base: what it distils.
        kind: what is done the long way.
        teacher: for a teacher of its own.
    """

    def __init__(
        self, recipe: DistillationRecipe, base: origins.Base, kind: Arrangement, teacher: Any = None
    ) -> None:
        self.kind, self.recipe = kind, recipe
        stage = build.build_stage(recipe, 0, base, []).task
        _baseline.stir(stage)
        if kind.teacher:
            _baseline.own_teacher(stage, teacher)
        self.dataset: Dataset = base.dataset
        self.task = _baseline.Recorded(stage)
        if kind != FEWSTEP:
            encode = None
            if kind.encoders:
                parts: Any = base.components
                encode = _baseline.Encoders(parts.autoencoder, parts.text_encoder, parts.tokenizer)
                self.dataset = uncached(recipe)
            latents = tuple(base.sample["latents"].shape)
            self.task.task = _baseline.Wasteful(
                stage, rollout=kind.rollout, losses=kind.losses, encode=encode, latents=latents
            )
        accelerator = make_accelerator(recipe)
        self.state = make_state(self.task, recipe, accelerator)
        hooks = Hooks(loggers=Loggers(()), on_progress=lambda _: None)
        self.loop = Loop(self.task, recipe, self.state, Path("none"), accelerator, hooks)
        self.rows = 0
        denoisers = [
            self.state.roles[name].role.module for name in ("student", "teacher") if name in stage.roles
        ]
        for network in denoisers:
            network.register_forward_hook(self._count)

    def _count(self, _module: Any, inputs: Any, _output: Any) -> None:
        self.rows += len(inputs[0])

    def batches(self, step: int) -> Iterator[Fed]:
        """Batches from an optimiser step on; not prepared ahead, so that their time is in the clock."""
        size = self.recipe.data.batch_size
        self.state.images_seen = step * size
        return feed(self.dataset, self.task.draw, Plan(self.recipe.seed, size), start=step * size)

    def seconds(self, step: int, count: int) -> tuple[float, float]:
        """What an optimiser step takes in the mean over ``count``: by the clock, and of the processor."""
        batches = self.batches(step)
        began, used = time.perf_counter(), time.process_time()
        for _ in range(count):
            self.loop.step(next(batches))
        return (time.perf_counter() - began) / count, (time.process_time() - used) / count

    def weights(self) -> float:
        """MiB of the networks that a stage holds."""
        modules = [role.role.module for role in self.state.roles.values()]
        held = {p for module in modules for p in module.parameters()}
        return sum(p.numel() * p.element_size() for p in held) / 2**20


def check(sides: list[Side], step: int) -> dict[str, float]:
    """Let every side take the same optimiser step, its first, and compare the losses; also warms up.

    All are given the latents and texts as they are encoded now: on another processor than the cache was made
    on they may differ from it by a rounding to float16.
    """
    long = next(side for side in sides if side.kind.encoders)
    fed = next(long.batches(step))
    encode = long.task.task.encode  # type: ignore[attr-defined]
    pixels = {key: fed.parts[0][key] for key in ("pixels", "captions")}
    encoded = {key: value.numpy() for key, value in encode(pixels).items()}
    same, absolute, relative = 1.0, 0.0, 0.0
    first: dict[str, torch.Tensor] = {}
    for side in sides:
        fed = next(side.batches(step))
        if not side.kind.encoders:
            equal = [fed.parts[0][key] == encoded[key] for key in encoded]
            same = min(same, *(float(part.mean()) for part in equal))
            fed.parts[0] |= encoded
        side.loop.step(fed)
        found = side.task.last
        first = first or found
        if found.keys() != first.keys() or len(found) < 2:
            sys.exit(f"{side.kind.name}: losses of {', '.join(found)}, not of {', '.join(first)}")
        for role, loss in found.items():
            if not torch.allclose(loss, first[role], rtol=TOLERANCE, atol=TOLERANCE):
                sys.exit(f"{side.kind.name}: losses of the {role} are {loss}, not {first[role]}")
            difference = (loss - first[role]).abs()
            absolute = max(absolute, float(difference.max()))
            relative = max(relative, float((difference / first[role].abs()).max()))
    if same < 0.99:
        sys.exit(f"only {same:.1%} of the cache is what the encoders give: not the same samples")
    return {"largest_difference": absolute, "largest_relative_difference": relative, "equal_to_cache": same}


def measure(kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Check and time every arrangement of a recipe, in turns."""
    recipe = read(kind, arguments.batch_size, arguments.threads)
    base = origins.open_base(recipe)
    sides = [Side(recipe, base, part, own_teacher(base, part)) for part in CHAIN]
    steps, count = adversarial_steps(recipe), arguments.steps
    checked = check(sides, steps[0])
    for side in sides:
        side.rows = 0
    times: dict[str, list[float]] = {side.kind.name: [] for side in sides}
    used: dict[str, list[float]] = {side.kind.name: [] for side in sides}
    for number in range(arguments.rounds):
        step = steps[(2 * number + 1) * len(steps) // (2 * arguments.rounds)]
        for side in sides if number % 2 == 0 else sides[::-1]:
            elapsed, processor = side.seconds(step, count)
            times[side.kind.name].append(elapsed)
            used[side.kind.name].append(processor)
    images = arguments.rounds * count * arguments.batch_size
    ours = times[FEWSTEP.name]
    return {
        "stage": STAGES[kind],
        "teacher_steps_expected": teacher_steps(recipe),
        **checked,
        "arrangements": [
            {
                "name": side.kind.name,
                "seconds_per_step": summary(times[side.kind.name]),
                "steps_per_second": len(ours) / sum(times[side.kind.name]),
                "ratio": summary([b / a for a, b in zip(ours, times[side.kind.name], strict=True)]),
                "denoiser_evaluations_per_image": side.rows / images,
                "cpu_seconds_per_step": statistics.fmean(used[side.kind.name]),
                "rounds": times[side.kind.name],
            }
            for side in sides
        ],
    }


def own_teacher(base: origins.Base, kind: Arrangement) -> Any:
    """Another copy of the base's network, where the arrangement has a teacher of its own."""
    return base.open_network() if kind.teacher and base.open_network is not None else None


def memory(kind: str, arrangement: Arrangement, arguments: argparse.Namespace) -> dict[str, float]:
    """MiB at the peak of this process: after its imports, and after two optimiser steps."""
    import accelerate  # noqa: F401
    import peft  # noqa: F401
    from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
    from transformers import BertModel, BertTokenizer  # noqa: F401

    imported = peak()
    recipe = read(kind, arguments.batch_size, arguments.threads)
    base = origins.open_base(recipe)
    side = Side(recipe, base, arrangement, own_teacher(base, arrangement))
    side.seconds(adversarial_steps(recipe)[0], 2)
    return {"imported": imported, "peak": peak(), "networks": side.weights()}


def peak() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def memory_apart(kind: str, arrangement: Arrangement, arguments: argparse.Namespace) -> dict[str, float]:
    """`memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", kind, str(CHAIN.index(arrangement))]
    command += ["--batch-size", str(arguments.batch_size), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def show(kind: str, result: dict[str, Any], arguments: argparse.Namespace) -> None:
    print(f"\n{kind}, stage {result['stage']}, batch {arguments.batch_size}, threads {arguments.threads}")
    print(f"mean steps of the teacher in the whole stage: {result['teacher_steps_expected']:.1f}")
    print(
        f"losses equal to {result['largest_difference']:.0e}, "
        f"or {result['largest_relative_difference']:.0e} of themselves"
    )
    columns = ("s/step", "steps/s", "CPU s", "evaluations", "times as long", "min", "max")
    print(f"{'':42}" + "".join(f"{name:>{max(9, len(name) + 2)}}" for name in columns))
    for row in result["arrangements"]:
        ratio, mark = row["ratio"], "  " if row["name"] == FEWSTEP.name else "+ "
        print(
            f"{mark + row['name']:42}{row['seconds_per_step']['median']:9.2f}{row['steps_per_second']:9.3f}"
            f"{row['cpu_seconds_per_step']:9.2f}{row['denoiser_evaluations_per_image']:13.1f}"
            f"{ratio['median']:15.2f}{ratio['min']:9.2f}{ratio['max']:9.2f}"
        )
    for name, part in result["memory_mib"].items():
        above = part["peak"] - part["imported"]
        print(
            f"{name}: {above:.0f} MiB at the peak above the imports, {part['networks']:.0f} of them networks"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=DEFAULTS["rounds"])
    parser.add_argument("--steps", type=int, default=DEFAULTS["steps"], help="optimiser steps in a round")
    parser.add_argument("--batch-size", type=int, default=DEFAULTS["batch_size"])
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--memory", nargs=2, metavar=("RECIPE", "ARRANGEMENT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(arguments.threads)
    if arguments.memory is not None:
        kind, place = arguments.memory
        print(json.dumps(memory(kind, CHAIN[int(place)], arguments)))
        return
    for file in (CACHE / "drawings" / "set.json", CACHE / "latents" / "cache.json"):
        if not file.is_file():
            sys.exit(
                f"{file}: not here; make drawings and latents first (fewstep data, see make train-bundled)"
            )
    load_at_start = os.getloadavg()[0]
    if load_at_start > 0.5:
        print(f"load average {load_at_start:.1f}: others are at work, times will say little", file=sys.stderr)
    # Before this process grows: Linux hands a parent's peak down to its children.
    apart = {
        kind: {
            "fewstep": memory_apart(kind, FEWSTEP, arguments),
            "baseline": memory_apart(kind, BASELINE, arguments),
        }
        for kind in STAGES
    }
    recipes = {}
    for kind in STAGES:
        recipes[kind] = measure(kind, arguments) | {"memory_mib": apart[kind]}
        show(kind, recipes[kind], arguments)
    if {name: getattr(arguments, name) for name in DEFAULTS} != DEFAULTS:
        print(f"\nnot the default sizes: {OUT.name} is left as it is")
        return
    result = {
        "what": "optimiser steps of distillation: fewstep beside the same losses arranged as published",
        **{name: getattr(arguments, name) for name in DEFAULTS},
        "tolerance": TOLERANCE,
        "recipes": recipes,
        "machine": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": arguments.threads,
            "load_average_at_start": load_at_start,
            "load_average_at_end": os.getloadavg()[0],
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in ("fewstep", "torch", "diffusers", "peft")},
        },
    }
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
