"""Names that are given to models elsewhere: keys and never paths, whole under a lock, and what is deleted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from fewstep.checkpoint import safetensors
from fewstep.engine import names, registry
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError

HASH = "0" * 64


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("FEWSTEP_MODELS", raising=False)
    monkeypatch.setattr(registry, "bundled_folder", lambda: tmp_path / "bundled")


def model(name: str, path: Path, kind: str = "checkpoint", **more: object) -> names.NamedModel:
    return dataclasses.replace(
        names.NamedModel(name=name, path=path, kind=kind, family="sd1", hash=HASH, size=3), **more
    )


@pytest.mark.parametrize(
    "name",
    [
        "", "a" * 101, "a/b", "/etc/passwd", "..", "../x", "a..b", "a\\b", "C:x", "C:\\x", ".hidden", "-x",
        " a", "a ", "a\nb", "a\x00b", "a\x1b[2J", "a\u202eb", "a\u2028b", "\x7f",
    ],
)  # fmt: skip
def test_a_path_or_what_steers_a_terminal_is_no_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        names.add(model(name, tmp_path / "x"))
    assert "is no name of a model" in str(error.value) and str(error.value).isprintable()
    assert not names.file().exists()


@pytest.mark.parametrize("name", ["mine", "SDXL 1.0 (base)", "狐", "naïve", "a-b_c.d+e", "x" * 100])
def test_names_come_back_with_all_that_is_known(name: str, tmp_path: Path) -> None:
    origin = names.Origin(repository="a/b", commit="c" * 40, files=("unet/x.safetensors",))
    given = model(name, tmp_path / "x", origin=origin)
    names.add(given)
    assert names.read() == {name: given}
    assert names.remove(name) == given and names.read() == {}


def test_a_name_is_compared_in_composed_form(tmp_path: Path) -> None:
    assert names.check_name("nai\u0308ve") == "na\u00efve"


def test_a_name_is_not_given_twice_unless_asked(tmp_path: Path) -> None:
    names.add(model("mine", tmp_path / "a"))
    with pytest.raises(UsageError, match=r"is the name of .*a already; give another name, or --replace"):
        names.add(model("mine", tmp_path / "b"))
    names.add(model("mine", tmp_path / "a", size=4))  # the same model, looked at again
    names.add(model("mine", tmp_path / "b"), replace=True)
    assert names.read()["mine"].path == tmp_path / "b"
    with pytest.raises(NotFoundError, match="no name that was given here; there are: mine"):
        names.remove("other")


def test_names_that_are_given_at_once_are_all_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_LOCK_SECONDS", 300.0)

    def give(number: int) -> None:
        for step in range(3):
            names.add(model(f"m{number}-{step}", tmp_path / "x"))

    threads = [threading.Thread(target=give, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names.read()) == 9


def test_a_lock_that_another_process_holds_is_waited_for_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names.add(model("first", tmp_path / "x"))
    program = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(names.file().with_suffix(".lock"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    monkeypatch.setattr(names, "_LOCK_SECONDS", 0.1)
    with pytest.raises(OutputError, match="another fewstep holds its lock"):
        names.add(model("second", tmp_path / "x"))
    holder.communicate()
    names.add(model("second", tmp_path / "x"))
    assert list(names.read()) == ["first", "second"]


ENTRY = {"path": "/m/x", "kind": "checkpoint", "family": None, "hash": HASH, "size": 1, "origin": None}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '{"version": 2, "models": {}}', '{"version": 1}', '{"version": 1, "models": []}',
        "[" * 100_000,
        json.dumps({"version": 1, "models": {"../x": ENTRY}}),
        json.dumps({"version": 1, "models": {"x": {**ENTRY, "path": "relative"}}}),
        json.dumps({"version": 1, "models": {"x": {**ENTRY, "path": 3}}}),
        json.dumps({"version": 1, "models": {"x": {**ENTRY, "hash": "abc"}}}),
        json.dumps({"version": 1, "models": {"x": {**ENTRY, "kind": ["a"]}}}),
        json.dumps({"version": 1, "models": {"x": {**ENTRY, "origin": {"repository": "a", "commit": "b",
                                                                      "files": ["../../x"]}}}}),
        json.dumps({"version": 1, "models": {"x": {**ENTRY, "origin": {"repository": "a", "commit": "b",
                                                                      "files": ["/etc/x"]}}}}),
    ],
)  # fmt: skip
def test_a_list_that_is_broken_is_said_and_hides_no_other_model(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names.file().parent.mkdir(parents=True)
    names.file().write_text(text)
    with pytest.raises(CheckpointError, match=r"models\.json: no list of models"):
        names.read()
    with pytest.raises(CheckpointError):
        names.add(model("mine", tmp_path / "x"))
    assert names.file().read_text() == text
    assert registry.named() == {} and "no list of models" in caplog.text
    with pytest.raises(NotFoundError, match="not found"):
        registry.find("mine")


def downloaded(tmp_path: Path) -> names.NamedModel:
    root = tmp_path / "downloads" / "tiny"
    files = ("model_index.json", "unet/a.safetensors", "fewstep-origin.json")
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    origin = names.Origin(repository="owner/tiny", commit="c" * 40, files=files)
    return model("tiny", root, "pipeline", origin=origin)


def test_only_files_that_were_downloaded_are_deleted(tmp_path: Path) -> None:
    given = downloaded(tmp_path)
    assert names.delete_files(given) == []
    assert not given.path.exists() and given.path.parent.is_dir()
    given = downloaded(tmp_path)
    (given.path / "unet" / "notes.txt").write_text("mine")
    assert names.delete_files(given) == [given.path / "unet" / "notes.txt"]
    assert [path.name for path in given.path.rglob("*")] == ["unet", "notes.txt"]
    mine = model("mine", tmp_path / "mine.safetensors")
    mine.path.write_text("x")
    with pytest.raises(UsageError, match="was not downloaded by fewstep and is not deleted"):
        names.delete_files(mine)
    assert mine.path.exists()


def test_nothing_behind_a_link_is_deleted(tmp_path: Path) -> None:
    given = downloaded(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.safetensors").write_text("mine")
    (given.path / "unet" / "a.safetensors").unlink()
    (given.path / "unet").rmdir()
    (given.path / "unet").symlink_to(outside)
    (given.path / "model_index.json").unlink()
    (given.path / "model_index.json").symlink_to(outside / "a.safetensors")
    names.delete_files(given)
    assert (outside / "a.safetensors").read_text() == "mine"


def test_a_file_is_deleted_with_what_was_written_beside_it(tmp_path: Path) -> None:
    files = ("a.safetensors", "a.fewstep-origin.json")
    for name in (*files, "b.safetensors"):
        (tmp_path / name).write_text("x")
    origin = names.Origin(repository="owner/tiny", commit="c" * 40, files=files)
    names.delete_files(model("a", tmp_path / "a.safetensors", origin=origin))
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_a_named_model_is_found_by_its_name_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "somewhere" / "pipe"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    names.add(model("mine", folder, "pipeline"))
    entry = registry.find("mine")
    assert (entry.folder, entry.kind, entry.origin, entry.size) == (folder, "pipeline", "named", 3)
    assert [one.name for one in registry.models()] == ["mine"]
    with pytest.raises(NotFoundError, match="there are: mine"):
        registry.find("pipe")
    assert registry.find_for("openvino", "mine") == entry  # the engine says what is wrong with it
    (folder / "model_index.json").unlink()
    folder.rmdir()
    with pytest.raises(NotFoundError, match="is no longer there; put it back, or forget the name with"):
        registry.find("mine")
    assert registry.models() == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("lora", "an adapter; give a model, and --lora file --loras-dir"),
        ("denoiser", "a denoiser alone; give the model that it belongs to, and --unet"),
        ("vae", "an autoencoder; give a model, and --vae"),
        ("embedding", "an embedding, of another kind"),
    ],
)
def test_what_does_not_draw_says_how_it_is_used(kind: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    safetensors.save(path, {"x": np.zeros(1, np.float32)})
    names.add(model("mine", path, kind))
    with pytest.raises(NotFoundError) as error:
        registry.find("mine")
    assert said in str(error.value)
    assert [(one.name, one.what, one.path) for one in registry.others()] == [("mine", kind, path)]


def test_looking_a_name_up_takes_no_lock(tmp_path: Path) -> None:
    names.add(model("mine", tmp_path / "x"))
    program = (
        "import sys; from fewstep.engine import names; assert list(names.read()) == ['mine'];"
        "assert 'filelock' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
