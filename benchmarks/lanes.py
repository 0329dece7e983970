"""Calls of the bundled networks with every thread, with one, and side by side with one each.

Milliseconds a row of a student's denoiser at batch 1, 2 and 4, of the text encoder and of the decoder, at the
model's own size. All ways take turns, so that whatever else the machine does meets all of them.

    python benchmarks/lanes.py [--student four] [--rounds 40]

Needs a quiet machine with two cores or more. Prints a table (docs/adr/0025-lanes.md).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from first_picture import cpu

from fewstep.checkpoint import bundle
from fewstep.engine import registry
from fewstep.engine.backends.openvino import import_openvino

ALL, ONE, BESIDE = "one call, every thread", "one call, one thread", "two calls side by side, one thread each"
CONFIG = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": "NO", "PERFORMANCE_HINT": "LATENCY"}
STREAMS = {"NUM_STREAMS": "2", "INFERENCE_NUM_THREADS": "2"}

Inputs = Mapping[str, Any]


def calls(opened: bundle.Bundle, part: str, inputs: Inputs) -> dict[str, tuple[int, Callable[[], None]]]:
    """Way -> how many calls it makes, and making them."""
    core = import_openvino().Core()
    model = core.read_model(opened.path(part))
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    whole = core.compile_model(model, "CPU", CONFIG).create_infer_request()
    streams = core.compile_model(model, "CPU", CONFIG | STREAMS)
    lanes = [streams.create_infer_request() for _ in range(2)]

    def run(*requests: Any) -> None:
        for request in requests:
            request.start_async(inputs)
        for request in requests:
            request.wait()

    return {
        ALL: (1, lambda: run(whole)), ONE: (1, lambda: run(lanes[0])), BESIDE: (2, lambda: run(*lanes)),
    }  # fmt: skip


def cases(opened: bundle.Bundle, student: str) -> dict[str, tuple[int, str, Inputs]]:
    """Name -> rows in a call, the network, and what it is given."""
    rng = np.random.default_rng(0)
    width, height = (side // opened.downscale for side in opened.native_size)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    found: dict[str, tuple[int, str, Inputs]] = {}
    for rows in (1, 2, 4):
        found[f"denoiser, batch {rows}"] = (rows, bundle.student_part(student), {
            "x": normal(rows, opened.latent_channels, height, width),
            "t": np.full(rows, 500, dtype=np.float32),
            "text": normal(rows, opened.text_length, opened.text_width),
        })  # fmt: skip
    ids = np.ones((1, opened.text_length), dtype=np.int64)
    found["text encoder"] = (
        1,
        "text_encoder",
        {"ids": ids, "mask": ids} if opened.text_mask else {"ids": ids},
    )
    found["decoder"] = (1, "vae_decoder", {"latents": normal(1, opened.latent_channels, height, width)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="lcm")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    opened = bundle.open_bundle(registry.find_for("openvino", None).folder)
    ways = {
        name: (rows, calls(opened, part, inputs))
        for name, (rows, part, inputs) in cases(opened, arguments.student).items()
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(arguments.rounds + 2):
        for name, (rows, made) in ways.items():
            for way, (count, call) in made.items():
                began = time.perf_counter()
                call()
                if turn >= 2:  # the first calls set up memory
                    spent = (time.perf_counter() - began) / (rows * count)
                    seconds.setdefault((name, way), []).append(spent)
    print(f"{cpu()}; milliseconds a row, medians of {arguments.rounds}\n")
    print(f"| | {' | '.join((ALL, ONE, BESIDE))} |\n|---|---|---|---|")
    for name in ways:
        figures = [f"{1e3 * statistics.median(seconds[name, way]):.1f}" for way in (ALL, ONE, BESIDE)]
        print(f"| {name} | {' | '.join(figures)} |")


if __name__ == "__main__":
    main()
