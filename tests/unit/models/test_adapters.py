"""Low-rank adapters: at first nothing, switched off nothing, merged the same, and only theirs is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from fewstep.errors import CheckpointError, RecipeError, UsageError
from fewstep.models import adapters
from fewstep.models.adapters import AdapterWeights, LoraSpec
from fewstep.models.ema import Ema

SPEC = LoraSpec(rank=3, alpha=6.0)

LEFT_OUT = {
    "conv_in",
    "conv_out",
    "time_embedding.linear_1",
    "time_embedding.linear_2",
    "add_embedding.linear_1",
    "add_embedding.linear_2",
}


@pytest.fixture
def unet(tiny_components) -> UNet2DConditionModel:
    return copy.deepcopy(tiny_components.denoiser)


class Points(nn.Module):
    """A network whose names end like others: "0" and "net.0"."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Linear(2, 16))
        self.net = nn.Sequential(nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(getattr(self, "0")(x))


def points() -> Points:
    torch.manual_seed(0)
    return Points()


def draw(unet: nn.Module, x: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if x is None:
        x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 12, 8, generator=generator)
    return unet(x, torch.tensor([999.0, 10.0]), text).sample


def output(network: nn.Module) -> torch.Tensor:
    if isinstance(network, Points):
        return network(torch.tensor([[0.5, -1.0], [2.0, 0.1]]))
    return draw(network)


def train(weights: AdapterWeights) -> None:
    """Give every tensor values as large as a network's own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in weights.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2)


@pytest.fixture(params=["unet", "points"])
def network(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    yield points() if request.param == "points" else request.getfixturevalue("unet")


def test_check_21_lora_student_begins_as_its_teacher(network: nn.Module) -> None:
    teacher = copy.deepcopy(network)
    adapters.add_lora(network, SPEC, seed=0)
    assert torch.equal(output(network), output(teacher))


def test_check_21_lora_merged_equals_unmerged(network: nn.Module) -> None:
    plain = copy.deepcopy(network)
    train(adapters.add_lora(network, SPEC, seed=0))
    with torch.no_grad():
        unmerged = output(network)
        adapters.merge(network)
        merged = output(network)
    assert (merged - unmerged).abs().max() < 1e-5
    assert (merged - output(plain)).abs().max() > 0.05
    assert network.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in network.modules()] == [type(m) for m in plain.modules()]
    assert vars(network).keys() == vars(plain).keys()
    adapters.merge(network)  # nothing left to do
    assert torch.equal(output(network), merged)
    adapters.add_lora(network, SPEC, seed=0)  # the next stage
    assert torch.equal(output(network), merged)


def test_disabled_is_the_teacher_bit_by_bit(network: nn.Module) -> None:
    expected = output(network).detach()
    weights = adapters.add_lora(network, SPEC, seed=0)
    train(weights)
    adapted = output(network).detach()
    next(weights.parameters()).requires_grad_(False)
    asked = [value.requires_grad for value in weights.parameters()]
    assert not torch.allclose(adapted, expected, atol=0.01)
    with adapters.disabled(network):
        assert torch.equal(output(network), expected)
        with adapters.disabled(network):
            assert torch.equal(output(network), expected)
        assert torch.equal(output(network), expected)
    assert torch.equal(output(network), adapted)
    with pytest.raises(RuntimeError, match="inside"), adapters.disabled(network):
        raise RuntimeError("inside")
    assert torch.equal(output(network), adapted)
    assert [value.requires_grad for value in weights.parameters()] == asked


def test_disabled_does_not_look_through_the_network_every_time(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = output(network).detach()
    train(adapters.add_lora(network, SPEC, seed=0))
    adapted = output(network).detach()

    def walk(self: nn.Module, *args: object, **kwargs: object) -> Iterator[object]:
        raise AssertionError("walked through the network")

    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "named_modules", walk)
        with adapters.disabled(network):
            inside = output(network)
    assert torch.equal(inside, expected)
    assert torch.equal(output(network), adapted)


def test_a_copy_is_switched_off_by_itself(network: nn.Module) -> None:
    expected = output(network).detach()
    train(adapters.add_lora(network, SPEC, seed=0))
    adapted = output(network).detach()
    other = copy.deepcopy(network)
    with adapters.disabled(other):
        assert torch.equal(output(network), adapted)
        assert torch.equal(output(other), expected)
    with adapters.disabled(network):
        assert torch.equal(output(network), expected)
        assert torch.equal(output(other), adapted)


def test_disabled_leaves_a_plain_network_alone(network: nn.Module) -> None:
    with adapters.disabled(network):
        inside = output(network)
    assert torch.equal(output(network), inside)


def test_only_the_adapter_is_trained(network: nn.Module) -> None:
    before = copy.deepcopy(network).state_dict()
    weights = adapters.add_lora(network, SPEC, seed=0)
    theirs = {id(value) for value in weights.parameters()}
    for wanted in (True, False, True):  # as the training loop does
        for parameter in weights.parameters():
            parameter.requires_grad_(wanted)
        asked = {id(value) for value in network.parameters() if value.requires_grad}
        assert asked == (theirs if wanted else set())
    optimiser = torch.optim.AdamW(weights.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = (output(network) - 1).square().mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(value.grad is None for value in network.parameters() if id(value) not in theirs)
    after = {name.replace(".base_layer.", "."): value for name, value in network.state_dict().items()}
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_weights_hold_the_adapter_alone_and_are_alive() -> None:
    network = points()
    weights = adapters.add_lora(network, LoraSpec(rank=3, targets=("all-linear-conv",)), seed=0)
    shapes = {name: tuple(value.shape) for name, value in weights.state_dict().items()}
    assert shapes == {
        "0.lora_A.weight": (3, 2),
        "0.lora_B.weight": (16, 3),
        "net.0.lora_A.weight": (3, 16),
        "net.0.lora_B.weight": (16, 3),
        "net.2.lora_A.weight": (3, 16),
        "net.2.lora_B.weight": (2, 3),
    }
    assert [name for name, _ in weights.named_parameters()] == list(shapes)
    other = points()
    train(adapters.add_lora(other, LoraSpec(rank=3), seed=1))
    weights.load_state_dict(adapters.adapter_state(other))
    assert torch.equal(output(network), output(other))
    ema = Ema(weights)
    train(weights)
    trained = output(network)
    with ema.applied():
        averaged = output(network)
    assert torch.equal(output(network), trained) and torch.equal(averaged, output(other))


def test_alpha_over_rank_scales_what_is_added() -> None:
    """Hu 2021, eq. 3, by hand on one layer."""
    network = points()
    plain = copy.deepcopy(network)
    train(adapters.add_lora(network, LoraSpec(rank=4, alpha=2.0, targets=("net.0",)), seed=0))
    state = adapters.adapter_state(network)
    delta = 2.0 / 4 * state["net.0.lora_B.weight"] @ state["net.0.lora_A.weight"]
    with torch.no_grad():
        plain.net[0].weight.add_(delta)
    torch.testing.assert_close(output(network), output(plain))
    unscaled, same = points(), points()
    adapters.load_adapter(unscaled, state, LoraSpec(rank=4))
    adapters.load_adapter(same, state, LoraSpec(rank=4, alpha=4.0))
    assert torch.equal(output(unscaled), output(same))
    assert not torch.allclose(output(unscaled), output(plain), atol=1e-3)


def test_a_seed_gives_one_adapter_and_leaves_the_generators_alone() -> None:
    network = points()
    torch.manual_seed(7)
    expected = torch.rand(3)
    first, again, other = (adapters.add_lora(points(), SPEC, seed=seed).state_dict() for seed in (5, 5, 6))
    torch.manual_seed(7)
    adapters.add_lora(network, SPEC, seed=5)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[n], other[n]) == n.endswith("B.weight") for n in first)
    assert first["net.0.lora_A.weight"].abs().max() <= 1 / 16**0.5
    assert all((value == 0).all() for name, value in first.items() if ".lora_B." in name)


def sdxl() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def test_presets_on_the_unet_of_sdxl() -> None:
    """788 is the number of layers in the published files of SDXL-Lightning."""
    network = sdxl()
    everything = adapters.target_layers(network, ["all-linear-conv"])
    chosen = adapters.target_layers(network, ["unet"])
    assert len(chosen) == 788
    assert set(everything) - set(chosen) == LEFT_OUT
    attention = adapters.target_layers(network, ["attention"])
    assert len(attention) == 70 * 2 * 4  # transformer blocks, self and cross attention
    assert {name.split(".attn")[1][2:] for name in attention} == {"to_q", "to_k", "to_v", "to_out.0"}


def test_a_name_means_a_layer_before_it_means_an_ending() -> None:
    network = points()
    assert adapters.target_layers(network, ["0"]) == ["0"]
    assert adapters.target_layers(network, ["2", "net.0"]) == ["net.0", "net.2"]
    adapters.add_lora(network, LoraSpec(rank=2, targets=("0",)), seed=0)
    assert {name.split(".lora_")[0] for name in adapters.adapter_state(network)} == {"0"}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LoraSpec(rank=0), "lora.rank is 0"),
        (lambda: LoraSpec(rank=2, alpha=0.0), "lora.alpha is 0.0"),
        (lambda: LoraSpec(rank=2, alpha=float("nan")), "lora.alpha is nan"),
        (lambda: LoraSpec(rank=2, targets=()), "lora.targets is empty"),
        (
            lambda: adapters.target_layers(points(), ["0", "to_q"]),
            r"'to_q'; this network has 0, net\.0, net\.2",
        ),
        (lambda: adapters.target_layers(points(), ["net"]), "'net'"),
        (lambda: adapters.target_layers(points(), ["et.0"]), "'et.0'"),
        (lambda: adapters.target_layers(points(), ["attention"]), "'attention'"),
        (lambda: adapters.target_layers(nn.Sequential(nn.SiLU()), ["unet"]), "no layer that can be adapted"),
    ],
)
def test_a_wrong_spec_is_told_in_one_line(make: Callable[[], object], told: str) -> None:
    with pytest.raises(RecipeError, match=told) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Embedding(4, 4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_that_cannot_be_merged_are_left_out(layer: nn.Module) -> None:
    network = nn.ModuleDict({"a": nn.Linear(4, 4), "b": layer, "c": nn.MultiheadAttention(4, 2)})
    assert adapters.target_layers(network, ["all-linear-conv"]) == ["a"]
    for name in ("b", "out_proj"):
        with pytest.raises(RecipeError, match=name):
            adapters.add_lora(network, LoraSpec(rank=2, targets=(name,)), seed=0)


def test_a_second_adapter_is_refused() -> None:
    network = points()
    state = adapters.add_lora(network, SPEC, seed=0).state_dict()
    with pytest.raises(UsageError, match="merge it"):
        adapters.add_lora(network, SPEC, seed=0)
    with pytest.raises(UsageError, match="merge it"):
        adapters.load_adapter(network, state, SPEC)


def test_a_saved_adapter_comes_back(unet: UNet2DConditionModel) -> None:
    other = copy.deepcopy(unet)
    train(adapters.add_lora(unet, LoraSpec(rank=2, alpha=5.0, targets=("attention", "conv1")), seed=0))
    weights = adapters.load_adapter(other, adapters.adapter_state(unet), LoraSpec(rank=2, alpha=5.0))
    assert torch.equal(output(other), output(unet))
    assert weights.state_dict().keys() == adapters.adapter_state(unet).keys()
    assert all(value.requires_grad for value in weights.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state.pop("net.0.lora_B.weight"),
        lambda state: state.update({"net.7.lora_A.weight": torch.zeros(3, 16)}),
        lambda state: state.update({"net.1.lora_A.weight": torch.zeros(3, 16)}),
        lambda state: state.update({"net.0.weight": torch.zeros(16, 16)}),
        lambda state: state.update({"net.0.lora_A.weight": torch.zeros(2, 16)}),
        lambda state: state.update({"net.0.lora_B.weight": torch.zeros(8, 3)}),
    ],
)
def test_a_foreign_adapter_is_refused_and_nothing_is_changed(change: Callable[[dict], object]) -> None:
    network = points()
    state = dict(adapters.add_lora(points(), SPEC, seed=0).state_dict())
    change(state)
    with pytest.raises(CheckpointError, match="does not fit") as error:
        adapters.load_adapter(network, state, SPEC)
    assert "\n" not in str(error.value)
    assert network.state_dict().keys() == points().state_dict().keys()
    assert all(value.requires_grad for value in network.parameters())


def test_gradient_checkpointing_changes_no_gradient(unet: UNet2DConditionModel) -> None:
    unet.train()
    weights = adapters.add_lora(unet, SPEC, seed=0)
    train(weights)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        x = torch.full((2, 4, 8, 8), 0.3, requires_grad=True)
        teacher_input = torch.full((2, 4, 8, 8), 0.1, requires_grad=True)
        with adapters.disabled(unet):
            judged = draw(unet, teacher_input).square().mean()
        # the backward pass comes outside the block, as in a training loop
        (draw(unet, x).square().mean() + judged).backward()
        found = [value.grad.clone() for value in [x, teacher_input, *weights.parameters()]]
        gradients.append(found)
        for value in weights.parameters():
            value.grad = None
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


def test_channels_last_stays(unet: UNet2DConditionModel) -> None:
    plain = copy.deepcopy(unet)
    unet.to(memory_format=torch.channels_last)
    train(adapters.add_lora(unet, SPEC, seed=0))
    train(adapters.add_lora(plain, SPEC, seed=0))
    x = torch.full((2, 4, 8, 8), 0.3)
    fast = draw(unet, x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, draw(plain, x), atol=1e-5, rtol=1e-5)
    assert fast.is_contiguous(memory_format=torch.channels_last)
    adapters.merge(unet)
    weight = unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_adapters_of_half_networks_are_float32() -> None:
    network = points().to(torch.bfloat16)
    x = torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16)
    before = network(x)
    weights = adapters.add_lora(network, SPEC, seed=0)
    assert {value.dtype for value in weights.parameters()} == {torch.float32}
    assert torch.equal(network(x), before)
    train(weights)
    unmerged = network(x)
    adapters.merge(network)
    assert {value.dtype for value in network.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(network(x), unmerged, atol=0.05, rtol=0.05)
