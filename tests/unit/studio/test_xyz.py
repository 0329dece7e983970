"""X/Y/Z plots: what is written for an axis, and the orders that come of it."""

from __future__ import annotations

from typing import Any

import pytest

from fewstep.errors import UsageError
from fewstep.server.schemas.images import GridBody
from fewstep.server.schemas.native import GenerateBody
from fewstep.studio import xyz
from fewstep.studio.words import texts

BASE: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "blur", "seed": 7, "n": 4}
FOUR = {"student": "four", "num_inference_steps": 4, "solver": "lcm", "guidance_scale": 1.0}
STOPS = {
    "4": FOUR,
    "teacher": {"student": "none", "num_inference_steps": 20, "solver": "ddim", "guidance_scale": 2.0},
}


def stops(model: str | None) -> xyz.Stops:
    return STOPS


@pytest.mark.parametrize(
    ("name", "written", "values"),
    [
        ("seed", "1-5", (1, 2, 3, 4, 5)),
        ("seed", "5-1", (5, 4, 3, 2, 1)),
        ("seed", "1-10 (+3)", (1, 4, 7, 10)),
        ("seed", "10-1 (-4)", (10, 6, 2)),
        ("seed", "1-10 [4]", (1, 4, 7, 10)),
        ("seed", " 3, 1-2,9 ", (3, 1, 2, 9)),
        ("seed", "4-4", (4,)),
        ("guidance_scale", "0-1 (+0.1)", tuple(i / 10 for i in range(11))),
        ("guidance_scale", "1.5, 0-1 [3]", (1.5, 0.0, 0.5, 1.0)),
        ("adapter_weight", "-1-1", (-1.0, 0.0, 1.0)),
        ("size", "128x128, 192 X 128", ("128x128", "192x128")),
        ("prompt", 'red, green, "blue, dark"', ("red", "green", "blue, dark")),
        ("prompt", "red,", ("red", "")),
        ("model", "one\ntwo, three", ("one", "two", "three")),
    ],
)  # fmt: skip
def test_the_grammar(name: str, written: str, values: tuple[xyz.Value, ...]) -> None:
    assert xyz.parse(name, written) == xyz.Axis(name, values)


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("seed", "", "no value"),
        ("seed", "red", "whole number"),
        ("seed", "1.5", "fraction"),
        ("seed", "1-5 (-1)", "never gets"),
        ("seed", "1-5 (+0)", "never gets"),
        ("seed", "1-1000", "1000 values"),
        ("seed", "1-9 [0]", "1 to 100"),
        ("seed", "1-99999999999999999999", "values"),
        ("size", "128", "no size"),
        ("guidance_scale", "1e9", "number"),
    ],
)
def test_what_is_wrong_is_said_with_the_axis(name: str, written: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        xyz.parse(name, written)
    assert str(raised.value).startswith(f"{name}: ")


def test_cells_are_orders_that_the_server_takes() -> None:
    axes = [xyz.parse("prompt", "red, green"), xyz.parse("seed", "1-3"), xyz.parse("quality", "4, teacher")]
    found = xyz.cells(BASE, axes, stops)
    assert len(found) == 12 and len({(one.x, one.y, one.z) for one in found}) == 12
    for cell in found:
        body = GenerateBody.model_validate(cell.body)
        assert (body.prompt, body.seed, body.n) == (f"a {('red', 'green')[cell.x]} apple", cell.y + 1, 1)
        assert (body.student, body.num_inference_steps) == (("four", 4), ("none", 20))[cell.z]


def test_steps_let_the_server_choose_who_draws_so_many() -> None:
    body = xyz.cells({**BASE, **FOUR}, [xyz.parse("num_inference_steps", "2")], stops)[0].body
    assert body["num_inference_steps"] == 2 and not {"student", "solver", "guidance_scale"} & set(body)
    own = {**BASE, "student": "none", "solver": "ddim"}
    assert xyz.cells(own, [xyz.parse("num_inference_steps", "9")], stops)[0].body["solver"] == "ddim"


def test_weight_size_strength_and_model() -> None:
    base = {**BASE, "adapters": [{"name": "a", "weight": 1.0}, {"name": "b"}], "image": "x"}
    axes = [xyz.parse("adapter_weight", "0.5"), xyz.parse("size", "64x32"), xyz.parse("strength", "0.25")]
    body = xyz.cells(base, axes, stops)[0].body
    assert body["adapters"] == [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.5}]
    assert (body["width"], body["height"], body["strength"]) == (64, 32, 0.25)
    pair = [xyz.parse("seed", "1-2"), xyz.parse("model", "m, l")]
    assert [one.body["model"] for one in xyz.cells(BASE, pair, stops)] == ["l", "l", "m", "m"]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ([], "no axis"),
        ([("seed", "1"), ("seed", "2")], "two axes"),
        ([("seed", "1-30"), ("eta", "0-29")], "900 pictures"),
        ([("prompt", "pear, x")], "not in the prompt"),
        ([("quality", "3")], "no '3'"),
        ([("adapter_weight", "1")], "no adapter"),
        ([("strength", "0.5")], "no picture"),
    ],
)
def test_plots_that_cannot_be(axes: list[tuple[str, str]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        xyz.cells(BASE, [xyz.parse(*axis) for axis in axes], stops)


def test_the_table_is_what_the_server_takes_for_a_grid() -> None:
    axes = [xyz.parse("seed", "1-2"), xyz.parse("guidance_scale", "1-3")]
    found = {(1, 2, 0): "a" * 32, (0, 0, 0): "b" * 32}
    cells = xyz.table(found, axes)
    shown = [
        {"name": one.name, "values": [xyz.label(one.name, value) for value in one.values]} for one in axes
    ]
    body = GridBody.model_validate({"axes": shown, "cells": cells})
    assert body.cells == ((("b" * 32, None), (None, None), (None, "a" * 32)),)
    assert body.axes[1].values == ("1", "2", "3")


def test_every_axis_has_a_name_and_keys_are_of_one_cell() -> None:
    assert {f"axis_{name}" for name in xyz.AXES} <= set(texts("xyz"))
    found = xyz.cells(BASE, [xyz.parse("seed", "1-3"), xyz.parse("eta", "0-1")], stops)
    assert len({xyz.key_of("p", cell) for cell in found}) == 6
