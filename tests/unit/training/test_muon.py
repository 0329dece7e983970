"""Muon against its closed form, against torch's own, and in a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.training.checkpointing import optimiser_tensors, restore_optimiser
from fewstep.training.muon import Muon, is_matrix, orthogonalise


@pytest.mark.parametrize("shape", [(40, 64), (64, 40), (48, 48)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix[None])[0]
    inner = u.mT @ result @ v.mT
    assert inner.diagonal().min() > 0.5
    assert inner.diagonal().max() < 1.3
    torch.testing.assert_close(
        inner - torch.diag(inner.diagonal()), torch.zeros_like(inner), atol=1e-4, rtol=0
    )


def test_first_step_is_the_scaled_orthogonal_factor():
    parameter = nn.Parameter(torch.zeros(40, 64))
    gradient = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    parameter.grad = gradient
    Muon([parameter], lr=0.01).step()
    # Momentum and Nesterov's step only scale the first gradient, which orthogonalising undoes.
    expected = -0.01 * 0.2 * 64**0.5 * orthogonalise(gradient[None])[0]
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-4, atol=1e-6)


def test_ten_steps_follow_torch_muon():
    """torch orthogonalises in bfloat16, so they agree to about a hundredth of a step."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(48, 80, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1)
    b = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(10):
        ours.grad = torch.randn(48, 80, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    moved = (ours - start).norm()
    assert (ours - theirs).norm() < 0.03 * moved


def test_bfloat16_changes_a_step_by_its_rounding_only():
    gradient = torch.randn(48, 80, generator=torch.Generator().manual_seed(5))
    steps = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = nn.Parameter(torch.zeros(48, 80))
        parameter.grad = gradient.clone()
        Muon([parameter], lr=1.0, orthogonalise_in=dtype).step()
        steps.append(parameter.detach())
    assert steps[1].dtype == torch.float32
    difference = (steps[1] - steps[0]).norm() / steps[0].norm()
    assert 1e-4 < difference < 0.03


def test_convolution_is_a_matrix_in_any_memory_format():
    generator = torch.Generator().manual_seed(3)
    start, gradient = (torch.randn(36, 8, 3, 3, generator=generator) for _ in range(2))
    ends = []
    for memory in (torch.contiguous_format, torch.channels_last):
        parameter = nn.Parameter(start.clone().to(memory_format=memory))
        parameter.grad = gradient.clone().to(memory_format=memory)
        assert is_matrix(parameter)
        Muon([parameter], lr=0.01).step()
        ends.append(parameter.detach().contiguous())
    torch.testing.assert_close(*ends)
    flat = gradient.flatten(1)
    expected = start.flatten(1) - 0.01 * 0.2 * 72**0.5 * orthogonalise(flat[None])[0]
    torch.testing.assert_close(ends[0].flatten(1), expected, rtol=1e-4, atol=1e-5)


def test_the_rest_is_adamw():
    generator = torch.Generator().manual_seed(4)
    start = torch.randn(16, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    settings = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}
    a, b = Muon([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        ours.grad = torch.randn(16, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_restored_optimiser_goes_on_bit_by_bit():
    def network() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(8, 36, 3), nn.Flatten(), nn.Linear(36, 33))

    def step(module: nn.Module, optimiser: Muon, seed: int) -> None:
        pixels = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(seed))
        optimiser.zero_grad()
        module(pixels).square().mean().backward()
        optimiser.step()

    whole, first = network(), network()
    a, b = Muon(whole.parameters(), lr=0.01), Muon(first.parameters(), lr=0.01)
    for seed in (0, 1):
        step(whole, a, seed)
        step(first, b, seed)
    names = [name for name, _ in first.named_parameters()]
    second = network()
    second.load_state_dict(first.state_dict())
    c = Muon(second.parameters(), lr=0.01)
    restore_optimiser(c, names, optimiser_tensors(b, names), "test")
    for seed in (2, 3):
        step(whole, a, seed)
        step(second, c, seed)
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), second.parameters(), strict=True))
