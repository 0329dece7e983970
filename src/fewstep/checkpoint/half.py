"""Number types of weight files: their names, sizes and casts, and what is odd about the values.

Casts are torch's: to the nearest, ties to even. A value that the smaller type cannot hold would become
infinite, and the picture black; that is refused, not done. 8-bit floats are a type of files only: they are
read as float16 unless another type is asked for, which holds every value of both kinds exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fewstep.checkpoint.naming import shown
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "fp16", "bf16"]

PRECISIONS: dict[str, str] = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Types that weights can be converted to: our name -> safetensors' name."""

_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip

SIZES: dict[str, int] = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
"""Bytes of a value; the types that are read."""

RANKS: dict[str, int] = {
    name: rank
    for rank, name in enumerate(
        ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "F16", "BF16", "I32", "F32", "F64", "I64")
    )
}
"""The library's order of types in a file, from the last to the first."""

FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_FLOAT8 = frozenset({"F8_E4M3", "F8_E5M2"})


def torch_type(code: str) -> torch.dtype:
    """The torch type that safetensors calls ``code``."""
    import torch

    found: torch.dtype = getattr(torch, _TORCH[code])
    return found


def code_of(dtype: torch.dtype) -> str:
    """The name that safetensors gives a torch type; raises KeyError for a type that is not read."""
    return {name: code for code, name in _TORCH.items()}[str(dtype).removeprefix("torch.")]


def target(code: str, precision: Precision | None) -> str:
    """The type that a tensor of type ``code`` is written in; whole numbers and truth values stay."""
    if code not in FLOATS:
        return code
    if precision is not None:
        return PRECISIONS[precision]
    return "F16" if code in _FLOAT8 else code


def cast(tensor: torch.Tensor, code: str, name: str) -> torch.Tensor:
    """A tensor in another type, or itself when it has that type.

    Raises:
        CheckpointError: a finite value would become infinite.
    """
    import torch

    wanted = torch_type(code)
    if tensor.dtype == wanted:
        return tensor
    out = tensor.to(wanted)
    if wanted == torch.float16 and bool(torch.isinf(out).any()):
        lost = int((torch.isinf(out) & torch.isfinite(tensor)).sum())
        if lost:
            raise CheckpointError(
                f"{shown(name)}: {lost} of its values are too large for float16; use bf16 or fp32"
            )
    return out


@dataclass(slots=True)
class Oddities:
    """Names of tensors that make a broken picture: with values that are not finite, or matrices of zeros."""

    not_finite: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)

    def look(self, name: str, tensor: torch.Tensor) -> None:
        """Note a tensor that is odd."""
        import torch

        if not tensor.is_floating_point() or tensor.numel() == 0:
            return
        values = tensor.to(torch.float16) if tensor.element_size() == 1 else tensor
        low, high = torch.aminmax(values)
        if not (bool(torch.isfinite(low)) and bool(torch.isfinite(high))):
            self.not_finite.append(name)
        elif tensor.dim() > 1 and float(low) == float(high) == 0.0:
            self.zero.append(name)


def scales(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Weights of 8-bit floats that have a factor of their own, in ComfyUI's older form: weight -> factor.

    There ``layer.weight`` is to be multiplied by ``layer.scale_weight``; ``layer.scale_input`` is about
    activations, and a tensor ``scaled_fp8`` marks the model. Those two are not needed.

    Raises:
        CheckpointError: quantised in a form that is not read.
    """
    foreign = (".comfy_quant", ".weight_scale", ".quant_state", ".absmax", ".qweight", ".SCB")
    for name in shapes:
        if name.endswith(foreign) or ".quant_state." in name:
            raise CheckpointError(
                f"{shown(name)} is part of a quantisation that is not read; "
                "convert the unquantised file (fp16, bf16, fp32 or plain fp8)"
            )
    found = {}
    for name in shapes:
        if name.endswith(".scale_weight"):
            weight = name.removesuffix("scale_weight") + "weight"
            if weight not in shapes or shapes[name] not in ((), (1,)):
                raise CheckpointError(
                    f"{shown(name)} is not one factor of one weight, a quantisation that is not read; "
                    "convert the unquantised file"
                )
            found[weight] = name
    return found


def is_scale(name: str) -> bool:
    """Whether a tensor belongs to the scaling of 8-bit floats and not to the network."""
    return name.endswith((".scale_weight", ".scale_input")) or name.rpartition(".")[2] == "scaled_fp8"
