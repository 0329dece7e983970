"""The transformer of Stable Diffusion 3 and 3.5 (MMDiT): Stability's names and diffusers'.

Stability's last adaptive norms give (shift, scale), diffusers' ``AdaLayerNormContinuous`` takes (scale,
shift). The last block's text side is only attended to: it has such a norm and neither projection nor MLP.
"""

from __future__ import annotations

from collections.abc import Collection

from fewstep.checkpoint.keymaps.moves import Change, KeyMap, Move, numbers

PREFIX = "model.diffusion_model."

_FIXED = {
    "x_embedder.proj.": "pos_embed.proj.",
    "t_embedder.mlp.0.": "time_text_embed.timestep_embedder.linear_1.",
    "t_embedder.mlp.2.": "time_text_embed.timestep_embedder.linear_2.",
    "y_embedder.mlp.0.": "time_text_embed.text_embedder.linear_1.",
    "y_embedder.mlp.2.": "time_text_embed.text_embedder.linear_2.",
    "context_embedder.": "context_embedder.",
    "final_layer.linear.": "proj_out.",
}
_OF_BLOCK = {
    "x_block.attn.proj.": "attn.to_out.0.",
    "x_block.attn.ln_q.": "attn.norm_q.",
    "x_block.attn.ln_k.": "attn.norm_k.",
    "x_block.attn2.proj.": "attn2.to_out.0.",
    "x_block.attn2.ln_q.": "attn2.norm_q.",
    "x_block.attn2.ln_k.": "attn2.norm_k.",
    "x_block.adaLN_modulation.1.": "norm1.linear.",
    "x_block.mlp.fc1.": "ff.net.0.proj.",
    "x_block.mlp.fc2.": "ff.net.2.",
    "context_block.attn.proj.": "attn.to_add_out.",
    "context_block.attn.ln_q.": "attn.norm_added_q.",
    "context_block.attn.ln_k.": "attn.norm_added_k.",
    "context_block.mlp.fc1.": "ff_context.net.0.proj.",
    "context_block.mlp.fc2.": "ff_context.net.2.",
}
_FUSED = {
    "x_block.attn.qkv.": ("attn.to_q.", "attn.to_k.", "attn.to_v."),
    "x_block.attn2.qkv.": ("attn2.to_q.", "attn2.to_k.", "attn2.to_v."),
    "context_block.attn.qkv.": ("attn.add_q_proj.", "attn.add_k_proj.", "attn.add_v_proj."),
}


def layers_of(names: Collection[str]) -> int:
    """How many blocks a transformer has, in either naming."""
    return 1 + max(numbers(names, r"(?:joint_blocks|transformer_blocks)\.(\d+)\."), default=-1)


def keymap(layers: int) -> KeyMap:
    """The map of a transformer with so many blocks."""
    moves = [Move(original, diffusers) for original, diffusers in _FIXED.items()]
    moves.append(Move("pos_embed", "pos_embed.pos_embed"))
    moves += _norm("final_layer.adaLN_modulation.1.", "norm_out.linear.", "swapped")
    for i in range(layers):
        block, layer = f"joint_blocks.{i}.", f"transformer_blocks.{i}."
        moves += [Move(block + a, layer + b) for a, b in _OF_BLOCK.items()]
        for fused, parts in _FUSED.items():
            for kind in ("weight", "bias"):
                targets = tuple(f"{layer}{part}{kind}" for part in parts)
                moves.append(Move(f"{block}{fused}{kind}", targets, "fused"))
        moves += _norm(
            f"{block}context_block.adaLN_modulation.1.",
            f"{layer}norm1_context.linear.",
            "swapped" if i == layers - 1 else "same",
        )
    return KeyMap(moves)


def _norm(original: str, diffusers: str, change: Change) -> list[Move]:
    return [Move(original + kind, diffusers + kind, change) for kind in ("weight", "bias")]
