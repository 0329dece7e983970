"""Files to folders and back: bare networks on a base, other autoencoders, tokenizers, types, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_files as tiny
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from fewstep.checkpoint import single_file
from fewstep.checkpoint.conversion import Options, convert
from fewstep.checkpoint.folder_writing import scheduler_config
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("files") / "sd1.safetensors", "sd1")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("files") / "sdxl.safetensors", "sdxl")


@pytest.fixture(scope="module")
def sd1_folder(sd1: Path) -> Path:
    convert(sd1, sd1.parent / "folder", Options())
    return sd1.parent / "folder"


def clip_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "vocab.json").write_text('{"a": 0}')
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


def index(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model_index.json").read_text())


def settings(folder: Path, name: str = "scheduler/scheduler_config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_a_folder_and_back_is_the_same_file(sd1: Path, sd1_folder: Path, tmp_path: Path) -> None:
    assert convert(sd1_folder, tmp_path / "back.safetensors", Options()) == []
    ours, back = load_file(sd1), load_file(tmp_path / "back.safetensors")
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)
    with single_file.open_file(tmp_path / "back.safetensors") as reader:
        assert reader.file.metadata["modelspec.architecture"] == "stable-diffusion-v1"


def test_a_folder_without_a_tokenizer_says_so(sd1: Path, tmp_path: Path) -> None:
    (note,) = convert(sd1, tmp_path / "model", Options())
    assert "has no tokenizer and draws nothing before it has" in note and "--tokenizer FOLDER" in note
    assert not (tmp_path / "model" / "tokenizer").exists()
    assert index(tmp_path / "model")["tokenizer"] == ["transformers", "CLIPTokenizer"]


def test_a_vocabulary_makes_every_tokenizer_of_the_family(sdxl: Path, tmp_path: Path) -> None:
    options = Options(tokenizer=clip_folder(tmp_path / "clip"))
    assert convert(sdxl, tmp_path / "model", options) == []
    for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        folder = tmp_path / "model" / name
        assert (folder / "vocab.json").read_text() == '{"a": 0}'
        assert json.loads((folder / "tokenizer_config.json").read_text())["pad_token"] == padding
        assert json.loads((folder / "special_tokens_map.json").read_text())["pad_token"] == padding


def test_the_packages_vocabulary_is_taken_when_the_text_encoder_knows_as_many_words(
    sdxl: Path, tmp_path: Path
) -> None:
    def vocabulary(words: int) -> Any:
        files = {
            "vocab.json": json.dumps({f"w{i}": i for i in range(words)}).encode(),
            "merges.txt": b"# mine",
        }
        return lambda: files

    assert convert(sdxl, tmp_path / "model", Options(vocabulary=vocabulary(99))) == []
    for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        assert (tmp_path / "model" / name / "merges.txt").read_bytes() == b"# mine"
        assert settings(tmp_path / "model", f"{name}/tokenizer_config.json")["pad_token"] == padding
    (note,) = convert(sdxl, tmp_path / "other", Options(vocabulary=vocabulary(98)))
    assert "no tokenizer and no tokenizer_2" in note
    given = Options(vocabulary=vocabulary(99), tokenizer=clip_folder(tmp_path / "clip"), replace=True)
    convert(sdxl, tmp_path / "model", given)
    assert (tmp_path / "model" / "tokenizer" / "vocab.json").read_text() == '{"a": 0}'


def test_tokenizers_of_a_pipeline_folder_are_copied(sdxl: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    clip_folder(other / "tokenizer")
    clip_folder(other / "tokenizer_2")
    (other / "tokenizer_2" / "vocab.json").write_text('{"b": 0}')
    (other / "tokenizer_2" / "code.py").write_text("raise SystemExit")
    assert convert(sdxl, tmp_path / "model", Options(tokenizer=other)) == []
    copied = sorted(path.name for path in (tmp_path / "model" / "tokenizer_2").iterdir())
    assert copied == ["merges.txt", "vocab.json"]
    assert (tmp_path / "model" / "tokenizer_2" / "vocab.json").read_text() == '{"b": 0}'
    (other / "tokenizer" / "tokenizer_config.json").write_text('{"auto_map": {}}')
    with pytest.raises(CheckpointError, match="auto_map asks for code"):
        convert(sdxl, tmp_path / "again", Options(tokenizer=other))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(NotFoundError, match="no tokenizer of sdxl here"):
        convert(sdxl, tmp_path / "again", Options(tokenizer=tmp_path / "nothing"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_types(sd1: Path, tmp_path: Path, dtype: Any) -> None:
    wanted = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    convert(sd1, tmp_path / "model", Options(dtype=dtype))
    convert(sd1, tmp_path / "model.safetensors", Options(dtype=dtype))
    files = [*(tmp_path / "model").rglob("*.safetensors"), tmp_path / "model.safetensors"]
    assert len(files) == 4
    for file in files:
        assert {value.dtype for value in load_file(file).values()} == {wanted}
    ours, own = load_file(tmp_path / "model.safetensors"), load_file(sd1)
    assert all(torch.equal(ours[name], own[name].to(wanted)) for name in own)


def test_a_value_that_does_not_fit_leaves_nothing(sd1: Path, tmp_path: Path) -> None:
    loaded = load_file(sd1)
    loaded["model.diffusion_model.out.2.bias"][0] = 1e6
    save_file(loaded, tmp_path / "large.safetensors")
    with pytest.raises(CheckpointError, match=r"conv_out\.bias: 1 of its values are too large for float16"):
        convert(tmp_path / "large.safetensors", tmp_path / "model", Options(dtype="fp16"))
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]


def test_8_bit_floats_and_their_factors_become_float16(sd1: Path, tmp_path: Path) -> None:
    loaded = {name: value.to(torch.float8_e4m3fn) for name, value in load_file(sd1).items()}
    key = "model.diffusion_model.time_embed.0"
    loaded[f"{key}.scale_weight"] = torch.tensor(2.0)
    loaded["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    save_file(loaded, tmp_path / "small.safetensors")
    convert(tmp_path / "small.safetensors", tmp_path / "model", Options())
    unet = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in unet.values()} == {torch.float16}
    assert torch.equal(unet["time_embedding.linear_1.weight"], 2 * loaded[f"{key}.weight"].half())
    assert torch.equal(unet["time_embedding.linear_1.bias"], loaded[f"{key}.bias"].half())
    convert(tmp_path / "small.safetensors", tmp_path / "same.safetensors", Options(dtype="fp32"))
    same = load_file(tmp_path / "same.safetensors")
    assert torch.equal(same[f"{key}.weight"], 2 * loaded[f"{key}.weight"].float())
    assert not [name for name in same if "scale" in name]


@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_a_bare_unet_on_a_base(sdxl: Path, tmp_path: Path, naming: str) -> None:
    """As SDXL-Lightning's U-Net on the base: the rest, with its tokenizers, is the base's."""
    student = {name: value + 1 for name, value in tiny.states("sdxl")["unet"].items()}
    bare = tmp_path / "student.safetensors"
    if naming == "diffusers":
        save_file(student, bare)
    else:
        _, parts = tiny.views({"unet": student})
        single_file.write(bare, parts, family="sdxl")
    convert(sdxl, tmp_path / "base", Options(tokenizer=clip_folder(tmp_path / "clip")))
    for base in (tmp_path / "base", sdxl):
        notes = convert(bare, tmp_path / "model", Options(base=base, replace=True))
        assert ("draws nothing" in " ".join(notes)) == base.is_file()
        unet = load_file(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(unet[name], value) for name, value in student.items())
        for part in ("vae", "text_encoder", "text_encoder_2"):
            name = "diffusion_pytorch_model" if part == "vae" else "model"
            found = load_file(tmp_path / "model" / part / f"{name}.safetensors")
            assert all(torch.equal(found[key], value) for key, value in tiny.states("sdxl")[part].items())
        assert settings(tmp_path / "model", "unet/config.json")["addition_time_embed_dim"] == 8


def test_a_bare_unet_alone_is_a_folder_of_its_own(tmp_path: Path) -> None:
    bare = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    (note,) = convert(bare, tmp_path / "unet", Options())
    assert "holds a unet alone" in note
    opened = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    state = opened.state_dict()
    assert all(torch.equal(state[name], value) for name, value in tiny.states("sd1")["unet"].items())


def test_another_autoencoder(sd1: Path, sdxl: Path, tmp_path: Path) -> None:
    state = {name: value + 1 for name, value in tiny.states("sd1")["vae"].items()}
    save_file(state, tmp_path / "vae.safetensors")
    convert(sd1, tmp_path / "model", Options(vae=tmp_path / "vae.safetensors"))
    written = load_file(tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(written[name], value) for name, value in state.items())
    convert(tmp_path / "model", tmp_path / "file.safetensors", Options(vae=sd1))
    assert torch.equal(
        load_file(tmp_path / "file.safetensors")["first_stage_model.quant_conv.bias"],
        load_file(sd1)["first_stage_model.quant_conv.bias"],
    )
    with pytest.raises(CheckpointError, match="is of the family sdxl, not sd1"):
        convert(sd1, tmp_path / "other", Options(vae=sdxl))
    with pytest.raises(CheckpointError, match="has no vae; it has unet"):
        bare = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
        convert(sd1, tmp_path / "other", Options(vae=bare))
    with pytest.raises(CheckpointError, match="the vae alone does not say of which model it is"):
        convert(tmp_path / "vae.safetensors", tmp_path / "other", Options())
    convert(tmp_path / "vae.safetensors", tmp_path / "vae", Options(family="sd1"))
    assert settings(tmp_path / "vae", "config.json")["scaling_factor"] == 0.18215


def test_parts_of_different_models_are_refused(sd1: Path, sdxl: Path, tmp_path: Path) -> None:
    bare = tiny.save(tmp_path / "unet.safetensors", "sd1", only=["unet"])
    with pytest.raises(CheckpointError, match="is of the family sdxl, not sd1"):
        convert(bare, tmp_path / "model", Options(base=sdxl))
    wide = load_file(bare)
    wide = {n: torch.cat([v, v], 1) if "attn2.to_k" in n or "attn2.to_v" in n else v for n, v in wide.items()}
    save_file(wide, bare)
    with pytest.raises(CheckpointError, match=r"encoders give 64 numbers a token and the U-Net takes 128"):
        convert(bare, tmp_path / "model", Options(base=sd1))
    other = {name: value.repeat(1, 2, 1, 1) if name == "decoder.conv_in.weight" else value
             for name, value in tiny.states("sd1")["vae"].items()}  # fmt: skip
    save_file(other, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"the vae of sd1 is no AutoencoderKL|8 latent channels"):
        convert(sd1, tmp_path / "model", Options(vae=tmp_path / "vae.safetensors"))
    assert not (tmp_path / "model").exists()


def test_a_part_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    half = tiny.save(tmp_path / "half.safetensors", "sd1", only=["unet", "vae"])
    with pytest.raises(CheckpointError, match=r"sd1 needs text_encoder, which is not there; .*--base"):
        convert(half, tmp_path / "model", Options())
    assert not (tmp_path / "model").exists()


def test_stable_diffusion_3_without_t5_is_a_folder_without_it(tmp_path: Path) -> None:
    kept = ["transformer", "vae", "text_encoder", "text_encoder_2"]
    source = tiny.save(tmp_path / "sd3.safetensors", "sd3", only=kept)
    notes = convert(source, tmp_path / "model", Options(tokenizer=clip_folder(tmp_path / "clip")))
    assert notes == ["there is no text_encoder_3: the folder draws without it"]
    assert (
        index(tmp_path / "model")["text_encoder_3"]
        == index(tmp_path / "model")["tokenizer_3"]
        == [None, None]
    )
    assert settings(tmp_path / "model")["shift"] == 3.0


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_stable_diffusion_2_predicts_must_be_known_and_is_kept(tmp_path: Path, prediction: str) -> None:
    source = tiny.save(tmp_path / "model.safetensors", "sd2")
    with pytest.raises(CheckpointError, match="give --prediction-type epsilon or v_prediction"):
        convert(source, tmp_path / "model", Options())
    convert(source, tmp_path / "model", Options(prediction_type=prediction))
    assert settings(tmp_path / "model")["prediction_type"] == prediction
    assert settings(tmp_path / "model", "unet/config.json")["sample_size"] == (
        96 if prediction != "epsilon" else 64
    )
    convert(tmp_path / "model", tmp_path / "back.safetensors", Options())
    notes = convert(tmp_path / "back.safetensors", tmp_path / "again", Options())
    words = "velocity" if prediction == "v_prediction" else "noise"
    assert f"taken to predict {words}, by the file's metadata" in notes[0]
    assert settings(tmp_path / "again") == settings(tmp_path / "model")


def test_velocity_of_sdxl_is_marked_for_web_uis(sdxl: Path, tmp_path: Path) -> None:
    save_file(
        load_file(sdxl) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors"
    )
    convert(tmp_path / "v.safetensors", tmp_path / "model", Options())
    scheduler = settings(tmp_path / "model")
    assert (scheduler["prediction_type"], scheduler["timestep_spacing"]) == ("v_prediction", "trailing")
    assert scheduler["rescale_betas_zero_snr"] is True
    convert(tmp_path / "model", tmp_path / "back.safetensors", Options())
    assert load_file(tmp_path / "back.safetensors")["v_pred"].shape == (0,)
    with single_file.open_file(tmp_path / "back.safetensors") as reader:
        assert reader.detected.prediction_source == "keys"
        assert reader.detected.zero_terminal_snr


def test_every_scheduler_is_one_that_diffusers_reads() -> None:
    import diffusers

    for family in ("sd1", "sd2", "sdxl", "sd3", "pixart-alpha"):
        for prediction in ("epsilon", "v_prediction"):
            for end in (False, True):
                config = scheduler_config(family, prediction, end)  # type: ignore[arg-type]
                cls = getattr(diffusers, config["_class_name"])
                made = cls.from_config(config)
                if family != "sd3":
                    assert made.config.prediction_type == prediction
                    assert bool(made.config.get("rescale_betas_zero_snr")) == end


def test_pixart_is_its_transformer(tmp_path: Path) -> None:
    source = tiny.save(tmp_path / "pixart.safetensors", "pixart-alpha")
    convert(source, tmp_path / "transformer", Options())
    assert settings(tmp_path / "transformer", "config.json")["_class_name"] == "PixArtTransformer2DModel"
    whole = tmp_path / "model"
    shutil.copytree(tmp_path / "transformer", whole / "transformer")
    names = {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (whole / "model_index.json").write_text(json.dumps(names))
    (note,) = convert(whole, tmp_path / "back.safetensors", Options())
    assert "only its transformer was written" in note
    assert (tmp_path / "back.safetensors").stat().st_size == source.stat().st_size + _longer(tmp_path, source)


def _longer(folder: Path, source: Path) -> int:
    """Metadata make the header longer, nothing else."""
    sizes = []
    for path in (folder / "back.safetensors", source):
        with path.open("rb") as file:
            sizes.append(int.from_bytes(file.read(8), "little"))
    return sizes[0] - sizes[1]


def test_odd_values_are_told(sd1: Path, tmp_path: Path) -> None:
    loaded = load_file(sd1)
    loaded["model.diffusion_model.out.2.bias"][0] = float("nan")
    loaded["model.diffusion_model.out.2.weight"].zero_()
    save_file(loaded, tmp_path / "odd.safetensors")
    for out in ("model", "same.safetensors"):
        notes = " ".join(convert(tmp_path / "odd.safetensors", tmp_path / out, Options()))
        assert "warning: 1 tensors hold values that are not finite, the first" in notes
        assert "1 matrices are all zero" in notes


def test_what_is_left_out_is_counted(sd1: Path, tmp_path: Path) -> None:
    extra = {"betas": torch.ones(4), "model_ema.decay": torch.ones(())}
    save_file(load_file(sd1) | extra, tmp_path / "full.safetensors")
    note = convert(tmp_path / "full.safetensors", tmp_path / "model", Options())[0]
    assert note.startswith("2 tensors belong to no part of the model and are left out, 1 of them averaged")


def test_outputs_are_not_overwritten_unless_asked(sd1: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "model", tmp_path / "model.safetensors"):
        convert(sd1, out, Options())
        with pytest.raises(OutputError, match="exists already; give --replace"):
            convert(sd1, out, Options())
        convert(sd1, out, Options(replace=True))
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder, which is not replaced"):
        convert(sd1, tmp_path / "folder.safetensors", Options(replace=True))
    with pytest.raises(OutputError, match="is a file, which is not replaced"):
        (tmp_path / "file").write_text("mine")
        convert(sd1, tmp_path / "file", Options(replace=True))
    own = tmp_path / "model"
    shutil.copy(sd1, own / "inside.safetensors")
    with pytest.raises(UsageError, match="holds the source"):
        convert(own / "inside.safetensors", own, Options(replace=True))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "out", "message"),
    [
        (Options(base=Path("x")), "o.safetensors", "--base has no meaning"),
        (Options(vae=Path("x")), "o.safetensors", "--vae has no meaning"),
        (Options(ema=True), "o.safetensors", "--ema has no meaning"),
        (Options(family="sd1"), "o.safetensors", "--family has no meaning"),
        (Options(allow_pickle=True), "o.safetensors", "no pickle checkpoint by its content"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    sd1: Path, tmp_path: Path, options: Options, out: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        convert(sd1, tmp_path / out, options)


def test_folders_become_files_only(sd1_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a folder becomes a file; give a name that ends in \.safetensors"):
        convert(sd1_folder, tmp_path / "other", Options())
    with pytest.raises(NotFoundError, match="no such file or folder"):
        convert(tmp_path / "none", tmp_path / "other", Options())
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="a LoRA, which is no folder"):
        convert(tmp_path / "lora.safetensors", tmp_path / "other", Options())


def test_shards_and_half_variants_of_folders_are_read(sd1: Path, sd1_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sd1_folder, folder)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(unet)
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, own in shards.items():
        save_file({name: tensors[name] for name in own}, unet.parent / shard)
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    unet.with_suffix(".safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    unet.unlink()
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    convert(folder, tmp_path / "back.safetensors", Options())
    ours, back = load_file(sd1), load_file(tmp_path / "back.safetensors")
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_modules_are_filled_without_a_second_copy(sdxl: Path) -> None:
    import contextlib

    from accelerate import init_empty_weights

    with single_file.open_file(sdxl) as reader:
        for name, own in tiny.networks("sdxl").items():
            with init_empty_weights():
                config = own.config
                module = type(own).from_config(config) if hasattr(own, "from_config") else type(own)(config)
            with contextlib.suppress(AttributeError):
                assert next(module.parameters()).is_meta
            single_file.fill(module, reader.part(name), "fp16", family="sdxl")
            state = tiny.state(module)
            assert state.keys() == tiny.state(own).keys()
            assert all(torch.equal(state[key], value.half()) for key, value in tiny.state(own).items())


def test_t5_is_filled_with_its_shared_table(tmp_path: Path) -> None:
    from accelerate import init_empty_weights
    from transformers import T5EncoderModel

    source = tiny.save(tmp_path / "sd3.safetensors", "sd3")
    with init_empty_weights():
        module = T5EncoderModel(tiny.networks("sd3")["text_encoder_3"].config)
    with single_file.open_file(source) as reader:
        single_file.fill(module, reader.part("text_encoder_3"))
    assert module.encoder.embed_tokens.weight is module.shared.weight
    assert not any(value.is_meta for value in module.state_dict().values())


def test_networks_that_are_not_whole_are_refused_and_modules_stay(sd1: Path, tmp_path: Path) -> None:
    loaded = load_file(sd1)
    prefix = "model.diffusion_model.middle_block.0.in_layers"
    del loaded[f"{prefix}.0.weight"], loaded[f"{prefix}.0.bias"]
    loaded[f"{prefix}.2.bias"] = torch.ones(7)
    save_file(loaded, tmp_path / "broken.safetensors")
    module = tiny.unet("sd1")
    before = module.conv_in.weight.clone()
    with single_file.open_file(tmp_path / "broken.safetensors") as reader:
        with pytest.raises(
            CheckpointError, match=r"the unet of sd1 is no UNet2DConditionModel: 3 tensors"
        ) as error:
            single_file.fill(module, reader.part("unet"), family="sd1")
    for said in ("norm1.weight is missing", "norm1.bias is missing", "conv1.bias is (7,) and not (64,)"):
        assert said in str(error.value)
    assert torch.equal(module.conv_in.weight, before)
    with pytest.raises(CheckpointError, match="3 tensors do not fit"):
        convert(tmp_path / "broken.safetensors", tmp_path / "model", Options())
