from __future__ import annotations

import pytest

from fewstep.training.schedules import rate_factor
from fewstep.training.sections import Schedule


def factors(**settings: object) -> list[float]:
    return [rate_factor(Schedule(**settings), seen, 100) for seen in (1, 5, 10, 55, 100, 150)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"kind": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"kind": "constant", "warmup_images": 10}, [0.1, 0.5, 1, 1, 1, 1]),
        ({"kind": "cosine", "warmup_images": 10}, [0.1, 0.5, 1, 0.5, 0, 0]),
        ({"kind": "linear", "warmup_images": 10, "final": 0.2}, [0.1, 0.5, 1, 0.6, 0.2, 0.2]),
        ({"kind": "wsd", "warmup_images": 10, "decay_images": 90}, [0.1, 0.5, 1, 0.5, 0, 0]),
        ({"kind": "wsd"}, [1, 1, 1, 1, 0, 0]),
        ({"kind": "linear", "total_images": 200}, [0.995, 0.975, 0.95, 0.725, 0.5, 0.25]),
    ],
)
def test_closed_forms(settings: dict[str, object], expected: list[float]) -> None:
    assert factors(**settings) == pytest.approx(expected)


def test_wsd_is_flat_until_its_decay() -> None:
    schedule = Schedule(kind="wsd", decay_images=20)
    assert [rate_factor(schedule, seen, 100) for seen in (80, 90, 100)] == pytest.approx([1, 0.5, 0])
