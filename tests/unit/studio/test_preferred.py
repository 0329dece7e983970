"""What Create draws with before its form is filled, and after."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("gradio")

from fewstep.studio import dial, orders, preferred

CONTRACT = {
    "num_inference_steps": 20,
    "solver": "dpmpp_2m",
    "guidance_scale": 4.0,
    "negative_prompt_effective": True,
}
FAST = {"num_inference_steps": 4, "solver": "lcm", "guidance_scale": 1.0, "negative_prompt_effective": False}
MODEL = {
    "name": "m", "hash": "0", "default": True, "contract": CONTRACT,
    "students": [
        {"name": "four", "steps": [4], "contract": FAST},
        {"name": "one", "steps": [1], "contract": FAST | {"num_inference_steps": 1}},
    ],
}  # fmt: skip


class Server:
    """Answers what a page asks at its start."""

    def __init__(self, **prefers: Any) -> None:
        self.asked: list[str] = []
        self.values = dict.fromkeys(preferred.FORM) | prefers

    async def get(self, path: str) -> Any:
        self.asked.append(path)
        return {
            "/api/v1/settings": {"values": self.values}, "/api/v1/models": {"models": [MODEL]},
            "/api/v1/models/m": MODEL,
        }[path]  # fmt: skip


def form() -> orders.Form:
    return orders.Form(dict.fromkeys(orders.FIELDS))  # type: ignore[arg-type]


def early(server: Server, **stands: Any) -> dict[str, Any]:
    given = [stands.get(name) for name in orders.FIELDS]
    found = asyncio.run(preferred.early(server, form(), [*given, "picture"]))  # type: ignore[arg-type]
    assert found[-1] == "picture" and len(found) == len(given) + 1
    return dict(zip(orders.FIELDS, found, strict=False))


def test_who_draws_before_the_form_is_filled_draws_with_the_dials_usual_stop() -> None:
    """The order had no student: the server drew with the teacher, five times as long."""
    found = early(Server(), prompt="a fox", n=4, num_inference_steps=0, guidance_scale=1.0)
    body = orders.body(found)
    assert (body["prompt"], body["n"]) == ("a fox", 4)
    assert (body["student"], body["num_inference_steps"]) == ("four", 4)


def test_a_preferred_stop_counts_before_the_form_is_filled_too() -> None:
    assert early(Server(stop="1"), prompt="a fox")["student"] == "one"
    assert early(Server(stop="teacher"), prompt="a fox")["student"] == dial.TEACHER


def test_a_form_that_is_filled_is_taken_as_it_is() -> None:
    server = Server(stop="1")
    assert early(server, student="four", num_inference_steps=3)["num_inference_steps"] == 3
    assert server.asked == []
