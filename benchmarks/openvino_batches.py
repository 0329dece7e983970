"""CPU time per row of a bundle's networks, by batch size, threads and streams, and whether the bits
of a row depend on them. Prints two tables for denoiser and decoder; nothing is written.

    python benchmarks/openvino_batches.py [--student four] [--bundle FOLDER]

CPU time of the process, least of five goes, because it suffers less from other processes than the clock's.
Inputs are random: that bits agree is a statement about these.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from first_picture import ROOT

from fewstep.checkpoint import bundle as bundles
from fewstep.engine.backends.openvino import import_openvino

BASE = {"INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": "NO"}
ROWS = 8


def cpu_ms(run: Callable[[], Any], rows: int) -> float:
    run()
    least = float("inf")
    for _ in range(5):
        started = time.process_time()
        run()
        least = min(least, time.process_time() - started)
    return 1e3 * least / rows


class Networks:
    """One part of a bundle, compiled in several ways, on the same inputs of `ROWS` rows."""

    def __init__(self, ov: Any, path: Path, inputs: dict[str, np.ndarray]) -> None:
        self.ov, self.path, self.inputs = ov, path, inputs
        self.core = ov.Core()

    def compiled(self, batch: int, settings: dict[str, Any]) -> Any:
        model = self.core.read_model(self.path)
        model.reshape({name: [batch, *array.shape[1:]] for name, array in self.inputs.items()})
        return self.core.compile_model(model, "CPU", {**BASE, **settings})

    def batched(self, batch: int, threads: int) -> tuple[np.ndarray, float]:
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
        request = self.compiled(batch, settings).create_infer_request()

        def run() -> np.ndarray:
            parts = [
                request.infer({name: array[at : at + batch] for name, array in self.inputs.items()})[0].copy()
                for at in range(0, ROWS, batch)
            ]
            return np.concatenate(parts)

        return run(), cpu_ms(run, ROWS)

    def streamed(self, streams: int) -> tuple[np.ndarray, float]:
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams,
        }
        queue = self.ov.AsyncInferQueue(self.compiled(1, settings), streams)
        found: dict[int, np.ndarray] = {}
        queue.set_callback(lambda request, row: found.update({row: request.get_output_tensor(0).data.copy()}))

        def run() -> np.ndarray:
            for row in range(ROWS):
                queue.start_async({name: array[row : row + 1] for name, array in self.inputs.items()}, row)
            queue.wait_all()
            return np.concatenate([found[row] for row in range(ROWS)])

        return run(), cpu_ms(run, ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time per row by batch size, threads and streams.")
    parser.add_argument("--bundle", type=Path, default=ROOT / "src" / "fewstep" / "bundled" / "emoji-128")
    parser.add_argument("--student", default="lcm")
    arguments = parser.parse_args()
    own = bundles.open_bundle(arguments.bundle)
    side = own.native_size[0] // own.downscale
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((ROWS, *shape)).astype(np.float32)

    x = normal(own.latent_channels, side, side)
    given = {"x": x, "t": np.full(ROWS, 700, np.float32), "text": normal(own.text_length, own.text_width)}
    for part, inputs in ((bundles.student_part(arguments.student), given), ("vae_decoder", {"latents": x})):
        networks = Networks(import_openvino(), own.path(part), inputs)
        print(f"{part:34}{'CPU ms a row':>13}  bits as batch 1 of as many threads")
        single: dict[int, np.ndarray] = {}
        for threads in (1, 2):
            for batch in (1, 2, 4, 8):
                values, spent = networks.batched(batch, threads)
                alike = np.array_equal(values, single.setdefault(threads, values))
                print(
                    f"{f'batch {batch}, {threads} threads':34}{spent:13.1f}  {'equal' if alike else 'other'}"
                )
        values, spent = networks.streamed(2)
        alike = np.array_equal(values, single[1])
        print(f"{'batch 1, 2 streams of a thread':34}{spent:13.1f}  {'equal' if alike else 'other'}")
        apart = float(np.abs(single[1] - single[2]).max())
        print(
            f"1 and 2 threads differ by at most {apart:.2g} of a largest value {np.abs(single[1]).max():.2g}"
        )


if __name__ == "__main__":
    main()
