"""Data of four drawings, a silent logger, and what a folder draws: for tests of students of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve

PROMPT, SEED = "a red apple", 4


class Drawings:
    def __len__(self) -> int:
        return 4

    def pixels(self, rows: range) -> np.ndarray:
        return np.stack([np.full((3, 64, 64), i / 4, np.float32) for i in rows])

    def captions(self, index: int) -> list[str]:
        return [f"{'abcd'[index]} red apple"]

    def mirrorable(self, index: int) -> bool:
        return True

    def fingerprint(self) -> str:
        return "four"


class Silent:
    def __init__(self, folder: Path) -> None: ...
    def scalars(self, *_: Any) -> None: ...
    def image(self, *_: Any) -> None: ...
    def close(self) -> None: ...


def ours(folder: Path, steps: int) -> np.ndarray:
    """What ``fewstep generate`` draws with PyTorch."""
    engine = Engine(folder, "torch")
    try:
        request = resolve(engine.info, prompt=PROMPT, seed=SEED, num_inference_steps=steps)
        return engine.generate(request).images[0].astype(float)
    finally:
        engine.close()
