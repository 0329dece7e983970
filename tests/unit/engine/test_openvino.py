import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.engine.backends import compiled_cache
from fewstep.engine.backends.openvino import OpenVINOBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, DependencyError, UsageError


def draw(folder, **given):
    engine = Engine(folder)
    try:
        return engine.generate(resolve(engine.info, **{"prompt": "a red apple", **given}))
    finally:
        engine.close()


def test_the_same_bits_compiled_cached_and_in_a_batch(ir_bundle, tmp_path):
    first = draw(ir_bundle, seed=1)
    assert first.record["engine"]["backend"] == "openvino"
    assert first.record["model_hash"] == bundle.open_bundle(ir_bundle).hash
    blobs = list((tmp_path / "cache" / "compiled").glob("*.blob"))
    assert len(blobs) == 3  # text, denoiser, decoder
    assert np.array_equal(first.images[0], draw(ir_bundle, seed=1).images[0])
    assert np.array_equal(first.images[0], draw(ir_bundle, seed=0, n=2).images[1])
    assert not np.array_equal(first.images[0], draw(ir_bundle, seed=2).images[0])


def test_img2img_inpainting_and_other_sizes(ir_bundle):
    image = np.full((64, 64, 3), 90, dtype=np.uint8)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:32] = 255
    drawn = draw(ir_bundle, init_image=image, mask=mask).images[0]
    assert np.array_equal(drawn[32:], image[32:])
    assert not np.array_equal(drawn[:32], image[:32])
    assert draw(ir_bundle, width=72, height=104).images[0].shape == (104, 72, 3)
    assert draw(ir_bundle, guidance_scale=1.0).images[0].shape == (64, 64, 3)


def test_the_network_is_what_the_ir_says(ir_bundle):
    """Scaling and shift are applied on the right side, and rows do not mix."""
    backend = OpenVINOBackend(bundle.open_bundle(ir_bundle))
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 64, 64)).astype(np.float32)
    means = pixels.mean(axis=1).reshape(2, 8, 8, 8, 8).mean(axis=(2, 4))
    got = backend.encode_image(pixels)
    np.testing.assert_allclose(got, np.repeat(((means - 0.25) * 0.5)[:, None], 4, axis=1), atol=1e-3)
    latents = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    both = backend.decode(latents)
    assert np.array_equal(both[1:], backend.decode(latents[1:]))
    np.testing.assert_allclose(
        backend.decode(0 * latents) * 2, backend.decode(0 * latents + 0.125), atol=1e-5
    )
    backend.close()


def test_a_second_process_start_does_not_compile(ir_bundle, monkeypatch):
    want = draw(ir_bundle).images[0]
    backend = OpenVINOBackend(bundle.open_bundle(ir_bundle))

    class NoCompile:
        def __init__(self, core):
            self._core = core

        def import_model(self, *args):
            return self._core.import_model(*args)

    backend._core = NoCompile(backend._core)
    engine = Engine(backend=backend)
    assert np.array_equal(want, engine.generate(resolve(engine.info, prompt="a red apple")).images[0])


def test_a_broken_cache_file_is_replaced(ir_bundle, tmp_path):
    want = draw(ir_bundle).images[0]
    for blob in (tmp_path / "cache" / "compiled").glob("*.blob"):
        blob.write_bytes(blob.read_bytes()[:100])
    assert np.array_equal(want, draw(ir_bundle).images[0])
    assert all(blob.stat().st_size > 100 for blob in (tmp_path / "cache" / "compiled").glob("*.blob"))


def test_an_unwritable_cache_costs_one_warning(ir_bundle, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(compiled_cache, "_warned", set())
    with caplog.at_level(logging.WARNING, logger="fewstep"):
        logging.getLogger("fewstep").propagate = True
        draw(ir_bundle)
    assert len([r for r in caplog.records if "are not kept" in r.message]) == 1


def test_the_cache_name_depends_on_everything(monkeypatch):
    names = {compiled_cache.path("a", "b"), compiled_cache.path("b", "a"), compiled_cache.path("ab", "")}
    assert len(names) == 3
    monkeypatch.delenv("FEWSTEP_CACHE")
    assert "fewstep" in str(compiled_cache.folder())


def test_the_oldest_cache_files_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled_cache, "LIMIT", 250)
    files = [compiled_cache.path(str(i)) for i in range(4)]
    for age, file in enumerate(files):
        compiled_cache.store(file, b"x" * 100)
        os.utime(file, (1000 + age, 1000 + age))
    compiled_cache.store(compiled_cache.path("new"), b"x" * 100)
    assert [file.exists() for file in files] == [False, False, False, True]


def test_an_ir_that_openvino_cannot_read_is_a_checkpoint_error(ir_bundle):
    described = bundle.open_bundle(ir_bundle)
    (ir_bundle / "denoiser.xml").write_bytes(b"<net/>".ljust(described.files["denoiser.xml"].size))
    with pytest.raises(CheckpointError, match=r"denoiser\.xml: OpenVINO cannot load it"):
        draw(ir_bundle)


def test_a_bundle_is_not_for_torch_and_a_pipeline_not_for_openvino(ir_bundle, tmp_path):
    with pytest.raises(UsageError, match="torch cannot run"):
        Engine(ir_bundle, "torch")
    folder = tmp_path / "pipe"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="fewstep export"):
        Engine(folder, "openvino")


def test_c04_openvino_missing_is_an_error_with_the_install_line(ir_bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("auto", "openvino"):
        with pytest.raises(DependencyError, match="pip install openvino"):
            Engine(ir_bundle, name)


@pytest.mark.parametrize("package", ["torch", "diffusers", "transformers"])
def test_c04_torch_missing_is_an_error_with_the_install_line(tmp_path, monkeypatch, package):
    (tmp_path / "model_index.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    for name in ("auto", "torch"):
        with pytest.raises(DependencyError, match=rf"{package}.*pip install 'fewstep\[torch\]'"):
            Engine(tmp_path, name)


def test_no_torch_and_no_telemetry_in_a_process_that_draws(ir_bundle):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from fewstep.engine.engine import Engine\n"
        "from fewstep.engine.request import resolve\n"
        "e = Engine(Path(sys.argv[1]))\n"
        "e.generate(resolve(e.info, prompt='a dog'))\n"
        "bad = {'torch', 'diffusers', 'transformers', 'nncf', 'openvino_telemetry', 'openvino.tools.ovc'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(ir_bundle)], check=True, timeout=60)


@pytest.mark.parametrize("circumstance", ["weights", "library", "processor", "shape"])
def test_A18_a_compiled_network_of_other_circumstances_is_not_used(
    ir_bundle, tmp_path, monkeypatch, circumstance
):
    draw(ir_bundle)
    cache = tmp_path / "cache" / "compiled"
    before = set(cache.glob("*.blob"))
    backend = OpenVINOBackend(bundle.open_bundle(ir_bundle))
    if circumstance == "weights":
        own = type(backend._bundle).part_hash
        monkeypatch.setattr(type(backend._bundle), "part_hash", lambda self, part: own(self, part)[::-1])
    elif circumstance == "library":
        monkeypatch.setattr(backend._ov, "get_version", lambda: "another version")
    elif circumstance == "processor":
        monkeypatch.setattr(compiled_cache, "cpu_identity", lambda: "another processor")
    engine = Engine(backend=backend)
    given = {"width": 96, "height": 96} if circumstance == "shape" else {}
    engine.generate(resolve(engine.info, prompt="a red apple", **given))
    made = set(cache.glob("*.blob")) - before
    assert len(made) == (2 if circumstance == "shape" else 3)  # the text encoder knows no size of pictures


def test_a_text_that_was_just_encoded_is_not_encoded_again(ir_bundle, monkeypatch):
    backend = OpenVINOBackend(bundle.open_bundle(ir_bundle))
    ran, run = [], backend._whole
    monkeypatch.setattr(backend, "_whole", lambda part, *rest: (ran.append(part), run(part, *rest))[1])
    length = backend.info.encoders[0].length

    def texts(*numbers):
        ran.clear()
        ids = np.array([[number, *[1] * (length - 1)] for number in numbers], dtype=np.int64)
        return backend.encode_text([ids], [np.ones_like(ids)]).tokens, len(ran)

    assert not texts(9)[0].flags.writeable  # whoever changed it would change what is kept
    first, encoded = texts(0, 3)
    assert encoded == 2 and not np.array_equal(first[0], first[1])
    again, encoded = texts(3, 0)
    assert encoded == 0 and np.array_equal(first[::-1], again)
    assert texts(4, 0)[1] == 1
    for number in range(5, 5 + 64):
        texts(number)
    fresh, encoded = texts(0, 3)
    assert encoded == 2 and np.array_equal(first, fresh)
    assert len(backend._texts) == 64
    backend.close()
