"""The record of the bundled model: prompt accuracy, FID and KID, sheets, failures, nearest drawings.

Draws 32 guided steps of `seen` (1,024 prompts), and of what training never saw: held-out combinations and
objects, 60 synonyms, and the 100 prompts of the contact sheet. Keeps tables and sheets in
docs/results/emoji-128; the pictures stay in --runs.

    python benchmarks/model_report.py [--n 1024] [--steps 32] [--runs runs/evaluation]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = ("seen", "combination", "object", "synonyms", "contact")
KEPT = ("report.json", "report.md", "contact-contact.png", "failures-seen.png", "nearest-seen.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "evaluation")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "emoji-128")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "fewstep", "evaluate", "emoji-128", "--steps", str(arguments.steps)]
    command += ["--n", str(arguments.n), "--out", str(arguments.runs)]
    command += [part for name in SETS for part in ("--prompts", name)]
    command += ["--autoencoder", str(ROOT / "weights" / "emoji-128" / "vae")]
    subprocess.run(command, check=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        file = arguments.runs / "emoji-128" / name
        if file.is_file():
            shutil.copy(file, arguments.out / name)


if __name__ == "__main__":
    main()
