"""Networks of the wheels in ncnn, on the CPU."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from fewstep.engine.upscaling.catalogue import INSTALL, Geometry, Network, base_path
from fewstep.engine.upscaling.tiles import Planes
from fewstep.errors import EngineError

_KEPT: Final = 2
"""Networks that stay loaded for the next picture: loading one costs as much as a small picture takes."""
_idle: OrderedDict[tuple[Network, int | None], NcnnRunner] = OrderedDict()
_lock = threading.Lock()


@contextlib.contextmanager
def runner(network: Network, threads: int | None = None) -> Iterator[NcnnRunner]:
    """Yield a network that nobody else uses meanwhile, loaded now or left from a picture before.

    Raises:
        As `NcnnRunner`.
    """
    key = (network, threads)
    with _lock:
        found = _idle.pop(key, None)
    found = found or NcnnRunner(network, threads)
    yield found
    with _lock:
        _idle[key] = found
        while len(_idle) > _KEPT:
            _idle.popitem(last=False)


class NcnnRunner:
    """A network that is ready to run; for one thread at a time.

    Args:
        network: which one.
        threads: CPU threads; None is all cores.

    Raises:
        DependencyError: its wheel is not installed.
        EngineError: its files cannot be loaded.
    """

    def __init__(self, network: Network, threads: int | None = None) -> None:
        import ncnn

        self._ncnn: Any = ncnn
        self._network = network
        self._net: Any = ncnn.Net()
        self._net.opt.use_vulkan_compute = False
        self._net.opt.num_threads = threads or os.cpu_count() or 1
        base = base_path(network)
        files = f"{base}.param", f"{base}.bin"
        if (
            not all(Path(file).is_file() for file in files)
            or self._net.load_param(files[0]) != 0
            or self._net.load_model(files[1]) != 0
        ):
            raise EngineError(f"{base}: the network cannot be loaded; reinstall it with: {INSTALL}")
        text = Path(files[0]).read_text(encoding="utf-8")
        # A layer: type, name, how many inputs and outputs, their names, parameters. Pooling with 4=1 is over
        # everything.
        layers = [line.split() for line in text.splitlines()]
        self._pools = [(line[4], line[5]) for line in layers if line[0] == "Pooling" and "4=1" in line]
        # A block ends where a sum of two inputs follows another sum.
        sums = [line[0] == "Eltwise" for line in layers]
        self._ends = [
            line[6] for line, here, before in zip(layers[1:], sums[1:], sums[:-1], strict=True)
            if here and before
        ]  # fmt: skip
        self._averages: list[Planes] = []

    @property
    def scale(self) -> int:
        """By how much it enlarges."""
        return self._network.scale

    @property
    def geometry(self) -> Geometry:
        """How it wants its tiles."""
        return self._network.geometry

    def set_averages(self, averages: list[Planes]) -> None:
        """Use these instead of the averages over what is seen, for the first layers of that kind."""
        self._averages = averages

    def features(self, planes: Planes, layer: int) -> Planes:
        """(C, h', w'): what the ``layer``-th average is taken of, given those before."""
        return self._extract({self._network.source: planes}, self._pools[layer][0])

    def block(self, planes: Planes, index: int) -> Planes:
        """(C, h, w) after the block of that number, from what is before it; of the first, (3, h, w)."""
        given = self._network.source if index == 0 else self._ends[index - 1]
        return self._extract({given: planes}, self._ends[index])

    def run(self, planes: Planes, features: Planes | None = None) -> Planes:
        """(3, h, w) in [0, 1], ``pad`` included -> (3, h' * scale, w' * scale), without ``pad``.

        Args:
            planes: of the picture.
            features: (C, h, w) after the last block, for networks that have blocks.

        Raises:
            EngineError: ncnn failed, or gave values that are not finite.
        """
        given = {self._network.source: planes}
        if features is not None:
            given[self._ends[-1]] = features
        made = self._extract(given, self._network.sink)
        off = 2 * self.geometry.pad
        shape = (3, (planes.shape[1] - off) * self.scale, (planes.shape[2] - off) * self.scale)
        if made.shape != shape:
            self._fail(planes, f"it gave {made.shape} and not {shape}")
        return made

    def _extract(self, given: dict[str, Planes], wanted: str) -> Planes:
        extractor: Any = self._net.create_extractor()
        averages = {self._pools[index][1]: values for index, values in enumerate(self._averages)}
        # ncnn reads the arrays' own memory, so they must live until it has.
        arrays = {name: np.ascontiguousarray(values) for name, values in {**given, **averages}.items()}
        for name, values in arrays.items():
            extractor.input(name, self._ncnn.Mat(values))
        code, result = extractor.extract(wanted)
        first = next(iter(given.values()))
        if code != 0:
            self._fail(first, f"ncnn stopped with code {code}, most often for want of memory")
        made = np.array(result, dtype=np.float32, copy=True)
        if not np.isfinite(made).all():
            self._fail(first, "it gave values that are not finite")
        return made

    def _fail(self, planes: Planes, reason: str) -> None:
        size = f"{planes.shape[2]}x{planes.shape[1]}"
        raise EngineError(
            f"upscaler {self._network.name}: failed on a tile of {size}: {reason}; try another one, such as "
            "lanczos"
        )
