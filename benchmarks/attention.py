"""Fused attention beside two products, forward and backward of the U-Net in bfloat16, one thread, in turn.

python benchmarks/attention.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from first_picture import cpu

from fewstep.models.attention import unfused

ROOT = Path(__file__).resolve().parents[1]


def passed(unet: torch.nn.Module, batch: int) -> Callable[[], float]:
    """Seconds of one pass forward and back."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 8, 16, 16, generator=generator)
    text = torch.randn(batch, 32, 384, generator=generator)
    times = torch.full((batch,), 500)

    def run() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = unet(x, times, text, return_dict=False)[0]
        output.float().square().mean().backward()
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unet", type=Path, default=ROOT / "weights" / "emoji-128" / "unet")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fused, plain = (UNet2DConditionModel.from_pretrained(arguments.unet).float() for _ in range(2))
    changed = unfused(plain)
    pair = [passed(network, arguments.batch) for network in (fused, plain)]
    for run in pair * 2:
        run()
    rounds = [tuple(run() for run in pair) for _ in range(arguments.rounds)]
    ratios = sorted(b / a for a, b in rounds)
    edge = len(ratios) // 4
    print(
        f"{changed} layers: fused {1e3 * statistics.median(a for a, _ in rounds):.0f} ms, two products "
        f"{1e3 * statistics.median(b for _, b in rounds):.0f} ms, ratio {statistics.median(ratios):.2f} "
        f"[{ratios[edge]:.2f}, {ratios[-1 - edge]:.2f}] ({cpu()})"
    )


if __name__ == "__main__":
    main()
