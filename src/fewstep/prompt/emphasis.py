"""Weights on what the text encoder made of each token.

AUTOMATIC1111's web UI 1.10 (``modules/sd_emphasis.py``) does so, per chunk and over the whole batch:

==========  =============================================================================================
original    each token's vector times its weight, then the whole tensor times (mean before / mean after)
no_norm     each token's vector times its weight; recommended there for SDXL
ignore      weights are read and not applied
none        brackets are text, so there are no weights
==========  =============================================================================================

We take the mean per row, so that an image does not depend on its neighbours in the batch, and do not rescale
where the mean is too near zero to divide by. ComfyUI interpolates between the empty prompt and the token
instead, and InvokeAI uses Compel: the same text gives three different pictures.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from fewstep.errors import UsageError
from fewstep.prompt.attention import EMPHASIS_MODES, EmphasisMode

# A mean below this share of the mean magnitude is the difference of almost equal sums: dividing by it would
# blow the whole text up or turn its sign.
MIN_RELATIVE_MEAN = 1e-3


def apply(tokens: Any, weights: Any, mode: EmphasisMode = "original") -> Any:
    """Weigh token vectors.

    Args:
        tokens: output of the text encoder, (B, L, D), a floating numpy array or torch tensor; one chunk a
            row. Of concatenated chunks the mean would be that of all, which is not what the web UI does.
        weights: (B, L), finite; an array of the same kind, a numpy array or nested sequences.
        mode: see above.

    Returns:
        Same shape, dtype and device; ``tokens`` itself, bit for bit, when no weight differs from 1.

    Raises:
        UsageError: the shapes do not fit, or the mode is not known.
    """
    if mode not in EMPHASIS_MODES:
        raise UsageError(f"emphasis {mode!r} is not known: give one of {', '.join(EMPHASIS_MODES)}")
    # See fewstep.diffusion.arrays.namespace: numpy 2 has the standard's names itself.
    xp = np if isinstance(tokens, np.ndarray) else array_api_compat.array_namespace(tokens)
    device = {} if isinstance(tokens, np.ndarray) else {"device": array_api_compat.device(tokens)}
    factors = xp.asarray(weights, dtype=xp.float32, **device)
    if tuple(factors.shape) != tuple(tokens.shape[:2]) or tokens.ndim != 3:
        raise UsageError(
            f"weights of shape {tuple(factors.shape)} do not fit tokens of shape {tuple(tokens.shape)}: "
            "give (B, L) for (B, L, D)"
        )
    if mode in ("ignore", "none") or bool(xp.all(factors == 1.0)):
        return tokens
    # Half precision would lose the mean of a hundred thousand values.
    wide = tokens if tokens.dtype == xp.float64 else xp.astype(tokens, xp.float32)
    weighted = wide * xp.astype(factors, wide.dtype)[:, :, None]
    if mode == "original":
        weighted = weighted * _restoring(wide, weighted, xp)
    return xp.astype(weighted, tokens.dtype)


def _restoring(before: Any, after: Any, xp: Any) -> Any:
    """Mean before / mean after of each row, (B, 1, 1); 1 where either mean is too near zero."""
    axes = (1, 2)
    means = [xp.mean(each, axis=axes, keepdims=True) for each in (before, after)]
    sizes = [xp.mean(xp.abs(each), axis=axes, keepdims=True) for each in (before, after)]
    sound = (xp.abs(means[0]) > MIN_RELATIVE_MEAN * sizes[0]) & (
        xp.abs(means[1]) > MIN_RELATIVE_MEAN * sizes[1]
    )
    one = xp.ones_like(means[1])
    return xp.where(sound, means[0] / xp.where(sound, means[1], one), one)
