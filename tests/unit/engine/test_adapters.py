"""Adapters by name: where they are looked for, what a name can reach, and what a request says of them."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewstep.diffusion.published import find
from fewstep.engine import adapters
from fewstep.engine.adapters import AdapterUse, Catalogue, read_use
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import UsageError
from fewstep.prompt import infotext


def write(path, contract=None, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{layer}.lora_A.weight": np.ones((2, 8), dtype=np.float32),
        f"{layer}.lora_B.weight": np.ones((8, 2), dtype=np.float32),
    }
    header = dict(metadata) if contract is None else {"fewstep.contract": contract.to_json(), **metadata}
    save_file(tensors, path, header or None)
    return path


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWSTEP_LORAS", raising=False)
    monkeypatch.setattr(adapters, "user_folder", lambda: tmp_path / "user")


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "loras" / "ink.safetensors", ss_output_name="ink wash")
    write(tmp_path / "loras" / "sub" / "wool.safetensors")
    write(tmp_path / "secret.safetensors")
    return tmp_path / "loras"


def engine(folder=None):
    return Engine(backend=FakeBackend(), catalogue=Catalogue([] if folder is None else [folder]))


def test_adapters_are_found_in_every_place_in_order(folder, tmp_path, monkeypatch):
    write(tmp_path / "env" / "ink.safetensors")
    write(tmp_path / "env" / "felt.safetensors")
    write(tmp_path / "user" / "felt.safetensors")
    write(tmp_path / "user" / ".hidden.safetensors")
    monkeypatch.setenv("FEWSTEP_LORAS", os.pathsep.join([str(tmp_path / "env"), ""]))
    found = {entry.name: entry.origin for entry in Catalogue([folder]).entries()}
    assert found == {"ink": "--loras-dir", "wool": "--loras-dir", "felt": "FEWSTEP_LORAS"}


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "../../secret",
        "/etc/passwd",
        "sub/wool",
        "ink.safetensors",
        "..",
        "",
        "loras/ink",
        "INK\0",
    ],
)
def test_H06_a_name_reaches_no_path(name, folder):
    with pytest.raises(UsageError, match=r"not found; there are: ink, wool \(name more") as caught:
        resolve(engine(folder).info, prompt="a", adapters=[AdapterUse(name=name)])
    assert "\n" not in str(caught.value)
    assert UsageError.http_status == 422


def test_H06_a_path_in_a_tag_of_the_prompt_is_not_found_either(folder):
    with pytest.raises(UsageError, match=r"'\.\./secret': not found"):
        resolve(engine(folder).info, prompt="a <lora:../secret:1>")


def test_links_to_folders_are_not_followed(folder, tmp_path):
    write(tmp_path / "elsewhere" / "other.safetensors")
    (folder / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [entry.name for entry in Catalogue([folder]).entries()] == ["ink", "wool"]


def test_a_second_name_and_a_new_file_are_found(folder):
    catalogue = Catalogue([folder])
    assert catalogue.find("ink wash").name == "ink"
    write(folder / "late.safetensors")
    assert catalogue.find("late").name == "late"


def test_too_many_are_refused(folder):
    uses = [AdapterUse(name="ink")] * 65
    with pytest.raises(UsageError, match="65 adapters: at most 64"):
        resolve(engine(folder).info, prompt="a", adapters=uses)


def test_weights_are_filled_in_and_twice_is_the_sum(folder):
    info = engine(folder).info
    request = resolve(info, prompt="a", adapters=[AdapterUse(name="ink")])
    assert [(c.name, c.weight, c.text_weight) for c in request.adapters] == [("ink", 1.0, 1.0)]
    uses = [AdapterUse(name="ink", weight=0.5), AdapterUse(name="ink wash", weight=0.25, text_weight=0.0)]
    request = resolve(info, prompt="a <lora:wool:0.3:0.7>", adapters=uses)
    assert [(c.name, c.weight, c.text_weight) for c in request.adapters] == [
        ("ink", 0.75, 0.5),
        ("wool", 0.7, 0.3),
    ]


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(weight):
    with pytest.raises(UsageError, match="give a finite number"):
        AdapterUse(name="x", weight=weight)


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("ink", AdapterUse(name="ink")),
        ("ink:0.5", AdapterUse(name="ink", weight=0.5)),
        ("ink:-1:0", AdapterUse(name="ink", weight=-1.0, text_weight=0.0)),
    ],
)
def test_the_option_is_read(text, use):
    assert read_use(text) == use


@pytest.mark.parametrize("text", ["", ":1", "ink:", "ink:a", "ink:1:2:3", "ink:nan"])
def test_the_option_in_another_form_is_refused(text):
    with pytest.raises(UsageError, match="--lora is"):
        read_use(text)


def test_the_backend_is_given_them_and_they_are_taken_out_again(folder):
    drawing = engine(folder)
    seen = []

    class Watching(FakeBackend):
        def denoise(self, x, t, conditions, student=None):
            seen.append([one.path.stem for one in self.adapters])
            return super().denoise(x, t, conditions, student)

    drawing = Engine(backend=Watching(), catalogue=Catalogue([folder]))
    request = resolve(drawing.info, prompt="a", adapters=[AdapterUse(name="ink", weight=0.5)])
    result = drawing.generate(request)
    assert seen and all(names == ["ink"] for names in seen)
    assert drawing.backend.adapters == ()
    ((one),) = result.record["adapters"]
    assert one == {"name": "ink", "weight": 0.5, "text_weight": 0.5, "hash": request.adapters[0].hash}
    text = infotext.from_record({**result.record, "fewstep": "1"})
    assert infotext.read(text).fields["Lora hashes"] == f"ink: {one['hash']}"
    plain = drawing.generate(resolve(drawing.info, prompt="a"))
    assert "adapters" not in plain.record and "insist" not in plain.record and "parts" not in plain.record
    assert "Lora" not in infotext.from_record({**plain.record, "fewstep": "1"})


def test_they_are_taken_out_after_a_failure_too(folder):
    drawing = Engine(backend=FakeBackend(poison_after=0), catalogue=Catalogue([folder]))
    with pytest.raises(Exception, match="not finite"):
        drawing.generate(resolve(drawing.info, prompt="a", adapters=[AdapterUse(name="ink")]))
    assert drawing.backend.adapters == ()


def sdxl_info(folder):
    info = FakeBackend().info
    return dataclasses.replace(info, family="sdxl", adapters=Catalogue([folder]), max_size=4096)


def test_an_adapter_for_few_steps_brings_its_contract_and_its_weight(folder):
    row = next(row for row in _published() if row.key == "sdxl-lightning-4step-lora")
    write(folder / f"{row.files[0]}.safetensors")
    info = sdxl_info(folder)
    use = AdapterUse(name=row.files[0])
    request = resolve(info, prompt="a", width=64, height=64, adapters=[use])
    assert request.sampling(info) == row.contract
    assert (request.num_inference_steps, request.solver, request.guidance_scale) == (4, "euler", 1.0)
    assert request.adapters[0].weight == row.lora_weight
    request = resolve(info, prompt="a", width=64, height=64, num_inference_steps=30, adapters=[use])
    assert request.num_inference_steps == 4
    assert any("30 steps on SDXL-Lightning" in warning for warning in request.warnings)
    off = resolve(info, prompt="a", width=64, height=64, adapters=[AdapterUse(name=use.name, weight=0.0)])
    assert off.sampling(info) == info.contract


def test_two_adapters_for_few_steps_contradict_each_other(folder):
    contract = find("sdxl-lightning-4step-lora").contract
    for name in ("one", "two"):
        write(folder / f"{name}.safetensors", contract)
    with pytest.raises(UsageError, match="'one' and 'two' each say how to draw in few steps"):
        resolve(sdxl_info(folder), prompt="a", adapters=[AdapterUse(name="one"), AdapterUse(name="two")])


def test_an_adapter_for_few_steps_of_another_family_does_not_bring_its_contract(folder):
    write(folder / "one.safetensors", find("lcm-lora-sdv1-5").contract)
    info = sdxl_info(folder)
    request = resolve(info, prompt="a", width=64, height=64, adapters=[AdapterUse(name="one")])
    assert request.sampling(info) == info.contract
    assert any("made for sd15" in warning for warning in request.warnings)


def _published():
    from fewstep.diffusion.published import published

    return published()
