"""Orders as text for elsewhere: what is typed stays a text, and what is copied makes the same picture."""

from __future__ import annotations

import ast
import base64
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewstep.server.schemas.native import GenerateBody
from fewstep.studio import copy_as

URL = "http://127.0.0.1:7860"
HOSTILE = [
    "a fox", "it's \"quoted\" `touch pwned` $(touch pwned) ${HOME} \\ !x ; touch pwned # & | > pwned",
    "-rf --out /tmp", "line one\nline two\\", "'", '"""', "{braces} {{x}} %s %(x)d", "@file", "一只狐狸 🦊",
    "</script><img src=x onerror=alert(1)>",
]  # fmt: skip


def body(**more: Any) -> dict[str, Any]:
    found = {
        "kind": "generate", "prompt": "a fox", "seed": 3, "n": 2, "student": "lcm", "num_inference_steps": 4,
        "solver": "lcm", "guidance_scale": 1.0, "width": 64, "height": 64, "model": "emoji-128", **more,
    }  # fmt: skip
    GenerateBody(**found)
    return found


def arguments(code: str, name: str) -> dict[str, Any]:
    """Keyword arguments of the one call of a method of that name in a program; what is no literal as code."""
    calls = [
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]
    assert len(calls) == 1, code

    def value(node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError:
            return ast.unparse(node)

    return {str(one.arg): value(one.value) for one in calls[0].keywords}


@pytest.mark.parametrize("prompt", HOSTILE)
def test_hostile_prompts_stay_one_argument(prompt: str, tmp_path: Path) -> None:
    asked = body(prompt=prompt, negative_prompt=prompt)
    # A real shell takes it apart, with a command that says what it was given in place of ours.
    words = ["fewstep", "curl"]
    for word in words:
        tool = tmp_path / word
        tool.write_text(f"#!{sys.executable}\nimport sys, json\nprint(json.dumps(sys.argv[1:]))\n")
        tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    given: dict[str, list[str]] = {}
    for name in ("cli", "curl"):
        command = copy_as.FORMS[name](asked, URL)
        done = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        given[name] = json.loads(done.stdout)
    assert given["cli"][0] == "generate" and given["cli"][-2:] == ["--", prompt]
    assert f"--negative={prompt}" in given["cli"]
    assert given["curl"][0] == f"{URL}/api/v1/jobs"
    assert GenerateBody(**json.loads(given["curl"][-1])) == GenerateBody(**asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(words)
    for name, method in (("python", "resolve"), ("webuiapi", "txt2img"), ("openai", "generate")):
        assert arguments(copy_as.FORMS[name](asked, URL).replace("engine.generate(", "engine.draw("), method)[
            "prompt"
        ] == prompt  # fmt: skip


def test_no_character_that_no_argument_can_hold() -> None:
    assert shlex.split(copy_as.command_line(body(prompt="a\0b"), URL))[-1] == "ab"


def test_the_command_line_draws_what_the_order_says(tmp_path: Path) -> None:
    from PIL import Image

    command = shlex.split(copy_as.command_line(body(n=1, prompt='-a fox\'s "den"'), URL))
    assert command[0] == "fewstep"
    done = subprocess.run(
        [sys.executable, "-m", *command[:2], "--out", str(tmp_path), *command[2:]],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.glob("*.png")
    opened = Image.open(picture)
    assert opened.size == (64, 64)
    told = opened.info["parameters"]
    assert told.startswith('-a fox\'s "den"\nSteps: 4,') and "Seed: 3," in told and "Student: lcm," in told


def test_every_setting_has_its_place() -> None:
    asked = body(
        student="none", solver="ddim", num_inference_steps=20, guidance_scale=2.5, guidance_rescale=0.2,
        clip_skip=1, emphasis="no_norm", variation_seed=9, variation_strength=0.25, insist=True,
        deterministic=True, adapters=[{"name": "gold", "weight": 0.5}], upscale={"name": "auto"},
        negative_prompt="blurry",
    )  # fmt: skip
    words = shlex.split(copy_as.command_line(asked, URL))
    for word in (
        "--student=none", "--steps=20", "--guidance=2.5", "--guidance-rescale=0.2", "--clip-skip=1",
        "--emphasis=no_norm", "--variation-seed=9", "--variation-strength=0.25", "--insist", "--seed=3",
        "--deterministic", "--lora=gold:0.5", "--engine=torch", "--size=64x64", "--upscale=auto", "--n=2",
    ):  # fmt: skip
        assert word in words, word
    python = copy_as.python(asked, URL)
    found = arguments(python, "resolve")
    assert found["num_inference_steps"] == 20 and found["variation_seed"] == 9 and found["insist"] is True
    assert found["adapters"] == "[AdapterUse(name='gold', weight=0.5)]"
    assert "Engine('emoji-128', \"torch\")" in python or "Engine('emoji-128', 'torch')" in python
    theirs = arguments(copy_as.webuiapi(asked, URL), "txt2img")
    assert (
        theirs["prompt"] == "a fox <lora:gold:0.5>" and theirs["steps"] == 20 and theirs["cfg_scale"] == 2.5
    )
    assert theirs["sampler_name"] == "DDIM" and theirs["batch_size"] == 2 and theirs["subseed"] == 9
    assert theirs["override_settings"]["sd_model_checkpoint"] == "emoji-128"
    images = arguments(copy_as.openai(asked, URL), "generate")
    assert images["extra_body"] == {
        "seed": 3, "steps": 20, "negative_prompt": "blurry", "guidance_scale": 2.5
    }  # fmt: skip
    assert images["size"] == "64x64" and images["n"] == 2


def test_a_picture_is_a_file_beside_it_and_no_text(tmp_path: Path) -> None:
    asked = body(image="A" * 1000, mask="B" * 1000, strength=0.6, outpaint={"left": 8, "right": 0})
    del asked["width"], asked["height"]
    for name, make in copy_as.FORMS.items():
        text = make(asked, URL)
        assert "AAAA" not in text and "BBBB" not in text and "picture.png" in text, name
    words = shlex.split(copy_as.command_line(asked, URL))
    assert {"--image=picture.png", "--mask=mask.png", "--outpaint=8,0,0,0", "--strength=0.6"} <= set(words)
    (tmp_path / "curl").write_text(f"#!{sys.executable}\nimport sys\nprint(sys.argv[-1])\n")
    (tmp_path / "curl").chmod(0o755)
    (tmp_path / "picture.png").write_bytes(b"picture" * 30)
    (tmp_path / "mask.png").write_bytes(b"mask")
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["/bin/sh", "-c", copy_as.curl(asked, URL)], capture_output=True, text=True, env=environment,
        cwd=tmp_path,
    )  # fmt: skip
    sent = json.loads(done.stdout)
    assert base64.b64decode(sent["image"]) == b"picture" * 30 and base64.b64decode(sent["mask"]) == b"mask"
    for name, method in (("python", "resolve"), ("webuiapi", "img2img"), ("openai", "edit")):
        assert arguments(copy_as.FORMS[name](asked, URL), method), name
