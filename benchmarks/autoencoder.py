"""How well the bundled autoencoder reproduces drawings that it never saw.

Every drawing of the objects that are held out whole, in all six styles, on plain backgrounds, 128 px,
encoded by the posterior's mode and decoded. Prints a table and writes docs/results/autoencoder.json and
.png (originals above reconstructions).

    python benchmarks/autoencoder.py [--model weights/emoji-128] [--drawings .cache/emoji-128/drawings]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.checkpoint import atomic, safetensors
from fewstep.data.backgrounds import load_backgrounds
from fewstep.data.emoji import build_drawings, open_drawings
from fewstep.data.emoji_sets import STYLES, fetch_packages
from fewstep.evaluation.reconstruction import held_out, reconstruct
from fewstep.models import load
from fewstep.training.previews import grid

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "weights" / "emoji-128")
    parser.add_argument("--drawings", type=Path, default=ROOT / ".cache" / "emoji-128" / "drawings")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    if (arguments.drawings / "set.json").is_file():
        drawings = open_drawings(arguments.drawings)
    else:
        drawings = build_drawings(arguments.drawings, fetch_packages(arguments.drawings.parent / "npm"))
    folder = arguments.model / "vae" if (arguments.model / "vae").is_dir() else arguments.model
    network = load.autoencoder(folder)
    found = held_out(drawings, load_backgrounds())
    whole = reconstruct(network, found.images)

    table, shown = {}, []
    for style in STYLES:
        of_style = np.array([drawings.items[row].style == style for row in found.rows])
        table[style] = {
            "drawings": int(of_style.sum()),
            "psnr_db": round(float(whole.psnr[of_style].mean()), 2),
            "ssim": round(float(whole.ssim[of_style].mean()), 3),
        }
        shown.extend(np.flatnonzero(of_style)[:4])
    result = {
        "autoencoder": safetensors.folder_hash(folder),
        "drawings": drawings.fingerprint,
        "held_out_drawings": len(found.rows),
        "psnr_db_mean": round(float(whole.psnr.mean()), 2),
        "psnr_db_median": round(float(np.median(whole.psnr)), 2),
        "psnr_db_worst_tenth": round(float(np.quantile(whole.psnr, 0.1)), 2),
        "ssim_mean": round(float(whole.ssim.mean()), 3),
        "ssim_median": round(float(np.median(whole.ssim)), 3),
        "ssim_worst_tenth": round(float(np.quantile(whole.ssim, 0.1)), 3),
        "by_style": table,
    }
    print(f"{'style':12} {'drawings':>8} {'PSNR dB':>8} {'SSIM':>6}")
    for style, entry in table.items():
        print(f"{style:12} {entry['drawings']:8} {entry['psnr_db']:8.2f} {entry['ssim']:6.3f}")
    print(f"{'all':12} {len(found.rows):8} {whole.psnr.mean():8.2f} {whole.ssim.mean():6.3f}")
    atomic.write_text(arguments.out / "autoencoder.json", json.dumps(result, indent=2) + "\n")
    originals, copies = found.images[shown], whole.copies[shown]
    halves = (len(originals) + 1) // 2
    parts = [originals[:halves], copies[:halves], originals[halves:], copies[halves:]]
    sheet = grid(np.concatenate(parts), columns=halves)
    with atomic.file(arguments.out / "autoencoder.png") as path:
        Image.fromarray(sheet).save(path, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
