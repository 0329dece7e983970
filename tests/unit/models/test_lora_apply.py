"""Adapters in weights: what each kind adds, put back bit by bit, several at once, all or nothing."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fewstep.checkpoint.adapters import AdapterFile, Full, LoHa, LoKr, Lora
from fewstep.errors import CheckpointError, UsageError
from fewstep.models import lora_apply
from fewstep.models.lora_apply import delta_weight, merged


class Net(nn.Module):
    """A layer of each kind under names like a U-Net's."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.small = nn.Conv2d(6, 8, 1)
        self.conv = nn.Conv2d(6, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.plain = nn.Linear(6, 8, bias=False)


def net(kind: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    made = Net().to(kind)
    with torch.no_grad():
        made.norm.weight.normal_()
    return made


def r(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def lora(*kernel: int, rank: int = 2, alpha: float = 3.0, seed: int = 1, **more: Any) -> Lora:
    ones = (1,) * len(kernel)
    down, up = r(rank, 6, *kernel, seed=seed), r(8, rank, *ones, seed=seed + 1)
    return Lora(down=down, up=up, alpha=alpha, **more)


def tucker() -> dict[str, Any]:
    return {"down": r(2, 6, 1, 1), "up": r(8, 2, 1, 1), "mid": r(2, 2, 3, 3), "alpha": 3.0}


def loha(columns: int) -> dict[str, Any]:
    return {
        "w1_a": r(8, 2),
        "w1_b": r(2, columns),
        "w2_a": r(8, 2, seed=9),
        "w2_b": r(2, columns, seed=9),
        "alpha": 3.0,
    }


def loha_tucker() -> dict[str, Any]:
    found: dict[str, Any] = {f"w{n}_{s}": r(2, 8 if s == "a" else 6, seed=n) for n in (1, 2) for s in "ab"}
    return {**found, "t1": r(2, 2, 3, 3), "t2": r(2, 2, 3, 3, seed=7), "alpha": 3.0}


KINDS: dict[str, tuple[str, Any]] = {
    "lora": ("linear", lora()),
    "lora 1x1": ("small", lora(1, 1)),
    "lora 1x1 as linear": ("small", lora()),
    "lora linear as 1x1": ("linear", lora(1, 1)),
    "lora 3x3": ("conv", lora(3, 3)),
    "lora with mid": ("conv", Lora(**tucker())),
    "loha": ("linear", LoHa(**loha(6))),
    "loha 3x3": ("conv", LoHa(**loha(54))),
    "loha tucker": ("conv", LoHa(**loha_tucker())),
    "lokr whole": ("linear", LoKr(w1=r(2, 3), w2=r(4, 2), alpha=77.0)),
    "lokr": ("linear", LoKr(w1_a=r(2, 2), w1_b=r(2, 3), w2_a=r(4, 2), w2_b=r(2, 2), alpha=3.0)),
    "lokr 3x3": ("conv", LoKr(w1=r(2, 3), w2_a=r(4, 2), w2_b=r(2, 18), alpha=3.0)),
    "lokr 3x3 whole": ("conv", LoKr(w1=r(2, 3), w2=r(4, 2, 3, 3), alpha=0.5)),
    "lokr tucker": ("conv", LoKr(w1=r(2, 3), w2_a=r(2, 4), w2_b=r(2, 2), t2=r(2, 2, 3, 3), alpha=3.0)),
    "difference": ("linear", Full(diff=r(8, 6), diff_b=r(8))),
    "norm": ("norm", Full(diff=r(8), diff_b=r(8, seed=3), norm=True)),
    "bias": ("linear", Full(diff_b=r(8))),
    "lora and bias": ("linear", lora(diff_b=r(8))),
    "dora": ("linear", lora(dora_scale=r(8, 1).abs())),
    "dora 3x3": ("conv", lora(3, 3, dora_scale=r(8, 1, 1, 1).abs())),
    "dora of inputs": ("linear", lora(dora_scale=r(1, 6).abs())),
    "dora of inputs 3x3": ("conv", lora(3, 3, dora_scale=r(1, 6, 1, 1).abs())),
    "dora of a loha": ("linear", LoHa(**loha(6), dora_scale=r(8, 1).abs())),
}


def by_hand(delta: Any, weight: np.ndarray) -> np.ndarray | None:
    """The definition, number by number, in double precision."""
    t = {name: value.double().numpy() for name, value in lora_apply.deltas.tensors(delta)}
    out, width = weight.shape[0], int(np.prod(weight.shape[1:]))
    found = np.zeros((out, width))
    taps = width // weight.shape[1] if weight.ndim > 1 else 1
    if isinstance(delta, Full):
        return t["diff"] if "diff" in t else None
    if isinstance(delta, LoKr):
        one = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
        two = t.get("w2")
        if two is None:
            two = chain(t["w2_a"], t["w2_b"], t["t2"]) if "t2" in t else t["w2_a"] @ t["w2_b"]
        two = two.reshape(len(two), -1)
        for (a, b), (c, d) in itertools.product(np.ndindex(one.shape), np.ndindex(two.shape)):
            found[a * two.shape[0] + c, b * two.shape[1] + d] = one[a, b] * two[c, d]
        rank = len(t["w2_b"]) if "w2_b" in t else None
    else:
        rank = len(t["down"]) if isinstance(delta, Lora) else len(t["w1_b"])
        for o, i in np.ndindex(found.shape):
            channel, tap = divmod(i, taps)
            if isinstance(delta, Lora) and "mid" not in t:
                found[o, i] = sum(
                    t["up"].reshape(out, -1)[o, k] * t["down"].reshape(rank, -1)[k, i] for k in range(rank)
                )
            elif isinstance(delta, Lora):
                mid = t["mid"].reshape(rank, rank, -1)
                found[o, i] = sum(
                    t["up"].reshape(out, -1)[o, k] * mid[k, m, tap] * t["down"].reshape(rank, -1)[m, channel]
                    for k in range(rank)
                    for m in range(rank)
                )
            elif "t1" in t:
                found[o, i] = np.prod(
                    [chain(t[f"w{n}_a"], t[f"w{n}_b"], t[f"t{n}"])[o, channel].flat[tap] for n in (1, 2)]
                )
            else:
                found[o, i] = (t["w1_a"][o] @ t["w1_b"][:, i]) * (t["w2_a"][o] @ t["w2_b"][:, i])
    found = found.reshape(weight.shape) * (delta.alpha / rank if rank else 1.0)
    if "dora_scale" in t:
        direction = weight + found
        magnitude = t["dora_scale"].reshape(-1)
        axis = 0 if delta.dora_scale.shape[0] == out else 1
        norms = [np.sqrt((np.take(direction, n, axis) ** 2).sum()) for n in range(weight.shape[axis])]
        shape = [1] * weight.ndim
        shape[axis] = -1
        found = (magnitude / np.array(norms)).reshape(shape) * direction - weight
    return found


def chain(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Tucker's form: sum over p, q of a[p, o] t[p, q, ...] b[q, i]."""
    found = np.zeros((a.shape[1], b.shape[1], *t.shape[2:]))
    for p, q in np.ndindex(t.shape[:2]):
        found += np.multiply.outer(np.outer(a[p], b[q]), t[p, q])
    return found


def adapter(layers: Mapping[str, Any], name: str = "a", **parts: Any) -> AdapterFile:
    return AdapterFile(name=name, parts={"unet": dict(layers), **parts})


def hashed(*modules: nn.Module) -> str:
    """Of every bit of every tensor."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            digest.update(name.encode() + str(value.dtype).encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_adds_what_its_definition_says(kind: str) -> None:
    layer, delta = KINDS[kind]
    network = net()
    weight = getattr(network, layer).weight.detach()
    added, bias = delta_weight(delta, weight)
    expected = by_hand(delta, weight.double().numpy())
    if expected is None:
        assert added is None
    else:
        assert added is not None and added.dtype == torch.float32 and added.shape == weight.shape
        np.testing.assert_allclose(added.numpy(), expected, rtol=2e-5, atol=2e-5)
    assert (bias is None) == (delta.diff_b is None)
    before, old_bias = weight.clone(), getattr(network, layer).bias.detach().clone()
    with merged({"unet": network}, [(adapter({layer: delta}), 0.5, 1.0)]):
        new = getattr(network, layer)
        torch.testing.assert_close(new.weight.detach(), before + 0.5 * (0 if added is None else added))
        torch.testing.assert_close(new.bias.detach(), old_bias + 0.5 * (0 if bias is None else bias))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_A15_taken_out_bit_by_bit(kind: torch.dtype) -> None:
    """From the saved copy: subtracting would leave rounding errors behind, which is shown too."""
    network = net(kind)
    before = hashed(network)
    everything = adapter(dict(KINDS.values()))
    handle = merged({"unet": network}, [(everything, 0.7, 1.0)])
    assert hashed(network) != before
    assert {value.dtype for value in network.state_dict().values()} == {kind}
    handle.remove()
    assert hashed(network) == before
    handle.remove()
    assert hashed(network) == before
    weight = network.linear.weight.detach().clone()
    added, _ = delta_weight(KINDS["lora"][1], weight)
    assert added is not None
    if kind != torch.float64:
        assert not torch.equal((weight + added).to(kind) - added.to(kind), weight)


def test_A15_apply_a_then_b_then_none() -> None:
    network, before = net(), hashed(net())
    a, b = adapter({"linear": lora(seed=4)}), adapter({"linear": lora(seed=5), "conv": lora(3, 3)})
    with merged({"unet": network}, [(a, 1.0, 1.0)]):
        with_a = hashed(network)
    with merged({"unet": network}, [(b, 1.0, 1.0)]):
        with_b = hashed(network)
    assert hashed(network) == before and len({before, with_a, with_b}) == 3
    handle = merged({"unet": network}, [(a, 1.0, 1.0)])
    assert hashed(network) == with_a
    with pytest.raises(UsageError, match="adapters in their weights"):
        merged({"unet": network}, [(b, 1.0, 1.0)])
    assert hashed(network) == with_a
    handle.remove()
    assert hashed(network) == before


def test_O14_requests_do_not_see_each_other_s_adapters() -> None:
    network = net()
    a, b = adapter({"linear": lora(seed=4)}), adapter({"linear": KINDS["dora"][1], "plain": lora(seed=6)})
    x = r(3, 6)

    def draw(module: Net, *used: AdapterFile) -> torch.Tensor:
        with torch.no_grad(), merged({"unet": module}, [(one, 0.8, 1.0) for one in used]):
            return module.linear(x) + module.plain(x)

    alone = {used: draw(net(), *used) for used in ((a,), (b,), (), (a, b))}
    for used in ((a,), (b,), (a,), (), (a, b), (b,), ()):
        assert torch.equal(draw(network, *used), alone[used])


def test_several_add_up_in_any_order_also_doras() -> None:
    """Every delta is taken from the original weight, so a DoRA does not see the adapter before it."""
    network = net(torch.float64)
    plain = network.linear.weight.detach().clone()
    kinds = [KINDS[name][1] for name in ("lora", "dora", "loha")]
    factors = [0.5, -1.5, 2.0]
    expected = plain.clone()
    for delta, factor in zip(kinds, factors, strict=True):
        added, _ = delta_weight(delta, plain)
        assert added is not None
        expected += factor * added
    for order in itertools.permutations(range(3)):
        uses = [(adapter({"linear": kinds[n]}), factors[n], 9.0) for n in order]
        with merged({"unet": network}, uses):
            torch.testing.assert_close(network.linear.weight.detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_sum_is_rounded_once() -> None:
    network = net(torch.float16)
    uses = [(adapter({"linear": lora(seed=n)}), 0.01, 1.0) for n in range(20)]
    exact = network.linear.weight.detach().float()
    for used, factor, _ in uses:
        added, _ = delta_weight(used.parts["unet"]["linear"], network.linear.weight.detach())
        assert added is not None
        exact = exact + factor * added
    with merged({"unet": network}, uses):
        assert torch.equal(network.linear.weight, exact.half())


def clip(cls: Any) -> nn.Module:
    from transformers import CLIPTextConfig

    config = CLIPTextConfig(
        vocab_size=9,
        hidden_size=6,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=6,
        bos_token_id=0,
        eos_token_id=1,
    )
    return cls(config)


def test_text_encoders_of_both_nestings_and_their_own_weight() -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    parts = {"text_encoder": clip(CLIPTextModel), "text_encoder_2": clip(CLIPTextModelWithProjection)}
    flat, nested = (next(n for n in m.state_dict() if n.endswith("fc1.weight")) for m in parts.values())
    assert nested == f"text_model.{flat}" == "text_model.encoder.layers.0.mlp.fc1.weight"
    layer = {"text_model.encoder.layers.0.mlp.fc1": lora()}
    used = AdapterFile(
        name="a", parts={"unet": {"linear": lora()}, "text_encoder": layer, "text_encoder_2": layer}
    )
    modules = {"unet": net(), **parts}
    before = {part: hashed(module) for part, module in modules.items()}
    weights = {part: copy.deepcopy(module.state_dict()) for part, module in modules.items()}
    added, _ = delta_weight(lora(), torch.zeros(8, 6))
    assert added is not None
    for unet, text in ((1.0, 0.25), (0.0, 1.0), (1.0, 0.0)):
        with merged(modules, [(used, unet, text)]):
            found = modules["unet"].state_dict()["linear.weight"]
            torch.testing.assert_close(found, weights["unet"]["linear.weight"] + unet * added)
            for part, name in (("text_encoder", flat), ("text_encoder_2", nested)):
                found = modules[part].state_dict()[name]
                torch.testing.assert_close(found, weights[part][name] + text * added)
            if text == 0:
                assert hashed(parts["text_encoder"]) == before["text_encoder"]
        assert {part: hashed(module) for part, module in modules.items()} == before
    with merged({"unet": net()}, [(used, 1.0, 0.0)]):
        pass  # text encoders are not asked for
    with pytest.raises(CheckpointError, match="the base has no text_encoder"):
        merged({"unet": net()}, [(used, 1.0, 0.5)])


def bad(**changes: Any) -> list[Any]:
    """A good adapter and one that fails; what was good must not have been applied."""
    return [(adapter({"linear": lora()}, "good"), 1.0, 1.0), (adapter(changes, "bad"), 1.0, 1.0)]


@pytest.mark.parametrize(
    ("uses", "told"),
    [
        (
            bad(linear=lora(), nowhere=lora()),
            "'bad': does not fit, the base's unet has no layer 'nowhere'; give",
        ),
        (bad(linear=lora(), small=lora(3, 3), nowhere=lora()), "and 1 more"),
        (
            bad(conv=lora(3, 3), linear=Full(diff=torch.full((8, 6), float("nan")))),
            "diff has numbers that are not finite",
        ),
        (bad(linear=lora(dora_scale=torch.full((8, 1), float("inf")))), "dora_scale has numbers"),
        (bad(linear=lora(dora_scale=torch.ones(5, 1))), "neither one number an output"),
        (bad(plain=lora(diff_b=r(8))), "the base has none"),
        ([(AdapterFile(name="x", parts={}, unmatched=("what",)), 1.0, 1.0)], "nobody knows what 'what' is"),
        (
            [
                (adapter({"linear": lora()}), 1.0, 1.0),
                (adapter({"conv": Full(diff=torch.full((8, 6, 3, 3), 3e38))}), 9.0, 1.0),
            ],
            "sum is not finite in torch.float32",
        ),
    ],
)
def test_A14_all_or_nothing(uses: list[Any], told: str) -> None:
    network = net()
    before = hashed(network)
    with pytest.raises(CheckpointError, match=told) as error:
        merged({"unet": network}, uses)
    assert "\n" not in str(error.value)
    assert hashed(network) == before
    with merged({"unet": network}, uses[:1] if len(uses) > 1 else []):  # nothing is left behind
        pass
    assert hashed(network) == before


def test_A14_a_sum_that_half_precision_cannot_hold_is_put_back() -> None:
    network = net(torch.float16)
    before = hashed(network)
    large = adapter({"conv": lora(3, 3), "linear": Full(diff=torch.full((8, 6), 60000.0))})
    with pytest.raises(CheckpointError, match=r"not finite in torch\.float16; give a smaller weight"):
        merged({"unet": network}, [(large, 2.0, 1.0)])
    assert hashed(network) == before


def test_A14_an_interruption_between_layers_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    network = net()
    before = hashed(network)
    calls = []

    def interrupted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            assert hashed(network) != before
            raise KeyboardInterrupt
        return delta_weight(*args)

    monkeypatch.setattr(lora_apply, "delta_weight", interrupted)
    layers = {"linear": lora(), "small": lora(), "plain": lora()}
    with pytest.raises(KeyboardInterrupt):
        merged({"unet": network}, [(adapter(layers), 1.0, 1.0)])
    assert hashed(network) == before
    monkeypatch.undo()
    with merged({"unet": network}, [(adapter(layers), 1.0, 1.0)]):
        assert hashed(network) != before


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_are_finite(weight: float) -> None:
    for use in ((adapter({"linear": lora()}), weight, 1.0), (adapter({"linear": lora()}), 1.0, weight)):
        with pytest.raises(UsageError, match=f"'a': its weight is {weight}"):
            merged({"unet": net()}, [use])


def test_networks_that_cannot_be_changed_are_refused() -> None:
    with torch.device("meta"):
        absent = Net()
    with pytest.raises(CheckpointError, match="weight is not in memory"):
        merged({"unet": absent}, [(adapter({"linear": lora()}), 1.0, 1.0)])
    quantised = net()
    quantised.linear.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.int8), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"of type torch\.int8"):
        merged({"unet": quantised}, [(adapter({"linear": lora()}), 1.0, 1.0)])


def test_weights_keep_their_place_in_memory_and_their_gradient_flag() -> None:
    network = net()
    network.conv.weight.data = network.conv.weight.data.to(memory_format=torch.channels_last)
    parameter, place = network.conv.weight, network.conv.weight.data_ptr()
    with merged({"unet": network}, [(adapter({"conv": lora(3, 3)}), 1.0, 1.0)]):
        assert network.conv.weight is parameter and parameter.data_ptr() == place and parameter.requires_grad
        assert parameter.is_contiguous(memory_format=torch.channels_last)
    assert parameter.is_leaf and parameter.grad_fn is None


def test_a_column_of_zeros_does_not_make_a_dora_infinite() -> None:
    weight = torch.zeros(8, 6)
    added, _ = delta_weight(
        Lora(down=torch.zeros(1, 6), up=torch.zeros(8, 1), alpha=1.0, dora_scale=torch.ones(8, 1)), weight
    )
    assert added is not None and torch.equal(added, weight)


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (3,)]),
    rank=st.integers(1, 12),
    alpha=st.floats(1e-3, 1e3),
    factor=st.floats(-4, 4),
    seed=st.integers(0, 99),
)
def test_C02_any_shape_rank_and_alpha_and_back(out, width, kernel, rank, alpha, factor, seed) -> None:
    makers = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d}
    torch.manual_seed(seed)
    layer = makers[len(kernel)](width, out, *([kernel] if kernel else []))
    network = nn.ModuleDict({"x": layer})
    down, up = torch.randn(rank, width, *kernel), torch.randn(out, rank, *(1 for _ in kernel))
    before = layer.weight.detach().clone()
    used = adapter({"x": Lora(down=down, up=up, alpha=alpha)})
    with merged({"unet": network}, [(used, factor, 1.0)]):
        exact = up.double().flatten(1) @ down.double().flatten(1)
        exact = before.double() + factor * alpha / rank * exact.reshape(before.shape)
        size = max(1.0, abs(factor) * alpha / rank * (up.norm() * down.norm()).item())
        torch.testing.assert_close(layer.weight.detach().double(), exact, rtol=1e-5, atol=1e-6 * size)
    assert torch.equal(layer.weight, before)
