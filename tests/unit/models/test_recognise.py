"""Which published checkpoint a file is: by our contract, hash or names; contradictions are reported."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fewstep.checkpoint import safetensors
from fewstep.diffusion.published import find, published
from fewstep.errors import CheckpointError, UsageError
from fewstep.models import known_hashes as module
from fewstep.models.known_hashes import known_hashes, read_hashes
from fewstep.models.recognise import Recognised, Unclear, identify, recognise

LORA = "sdxl_lightning_4step_lora.safetensors"
OWN = replace(find("flash-sd").contract, base_family="fewstep-emoji", native_sizes=((128, 128),))


@pytest.fixture(autouse=True)
def own_config(tmp_path, monkeypatch):
    """No table of the person who runs the tests."""
    monkeypatch.setattr(module, "user_table", lambda: tmp_path / "config" / "known_hashes.yaml")


def weights(path, metadata=None, value=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.save(path, {"a": np.full(3, value, np.float32)}, metadata)
    return path


def user_table(tmp_path, text):
    path = tmp_path / "config" / "known_hashes.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("row", published(), ids=lambda row: row.key)
def test_every_published_name_is_recognised(row, tmp_path):
    for name in row.files:
        found = recognise(weights(tmp_path / f"{name}.safetensors"))
        assert isinstance(found, Recognised)
        assert (found.key, found.kind, found.contract) == (row.key, row.kind, row.contract)
        assert found.lora_weight == row.lora_weight
    if not row.files:
        found = recognise(row.repository)
        assert isinstance(found, Recognised)
        assert found.key == row.key


def test_what_a_recognised_checkpoint_says(tmp_path):
    found = recognise(weights(tmp_path / LORA))
    assert isinstance(found, Recognised)
    assert (found.method, found.steps, found.base_family, found.kind) == ("lightning", 4, "sdxl", "lora")
    assert found.why == f"the name {LORA!r}"


def test_what_nothing_says_is_not_recognised(tmp_path):
    assert recognise(weights(tmp_path / "juggernautXL_v9Lightning.safetensors")) is None
    assert recognise(weights(tmp_path / "pytorch_lora_weights.safetensors")) is None
    assert recognise("no-such-file.safetensors") is None
    assert recognise(tmp_path) is None


@pytest.mark.parametrize(
    "path",
    [
        "lcm-lora-sdxl/pytorch_lora_weights.safetensors",
        "latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.fp16.safetensors",
        "models--latent-consistency--lcm-lora-sdxl/snapshots/a18548dd/pytorch_lora_weights.safetensors",
    ],
)
def test_a_file_whose_name_says_nothing_goes_by_its_folder(path, tmp_path):
    found = recognise(weights(tmp_path / path))
    assert isinstance(found, Recognised)
    assert (found.key, found.why) == ("lcm-lora-sdxl", "the folder 'lcm-lora-sdxl'")


def test_a_component_of_a_pipeline_folder(tmp_path):
    found = recognise(weights(tmp_path / "sd-turbo" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert isinstance(found, Recognised)
    assert found.key == "sd-turbo"
    folder = recognise(tmp_path / "sd-turbo")
    assert isinstance(folder, Recognised)
    assert folder.key == "sd-turbo"


def test_a_folder_does_not_name_files_that_have_names(tmp_path):
    assert recognise(weights(tmp_path / "lcm-lora-sdxl" / "my-cat.safetensors")) is None
    found = recognise(weights(tmp_path / "lcm-lora-sdxl" / LORA))
    assert isinstance(found, Recognised)
    assert found.key == "sdxl-lightning-4step-lora"


def test_a_repository_of_many_is_ambiguous(tmp_path):
    for path in ("ByteDance/SDXL-Lightning", weights(tmp_path / "SDXL-Lightning" / "unet.safetensors")):
        found = recognise(path)
        assert isinstance(found, Unclear)
        assert len(found.candidates) == 11
        assert "may be any of 11 checkpoints" in found.why
    adapters = recognise("ByteDance/SDXL-Lightning", kind="lora")
    assert isinstance(adapters, Unclear)
    assert adapters.candidates == tuple(f"sdxl-lightning-{n}step-lora" for n in (2, 4, 8))


def test_the_header_names_a_renamed_file(tmp_path):
    for key in ("modelspec.title", "ss_output_name"):
        found = recognise(weights(tmp_path / "fast.safetensors", {key: "Hyper-SDXL-8steps-CFG-lora"}))
        assert isinstance(found, Recognised)
        assert found.key == "hyper-sdxl-8steps-cfg-lora"
        assert found.why == f"{key} 'Hyper-SDXL-8steps-CFG-lora'"


def test_name_and_header_that_agree(tmp_path):
    found = recognise(weights(tmp_path / LORA, {"modelspec.title": "sdxl_lightning_4step_lora"}))
    assert isinstance(found, Recognised)
    assert found.why == f"the name {LORA!r} and modelspec.title 'sdxl_lightning_4step_lora'"
    free = recognise(weights(tmp_path / LORA, {"modelspec.title": "Lightning, 4 steps, for my friends"}))
    assert isinstance(free, Recognised)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"modelspec.title": "sdxl_lightning_8step_lora"}, "these are different checkpoints"),
        ({"modelspec.title": "Lightning 8 steps"}, "'Lightning 8 steps' says 8 steps, the rest says 4"),
        ({"modelspec.title": f"Lightning\n{'8 steps':>9999}"}, "8 steps' says 8 steps, the rest says 4"),
        ({"ss_output_name": "lightning-8step"}, "ss_output_name 'lightning-8step' says 8 steps"),
        (
            {"modelspec.architecture": "stable-diffusion-v1/lora"},
            "modelspec.architecture is 'stable-diffusion",
        ),
        ({"modelspec.prediction_type": "v"}, "predicts epsilon, modelspec.prediction_type is v"),
    ],
)
def test_contradictions_are_reported_not_guessed(metadata, message, tmp_path):
    found = recognise(weights(tmp_path / LORA, metadata))
    assert isinstance(found, Unclear)
    assert message in found.why
    assert "\n" not in found.why
    assert len(found.why) < 500
    assert "list its hash" in found.why


def test_a_step_count_in_the_name_against_a_published_title(tmp_path):
    title = {"modelspec.title": "sdxl_lightning_4step_lora"}
    found = recognise(weights(tmp_path / "fast-8step.safetensors", title))
    assert isinstance(found, Unclear)
    assert "the name 'fast-8step.safetensors' says 8 steps, the rest says 4" in found.why
    # the adapter named for one step serves 1 to 8
    one = {"modelspec.title": "Hyper-SDXL-1step-lora"}
    assert isinstance(recognise(weights(tmp_path / "unified-8step.safetensors", one)), Recognised)
    # LCM-LoRA has no count in its name: any that it may do is no contradiction
    lcm = {"modelspec.title": "lcm-lora-sdxl"}
    assert isinstance(recognise(weights(tmp_path / "fast-8step.safetensors", lcm)), Recognised)
    assert isinstance(recognise(weights(tmp_path / "fast-30step.safetensors", lcm)), Unclear)


def test_headers_that_fit(tmp_path):
    metadata = {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.prediction_type": "epsilon",
    }
    assert isinstance(recognise(weights(tmp_path / LORA, metadata)), Recognised)
    x0 = weights(
        tmp_path / "sdxl_lightning_1step_unet_x0.safetensors", {"modelspec.prediction_type": "epsilon"}
    )
    assert isinstance(recognise(x0), Recognised), "the standard has no word for x0"
    odd = weights(tmp_path / LORA, {"modelspec.architecture": "of my own"})
    assert isinstance(recognise(odd), Recognised)


def test_content_against_the_name(tmp_path):
    file = weights(tmp_path / LORA)
    found = recognise(file, kind="unet")
    assert isinstance(found, Unclear)
    assert "the name stands for an adapter, its content is a denoiser" in found.why
    assert isinstance(recognise(file, kind="lora"), Recognised)
    tagged = weights(
        tmp_path / "sdxl_lightning_4step_unet.safetensors",
        {"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"},
    )
    assert isinstance(recognise(tagged), Unclear)


def test_our_own_contract_always_wins(tmp_path):
    header = {"fewstep.contract": OWN.to_json(), "modelspec.title": "sdxl_lightning_8step_lora"}
    file = weights(tmp_path / LORA, header)
    digest = safetensors.sha256_file(file)
    user_table(tmp_path, f'version: 1\nhashes: {{"{digest}": sd-turbo}}\n')
    found = recognise(file)
    assert isinstance(found, Recognised)
    assert (found.contract, found.kind, found.key, found.why) == (OWN, "lora", None, "its fewstep.contract")


def test_the_contract_that_adapters_are_written_with(tmp_path):
    import torch

    from fewstep.checkpoint.lora import save_lora

    state = {"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(4, 2)}
    save_lora(tmp_path / LORA, state, rank=2, alpha=2.0, contract_json=OWN.to_json())
    found = recognise(tmp_path / LORA)
    assert isinstance(found, Recognised)
    assert found.contract == OWN


def test_the_contract_of_a_pipeline_folder(tmp_path):
    folder = tmp_path / "sd-turbo"
    file = weights(folder / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "fewstep.json").write_text(OWN.to_json())
    for path in (folder, file):
        found = recognise(path)
        assert isinstance(found, Recognised)
        assert (found.contract, found.why) == (OWN, "its fewstep.json")
    other = recognise(weights(folder / LORA))
    assert isinstance(other, Recognised)
    assert other.key == "sdxl-lightning-4step-lora", "a contract beside a file with a name is not the file's"


def test_a_broken_contract_of_ours_is_refused(tmp_path):
    file = weights(tmp_path / LORA, {"fewstep.contract": "{}"})
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: its fewstep\.contract: .*missing key"):
        recognise(file)
    (tmp_path / "fewstep.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"its fewstep\.json"):
        recognise(tmp_path)


def test_pickles_are_not_read(tmp_path):
    file = tmp_path / "dmd2_sdxl_4step_unet_fp16.bin"
    file.write_bytes(b"PK\x03\x04" + bytes(60))
    with pytest.raises(CheckpointError, match="pickle"):
        recognise(file)
    found = identify(file, metadata={})
    assert isinstance(found, Recognised)
    assert found.key == "dmd2-sdxl-4step-unet"


def test_the_shipped_table_is_empty_and_there_need_be_no_other():
    assert known_hashes() == {}


def test_hashes_of_the_user(tmp_path):
    one, two = (
        weights(tmp_path / "one.safetensors", value=1.0),
        weights(tmp_path / "two.safetensors", value=2.0),
    )
    three = weights(tmp_path / "three.safetensors", value=3.0)
    digests = [safetensors.sha256_file(file) for file in (one, two, three)]
    contract = OWN.to_json()
    user_table(
        tmp_path,
        f'version: 1\nhashes:\n  "{digests[0].upper()}": hyper-sd3-8steps-cfg-lora\n'
        f'  "{digests[1]}": {{checkpoint: sdxl-lightning-4step-unet, kind: full}}\n'
        f'  "{digests[2]}":\n    kind: unet\n    contract: {contract.replace(chr(10), " ")}\n',
    )
    first, second, third = (recognise(file) for file in (one, two, three))
    assert isinstance(first, Recognised)
    assert (first.key, first.lora_weight) == ("hyper-sd3-8steps-cfg-lora", 0.125)
    assert isinstance(second, Recognised)
    assert (second.key, second.kind) == ("sdxl-lightning-4step-unet", "full")
    assert isinstance(third, Recognised)
    assert (third.key, third.kind, third.contract) == (None, "unet", OWN)
    assert recognise(weights(tmp_path / "four.safetensors", value=4.0)) is None


def test_a_hash_goes_before_names(tmp_path):
    file = weights(tmp_path / LORA)
    digest = safetensors.sha256_file(file)
    user_table(tmp_path, f'version: 1\nhashes: {{"{digest}": sd-turbo}}\n')
    found = recognise(file)
    assert isinstance(found, Recognised)
    assert (found.key, found.why) == ("sd-turbo", "its hash in a table")
    wrong = recognise(file, kind="lora")
    assert isinstance(wrong, Unclear)
    assert "its hash is listed as a whole model, its content is an adapter" in wrong.why


def test_files_are_hashed_only_for_a_table_with_entries(tmp_path, monkeypatch):
    def refuse(path):
        raise AssertionError("hashed")

    monkeypatch.setattr(safetensors, "sha256_file", refuse)
    assert isinstance(recognise(weights(tmp_path / LORA)), Recognised)


HASH = "ab" * 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is None: give a mapping"),
        ("hashes: {}", "version is None: give 1"),
        ("version: true\nhashes: {}", "version is True"),
        ("version: 2\nhashes: {}", "version is 2: give 1"),
        ("version: 1", "hashes is None"),
        ("version: 1\nhashs: {}", "unknown key 'hashs': did you mean hashes?"),
        ("version: 1\nhashes: [a]", "hashes is ['a']"),
        ("version: 1\nhashes: {abc: sd-turbo}", "'abc' is not a SHA-256"),
        (
            f"version: 1\nhashes: {{{'12' * 32}: sd-turbo}}",
            "is not a SHA-256: give 64 hexadecimal digits in quo",
        ),
        (f"version: 1\nhashes: {{{HASH}: sd-turbo, {HASH}: sd-turbo}}", "is given twice"),
        (f"version: 1\nhashes: {{{HASH}: sd-turbo, {HASH.upper()}: sd-turbo}}", "is given twice"),
        (f"version: 1\nhashes: {{{HASH}: sd-turboo}}", "did you mean sd-turbo?"),
        (f"version: 1\nhashes: {{{HASH}: null}}", "the entry is None"),
        (f"version: 1\nhashes: {{{HASH}: {{}}}}", "give one of them"),
        (f"version: 1\nhashes: {{{HASH}: {{checkpoint: sd-turbo, contract: {{}}}}}}", "give one of them"),
        (f"version: 1\nhashes: {{{HASH}: {{checkpoint: sd-turbo, kind: lorra}}}}", "kind is 'lorra'"),
        (f"version: 1\nhashes: {{{HASH}: {{checkpoint: sd-turbo, steps: 4}}}}", "unknown key 'steps'"),
        (f"version: 1\nhashes: {{{HASH}: {{contract: {{}}}}}}", "without a kind"),
        (f"version: 1\nhashes: {{{HASH}: {{contract: {{}}, kind: unet}}}}", "missing key"),
        (
            f"version: 1\nhashes: {{{HASH}: {{contract: 2020-01-01, kind: unet}}}}",
            "a value that JSON does not",
        ),
        (f"version: 1\nhashes: {{{HASH}: !!python/name:os.system ''}}", "not valid YAML"),
        ("version: [", "not valid YAML"),
    ],
)
def test_a_table_is_read_strictly(text, message, tmp_path):
    path = user_table(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        known_hashes()
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_the_guides_table_of_hashes_is_valid(tmp_path):
    guide = Path(__file__).parents[3] / "docs/guides/fewstep-checkpoints.md"
    example = re.search(r"```yaml\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    assert example
    digests = iter("0123")
    user_table(tmp_path, re.sub(r'"[^"]*…[^"]*"', lambda _: f'"{next(digests) * 64}"', example[1]))
    assert [(found.key, found.kind, found.method) for found in known_hashes().values()] == [
        ("sdxl-lightning-4step-lora", "lora", "lightning"),
        ("sdxl-lightning-4step-unet", "full", "lightning"),
        (None, "unet", "lightning"),
    ]


def test_a_table_that_is_no_text(tmp_path):
    path = user_table(tmp_path, "")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        read_hashes(path)


def test_where_the_users_table_is(tmp_path):
    """In a process of its own: the fixture above replaces the function."""
    program = (
        "from fewstep.models import known_hashes, recognise; import sys; print(known_hashes.user_table()); "
    )
    program += "assert 'torch' not in sys.modules"
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env={**os.environ, "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    if sys.platform.startswith("linux"):
        assert child.stdout.strip() == str(tmp_path / "fewstep" / "known_hashes.yaml")
