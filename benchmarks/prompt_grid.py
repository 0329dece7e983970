"""What the bundled model draws: 64 fixed prompts as one sheet, and eight seeds of the README's prompt as
another.

The prompts stand in recipes/emoji-128/prompts.txt; every image is drawn with seed 0 and the model's
defaults, at its native size. Writes emoji-128-prompts.png, emoji-128-red-apple.png and
emoji-128-prompts.json to docs/results. How many are recognisable is for people to say.

    python benchmarks/prompt_grid.py [--model emoji-128] [--out docs/results]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.checkpoint import atomic
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

ROOT = Path(__file__).resolve().parents[1]
README_PROMPT = "a red apple, noto style, on a sky blue background"


def sheet(images: list[np.ndarray], columns: int) -> Image.Image:
    """Lay images of one size out row by row, with 4 white pixels between them."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + 4) - 4, rows * (height + 4) - 4), "white")
    for index, image in enumerate(images):
        place = (index % columns * (width + 4), index // columns * (height + 4))
        page.paste(Image.fromarray(image), place)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="name of a model; default the bundled one")
    parser.add_argument("--folder", type=Path, default=None, help="a pipeline or bundle folder instead")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    prompts = (ROOT / "recipes" / "emoji-128" / "prompts.txt").read_text("utf-8").splitlines()
    engine = Engine(arguments.folder or arguments.model)
    results = [engine.generate(resolve(engine.info, prompt=prompt, seed=0)) for prompt in prompts]
    apples = engine.generate(resolve(engine.info, prompt=README_PROMPT, seed=0, n=8, deterministic=True))
    seconds = [result.timings["total"] for result in results[1:]]
    contract = engine.info.contract
    record = {
        "model_hash": results[0].record.get("model_hash"),
        "num_inference_steps": contract.num_inference_steps,
        "guidance_scale": contract.guidance_scale,
        "guidance_rescale": contract.guidance_rescale,
        "solver": contract.solver,
        "seed": 0,
        "prompts": prompts,
    }
    for name, page in (
        ("emoji-128-prompts.png", sheet([result.images[0] for result in results], 8)),
        ("emoji-128-red-apple.png", sheet(list(apples.images), 8)),
    ):
        with atomic.file(arguments.out / name) as path:
            page.save(path, format="PNG", optimize=True)
    atomic.write_text(arguments.out / "emoji-128-prompts.json", json.dumps(record, indent=2) + "\n")
    print(f"{len(prompts)} prompts, median {statistics.median(seconds):.2f} s an image after loading")


if __name__ == "__main__":
    main()
