"""What a model is put together from: a folder or file, and what takes the place of some of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Paths that the operator of this machine gave; names of requests never become one."""

    base: Path
    """A pipeline folder, or a single file with a whole model."""
    denoiser: Path | None = None
    """A file or folder with a U-Net or transformer alone, which draws in place of the base's; of a whole
    model its denoiser."""
    vae: Path | None = None
    """A file or folder with an autoencoder, or a tiny one (TAESD), in place of the base's."""

    @property
    def name(self) -> str:
        """What draws, for people: the denoiser's name, or the base's."""
        return plain_name(self.denoiser or self.base)


def plain_name(path: Path) -> str:
    """A file's name without its ending, or a folder's."""
    resolved = path.resolve()
    return resolved.stem if path.is_file() else resolved.name
