from __future__ import annotations

import pytest
import torch
from torch import nn

from fewstep.models.ema import Ema, ema_decay


def test_decay_halves_per_half_life() -> None:
    assert ema_decay(100, 10**9, 100, None) == 0.5
    assert ema_decay(50, 10**9, 100, None) == pytest.approx(0.5**0.5)
    assert ema_decay(32, 10**9, 20_000, 0.05) == pytest.approx(0.5 ** (32 / 20_000))
    assert ema_decay(32, 640, 20_000, 0.05) == 0.5  # the ramp: half-life 32 images
    assert ema_decay(32, 32, 20_000, 0.05) < 1e-6  # at the start the random weights are forgotten at once


def test_t24_the_average_is_the_closed_form() -> None:
    module = nn.Linear(3, 2, dtype=torch.float64)
    ema = Ema(module)
    initial = module.weight.detach().clone()
    decay, values = 0.9, []
    for step in range(1, 6):
        with torch.no_grad():
            module.weight.fill_(float(step))
        values.append(float(step))
        ema.update(decay)
    n = len(values)
    expected = decay**n * initial + sum((1 - decay) * decay ** (n - 1 - i) * v for i, v in enumerate(values))
    torch.testing.assert_close(ema.state_dict()["weight"], expected, rtol=1e-14, atol=1e-14)


def test_buffers_are_copied_and_layouts_kept() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    ema = Ema(module)
    module(torch.randn(2, 2, 5, 5))
    ema.update(0.5)
    assert torch.equal(ema.state_dict()["1.running_mean"], module[1].running_mean)
    assert ema.state_dict()["1.num_batches_tracked"] == 1
    assert ema.state_dict()["0.weight"].stride() == module[0].weight.stride()


def test_applied_swaps_and_puts_back_bit_by_bit() -> None:
    module = nn.Linear(3, 2)
    ema = Ema(module)
    with torch.no_grad():
        module.weight.add_(1.0)
    live, averaged = module.weight.detach().clone(), ema.state_dict()["weight"].clone()
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        assert torch.equal(module.weight, averaged)
        raise RuntimeError("inside")
    assert torch.equal(module.weight, live) and torch.equal(ema.state_dict()["weight"], averaged)


def test_state_comes_back_and_foreign_state_is_refused() -> None:
    module = nn.Linear(3, 2)
    ema, other = Ema(module), Ema(nn.Linear(3, 2))
    ema.load_state_dict(other.state_dict())
    assert torch.equal(ema.state_dict()["weight"], other.state_dict()["weight"])
    with pytest.raises(KeyError, match="names differ"):
        ema.load_state_dict({"weight": torch.zeros(2, 3)})
