"""Which way of computing attention suits the processor."""

from __future__ import annotations

from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import nn


def unfused(module: nn.Module) -> int:
    """Let the attention layers of diffusers compute softmax(QK')V as two products; in place.

    torch's fused attention (2.13, CPU) is slow backwards in bfloat16: the U-Net of emoji-128 forward and
    back takes 0.75 of the time without it (``benchmarks/attention.py``, Intel Xeon with AMX). The two
    products keep the scores in memory, (B, heads, positions, positions), which the fused form avoids: this is
    for training at small sizes on CPUs.

    Args:
        module: searched through; layers with a processor other than diffusers' usual one stay as they are.

    Returns:
        How many layers changed.
    """
    changed = 0
    for part in module.modules():
        if isinstance(part, Attention) and type(part.processor) is AttnProcessor2_0:
            part.set_processor(AttnProcessor())
            changed += 1
    return changed
