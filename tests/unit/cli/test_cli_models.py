"""``fewstep models``: names are given, shown, used, forgotten; downloads have theirs; refusals are a line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fewstep.checkpoint import safetensors
from fewstep.cli import generate
from fewstep.cli.main import main
from fewstep.engine import names, registry
from fewstep.models import hub

Output = pytest.CaptureFixture[str]
LORA = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (320, 4),
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FEWSTEP_MODELS", raising=False)
    monkeypatch.setattr(registry, "bundled_folder", lambda: tmp_path / "bundled")
    monkeypatch.chdir(tmp_path)


def lora(path: Path) -> Path:
    safetensors.save(path, {name: np.zeros(shape, np.float16) for name, shape in LORA.items()})
    return path


def pipeline_files() -> dict[str, bytes]:
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "BertModel"],
        "tokenizer": ["transformers", "BertTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    index = {"_class_name": "StableDiffusionPipeline", **parts}
    files = {"model_index.json": json.dumps(index).encode()}
    for part in parts:
        files[f"{part}/config.json"] = b'{"model_type": "bert"}' if part == "text_encoder" else b"{}"
    for part in ("unet", "vae"):
        files[f"{part}/diffusion_pytorch_model.safetensors"] = save({"w": np.zeros(3, np.float32)})
    files["text_encoder/model.safetensors"] = save({"w": np.zeros(3, np.float32)})
    return files


def pipeline(path: Path) -> Path:
    for name, data in pipeline_files().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def run(capsys: Output, *arguments: object, code: int = 0) -> tuple[str, str]:
    found = main(["models", *map(str, arguments)])
    seen = capsys.readouterr()
    assert found == code, seen.err
    return seen.out, seen.err


def told(capsys: Output, *arguments: object) -> dict[str, Any]:
    return dict(json.loads(run(capsys, *arguments, "--json")[0]))


def test_a_name_is_given_listed_shown_and_forgotten(tmp_path: Path, capsys: Output) -> None:
    folder = pipeline(tmp_path / "elsewhere" / "deep")
    digest = safetensors.folder_hash(folder)
    out, err = run(capsys, "add", "mine", folder)
    assert out == f"{folder}\n" and f"hash {digest[:10]}" in err and "mine: pipeline, " in err
    (row,) = told(capsys, "list")["models"]
    assert (row["name"], row["kind"], row["origin"], row["folder"]) == (
        "mine",
        "pipeline",
        "named",
        str(folder),
    )
    shown = told(capsys, "show", "mine")
    assert (shown["name"], shown["from"], shown["kind"], shown["hash"]) == (
        "mine",
        "named",
        "pipeline",
        digest,
    )
    assert "changed" not in shown and "family" in names.read()["mine"].__slots__
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("wb") as file:
        file.write(save({"w": np.ones(3, np.float32)}))
    assert told(capsys, "show", "mine")["changed"] == f"its hash was {digest} when it was named"
    out, err = run(capsys, "remove", "mine")
    assert out == f"{folder}\n" and "is forgotten" in err and folder.is_dir()
    assert told(capsys, "list")["models"] == []
    run(capsys, "show", "mine", code=4)


def test_generate_takes_the_name(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pipeline(tmp_path / "elsewhere" / "deep")
    run(capsys, "add", "mine", folder)
    seen: list[Any] = []

    def engine(model: Any, *arguments: Any, **more: Any) -> None:
        seen.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr("fewstep.engine.engine.Engine", engine)
    assert main(["generate", "a fox", "--model", "mine"]) == 130
    assert seen[0].folder == folder and seen[0].origin == "named"
    assert generate.__name__ == "fewstep.cli.generate"
    for path in (str(folder), "../mine", "elsewhere/deep"):
        assert main(["generate", "a fox", "--model", path]) == 4
        assert "a model is named, not given as a path" in capsys.readouterr().err
    assert len(seen) == 1


def test_a_weight_file_that_is_no_model_is_named_too(tmp_path: Path, capsys: Output) -> None:
    path = lora(tmp_path / "ink.safetensors")
    assert told(capsys, "add", "ink", path)["kind"] == "lora"
    assert [one["name"] for one in told(capsys, "list")["others"]] == ["ink"]
    shown = told(capsys, "show", "ink")
    assert shown["adapter"]["base"] == "SD1" and shown["hash"] == safetensors.sha256_file(path)
    path.unlink()
    gone = told(capsys, "list")
    assert gone["others"] == [] and gone["missing"] == [{"name": "ink", "kind": "lora", "path": str(path)}]
    assert "ink   lora" in run(capsys, "list")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["add"], 2, "fewstep models add: give NAME PATH"),
        (["add", "x"], 2, "give the PATH of its file or folder too"),
        (["add", "../x", "ink.safetensors"], 2, "is no name of a model"),
        (["add", "C:x", "ink.safetensors"], 2, "is no name of a model"),
        (["add", "x", "none"], 4, "none: no such file or folder"),
        (["add", "x", "text.txt"], 3, "not a safetensors file"),
        (["add", "x", "pickle.safetensors"], 3, "a pickle checkpoint"),
        (["add", "x", "unknown.safetensors"], 3, "no weight file of a known kind"),
        (["add", "x", "empty"], 3, "no readable model_index.json"),
        (["show"], 2, "fewstep models show: give NAME"),
        (["show", "x"], 4, "model 'x': not found"),
        (["show", "../x"], 4, "named, not given as a path"),
        (["remove", "x"], 4, "no name that was given here"),
        (["remove", "x", "--file", "y"], 2, "--file is 'y': it is for fewstep models download"),
        (["list", "x"], 2, "NAME is 'x': it is for fewstep models add and show and remove and download"),
        (["show", "x", "--delete"], 2, "--delete is 'True': it is for fewstep models remove"),
        (["download"], 2, "give owner/name or owner/name@revision"),
        (["download", "x"], 2, "is no repository"),
        (["download", "a/b", "--name", "../x"], 2, "is no name of a model"),
        (["lst"], 2, "ACTION is 'lst': did you mean list?"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Output
) -> None:
    lora(tmp_path / "ink.safetensors")
    (tmp_path / "text.txt").write_text("hello, hello, hello")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04" + bytes(50))
    safetensors.save(tmp_path / "unknown.safetensors", {"x": np.zeros(3, np.float32)})
    (tmp_path / "empty").mkdir()
    _, err = run(capsys, *arguments, code=code)
    assert message in err and err.count("\n") == 1
    assert not names.file().exists()


def test_a_name_that_a_folder_has_is_not_given_again(tmp_path: Path, capsys: Output) -> None:
    pipeline(tmp_path / "bundled" / "emoji-128")
    path = pipeline(tmp_path / "mine")
    _, err = run(capsys, "add", "emoji-128", path, "--replace", code=2)
    assert "is the name of" in err and "(bundled); give another name" in err
    _, err = run(capsys, "remove", "emoji-128", code=2)
    assert "is found in a folder" in err and (tmp_path / "bundled" / "emoji-128").is_dir()
    run(capsys, "add", "mine", path)
    other = pipeline(tmp_path / "other")
    run(capsys, "add", "mine", other, code=2)
    run(capsys, "add", "mine", other, "--replace")
    assert registry.find("mine").folder == other


def test_only_what_fewstep_downloaded_is_deleted(tmp_path: Path, capsys: Output) -> None:
    folder = pipeline(tmp_path / "mine")
    run(capsys, "add", "mine", folder)
    _, err = run(capsys, "remove", "mine", "--delete", code=2)
    assert "was not downloaded by fewstep" in err and folder.is_dir()
    assert list(names.read()) == ["mine"]


class Fake:
    """A hub with one repository of two adapters or of a pipeline."""

    files_there: dict[str, bytes]

    def files(self, repository: str, revision: str) -> tuple[str, list[hub.RemoteFile]]:
        there = [
            hub.RemoteFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in self.files_there.items()
        ]
        return "c" * 40, there

    def fetch(self, repository: str, commit: str, wanted: hub.RemoteFile, path: Path, on_bytes: Any) -> None:
        path.write_bytes(self.files_there[wanted.name])
        on_bytes(wanted.size)


def test_a_download_has_its_name_and_is_deleted_with_it(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HuggingFace", Fake)
    monkeypatch.setattr(Fake, "files_there", pipeline_files(), raising=False)
    out, err = run(capsys, "download", "owner/tiny")
    path = Path(out.strip())
    assert path == names.downloads() / "owner" / "tiny" and "at commit ccc" in err
    assert registry.find("tiny").folder == path
    shown = told(capsys, "show", "tiny")
    assert shown["downloaded"] == {"repository": "owner/tiny", "commit": "c" * 40}
    _, err = run(capsys, "download", "owner/tiny", code=2)
    assert "'tiny' is the name of" in err
    run(capsys, "remove", "tiny")
    assert path.is_dir()
    _, err = run(capsys, "download", "owner/tiny", code=7)
    assert "exists already; name it with fewstep models add" in err
    names.add(names.NamedModel(**{**_fields(path), "name": "again"}))
    (path / "unet" / "notes.txt").write_text("mine")
    _, err = run(capsys, "remove", "again", "--delete")
    assert "holds what was not downloaded: notes.txt" in err
    assert [one.name for one in path.rglob("*") if one.is_file()] == ["notes.txt"]
    assert names.read() == {}


def _fields(path: Path) -> dict[str, Any]:
    files = (*pipeline_files(), hub.ORIGIN)
    origin = names.Origin(repository="owner/tiny", commit="c" * 40, files=files)
    return {"path": path, "kind": "pipeline", "hash": "0" * 64, "size": 1, "origin": origin}


def test_a_download_without_a_name_is_found_in_its_folder(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HuggingFace", Fake)
    monkeypatch.setattr(Fake, "files_there", pipeline_files(), raising=False)
    _, err = run(capsys, "download", "owner/tiny", "--unnamed", code=2)
    assert "give --models-dir with it" in err
    out, _ = run(capsys, "download", "owner/tiny", "--models-dir", str(tmp_path / "here"), "--unnamed")
    assert Path(out.strip()) == tmp_path / "here" / "tiny"
    assert names.read() == {}


def test_a_downloaded_adapter_says_how_it_is_used(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "HuggingFace", Fake)
    data = lora(tmp_path / "x.safetensors").read_bytes()
    monkeypatch.setattr(Fake, "files_there", {"a.safetensors": data, "b.safetensors": data}, raising=False)
    run(capsys, "download", "owner/inks", code=2)
    out, err = run(capsys, "download", "owner/inks", "--file", "a.safetensors", "--name", "ink")
    path = Path(out.strip())
    assert f"an adapter: --lora a --loras-dir {path.parent}" in err
    assert names.read()["ink"].kind == "lora"
    run(capsys, "remove", "ink", "--delete")
    assert not path.exists() and not list(path.parent.iterdir())
