"""Which embeddings a prompt names: where they are looked for, what fits, and what is said."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewstep.engine import embeddings
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.embeddings import EmbeddingCatalogue
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, NotFoundError, UsageError
from fewstep.prompt import infotext


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWSTEP_EMBEDDINGS", raising=False)
    monkeypatch.setattr(embeddings, "user_folder", lambda: tmp_path / "user")


def write(path, width=8, count=2, **tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors or {"emb_params": np.ones((count, width), dtype=np.float32)}, path)
    return path


def info(catalogue=None, widths=(8,), length=77):
    """A model whose text encoders take vectors of these widths."""
    made = FakeBackend().info
    encoder = dataclasses.replace(made.encoders[0], kind="clip", length=length)
    encoders = tuple(dataclasses.replace(encoder, vector_width=width) for width in widths)
    return dataclasses.replace(made, encoders=encoders, embeddings=catalogue)


def chosen(model, prompt, **given):
    request = resolve(model, prompt=prompt, **given)
    return [one.name for one in request.embeddings], [w for w in request.warnings if "embedding" in w]


def test_every_place_in_order(tmp_path, monkeypatch):
    write(tmp_path / "extra" / "toy.safetensors")
    for place in ("one", "two", "user"):
        write(tmp_path / place / "toy.safetensors")
        write(tmp_path / place / "sub" / f"{place}.safetensors")
    write(tmp_path / "user" / ".hidden.safetensors")
    monkeypatch.setenv("FEWSTEP_EMBEDDINGS", os.pathsep.join(str(tmp_path / n) for n in ("one", "two")))
    found = {entry.name: entry.origin for entry in EmbeddingCatalogue([tmp_path / "extra"]).entries()}
    assert found == {
        "toy": "--embeddings-dir", "one": "FEWSTEP_EMBEDDINGS", "two": "FEWSTEP_EMBEDDINGS", "user": "user",
    }  # fmt: skip


def test_a_file_has_its_own_name_and_its_words(tmp_path):
    write(tmp_path / "learned_embeds.safetensors", **{"<toy>": np.ones((1, 8), dtype=np.float32)})
    catalogue = EmbeddingCatalogue([tmp_path])
    assert [entry.name for entry in catalogue.entries()] == ["learned_embeds", "<toy>"]
    assert chosen(info(catalogue), "a <toy>")[0] == ["<toy>"]
    # What is written in the folder later is found, and so is a file that changed.
    write(tmp_path / "new.safetensors")
    write(tmp_path / "learned_embeds.safetensors", **{"<bear>": np.ones((2, 8), dtype=np.float32)})
    assert [entry.name for entry in catalogue.entries()] == ["learned_embeds", "<bear>", "new"]


def test_only_what_a_prompt_names_is_read(tmp_path):
    write(tmp_path / "toy.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    model = info(EmbeddingCatalogue([tmp_path]))
    assert chosen(model, "a red (toy:1.2)") == (["toy"], [])
    assert chosen(model, "a red apple", negative_prompt="Toy, bad") == (["toy"], [])
    assert chosen(model, "toys [bear:toy:0.5]") == (["toy"], [])
    assert chosen(model, "toys, a wildtoy") == ([], [])
    names, (said,) = chosen(model, "a broken toy")
    assert names == ["toy"] and said.startswith("embedding 'broken' is not used")


@pytest.mark.parametrize("name", ["../secret", "/etc/toy", "sub/toy"])
def test_a_name_is_never_a_path(name, tmp_path):
    write(tmp_path / "secret.safetensors")
    write(tmp_path / "learned" / "bear.safetensors")
    assert chosen(info(EmbeddingCatalogue([tmp_path / "learned"])), f"a {name}") == ([], [])


def test_another_width_names_both(tmp_path):
    path = write(tmp_path / "toy.safetensors", width=6)
    names, (said,) = chosen(info(EmbeddingCatalogue([tmp_path])), "a toy")
    assert names == [] and "vectors have 6 numbers, and model fake takes 8;" in said
    with pytest.raises(UsageError, match="vectors have 6 numbers, and model fake takes 8;"):
        resolve(info(EmbeddingCatalogue(given=[path])), prompt="a toy")


def test_two_encoders_need_a_table_each(tmp_path):
    tables = {"clip_l": np.ones((2, 8), np.float32), "clip_g": np.ones((3, 10), np.float32)}
    write(tmp_path / "both.safetensors", **tables)
    write(tmp_path / "first.safetensors", clip_l=tables["clip_l"])
    write(tmp_path / "plain.safetensors")
    model = info(EmbeddingCatalogue([tmp_path]), widths=(8, 10))
    request = resolve(model, prompt="both first plain")
    assert [(one.name, one.slots, one.counts) for one in request.embeddings] == [
        ("both", ("clip_l", "clip_g"), (2, 3))
    ]
    said = [warning for warning in request.warnings if "embedding" in warning]
    assert len(said) == 2 and all("takes 8 (clip_l) and 10 (clip_g)" in warning for warning in said)
    # One encoder takes the table of its width.
    request = resolve(info(EmbeddingCatalogue([tmp_path])), prompt="both")
    assert request.embeddings[0].slots == ("clip_l",)


def test_more_vectors_than_a_chunk_are_refused(tmp_path):
    write(tmp_path / "toy.safetensors", count=15)
    names, (said,) = chosen(info(EmbeddingCatalogue([tmp_path]), length=16), "a toy")
    assert names == [] and "has 15 vectors, and a text encoder of fake reads 14 at once" in said


def test_a_model_that_reads_ids_alone_says_so(tmp_path):
    path = write(tmp_path / "toy.safetensors")
    model = info(EmbeddingCatalogue([tmp_path]), widths=(0,))
    names, (said,) = chosen(model, "a toy")
    assert names == [] and "model fake reads token ids alone and takes no vectors" in said
    assert chosen(model, "a bear") == ([], [])
    with pytest.raises(UsageError, match="takes no vectors"):
        resolve(info(EmbeddingCatalogue(given=[path]), widths=(0,)), prompt="a toy")


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "toy.pt").write_bytes(b"\x80\x02}q\x00.")
    names, (said,) = chosen(info(EmbeddingCatalogue([tmp_path])), "a toy")
    assert names == [] and "fewstep convert" in said and "--allow-pickle" in said
    with pytest.raises(CheckpointError, match=r"fewstep convert .*toy.pt --allow-pickle --out"):
        EmbeddingCatalogue(given=[tmp_path / "toy.pt"])
    # Converted it counts, wherever the pickle is.
    write(tmp_path / "toy.safetensors")
    assert chosen(info(EmbeddingCatalogue([tmp_path])), "a toy") == (["toy"], [])


def test_a_given_file_that_nobody_names_is_said(tmp_path):
    path = write(tmp_path / "toy.safetensors")
    names, said = chosen(info(EmbeddingCatalogue(given=[path])), "a bear")
    assert names == [] and said == ["embedding 'toy.safetensors' is not used: no prompt has its name, toy"]
    with pytest.raises(NotFoundError, match="no such file"):
        EmbeddingCatalogue(given=[tmp_path / "other.safetensors"])


def test_record_and_infotext(tmp_path):
    write(tmp_path / "toy.safetensors")
    (one,) = resolve(info(EmbeddingCatalogue([tmp_path])), prompt="a toy").embeddings
    facts = embeddings.record([one])
    assert facts == {"embeddings": [{"name": "toy", "hash": one.hash}]} and len(one.hash) == 12
    assert embeddings.record([]) == {}
    made = {
        "prompt": "a toy", "num_inference_steps": 1, "solver": "ddim", "guidance_scale": 1.0, "seed": 0,
        "width": 8, "height": 8, "model": "m", "model_hash": "0" * 64, "fewstep": "0",
    }  # fmt: skip
    assert f'TI hashes: "toy: {one.hash}"' in infotext.from_record(made | facts)
