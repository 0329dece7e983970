"""The backend for pipeline folders and single files: PyTorch and diffusers, on a GPU when there is one.

Every family of `fewstep.models.families`. Float32 on a CPU, where bfloat16 is slower than float32 on most
machines; bfloat16 on CUDA for the denoiser and the text encoders, with the autoencoder in float32: its
half-precision error shows in plain areas, and Stable Diffusion XL's overflows in half precision.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.engine.backends import torch_info
from fewstep.engine.backends.base import (
    Applied,
    Conditions,
    FloatArray,
    IntArray,
    Placed,
    f32,
)
from fewstep.errors import DependencyError
from fewstep.models.source import ModelSource

if TYPE_CHECKING:
    from fewstep.engine.control import ControlUse


class TorchBackend:
    """See `fewstep.engine.backends.base.Backend`.

    Args:
        model: a pipeline folder or a single file, or what a model is put together from.
        threads: intra-op threads on the CPU; None leaves torch's own setting.
        device: a torch device; None takes CUDA, then MPS, then the CPU.

    Raises:
        DependencyError: torch, diffusers or transformers is not installed.
        NotFoundError, CheckpointError: as `fewstep.models.opening.open_model`.
    """

    name = "torch"

    def __init__(
        self, model: Path | ModelSource, *, threads: int | None = None, device: str | None = None
    ) -> None:
        require()
        import torch

        from fewstep.models import opening, wrappers

        self._torch = torch
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device or _best_device(torch))
        self._half = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self.rows = 8 if self._device.type == "cuda" else 4
        source = ModelSource(base=model) if isinstance(model, Path) else model
        self._opened = opening.open_model(source)
        auto = self._opened.parts["vae"].load(torch.float32)
        self._encoder = wrappers.encoder(auto).to(self._device)
        self._decoder = wrappers.decoder(auto).to(self._device)
        for module in (self._encoder, self._decoder):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._scale, self._shift = torch_info.latent_scale(auto.config)
        tokenizers = self._opened.tokenizers()
        self._text = self._load_text()
        self._networks: dict[str | None, Any] = {}
        self._denoisers: dict[str | None, Any] = {}
        self._merged: Any = None
        self._controls: Any = None
        self.info = torch_info.model_info(
            self._opened, auto.config, tokenizers, self._text.max_clip_skip(), self._text.widths(),
            self._text.vector_widths(),
        )  # fmt: skip

    def describe(self, student: str | None = None) -> Mapping[str, str]:
        """Torch's version, the number type of the denoiser, the device and its threads."""
        return {
            "backend": self.name,
            "torch": str(self._torch.__version__),
            "precision": str(self._half).removeprefix("torch."),
            "device": str(self._device),
            "threads": str(self._torch.get_num_threads()),
        }

    def prepare(
        self,
        width: int,
        height: int,
        *,
        batches: tuple[int, ...],
        encode: bool,
        student: str | None = None,
        tile: tuple[int, int] | None = None,
        chunks: int = 1,
    ) -> None:
        """Load the denoiser; everything else is loaded already."""
        self._denoiser(student)

    def adapt(self, adapters: Sequence[Applied], student: str | None = None) -> tuple[str, ...]:
        """Fold them into the weights; what was there before is kept as a copy and put back."""
        if self._merged is not None:
            self._merged.remove()
            self._merged = None
        if not adapters:
            return ()
        from fewstep.engine.backends import torch_adapters
        from fewstep.models import lora_apply

        self._denoiser(student)
        modules = dict(zip(self._opened.text_parts, self._text.encoders, strict=True))
        modules[self._opened.family.denoiser] = self._networks[student]
        uses, warnings = torch_adapters.read(adapters, lora_apply.shapes(modules))
        self._merged = lora_apply.merged(modules, uses)
        return warnings

    def control(self, uses: Sequence[ControlUse]) -> None:
        """Load them at their first use; they stay loaded."""
        if self._controls is None:
            if not uses:
                return
            from fewstep.engine.backends.torch_control import Controls

            family, config = self._opened.family, self._opened.denoiser.config
            unet = config if family.denoiser == "unet" else None
            self._controls = Controls(unet, self.info.downscale, self._device, self._half)
        self._controls.use(uses)

    def encode_text(
        self,
        ids: Sequence[IntArray | None],
        masks: Sequence[IntArray | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Conditions:
        """One call of every text encoder."""
        with self._torch.inference_mode():
            text = self._text(
                [self._given(array, None) for array in ids], [self._given(array, None) for array in masks],
                clip_skip,
                [[(one.row, one.position, self._tensor(one.vectors, None)) for one in own] for own in placed],
            )  # fmt: skip
        return Conditions(
            tokens=_numpy(text.tokens),
            pooled=None if text.pooled is None else _numpy(text.pooled),
            mask=None if text.mask is None else text.mask.cpu().numpy(),
            classes=None if text.classes is None else text.classes.cpu().numpy(),
        )

    def denoise(
        self, x: FloatArray, t: FloatArray, conditions: Conditions, student: str | None = None
    ) -> FloatArray:
        """One call; the time stays float32, as its embedding is computed in float32."""
        from fewstep.models.conditions import Conditions as Told

        # Loaded outside of inference mode: adapters could not change its weights in place otherwise.
        network = self._denoiser(student)
        with self._torch.inference_mode():
            told = Told(
                text=self._tensor(conditions.tokens, self._half),
                pooled=self._given(conditions.pooled, self._half),
                concat=self._given(conditions.concat, self._half),
                guidance=self._given(conditions.guidance, None),
                classes=self._given(conditions.classes, None),
            )
            mask = self._given(conditions.mask, None)
            latents, times = self._tensor(x, self._half), self._tensor(t, None)
            if self._controls is not None:
                told = self._controls.add(latents, times, told)
            raw = network(latents, times, told, mask)
        return _numpy(raw)

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """One call."""
        raw = self._call(self._encoder, pixels)
        return f32((raw - self._shift) * self._scale) if scaled else raw

    def decode(self, latents: FloatArray) -> FloatArray:
        """One call."""
        return self._call(self._decoder, latents / self._scale + self._shift)

    def close(self) -> None:
        """Let go of the networks."""
        del self._text, self._denoisers, self._networks, self._merged, self._controls
        del self._encoder, self._decoder

    def _load_text(self) -> Any:
        """Load the text encoders as one stack."""
        from fewstep.models import prompting

        opened = self._opened
        if opened.family.text == "classes":
            return prompting.ClassStack()
        encoders = [opened.parts[name].load(self._torch.float32) for name in opened.text_parts]
        stack = prompting.TextStack(
            opened.family.text,
            encoders,
            width=torch_info.whole(opened.denoiser.config.get("joint_attention_dim")),
            masked=bool(getattr(encoders[0].config, "use_attention_mask", False)),
        )
        return stack.eval().to(self._device, self._half)

    def _denoiser(self, student: str | None) -> Any:
        """How the network of a student, or of the model itself, is called; loaded at the first call."""
        if student not in self._denoisers:
            from fewstep.models import calls, load

            opened = self._opened
            network: Any
            if student is None:
                network = opened.denoiser.load(self._torch.float32)
            else:
                assert opened.folder is not None
                network, _ = load.load_student(opened.folder, student)
            # the plain method: diffusers' own warns of modules to be kept in float32 even when there are none
            plain: Any = self._torch.nn.Module.to
            plain(network, self._device, self._half)
            if opened.family.denoiser == "unet":
                plain(network, memory_format=self._torch.channels_last)
            t5 = "text_encoder_3" in opened.parts
            empty = 0 if t5 or opened.family.max_tokens is None else opened.family.max_tokens
            self._networks[student] = network
            self._denoisers[student] = calls.caller(network, self.info.downscale, empty_tokens=empty)
        return self._denoisers[student]

    def _tensor(self, array: Any, dtype: Any) -> Any:
        # A time broadcast to one row stays read-only, which torch warns of.
        return self._torch.from_numpy(np.require(array, requirements="W")).to(self._device, dtype)

    def _given(self, array: Any, dtype: Any) -> Any:
        return None if array is None else self._tensor(array, dtype)

    def _call(self, module: Any, pixels: FloatArray) -> FloatArray:
        with self._torch.inference_mode():
            return _numpy(module(self._tensor(f32(pixels), self._torch.float32)))


def _numpy(tensor: Any) -> FloatArray:
    return f32(tensor.float().cpu().numpy())


def require() -> None:
    """Check that torch and its companions are installed, without importing them.

    Raises:
        DependencyError: with the command that installs them.
    """
    for package in ("torch", "diffusers", "transformers"):
        try:
            found = importlib.util.find_spec(package) is not None
        except ValueError:  # blocked in sys.modules
            found = False
        if not found:
            raise DependencyError(
                f"the torch backend needs {package}, which is not installed; "
                "install it with: pip install 'fewstep[torch]'"
            )


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
