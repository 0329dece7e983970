"""Runs small enough for tests: diffusers classes with a few thousand parameters, data made up in memory."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.training import checkpointing
from fewstep.training.recipe import Recipe, parse_recipe
from fewstep.training.trainer import RunResult, train

DENOISER = """
kind: denoiser
data: {source: cache, path: none, batch_size: 4}
model:
  sample_size: 4
  in_channels: 2
  out_channels: 2
  block_out_channels: [8]
  layers_per_block: 1
  down_block_types: [CrossAttnDownBlock2D]
  up_block_types: [CrossAttnUpBlock2D]
  mid_block_type: null
  cross_attention_dim: 8
  attention_head_dim: 4
  norm_num_groups: 4
  dropout: 0.1
objective:
  schedule: {rescale_zero_terminal_snr: true}
  weighting: {kind: min_snr}
optimiser: {learning_rate: 3e-3, weight_decay: 0.01}
schedule: {kind: cosine, warmup_images: 8, total_images: 48}
ema: {half_life_images: 20}
stop: {images: 48}
runtime: {threads: 1, device: cpu, log_images: 4, prefetch: 0, checkpoint_minutes: 60}
"""

AUTOENCODER = """
kind: autoencoder
data: {source: drawings, path: none, batch_size: 4}
model:
  block_out_channels: [4, 4]
  down_block_types: [DownEncoderBlock2D, DownEncoderBlock2D]
  up_block_types: [UpDecoderBlock2D, UpDecoderBlock2D]
  layers_per_block: 1
  latent_channels: 2
  norm_num_groups: 2
  mid_block_add_attention: false
  sample_size: 8
objective:
  mse: 1.0
  adversarial: {start_images: 16, channels: 4, layers: 1}
optimiser: {learning_rate: 3e-3}
schedule: {kind: wsd, warmup_images: 8, total_images: 48}
ema: {half_life_images: 20}
stop: {images: 48}
runtime: {threads: 1, device: cpu, log_images: 4, prefetch: 0, checkpoint_minutes: 60}
"""

EVALUATOR = """
kind: evaluator
data: {source: labelled, path: none, batch_size: 4}
model:
  styles: 2
  text_width: 6
  side: 16
  channels: [4, 8]
  blocks: [1, 1]
  embedding: 8
  dropout: 0.1
optimiser: {learning_rate: 1e-2, weight_decay: 0.01}
schedule: {kind: wsd, warmup_images: 8, total_images: 48}
ema: {half_life_images: 20}
stop: {images: 48}
runtime: {threads: 1, device: cpu, log_images: 4, prefetch: 0, checkpoint_minutes: 60}
"""

RECIPES = {"denoiser": DENOISER, "autoencoder": AUTOENCODER, "evaluator": EVALUATOR}


class Latents:
    """Latents and text embeddings that follow from the index; notes which indices were asked for."""

    def __init__(self, size: int = 20, shape: tuple[int, int, int] = (2, 4, 4)) -> None:
        self.size, self.shape = size, shape
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        self.asked += indices.tolist()
        own = [np.random.default_rng(int(index)) for index in indices]
        latents = np.stack([g.standard_normal(self.shape, dtype=np.float32) for g in own])
        return {
            "latents": latents + np.float32(0.1 * rng.standard_normal()),
            "text": np.stack([g.standard_normal((3, 8), dtype=np.float32) for g in own]),
            "uncond": np.zeros((3, 8), np.float32),
            "captions": [f"drawing {index}" for index in indices],
        }

    def fingerprint(self) -> str:
        return f"latents-{self.size}"


class Pixels:
    """Smooth pictures that follow from the index."""

    def __init__(self, size: int = 20, side: int = 8) -> None:
        self.size, self.side = size, side

    def __len__(self) -> int:
        return self.size

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        axis = np.linspace(0, 3, self.side, dtype=np.float32)
        waves = [np.sin(axis[:, None] * (1 + i % 3) + axis[None] + i) for i in indices.tolist()]
        pixels = np.stack(waves)[:, None].repeat(3, 1).astype(np.float32)
        return {"pixels": np.flip(pixels, -1).copy() if rng.random() < 0.5 else pixels}

    def fingerprint(self) -> str:
        return f"pixels-{self.size}"


class Named(Pixels):
    """Smooth pictures with the number of one of five concepts and of one of two styles."""

    def __init__(self, size: int = 20) -> None:
        super().__init__(size, side=16)

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
        numbers = indices.astype(np.int64)
        return super().batch(indices, rng) | {
            "concept": numbers % 5,
            "style": numbers // 5 % 2,
            "candidates": np.random.default_rng(0).standard_normal((5, 6), dtype=np.float32),
        }

    def fingerprint(self) -> str:
        return f"named-{self.size}"


def recipe(kind: str, *overrides: str) -> Recipe:
    return parse_recipe(RECIPES[kind], overrides)


def dataset(kind: str) -> Any:
    return {"denoiser": Latents, "autoencoder": Pixels, "evaluator": Named}[kind]()


def run(kind: str, folder: Path, *overrides: str, **arguments: Any) -> RunResult:
    """A tiny run without a bar, and without TensorBoard unless asked for."""
    from fewstep.training.logs import ProgressFile

    seen = 0
    if arguments.get("resume"):
        newest = checkpointing.found(folder / "checkpoints")
        seen = int(newest[-1].name) if newest else 0
    arguments.setdefault("dataset", dataset(kind))
    arguments.setdefault("loggers", [ProgressFile(folder / "progress.jsonl", seen)])
    return train(recipe(kind, *overrides), run_folder=folder, show_progress=False, **arguments)


def hashes(folder: Path) -> dict[str, str]:
    """File hashes of the newest checkpoint: equal hashes are equal bits."""
    manifest = checkpointing.open_checkpoint(checkpointing.found(folder / "checkpoints")[-1]).manifest
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def losses(folder: Path) -> list[dict[str, float]]:
    """What progress.jsonl says, without times."""
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    timed = {"seconds", "images_per_second"}
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def fork(function: Callable[[], None]) -> Any:
    """Start a function in a forked child, which shares the imported torch: importing it takes seconds."""

    def child() -> None:
        torch.set_num_threads(1)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        function()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process
