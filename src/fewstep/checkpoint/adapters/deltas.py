"""What an adapter adds to one layer: LoRA, LoHa, LoKr or a plain difference, as data. No arithmetic here.

For a weight W of shape (out, in, *kernel), with ``s = alpha / rank``:

- `Lora`: ``s up down`` (Hu 2021, 2106.09685, eq. 3); with ``mid``, ``s mid x1 up x2 down`` (Tucker's form,
  called LoCon).
- `LoHa`: ``s (w1_a w1_b) * (w2_a w2_b)``, elementwise (FedPara, Hyeon-Woo 2022, 2108.06098); a ``t`` in the
  middle of each for convolutions.
- `LoKr`: ``s w1 (x) w2``, a Kronecker product, each factor whole or a product (LyCORIS, Yeh 2024,
  2309.14859).
- `Full`: the difference itself, also that of norms and biases.

The first three may have a ``dora_scale`` (DoRA, Liu 2024, 2402.09353): one magnitude an output,
(out, 1, ...), or, in older LyCORIS files, one an input, (1, in, ...). `fewstep.models.lora_apply` has the
formulas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MAX_RANK = 16384
"""No layer of these models has so many outputs, and more rank than outputs adds nothing."""

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lora:
    """A low-rank product.

    Attributes:
        down: (rank, in) or (rank, in, *kernel); with ``mid`` (rank, in, 1, 1).
        up: (out, rank) or (out, rank, 1, 1).
        alpha: what is added is scaled by ``alpha / rank``.
        mid: (rank, rank, *kernel), of a convolution.
        dora_scale: (out, 1, ...) or (1, in, ...).
        diff_b: (out,), an unscaled difference of the bias, as ComfyUI extracts it.
    """

    down: torch.Tensor
    up: torch.Tensor
    alpha: float
    mid: torch.Tensor | None = None
    dora_scale: torch.Tensor | None = None
    diff_b: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoHa:
    """An elementwise product of two low-rank products.

    Attributes:
        w1_a: (out, rank), or (rank, out) with ``t1``; ``w2_a`` likewise.
        w1_b: (rank, in times kernel), or (rank, in) with ``t1``; ``w2_b`` likewise.
        alpha: as in `Lora`.
        t1: (rank, rank, *kernel); both or neither of ``t1`` and ``t2``.
        dora_scale: as in `Lora`; ``diff_b`` too.
    """

    w1_a: torch.Tensor
    w1_b: torch.Tensor
    w2_a: torch.Tensor
    w2_b: torch.Tensor
    alpha: float
    t1: torch.Tensor | None = None
    t2: torch.Tensor | None = None
    dora_scale: torch.Tensor | None = None
    diff_b: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LoKr:
    """A Kronecker product of w1 (out1, in1) and w2 (out2, in2, *kernel).

    Attributes:
        w1: whole, or None when it is ``w1_a`` (out1, rank) times ``w1_b`` (rank, in1).
        w2: whole, or None when it is ``w2_a`` (out2, rank) times ``w2_b`` (rank, in2 times kernel), or, with
            ``t2`` (rank, rank, *kernel) between them, ``w2_a`` (rank, out2) and ``w2_b`` (rank, in2).
        alpha: as in `Lora`; has no effect where both are whole, as LyCORIS and the web UIs have it.
        dora_scale: as in `Lora`; ``diff_b`` too.
    """

    alpha: float
    w1: torch.Tensor | None = None
    w1_a: torch.Tensor | None = None
    w1_b: torch.Tensor | None = None
    w2: torch.Tensor | None = None
    w2_a: torch.Tensor | None = None
    w2_b: torch.Tensor | None = None
    t2: torch.Tensor | None = None
    dora_scale: torch.Tensor | None = None
    diff_b: torch.Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Full:
    """A difference of weights, unscaled.

    Attributes:
        diff: in the shape of the weight; None when only the bias changes.
        diff_b: (out,), of the bias.
        norm: the file names it as a norm's (``w_norm``, ``b_norm``).
    """

    diff: torch.Tensor | None = None
    diff_b: torch.Tensor | None = None
    norm: bool = False


Delta = Lora | LoHa | LoKr | Full


def tensors(delta: Delta) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a delta with the name of its attribute."""
    for entry in fields(delta):
        value = getattr(delta, entry.name)
        if entry.name not in ("alpha", "norm") and value is not None:
            yield entry.name, value


def rank(delta: Delta) -> int | None:
    """The rank that alpha is divided by; None where there is none (`Full`, and `LoKr` of whole factors)."""
    match delta:
        case Lora():
            return len(delta.down)
        case LoHa():
            return len(delta.w1_b)
        case LoKr():
            half = delta.w2_b if delta.w2_b is not None else delta.w1_b
            return None if half is None else len(half)
        case Full():
            return None


def scale(delta: Delta) -> float:
    """``alpha / rank``; 1 where there is no rank."""
    r = rank(delta)
    return 1.0 if r is None or isinstance(delta, Full) else delta.alpha / r


def shape(delta: Delta) -> Shape | None:
    """Shape of the weight it was made for, its kernel perhaps flattened into the inputs; None without one."""
    match delta:
        case Lora():
            kernel = delta.down.shape[2:] if delta.mid is None else delta.mid.shape[2:]
            return (len(delta.up), delta.down.shape[1], *kernel)
        case LoHa(t1=None):
            return (len(delta.w1_a), delta.w1_b.shape[1])
        case LoHa():
            assert delta.t1 is not None
            return (delta.w1_a.shape[1], delta.w1_b.shape[1], *delta.t1.shape[2:])
        case LoKr():
            one = _factor(delta.w1, delta.w1_a, delta.w1_b, None)
            two = _factor(delta.w2, delta.w2_a, delta.w2_b, delta.t2)
            return (one[0] * two[0], one[1] * two[1], *two[2:])
        case Full():
            return None if delta.diff is None else tuple(delta.diff.shape)


def reaches(made_for: Shape, weight: Shape) -> bool:
    """Whether a delta of one shape can be added to a weight of another: the same numbers in the same order.

    A 1x1 convolution and a linear layer are the same matrix, and a kernel may be flattened into the inputs.
    """
    if len(made_for) == 2 <= len(weight):
        return made_for == (weight[0], math.prod(weight[1:]))
    return _without_ones(made_for) == _without_ones(weight)


def check(delta: Delta) -> None:
    """Check that the parts of a delta multiply, before anything is computed from them.

    Raises:
        ValueError: they do not; the message gives the shapes.
    """
    for name, value in tensors(delta):
        if not value.is_floating_point():
            raise ValueError(f"{name} is not of floating point numbers")
    r = rank(delta)
    if r is not None and r > MAX_RANK:
        raise ValueError(f"its rank is {r}, above {MAX_RANK}")
    match delta:
        case Lora():
            fine = _two(delta.down, delta.up) and math.prod(delta.up.shape[2:]) == 1
            fine = fine and delta.up.shape[1] == r
            if fine and delta.mid is not None:
                fine = math.prod(delta.down.shape[2:]) == 1 and _square(delta.mid, r)
        case LoHa():
            fine = _loha_multiplies(delta, r)
        case LoKr():
            fine = _factor_multiplies(delta.w1, delta.w1_a, delta.w1_b, None)
            fine = fine and _factor_multiplies(delta.w2, delta.w2_a, delta.w2_b, delta.t2)
            fine = fine and (delta.w1 if delta.w1 is not None else delta.w1_a).ndim == 2  # type: ignore[union-attr]
        case Full():
            diffs = [value for value in (delta.diff, delta.diff_b) if value is not None]
            fine = all(value.ndim > 0 for value in diffs)
    if not fine or not all(value.numel() for _, value in tensors(delta)):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors(delta))
        raise ValueError(f"its tensors do not multiply: {shapes}")


def dora_axis(dora_scale: torch.Tensor, weight: Shape) -> int:
    """Which axis of the weight a magnitude belongs to: 0 for outputs, 1 for inputs.

    Raises:
        ValueError: it has another shape than (out, 1, ...), (out,) or (1, in, ...).
    """
    sizes = tuple(dora_scale.shape)
    rest = math.prod(sizes[2:])
    if sizes == weight[:1] or (len(sizes) >= 2 and rest == 1 and sizes[:2] == (weight[0], 1)):
        return 0
    if len(sizes) >= 2 and rest == 1 and sizes[:2] == (1, weight[1]):
        return 1
    raise ValueError(f"dora_scale {sizes} is neither one number an output nor one an input of {weight}")


def _without_ones(sizes: Shape) -> Shape:
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes


def _two(*values: torch.Tensor) -> bool:
    return all(value.ndim >= 2 for value in values)


def _square(value: torch.Tensor, r: int | None) -> bool:
    return value.ndim > 2 and value.shape[:2] == (r, r)


def _loha_multiplies(delta: LoHa, r: int | None) -> bool:
    four = (delta.w1_a, delta.w1_b, delta.w2_a, delta.w2_b)
    if any(value.ndim != 2 for value in four) or (delta.t1 is None) != (delta.t2 is None):
        return False
    if delta.t1 is None or delta.t2 is None:
        products = all(a.shape[1] == len(b) for a, b in (four[:2], four[2:]))
        return products and len(four[0]) == len(four[2]) and four[1].shape[1] == four[3].shape[1]
    if not (_square(delta.t1, r) and delta.t1.shape == delta.t2.shape):
        return False
    ranks = all(len(value) == r for value in four)
    return ranks and four[0].shape == four[2].shape and four[1].shape == four[3].shape


def _factor(
    whole: torch.Tensor | None, a: torch.Tensor | None, b: torch.Tensor | None, t: torch.Tensor | None
) -> Shape:
    if whole is not None:
        return tuple(whole.shape)
    assert a is not None and b is not None
    if t is None:
        return (len(a), math.prod(b.shape[1:]))
    return (a.shape[1], b.shape[1], *t.shape[2:])


def _factor_multiplies(
    whole: torch.Tensor | None, a: torch.Tensor | None, b: torch.Tensor | None, t: torch.Tensor | None
) -> bool:
    if whole is not None:
        return whole.ndim >= 2 and a is None and b is None and t is None
    if a is None or b is None or not _two(a, b):
        return False
    if t is None:
        return a.ndim == 2 and a.shape[1] == len(b)
    return a.ndim == b.ndim == 2 and _square(t, len(b)) and len(a) == len(b)
