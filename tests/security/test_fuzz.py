"""Long random attacks on what reads foreign bytes; `make soak`. Short forms run with the unit tests."""

from __future__ import annotations

import gc
import io
import json
import random
import time

import numpy as np
import psutil
import pytest
from PIL import Image

from fewstep.checkpoint import safetensors
from fewstep.diffusion.contract import SamplingContract
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import FewstepError
from fewstep.prompt import containers, infotext

pytestmark = pytest.mark.soak

SECONDS = 30.0


def _mutants(good: bytes, rng: random.Random):
    """Endless mutations: flipped, cut, doubled and inserted bytes, for SECONDS."""
    end = time.monotonic() + SECONDS
    count = 0
    while time.monotonic() < end:
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            if not data:
                break
            place = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[place] = rng.randrange(256)
                case 1:
                    del data[place:]
                case 2:
                    data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
                case 3:
                    data[place : place + 4] = (2 ** rng.randrange(32)).to_bytes(4, "little")
                case _:
                    data += data[place : place + 64]
        count += 1
        yield bytes(data)
    assert count > 100


def test_mutated_safetensors_raise_only_our_errors(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.save(path, {"a": np.arange(12.0), "b": np.zeros((2, 3), np.float16)}, {"k": "v"})
    good, rng = path.read_bytes(), random.Random(0)
    for data in _mutants(good, rng):
        path.write_bytes(data)
        for read in (safetensors.load, safetensors.read_metadata):
            try:
                read(path)
            except FewstepError as error:
                assert "\n" not in str(error)


def test_mutated_pictures_raise_only_our_errors(tmp_path):
    from fewstep.data import images

    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
        buffer, "PNG"
    )
    path = tmp_path / "x.png"
    for data in _mutants(buffer.getvalue(), random.Random(1)):
        path.write_bytes(data)
        try:
            assert images.open_image(path).shape[2] == 3
        except FewstepError as error:
            assert "\n" not in str(error)


def test_mutated_contracts_raise_only_our_errors():
    good = SamplingContract(base_family="x", native_sizes=((8, 8),)).to_json().encode()
    for data in _mutants(good, random.Random(2)):
        try:
            SamplingContract.from_json(data.decode("utf-8", "replace"))
        except FewstepError as error:
            assert "\n" not in str(error)


def test_mutated_infotext_is_read_without_an_error():
    good = b'a cat, "x"\nsecond\nNegative prompt: dog\nSteps: 20, Sampler: DDIM, Seed: 1, Lora hashes: "a: b"'
    for data in _mutants(good, random.Random(3)):
        text = data.decode("utf-8", "replace")
        started = time.perf_counter()
        infotext.read(text)
        assert time.perf_counter() - started < 0.5


def test_mutated_embedded_records_are_read_without_an_error():
    pixels = np.zeros((8, 8, 3), np.uint8)
    png = containers.encode(pixels, "png", parameters="a\nSteps: 1, Seed: 2, Size: 8x8", record={"a": 1})
    for data in _mutants(png, random.Random(4)):
        try:
            with Image.open(io.BytesIO(data)) as opened:
                containers.decode(opened)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, FewstepError):
            continue  # Pillow's own words for a file that is no picture any more


def test_five_hundred_requests_leak_nothing():
    """Memory, threads and open files stay where they are after a warm-up (O17's engine half)."""
    engine = Engine(backend="fake")
    process = psutil.Process()

    def draw(count: int) -> None:
        for seed in range(count):
            engine.generate(resolve(engine.info, prompt="x" * (seed % 50), seed=seed, num_inference_steps=3))
        gc.collect()

    draw(100)
    before, threads, files = process.memory_info().rss, process.num_threads(), len(process.open_files())
    draw(500)
    assert process.memory_info().rss - before < 20 * 2**20
    assert (process.num_threads(), len(process.open_files())) == (threads, files)


def test_records_stay_json():
    engine = Engine(backend="fake")
    rng = random.Random(5)
    end = time.monotonic() + SECONDS / 3
    while time.monotonic() < end:
        prompt = "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x3000)))) for _ in range(40))
        result = engine.generate(resolve(engine.info, prompt=prompt, num_inference_steps=1))
        assert json.loads(json.dumps(result.record))["prompt"] == prompt
