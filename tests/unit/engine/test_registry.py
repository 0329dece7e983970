import os
import shutil

import pytest

from fewstep.checkpoint import bundle
from fewstep.engine import registry
from fewstep.errors import NotFoundError


@pytest.fixture(autouse=True)
def nothing_bundled(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "bundled_folder", lambda: tmp_path / "bundled")


def test_models_are_found_in_every_place_in_order(ir_bundle, tmp_path, monkeypatch):
    assert registry.models() == []
    for place in (tmp_path / "bundled", tmp_path / "data" / "fewstep" / "models", tmp_path / "a"):
        shutil.copytree(ir_bundle, place / "hand")
    pipeline = tmp_path / "b" / "pipe"
    pipeline.mkdir(parents=True)
    (pipeline / "model_index.json").write_text("{}")
    assert [entry.origin for entry in registry.models()] == ["bundled"]
    monkeypatch.setenv("FEWSTEP_MODELS", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b"), ""]))
    found = registry.models()
    assert [(e.name, e.kind, e.origin) for e in found] == [
        ("hand", "bundle", "FEWSTEP_MODELS"),
        ("pipe", "pipeline", "FEWSTEP_MODELS"),
    ]
    assert found[0].size > 1000
    assert registry.find("pipe").folder == pipeline
    assert registry.find("hand", extra=[tmp_path / "bundled"]).origin == "--models-dir"


def test_a_folder_may_be_a_model_itself(ir_bundle, monkeypatch):
    monkeypatch.setenv("FEWSTEP_MODELS", str(ir_bundle))
    assert registry.find("hand").folder == ir_bundle
    assert registry.find().name == "hand"  # the default is missing: the first there is


def test_a_bundle_goes_before_a_pipeline_of_the_same_name(ir_bundle, tmp_path, monkeypatch):
    twin = tmp_path / "twin" / "hand"
    twin.mkdir(parents=True)
    (twin / "model_index.json").write_text("{}")
    monkeypatch.setenv("FEWSTEP_MODELS", os.pathsep.join([str(twin.parent), str(ir_bundle)]))
    assert registry.find("hand").kind == "bundle"
    assert registry.find("hand", kind="pipeline").folder == twin


@pytest.mark.parametrize("name", ["nope", "../hand", "/etc/passwd", "a\\b", "..", ""])
def test_what_is_not_there_is_an_error_that_lists_what_is(ir_bundle, monkeypatch, name):
    monkeypatch.setenv("FEWSTEP_MODELS", str(ir_bundle))
    with pytest.raises(NotFoundError, match="there are: hand"):
        registry.find(name)


def test_a_path_is_not_a_name_even_when_it_exists(ir_bundle):
    with pytest.raises(NotFoundError, match="not given as a path"):
        registry.find(str(ir_bundle))


def test_a_broken_bundle_is_listed_under_its_folder(ir_bundle, monkeypatch):
    monkeypatch.setenv("FEWSTEP_MODELS", str(ir_bundle))
    for text in ("{", "[]", '{"name": "../../x"}', '{"name": 3}'):
        (ir_bundle / bundle.FILE_NAME).write_text(text)
        assert [entry.name for entry in registry.models()] == ["hand"]
