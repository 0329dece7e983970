"""Small models to merge: three of sd1 as files and folders, and bare U-Nets."""

from __future__ import annotations

from pathlib import Path

import tiny_files as tiny
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoint.conversion import Options as Conversion
from fewstep.checkpoint.conversion import convert


def changed(path: Path, out: Path, seed: int, dtype: torch.dtype | None = None) -> Path:
    """The same model with other numbers."""
    generator = torch.Generator().manual_seed(seed)
    state = load_file(path)
    made = {n: v + 0.1 * torch.randn(v.shape, generator=generator) for n, v in state.items()}
    save_file({n: v.to(dtype or v.dtype) for n, v in made.items()}, out)
    return out


def sd1(root: Path) -> dict[str, Path]:
    """Three models of sd1 as files, and the first two as folders."""
    a = tiny.save(root / "a.safetensors", "sd1")
    found = {"a": a, "b": changed(a, root / "b.safetensors", 1), "c": changed(a, root / "c.safetensors", 2)}
    for name in "ab":
        convert(found[name], root / f"{name}-folder", Conversion())
        found[f"{name}-folder"] = root / f"{name}-folder"
    return found


def unets(root: Path) -> dict[str, Path]:
    """Bare U-Nets in diffusers' names: a fine-tune, a distilled model, their base; two of more channels."""
    base = tiny.states("sd1")["unet"]
    found = {}
    for seed, name in enumerate(("fine", "distilled", "base", "inpainting", "instruct")):
        state = {n: v + 0.01 * seed for n, v in base.items()}
        if more := {"inpainting": 5, "instruct": 4}.get(name):
            weight = state["conv_in.weight"]
            state["conv_in.weight"] = torch.cat([weight, torch.ones(len(weight), more, 3, 3)], 1)
        found[name] = root / f"{name}.safetensors"
        save_file(state, found[name])
    return found
