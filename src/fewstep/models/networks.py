"""The networks of a pipeline, in torch and in OpenVINO: conversion, quantisation, comparison.

Used by `fewstep.models.export` only; nothing here is imported to draw.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.errors import CheckpointError
from fewstep.models.calibration import PROMPTS

if TYPE_CHECKING:
    from fewstep.models.components import Components

INPUTS = {
    "text_encoder": ("ids", "mask"),
    "denoiser": ("x", "t", "text"),
    "vae_encoder": ("pixels",),
    "vae_decoder": ("latents",),
}
"""Part -> names of the inputs of its IR, in order."""


class Networks:
    """The four networks as plain functions of tensors, with the sizes that a bundle states."""

    def __init__(self, components: Components) -> None:
        import torch

        from fewstep.models import wrappers

        self.components = components
        auto, denoiser = components.autoencoder, components.denoiser
        for module in (auto, denoiser, components.text_encoder):
            module.to(device="cpu", dtype=torch.float32).eval()
        self.latent_channels = int(auto.config.latent_channels)
        self.downscale = 2 ** (len(auto.config.block_out_channels) - 1)
        self.scaling_factor = float(auto.config.scaling_factor)
        self.shift_factor = float(auto.config.shift_factor or 0.0)
        self.width, self.height = components.contract.native_sizes[0]
        if self.width != self.height or self.width % self.downscale:
            # One square shape is quantised; other sizes are reshaped from it when the bundle is loaded.
            raise CheckpointError(
                f"native size {self.width}x{self.height}: only a square multiple of {self.downscale} "
                "can be exported; correct native_sizes in fewstep.json"
            )
        self.latent_size = self.width // self.downscale
        self.text_width = int(denoiser.config.cross_attention_dim)
        self.text_length = int(components.tokenizer.model_max_length)
        self.text_mask = bool(getattr(components.text_encoder.config, "use_attention_mask", False))
        self.modules: dict[str, Any] = {
            "text_encoder": wrappers.text_encoder(components.text_encoder, masked=self.text_mask),
            "denoiser": wrappers.denoiser(denoiser),
            "vae_encoder": wrappers.encoder(auto),
            "vae_decoder": wrappers.decoder(auto),
        }
        self._models: dict[str, Any] = {}
        self._compiled: dict[str, Any] = {}

    def model(self, part: str) -> Any:
        """One network as an OpenVINO model with fixed shapes; converted at the first call."""
        if part not in self._models:
            self._models[part] = _convert(self, part)
        return self._models[part]

    def run(self, part: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run one network in OpenVINO, float32: much faster than torch here, and equal to 1e-5."""
        if part not in self._compiled:
            self._compiled[part] = _compile(self.model(part))
        result: np.ndarray = self._compiled[part](_batch(self.model(part), inputs))[0]
        return result[: len(inputs[0])].copy()

    def run_torch(self, part: str, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Run one network in torch, float32: what every error is measured against."""
        import torch

        with torch.no_grad():
            output = self.modules[part](*(torch.from_numpy(array) for array in inputs))
        result: np.ndarray = output.numpy()
        return result

    def tokens(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """Inputs of the text encoder: ids of shape (B, L), and the mask where it is used; int64."""
        encoded = self.components.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_length,
            truncation=True,
            return_tensors="np",
        )
        names = ("input_ids", "attention_mask") if self.text_mask else ("input_ids",)
        return [np.asarray(encoded[key], dtype=np.int64) for key in names]

    def probe(self) -> dict[str, list[list[np.ndarray]]]:
        """One call of every part on noise and a real text: enough to measure an fp16 conversion."""
        rng = np.random.default_rng(0)
        side = self.latent_size
        x = rng.standard_normal((2, self.latent_channels, side, side), dtype=np.float32)
        tokens = self.tokens(["", PROMPTS[0]])
        text = self.run_torch("text_encoder", tokens)
        pixels = rng.uniform(-1, 1, (1, 3, self.height, self.width)).astype(np.float32)
        return {
            "text_encoder": [tokens],
            "denoiser": [[x, np.full(2, 500, dtype=np.float32), text]],
            "vae_encoder": [[pixels]],
            "vae_decoder": [[x[:1]]],
        }

    def example(self, part: str) -> list[np.ndarray]:
        """Inputs to trace with.

        The latents have an odd size: diffusers then records the size of the skip connection at every
        upsampling, and the graph is right for every size instead of only for multiples of the deepest
        level's factor.
        """
        inputs = self.probe()[part][0]
        if part == "denoiser":
            odd = 2 * (inputs[0].shape[-1] // 2) + 1
            inputs[0] = np.zeros((*inputs[0].shape[:2], odd, odd), dtype=np.float32)
        return inputs


def _convert(parts: Networks, part: str) -> Any:
    import torch
    from openvino.tools.ovc import convert_model

    example = tuple(torch.from_numpy(array) for array in parts.example(part))
    with torch.no_grad(), quiet():
        model = convert_model(parts.modules[part], example_input=example)
    for port, name in zip(model.inputs, INPUTS[part], strict=False):
        port.get_tensor().set_names({name})
    return _native(parts, part, model)


def _native(parts: Networks, part: str, model: Any) -> Any:
    """Fix every shape: batch 2 (cond and uncond) for text and denoiser, 1 for pictures, the native size."""
    latent = [parts.latent_channels, parts.latent_size, parts.latent_size]
    text = [2, parts.text_length]
    shapes: dict[str, list[int]] = {
        "ids": text, "mask": text, "x": [2, *latent], "t": [2],
        "text": [*text, parts.text_width],
        "pixels": [1, 3, parts.height, parts.width], "latents": [1, *latent],
    }  # fmt: skip
    model.reshape({port: shapes[port.any_name] for port in model.inputs})
    return model


def quantise(model: Any, part: str, calls: list[list[np.ndarray]], *, bars: bool = False) -> Any:
    """Post-training quantisation of weights and activations, calibrated on recorded calls.

    The first and last convolution and the time embedding cost next to nothing and carry the whole signal,
    so they stay in floating point; attention and normalisation do as NNCF's transformer setting leaves
    them.

    Args:
        model: from `Networks.model`; not changed.
        part: which of `INPUTS` it is.
        calls: what it is calibrated on.
        bars: show NNCF's progress bars on stderr.
    """
    import nncf

    names = INPUTS[part]
    data = [dict(zip(names, _batch(model, call), strict=False)) for call in calls]
    ignored = {
        "denoiser": [".*conv_in.*", ".*conv_out.*", ".*time_embedding.*"],
        "vae_decoder": [".*conv_out.*"],
    }
    with quiet(bars=bars):
        return nncf.quantize(
            model.clone(),
            nncf.Dataset(data),
            subset_size=len(data),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(patterns=ignored.get(part, []), validate=False),
        )


def compress(model: Any, *, bars: bool = False) -> Any:
    """Weights in 8 bits, computed in floating point; arguments as of `quantise`."""
    import nncf

    with quiet(bars=bars):
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _batch(model: Any, call: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Repeat or cut the batch of a recorded call to the model's own."""
    size = model.inputs[0].shape[0]
    return [np.resize(array, (size, *array.shape[1:])) for array in call]


def compare(parts: Networks, part: str, model: Any, calls: list[list[np.ndarray]]) -> tuple[float, float]:
    """Relative root-mean-square error, and smallest cosine, of OpenVINO in float32 compute against torch."""
    compiled = _compile(model)
    square = reference = 0.0
    cosine = 1.0
    for call in calls:
        inputs = _batch(model, call)
        want = parts.run_torch(part, inputs).astype(np.float64)
        got = compiled(inputs)[0].astype(np.float64)
        square += float(((got - want) ** 2).sum())
        reference += float((want**2).sum())
        shape = (-1, want.shape[-1]) if part == "text_encoder" else (want.shape[0], -1)
        a, b = want.reshape(shape), got.reshape(shape)
        dots = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12)
        cosine = min(cosine, float(dots.min()))
    return (square / max(reference, 1e-30)) ** 0.5, cosine


def _compile(model: Any) -> Any:
    import openvino

    # The engine computes in float32; without the hint a processor with bfloat16 would be measured at that.
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    return openvino.Core().compile_model(model, "CPU", hints)


def read(path: Path) -> Any:
    """Read an IR."""
    import openvino

    return openvino.Core().read_model(path)


def save(model: Any, path: Path) -> Any:
    """Write an IR, floating-point weights in half precision, and return it as it reads back."""
    import openvino

    _keep_frequencies(model)
    openvino.save_model(model, str(path), compress_to_fp16=True)
    return read(path)


def _keep_frequencies(model: Any) -> None:
    """Store what is multiplied by a time and goes into sin and cos as 32-bit integers.

    Half precision would round a frequency by up to 2**-12 of itself: at time 999 that turns the angle by a
    quarter of a radian. Saving has no switch for single constants, but leaves integers alone.
    """
    import openvino
    from openvino import opset13 as op

    scale = 2.0**15
    for node in list(model.get_ops()):
        if node.get_type_name() not in ("Sin", "Cos"):
            continue
        product = node.input_value(0).get_node()
        for port in product.inputs():
            source = port.get_source_output().get_node()
            # Both sin and cos hang on one product: the second time it is done already.
            if source.get_type_name() != "Constant" or source.get_element_type() != openvino.Type.f32:
                continue
            values = source.get_data().astype(np.float64)
            assert np.abs(values).max() < 2, "time frequencies are at most 1"
            whole = op.convert(op.constant(np.round(values * scale * scale).astype(np.int32)), "f32")
            # Two factors: half precision does not reach down to 2**-30.
            factor = op.constant(np.float32(1.0 / scale))
            port.replace_source_output(op.multiply(op.multiply(whole, factor), factor).output(0))


@contextlib.contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Silence tracing warnings (sizes, which the graph keeps dynamic) and what is printed to stdout.

    Args:
        bars: show what is printed, NNCF's progress bars, on stderr: stdout is for results.
    """
    import io
    import logging
    import warnings

    import nncf

    level = logging.getLogger("nncf").level
    nncf.set_log_level(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr if bars else io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        nncf.set_log_level(level or logging.INFO)
