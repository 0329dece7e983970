"""Naming a picture: pure functions of tensors returning one loss per sample.

Cross-entropy over fixed candidates, not over the batch's own captions as in CLIP (Radford et al. 2021, arXiv
2103.00020, figure 3): a sample's loss does not depend on what else is in the batch, and near-twins are always
among the candidates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def cross_entropy(logits: torch.Tensor, wanted: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Cross-entropy with label smoothing (Szegedy et al. 2015, arXiv 1512.00567, section 7).

    The target is ``1 - smoothing`` on the wanted candidate and ``smoothing / K`` on each of all K, so that
    the smallest possible loss is the target's entropy.

    Args:
        logits: (B, K).
        wanted: int64 (B,), each in [0, K).
        smoothing: 0 for none, under 1.

    Returns:
        (B,), at least 0.
    """
    log_share = F.log_softmax(logits.float(), dim=-1)
    named = -log_share.gather(1, wanted[:, None])[:, 0]
    if not smoothing:
        return named
    return (1.0 - smoothing) * named - smoothing * log_share.mean(-1)


def first(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Whether the wanted candidate ranks first, 1 or 0, for logging: logits (B, K), wanted (B,) -> (B,)."""
    return (logits.argmax(-1) == wanted).float()
