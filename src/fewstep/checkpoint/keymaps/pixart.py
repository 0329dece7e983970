"""The transformer of PixArt-alpha and PixArt-Sigma: the authors' names (their ``.pth`` files) and diffusers'.

There is no single file of a whole PixArt pipeline: T5 and the autoencoder are separate files. Dropped are
``pos_embed``, which diffusers computes from the size, and ``y_embedder.y_embedding``, the empty caption of
the authors' own sampler, in whose place diffusers encodes an empty prompt.
"""

from __future__ import annotations

from collections.abc import Collection

from fewstep.checkpoint.keymaps.moves import KeyMap, Move, numbers

POSITIONS = "pos_embed"
EMPTY_CAPTION = "y_embedder.y_embedding"

_FIXED = {
    "x_embedder.proj.": "pos_embed.proj.",
    "t_embedder.mlp.0.": "adaln_single.emb.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "adaln_single.emb.timestep_embedder.linear_2.",
    "csize_embedder.mlp.0.": "adaln_single.emb.resolution_embedder.linear_1.",
    "csize_embedder.mlp.2.": "adaln_single.emb.resolution_embedder.linear_2.",
    "ar_embedder.mlp.0.": "adaln_single.emb.aspect_ratio_embedder.linear_1.",
    "ar_embedder.mlp.2.": "adaln_single.emb.aspect_ratio_embedder.linear_2.",
    "t_block.1.": "adaln_single.linear.",
    "y_embedder.y_proj.fc1.": "caption_projection.linear_1.",
    "y_embedder.y_proj.fc2.": "caption_projection.linear_2.",
    "final_layer.linear.": "proj_out.",
    "final_layer.scale_shift_table": "scale_shift_table",
}
_OF_BLOCK = {
    "scale_shift_table": "scale_shift_table",
    "attn.proj.": "attn1.to_out.0.",
    "cross_attn.q_linear.": "attn2.to_q.",
    "cross_attn.proj.": "attn2.to_out.0.",
    "mlp.fc1.": "ff.net.0.proj.",
    "mlp.fc2.": "ff.net.2.",
}
_FUSED = {
    "attn.qkv.": ("attn1.to_q.", "attn1.to_k.", "attn1.to_v."),
    "cross_attn.kv_linear.": ("attn2.to_k.", "attn2.to_v."),
}


def layers_of(names: Collection[str]) -> int:
    """How many blocks a transformer has, in either naming."""
    return 1 + max(numbers(names, r"(?:blocks|transformer_blocks)\.(\d+)\."), default=-1)


def keymap(layers: int) -> KeyMap:
    """The map of a transformer with so many blocks."""
    moves = [Move(original, diffusers) for original, diffusers in _FIXED.items()]
    for i in range(layers):
        block, layer = f"blocks.{i}.", f"transformer_blocks.{i}."
        moves += [Move(block + a, layer + b) for a, b in _OF_BLOCK.items()]
        for fused, parts in _FUSED.items():
            for kind in ("weight", "bias"):
                targets = tuple(f"{layer}{part}{kind}" for part in parts)
                moves.append(Move(f"{block}{fused}{kind}", targets, "fused"))
    return KeyMap(moves, drop=lambda name: name in (POSITIONS, EMPTY_CAPTION))
