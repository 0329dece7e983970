"""Upscalers from files of other people, through the library spandrel, which knows some forty architectures.

spandrel needs torchvision, which could not be installed where this was written: it is tested with a stand-in
for spandrel only, and with no real file.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checkpoint import safetensors
from fewstep.engine.upscaling.catalogue import Geometry
from fewstep.engine.upscaling.tiles import Planes
from fewstep.errors import CheckpointError, DependencyError, EngineError, NotFoundError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
INSTALL = "pip install spandrel torchvision"

_WRAPPERS = ("params_ema.", "params-ema.", "params.", "state_dict.")
"""What trainers put around the weights; averaged ones first."""


class SpandrelRunner:
    """A file's network that is ready to run, on the best device that torch finds.

    How far such a network sees is not known: tiles have 32 pixels around them, as is usual, and may differ a
    little from the whole.

    Args:
        path: a safetensors file. Pickles (``.pth``) are converted first, see docs/guides/upscaling.md.

    Raises:
        NotFoundError: no such file.
        CheckpointError: a pickle, a broken file, or one that spandrel does not know or that is no upscaler
            of colour pictures.
        DependencyError: spandrel, torchvision or torch is missing.
    """

    geometry = Geometry(tile=256, overlap=32)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise NotFoundError(f"{self.path}: no such file; check the path")
        if safetensors.is_pickle(self.path):
            made = self.path.with_suffix(".safetensors")
            raise CheckpointError(
                f"{self.path}: a pickle, which is a program; make a safetensors file of it with: "
                f"fewstep convert {self.path} --allow-pickle --out {made}"
            )
        try:
            torch: Any = importlib.import_module("torch")
            spandrel: Any = importlib.import_module("spandrel")
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
            raise DependencyError(
                f"{self.path}: upscalers from files need PyTorch, torchvision and spandrel ({error}); "
                f"install them with: {INSTALL}"
            ) from error
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = spandrel.ModelLoader(device=self._device).load_from_state_dict(
                _unwrapped(safetensors.load_torch(self.path))
            )
        except CheckpointError:
            raise
        except Exception as error:  # spandrel has errors of its own for unknown files, torch for wrong shapes
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{self.path}: not an upscaler that spandrel knows ({reason}); give another file"
            ) from error
        if (model.input_channels, model.output_channels) != (3, 3):
            raise CheckpointError(
                f"{self.path}: takes {model.input_channels} channels and gives {model.output_channels}; only "
                "upscalers from RGB to RGB are used"
            )
        self._model = model.eval()
        self.scale = int(model.scale)
        self.name = self.path.stem

    def run(self, planes: Planes, features: Planes | None = None) -> Planes:
        """(3, h, w) in [0, 1] -> (3, h * scale, w * scale).

        Raises:
            EngineError: the network failed, or gave values that are not finite.
        """
        torch = self._torch
        try:
            with torch.inference_mode():
                given = torch.from_numpy(np.ascontiguousarray(planes))[None].to(self._device)
                made = self._model(given)[0].float().cpu().numpy()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise EngineError(f"upscaler {self.path}: failed ({reason}); try another upscaler") from error
        shape = (3, planes.shape[1] * self.scale, planes.shape[2] * self.scale)
        if made.shape != shape or not np.isfinite(made).all():
            raise EngineError(f"upscaler {self.path}: gave no picture of {shape}; try another upscaler")
        return np.asarray(made, dtype=np.float32)


def _unwrapped(tensors: dict[str, Any]) -> dict[str, Any]:
    """Without the trainer's wrapper, which conversion has joined to the names."""
    for wrapper in _WRAPPERS:
        inner = {name.removeprefix(wrapper): t for name, t in tensors.items() if name.startswith(wrapper)}
        if inner:
            return inner
    return tensors
