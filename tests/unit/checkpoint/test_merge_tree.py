"""The recipe in a header: what A1111 and others write is read, hostile trees end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fewstep.checkpoint.merging import merge_tree
from fewstep.checkpoint.merging.tree import MAX_DEPTH, MAX_MODELS


def digest(number: int) -> str:
    return f"{number:064x}"


def recipe(*parents: int, **more: Any) -> dict[str, Any]:
    roles = ("primary", "secondary", "tertiary")
    hashes = {f"{role}_model_hash": digest(n) for role, n in zip(roles, parents, strict=False)}
    return {"type": "webui", **hashes, "interp_method": "Weighted sum", "multiplier": 0.3, **more}


def texts(top: Any, models: dict[int, Any]) -> dict[str, str]:
    return {
        "sd_merge_recipe": json.dumps(top),
        "sd_merge_models": json.dumps({digest(n): about for n, about in models.items()}),
    }


def test_two_generations() -> None:
    models = {
        1: {"name": "a.safetensors", "legacy_hash": "aaaa", "sd_merge_recipe": None},
        2: {"name": "b.ckpt", "legacy_hash": "bbbb", "sd_merge_recipe": json.dumps(recipe(3, 1))},
        3: {"name": "c.ckpt", "legacy_hash": "cccc", "sd_merge_recipe": None},
    }
    tree = merge_tree(texts(recipe(1, 2), models))
    assert tree is not None
    assert (tree.tool, tree.method, tree.multiplier) == ("webui", "Weighted sum", 0.3)
    assert [(model.role, model.name) for model in tree.models] == [("A", "a.safetensors"), ("B", "b.ckpt")]
    inner = tree.models[1].merge
    assert inner is not None and tree.models[0].merge is None
    assert [model.legacy_hash for model in inner.models] == ["cccc", "aaaa"]
    assert list(tree.lines()) == [
        "Weighted sum, M = 0.3, by webui",
        "  A: a.safetensors [0000000000]",
        "  B: b.ckpt [0000000000]",
        "    Weighted sum, M = 0.3, by webui",
        "      A: c.ckpt [0000000000]",
        "      B: a.safetensors [0000000000]",
    ]
    assert json.loads(json.dumps(tree.as_dict()))["models"][1]["merge"]["models"][0]["name"] == "c.ckpt"


def test_other_mergers_fields() -> None:
    top = {
        "type": "sd-webui-supermerger",
        "model_a": digest(1),
        "model_b": digest(2),
        "mode": "Train difference",
    }
    tree = merge_tree({"sd_merge_recipe": json.dumps(top)})
    assert tree is not None
    assert (tree.method, tree.multiplier, len(tree.models)) == ("Train difference", None, 2)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"a":' * 100_000, '"x"'], ids=lambda text: text[:5]
)
def test_what_is_no_recipe_is_none(text: str) -> None:
    assert merge_tree({"sd_merge_recipe": text}) is None


def test_no_recipe_is_none() -> None:
    assert merge_tree({}) is None
    assert merge_tree({"format": "pt", "sd_merge_models": "{}"}) is None


def test_fields_of_wrong_types_are_left_out() -> None:
    top = recipe(1, 2, multiplier=True, interp_method=["x"], type=3, tertiary_model_hash={"a": 1})
    models = {1: "no object", 2: {"name": 5, "legacy_hash": None, "sd_merge_recipe": "{"}}
    tree = merge_tree(texts(top, models))
    assert tree is not None
    assert (tree.tool, tree.method, tree.multiplier) == ("", "", None)
    assert [(model.name, model.merge) for model in tree.models] == [("", None), ("", None)]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "9" * 400])
def test_a_multiplier_that_is_not_finite_is_none(number: str) -> None:
    tree = merge_tree({"sd_merge_recipe": f'{{"primary_model_hash": "x", "multiplier": {number}}}'})
    assert tree is not None and tree.multiplier is None


def test_a_model_inside_of_itself_ends() -> None:
    tree = merge_tree(texts(recipe(1, 2), {n: {"sd_merge_recipe": recipe(1, 2)} for n in (1, 2)}))
    assert tree is not None
    assert len(list(tree.lines())) < 30


def test_a_tree_of_many_branches_is_cut() -> None:
    models = {n: {"sd_merge_recipe": recipe(n + 1, n + 1, n + 1)} for n in range(200)}
    tree = merge_tree(texts(recipe(0, 0), models))
    assert tree is not None
    lines = list(tree.lines())
    assert len(lines) <= 2 * MAX_MODELS + 1
    assert max(len(line) - len(line.lstrip()) for line in lines) <= 4 * MAX_DEPTH + 6


def test_names_are_shown_escaped() -> None:
    tree = merge_tree(texts(recipe(1), {1: {"name": "\x1b[31mred\n" + "x" * 300}}))
    assert tree is not None
    line = list(tree.lines())[1]
    assert "\x1b" not in line and "\n" not in line and len(line) < 120
