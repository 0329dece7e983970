"""SDXL-Lightning's claims, tried on points in the plane where the teacher is exact.

Lin 2024 (2402.13929), sections 3.2 and 3.3: a student of few steps that is trained by a distance (MSE, L1,
perceptual) blurs; a discriminator that sees where the jump began sharpens and keeps the teacher's flow; one
that does not sharpens further and lets the flow go; and a student is less sensitive to its input than the
teacher. Every student takes N steps of the same exact teacher of 32; the adversarial ones go on from the MSE
student, the unconditional from the conditional one, as in the paper. Two seeds.

Prints a table and writes lightning-claims.md, .json and .png.

    python benchmarks/lightning_claims.py [--out docs/results/toys] [--runs ~/fewstep-runs/claims]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checkpoint import atomic
from fewstep.distillation.build import open_base
from fewstep.distillation.run import distill
from fewstep.distillation.sections import DistillationRecipe
from fewstep.distillation.toys import NUDGE, draw_all
from fewstep.evaluation import toyplots, toys
from fewstep.training.recipe import parse_as, read_recipe

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (8, 4, 2, 1)
KINDS = ("l2", "l1", "perceptual", "conditional", "unconditional")
NAMES = {
    "l2": "MSE",
    "l1": "L1",
    "perceptual": "perceptual",
    "conditional": "discriminator, conditional",
    "unconditional": "discriminator, unconditional",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "toys")
    parser.add_argument("--runs", type=Path, default=Path.home() / "fewstep-runs" / "claims")
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    text, source = read_recipe("toys/lightning-claims", ("distillation",))
    measured: dict[tuple[str, int], list[toys.ToyFigures]] = {}
    panels: dict[tuple[str, int], toyplots.Panel] = {}
    for seed in range(arguments.seeds):
        recipe = parse_as(DistillationRecipe, text, [f"seed={seed}"], source=source)
        folder = arguments.runs / f"seed-{seed}"
        distill(recipe, run_folder=folder, resume=True)
        mixture = open_base(recipe).mixture
        for drawn in draw_all(recipe, folder, count=4000):
            found = toys.figures(drawn.points, drawn.moved, NUDGE, drawn.ends, drawn.data, mixture)
            kind = drawn.name.partition("-")[0] if drawn.name.partition("-")[0] in KINDS else drawn.name
            key = (kind, drawn.steps)
            measured.setdefault(key, []).append(found)
            title = f"{NAMES.get(kind, kind)}\n{drawn.steps} steps"
            panels.setdefault(key, (title, drawn.points, drawn.ends))
    rows = [(NAMES.get(kind, kind), steps, mean(found)) for (kind, steps), found in measured.items()]
    table = toys.table(rows)
    print(table)
    record = [
        {"model": kind, "steps": steps, "seeds": [dataclasses.asdict(f) for f in found]}
        for (kind, steps), found in measured.items()
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    atomic.write_text(arguments.out / "lightning-claims.json", json.dumps(record, indent=1) + "\n")
    atomic.write_text(arguments.out / "lightning-claims.md", table + "\n")
    order = [("teacher, DDIM", n) for n in COUNTS] + [(kind, n) for kind in KINDS for n in COUNTS]
    toyplots.scatter(
        [panels[key] for key in order],
        arguments.out / "lightning-claims.png",
        title="One student per panel, coloured by where the teacher's exact flow takes the noise",
        columns=len(COUNTS),
    )


def mean(found: list[toys.ToyFigures]) -> toys.ToyFigures:
    """The mean of every figure over the seeds."""
    values: dict[str, Any] = {
        field.name: float(np.mean([getattr(f, field.name) for f in found]))
        for field in dataclasses.fields(toys.ToyFigures)
    }
    return toys.ToyFigures(**values)


if __name__ == "__main__":
    main()
