"""Memory of merging two checkpoints of Stable Diffusion XL's size.

Two single files are written first, with SDXL's four networks in its authors' naming and random float16
numbers (6.9 GB each; ``--size small`` has an eighth of the channels); C of an add-difference is A's file
under another name. Each mode runs in a process of its own through ``fewstep merge``. What is told of it: the
highest resident set (``VmHWM``) less that of the same process before the merge, with the libraries
imported, and how long it took. Files are removed. Prints a table and writes docs/results/merge_memory.json.

    python benchmarks/merge_memory.py [--size whole] [--modes weighted-sum slerp] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from single_file_memory import BYTES, networks

ROOT = Path(__file__).resolve().parents[1]
MODES = ("weighted-sum", "slerp", "add-difference")


def write_file(path: Path, size: str, seed: int) -> None:
    """A single file of SDXL's make, one tensor in memory at a time.

    A tensor repeats a million random numbers from a place of its own: drawing 3.5 billion takes minutes.
    """
    import torch

    from fewstep.checkpoint import detect, single_file
    from fewstep.checkpoint.tensorfile import Entry

    noise = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed)).mul_(0.02).half()

    class Repeated:
        def __init__(self, module: Any) -> None:
            state = module.state_dict()
            bare = (
                type(module).__name__ == "CLIPTextModel" and "embeddings.position_embedding.weight" in state
            )
            self.entries = {
                f"text_model.{name}" if bare else name: Entry("F16", tuple(value.shape))
                for name, value in state.items()
            }

        def read(self, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            shape = self.entries[name].shape
            count = 1
            for length in shape:
                count *= length
            turned = noise.roll(sum(name.encode()) * 4099 % len(noise))
            return turned.repeat(count // len(noise) + 1)[:count].reshape(shape)

        def check_unchanged(self) -> None:
            pass

    stores = {name: Repeated(module) for name, module in networks(size).items()}
    found = detect.detect_folder({name: store.entries for name, store in stores.items()})
    views = [single_file.view(part, stores[name]) for name, part in found.parts.items()]
    single_file.write(path, views, family="sdxl")


def peak() -> float:
    """MB of the highest resident set so far.

    Not ``ru_maxrss``, which a new process takes over from the one that started it.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(value.split()[1]) * 1024 / 1e6


def child(arguments: list[str]) -> None:
    import torch

    import fewstep.checkpoint.merging.run  # noqa: F401 - the import is not what is measured
    from fewstep.cli.main import main

    torch.set_num_threads(1)
    before, started = peak(), time.perf_counter()
    code = main(["merge", *arguments, "--quiet"])
    result = {"before_mb": before, "peak_mb": peak(), "seconds": time.perf_counter() - started}
    print(json.dumps(result))
    sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=["whole", "small"], default="whole")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "merge_memory.json")
    parser.add_argument("--child", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child)
        return
    needed, free = 3.2 * BYTES[options.size], shutil.disk_usage(options.folder).free
    if free < needed:
        sys.exit(f"{options.folder}: {needed / 1e9:.0f} GB are needed and {free / 1e9:.0f} GB free")
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        a, b, c, out = (Path(temporary) / f"{name}.safetensors" for name in ("a", "b", "c", "out"))
        write_file(a, options.size, 0)
        write_file(b, options.size, 1)
        c.hardlink_to(a)  # a third file of its own is not needed to read it
        length = a.stat().st_size
        for mode in options.modes:
            models = [str(a), str(b), *([str(c)] if mode == "add-difference" else [])]
            command = [sys.executable, __file__, "--child", *models, "--mode", mode, "--out", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
            if done.returncode != 0:
                sys.exit(f"{mode}: exit code {done.returncode}\n{done.stderr[-2000:]}")
            if out.stat().st_size < 0.99 * length:
                sys.exit(f"{mode}: the result has {out.stat().st_size} bytes")
            out.unlink()
            row = json.loads(done.stdout.splitlines()[-1])
            rows[mode] = {**row, "above_mb": row["peak_mb"] - row["before_mb"]}
            above, seconds = rows[mode]["above_mb"], row["seconds"]
            print(f"{mode:15} {above:6.0f} MB above {row['before_mb']:.0f} MB, {seconds:.0f} s", flush=True)
            report = {
                "size": options.size,
                "file_bytes": length,
                "modes": rows,
                "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
                "machine": platform.platform(),
            }
            options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
