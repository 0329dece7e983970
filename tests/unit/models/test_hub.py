"""Downloads from a hub that changes, stops, lies and offers what is not wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError
from fewstep.models import hub

COMMITS = ("a" * 40, "b" * 40)


def weights(value: float) -> bytes:
    return save({"weight": np.full(4, value, dtype=np.float32)})


def pipeline(value: float) -> dict[str, bytes]:
    return {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights(value),
        "vae/config.json": b"{}",
        "vae/diffusion_pytorch_model.safetensors": weights(value + 1),
        "tokenizer/vocab.json": b"{}",
        "tokenizer/merges.txt": b"#",
    }


def blob(data: bytes) -> str:
    """As ``git hash-object`` prints it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Fake:
    """A hub whose ``main`` moves on with every question."""

    def __init__(self, *versions: dict[str, bytes]) -> None:
        self.versions = dict(zip(COMMITS, versions, strict=False))
        self.asked: list[str] = []
        self.fetched: list[tuple[str, str]] = []
        self.stop_at: str | None = None

    def files(self, repository: str, revision: str) -> tuple[str, list[hub.RemoteFile]]:
        if revision in self.versions:
            commit = revision
        else:
            commit = COMMITS[min(len(self.asked), len(self.versions) - 1)]
            self.asked.append(revision)
        found = [
            hub.RemoteFile(name=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for name, data in self.versions[commit].items()
        ]
        return commit, found

    def fetch(
        self,
        repository: str,
        commit: str,
        wanted: hub.RemoteFile,
        path: Path,
        on_bytes: Callable[[int], None],
    ) -> None:
        if commit not in self.versions:
            commit = COMMITS[len(self.versions) - 1]  # a branch: what it is by now
        if wanted.name == self.stop_at:
            raise OSError("connection reset")
        self.fetched.append((commit, wanted.name))
        path.write_bytes(self.versions[commit][wanted.name])
        on_bytes(path.stat().st_size)


REFERENCE = hub.read_reference("owner/tiny")


def test_A12_all_files_are_of_one_commit_though_the_repository_moves_on(tmp_path):
    fake = Fake(pipeline(1.0), pipeline(2.0))
    said = []
    told = []
    made = hub.download(
        REFERENCE,
        tmp_path,
        hub=fake,
        announce=lambda files, commit: said.append((files, commit)),
        on_bytes=lambda here, total: told.append((here, total)),
    )
    path = made.path
    assert made.commit == COMMITS[0] and set(made.files) == {*pipeline(1.0), hub.ORIGIN}
    assert told == sorted(told) and told[-1] == (told[-1][1],) * 2
    assert fake.asked == ["main"]
    assert {commit for commit, _ in fake.fetched} == {COMMITS[0]}
    assert path == tmp_path / "tiny"
    for name, data in pipeline(1.0).items():
        assert (path / name).read_bytes() == data
    origin = json.loads((path / hub.ORIGIN).read_text())
    assert origin["commit"] == COMMITS[0] and origin["revision"] == "main"
    ((files, commit),) = said
    assert commit == COMMITS[0] and sum(f.size for f in files) == sum(map(len, pipeline(1.0).values()))


def test_A12_a_stopped_download_goes_on_with_its_commit(tmp_path):
    fake = Fake(pipeline(1.0), pipeline(2.0))
    fake.stop_at = "vae/diffusion_pytorch_model.safetensors"
    with pytest.raises(OutputError, match=r"cannot be downloaded \(connection reset\); run it again"):
        hub.download(REFERENCE, tmp_path, hub=fake)
    assert not (tmp_path / "tiny").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".tiny.partial"]
    fake.stop_at = None
    path = hub.download(REFERENCE, tmp_path, hub=fake).path
    assert {commit for commit, _ in fake.fetched} == {COMMITS[0]}
    assert (path / "vae/diffusion_pytorch_model.safetensors").read_bytes() == weights(2.0)
    assert not (tmp_path / ".tiny.partial").exists()


def test_another_revision_does_not_go_on_with_the_files_of_the_first(tmp_path):
    fake = Fake(pipeline(1.0), pipeline(2.0))
    fake.stop_at = "vae/config.json"
    with pytest.raises(OutputError):
        hub.download(REFERENCE, tmp_path, hub=fake)
    fake.stop_at = None
    path = hub.download(hub.read_reference(f"owner/tiny@{COMMITS[1]}"), tmp_path, hub=fake).path
    assert (path / "unet/diffusion_pytorch_model.safetensors").read_bytes() == weights(2.0)
    assert json.loads((path / hub.ORIGIN).read_text())["commit"] == COMMITS[1]


def test_only_what_is_on_the_list_is_fetched(tmp_path):
    unwanted = {
        "unet/diffusion_pytorch_model.bin": b"\x80\x04",
        "unet/model.py": b"import os",
        "../escape.json": b"{}",
        "unet/../../escape.txt": b"",
        "/etc/escape.json": b"{}",
        "a\\..\\escape.json": b"{}",
        ".hidden/config.json": b"{}",
        "safety_checker/model.safetensors": weights(0),
        "whole.safetensors": weights(0),
        "vae/diffusion_pytorch_model.non_ema.safetensors": weights(0),
        "README.md": b"",
    }
    fake = Fake({**pipeline(1.0), **unwanted})
    hub.download(REFERENCE, tmp_path / "models", hub=fake)
    assert {name for _, name in fake.fetched} == set(pipeline(1.0))
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_half_precision_is_taken_where_there_is_any(tmp_path):
    half = {"unet/diffusion_pytorch_model.fp16.safetensors": weights(0.5)}
    fake = Fake({**pipeline(1.0), **half})
    path = hub.download(REFERENCE, tmp_path, hub=fake).path
    assert [one.name for one in sorted((path / "unet").glob("*.safetensors"))] == [
        "diffusion_pytorch_model.fp16.safetensors"
    ]
    assert (path / "vae/diffusion_pytorch_model.safetensors").is_file()


@pytest.mark.parametrize("how", ["cut", "other", "pickle"])
def test_what_is_not_what_the_hub_said_is_refused(how, tmp_path):
    name = "unet/diffusion_pytorch_model.safetensors"
    bad = {"cut": weights(1.0)[:-1], "other": weights(3.0), "pickle": b"\x80\x04" + bytes(200)}[how]

    class Lying(Fake):
        def files(self, repository, revision):
            commit, found = super().files(repository, revision)
            if how == "pickle":  # then it is the content that is refused
                found = [
                    hub.RemoteFile(name=f.name, size=len(bad) if f.name == name else f.size) for f in found
                ]
            return commit, found

        def fetch(self, repository, commit, wanted, path, on_bytes):
            super().fetch(repository, commit, wanted, path, on_bytes)
            if wanted.name == name:
                path.write_bytes(bad)

    with pytest.raises(CheckpointError, match="a pickle checkpoint" if how == "pickle" else "came broken"):
        hub.download(REFERENCE, tmp_path, hub=Lying(pipeline(1.0)))
    assert not (tmp_path / "tiny").exists()


def test_a_repository_of_files_needs_the_name_of_one(tmp_path):
    files = {"sdxl_lightning_4step_unet.safetensors": weights(1.0), "other_lora.safetensors": weights(2.0)}
    fake = Fake(files)
    with pytest.raises(UsageError, match=r"2 weight files; give one with --file: sdxl_lightning_4step_unet"):
        hub.download(REFERENCE, tmp_path, hub=fake)
    assert fake.fetched == []
    made = hub.download(REFERENCE, tmp_path, hub=fake, file="sdxl_lightning_4step_unet.safetensors")
    path = made.path
    assert made.files == (path.name, f"{path.stem}.{hub.ORIGIN}")
    assert path.read_bytes() == weights(1.0) and path.parent == tmp_path
    origin = json.loads((tmp_path / f"sdxl_lightning_4step_unet.{hub.ORIGIN}").read_text())
    assert origin["commit"] == COMMITS[0]
    assert not (tmp_path / ".tiny.partial").exists()
    with pytest.raises(NotFoundError, match="no weight file 'none'"):
        hub.download(REFERENCE, tmp_path, hub=fake, file="none")
    with pytest.raises(OutputError, match="exists already"):
        hub.download(REFERENCE, tmp_path, hub=fake, file="sdxl_lightning_4step_unet.safetensors")


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "/srv/evil.safetensors", "a/../../evil.safetensors", "a\\..\\x.safetensors"],
)
def test_a_name_that_leads_out_of_the_folder_is_not_there(name, tmp_path):
    fake = Fake({name: weights(1.0)})
    for file in (None, name):
        with pytest.raises(NotFoundError):
            hub.download(REFERENCE, tmp_path / "models", hub=fake, file=file)
    assert fake.fetched == [] and not list(tmp_path.rglob("*.safetensors"))


def test_a_repository_of_pickles_is_not_downloaded(tmp_path):
    fake = Fake({"model.ckpt": b"\x80\x04", "config.json": b"{}"})
    with pytest.raises(NotFoundError, match="holds no safetensors"):
        hub.download(REFERENCE, tmp_path, hub=fake)


@pytest.mark.parametrize(
    "text", ["name", "a/b/c", "../x", "a/..", "a/b@", "a/b@../c", "http://x/y", "a b/c", "", "/etc/passwd"]
)
def test_what_is_no_repository_is_refused(text):
    with pytest.raises(UsageError, match="is no repository"):
        hub.read_reference(text)


def test_references_are_read():
    assert hub.read_reference("stabilityai/sdxl-turbo@v1.0") == hub.Reference(
        repository="stabilityai/sdxl-turbo", revision="v1.0"
    )


def test_a_file_that_is_not_large_is_compared_with_gits_hash(tmp_path):
    class Git(Fake):
        def files(self, repository, revision):
            commit, found = super().files(repository, revision)
            return commit, [
                hub.RemoteFile(name=one.name, size=one.size, blob=blob(self.versions[commit][one.name]))
                for one in found
            ]

        def fetch(self, repository, commit, wanted, path, on_bytes):
            super().fetch(repository, commit, wanted, path, on_bytes)
            if wanted.name == self.changed:
                path.write_bytes(path.read_bytes().swapcase())

    fake = Git(pipeline(1.0))
    fake.changed = "model_index.json"
    with pytest.raises(CheckpointError, match=r"model_index\.json: came broken"):
        hub.download(REFERENCE, tmp_path, hub=fake)
    fake.changed = None
    assert hub.download(REFERENCE, tmp_path, hub=fake).path.is_dir()


def test_what_the_disk_has_no_room_for_is_not_begun(tmp_path, monkeypatch):
    fake = Fake(pipeline(1.0))
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match=r"MB are to come and 0 MB are free"):
        hub.download(REFERENCE, tmp_path, hub=fake)
    assert fake.fetched == []


def test_two_downloads_of_a_name_at_once_are_refused(tmp_path):
    class Impatient(Fake):
        def fetch(self, repository, commit, wanted, path, on_bytes):
            with pytest.raises(OutputError, match="is being downloaded by another"):
                hub.download(REFERENCE, tmp_path, hub=Fake(pipeline(2.0)))
            super().fetch(repository, commit, wanted, path, on_bytes)

    assert hub.download(REFERENCE, tmp_path, hub=Impatient(pipeline(1.0))).path.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
