"""U-Nets of Stable Diffusion 1, 2 and XL: CompVis' names (``input_blocks``) and diffusers' (``down_blocks``).

An input block of CompVis is one ResNet layer with its attention, or one downsampler; diffusers counts blocks
of a resolution. With L layers a block, layer j of block i is input block 1 + (L+1) i + j, and output block
(L+1) i + j of L+1 layers each. An upsampler follows the attention of its output block: it is ``.2`` where
there is one and ``.1`` where there is none.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fewstep.checkpoint.keymaps.moves import KeyMap, Move, numbers

PREFIX = "model.diffusion_model."

_FIXED = {
    "time_embed.0.": "time_embedding.linear_1.",
    "time_embed.2.": "time_embedding.linear_2.",
    "label_emb.0.0.": "add_embedding.linear_1.",
    "label_emb.0.2.": "add_embedding.linear_2.",
    "input_blocks.0.0.": "conv_in.",
    "out.0.": "conv_norm_out.",
    "out.2.": "conv_out.",
}
_RESNET = {
    "in_layers.0.": "norm1.",
    "in_layers.2.": "conv1.",
    "out_layers.0.": "norm2.",
    "out_layers.3.": "conv2.",
    "emb_layers.1.": "time_emb_proj.",
    "skip_connection.": "conv_shortcut.",
}


@dataclass(frozen=True, slots=True)
class Structure:
    """What the numbers in the names depend on.

    Attributes:
        blocks: resolutions.
        layers: ResNet layers of a down block.
        attention: indices of the up blocks that have attention.
    """

    blocks: int
    layers: int
    attention: frozenset[int]


def from_original(names: Collection[str]) -> Structure:
    """The structure of a U-Net in CompVis' names."""
    inputs = numbers(names, r"input_blocks\.(\d+)\.")
    downsamplers = sorted(numbers(names, r"input_blocks\.(\d+)\.0\.op\."))
    layers = downsamplers[0] - 1 if downsamplers else max(inputs, default=1)
    blocks = len(downsamplers) + 1
    attention = {
        n // (layers + 1) for n in numbers(names, r"output_blocks\.(\d+)\.1\.(?:norm|transformer_blocks)\.")
    }
    return Structure(blocks, layers, frozenset(attention))


def from_diffusers(names: Collection[str]) -> Structure:
    """The structure of a U-Net in diffusers' names."""
    return Structure(
        blocks=len(numbers(names, r"down_blocks\.(\d+)\.")),
        layers=len(numbers(names, r"down_blocks\.0\.resnets\.(\d+)\.")),
        attention=frozenset(numbers(names, r"up_blocks\.(\d+)\.attentions\.")),
    )


def keymap(structure: Structure) -> KeyMap:
    """The map of a U-Net of this structure."""
    step = structure.layers + 1
    moves = [Move(original, diffusers) for original, diffusers in _FIXED.items()]
    moves += _resnet("middle_block.0.", "mid_block.resnets.0.")
    moves.append(Move("middle_block.1.", "mid_block.attentions.0."))
    moves += _resnet("middle_block.2.", "mid_block.resnets.1.")
    for i in range(structure.blocks):
        for j in range(structure.layers):
            n = 1 + step * i + j
            moves += _resnet(f"input_blocks.{n}.0.", f"down_blocks.{i}.resnets.{j}.")
            moves.append(Move(f"input_blocks.{n}.1.", f"down_blocks.{i}.attentions.{j}."))
        for j in range(step):
            n = step * i + j
            moves += _resnet(f"output_blocks.{n}.0.", f"up_blocks.{i}.resnets.{j}.")
            if i in structure.attention:
                moves.append(Move(f"output_blocks.{n}.1.", f"up_blocks.{i}.attentions.{j}."))
        if i < structure.blocks - 1:
            moves.append(
                Move(f"input_blocks.{step * (i + 1)}.0.op.", f"down_blocks.{i}.downsamplers.0.conv.")
            )
            place = 2 if i in structure.attention else 1
            last = step * i + structure.layers
            moves.append(Move(f"output_blocks.{last}.{place}.conv.", f"up_blocks.{i}.upsamplers.0.conv."))
    return KeyMap(moves)


def diffusers_map(structure: Structure) -> KeyMap:
    """Diffusers' names to themselves, and the guidance scale of LCM students, which CompVis' code has not."""
    name = "time_embedding.cond_proj."
    return keymap(structure).of_diffusers([Move(name, name)])


def _resnet(original: str, diffusers: str) -> list[Move]:
    return [Move(original + a, diffusers + b) for a, b in _RESNET.items()]
