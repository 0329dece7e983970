"""The KL autoencoder of Stable Diffusion 1, 2, XL and 3: CompVis' names and diffusers'.

The decoder's levels are counted from the picture in CompVis' code and from the latents in diffusers. The
attention of the middle is convolutions of one pixel there and matrices here.
"""

from __future__ import annotations

from collections.abc import Collection

from fewstep.checkpoint.keymaps.moves import KeyMap, Move, numbers

PREFIX = "first_stage_model."

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_RESNET = {"norm1.": "norm1.", "conv1.": "conv1.", "norm2.": "norm2.", "conv2.": "conv2."} | {
    "nin_shortcut.": "conv_shortcut."
}
_OLD_DIFFUSERS = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_original(names: Collection[str]) -> tuple[int, int]:
    """(levels, ResNet layers of an encoder level) of an autoencoder in CompVis' names."""
    return _structure(names, r"encoder\.down\.(\d+)\.", r"encoder\.down\.0\.block\.(\d+)\.")


def from_diffusers(names: Collection[str]) -> tuple[int, int]:
    """(levels, ResNet layers of an encoder level) of an autoencoder in diffusers' names."""
    return _structure(names, r"encoder\.down_blocks\.(\d+)\.", r"encoder\.down_blocks\.0\.resnets\.(\d+)\.")


def keymap(levels: int, layers: int) -> KeyMap:
    """The map of an autoencoder; the discriminator of its training and averages are dropped."""
    moves = [Move("quant_conv.", "quant_conv."), Move("post_quant_conv.", "post_quant_conv.")]
    for side in ("encoder", "decoder"):
        moves += [
            Move(f"{side}.conv_in.", f"{side}.conv_in."),
            Move(f"{side}.norm_out.", f"{side}.conv_norm_out."),
            Move(f"{side}.conv_out.", f"{side}.conv_out."),
            Move(f"{side}.mid.attn_1.norm.", f"{side}.mid_block.attentions.0.group_norm."),
        ]
        for original, diffusers in _ATTENTION.items():
            a, b = f"{side}.mid.attn_1.{original}", f"{side}.mid_block.attentions.0.{diffusers}"
            moves += [Move(f"{a}.weight", f"{b}.weight", "conv"), Move(f"{a}.bias", f"{b}.bias")]
        for number in (1, 2):
            moves += _resnet(f"{side}.mid.block_{number}.", f"{side}.mid_block.resnets.{number - 1}.")
    for i in range(levels):
        up = levels - 1 - i
        for j in range(layers):
            moves += _resnet(f"encoder.down.{i}.block.{j}.", f"encoder.down_blocks.{i}.resnets.{j}.")
        for j in range(layers + 1):
            moves += _resnet(f"decoder.up.{up}.block.{j}.", f"decoder.up_blocks.{i}.resnets.{j}.")
        if i < levels - 1:
            moves.append(
                Move(f"encoder.down.{i}.downsample.conv.", f"encoder.down_blocks.{i}.downsamplers.0.conv.")
            )
            moves.append(Move(f"decoder.up.{up}.upsample.conv.", f"decoder.up_blocks.{i}.upsamplers.0.conv."))
    return KeyMap(moves, drop=_of_training)


def diffusers_map(levels: int, layers: int) -> KeyMap:
    """Diffusers' names to themselves; those of its attention before version 0.18 to today's."""
    return keymap(levels, layers).of_diffusers(alias=_renamed)


def _of_training(name: str) -> bool:
    return name.startswith(("loss.", "model_ema."))


def _renamed(name: str) -> str:
    parts = name.split(".")
    if len(parts) > 2 and "attentions" in parts and parts[-2] in _OLD_DIFFUSERS:
        parts[-2] = _OLD_DIFFUSERS[parts[-2]]
    return ".".join(parts)


def _resnet(original: str, diffusers: str) -> list[Move]:
    return [Move(original + a, diffusers + b) for a, b in _RESNET.items()]


def _structure(names: Collection[str], level: str, layer: str) -> tuple[int, int]:
    levels, layers = numbers(names, level), numbers(names, layer)
    return 1 + max(levels, default=-1), 1 + max(layers, default=-1)
