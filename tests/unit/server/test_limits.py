"""H12: what one order may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.errors import UsageError
from fewstep.server import limits
from fewstep.server.orders import Order, Upscale
from fewstep.server.settings import Limits

INFO = FakeBackend().info
GIVEN = Limits(
    max_images=4, max_steps=20, max_work=64 * 64 * 20, max_prompt=100, max_adapters=1, max_output=300_000
)


def check(upscale: Upscale | None = None, **settings: Any) -> Any:
    return limits.checked(INFO, Order(settings={"prompt": "a dog", **settings}, upscale=upscale), GIVEN)


def test_what_is_within_is_taken() -> None:
    request = check(num_inference_steps=20, upscale=Upscale())
    assert (request.num_inference_steps, request.n) == (20, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "a" * 101}, "prompt is longer than 100"),
        ({"negative_prompt": "a" * 101}, "negative_prompt is longer than 100"),
        ({"n": 5}, "n is 5: this server takes at most 4"),
        ({"n": 10**9}, "n is 1000000000"),
        ({"num_inference_steps": 21}, "num_inference_steps is 21"),
        ({"n": 2, "num_inference_steps": 20}, "pixels times steps"),
        ({"upscale": Upscale(width=1000, height=301)}, "301000 pixels"),
        ({"upscale": Upscale(name="auto"), "width": 160, "height": 160, "num_inference_steps": 1}, "409600"),
    ],
)
def test_h12_more_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(**settings)
