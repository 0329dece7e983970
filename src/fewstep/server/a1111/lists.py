"""What there is, in the words of the WebUI's lists. Names alone: no path of the server is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.engine import embeddings as learned
from fewstep.engine.upscaling import catalogue
from fewstep.errors import FewstepError
from fewstep.server.a1111 import models, names
from fewstep.server.schemas import a1111_answers as answers

if TYPE_CHECKING:
    from fewstep.engine.adapters import Catalogue
    from fewstep.engine.backends.base import ModelInfo
    from fewstep.engine.embeddings import EmbeddingCatalogue
    from fewstep.server.generation import Generator

_PRIVATE = ("dir", "path", "file", "folder")
"""Parts of keys of an adapter's metadata that tell of its trainer's disk."""
_LONGEST = 10_000
"""Characters of one entry of metadata."""


def samplers() -> list[answers.Sampler]:
    """Every sampler."""
    return [
        answers.Sampler(name=shown, aliases=names.aliases(solver), options={})
        for shown, solver in names.SAMPLERS.items()
    ]


def schedulers() -> list[answers.Scheduler]:
    """Every scheduler."""
    return [
        answers.Scheduler(
            name=one.name, label=one.label, aliases=list(one.aliases) or None, default_rho=one.rho
        )
        for one in names.SCHEDULERS.values()
    ]


def upscalers() -> list[answers.Upscaler]:
    """Every upscaler that can be used here."""
    found = [answers.Upscaler(name="None", scale=4.0)]
    for shown, name in names.upscalers().items():
        scale = 4.0 if name in catalogue.PLAIN else float(max(catalogue.UPSCALERS[name].networks))
        model = None if name in catalogue.PLAIN else name
        found.append(answers.Upscaler(name=shown, model_name=model, scale=scale))
    return found


def realesrgan_models() -> list[answers.RealesrganModel]:
    """Networks of Real-ESRGAN that can be used here."""
    return [
        answers.RealesrganModel(name=shown, scale=max(catalogue.UPSCALERS[name].networks))
        for shown, name in names.upscalers().items()
        if shown.startswith("R-ESRGAN")
    ]


def sd_models(generator: Generator) -> list[answers.Model]:
    """Every model."""
    return [_model(one) for one in models.listed(generator)]


def loras(known: Catalogue) -> list[answers.Lora]:
    """Every adapter, with what its file says of itself."""
    from fewstep.checkpoint import safetensors
    from fewstep.checkpoint.adapters import alias

    found = []
    for entry in known.entries():
        try:
            metadata = safetensors.read_metadata(entry.path)
        except FewstepError:
            metadata = {}
        shown = {
            key: value[:_LONGEST]
            for key, value in metadata.items()
            if not any(part in key.lower() for part in _PRIVATE)
        }
        also = alias(metadata) or entry.name
        found.append(answers.Lora(name=entry.name, alias=also, path=entry.name, metadata=shown))
    return found


def embeddings(known: EmbeddingCatalogue, info: ModelInfo | None) -> answers.Embeddings:
    """Every embedding: those that fit the model that is in memory, and the others.

    Args:
        known: where they are looked for.
        info: of the model in memory; None counts all as fitting.
    """
    from fewstep.checkpoint import embeddings as files

    loaded: dict[str, answers.Embedding] = {}
    skipped: dict[str, answers.Embedding] = {}
    for entry in known.entries():
        try:
            tables = list(files.read_header(entry.path).tables.values())
        except FewstepError:
            continue
        one = answers.Embedding(shape=tables[0].width, vectors=tables[0].vectors)
        fits = info is None or bool(learned.choose(info, [entry.name])[0])
        (loaded if fits else skipped)[entry.name] = one
    return answers.Embeddings(loaded=loaded, skipped=skipped)


def memory() -> answers.Memory:
    """Bytes of main memory; of a graphics card nothing is asked, since that would load its library."""
    import psutil

    whole = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    ram: dict[str, Any] = {"free": whole.available, "used": own, "total": whole.total}
    return answers.Memory(ram=ram, cuda={"error": "not asked: pictures are drawn on the CPU"})


def _model(one: models.Named) -> answers.Model:
    short = None if one.sha256 is None else one.sha256[:10]
    return answers.Model(
        title=one.title, model_name=one.name, hash=short, sha256=one.sha256, filename=one.name
    )
