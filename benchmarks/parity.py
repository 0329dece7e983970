"""How far fewstep's latents are from diffusers', for every family of models in every mode.

Small random models of the real classes, saved as diffusers folders, are drawn by both from the same noise,
with guidance, in float32, by each family's own scheduler (``tests/reference/families_builder.py`` says how,
and ``test_families.py`` holds the same numbers to 1e-4). Prints a table: the largest absolute difference of
the final latents, beside their standard deviation and largest value. A run of all cases writes
docs/results/parity.md and .json.

    python benchmarks/parity.py [--only sdxl] [--out docs/results]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checkpoint import atomic

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "reference"))
import families_drawing as drawing  # noqa: E402
import families_formats as formats  # noqa: E402
from families_builder import CASES, Case, build  # noqa: E402

OUT = ROOT / "docs" / "results"
LARGEST = 1e-4
TITLES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
    "pixart-alpha": "PixArt-alpha",
    "pixart-sigma": "PixArt-Sigma",
}
MODES = {"inpaint": "inpaint, masked latents", "inpaint-9": "inpaint, 9 channels", "instruct": "instruct"}
FORMS = {
    "folder": "folder",
    "file": "single file",
    "denoiser": "bare denoiser on a folder",
    "lora": "folder with a LoRA",
}
FURTHER = {"no-t5": "without T5", "embedded": "guidance embedded"}


def measure(case: Case, form: str, folder: Path) -> dict[str, Any]:
    """Draw one case on both sides."""
    if form == "folder":
        build(case, folder)
        ours, theirs = drawing.draw_ours(folder, case), drawing.draw_theirs(folder, case)
    else:
        ours, theirs, folder = formats.draw(case, form, folder)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    notes = [FURTHER.get(case.parts, case.parts), "" if case.negative else "no negative prompt"]
    return {
        "family": case.family,
        "mode": case.mode,
        "format": form,
        "scheduler": scheduler["_class_name"],
        "spacing": scheduler.get("timestep_spacing", "shifted"),
        "own": case.scheduler == "own",
        "note": ", ".join(filter(None, notes)),
        "difference": float(np.abs(ours - theirs).max()),
        "scale": float(theirs.std()) if form == "denoiser" else 1.0,
        "std": float(theirs.std()),
        "largest": float(np.abs(theirs).max()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | format | mode | scheduler of diffusers | largest difference | standard deviation "
        "| largest value |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        note = f" ({row['note']})" if row["note"] else ""
        own = "" if row["own"] else ", not its own"
        lines.append(
            f"| {TITLES[row['family']]}{note} | {FORMS[row['format']]} "
            f"| {MODES.get(row['mode'], row['mode'])} "
            f"| {row['scheduler'].removesuffix('Scheduler')}, {row['spacing']}{own} "
            f"| {row['difference']:.1e} | {row['std']:.2f} | {row['largest']:.1f} |"
        )
    return "\n".join(lines)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table with how to redo it, and the numbers."""
    versions = {name: metadata.version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
    run_by = ", ".join(f"{name} {version}" for name, version in versions.items())
    text = f"""# Parity with diffusers

Largest absolute difference of the final latents between fewstep (torch backend, float32, CPU) and diffusers'
pipelines, on small random models of the real classes: the same noise, guidance {drawing.GUIDANCE:g},
{drawing.STEPS} steps. At most {LARGEST:g} is allowed (`tests/reference/test_families.py`,
`test_loading.py`), for bare denoisers, whose latents are larger, times the standard deviation. Where a
pipeline draws noise itself, it is given ours; where it samples the autoencoder's posterior, it is given
the mean.

{table(rows)}

Redo it with `python benchmarks/parity.py` ({run_by}).
"""
    made = {
        "limit": LARGEST,
        "steps": drawing.STEPS,
        "guidance_scale": drawing.GUIDANCE,
        "versions": versions,
        "python": platform.python_version(),
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "parity.md", text)
    atomic.write_text(folder / "parity.json", json.dumps(made, indent=1) + "\n")


def main() -> int:
    """Measure, print and write; 1 when a difference is over the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument(
        "--out", type=Path, help="folder of the results; without it all cases only are written"
    )
    given = parser.parse_args()
    cases = [("folder", case) for case in CASES]
    cases += [(form, case) for form, some in formats.FORMS.items() for case in some]
    chosen = [(form, case) for form, case in cases if given.only in f"{case.name}-{form}"]
    if not chosen:
        names = ", ".join(f"{case.name}-{form}" for form, case in cases)
        parser.error(f"--only {given.only!r}: no such case; there are {names}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for form, case in chosen:
            place = Path(folder) / f"{case.name}-{form}"
            rows.append(measure(case, form, place))
            shutil.rmtree(place)
            print(f"{case.name}-{form}: {rows[-1]['difference']:.1e}", file=sys.stderr, flush=True)
    print(table(rows))
    out = given.out or (OUT if len(chosen) == len(cases) else None)
    if out is not None:
        write(out, rows)
    return int(any(row["difference"] > LARGEST * max(1.0, row["scale"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
