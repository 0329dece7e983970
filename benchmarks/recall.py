"""How well a denoiser knows its drawings by heart: its error of x0, from full captions, by noise level.

A full caption names object, style and background, and one drawing answers to it: a perfect network has no
error, however much noise there is. From pure noise (the last time) the error is all recall; near no noise it
is all detail. Unlike the training loss it compares across distributions of times, weightings and optimisers;
unlike prompt accuracy it takes seconds and has little chance in it. 256 training compositions, the same noise
for every network.

    python benchmarks/recall.py weights/emoji-128/unet RUN/checkpoints/*/denoiser.ema.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from fewstep.diffusion.prediction import to_prediction
from fewstep.diffusion.schedule import make_schedule

ROOT = Path(__file__).resolve().parents[1]
TIMES = (999, 800, 600, 400, 200, 100, 50)


def main() -> None:
    """Print one row for each network."""
    parser = argparse.ArgumentParser(description="Error of x0 from full captions, by noise level.")
    parser.add_argument(
        "networks",
        nargs="*",
        type=Path,
        help="folders of a unet, or files of its weights; default the landed one",
    )
    parser.add_argument("--config", type=Path, default=ROOT / "weights" / "emoji-128" / "unet")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache" / "emoji-128" / "latents")
    parser.add_argument("--n", type=int, default=256)
    given = parser.parse_args()
    if not (given.cache / "latents.npy").is_file():
        parser.error(f"{given.cache}: no latents; make them: fewstep data emoji-128, then with --autoencoder")
    x0, text = compositions(given.cache, given.n)
    print("| network | " + " | ".join(f"t {t}" for t in TIMES) + " |")
    print("|---" * (1 + len(TIMES)) + "|")
    for path in given.networks or [given.config]:
        errors = recall(network(path, given.config), x0, text)
        row = " | ".join(f"{error:.4f}" for error in errors)
        print(f"| {'/'.join(path.parts[-3:])} | {row} |", flush=True)


def compositions(cache: Path, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (N, C, h, w) and full captions (N, L, D) of compositions of the cache, always the same ones."""
    latents = np.load(cache / "latents.npy", mmap_mode="r")
    texts = np.load(cache / "text.npy", mmap_mode="r")
    full = np.load(cache / "caption_of.npy")[:, 0]
    rows = np.random.default_rng(0).choice(len(latents), count, replace=False)
    return (
        torch.from_numpy(np.asarray(latents[rows, 0], np.float32)),
        torch.from_numpy(np.asarray(texts[full[rows]], np.float32)),
    )


def network(path: Path, config: Path) -> UNet2DConditionModel:
    """The U-Net of a folder, or of a file of weights and another folder's configuration."""
    unet = UNet2DConditionModel.from_pretrained(path if path.is_dir() else config, local_files_only=True)
    if not path.is_dir():
        unet.load_state_dict(load_file(path))
    unet.eval()
    return unet


@torch.no_grad()
def recall(unet: UNet2DConditionModel, x0: torch.Tensor, text: torch.Tensor) -> list[float]:
    """Mean squared error of x0 (latents have variance 1) at each of `TIMES`; of emoji-128's schedule."""
    schedule = make_schedule(
        "scaled_linear",
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        rescale_zero_terminal_snr=True,
    )
    errors = []
    for t in TIMES:
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(t))
        x_t = float(schedule.alpha(t)) * x0 + float(schedule.sigma(t)) * noise
        parts = [
            unet(x, torch.tensor([t]), encoder_hidden_states=c, return_dict=False)[0]
            for x, c in zip(torch.split(x_t, 64), torch.split(text, 64), strict=True)
        ]
        said = to_prediction(torch.cat(parts), x_t, t, schedule, "v_prediction").x0
        errors.append(float(((said - x0) ** 2).mean()))
    return errors


if __name__ == "__main__":
    main()
