"""The models of a server: opened by name, one of them with its networks in memory.

What a model is (`ModelInfo`) costs little and is kept of every model that was asked for: an order is
checked before it waits. Networks are loaded by the worker's thread when it comes to an order of it, and
those of the model before are let go of then, not earlier: orders that were taken for it are drawn with it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fewstep.engine import registry
from fewstep.engine.adapters import Catalogue
from fewstep.engine.backends.base import ModelInfo
from fewstep.engine.embeddings import EmbeddingCatalogue
from fewstep.engine.engine import Engine
from fewstep.errors import FewstepError, NotFoundError, UsageError

_FORMS: tuple[registry.Kind, ...] = ("pipeline", "checkpoint")
"""Kinds of models that take adapters."""

Opener = Callable[[str | None], Engine]
"""Opens the engine of a model by name; None is the server's own."""


class Pool:
    """See the module.

    Args:
        default: name of the model that draws when none is asked for; None is the registry's.
        engine: name of the backend, see `fewstep.engine.engine.open_backend`.
        threads: of inference.
        rows: images that are worth drawing in one batch.
        folders: further folders of models.
        loras: further folders of adapters.
        embeddings: further folders of learnt words.
        opener: opens engines; for tests.
    """

    def __init__(
        self,
        default: str | None = None,
        *,
        engine: str = "auto",
        threads: int | None = None,
        rows: int = 1,
        folders: Sequence[Path] = (),
        loras: Sequence[Path] = (),
        embeddings: Sequence[Path] = (),
        opener: Opener | None = None,
    ) -> None:
        self._default = default
        self._engine = engine
        self._threads = threads
        self._rows = rows
        self._folders = tuple(folders)
        self.adapters = Catalogue(loras)
        self.learned = EmbeddingCatalogue(embeddings)
        self._opener = opener or self._open
        self._lock = threading.Lock()
        self._using = threading.Lock()
        self._infos: dict[str, ModelInfo] = {}
        self._current: tuple[str, Engine] | None = None
        self._opened: dict[str, Engine] = {}

    @property
    def default(self) -> str:
        """Name of the model that draws when none is asked for.

        Raises:
            NotFoundError: there is no model at all.
        """
        if self._default is None:
            self._default = self.info(None).name
        return self._default

    def models(self) -> list[registry.ModelEntry]:
        """Every model that can be asked for; of two with one name, the one that is drawn with."""
        found: dict[str, registry.ModelEntry] = {}
        for entry in registry.models(self._folders):
            before = found.setdefault(entry.name, entry)
            if registry.before(self._engine, entry, before):
                found[entry.name] = entry
        return list(found.values())

    def adaptable(self, name: str | None = None) -> str:
        """What draws a model with adapters: itself, or its other form where it is a runtime bundle.

        That is the model folder or file of the same name.

        Returns:
            A name for `info` and `using`.

        Raises:
            UsageError: there is none, or PyTorch is not installed.
            NotFoundError: no such model.
        """
        wanted = self.default if name is None else name
        if self._engine == "fake" or self._opener != self._open:
            return wanted
        entry = self._entry(wanted)
        if entry.kind != "bundle":
            return wanted
        why = f"model {wanted}: a runtime bundle takes no adapters, and "
        try:
            other = registry.find(entry.name, kind=_FORMS, extra=self._folders)
        except NotFoundError:
            raise UsageError(
                f"{why}there is no model folder or file of that name; choose another model, or name a folder "
                "that has it with --models-dir"
            ) from None
        if self._engine == "openvino" or importlib.util.find_spec("torch") is None:
            raise UsageError(f'{why}its folder needs PyTorch; install it with: pip install "fewstep[torch]"')
        return f"{other.name}:{other.kind}"

    def info(self, name: str | None = None) -> ModelInfo:
        """What a model is; opens it when it is asked for the first time, without its networks.

        Raises:
            NotFoundError: no such model.
            CheckpointError, DependencyError, UsageError: it cannot be opened.
        """
        with self._lock:
            wanted = name if name is not None else self._default
            if wanted is not None and wanted in self._infos:
                return self._infos[wanted]
            engine = self._opener(wanted)
            own = engine.info
            key = wanted if wanted is not None else own.name
            self._infos[key] = own
            self._opened[key] = engine
            if self._default is None and name is None:
                self._default = key
            return own

    @contextlib.contextmanager
    def using(self, name: str | None = None) -> Iterator[Engine]:
        """Yield the engine of a model, whose networks may be loaded; one caller at a time has it.

        Networks of the model that was used before are closed. When opening fails the one before stays.

        Raises:
            As `info`.
        """
        with self._using:
            yield self._use(name)

    def _use(self, name: str | None) -> Engine:
        info = self.info(name)
        key = name if name is not None else self.default
        with self._lock:
            if self._current is not None and self._current[0] == key:
                return self._current[1]
            engine = self._opened.pop(key, None) or self._opener(key)
            before, self._current = self._current, (key, engine)
            self._infos[key] = engine.info if engine.info.hash != info.hash else info
        if before is not None:
            before[1].close()
        return engine

    def loaded(self) -> str | None:
        """Name of the model whose networks may be in memory."""
        current = self._current
        return None if current is None else current[0]

    def unload(self) -> None:
        """Let go of all networks once nobody uses them; the next order loads them again."""
        with self._using:
            with self._lock:
                before, self._current = self._current, None
            if before is not None:
                before[1].close()

    def refresh(self) -> None:
        """Forget what models are, so that files that were changed are read again."""
        with self._lock:
            self._infos = {key: info for key, info in self._infos.items() if key == self.loaded()}
            self._opened = {}

    def close(self) -> None:
        """Let go of everything."""
        self.unload()
        with self._lock:
            opened, self._opened = self._opened, {}
        for engine in opened.values():
            engine.close()

    def _open(self, name: str | None) -> Engine:
        if self._engine == "fake":
            return Engine(backend="fake")
        entry = self._entry(name)
        try:
            return Engine(
                entry, self._engine, threads=self._threads, rows=self._rows, catalogue=self.adapters,
                learned=self.learned,
            )  # fmt: skip
        except FewstepError as error:
            # A message of the engine names folders; a client is told the model's name only.
            raise type(error)(str(error).replace(str(entry.folder), entry.name)) from error

    def _entry(self, name: str | None) -> registry.ModelEntry:
        plain, _, kind = (name or "").rpartition(":")
        try:
            if plain and kind in _FORMS:  # as `adaptable` names it
                return registry.find(plain, kind=(kind,), extra=self._folders)
            return registry.find_for(self._engine, name, extra=self._folders)
        except NotFoundError as error:
            there = ", ".join(entry.name for entry in self.models()) or "none"
            text = f"model {name!r:.100}: not found; there are: {there}"
            raise NotFoundError(text, field="model") from error
