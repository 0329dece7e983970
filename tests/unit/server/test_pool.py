"""One model's networks in memory; what models are is known of all that were asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fewstep.engine import registry
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.server.pool import Pool


class Opened:
    """Opens fake engines and remembers which were opened and closed."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []

    def __call__(self, name: str | None) -> Engine:
        name = name or "first"
        if name == "none":
            raise NotFoundError("model 'none': not found")
        if name == "broken" and "broken" in self.opened:
            raise CheckpointError("broken: damaged")
        self.opened.append(name)
        backend = FakeBackend()
        backend.info = dataclasses.replace(backend.info, name=name)
        closed = self.closed
        backend.close = lambda: closed.append(name)  # type: ignore[method-assign]
        return Engine(backend=backend)


def test_what_a_model_is_is_read_once() -> None:
    opener = Opened()
    pool = Pool(opener=opener)
    assert pool.default == "first"
    assert pool.info("second").name == "second"
    assert pool.info("second").name == "second"
    assert opener.opened == ["first", "second"]
    assert pool.loaded() is None


def test_a_batch_is_drawn_in_one_call_of_the_denoiser() -> None:
    with Pool("emoji-128", rows=3, threads=1).using() as engine:  # more threads: more lanes, more rows
        assert engine.backend.rows == 3


def test_only_one_models_networks_are_in_memory() -> None:
    opener = Opened()
    pool = Pool(opener=opener)
    with pool.using() as engine:
        assert engine.info.name == "first"
    with pool.using("second") as engine:
        assert engine.info.name == "second"
        assert opener.closed == ["first"]
    assert pool.loaded() == "second"
    with pool.using("second"):
        pass
    with pool.using() as engine:
        assert engine.info.name == "first"
    assert opener.closed == ["first", "second"]
    pool.close()
    assert opener.closed == ["first", "second", "first"]


def test_a_model_that_fails_leaves_the_one_before() -> None:
    opener = Opened()
    pool = Pool(opener=opener)
    with pool.using():
        pass
    with pytest.raises(NotFoundError), pool.using("none"):
        pass
    pool.info("broken")
    pool._opened.clear()  # its files were damaged after it was asked for
    with pytest.raises(CheckpointError), pool.using("broken"):
        pass
    assert pool.loaded() == "first"
    assert opener.closed == []


def test_unloading_lets_go_and_loads_again() -> None:
    opener = Opened()
    pool = Pool(opener=opener)
    with pool.using():
        pass
    pool.unload()
    assert pool.loaded() is None
    assert opener.closed == ["first"]
    with pool.using() as engine:
        assert engine.info.name == "first"
    assert opener.opened == ["first", "first"]


def test_messages_about_models_tell_no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "secret-place" / "damaged"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(Exception, match="damaged") as found:
        Pool(folders=[folder.parent]).info("damaged")
    assert "secret-place" not in str(found.value)


def test_a_bundle_is_drawn_by_the_folder_of_its_name_where_adapters_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(registry.__file__).parents[3] / "weights"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("FEWSTEP_MODELS", raising=False)
    alone = Pool()
    with pytest.raises(UsageError, match="takes no adapters, and there is no model folder"):
        alone.adaptable("emoji-128")
    pool = Pool(folders=(weights,))
    listed = {entry.name: entry.kind for entry in pool.models()}
    assert listed["emoji-128"] == "bundle"  # which is the one that is drawn with
    name = pool.adaptable("emoji-128")
    assert name == "emoji-128:pipeline" and pool.adaptable(name) == name
    assert pool.info(name).hash != pool.info("emoji-128").hash
    with pytest.raises(UsageError, match="needs PyTorch"):
        Pool(engine="openvino", folders=(weights,)).adaptable("emoji-128")
    with pytest.raises(NotFoundError, match="not found") as told:
        pool.adaptable("nobody:pipeline")
    assert told.value.field == "model"
