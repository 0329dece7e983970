"""What a command line names as the model and its adapters, opened.

Here, and nowhere else, a model may be a path: the operator of this machine typed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.libraries import quiet_libraries
from fewstep.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from fewstep.engine.adapters import AdapterUse
    from fewstep.engine.engine import Engine


def open_model(
    model: str | None,
    engine: str,
    folders: Sequence[Path],
    *,
    checkpoint: Path | None = None,
    unet: Path | None = None,
    vae: Path | None = None,
    loras: Sequence[Path] = (),
    embeddings: Sequence[Path] = (),
    embedding_files: Sequence[Path] = (),
) -> Engine:
    """Open a model by name or by path, with parts in place of its own, by the engine that was asked for.

    Args:
        model: a name; None is the default model, or that of ``checkpoint``.
        engine: ``auto``, ``openvino`` or ``torch``.
        folders: where models are looked for first.
        checkpoint: a pipeline folder, a bundle or a single file.
        unet: a file or folder with the denoiser.
        vae: a file or folder with the autoencoder.
        loras: folders where adapters are looked for first.
        embeddings: folders where embeddings are looked for first.
        embedding_files: single embeddings.

    Raises:
        UsageError: a name and a path.
        NotFoundError, CheckpointError, DependencyError, UsageError: as `fewstep.engine.engine.Engine`.
    """
    from fewstep.engine import registry
    from fewstep.engine.engine import Engine
    from fewstep.models.source import ModelSource

    for option, path in (("--checkpoint", checkpoint), ("--unet", unet), ("--vae", vae)):
        if path is not None and not path.exists():
            raise NotFoundError(f"{option} is {path}: no such file or folder; check the path")
    if model is not None and checkpoint is not None:
        raise UsageError(f"--model {model} and --checkpoint {checkpoint}: give one of them")
    quiet_libraries()
    named = catalogues(loras, embeddings, embedding_files)
    if checkpoint is None and unet is None and vae is None:
        return Engine(registry.find_for(engine, model, extra=folders), engine, **named)
    base = checkpoint
    if base is None:
        base = registry.find_for("torch" if engine == "auto" else engine, model, extra=folders).folder
    return Engine(ModelSource(base=base, denoiser=unet, vae=vae), engine, **named)


def catalogues(
    loras: Sequence[Path], embeddings: Sequence[Path], embedding_files: Sequence[Path] = ()
) -> dict[str, Any]:
    """What `fewstep.engine.engine.Engine` is told of adapters and embeddings; nothing for the usual folders.

    Raises:
        NotFoundError, CheckpointError: a single embedding is not there, is a pickle, or is none.
    """
    from fewstep.engine.adapters import Catalogue
    from fewstep.engine.embeddings import EmbeddingCatalogue

    found: dict[str, Any] = {}
    if loras:
        found["catalogue"] = Catalogue(loras)
    if embeddings or embedding_files:
        found["learned"] = EmbeddingCatalogue(embeddings, embedding_files)
    return found


def adapters(given: Sequence[str]) -> tuple[AdapterUse, ...]:
    """Read the values of ``--lora``.

    Raises:
        UsageError: one has another form.
    """
    from fewstep.engine.adapters import read_use

    return tuple(read_use(text) for text in given)
