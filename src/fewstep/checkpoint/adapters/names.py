"""Names of layers in adapter files: kohya's underscores, CompVis's blocks, diffusers' module paths.

kohya writes ``_`` for ``.``, so ``a_b`` may be ``a.b`` or ``a_b``. Where the names of the base are known
they decide; otherwise a list of the words with underscores in U-Nets, transformers and CLIP of the Stable
Diffusion families does. Block numbers of CompVis's U-Net assume two layers a block, as that family has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from fewstep.checkpoint.keymaps import unet

PREFIXES = {
    "lora_unet": "unet",
    "lora_transformer": "transformer",
    "lora_te": "text_encoder",
    "lora_te1": "text_encoder",
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lycoris": "unet",
}
"""kohya's prefix of a tensor name -> the part of the pipeline (``lycoris`` is LyCORIS used by itself)."""

DENOISERS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")

_WORDS = frozenset(
    # U-Nets
    "down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out proj_in proj_out conv_in "
    "conv_out conv_norm_out conv_shortcut time_emb_proj time_embedding add_embedding class_embedding "
    "linear_1 linear_2 cond_proj group_norm encoder_hid_proj "
    # transformers
    "single_transformer_blocks add_q_proj add_k_proj add_v_proj to_add_out norm_q norm_k norm_added_q "
    "norm_added_k norm1_context ff_context pos_embed context_embedder time_text_embed timestep_embedder "
    "text_embedder norm_out "
    # CLIP
    "text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm "
    "token_embedding position_embedding text_projection "
    # U-Nets in CompVis's code
    "input_blocks middle_block output_blocks time_embed label_emb in_layers out_layers emb_layers "
    "skip_connection".split()
)
_LONGEST = max(word.count("_") for word in _WORDS) + 1

_COMPVIS = {
    "sd1": unet.keymap(unet.Structure(blocks=4, layers=2, attention=frozenset({1, 2, 3}))),
    "sdxl": unet.keymap(unet.Structure(blocks=4, layers=2, attention=frozenset({0, 1, 2, 3}))),
}  # what differs is the place of the first upsampler; SDXL has three blocks, attention in two
_CLIP = re.compile(r"(encoder\.layers\.|final_layer_norm$|embeddings\.(token|position)_embedding$)")


def shown(name: str) -> str:
    """A name from a file as a message may have it: quoted, escaped, not endless."""
    return ascii(name if len(name) <= 120 else f"{name[:117]}...")


def flat_names(names: Iterable[str]) -> dict[str, str | None]:
    """Underscored name -> module path, of a base's modules; None where two paths give one name.

    CLIP's layers stand there with and without ``text_model.``, which files have and newer versions of
    transformers do not; the path always has it.
    """
    found: dict[str, str | None] = {}
    for name in names:
        path = with_text_model(name)
        for spelling in {name, path}:
            flat = spelling.replace(".", "_")
            found[flat] = path if found.get(flat, path) == path else None
    return found


def from_kohya(stem: str, known: Mapping[str, str | None] | None = None) -> str:
    """Module path of a kohya stem such as ``input_blocks_4_1_proj_in`` or ``mid_block_resnets_0_conv1``.

    Args:
        stem: without the prefix and without the ending.
        known: of `flat_names`, when the base is known.

    Raises:
        ValueError: two layers of the base have that name, or it cannot be the name of a layer.
    """
    path = from_compvis(_dotted(stem)) or _dotted(stem)
    flat = path.replace(".", "_")
    if known is not None and flat in known:
        name = known[flat]
        if name is None:
            raise ValueError(f"two layers of the base are called {flat!r} in kohya's spelling")
        return name
    return path


def from_compvis(path: str) -> str | None:
    """Module path in diffusers of a U-Net's layer that is spelt as in CompVis's code; None if it is not."""
    found = (keymap.forward(f"{path}.") for keymap in _COMPVIS.values())
    return next((targets[0].removesuffix(".") for targets, _ in filter(None, found)), None)


def is_compvis(stem: str) -> bool:
    """Whether a kohya stem is spelt as in CompVis's code."""
    return all(stem.split("_")) and from_compvis(_dotted(stem)) is not None


def to_kohya(layer: str, *, compvis: Literal["sd1", "sdxl"] | None = None) -> str:
    """Stem of a module path.

    Args:
        layer: as in diffusers.
        compvis: spell a U-Net's layer as CompVis's code does, which is what trainers write for SDXL. The
            first upsampler stands elsewhere in SDXL than in Stable Diffusion 1 and 2, whose first up block
            has no attention.

    Raises:
        ValueError: it could not be read back, because the path has underscores of its own.
    """
    path: str | None = layer
    if compvis is not None:
        place = _COMPVIS[compvis].backward(f"{layer}.")
        path = None if place is None else place.original.removesuffix(".")
    if path is None or from_kohya(path.replace(".", "_")) != layer:
        raise ValueError(f"{layer!r} could not be read back")
    return path.replace(".", "_")


def with_text_model(layer: str) -> str:
    """A layer of CLIP's text encoder as files have it, under ``text_model.``; other names stay."""
    return f"text_model.{layer}" if _CLIP.match(layer) else layer


def without_text_model(layer: str) -> str:
    """The inverse of `with_text_model`."""
    return layer.removeprefix("text_model.")


def guess_part(layer: str) -> str:
    """The part of a pipeline that a path without a prefix belongs to, by how it begins."""
    if layer.startswith("text_model.") or with_text_model(layer) != layer:
        return "text_encoder"
    transformer = layer.startswith(("transformer_blocks.", "single_transformer_blocks."))
    return "transformer" if transformer else "unet"


def _dotted(stem: str) -> str:
    tokens, words, at = stem.split("_"), [], 0
    if not all(tokens):
        raise ValueError(f"{stem!r} cannot be a layer")
    while at < len(tokens):
        for length in range(_LONGEST, 0, -1):
            word = "_".join(tokens[at : at + length])
            if length == 1 or word in _WORDS:
                break
        words.append(word)
        at += word.count("_") + 1
    return ".".join(words)
