"""Muon: momentum whose matrices are orthogonalised, with AdamW for everything that is no large matrix.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"
(kellerjordan.github.io/posts/muon); the scale of the update is that of Liu et al. 2025 (arXiv 2502.16982,
equation 4), so that one learning rate serves both halves. torch.optim.Muon takes two-dimensional parameters
only and orthogonalises in bfloat16, which CPUs without bfloat16 units compute many times slower than float32:
here convolutions are flattened to (out, in * height * width), matrices of one shape are orthogonalised
together, and float32 stays float32 unless the caller says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.adamw import adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5 on singular values: Jordan's, with the steepest slope at 0."""
ITERATIONS = 5
SMALLEST_SIDE = 32
"""Matrices with a shorter side (the last convolution, biases, norms) are left to AdamW."""


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest, in one parameter group with one learning rate.

    Args:
        parameters: any shapes; a parameter of two or more dimensions whose flattened sides are both at least
            `SMALLEST_SIDE` is a matrix.
        lr: learning rate, of both halves.
        momentum: of the matrices, 0 to 1; Nesterov's form.
        orthogonalise_in: arithmetic of the orthogonalisation; momentum and weights keep their own.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: decoupled, of both halves.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        orthogonalise_in: torch.dtype = torch.float32,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            parameters,
            {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay},
        )
        # Not in the group: a checkpoint made on one machine goes on in the other arithmetic on another.
        self._dtype = orthogonalise_in

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; closures are not supported."""
        assert closure is None, "Muon evaluates no closure"
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            self._step_matrices([p for p in with_gradient if is_matrix(p)], group)
            self._step_adamw([p for p in with_gradient if not is_matrix(p)], group)

    def _step_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            rows, columns = _flat(parameter).shape
            by_shape.setdefault((rows, columns), []).append(parameter)
        momentum = group["momentum"]
        for (rows, columns), alike in by_shape.items():
            directions = []
            for parameter in alike:
                gradient = parameter.grad
                assert gradient is not None
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(gradient, 1.0 - momentum)
                directions.append(_flat(gradient.lerp(buffer, momentum)))
            stacked = torch.stack(directions)
            updates = orthogonalise(stacked.to(self._dtype)).to(stacked.dtype)
            # Liu et al. eq. 4: the root mean square of an AdamW step, whatever the shape.
            rate = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for parameter, update in zip(alike, updates, strict=True):
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                parameter.add_(_unflat(update, parameter), alpha=-rate)

    def _step_adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,  # type: ignore[arg-type]  # a list of parameters is a list of tensors
            [p.grad for p in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=bool(parameters) and parameters[0].device.type in {"cpu", "cuda"},
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_matrix(parameter: torch.Tensor) -> bool:
    """Whether Muon, not AdamW, updates a parameter of this shape."""
    if parameter.dim() < 2:
        return False
    rows = parameter.shape[0]
    return min(rows, parameter.numel() // rows) >= SMALLEST_SIDE


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of matrices (B, rows, columns) near 1 and keep their singular vectors.

    Five Newton-Schulz iterations (Jordan et al. 2024) with a polynomial that ends between about 0.7 and 1.2
    rather than at 1, which is enough and faster.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    """(out, rest); the order within the rest is that of memory, and does not matter to the result."""
    if parameter.dim() == 4:
        parameter = parameter.permute(0, 2, 3, 1)
    return parameter.reshape(parameter.shape[0], -1)


def _unflat(update: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    if parameter.dim() == 4:
        out, channels, height, width = parameter.shape
        return update.reshape(out, height, width, channels).permute(0, 3, 1, 2)
    return update.reshape(parameter.shape)
