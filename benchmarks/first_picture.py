"""One command, one picture: fewstep beside plain diffusers on the same folder, as whole processes.

Both draw the same prompt with the same weights, steps, guidance and rescale, and save a PNG; the clock runs
from the start of the process to its end. They take turns, so that whatever else the machine does meets
both, and each round gives one ratio. Each was run once before: fewstep's compiled networks and the system's
file cache are warm. Prints a table and writes docs/results/first_picture.json.

    python benchmarks/first_picture.py [--pipeline weights/emoji-128] [--bundle FOLDER] [--rounds 7]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a red apple, noto style, on a sky blue background"

DIFFUSERS = """
import json, sys
import torch
from diffusers import StableDiffusionPipeline
folder, prompt, out = sys.argv[1:]
contract = json.load(open(folder + "/fewstep.json"))
pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
pipe(
    prompt, num_inference_steps=contract["num_inference_steps"], guidance_scale=contract["guidance_scale"],
    guidance_rescale=contract["guidance_rescale"], generator=torch.Generator().manual_seed(0),
).images[0].save(out)
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr.strip()}")
    return elapsed


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def summary(times: list[float]) -> dict[str, float]:
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", type=Path, default=ROOT / "weights" / "emoji-128")
    parser.add_argument("--bundle", type=Path, default=ROOT / "src" / "fewstep" / "bundled" / "emoji-128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "first_picture.json")
    arguments = parser.parse_args()
    for folder, file in ((arguments.pipeline, "fewstep.json"), (arguments.bundle, "bundle.json")):
        if not (folder / file).is_file():
            sys.exit(f"{folder}: no {file} here; train and export the model first (make train-bundled)")
    bundle = json.loads((arguments.bundle / "bundle.json").read_text())
    contract = json.loads((arguments.pipeline / "fewstep.json").read_text())
    shared = ("num_inference_steps", "guidance_scale", "guidance_rescale", "solver")
    if any(contract[key] != bundle["contract"][key] for key in shared):
        sys.exit(f"{arguments.bundle}: its sampling contract differs from the pipeline's; export it again")

    with tempfile.TemporaryDirectory() as scratch:
        environment = {
            **os.environ,
            "FEWSTEP_MODELS": str(arguments.bundle),
            "FEWSTEP_CACHE": str(Path(scratch) / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        fewstep = [
            sys.executable, "-m", "fewstep", "generate", PROMPT, "--model", bundle["name"], "--seed", "0",
            "--upscale", "none", "--out", str(Path(scratch) / "out"), "--quiet",
        ]  # fmt: skip
        script = Path(scratch) / "plain.py"
        script.write_text(DIFFUSERS)
        picture = str(Path(scratch) / "plain.png")
        plain = [sys.executable, str(script), str(arguments.pipeline), PROMPT, picture]
        first = seconds(fewstep, environment)
        seconds(plain, environment)
        ours: list[float] = []
        theirs: list[float] = []
        for round_ in range(arguments.rounds):
            turns = [(ours, fewstep), (theirs, plain)]
            for times, command in turns if round_ % 2 == 0 else turns[::-1]:
                times.append(seconds(command, environment))
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]

    packages = ("fewstep", "openvino", "numpy", "torch", "diffusers", "transformers")
    result = {
        "what": "seconds of a whole process that draws and saves one picture",
        "prompt": PROMPT,
        **{key: contract[key] for key in shared},
        "model_source": bundle["made_by"].get("source", "unknown"),
        "precision": bundle["precision"],
        "fewstep_first_start": first,
        "fewstep": summary(ours),
        "diffusers": summary(theirs),
        "ratio": summary(ratios),
        "rounds": [{"fewstep": a, "diffusers": b} for a, b in zip(ours, theirs, strict=True)],
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "load_average_at_end": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "python": platform.python_version(),
            "packages": {name: metadata.version(name) for name in packages},
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")

    print(f"{PROMPT!r}, {contract['num_inference_steps']} steps, guidance {contract['guidance_scale']}")
    print(f"{'':28}{'median':>9}{'min':>9}{'max':>9}")
    for name, values in (
        ("fewstep, second start, s", ours),
        ("plain diffusers, s", theirs),
        ("ratio", ratios),
    ):
        s = summary(values)
        print(f"{name:28}{s['median']:9.2f}{s['min']:9.2f}{s['max']:9.2f}")
    print(f"{'fewstep, very first start, s':28}{first:9.2f}")


if __name__ == "__main__":
    main()
