"""Several orders drawn together against the same orders one by one, with the same bundle in one process.

Orders of one image each, with prompts and seeds of their own, at the model's own size and in the steps of a
student. The two ways take turns, so that whatever else the machine does meets both, and each round gives one
ratio; which comes first changes every round. Networks are compiled and one round is drawn before. Seconds are
the wall clock's, which need a quiet machine, and the process's CPU seconds, which suffer less from another
process. What the pictures of the two ways differ by is measured as well.

    python benchmarks/micro_batching.py [--orders 4 8] [--threads N] [--rounds 15] [--quick]

Prints a table; writes docs/results/micro_batching.json, unless ``--quick``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from first_picture import ROOT, cpu

from fewstep.engine import batching
from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest, resolve
from fewstep.errors import FewstepError

PROMPTS = (
    "a red apple, noto style, on a sky blue background", "a green frog", "a slice of pizza, fluent 3d style",
    "a yellow taxi, twemoji style", "a blue fish", "a birthday cake, noto style", "a snowman",
    "a rocket, fluent flat style, on a white background",
)  # fmt: skip


def orders(engine: Engine, count: int, steps: int, seed: int) -> list[GenerateRequest]:
    return [
        resolve(engine.info, prompt=PROMPTS[i % len(PROMPTS)], seed=seed + 100 * i, num_inference_steps=steps)
        for i in range(count)
    ]


def seconds(draw: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, own = time.perf_counter(), time.process_time()
    drawn = draw()
    return time.perf_counter() - wall, time.process_time() - own, drawn


def together(engine: Engine, requests: list[GenerateRequest]) -> list[Any]:
    ends = batching.generate_batch(engine, requests)
    for end in ends:
        if isinstance(end, FewstepError):
            raise end
    return ends


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(one: Engine, many: Engine, count: int, steps: int, rounds: int) -> dict[str, Any]:
    wall: dict[str, list[float]] = {"one_by_one": [], "together": []}
    own: dict[str, list[float]] = {"one_by_one": [], "together": []}
    largest = 0
    for number in range(-1, rounds):
        requests = orders(one, count, steps, seed=number + 1)
        ways = {
            "one_by_one": lambda requests=requests: [one.generate(request) for request in requests],
            "together": lambda requests=requests: together(many, requests),
        }
        drawn = {}
        for way in list(ways)[:: 1 if number % 2 else -1]:
            a, b, drawn[way] = seconds(ways[way])
            if number >= 0:
                wall[way].append(a / count)
                own[way].append(b / count)
        for first, second in zip(drawn["one_by_one"], drawn["together"], strict=True):
            difference = np.abs(first.images[0].astype(int) - second.images[0].astype(int))
            largest = max(largest, int(difference.max()))
    result: dict[str, Any] = {"orders": count, "largest_difference": largest}
    for name, times in (("wall", wall), ("cpu", own)):
        ratios = [a / b for a, b in zip(times["one_by_one"], times["together"], strict=True)]
        result[name] = {way: spread(values) for way, values in times.items()} | {"ratio": spread(ratios)}
        result[name]["rounds"] = [
            list(pair) for pair in zip(times["one_by_one"], times["together"], strict=True)
        ]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=ROOT / "src" / "fewstep" / "bundled" / "emoji-128")
    parser.add_argument("--orders", type=int, nargs="+", default=[4, 8], help="orders in one batch")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, help="inference threads; default all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="three rounds, and nothing is written")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "micro_batching.json")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else arguments.rounds
    one = Engine(arguments.bundle, "openvino", threads=arguments.threads)
    found = []
    print(f"{'':22}{'one by one, ms':>16}{'together, ms':>16}{'ratio':>8}{'least':>8}{'most':>8}")
    for count in arguments.orders:
        many = Engine(arguments.bundle, "openvino", threads=arguments.threads, rows=count)
        found.append(measure(one, many, count, arguments.steps, rounds))
        many.close()
        for name, what in (("wall", "wall"), ("cpu", "CPU")):
            s, ratio = found[-1][name], found[-1][name]["ratio"]
            alone, both = (1e3 * s[way]["median"] for way in ("one_by_one", "together"))
            ratios = "".join(f"{ratio[key]:8.2f}" for key in ("median", "min", "max"))
            print(f"{f'{count} orders, {what}':22}{alone:16.1f}{both:16.1f}{ratios}")
        print(f"    largest difference of a pixel: {found[-1]['largest_difference']} of 255")
    one.close()
    if arguments.quick:
        return
    result = {
        "what": "seconds per image of orders of one image, one by one and drawn together",
        "steps": arguments.steps,
        "threads": arguments.threads or "all",
        "results": found,
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "load_average_at_end": os.getloadavg()[0],
            "packages": {name: metadata.version(name) for name in ("fewstep", "openvino", "numpy")},
        },
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
