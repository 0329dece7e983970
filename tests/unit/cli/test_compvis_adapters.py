"""What ``fewstep txt2img`` and ``img2img`` take beyond CompVis' scripts, on the fake backend."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewstep.cli import compvis, sources
from fewstep.cli.main import main
from fewstep.diffusion.published import find
from fewstep.engine import adapters, embeddings
from fewstep.engine.backends.fake import FakeBackend
from fewstep.prompt import infotext

sys.path.append(str(Path(__file__).parent))
from test_compvis import Output, Watched, install, names, picture, record

SAMPLES = Path("outputs/txt2img-samples/samples")
ONE = ["--n_iter", "1", "--n_samples", "1", "--skip_grid"]
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def write_lora(path: Path, contract: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{LAYER}.lora_A.weight": np.ones((2, 8), dtype=np.float32),
        f"{LAYER}.lora_B.weight": np.ones((8, 2), dtype=np.float32),
    }
    metadata = {} if contract is None else {"fewstep.contract": find(contract).contract.to_json()}
    save_file(tensors, path, metadata=metadata)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Watched:
    """A model that says it is Stable Diffusion 1, with the folders that the command line names."""
    monkeypatch.chdir(tmp_path)
    for module in (adapters, embeddings):
        monkeypatch.setattr(module, "user_folder", lambda: tmp_path / "none")
    backend = FakeBackend()
    contract = dataclasses.replace(backend.info.contract, base_family="sd15", native_sizes=((64, 64),))
    backend.info = dataclasses.replace(backend.info, contract=contract, family="sd1", max_size=2048)
    watched = install(backend, monkeypatch)

    def opened(ckpt: str | None, **folders: Any) -> Watched:
        named = sources.catalogues(folders.get("loras", ()), folders.get("embeddings", ()))
        watched._named = {"adapters": named["catalogue"]} if "catalogue" in named else {}
        if "learned" in named:
            watched._named["embeddings"] = named["learned"]
        return watched

    monkeypatch.setattr(compvis, "open_engine", opened)
    return watched


def test_emphasis(engine: Watched) -> None:
    for mode in ("original", "none"):
        assert main(["txt2img", "--prompt", "a (red:1.5) dog", "--emphasis", mode, *ONE]) == 0
    assert [request.emphasis for request in engine.requests] == ["original", "none"]
    assert "emphasis" not in record(SAMPLES / "00000.png")
    assert record(SAMPLES / "00001.png")["emphasis"] == "none"


def test_emphasis_of_img2img(engine: Watched) -> None:
    assert main(["img2img", "--init-img", picture(Path("in.png")), "--emphasis", "no_norm"]) == 0
    assert {request.emphasis for request in engine.requests} == {"no_norm"}


def test_an_unknown_emphasis_is_refused(engine: Watched, capsys: Output) -> None:
    assert main(["txt2img", "--emphasis", "loud", *ONE]) == 2
    assert "--emphasis is 'loud': give one of original, no_norm, ignore, none" in capsys.readouterr().err
    assert engine.requests == [] and not Path("outputs").exists()


def test_lora(engine: Watched, capsys: Output) -> None:
    write_lora(Path("loras/ink.safetensors"))
    write_lora(Path("loras/wool.safetensors"))
    given = ["--lora", "ink:0.5", "--lora", "wool:0.3:0.2", "--loras-dir", "loras"]
    assert main(["txt2img", *given, *ONE]) == 0
    (request,) = engine.requests
    assert [(one.name, one.weight, one.text_weight) for one in request.adapters] == [
        ("ink", 0.5, 0.5),
        ("wool", 0.3, 0.2),
    ]
    assert [one["name"] for one in record(SAMPLES / "00000.png")["adapters"]] == ["ink", "wool"]
    # The model's own defaults stay the script's: these adapters say nothing of steps.
    assert (request.num_inference_steps, request.guidance_scale) == (50, 7.5)
    assert "taken from CompVis' script" in capsys.readouterr().err


def test_lora_of_img2img(engine: Watched) -> None:
    write_lora(Path("loras/ink.safetensors"))
    given = ["--init-img", picture(Path("in.png")), "--lora", "ink", "--loras-dir", "loras"]
    assert main(["img2img", *given]) == 0
    assert [one.name for one in engine.requests[0].adapters] == ["ink"]


@pytest.mark.parametrize("by_tag", [False, True])
def test_a_lora_for_few_steps_goes_before_the_scripts_defaults(
    by_tag: bool, engine: Watched, capsys: Output
) -> None:
    write_lora(Path("loras/quick.safetensors"), "lcm-lora-sdv1-5")
    said = ["--prompt", "a dog <lora:quick:1>"] if by_tag else ["--lora", "quick"]
    assert main(["txt2img", *said, "--loras-dir", "loras", "--H", "64", "--W", "64", *ONE]) == 0
    (request,) = engine.requests
    assert (request.num_inference_steps, request.solver) == (4, "lcm")
    err = capsys.readouterr().err
    assert "taken from quick: " in err and "CompVis" not in err and "--insist" not in err


def test_an_unknown_lora_is_refused(engine: Watched, capsys: Output) -> None:
    assert main(["txt2img", "--lora", "ink", *ONE]) == 2
    assert "adapter 'ink': not found; there are: none" in capsys.readouterr().err
    assert main(["txt2img", "--lora", "ink:x", *ONE]) == 2
    assert "--lora is 'ink:x'" in capsys.readouterr().err
    assert engine.requests == []


def test_embeddings_that_the_model_cannot_read_stay_words(engine: Watched, capsys: Output) -> None:
    Path("learned").mkdir()
    save_file({"emb_params": np.ones((2, 8), dtype=np.float32)}, "learned/dog.safetensors")
    assert main(["txt2img", "--prompt", "a red dog", "--embeddings-dir", "learned", *ONE]) == 0
    assert engine.requests[0].embeddings == ()
    said = capsys.readouterr().err
    assert "embedding 'dog' is not used, its name is read as text" in said and "takes no vectors" in said
    assert names(SAMPLES) == ["00000.png"]


def test_hashes_of_embeddings_are_those_of_the_web_ui() -> None:
    made = {
        "prompt": "a", "num_inference_steps": 1, "solver": "ddim", "guidance_scale": 1.0, "seed": 0,
        "width": 8, "height": 8, "model": "m", "model_hash": "0" * 64, "fewstep": "0",
        "embeddings": [{"name": "a:b,c", "hash": "123456789abc"}, {"name": "d", "hash": "0123456789ab"}],
    }  # fmt: skip
    text = infotext.from_record(made)
    assert 'TI hashes: "abc: 123456789abc, d: 0123456789ab"' in text
