"""Low-rank adapters (LoRA) on any network, through the library peft.

``W' = W + (alpha / rank) B A`` with A: (rank, in) and B: (out, rank) for every adapted layer (Hu et al. 2021,
arXiv 2106.09685, eq. 3); for a convolution A has its kernel and B is 1x1. B starts at zero, so a new student
is its teacher. With the adapter switched off by `disabled`, student and teacher are one network in memory.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from fewstep.errors import CheckpointError, RecipeError, UsageError

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Queries, keys, values and outputs of attention: LoRA of Flash Diffusion (Chadebec 2024, 2406.02347)."""

_SHARED = frozenset({"conv_in", "conv_out", "time_embedding", "add_embedding"})
_NAME = "default"  # peft tells several adapters of one network apart by name; we have one
_KNOWN = "_fewstep_adapted"  # attribute of a network with an adapter: its `_Adapted`
_ADAPTED = "the network has an adapter already: merge it before another is added"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSpec:
    """Size and place of an adapter.

    Attributes:
        rank: 1 or more.
        alpha: above 0; what the adapter adds is scaled by ``alpha / rank``. None: the rank itself.
        targets: linear layers and convolutions, each entry one of

            - ``unet``: all of a diffusers U-Net but its first and last convolution and the shared embedding
              of time (and of SDXL's sizes), as in SDXL-Lightning (Lin 2024, 2402.13929, with rank 64);
            - ``attention``: `ATTENTION`;
            - ``all-linear-conv``: all of any network;
            - the full name of a layer, or the end of the names of several (``ff.net.2``, ``conv1``).
        dropout: share of a layer's inputs that the adapter does not see while it is trained, 0 to under 1.
    """

    rank: int
    alpha: float | None = None
    targets: tuple[str, ...] = ("unet",)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise RecipeError(f"lora.rank is {self.rank}: give 1 or more")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise RecipeError(f"lora.alpha is {self.alpha}: give a number above 0, or none for the rank")
        if not self.targets:
            raise RecipeError("lora.targets is empty: give unet, attention or names of layers")


class AdapterWeights(nn.Module):
    """The adapter's parameters alone, and alive: what an optimiser trains and a checkpoint holds.

    The parameters are the network's own, so what is loaded or stepped here changes what it computes. Names
    are ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``. Not to be called: the network is.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, layer in _layers(network).items():
            node: nn.Module = self
            for part in name.split("."):
                child = getattr(node, part, None)
                if not isinstance(child, nn.Module):
                    child = nn.Module()
                    setattr(node, part, child)
                node = child
            node.lora_A, node.lora_B = layer.lora_A[_NAME], layer.lora_B[_NAME]


def add_lora(network: nn.Module, spec: LoraSpec, *, seed: int) -> AdapterWeights:
    """Put an adapter on a network, in place, and return its parameters; the output does not change yet.

    All other parameters are frozen. Adapters of half-precision networks are float32, because an optimiser's
    small steps vanish in half precision. A is drawn uniformly from +-1/sqrt(inputs), as the authors' code
    does: peft's normal distribution has a deviation of 1/rank however many inputs there are.

    Args:
        network: any module with linear layers or convolutions.
        spec: where, and how large.
        seed: of A; torch's own generators are left as they were.

    Raises:
        RecipeError: a target that no layer answers to.
        UsageError: the network has an adapter already.
    """
    import peft

    if _layers(network):
        raise UsageError(_ADAPTED)
    names = target_layers(network, spec.targets)
    config = peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.rank if spec.alpha is None else spec.alpha,
        # One expression: a name in a list would also match the end of others, "0" that of "net.0".
        target_modules="|".join(map(re.escape, names)),
        lora_dropout=spec.dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed other devices for good
        peft.inject_adapter_in_model(config, network, adapter_name=_NAME)
    vars(network)[_KNOWN] = _Adapted.of(network)
    weights = AdapterWeights(network)
    for parameter in weights.parameters():
        if parameter.element_size() < 4:
            parameter.data = parameter.data.float()
    return weights


def target_layers(network: nn.Module, targets: Iterable[str]) -> list[str]:
    """Names of the layers that ``targets`` of a `LoraSpec` mean in a network, in the network's order.

    Never among them: convolutions with groups, dilation or padding other than zeros, which peft cannot merge
    or computes wrongly; the output layer of ``nn.MultiheadAttention``, whose weight is read past it.

    Raises:
        RecipeError: a target that no layer answers to; the message names some that there are.
    """
    there = [name for name, module in network.named_modules() if name and _can_adapt(module)]
    wanted: set[str] = set()
    for target in targets:
        found = {name for name in there if _answers(name, target, there)}
        if not found:
            some = ", ".join(there[:: max(1, len(there) // 5)][:5]) or "no layer that can be adapted"
            raise RecipeError(f"lora.targets: no layer answers to {target!r}; this network has {some}")
        wanted |= found
    return [name for name in there if name in wanted]


@contextlib.contextmanager
def disabled(network: nn.Module) -> Iterator[None]:
    """Inside the block the network computes, bit by bit, what it computes without its adapter.

    Blocks may be nested; a network without an adapter stays as it is. What diffusers' gradient checkpointing
    computes again in a later backward pass is computed without the adapter too.
    """
    known = vars(network).get(_KNOWN) or _Adapted.of(network)
    layers = known.layers
    checkpointed: list[tuple[Any, Any]] = [
        (module, function)
        for module in known.checkpointing
        if (function := vars(module).get("_gradient_checkpointing_func"))
    ]
    with _switched_off(layers):
        try:
            for module, function in checkpointed:
                module._gradient_checkpointing_func = functools.partial(_checkpoint_off, layers, function)
            yield
        finally:
            for module, function in checkpointed:
                module._gradient_checkpointing_func = function


@contextlib.contextmanager
def at_strength(network: nn.Module, strength: float) -> Iterator[None]:
    """Inside the block the adapter adds ``strength`` times what it learnt; at 0 as `disabled`."""
    if strength == 0.0:
        with disabled(network):
            yield
        return
    layers = list(_layers(network).values())
    before = [layer.scaling[_NAME] for layer in layers]
    for layer, scale in zip(layers, before, strict=True):
        layer.scaling[_NAME] = scale * strength
    try:
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scaling[_NAME] = scale


def merge(network: nn.Module) -> None:
    """Fold the adapter into the network's own weights, in place; what the network computes stays.

    The network has its plain layers and names again. Its parameters stay frozen, and `AdapterWeights` made
    before have no effect any more. A network without an adapter stays as it is.
    """
    layers = _layers(network)
    for name, layer in layers.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        del network.peft_config
        vars(network).pop(_KNOWN, None)


def adapter_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The adapter's tensors under the names of `AdapterWeights`; not copies. Empty without an adapter."""
    return AdapterWeights(network).state_dict()


def load_adapter(network: nn.Module, state: Mapping[str, torch.Tensor], spec: LoraSpec) -> AdapterWeights:
    """Put a saved adapter on a network, in place, and return its parameters, trainable as after `add_lora`.

    Args:
        network: without an adapter.
        state: under the names of `AdapterWeights`, which say where the adapter sits.
        spec: its rank and alpha; the targets do not matter.

    Raises:
        CheckpointError: the tensors do not fit this network or the rank; the network is left as it was.
        UsageError: the network has an adapter already.
    """
    if _layers(network):
        raise UsageError(_ADAPTED)
    layers: dict[str, Any] = {name: module for name, module in network.named_modules() if _can_adapt(module)}
    names = tuple(sorted({name.rpartition(".lora_")[0] for name in state}))
    expected: dict[str, tuple[int, ...]] = {}
    for name in layers.keys() & names:
        outputs, *inputs = layers[name].weight.shape
        expected[f"{name}.lora_A.weight"] = (spec.rank, *inputs)
        expected[f"{name}.lora_B.weight"] = (outputs, spec.rank, *(1 for _ in inputs[1:]))
    found = {name: tuple(value.shape) for name, value in state.items()}
    wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if wrong or not found:
        raise CheckpointError(
            f"the adapter does not fit this network at rank {spec.rank}: {len(wrong)} tensors are strange, "
            f"misshapen or missing {wrong[:1]}; give an adapter made for this network"
        )
    weights = add_lora(network, replace(spec, targets=names), seed=0)
    weights.load_state_dict(state)
    return weights


@dataclass(frozen=True, kw_only=True)
class _Adapted:
    """What `disabled` switches: found once, when the adapter is put on, since to look for it takes 5 ms.

    An attribute of the network and not a table beside it: copies of the network get their own.
    """

    layers: list[Any]
    checkpointing: list[nn.Module]
    """Modules that can compute their gradients again; whether they do may change later."""

    @classmethod
    def of(cls, network: nn.Module) -> _Adapted:
        """Look through a network."""
        return cls(
            layers=list(_layers(network).values()),
            checkpointing=[
                module
                for module in network.modules()
                if hasattr(module, "gradient_checkpointing")
                or vars(module).get("_gradient_checkpointing_func") is not None
            ],
        )


def _layers(network: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


def _can_adapt(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _answers(name: str, target: str, there: list[str]) -> bool:
    if target == "unet":
        return _SHARED.isdisjoint(name.split("."))
    if target == "attention":
        return any(_answers(name, end, there) for end in ATTENTION)
    if target == "all-linear-conv" or name == target:
        return True
    return target not in there and name.endswith(f".{target}")


@contextlib.contextmanager
def _switched_off(layers: list[Any]) -> Iterator[None]:
    # peft's own enable_adapters also sets requires_grad, which belongs to the training loop.
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was


def _checkpoint_off(layers: list[Any], checkpoint: Any, function: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(_switched_off(layers)(function), *inputs)  # a decorator: around every call of function
