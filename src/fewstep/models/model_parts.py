"""The networks of a model, wherever they lie: in a folder of diffusers' layout, or inside a single file.

A file's tensors are read one after another into a network that has no weights yet, so that there is never a
second copy of it in memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fewstep.checkpoint import half, single_file
from fewstep.checkpoint.detect import Detected
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.pipeline_folder import DIFFUSERS
from fewstep.errors import CheckpointError
from fewstep.models import families, strict

if TYPE_CHECKING:
    import torch

_DIT = "DiTTransformer2DModel"
"""diffusers' class of DiT, which is in no single file."""
TINY = "AutoencoderTiny"
"""diffusers' class of TAESD, the only network here whose single file has no other names than diffusers'."""


class Part(Protocol):
    """One network that can be loaded."""

    @property
    def class_name(self) -> str:
        """In diffusers or transformers."""

    @property
    def config(self) -> Mapping[str, Any]:
        """As in ``config.json``."""

    def load(self, dtype: torch.dtype) -> Any:
        """The network with its weights, in evaluation mode, on the CPU.

        Raises:
            NotFoundError, CheckpointError: it is missing, or not what it is said to be.
        """


@dataclass(frozen=True, kw_only=True)
class FolderPart:
    """A network's folder."""

    folder: Path
    class_name: str
    title: str
    """Of its family, for messages."""

    @property
    def config(self) -> Mapping[str, Any]:
        """See `Part`; raises as `families.config`."""
        return families.config(self.folder)

    def load(self, dtype: torch.dtype) -> Any:
        """See `Part`."""
        import diffusers
        import transformers

        if self.class_name in (*DIFFUSERS, TINY, _DIT):
            cls = getattr(diffusers, self.class_name)
            return strict.diffusers_network(cls, self.folder, dtype, self.title)
        cls = getattr(transformers, self.class_name)
        return strict.transformers_network(cls, self.folder, dtype, self.title)


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """A network inside a single file."""

    file: Path
    name: str
    """Of the part, such as ``unet``."""
    class_name: str
    config: Mapping[str, Any]
    detected: Detected
    """What the file was found to be."""

    def load(self, dtype: torch.dtype) -> Any:
        """See `Part`."""
        found = self.detected
        said: Any = {"family": found.family, "prediction_type": found.prediction_type}
        with single_file.open_file(self.file, **said) as reader:
            try:
                network = empty(self.class_name, self.config)
                single_file.fill(network, reader.part(self.name), _precision(dtype), family=found.family)
            except CheckpointError as error:
                raise CheckpointError(f"{shown(str(self.file), 300)}: {error}") from None
        return network.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class TinyFile:
    """TAESD in one file, both halves under diffusers' names."""

    file: Path
    config: Mapping[str, Any]
    class_name: str = TINY

    def load(self, dtype: torch.dtype) -> Any:
        """See `Part`."""
        from fewstep.checkpoint.tensorfile import TensorFile

        network = empty(self.class_name, self.config)
        wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        with TensorFile(self.file) as file:
            there = {name: entry.shape for name, entry in file.entries.items()}
            if there != wanted:
                odd = sorted(wanted.keys() ^ there.keys()) or sorted(
                    name for name in wanted if wanted[name] != there[name]
                )
                raise CheckpointError(
                    f"{self.file}: not the weights of TAESD as diffusers names them ({shown(odd[0])}); give "
                    "its diffusers folder or diffusion_pytorch_model.safetensors"
                )
            network.load_state_dict({name: file.read(name).to(dtype) for name in wanted}, assign=True)
        return network.eval().requires_grad_(False)


def empty(class_name: str, config: Mapping[str, Any]) -> Any:
    """A network of a known class whose parameters have no memory yet; its buffers have.

    Raises:
        CheckpointError: no network can be made by this config.
    """
    import diffusers
    import transformers

    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    try:
        with _no_memory(), strict.quiet():
            if class_name in (*DIFFUSERS, TINY):
                return getattr(diffusers, class_name)(**settings)
            kind = transformers.T5Config if class_name == "T5EncoderModel" else transformers.CLIPTextConfig
            return getattr(transformers, class_name)(kind(**settings))
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, IndexError, KeyError) as error:
        reason = shown(" ".join(str(error).split()), 200)
        raise CheckpointError(f"its shapes make no {class_name} ({reason}); give a whole file") from None


def _precision(dtype: torch.dtype) -> half.Precision:
    names = {code: name for name, code in half.PRECISIONS.items()}
    found: half.Precision = names[half.code_of(dtype)]  # type: ignore[assignment]
    return found


_patching = threading.Lock()


@contextlib.contextmanager
def _no_memory() -> Iterator[None]:
    """Parameters that this thread makes are on the ``meta`` device: they have a shape and no memory.

    ``torch.device("meta")`` would take the buffers along, and tables of positions are in no file.
    """
    import torch
    from torch import nn

    plain, own = nn.Module.register_parameter, threading.get_ident()

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and threading.get_ident() == own:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        plain(self, name, param)

    with _patching, torch.no_grad():
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = plain  # type: ignore[method-assign]
