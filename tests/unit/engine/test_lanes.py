"""Rows side by side: each picture has the bits that it has alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.engine.backends import lanes
from fewstep.engine.backends.openvino import OpenVINOBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import EngineError


def test_small_networks_have_a_lane_per_thread_and_large_ones_one_in_all(monkeypatch):
    assert lanes.count(12 << 20, 1) == 1
    assert lanes.count(12 << 20, 3) == 3
    assert lanes.count(12 << 20, 64) == lanes.MOST
    assert lanes.count(860 << 20, 8) == 1
    monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda pid: {0, 5}, raising=False)
    assert lanes.count(12 << 20, None) == 2


def test_pictures_have_the_same_bits_alone_and_side_by_side(ir_bundle):
    engine = Engine(ir_bundle, threads=2, rows=4)
    assert engine.backend.lanes == 2
    wishes = [
        resolve(engine.info, prompt="a fox", seed=seed, n=count, guidance_scale=scale)
        for seed, count, scale in [
            (0, 1, 1.0),
            (1, 3, 1.0),
            (2, 2, 2.0),
            (3, 1, 2.0),
            (4, 4, 1.0),
            (5, 5, 2.0),
        ]
    ]
    alone = [engine.generate(wish).images for wish in wishes]
    for wish, images in zip(wishes, alone, strict=True):
        for place, image in enumerate(images):
            one = dataclasses.replace(wish, seed=wish.seed + place, n=1)
            assert np.array_equal(engine.generate(one).images[0], image)
    single = Engine(ir_bundle, threads=2)
    for wish, want in zip(wishes, alone, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(want, single.generate(wish).images, strict=True))
    single.close()
    engine.close()


def test_a_call_that_fails_leaves_the_backend_usable(ir_bundle):
    backend = OpenVINOBackend(bundle.open_bundle(ir_bundle), threads=2)
    engine = Engine(backend=backend)
    wish = resolve(engine.info, prompt="a fox", seed=0, num_inference_steps=2)
    want = engine.generate(wish).images[0]

    class Broken:
        def start_async(self, values):
            pass

        def wait(self):
            raise RuntimeError("it broke")

    ((shapes, network),) = [(key, made) for key, made in backend._loaded.items() if key[0] == "denoiser"]
    whole = network.result()
    broken = type(network)()
    broken.set_result([Broken(), whole[1]])
    backend._loaded[shapes] = broken
    with pytest.raises(EngineError, match="it broke"):
        engine.generate(wish)
    backend._loaded[shapes] = network
    assert np.array_equal(engine.generate(wish).images[0], want)
    engine.close()
