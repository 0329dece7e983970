"""The backend for pipeline folders: PyTorch and diffusers, on a GPU when there is one.

Float32 on a CPU, where bfloat16 is slower than float32 on most machines; bfloat16 on CUDA for the denoiser
and the text encoder, with the autoencoder in float32, because its half-precision error shows in plain
areas.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checkpoint.bundle import student_part
from fewstep.engine.backends.base import FloatArray, IntArray, ModelInfo, StudentInfo, f32
from fewstep.errors import DependencyError


class TorchBackend:
    """See `fewstep.engine.backends.base.Backend`.

    Args:
        folder: a pipeline folder.
        threads: intra-op threads on the CPU; None leaves torch's own setting.
        device: a torch device; None takes CUDA, then MPS, then the CPU.

    Raises:
        DependencyError: torch, diffusers or transformers is not installed.
        NotFoundError, CheckpointError: as `fewstep.models.load.pipeline`.
    """

    name = "torch"

    def __init__(self, folder: Path, *, threads: int | None = None, device: str | None = None) -> None:
        require()
        import torch

        from fewstep.checkpoint.safetensors import folder_hash
        from fewstep.models import fixed_tokenizer, load, wrappers

        self._torch = torch
        if threads is not None:
            torch.set_num_threads(threads)
        self._device = torch.device(device or _best_device(torch))
        self._half = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self.rows = 8 if self._device.type == "cuda" else 4
        self._folder = load.check_folder(folder)
        load.check_index(folder)
        contract, auto = load.contract(folder), load.autoencoder(folder / "vae")
        text_encoder, tokenizer = load.text_parts(folder)
        masked = bool(getattr(text_encoder.config, "use_attention_mask", False))
        self._masked = masked
        self._text = wrappers.text_encoder(text_encoder, masked=masked).to(self._device, self._half)
        self._denoisers: dict[str | None, Any] = {}
        self._encoder = wrappers.encoder(auto).to(self._device)
        self._decoder = wrappers.decoder(auto).to(self._device)
        for module in (self._encoder, self._decoder):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._scale = float(auto.config.scaling_factor)
        self._shift = float(auto.config.shift_factor or 0.0)
        downscale = 2 ** (len(auto.config.block_out_channels) - 1)
        width, height = contract.native_sizes[0]
        self.info = ModelInfo(
            name=folder.resolve().name,
            hash=folder_hash(folder),
            contract=contract,
            latent_channels=int(auto.config.latent_channels),
            downscale=downscale,
            text_length=int(tokenizer.model_max_length),
            native_size=(width, height),
            size_multiple=downscale,
            max_size=4 * max(width, height),
            licence="see the model card",
            tokenizer_json=fixed_tokenizer.to_json(tokenizer),
            students=tuple(
                StudentInfo(name=name, hash=folder_hash(folder / student_part(name)), contract=own)
                for name, own in load.student_contracts(folder).items()
            ),
        )

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
        self, width: int, height: int, *, batches: tuple[int, ...], encode: bool, student: str | None = None
    ) -> None:
        """Load the denoiser; everything else is loaded already."""
        self._denoiser(student)

    def encode_text(self, ids: IntArray, mask: IntArray) -> FloatArray:
        """One call."""
        inputs = [ids, mask] if self._masked else [ids]
        return self._call(self._text, inputs, None)

    def denoise(
        self, x: FloatArray, t: FloatArray, text: FloatArray, student: str | None = None
    ) -> FloatArray:
        """One call; the time stays float32, as its embedding is computed in float32."""
        torch = self._torch
        with torch.inference_mode():
            raw = self._denoiser(student)(
                self._tensor(x, self._half), self._tensor(t, None), self._tensor(text, self._half)
            )
        return f32(raw.float().cpu().numpy())

    def encode_image(self, pixels: FloatArray) -> FloatArray:
        """One call."""
        return f32((self._call(self._encoder, [pixels], None) - self._shift) * self._scale)

    def decode(self, latents: FloatArray) -> FloatArray:
        """One call."""
        return self._call(self._decoder, [latents / self._scale + self._shift], self._torch.float32)

    def close(self) -> None:
        """Let go of the networks."""
        del self._text, self._denoisers, self._encoder, self._decoder

    def _denoiser(self, student: str | None) -> Any:
        """The network of a student, or of the model itself; loaded at the first call."""
        if student not in self._denoisers:
            from fewstep.models import load, wrappers

            if student is None:
                network = load.denoiser(self._folder / "unet")
            else:
                network, _ = load.load_student(self._folder, student)
            module: Any = wrappers.denoiser(network).to(self._device, self._half)
            self._denoisers[student] = module.to(memory_format=self._torch.channels_last)
        return self._denoisers[student]

    def _tensor(self, array: Any, dtype: Any) -> Any:
        # A time broadcast to one row stays read-only, which torch warns of.
        return self._torch.from_numpy(np.require(array, requirements="W")).to(self._device, dtype)

    def _call(self, module: Any, inputs: list[Any], dtype: Any) -> FloatArray:
        with self._torch.inference_mode():
            result = module(*(self._tensor(array, dtype) for array in inputs))
        return f32(result.float().cpu().numpy())


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
