"""The torch-free backend: a runtime bundle on OpenVINO, with static shapes and a cache of compiled networks.

Networks are loaded in the background from the moment a request is known, so that tokenising and imports
overlap with it. A network in the cache is imported instead of read and compiled: 0.35 s of CPU time instead
of 1.9 s for the bundled denoiser.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint.bundle import TOKENIZER, Bundle, student_part
from fewstep.diffusion.contract import SamplingContract
from fewstep.engine import control
from fewstep.engine.backends import compiled_cache
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


class OpenVINOBackend:
    """See `fewstep.engine.backends.base.Backend`.

    Args:
        bundle: what to run.
        threads: inference threads; None lets OpenVINO take every core.
        rows: images that the denoiser is given at once. 1 loads the least; more is for servers, and worth it
            where the CPU has wide matrix instructions (docs/concepts/engine.md).

    Raises:
        DependencyError: openvino is not installed.
        UsageError: rows is under 1.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, rows: int = 1) -> None:
        if rows < 1:
            raise UsageError(f"rows is {rows}: give 1 or more")
        self.rows = rows
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
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fewstep-load")
        self._loaded: dict[tuple[str, Shapes], Future[Any]] = {}
        self._lock = threading.Lock()
        self.info = model_info(bundle)

    def describe(self, student: str | None = None) -> Mapping[str, str]:
        """OpenVINO's version, the denoiser's precision and the thread setting."""
        precisions = {made.name: made.precision for made in self._bundle.students}
        return {
            "backend": self.name,
            "openvino": self._ov.get_version().split("-")[0],
            "precision": self._bundle.precision["denoiser"] if student is None else precisions[student],
            "threads": "all" if self._threads is None else str(self._threads),
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
        for batch in dict.fromkeys(size for rows in batches for size in self._sizes(rows)):
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
        """Two rows at a time, the shape that the bundle was made with."""
        (own,), (own_mask,) = ids, masks
        assert own is not None and own_mask is not None and clip_skip == 0 and not placed
        rows = []
        for start in range(0, len(own), 2):
            pair = [index if index < len(own) else start for index in (start, start + 1)]
            inputs = [own[pair], own_mask[pair]] if self._bundle.text_mask else [own[pair]]
            rows.append(self._run("text_encoder", self._text_shapes(), inputs))
        return Conditions(tokens=f32(_concatenate(rows)[: len(own)]))

    def denoise(
        self, x: FloatArray, t: FloatArray, conditions: Conditions, student: str | None = None
    ) -> FloatArray:
        """As few calls as `rows` allows; a network that was not prepared is compiled now.

        A row has the same bits in every batch size, see docs/concepts/engine.md; so a batch that became
        smaller on the way goes on in the network that is there.
        """
        part, done, place = _denoiser(student), [], 0

        def shapes(batch: int) -> Shapes:
            return self._denoiser_shapes(batch, x.shape[2], x.shape[3], conditions.tokens.shape[1])

        for wanted in self._sizes(len(x)):
            larger = [size for size in self._all_sizes() if size > wanted]
            size = next((own for own in (wanted, *larger) if self._is_loaded(part, shapes(own))), wanted)
            count = min(wanted, len(x) - place)
            # The last row once more, in the places of a network that takes more than there are.
            rows = [place + min(row, count - 1) for row in range(size)]
            done.append(self._run(part, shapes(size), [x[rows], t[rows], conditions.tokens[rows]])[:count])
            place += count
        return _concatenate(done)

    def encode_image(self, pixels: FloatArray, *, scaled: bool = True) -> FloatArray:
        """One picture at a time."""
        shapes: Shapes = (("pixels", (1, *pixels.shape[1:])),)
        rows = [self._run("vae_encoder", shapes, [pixels[i : i + 1]]) for i in range(len(pixels))]
        raw = _concatenate(rows)
        return f32((raw - self._bundle.shift_factor) * self._bundle.scaling_factor) if scaled else raw

    def decode(self, latents: FloatArray) -> FloatArray:
        """One picture at a time."""
        raw = f32(latents / self._bundle.scaling_factor + self._bundle.shift_factor)
        shapes: Shapes = (("latents", (1, *raw.shape[1:])),)
        return _concatenate([self._run("vae_decoder", shapes, [raw[i : i + 1]]) for i in range(len(raw))])

    def close(self) -> None:
        """Stop loading and let go of every network."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        with signal_stack.kept():
            self._loaded.clear()

    def _text_shapes(self) -> Shapes:
        shape = (2, self._bundle.text_length)
        return (("ids", shape), ("mask", shape)) if self._bundle.text_mask else (("ids", shape),)

    def _denoiser_shapes(self, batch: int, height: int, width: int, length: int) -> Shapes:
        return (
            ("x", (batch, self._bundle.latent_channels, height, width)),
            ("t", (batch,)),
            ("text", (batch, length, self._bundle.text_width)),
        )

    def _all_sizes(self) -> list[int]:
        """Batch sizes that networks are compiled for, where there is a choice."""
        return [] if self.rows == 1 else [1 << bits for bits in range(self.rows.bit_length())]

    def _sizes(self, batch: int) -> list[int]:
        """Batch sizes of the calls that so many rows are divided into: the last may have rows to spare."""
        sizes = self._all_sizes()
        if not sizes:
            return [batch]
        whole, rest = divmod(batch, sizes[-1])
        return [sizes[-1]] * whole + [size for size in sizes if size >= rest > 0][:1]

    def _is_loaded(self, part: str, shapes: Shapes) -> bool:
        with self._lock:
            return (part, shapes) in self._loaded

    def _load(self, part: str, shapes: Shapes) -> Future[Any]:
        key = (part, shapes)
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = self._pool.submit(self._compile, part, shapes)
            return self._loaded[key]

    def _run(self, part: str, shapes: Shapes, inputs: list[Any]) -> FloatArray:
        request = self._load(part, shapes).result()
        values = {name: value for (name, _), value in zip(shapes, inputs, strict=True)}
        try:
            return f32(request.infer(values)[0])
        except RuntimeError as error:
            raise EngineError(f"{part}: OpenVINO failed while drawing ({_first_line(error)})") from error

    def _compile(self, part: str, shapes: Shapes) -> Any:
        """An inference request of one network, from the cache when it is there."""
        settings = ",".join(f"{key}={value}" for key, value in sorted(self._config.items()))
        file = compiled_cache.path(
            self._bundle.part_hash(part), str(shapes), settings, self._ov.get_version(),
            compiled_cache.cpu_identity(),
        )  # fmt: skip
        if file.is_file():
            try:
                blob = self._ov.tensor_from_file(file)  # mapped, not read
                return self._core.import_model(blob, "CPU", self._config).create_infer_request()
            except RuntimeError:
                compiled_cache.drop(file)  # written by a broken process: compile again
        try:
            model = self._core.read_model(self._bundle.path(part))
            model.reshape({name: list(shape) for name, shape in shapes})
            compiled = self._core.compile_model(model, "CPU", self._config)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self._bundle.path(part)}: OpenVINO cannot load it ({_first_line(error)}); "
                "export the bundle again, with the OpenVINO that is installed here"
            ) from error
        data = compiled.export_model()
        compiled_cache.store(file, data if isinstance(data, bytes) else data.getvalue())
        return compiled.create_infer_request()


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
