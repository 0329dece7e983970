"""Text encoders: CLIP as transformers names it, OpenCLIP's own names, and T5.

Published folders name CLIP's tensors ``text_model.…``. transformers 5 writes ``CLIPTextModel`` without that
word and reads both; here the name with it is used, which every version reads.
"""

from __future__ import annotations

from collections.abc import Collection

from fewstep.checkpoint.keymaps.moves import KeyMap, Move, numbers

_LAYER = r"transformer\.resblocks\.(\d+)\."
_OF_LAYER = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
    "attn.out_proj.": "self_attn.out_proj.",
}
_USED_LAYERS = 23
"""Stable Diffusion 2 uses the last layer but one of 24; transformers' form of it has 23."""


def clip(*, projection: bool) -> KeyMap:
    """CLIP in transformers' names.

    Dropped: ``position_ids`` (the numbers 0 to 76) and ``logit_scale`` (CLIP's training); without
    ``projection`` also ``text_projection``, which the pipeline does not use.
    """
    moves = [Move("text_model.", "text_model.")]
    dropped = {"logit_scale", "text_model.embeddings.position_ids"}
    if projection:
        moves.append(Move("text_projection.", "text_projection."))
    else:
        dropped.add("text_projection.weight")
    return KeyMap(moves, drop=lambda name: _with_text_model(name) in dropped, alias=_with_text_model)


def openclip(layers: int, *, projection: bool) -> KeyMap:
    """OpenCLIP's names of a text encoder.

    Dropped: ``logit_scale`` and ``attn_mask``; without ``projection`` (Stable Diffusion 2) also
    ``text_projection`` and the 24th layer, whose output is not used.
    """
    moves = [
        Move("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        Move("token_embedding.", "text_model.embeddings.token_embedding."),
        Move("ln_final.", "text_model.final_layer_norm."),
    ]
    if projection:
        moves.append(Move("text_projection", "text_projection.weight", "transposed"))
    for i in range(layers):
        block, layer = f"transformer.resblocks.{i}.", f"text_model.encoder.layers.{i}."
        moves += [Move(block + a, layer + b) for a, b in _OF_LAYER.items()]
        for kind in ("weight", "bias"):
            parts = tuple(f"{layer}self_attn.{part}_proj.{kind}" for part in "qkv")
            moves.append(Move(f"{block}attn.in_proj_{kind}", parts, "fused"))

    def drop(name: str) -> bool:
        if name in ("logit_scale", "attn_mask"):
            return True
        unused = numbers([name], _LAYER) >= {_USED_LAYERS}
        return not projection and (name == "text_projection" or unused)

    return KeyMap(moves, drop)


def openclip_layers(names: Collection[str]) -> int:
    """How many layers a text encoder in OpenCLIP's names has."""
    return 1 + max(numbers(names, _LAYER), default=-1)


def clip_layers(names: Collection[str]) -> int:
    """How many layers a text encoder in transformers' names has."""
    return 1 + max(numbers(names, r"text_model\.encoder\.layers\.(\d+)\."), default=-1)


def t5() -> KeyMap:
    """T5's encoder in transformers' names; ``embed_tokens`` is ``shared`` once more and is dropped."""
    moves = [Move("shared.", "shared."), Move("encoder.", "encoder.")]
    return KeyMap(moves, drop=lambda name: name in ("encoder.embed_tokens.weight", "logit_scale"))


def _with_text_model(name: str) -> str:
    bare = name.startswith(("embeddings.", "encoder.", "final_layer_norm."))
    return f"text_model.{name}" if bare else name
