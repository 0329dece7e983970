"""Embeddings of textual inversion: the picture of diffusers with the same file, and the chunks of A1111."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewstep.checkpoint.pickle_compat import unpickle
from fewstep.engine.embeddings import EmbeddingCatalogue
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import UsageError

sys.path.append(str(Path(__file__).parent))
from families_builder import Case, build
from families_drawing import SIDE, STEPS, draw_ours, draw_theirs

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

WIDTHS = {"sd1": (16,), "sd2": (16,), "sdxl": (16, 24), "sd3": (16, 24)}
WORD = "<toy>"
PROMPT = f"A red {WORD}, on a blue table"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = build(Case(family, "txt2img"), tmp_path_factory.mktemp(family) / "model")
        return made[family]

    return folder


def vectors(width, count=3, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def engine(folder, *given):
    return Engine(folder, "torch", threads=1, learned=EmbeddingCatalogue(given=given))


def encoded(drawing, prompt, **given):
    """Conditions of (negative prompt, prompt), and the warnings."""
    request = resolve(drawing.info, prompt=prompt, **given)
    found, said = drawing._embed(request)
    return found.conditions, [*request.warnings, *said]


def write(path, family, count=3):
    """A file as it is published for a family."""
    widths = WIDTHS[family]
    if len(widths) == 1:
        save_file({WORD: vectors(widths[0], count)}, path)
    else:
        save_file({f"clip_{'lg'[i]}": vectors(width, count, i) for i, width in enumerate(widths)}, path)
    return path


def learned_by_diffusers(path, family):
    from safetensors.torch import load_file

    def change(pipe):
        if len(WIDTHS[family]) == 1:
            pipe.load_textual_inversion(str(path))
            return
        tables = load_file(path)
        for key, end in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = getattr(pipe, f"text_encoder{end}"), getattr(pipe, f"tokenizer{end}")
            pipe.load_textual_inversion(tables[key], token=WORD, text_encoder=encoder, tokenizer=tokenizer)

    return change


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_picture_is_that_of_diffusers(folders, family, tmp_path):
    case = Case(family, "txt2img")
    path = write(tmp_path / f"{WORD}.safetensors", family)
    texts = {"prompt": PROMPT, "negative_prompt": f"green {WORD}"}
    theirs = draw_theirs(folders(family), case, change=learned_by_diffusers(path, family), **texts)
    drawing = engine(folders(family), path)
    seen = []
    decode = drawing.backend.decode
    drawing.backend.decode = lambda latents: seen.append(latents.copy()) or decode(latents)
    from fewstep.diffusion.scheduler_reading import from_scheduler_config
    from fewstep.models import families

    config = families.scheduler_of(folders(family), families.read_index(folders(family)))
    solver = from_scheduler_config(config)["solver"]
    request = resolve(
        drawing.info, num_inference_steps=STEPS, guidance_scale=2.0, seed=7, width=SIDE, height=SIDE,
        solver=solver, **texts,
    )  # fmt: skip
    result = drawing.generate(request)
    assert np.abs(seen[0] - theirs).max() < 1e-4
    assert result.record["embeddings"] == [{"name": WORD, "hash": request.embeddings[0].hash}]
    plain = draw_ours(folders(family), case, **texts)
    assert np.abs(plain - theirs).max() > 0.05


def by_hand(drawing, ids, at, table, which=0):
    """What an encoder of transformers makes of ids with these vectors at a place."""
    encoder = drawing.backend._text.encoders[which]
    inner = encoder.get_input_embeddings()

    def put(module, inputs, output):
        return torch.cat([output[:, :at], table[None], output[:, at + len(table) :]], dim=1)

    handle = inner.register_forward_hook(put)
    try:
        with torch.no_grad():
            return encoder(torch.tensor([ids])).last_hidden_state[0].numpy()
    finally:
        handle.remove()


def test_weights_and_chunks(folders, tmp_path):
    """An embedding that does not fit into the first chunk moves whole, and its weight is on every vector."""
    drawing = engine(folders("sd1"), write(tmp_path / "toy.safetensors", "sd1", count=4))
    tokens = drawing._tokenizers()[0]
    word = tokens._content("a")
    assert len(word) == 1
    prompt = "a " * 73 + "(toy:1.5) b"
    found, said = encoded(drawing, prompt, emphasis="no_norm")
    assert said == [] and found.tokens.shape[1] == 2 * 77
    spec = tokens.spec
    ids = [spec.bos, 0, 0, 0, 0, *tokens._content("b"), *[spec.eos] * 71]
    weights = np.ones((77, 1))
    weights[1:5] = 1.5
    expected = by_hand(drawing, ids, 1, vectors(16, 4)) * weights
    np.testing.assert_allclose(found.tokens[1, 77:], expected, atol=2e-6)
    first = [spec.bos, *word * 73, *[spec.eos] * 3]
    with torch.no_grad():
        plain = drawing.backend._text.encoders[0](torch.tensor([first])).last_hidden_state[0].numpy()
    np.testing.assert_allclose(found.tokens[1, :77], plain, atol=2e-6)


def test_only_its_name_is_replaced_and_nothing_is_left_behind(folders, tmp_path):
    drawing = engine(folders("sdxl"), write(tmp_path / "toy.safetensors", "sdxl"))
    before, said = encoded(drawing, "a red apple")
    assert said == ["embedding 'toy.safetensors' is not used: no prompt has its name, toy"]
    with_it, said = encoded(drawing, "a red toy")
    assert said == []
    word, _ = encoded(Engine(folders("sdxl"), "torch", threads=1), "a red toy")
    assert np.abs(with_it.tokens - word.tokens).max() > 0.1
    assert np.abs(with_it.pooled - word.pooled).max() > 0.01
    again, _ = encoded(drawing, "a red apple")
    np.testing.assert_array_equal(before.tokens, again.tokens)
    np.testing.assert_array_equal(before.pooled, again.pooled)


def test_the_t5_of_stable_diffusion_3_reads_the_name(folders, tmp_path):
    drawing = engine(folders("sd3"), write(tmp_path / "toy.safetensors", "sd3"))
    found, _ = encoded(drawing, "a red toy")
    word, _ = encoded(Engine(folders("sd3"), "torch", threads=1), "a red toy")
    moved = np.abs(found.tokens[1] - word.tokens[1]).max(-1)
    assert moved[:77].max() > 0.1 and moved[77:].max() == 0.0


def test_another_width_is_refused_or_said(folders, tmp_path):
    write(tmp_path / "toy.safetensors", "sdxl")
    path = tmp_path / "small.safetensors"
    save_file({"emb_params": vectors(12)}, path)
    drawing = engine(folders("sd1"), path)
    with pytest.raises(UsageError, match="its vectors have 12 numbers, and model model takes 16"):
        encoded(drawing, "a small apple")
    drawing = Engine(folders("sdxl"), "torch", threads=1, learned=EmbeddingCatalogue([tmp_path]))
    found, (said,) = encoded(drawing, "a small apple")
    assert said.startswith("embedding 'small' is not used, its name is read as text: ")
    assert "have 12 numbers" in said and "takes 16 (clip_l) and 24 (clip_g)" in said
    word, _ = encoded(Engine(folders("sdxl"), "torch", threads=1), "a small apple")
    np.testing.assert_array_equal(found.tokens, word.tokens)


def test_a_negative_prompt_without_effect_names_nothing(folders, tmp_path):
    drawing = engine(folders("sd1"), write(tmp_path / "toy.safetensors", "sd1"))
    request = resolve(drawing.info, prompt="a", negative_prompt="toy", guidance_scale=1.0)
    assert request.embeddings == ()
    request = resolve(drawing.info, prompt="a", negative_prompt="toy", guidance_scale=2.0)
    assert [one.name for one in request.embeddings] == ["toy"]


def test_an_embedding_of_the_first_tools_can_be_converted(tmp_path):
    """They saved a ParameterDict, which torch's restricted loader does not know."""
    table = vectors(16)
    kept = torch.nn.ParameterDict({"*": torch.nn.Parameter(table)})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": kept}, tmp_path / "old.pt")
    found, _ = unpickle(tmp_path / "old.pt")
    assert torch.equal(found["string_to_param.*"], table)
