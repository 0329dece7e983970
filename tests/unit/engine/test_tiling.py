import itertools

import numpy as np
import pytest

from fewstep.engine import tiling
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve


def test_a_local_network_gives_the_same_in_tiles():
    """The fake's decoder looks at one cell at a time, so that blending must leave no trace."""
    backend = FakeBackend()
    latents = np.random.default_rng(0).standard_normal((2, 4, 21, 30)).astype(np.float32)
    tiled = tiling.Autoencoder(backend, True).decode(latents)
    np.testing.assert_allclose(tiled, backend.decode(latents), atol=1e-5)
    pixels = np.random.default_rng(1).uniform(-1, 1, (2, 3, 168, 240)).astype(np.float32)
    tiled = tiling.Autoencoder(backend, True).encode_image(pixels)
    np.testing.assert_allclose(tiled, backend.encode_image(pixels), atol=1e-5)


def test_no_tile_is_larger_than_native_and_all_are_alike():
    shapes = []

    def run(tile):
        shapes.append(tile.shape)
        return tile.repeat(8, axis=2).repeat(8, axis=3)

    tiling.in_tiles(run, np.zeros((1, 3, 21, 30), dtype=np.float32), (8, 8), 3, grow=8)
    assert set(shapes) == {(1, 3, 8, 8)}
    # 30 cells in steps of at most 6 behind the first 8.
    assert len(shapes) == 4 * 5


def test_seams_are_blended_along_straight_lines():
    """Every tile says which one it is: in the middle of a shared strip stands the mean of two."""
    count = iter(range(10))

    def run(tile):
        return np.full((1, 1, 4, 4), float(next(count)), dtype=np.float32)

    made = tiling.in_tiles(run, np.zeros((1, 1, 4, 6), dtype=np.float32), (4, 4), 1)[0, 0, 0]
    np.testing.assert_allclose(made, [0, 0, 0.25, 0.75, 1, 1], atol=1e-6)


@pytest.mark.parametrize(("size", "tile"), [(8, 8), (9, 8), (14, 8), (15, 8), (100, 8), (7, 8), (33, 16)])
def test_tiles_cover_everything_and_overlap(size, tile):
    starts = tiling._starts(size, tile)
    assert starts[0] == 0 and starts[-1] == max(size - tile, 0)
    for one, following in itertools.pairwise(starts):
        assert 0 < following - one <= tile * 0.75


@pytest.mark.parametrize(
    ("width", "height", "asked", "tiled"),
    [
        (64, 64, None, False), (128, 128, None, False), (136, 128, None, True), (256, 64, None, False),
        (64, 64, True, True), (256, 256, False, False),
    ],
)  # fmt: skip
def test_above_four_times_the_native_pixels_it_is_automatic(width, height, asked, tiled):
    request = resolve(FakeBackend().info, prompt="", width=width, height=height, tiling=asked)
    assert request.vae_tiling is tiled


def test_the_record_says_it_and_the_backend_is_told():
    class Watched(FakeBackend):
        def prepare(self, width, height, **given):
            self.told = (width, height, given.get("tile"))

    backend = Watched()
    engine = Engine(backend=backend)
    made = engine.generate(resolve(engine.info, prompt="a red apple", width=128, tiling=True))
    assert made.record["vae_tiling"] is True
    assert backend.told == (128, 64, (64, 64))
    plain = engine.generate(resolve(engine.info, prompt="a red apple", width=128))
    assert np.abs(made.images[0].astype(int) - plain.images[0]).max() <= 1
    assert "vae_tiling" not in plain.record and backend.told[2] is None


def test_openvino_compiles_the_autoencoder_for_tiles_only(ir_bundle):
    engine = Engine(ir_bundle, threads=1)
    image = np.random.default_rng(0).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    given = {"prompt": "red", "width": 200, "height": 160, "init_image": image, "strength": 0.4}
    plain = engine.generate(resolve(engine.info, **given, tiling=False)).images[0]
    engine.close()
    engine = Engine(ir_bundle, threads=1)
    tiled = engine.generate(resolve(engine.info, **given, tiling=True)).images[0]
    parts = {part: dict(shapes) for part, shapes in engine.backend._loaded}
    assert parts["vae_decoder"] == {"latents": (1, 4, 8, 8)}
    assert parts["vae_encoder"] == {"pixels": (1, 3, 64, 64)}
    assert parts["denoiser"]["x"][2:] == (20, 25)
    # Its networks look at single cells too.
    assert np.abs(tiled.astype(int) - plain).max() <= 1
    engine.close()
