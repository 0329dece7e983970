"""``fewstep info`` of other tools' images (ComfyUI, InvokeAI, NovelAI, Fooocus), and of texts that lie."""

from __future__ import annotations

import builtins
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep.cli.main import main
from fewstep.prompt import foreign

pytest.importorskip("sd_parsers")
Output = pytest.CaptureFixture[str]


def picture(path: Path, texts: dict[str, str]) -> Path:
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text) if not text.isascii() else chunks.add_text(key, text)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, pnginfo=chunks)
    return path


def facts(path: Path, capsys: Output) -> dict[str, Any]:
    assert main(["info", str(path), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def comfy(nodes: int = 0, samplers: int = 1, **more: Any) -> dict[str, str]:
    """A graph of ComfyUI: a checkpoint, two texts, samplers, and a chain of nodes that lead nowhere."""
    inputs = {"seed": 5, "steps": 4, "cfg": 1.5, "sampler_name": "euler", "model": ["1", 0],
              "positive": ["2", 0], "negative": ["3", 0]}  # fmt: skip
    prompt: dict[str, Any] = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "base.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
    }
    for index in range(samplers):
        prompt[str(10_000 + index)] = {"class_type": "KSampler", "inputs": {**inputs, **more}}
    for index in range(nodes):
        prompt[str(100 + index)] = {"class_type": "Note", "inputs": {"a": 1}}
    return {"prompt": json.dumps(prompt), "workflow": json.dumps({"links": [], "nodes": []})}


INVOKE = {
    "positive_prompt": "a red fox", "negative_prompt": "blurry", "scheduler": "euler", "seed": 5, "steps": 4,
    "cfg_scale": 1.5, "model": {"model_name": "base", "base_model": "sd-1"},
}  # fmt: skip
FOOOCUS = {
    "base_model": "base", "base_model_hash": "abc", "sampler": "euler", "prompt": "a red fox",
    "negative_prompt": "blurry", "seed": 5, "steps": 4, "guidance_scale": 1.5, "version": "Fooocus v2",
}  # fmt: skip
NOVEL = {
    "Comment": json.dumps({"sampler": "euler", "seed": 5, "steps": 4, "scale": 1.5, "uc": "blurry"}),
    "Description": "a red fox",
    "Software": "NovelAI",
    "Source": "base ABC123",
}
TOOLS = {
    "ComfyUI": comfy(),
    "InvokeAI": {"invokeai_metadata": json.dumps(INVOKE)},
    "Fooocus": {"parameters": json.dumps(FOOOCUS)},
    "NovelAI": NOVEL,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_prompt_and_settings_of_other_tools(tool: str, tmp_path: Path, capsys: Output) -> None:
    path = picture(tmp_path / "a.png", TOOLS[tool])
    found = facts(path, capsys)
    assert (found["tool"], found["prompt"], found["negative_prompt"]) == (tool, "a red fox", "blurry")
    (sampler,) = found["samplers"]
    assert (sampler["name"], sampler["seed"], sampler["cfg_scale"]) == ("euler", 5, 1.5)
    assert found["models"][0].startswith("base") and found["record"] is None
    assert main(["info", str(path)]) == 0
    assert f"tool: {tool}\nprompt: a red fox\nnegative_prompt: blurry\n" in capsys.readouterr().out


def test_a_text_far_from_the_sampler_is_found_and_one_behind_clip_is_not(
    tmp_path: Path, capsys: Output
) -> None:
    prompt = json.loads(comfy()["prompt"])
    prompt["10000"]["inputs"]["positive"] = ["5", 0]
    prompt["5"] = {"class_type": "ConditioningCombine", "inputs": {"a": ["2", 0], "b": ["6", 0]}}
    prompt["6"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "at night", "clip": ["7", 0]}}
    prompt["7"] = {"class_type": "Other", "inputs": {"text": "not a prompt"}}
    found = facts(picture(tmp_path / "a.png", {"prompt": json.dumps(prompt)}), capsys)
    assert found["prompt"] == "a red fox, at night"


def test_old_invokeai(tmp_path: Path, capsys: Output) -> None:
    dream = '"a red fox [blurry]" -s 4 -S 5 -W 512 -H 512 -C 1.5 -A euler'
    found = facts(picture(tmp_path / "a.png", {"Dream": dream}), capsys)
    assert (found["tool"], found["prompt"], found["negative_prompt"]) == ("InvokeAI", "a red fox", "blurry")


def test_without_the_library_the_tool_is_named_and_how_to_read_it(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("sd_parsers"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    found = facts(picture(tmp_path / "a.png", TOOLS["ComfyUI"]), capsys)
    assert found["tool"] == "ComfyUI" and "[metadata]" in found["note"]


@pytest.mark.parametrize(
    "texts",
    [
        {"prompt": "{", "workflow": "{}"},
        {"prompt": "[]", "workflow": "{}"},
        {"prompt": '{"1": 3}'},
        {"prompt": '{"a": ' + "[" * 100_000},
        {"prompt": '{"1": {"class_type": 3, "inputs": {"a": [{}, 0], "b": [[], 0], "c": ["1", 0]}}}'},
        comfy(nodes=2000),
        comfy(samplers=300),
        {"invokeai_metadata": "3"},
        {"invokeai_metadata": '{"scheduler": "x", "model": 3}'},
        {"sd-metadata": '{"image": 3}'},
        {"Dream": '"a"' + " " * 100_000},
        {"Dream": '"' + "[" * 9_000},
        {**NOVEL, "Source": "a" + " " * 100_000},
        {**NOVEL, "Comment": "[" * 100_000},
        {"parameters": '{"prompt": 3}'},
    ],
    ids=range(15),
)
def test_texts_that_lie_are_said_and_cost_little(
    texts: dict[str, str], tmp_path: Path, capsys: Output
) -> None:
    path = picture(tmp_path / "a.png", texts)
    started = time.process_time()
    found = facts(path, capsys)
    assert time.process_time() - started < 5
    assert not found.get("prompt")
    assert main(["info", str(path)]) == 0
    assert capsys.readouterr().err.count("\n") <= 2


def test_a_graph_at_the_bound_is_read_in_time() -> None:
    """A chain of nodes with all prompts at its far end: the parser copies the whole way for each."""
    nodes = 300
    prompt: dict[str, Any] = json.loads(comfy()["prompt"])
    for index in range(nodes // 2):
        inputs: dict[str, Any] = {f"k{i}": i for i in range(22)}
        prompt[str(100 + index)] = {
            "class_type": f"N{index}",
            "inputs": {"next": [str(101 + index), 0], **inputs},
        }
    for index in range(nodes // 2):
        end = prompt.setdefault(str(100 + nodes // 2 + index // 20), {"class_type": "End", "inputs": {}})
        end["inputs"][f"t{index % 20}"] = [str(1000 + index), 0]
        end["inputs"]["next"] = [str(101 + nodes // 2 + index // 20), 0]
        prompt[str(1000 + index)] = {"class_type": "CLIPTextEncode", "inputs": {"text": f"p{index}"}}
    prompt["10000"]["inputs"] |= {"positive": ["100", 0], "negative": ["100", 0]}
    texts = {"prompt": json.dumps(prompt)}
    started = time.process_time()
    found = foreign.other_tool(texts, install="")
    assert len(found["prompt"].split(", ")) == nodes // 2
    assert time.process_time() - started < 10
