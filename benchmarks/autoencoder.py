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
from fewstep.data.compositions import compose
from fewstep.data.emoji import build_drawings, open_drawings
from fewstep.data.emoji_sets import STYLES, fetch_packages
from fewstep.models import autoencoder as autoencoders
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
    colours = np.array(list(load_backgrounds().values()), np.float32)

    rows, table = [], {}
    for style in STYLES:
        found = [i for i, item in enumerate(drawings.items) if item.style == style and item.split == "object"]
        # the background follows from the place in the list: every one is used, and always the same
        images = compose(drawings.rgba[found], colours[np.arange(len(found)) % len(colours)])
        values = autoencoders.psnr(network, images)
        table[style] = {"drawings": len(found), "psnr_db": round(float(values.mean()), 2)}
        rows.append(
            (images[:4], autoencoders.decode(network, autoencoders.encode(network, images[:4])), values)
        )
    everything = np.concatenate([row[2] for row in rows])
    result = {
        "autoencoder": safetensors.folder_hash(folder),
        "drawings": drawings.fingerprint,
        "held_out_drawings": len(everything),
        "psnr_db_mean": round(float(everything.mean()), 2),
        "psnr_db_median": round(float(np.median(everything)), 2),
        "psnr_db_worst_tenth": round(float(np.quantile(everything, 0.1)), 2),
        "by_style": table,
    }
    print(f"{'style':12} {'drawings':>8} {'PSNR dB':>8}")
    for style, entry in table.items():
        print(f"{style:12} {entry['drawings']:8} {entry['psnr_db']:8.2f}")
    print(f"{'all':12} {len(everything):8} {everything.mean():8.2f}")
    atomic.write_text(arguments.out / "autoencoder.json", json.dumps(result, indent=2) + "\n")
    originals = np.concatenate([row[0] for row in rows])
    copies = np.concatenate([row[1] for row in rows])
    halves = (len(originals) + 1) // 2
    parts = [originals[:halves], copies[:halves], originals[halves:], copies[halves:]]
    sheet = grid(np.concatenate(parts), columns=halves)
    with atomic.file(arguments.out / "autoencoder.png") as path:
        Image.fromarray(sheet).save(path, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
