"""Whole models merged: files, folders, other names; autoencoders, types, patterns, headers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_files as tiny
import torch
from safetensors.torch import load_file, save_file
from small_merges import changed

from fewstep.checkpoint import detect, safetensors, single_file
from fewstep.checkpoint.conversion import Options as Conversion
from fewstep.checkpoint.conversion import convert
from fewstep.checkpoint.merging import merge_tree
from fewstep.checkpoint.merging.run import Options, merge
from fewstep.checkpoint.merging.writing import Contract
from fewstep.errors import CheckpointError, UsageError

UNET = "model.diffusion_model."
State = dict[str, torch.Tensor]


def merged(models: list[Path], out: Path, **options: Any) -> State:
    made, _ = merge(models, out, Options(**options))
    assert made == out
    return load_file(out)


def close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-6, atol=1e-6, msg=name)


def test_every_mode_mixes_every_tensor_of_the_model(sd1: dict[str, Path], tmp_path: Path) -> None:
    models = [sd1[name] for name in "abc"]
    a, b, c = ({n: v.double() for n, v in load_file(path).items()} for path in models)
    found = merged(models[:2], tmp_path / "w.safetensors", multiplier=0.3)
    close(found, {n: 0.7 * a[n] + 0.3 * b[n] for n in a})
    found = merged(models, tmp_path / "d.safetensors", mode="add-difference", multiplier=0.3)
    close(found, {n: a[n] + 0.3 * (b[n] - c[n]) for n in a})
    found = merged(models[:1], tmp_path / "n.safetensors", mode="no-interpolation")
    assert all(torch.equal(found[n].double(), a[n]) for n in a)
    found = merged(models, tmp_path / "m.safetensors", mode="make-few-step", multiplier=1.0)
    close(found, {n: a[n] + (b[n] - c[n]) if n.startswith(UNET) else a[n] for n in a})


def test_slerp_of_a_file_is_that_of_its_tensors(unets: dict[str, Path], tmp_path: Path) -> None:
    found = merged([unets["fine"], unets["base"]], tmp_path / "s.safetensors", mode="slerp", multiplier=0.5)
    a, b = (load_file(unets[name]) for name in ("fine", "base"))
    for name in list(a)[::20]:
        one, two = a[name].double().flatten(), b[name].double().flatten()
        angle = torch.arccos((one @ two / one.norm() / two.norm()).clamp(-1, 1))
        turned = (one / one.norm() + two / two.norm()) * torch.sin(angle / 2) / torch.sin(angle)
        exact = turned * (one.norm() + two.norm()) / 2
        torch.testing.assert_close(found[name].double().flatten(), exact, rtol=1e-5, atol=1e-5)


def test_halves_are_mixed_in_float32(sd1: dict[str, Path], tmp_path: Path) -> None:
    """In float16 a difference of one unit is lost when it is scaled; here the result is rounded once."""
    name = "decoder.conv_out.bias"
    state = {n: v.half() for n, v in tiny.states("sd1")["vae"].items()}
    paths = []
    for role, value in (("a", 1.0), ("b", 1.0009765625), ("c", 1.0)):
        state[name] = torch.full_like(state[name], value)
        paths.append(tmp_path / f"{role}.safetensors")
        save_file(state, paths[-1])
    found = merged(paths, tmp_path / "out.safetensors", mode="add-difference", multiplier=0.4, dtype="fp32")
    assert found[name].dtype == torch.float32
    assert float(found[name][0]) == pytest.approx(1.0 + 0.4 * 2**-10, abs=2**-24)
    found = merged(paths, tmp_path / "half.safetensors", mode="add-difference", multiplier=0.6)
    assert found[name].dtype == torch.float16 and float(found[name][0]) == 1.0009765625


@pytest.mark.parametrize(("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_result_is_the_float64_formula_rounded_once(
    unets: dict[str, Path], tmp_path: Path, dtype: str, kind: torch.dtype
) -> None:
    models = [unets["fine"], unets["base"]]
    found = merged(models, tmp_path / "out.safetensors", multiplier=0.37, dtype=dtype)
    a, b = map(load_file, models)
    for name in a:
        exact = 0.63 * a[name].double() + 0.37 * b[name].double()
        ours, wanted = found[name].double(), exact.to(kind).double()
        assert found[name].dtype == kind
        # only values that lie within float32's error of the middle between two halves may differ
        assert (ours != wanted).double().mean() < 0.01
        unit = {"fp16": 2.0**-10, "bf16": 2.0**-7}[dtype]
        assert ((ours - wanted).abs() <= unit * wanted.abs() + 1e-7).all()


def test_folders_are_mixed_part_by_part_and_the_rest_is_copied(sd1: dict[str, Path], tmp_path: Path) -> None:
    a = tmp_path / "a"
    shutil.copytree(sd1["a-folder"], a)
    (a / "NOTICE").write_text("keep me")
    (a / "README.md").write_text("about a")
    (a / "safety_checker").mkdir()
    save_file({"x": torch.ones(3)}, a / "safety_checker" / "model.safetensors")
    (a / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK\x03\x04 a pickle")
    (a / "students" / "four").mkdir(parents=True)
    (a / "students" / "four" / "fewstep.json").write_text("{}")
    out, remarks = merge([a, sd1["b-folder"]], tmp_path / "out", Options(multiplier=0.25))
    for file in sorted(sd1["a-folder"].rglob("*.safetensors")):
        name = file.relative_to(sd1["a-folder"])
        ours, theirs = load_file(file), load_file(sd1["b-folder"] / name)
        close(load_file(out / name), {n: 0.75 * ours[n] + 0.25 * theirs[n] for n in ours})
        assert merge_tree(safetensors.read_metadata(out / name)) is not None
    assert (out / "NOTICE").read_text() == "keep me"
    assert (out / "model_index.json").read_bytes() == (a / "model_index.json").read_bytes()
    assert load_file(out / "safety_checker" / "model.safetensors")["x"].tolist() == [1, 1, 1]
    assert not (out / "students").exists() and not list(out.rglob("*.bin"))
    assert "Weighted sum, M = 0.25" in (out / "README.md").read_text()
    (remark,) = remarks
    assert "1 files of weights in other formats are not copied" in remark


@pytest.mark.parametrize("forms", [("a", "b-folder"), ("a-folder", "b")], ids=["file first", "folder first"])
def test_a_file_and_a_folder_mix(sd1: dict[str, Path], tmp_path: Path, forms: tuple[str, str]) -> None:
    first, second = (sd1[name] for name in forms)
    out = tmp_path / ("out.safetensors" if first.is_file() else "out")
    merge([first, second], out, Options(multiplier=0.3))
    if out.is_dir():
        convert(out, tmp_path / "out.safetensors", Conversion())
    a, b = load_file(sd1["a"]), load_file(sd1["b"])
    close(load_file(tmp_path / "out.safetensors"), {n: 0.7 * a[n] + 0.3 * b[n] for n in a})


def test_fused_and_transposed_tensors_mix_across_names(tmp_path: Path) -> None:
    """SDXL's second text encoder is OpenCLIP in a file: its queries, keys and values are one tensor there."""
    a = tiny.save(tmp_path / "a.safetensors", "sdxl")
    b = changed(a, tmp_path / "b.safetensors", 3)
    convert(b, tmp_path / "b", Conversion())
    found = merged([a, tmp_path / "b"], tmp_path / "out.safetensors", multiplier=1.0)
    theirs = load_file(b)
    assert any("in_proj_weight" in name for name in found)
    assert all(torch.equal(found[name], theirs[name]) for name in found)


def test_a_bare_denoiser_makes_a_checkpoint_few_step(
    sd1: dict[str, Path], unets: dict[str, Path], tmp_path: Path
) -> None:
    contract = Contract(text='{"steps": 4}\n', scheduler={"_class_name": "LCMScheduler", "x": 1})
    options = Options(mode="make-few-step", multiplier=1.0, contract=contract)
    models = [sd1["b"], unets["distilled"], unets["base"]]
    merge(models, tmp_path / "out.safetensors", options)
    found, fine = load_file(tmp_path / "out.safetensors"), load_file(sd1["b"])
    close(found, {n: v - 0.01 if n.startswith(UNET) else v for n, v in fine.items()})
    assert safetensors.read_metadata(tmp_path / "out.safetensors")["fewstep.contract"] == contract.text
    models[0] = sd1["b-folder"]
    merge(models, tmp_path / "out", options)
    assert (tmp_path / "out" / "fewstep.json").read_text() == contract.text
    assert json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())["x"] == 1
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]


@pytest.mark.parametrize(("name", "channels"), [("inpainting", 9), ("instruct", 8)])
def test_wider_unets_mix_their_first_channels(
    unets: dict[str, Path], tmp_path: Path, name: str, channels: int
) -> None:
    out, _ = merge([unets[name], unets["base"]], tmp_path / "o.safetensors", Options(multiplier=0.5))
    found, a, b = load_file(out), load_file(unets[name]), load_file(unets["base"])
    weight = found["conv_in.weight"]
    assert weight.shape[1] == channels
    assert torch.equal(weight[:, 4:], a["conv_in.weight"][:, 4:])
    torch.testing.assert_close(weight[:, :4], (a["conv_in.weight"][:, :4] + b["conv_in.weight"]) / 2)
    recipe = json.loads(safetensors.read_metadata(out)["sd_merge_recipe"])
    assert (recipe["is_inpainting"], recipe["is_instruct_pix2pix"]) == (channels == 9, channels == 8)
    with pytest.raises(CheckpointError, match=f"takes {channels} channels .* give the model of {channels}"):
        merge([unets["base"], unets[name]], tmp_path / "p.safetensors", Options())
    assert not (tmp_path / "p.safetensors").exists()


def test_blocks_have_multipliers_of_their_own(sd1: dict[str, Path], tmp_path: Path) -> None:
    for first in ("a", "a-folder"):
        out = tmp_path / ("out.safetensors" if first == "a" else "out")
        merge([sd1[first], sd1["b"]], out, Options(multiplier=0.0, blocks="IN01=1,M00=0.5,VAE=1"))
        if out.is_dir():
            convert(out, tmp_path / "out.safetensors", Conversion(replace=True))
        found = load_file(tmp_path / "out.safetensors")
        a, b = load_file(sd1["a"]), load_file(sd1["b"])
        for name in found:
            share = 0.0
            if name.startswith((f"{UNET}input_blocks.1.", "first_stage_model.")):
                share = 1.0
            elif name.startswith(f"{UNET}middle_block."):
                share = 0.5
            torch.testing.assert_close(found[name], (1 - share) * a[name] + share * b[name], msg=name)
        recipe = merge_tree(safetensors.read_metadata(tmp_path / "out.safetensors"))
        assert first != "a" or (recipe is not None and recipe.recipe["block_weights"]["IN01"] == 1.0)


def test_an_autoencoder_is_baked_in(sd1: dict[str, Path], tmp_path: Path) -> None:
    alone = tmp_path / "vae.safetensors"
    save_file({n: v + 1 for n, v in tiny.states("sd1")["vae"].items()}, alone)
    for source in (alone, sd1["b"], sd1["b-folder"]):
        expected = {n.removeprefix("first_stage_model."): v for n, v in load_file(sd1["b"]).items()}
        found = merged(
            [sd1["a"]], tmp_path / f"{source.stem}-o.safetensors", mode="no-interpolation", vae=source
        )
        a = load_file(sd1["a"])
        assert found.keys() == a.keys()
        for name in found:
            if not name.startswith("first_stage_model."):
                assert torch.equal(found[name], a[name])
            elif source == alone:
                assert torch.equal(found[name], a[name] + 1)
            else:
                assert torch.equal(found[name], expected[name.removeprefix("first_stage_model.")])
    without = tmp_path / "without.safetensors"
    save_file({n: v for n, v in load_file(sd1["a"]).items() if not n.startswith("first_stage")}, without)
    found = merged([without], tmp_path / "with.safetensors", mode="no-interpolation", vae=alone)
    assert found.keys() == load_file(sd1["a"]).keys()
    assert (
        detect.detect(single_file.open_file(tmp_path / "with.safetensors").file.entries).kind == "checkpoint"
    )


def test_discarding_by_pattern(sd1: dict[str, Path], tmp_path: Path) -> None:
    found = merged(
        [sd1["a"], sd1["b"]], tmp_path / "o.safetensors", discard=r"^first_stage_model\.encoder|time_embed"
    )
    assert found.keys() == {
        n
        for n in load_file(sd1["a"])
        if not n.startswith("first_stage_model.encoder") and "time_embed" not in n
    }
    with pytest.raises(UsageError, match="leaves nothing"):
        merge([sd1["a"], sd1["b"]], tmp_path / "p.safetensors", Options(discard="."))
    with pytest.raises(UsageError, match="no regular expression"):
        merge([sd1["a"], sd1["b"]], tmp_path / "p.safetensors", Options(discard="("))


def test_what_only_one_model_has(sd1: dict[str, Path], tmp_path: Path) -> None:
    a, b = load_file(sd1["a"]), load_file(sd1["b"])
    a["model_ema.decay"] = torch.tensor(0.5)
    a["alphas_cumprod"], b["alphas_cumprod"] = torch.zeros(4), torch.ones(4)
    positions = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    a[positions], b[positions] = torch.arange(16)[None], torch.zeros(1, 16, dtype=torch.int64)
    b = {n: v for n, v in b.items() if not n.startswith("first_stage_model.")}
    b["model_ema.more"] = torch.ones(2)
    save_file(a, tmp_path / "a.safetensors")
    save_file(b, tmp_path / "b.safetensors")
    out = tmp_path / "out.safetensors"
    _, remarks = merge([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], out, Options(multiplier=1.0))
    found = load_file(out)
    assert torch.equal(found[positions], a[positions]) and torch.equal(
        found["alphas_cumprod"], torch.zeros(4)
    )
    kept = [n for n in a if n.startswith(("first_stage_model.", "model_ema"))]
    assert all(torch.equal(found[n], a[n]) for n in kept)
    assert torch.equal(found[f"{UNET}out.2.bias"], b[f"{UNET}out.2.bias"])
    assert "model_ema.more" not in found
    assert f"{len(kept)} tensors are not in B and stay as A has them" in remarks


def test_the_header_tells_the_recipe_and_the_family(sd1: dict[str, Path], tmp_path: Path) -> None:
    first = tmp_path / "first.safetensors"
    merge([sd1["a"], sd1["b"]], first, Options(multiplier=0.3, dtype="fp16"))
    out = tmp_path / "second.safetensors"
    options = Options(mode="add-difference", multiplier=0.5, metadata={"author": "me"})
    merge([first, sd1["c"], sd1["a"]], out, options)
    texts = safetensors.read_metadata(out)
    recipe, models = (json.loads(texts[f"sd_merge_{name}"]) for name in ("recipe", "models"))
    hashes = {name: safetensors.sha256_file(sd1[name]) for name in "abc"}
    assert recipe == {
        "type": "fewstep",
        "primary_model_hash": safetensors.sha256_file(first),
        "secondary_model_hash": hashes["c"],
        "tertiary_model_hash": hashes["a"],
        "interp_method": "Add difference",
        "multiplier": 0.5,
        "save_as_half": False,
        "custom_name": "second",
        "config_source": 3,
        "bake_in_vae": "None",
        "discard_weights": "",
        "is_inpainting": False,
        "is_instruct_pix2pix": False,
        "recipe": "add-difference",
        "dtype": None,
    }
    assert models.keys() == {safetensors.sha256_file(first), *hashes.values()}
    assert models[hashes["b"]] == {
        "name": "b.safetensors", "legacy_hash": legacy(sd1["b"]), "sd_merge_recipe": None,
    }  # fmt: skip
    assert (texts["format"], texts["author"]) == ("pt", "me")
    tree = merge_tree(texts)
    assert tree is not None and tree.models[0].merge is not None
    assert tree.models[0].merge.recipe["save_as_half"] is True
    assert [model.name for model in tree.models[0].merge.models] == ["a.safetensors", "b.safetensors"]


def legacy(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()[0x100000:0x110000]).hexdigest()[:8]


def test_texts_of_the_models_are_kept_when_asked(unets: dict[str, Path], tmp_path: Path) -> None:
    paths = []
    for name, texts in (
        ("fine", {"x": "a", "y": "a"}),
        ("base", {"x": "b", "z": "b", "sshs_model_hash": "1"}),
    ):
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(load_file(unets[name]), paths[-1], metadata=texts)
    merge(paths, tmp_path / "all.safetensors", Options(copy_metadata=True))
    texts = safetensors.read_metadata(tmp_path / "all.safetensors")
    assert (texts["x"], texts["y"], texts["z"]) == ("a", "a", "b") and "sshs_model_hash" not in texts
    merge(paths, tmp_path / "few.safetensors", Options())
    assert safetensors.read_metadata(tmp_path / "few.safetensors").keys() == {
        "format", "sd_merge_recipe", "sd_merge_models",
    }  # fmt: skip


def test_names_are_those_of_a1111(
    unets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fine, distilled, base = (unets[name] for name in ("fine", "distilled", "base"))
    assert str(merge([fine, base], None, Options(multiplier=0.3))[0]) == "0.7(fine) + 0.3(base).safetensors"
    made, _ = merge([fine, distilled, base], None, Options(mode="add-difference", multiplier=0.5))
    assert str(made) == "fine + 0.5(distilled - base).safetensors" and made.is_file()
    made, _ = merge([unets["inpainting"]], None, Options(mode="no-interpolation", dtype="fp16"))
    assert str(made) == "inpainting.inpainting.safetensors"


def test_eight_bit_floats_are_mixed_by_their_values(unets: dict[str, Path], tmp_path: Path) -> None:
    state = {n: v.to(torch.float8_e4m3fn) for n, v in load_file(unets["base"]).items()}
    save_file(state, tmp_path / "f8.safetensors")
    found = merged([unets["fine"], tmp_path / "f8.safetensors"], tmp_path / "o.safetensors", multiplier=1.0)
    assert all(torch.equal(found[n], state[n].float()) for n in found)
    found = merged([tmp_path / "f8.safetensors", unets["fine"]], tmp_path / "p.safetensors", multiplier=0.0)
    assert all(torch.equal(found[n], state[n].half()) for n in found)


def test_progress_counts_megabytes_to_the_end(sd1: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    merge([sd1["a"], sd1["b"]], tmp_path / "o.safetensors", Options(),
          on_progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    assert len({total for _, total in seen}) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    total = seen[0][1]
    assert seen[-1] == (total, total) and total == pytest.approx(3 * sd1["a"].stat().st_size / 1e6, abs=1.5)
