"""sRGB to CIELAB, in which equal distances look about equally different.

sRGB is IEC 61966-2-1 (1999); CIELAB is CIE 15:2018 (doi 10.25039/TR.015.2018), section 8.2.1, with the exact
constants 216 / 24389 and 24389 / 27. The white is that of sRGB, D65: the sum of the matrix's rows, so that
every grey has a = b = 0.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError

# IEC 61966-2-1: linear sRGB to CIE XYZ, in units of a luminance of 1.
_TO_XYZ: Final = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE: Final = _TO_XYZ.sum(axis=1)
_EPSILON: Final = 216 / 24389
_KAPPA: Final = 24389 / 27


def srgb_to_lab(colours: NDArray[Any]) -> NDArray[np.float64]:
    """CIELAB of sRGB colours.

    Args:
        colours: (..., 3), 0 to 255, whole or not.

    Returns:
        (..., 3): L from 0 to 100, a and b from about -108 to 99.

    Raises:
        UsageError: no three components, or out of range.
    """
    encoded = np.asarray(colours, np.float64) / 255
    if not encoded.shape or encoded.shape[-1] != 3 or not ((encoded >= 0) & (encoded <= 1)).all():
        raise UsageError(f"colours of shape {encoded.shape}: give three components of 0 to 255 each")
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    relative = linear @ _TO_XYZ.T / _WHITE
    root = np.where(relative > _EPSILON, np.cbrt(relative), (_KAPPA * relative + 16) / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
