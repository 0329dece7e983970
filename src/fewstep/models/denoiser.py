"""Networks as distillation calls them: ``module(x_t, model_time, conditions) -> raw output``.

`ConditionedUNet` adapts a diffusers U-Net; `fewstep.models.mlp` has a network for points in the plane. A
data-
parallel wrapper may stand around either, because everything goes through ``forward``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import RecipeError
from fewstep.models.conditions import Conditions


class ConditionedUNet(nn.Module):
    """A ``UNet2DConditionModel`` that takes its conditions as one bundle.

    Args:
        network: the U-Net; its parameters are this module's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, model_time: Tensor, conditions: Conditions) -> Tensor:
        """Raw output (B, C, h, w) for x_t (B, C, h, w) and the network's times (B,)."""
        x = x_t if conditions.concat is None else torch.cat([x_t, conditions.concat], dim=1)
        added: dict[str, Tensor] = {}
        if conditions.pooled is not None:
            added["text_embeds"] = conditions.pooled
        if conditions.time_ids is not None:
            added["time_ids"] = conditions.time_ids
        guidance = conditions.guidance
        output: Tensor = self.network(
            x,
            model_time,
            encoder_hidden_states=conditions.text,
            class_labels=conditions.classes,
            timestep_cond=None if guidance is None else guidance_embedding(guidance, self._guidance_width()),
            added_cond_kwargs=added or None,
            down_block_additional_residuals=conditions.residuals or None,
            mid_block_additional_residual=conditions.mid_residual,
            # A list of its own for every call: the U-Net takes it apart.
            down_intrablock_additional_residuals=list(conditions.adapter_residuals) or None,
            return_dict=False,
        )[0]
        return output

    def _guidance_width(self) -> int:
        config: Any = self.network.config
        return int(config.time_cond_proj_dim)


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Sines and cosines of 1000 (w - 1), as LCM gives its network the guidance scale (Luo 2023, 2310.04378).

    Args:
        scale: (B,), guidance scales; 1 is no guidance.
        width: of the embedding, even.

    Returns:
        (B, width).
    """
    half = width // 2
    rate = torch.exp(
        torch.arange(half, device=scale.device) * (-torch.log(torch.tensor(10_000.0)) / (half - 1))
    )
    angle = (scale - 1.0)[:, None] * 1000.0 * rate[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Reached(Exception):
    """Ends a forward pass at the tapped module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def tapped(module: nn.Module, tap: str) -> nn.Module:
    """The submodule called ``tap``.

    Raises:
        RecipeError: there is none; the message names the outermost ones.
    """
    try:
        return module.get_submodule(tap)
    except AttributeError:
        names = ", ".join(name for name, _ in module.named_children())
        raise RecipeError(
            f"discriminator tap {tap!r}: the network has no such part; it has {names}"
        ) from None


def features(module: nn.Module, tap: str, x_t: Tensor, model_time: Tensor, conditions: Conditions) -> Tensor:
    """What the part ``tap`` of a denoiser gives for an input; what comes after it is not computed.

    Args:
        module: a `ConditionedUNet` or another module called like one.
        tap: name of a part of ``module.network`` (or of ``module`` itself if it wraps nothing).
        x_t: (B, ...).
        model_time: (B,).
        conditions: of the B images.

    Returns:
        The part's output, with the graph that leads to it.

    Raises:
        RecipeError: no such part, or the pass did not reach it.
    """
    inner = getattr(module, "network", module)

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _Reached(output[0] if isinstance(output, tuple) else output)

    handle = tapped(inner, tap).register_forward_hook(stop)
    try:
        module(x_t, model_time, conditions)
    except _Reached as reached:
        # A ControlNet's part in the middle is added by the U-Net itself, behind the block.
        residual = conditions.mid_residual if tap == "mid_block" else None
        return reached.value if residual is None else reached.value + residual
    finally:
        handle.remove()
    raise RecipeError(f"discriminator tap {tap!r}: this part is not used in a forward pass; use mid_block")


def default_tap(module: nn.Module) -> str:
    """The deepest part of a denoiser: a U-Net's middle block, a toy's encoder.

    Raises:
        RecipeError: it has neither.
    """
    inner = getattr(module, "network", module)
    for name in ("mid_block", "encoder"):
        if getattr(inner, name, None) is not None:
            return name
    names = ", ".join(name for name, _ in inner.named_children())
    raise RecipeError(f"discriminator tap: none given, and the network has no middle block; it has {names}")


def cut(module: nn.Module, tap: str, x_t: Tensor, conditions: Conditions) -> None:
    """Take away what a pass up to ``tap`` never reaches, for copies that only look; in place.

    It would only take memory, and data-parallel training would wait for gradients that never come.

    Args:
        module: as for `features`, its parameters with gradients on.
        tap: as for `features`.
        x_t: (1, ...), an input to try.
        conditions: of that input.
    """
    inner: nn.Module = getattr(module, "network", module)
    parameters = list(inner.parameters())
    seen = features(module, tap, x_t, torch.zeros(1, device=x_t.device), conditions)
    gradients = torch.autograd.grad(seen.sum(), parameters, allow_unused=True)
    _drop(inner, {p for p, g in zip(parameters, gradients, strict=True) if g is not None})


def _drop(module: nn.Module, reached: set[nn.Parameter]) -> None:
    for name, child in module.named_children():
        own = set(child.parameters())
        if own and not own & reached and not isinstance(child, nn.ModuleList):
            setattr(module, name, nn.Identity())
        else:
            _drop(child, reached)
