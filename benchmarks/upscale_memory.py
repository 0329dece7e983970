"""Memory and time of `fewstep upscale`'s function for a picture of 1024x1024, four times as large.

Every network runs in a process of its own on a made-up picture; the most memory that it ever had resident is
asked of the system afterwards. Beside it stands the same process with Lanczos, which is Python, the libraries
and the result. Prints a table and writes docs/results/upscale_memory.json, one entry per network that was
run; the others stay. With the large networks this takes hours on a small machine: ``--sample`` runs them on
the first tile of each shape only, and puts zeros for the others. Every array is
made all the same, so the memory is that of a whole run; the time says nothing.

    python benchmarks/upscale_memory.py [--upscaler animevideo,anime] [--side 1024] [--threads 2] [--sample]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).resolve().parents[1] / "docs/results/upscale_memory.json"
LIMIT_MB = 1500


def picture(side: int) -> Any:
    """Gradients, discs with hard edges and a little noise: nothing that a network could skip."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    image = np.stack([x * 255, y * 255, (1 - x) * 255], axis=-1)
    for index in range(40):
        centre = np.random.default_rng(index).random(2)
        inside = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < (0.02 + 0.002 * index) ** 2
        image[inside] = np.random.default_rng(100 + index).integers(0, 255, 3)
    noise = np.random.default_rng(0).normal(0, 4, image.shape).astype(np.float32)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def sampled(networks: Any) -> None:
    """Let networks run on the first tile of each shape only, and give zeros of its shape for the others."""
    known: dict[tuple[Any, ...], tuple[int, ...]] = {}

    def wrap(kind: str, real: Any) -> Any:
        def call(self: Any, planes: Any, *rest: Any) -> Any:
            layer = rest[0] if kind != "run" else None  # a number; `run` may be given the layers before it
            key = (kind, self._network.file, layer, planes.shape)
            if key in known:
                return np.zeros(known[key], np.float32)
            made = real(self, planes, *rest)
            known[key] = made.shape
            return made

        return call

    for kind in ("block", "run", "features"):
        setattr(networks.NcnnRunner, kind, wrap(kind, getattr(networks.NcnnRunner, kind)))


def child(name: str, side: int, threads: int, sample: bool) -> None:
    from fewstep.engine.upscaling import enlarge, networks

    if sample:
        sampled(networks)
    image = picture(side)
    begun = time.perf_counter()
    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        if time.perf_counter() - last > 30:
            last = time.perf_counter()
            print(f"{name} {done}/{total} after {last - begun:.0f} s", file=sys.stderr, flush=True)

    made = enlarge.extras(
        image, enlarge.Extras(upscaler=name, scale=4.0), threads=threads, on_progress=show
    ).image
    seconds = time.perf_counter() - begun
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    print(json.dumps({"peak_mb": round(peak), "seconds": round(seconds, 1), "size": list(made.shape[1::-1])}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--upscaler", default="lanczos,animevideo,waifu2x-anime,waifu2x-cunet,anime")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.side, given.threads, given.sample)
        return
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    over = False
    for name in given.upscaler.split(","):
        options = ["--child", name, "--side", str(given.side), "--threads", str(given.threads)]
        options += ["--sample"] if given.sample else []
        done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, check=True)
        row = json.loads(done.stdout)
        load = os.getloadavg()[1]
        found[f"{name} {given.side}{' sample' if given.sample else ''}"] = {
            **row, "sample": given.sample, "threads": given.threads, "load_of_machine": round(load, 1),
            "cores": os.cpu_count(), "machine": platform.machine(), "ncnn": metadata.version("ncnn"),
        }  # fmt: skip
        OUT.write_text(json.dumps(found, indent=1) + "\n")
        over |= row["peak_mb"] > LIMIT_MB
        print(f"{name:16} {row['peak_mb']:5} MB  {row['seconds']:8} s  {row['size']}")
    if over:
        sys.exit(f"more than {LIMIT_MB} MB")


if __name__ == "__main__":
    main()
