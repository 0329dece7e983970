"""The torch-free backend: a runtime bundle on OpenVINO, with static shapes and a cache of compiled networks.

Networks are loaded in the background from the moment a request is known, so that tokenising and imports
overlap with it. A network in the cache is imported instead of read and compiled: 0.35 s of CPU time instead
of 1.9 s for the bundled denoiser.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint.bundle import TOKENIZER, Bundle, student_part
from fewstep.diffusion.contract import SamplingContract
from fewstep.engine import control
from fewstep.engine.backends import compiled_cache, lanes
from fewstep.engine.backends.base import (
    Applied,
    Conditions,
    FloatArray,
    IntArray,
    ModelInfo,
    Placed,
    StudentInfo,
    TextEncoderInfo,
    f32,
)
from fewstep.errors import CheckpointError, DependencyError, EngineError, UsageError
from fewstep.models import signal_stack, students

if TYPE_CHECKING:
    from fewstep.engine.control import ControlUse

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Input name -> static shape, as a hashable key."""

_WHOLE = ("text_encoder", "vae_encoder", "vae_decoder")
"""Networks whose calls have every thread. The text encoder would gain a little on lanes where many wait;
but a second lane is set up at its first call: 0.2 s more until the first picture of a process."""
_TEXTS = 64
"""Encoded texts that are kept, for the next seed or step count of the same prompt."""


class OpenVINOBackend:
    """See `fewstep.engine.backends.base.Backend`.

    Args:
        bundle: what to run.
        threads: inference threads; None lets OpenVINO take every core.
        rows: images that one call of the denoiser takes. 1 loads the least; more is for servers.

    The denoiser of a small model runs in `lanes`: rows side by side, each call on its share of the threads.
    The calls of the other networks gain from every thread, and have all, one at a time.

    Raises:
        DependencyError: openvino is not installed.
        UsageError: rows is under 1.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, rows: int = 1) -> None:
        if rows < 1:
            raise UsageError(f"rows is {rows}: give 1 or more")
        self._ov = import_openvino()
        self._core = self._ov.Core()
        self._bundle = bundle
        self._threads = threads
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            # Threads tied to cores wait for whatever else runs there: on a busy machine a call took half as
            # long again, on an idle one nothing changes.
            "ENABLE_CPU_PINNING": "NO",
        }
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = threads
        self.lanes = lanes.count(bundle.path("denoiser").with_suffix(".bin").stat().st_size, threads)
        self.rows = max(rows, self.lanes)
        self._most = rows
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fewstep-load")
        self._loaded: dict[tuple[str, Shapes], Future[Any]] = {}
        self._lock = threading.Lock()
        self._texts: dict[bytes, FloatArray] = {}
        self.info = model_info(bundle)

    def describe(self, student: str | None = None) -> Mapping[str, str]:
        """OpenVINO's version, the denoiser's precision and the thread setting."""
        precisions = {made.name: made.precision for made in self._bundle.students}
        return {
            "backend": self.name,
            "openvino": self._ov.get_version().split("-")[0],
            "precision": self._bundle.precision["denoiser"] if student is None else precisions[student],
            "threads": "all" if self._threads is None else str(self._threads),
            "lanes": str(self.lanes),
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
        """Begin to load the denoiser first: it takes as long as all others together."""
        down, length = self._bundle.downscale, self._bundle.text_length * chunks
        for batch in dict.fromkeys(size for rows in batches for size in self._wanted(rows)):
            shapes = self._denoiser_shapes(batch, height // down, width // down, length)
            self._load(_denoiser(student), shapes)
        self._load("text_encoder", self._text_shapes())
        if tile is not None:
            width, height = tile
        if encode:
            self._load("vae_encoder", (("pixels", (1, 3, height, width)),))
        latent = (1, self._bundle.latent_channels, height // down, width // down)
        self._load("vae_decoder", (("latents", latent),))

    def adapt(self, adapters: Sequence[Applied], student: str | None = None) -> tuple[str, ...]:
        """Refuse adapters: a bundle's weights are compiled, and of lower precision."""
        if adapters:
            raise UsageError(
                f"adapter {adapters[0].path.stem!r:.100}: a runtime bundle takes no adapters; draw with the "
                "model's pipeline folder: --engine torch"
            )
        return ()

    def control(self, uses: Sequence[ControlUse]) -> None:
        """Refuse control networks: there are none here."""
        control.refuse(self.name, uses)

    def encode_text(
        self,
        ids: Sequence[IntArray | None],
        masks: Sequence[IntArray | None],
        clip_skip: int = 0,
        placed: Sequence[Sequence[Placed]] = (),
    ) -> Conditions:
        """One text in a call, and not again while it is among the last `_TEXTS`.

        Most orders have one new text, beside an empty negative prompt. A text has the same bits in any batch.
        """
        (own,), (own_mask,) = ids, masks
        assert own is not None and own_mask is not None and clip_skip == 0 and not placed
        keys = [own[row].tobytes() + own_mask[row].tobytes() for row in range(len(own))]
        known = {key: self._texts.pop(key) for key in dict.fromkeys(keys) if key in self._texts}
        for row, key in enumerate(keys):
            if key not in known:
                inputs = [own[row : row + 1], own_mask[row : row + 1]][: 1 + self._bundle.text_mask]
                known[key] = self._whole("text_encoder", self._text_shapes(), *inputs)
                known[key].flags.writeable = False  # it is given out again
        self._texts |= known  # the last ones used are the last in the dictionary
        for key in [*self._texts][:-_TEXTS]:
            del self._texts[key]
        return Conditions(tokens=_concatenate([known[key] for key in keys]))

    def denoise(
        self, x: FloatArray, t: FloatArray, conditions: Conditions, student: str | None = None
    ) -> FloatArray:
        """On every lane, in as few calls as there are networks for.

        A row has the same bits in every batch size, see docs/concepts/engine.md; so a batch that became
        smaller on the way goes on in the network that is there, and one whose own network is still being
        loaded goes through a smaller one. Without any this waits for its own.
        """
        part = _denoiser(student)

        def shapes(batch: int) -> Shapes:
            return self._denoiser_shapes(batch, x.shape[2], x.shape[3], conditions.tokens.shape[1])

        inputs = [x, t, conditions.tokens]
        count, place, done = len(x), 0, []
        share = -(-count // self.lanes)
        while place < count:
            begun: list[tuple[Any, int]] = []
            try:
                for lane in range(self.lanes):
                    if place == count:
                        break
                    size = self._size(
                        min(share, count - place), lambda batch: self._is_there(part, shapes(batch))
                    )
                    taken = min(size, count - place)
                    # The last row once more, in the places of a network that takes more than there are.
                    rows = [place + min(row, taken - 1) for row in range(size)]
                    request = self._load(part, shapes(size)).result()[lane]
                    request.start_async(_named(shapes(size), [values[rows] for values in inputs]))
                    begun.append((request, taken))
                    place += taken
                done += [_output(request, part)[:taken] for request, taken in begun]
            finally:
                for request, _ in begun:
                    with contextlib.suppress(RuntimeError):  # said above, or of no interest after another
                        request.wait()
        return _concatenate(done)

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """One picture at a time."""
        shapes: Shapes = (("pixels", (1, *pixels.shape[1:])),)
        rows = [self._whole("vae_encoder", shapes, pixels[i : i + 1]) for i in range(len(pixels))]
        raw = _concatenate(rows)
        return f32((raw - self._bundle.shift_factor) * self._bundle.scaling_factor) if scaled else raw

    def decode(self, latents: FloatArray) -> FloatArray:
        """One picture at a time."""
        raw = f32(latents / self._bundle.scaling_factor + self._bundle.shift_factor)
        shapes: Shapes = (("latents", (1, *raw.shape[1:])),)
        return _concatenate([self._whole("vae_decoder", shapes, raw[i : i + 1]) for i in range(len(raw))])

    def close(self) -> None:
        """Stop loading and let go of every network."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with signal_stack.kept():
            self._loaded.clear()

    def _text_shapes(self) -> Shapes:
        shape = (1, self._bundle.text_length)
        return (("ids", shape), ("mask", shape)) if self._bundle.text_mask else (("ids", shape),)

    def _denoiser_shapes(self, batch: int, height: int, width: int, length: int) -> Shapes:
        return (
            ("x", (batch, self._bundle.latent_channels, height, width)),
            ("t", (batch,)),
            ("text", (batch, length, self._bundle.text_width)),
        )

    def _all_sizes(self) -> list[int]:
        """Batch sizes that networks are compiled for."""
        return [1 << bits for bits in range(self._most.bit_length())]

    def _wanted(self, rows: int) -> list[int]:
        """Batch sizes that so many rows are given in."""
        sizes, left, share = [], rows, -(-rows // self.lanes)
        while left > 0:
            sizes.append(self._size(min(share, left), lambda size: True))
            left -= sizes[-1]
        return sizes

    def _size(self, left: int, is_there: Callable[[int], bool]) -> int:
        """Batch size of the next call, of which so many rows are left."""
        sizes = self._all_sizes()
        own = next((size for size in sizes if size >= left), sizes[-1])
        best = [own, *(size for size in sizes if size > own), *(size for size in sizes[::-1] if size < own)]
        return next((size for size in best if is_there(size)), own)

    def _is_there(self, part: str, shapes: Shapes) -> bool:
        with self._lock:
            network = self._loaded.get((part, shapes))
        return network is not None and network.done()

    def _load(self, part: str, shapes: Shapes) -> Future[Any]:
        key = (part, shapes)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self._pool.submit(self._compile, part, shapes)
            return self._loaded[key]

    def _whole(self, part: str, shapes: Shapes, *values: Any) -> FloatArray:
        """One call of a network that has every thread."""
        (request,) = self._load(part, shapes).result()
        request.start_async(_named(shapes, values))
        return _output(request, part)

    def _compile(self, part: str, shapes: Shapes) -> list[Any]:
        """Inference requests of one network, of a denoiser one per lane; from the cache when it is there."""
        parallel = 1 if part in _WHOLE else self.lanes
        config = self._config | ({} if parallel == 1 else {"NUM_STREAMS": str(parallel)})
        settings = ",".join(f"{key}={value}" for key, value in sorted(config.items()))
        file = compiled_cache.path(
            self._bundle.part_hash(part), str(shapes), settings, self._ov.get_version(),
            compiled_cache.cpu_identity(),
        )  # fmt: skip

        def requests(compiled: Any) -> list[Any]:
            return [compiled.create_infer_request() for _ in range(parallel)]

        if file.is_file():
            try:
                blob = self._ov.tensor_from_file(file)  # mapped, not read
                return requests(self._core.import_model(blob, "CPU", config))
            except RuntimeError:
                compiled_cache.drop(file)  # written by a broken process: compile again
        try:
            model = self._core.read_model(self._bundle.path(part))
            model.reshape({name: list(shape) for name, shape in shapes})
            compiled = self._core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self._bundle.path(part)}: OpenVINO cannot load it ({_first_line(error)}); "
                "export the bundle again, with the OpenVINO that is installed here"
            ) from error
        data = compiled.export_model()
        compiled_cache.store(file, data if isinstance(data, bytes) else data.getvalue())
        return requests(compiled)


def _named(shapes: Shapes, inputs: Sequence[Any]) -> dict[str, Any]:
    return {name: value for (name, _), value in zip(shapes, inputs, strict=True)}


def _output(request: Any, part: str) -> FloatArray:
    """Wait for a call, and copy what it made: the request's own memory is used again."""
    try:
        request.wait()
        return f32(request.get_output_tensor(0).data.copy())
    except RuntimeError as error:
        raise EngineError(f"{part}: OpenVINO failed while drawing ({_first_line(error)})") from error


def model_info(bundle: Bundle) -> ModelInfo:
    """What the engine must know of a bundle.

    Raises:
        CheckpointError: a sampling contract in it cannot be read, or is not one of a student.
    """
    contract = _contract(bundle.contract)
    encoder = TextEncoderInfo(
        kind="bert" if bundle.text_mask else "clip",
        length=bundle.text_length,
        tokenizer_json=(bundle.folder / TOKENIZER).read_text(encoding="utf-8"),
    )
    return ModelInfo(
        name=bundle.name,
        hash=bundle.hash,
        contract=contract,
        latent_channels=bundle.latent_channels,
        downscale=bundle.downscale,
        encoders=(encoder,),
        native_size=bundle.native_size,
        size_multiple=bundle.size_multiple,
        max_size=bundle.max_size,
        licence=bundle.licence,
        family=contract.base_family,
        students=tuple(
            StudentInfo(
                name=student.name,
                hash=bundle.files[f"{student.part}.bin"].sha256,
                contract=students.check_contract(student.name, _contract(student.contract)),
            )
            for student in bundle.students
        ),
    )


def _contract(opaque: Mapping[str, Any]) -> SamplingContract:
    import json

    return SamplingContract.from_json(json.dumps(dict(opaque)))


def _denoiser(student: str | None) -> str:
    """The part that is the denoiser of a student, or of the model itself."""
    return "denoiser" if student is None else student_part(student)


def import_openvino() -> Any:
    """Import OpenVINO without its model converter.

    The converter takes a third of the import time, is not needed to run a model, and reports the import
    over the network. It is blocked for the duration of the import only; ``openvino.tools.ovc`` stays
    importable afterwards.

    Raises:
        DependencyError: openvino is not installed, or cannot be loaded here.
    """
    converter = "openvino.tools.ovc"
    blocked = "openvino" not in sys.modules and converter not in sys.modules
    if blocked:
        sys.modules[converter] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise DependencyError(
            f"the openvino backend needs openvino, which cannot be imported ({_first_line(error)}); "
            "install it with: pip install openvino"
        ) from error
    finally:
        if blocked:
            del sys.modules[converter]
    return openvino


def _concatenate(rows: list[FloatArray]) -> FloatArray:
    import numpy as np

    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if not line.startswith("Exception from")), "no reason given"
    )
