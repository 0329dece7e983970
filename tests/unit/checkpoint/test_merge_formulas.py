"""Every formula against itself in float64, and the properties that it must have."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from fewstep.checkpoint.merging import formulas
from fewstep.checkpoint.merging.formulas import Formula, merged, slerp_factors


class Given:
    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.shape = tuple(values.shape)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.values[start:stop].to(torch.float32, copy=True)


def result(formula: Formula, m: float, *tensors: torch.Tensor) -> torch.Tensor:
    parts = [values.clone() for _, _, values in merged(formula, m, *map(Given, tensors))]
    return torch.cat(parts)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def exact_slerp(a: torch.Tensor, b: torch.Tensor, m: float) -> torch.Tensor:
    """By the cosine, in float64."""
    one, two = a / a.norm(), b / b.norm()
    angle = torch.arccos((one * two).sum().clamp(-1, 1))
    turned = (torch.sin((1 - m) * angle) * one + torch.sin(m * angle) * two) / torch.sin(angle)
    return turned * ((1 - m) * a.norm() + m * b.norm())


EXACT: dict[str, Callable[..., torch.Tensor]] = {
    "weighted sum": lambda a, b, c, m: (1 - m) * a + m * b,
    "add difference": lambda a, b, c, m: a + m * (b - c),
    "slerp": lambda a, b, c, m: exact_slerp(a, b, m),
}


@pytest.mark.parametrize("formula", EXACT)
@pytest.mark.parametrize("m", [0.0, 0.3, 1.0, 1.7, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_formulas_equal_float64_to_rounding(formula: Formula, m: float, dtype: torch.dtype) -> None:
    tensors = [numbers(40, 5, 3, 3, seed=seed, dtype=dtype) for seed in range(3)]
    found = result(formula, m, *tensors[: 3 if formula == "add difference" else 2])
    a, b, c = (tensor.double() for tensor in tensors)
    exact = EXACT[formula](a, b, c, m)
    # four roundings of float32, each of at most half a unit of the largest number on the way
    scale = a.abs() + (1 + abs(m)) * (b.abs() + c.abs())
    assert ((found.double() - exact).abs() <= 4 * 2.0**-24 * scale).all()


@pytest.mark.parametrize("formula", EXACT)
def test_pieces_make_the_whole(formula: Formula, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [numbers(17, 6, seed=seed) for seed in range(3)][: 3 if formula == "add difference" else 2]
    whole = result(formula, 0.4, *tensors)
    monkeypatch.setattr(formulas, "PIECE", 20)
    assert len(list(formulas.stretches((17, 6)))) == 6
    torch.testing.assert_close(result(formula, 0.4, *tensors), whole, rtol=1e-6, atol=1e-7)


def test_ends_and_no_difference_are_exact() -> None:
    a, b = numbers(30, 8), numbers(30, 8, seed=1)
    assert torch.equal(result("weighted sum", 0.0, a, b), a)
    assert torch.equal(result("weighted sum", 1.0, a, b), b)
    assert torch.equal(result("add difference", 0.8, a, b, b), a)
    assert torch.equal(result("add difference", 0.8, a, b), a), "what C lacks is no difference"
    torch.testing.assert_close(result("slerp", 0.0, a, b), a)
    torch.testing.assert_close(result("slerp", 1.0, a, b), b)


def test_slerp_keeps_the_length_and_halves_the_angle() -> None:
    a, b = numbers(500), numbers(500, seed=1)
    b *= a.norm() / b.norm()
    middle = result("slerp", 0.5, a, b)
    assert float(middle.norm()) == pytest.approx(float(a.norm()), rel=1e-6)
    angle = [float(torch.arccos((middle * t).sum() / middle.norm() / t.norm())) for t in (a, b)]
    assert angle[0] == pytest.approx(angle[1], abs=1e-5)
    assert float(result("weighted sum", 0.5, a, b).norm()) < 0.8 * float(a.norm())


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 0.1, 1.5, 3.0])
def test_slerp_by_closed_form_in_a_plane(angle: float) -> None:
    a = torch.tensor([2.0, 0.0], dtype=torch.float64)
    b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    first, second = slerp_factors(Plain(a), Plain(b), 0.25)
    found = first * a + second * b
    length = 0.75 * 2.0 + 0.25
    exact = length * torch.tensor([math.cos(angle / 4), math.sin(angle / 4)], dtype=torch.float64)
    assert (found - exact).abs().max() < 1e-9 + 1e-6 * angle


class Plain(Given):
    """Keeps float64."""

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.values[start:stop].clone()


@pytest.mark.parametrize("other", [0.0, -1.0, 1.0], ids=["zeros", "opposite", "same"])
def test_slerp_without_a_way_is_the_weighted_sum(other: float) -> None:
    a = numbers(64)
    assert torch.equal(result("slerp", 0.3, a, other * a), result("weighted sum", 0.3, a, other * a))


def test_fewer_channels_mix_the_first_ones() -> None:
    a, b, c = numbers(6, 9, 3, 3), numbers(6, 4, 3, 3, seed=1), numbers(6, 4, 3, 3, seed=2)
    for formula in ("weighted sum", "add difference", "slerp"):
        others = (b, c) if formula == "add difference" else (b,)
        found = result(formula, 0.4, a, *others)  # type: ignore[arg-type]
        assert torch.equal(found[:, 4:], a[:, 4:])
        assert torch.equal(found[:, :4], result(formula, 0.4, a[:, :4].contiguous(), *others))  # type: ignore[arg-type]
