"""What tests of the history share: a clock, and pictures to keep."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewstep.server.history import History
from fewstep.server.history_rows import Kept
from fewstep.server.history_search import Search

RECORD: dict[str, Any] = {
    "fewstep": "0.1.0", "task": "txt2img", "model": "emoji-128", "model_hash": "e0c5b3fbaf" * 6,
    "prompt": "a red apple", "negative_prompt": "", "num_inference_steps": 4, "guidance_scale": 1.0,
    "solver": "ddim", "seed": 3, "width": 24, "height": 16, "engine": {"backend": "fake"},
}  # fmt: skip


class Clock:
    def __init__(self, now: float = 1_795_000_000.123456) -> None:
        self.now = now

    def __call__(self) -> float:
        self.now += 0.25
        return self.now


def pixels(seed: int = 0, shape: tuple[int, int] = (16, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def add(history: History, prompt: str = "a red apple", owner: str = "anna", **more: Any) -> Kept:
    record = {**RECORD, "prompt": prompt, **more.pop("record", {})}
    return history.add(pixels(), record, owner=owner, **more)


def listed(history: History, owner: str | None = "anna", **wanted: Any) -> list[str]:
    return [one.id for one in history.search(Search(owner=owner, **wanted)).images]


def tree(history: History) -> set[str]:
    found = (path for path in history.root.rglob("*") if path.is_file())
    return {path.relative_to(history.root).as_posix() for path in found}
