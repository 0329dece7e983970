"""Adapter files (LoRA and its relatives) of every common format: reading, fitting, writing."""

from fewstep.checkpoint.adapters.about import alias, base_model, short_hash
from fewstep.checkpoint.adapters.deltas import Delta, Full, LoHa, LoKr, Lora
from fewstep.checkpoint.adapters.fitting import check_fits, family
from fewstep.checkpoint.adapters.reading import AdapterFile, BaseShapes, read_adapter
from fewstep.checkpoint.adapters.writing import save_adapter

__all__ = [
    "AdapterFile",
    "BaseShapes",
    "Delta",
    "Full",
    "LoHa",
    "LoKr",
    "Lora",
    "alias",
    "base_model",
    "check_fits",
    "family",
    "read_adapter",
    "save_adapter",
    "short_hash",
]
