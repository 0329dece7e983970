"""New, randomly initialised networks from plain diffusers configurations.

The configuration is the dictionary that the diffusers class itself takes and saves as ``config.json``, so
a recipe and a saved model speak the same language. Unknown keys are refused here: diffusers would only
warn.
"""

from __future__ import annotations

import difflib
import inspect
from typing import TYPE_CHECKING, Any

from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


def autoencoder(config: dict[str, Any]) -> AutoencoderKL:
    """An ``AutoencoderKL`` from its configuration.

    Raises:
        RecipeError: a key that the class does not know.
    """
    from diffusers import AutoencoderKL

    return AutoencoderKL(**_known(config, AutoencoderKL))


def denoiser(config: dict[str, Any]) -> UNet2DConditionModel:
    """A ``UNet2DConditionModel`` from its configuration.

    Raises:
        RecipeError: a key that the class does not know.
    """
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**_known(config, UNet2DConditionModel))


def _known(config: dict[str, Any], cls: type) -> dict[str, Any]:
    allowed = list(inspect.signature(cls).parameters)
    for key in config:
        if key not in allowed:
            near = difflib.get_close_matches(key, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"see the arguments of diffusers.{cls.__name__}"
            raise RecipeError(f"model.{key}: {cls.__name__} has no such setting; {hint}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
