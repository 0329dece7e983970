"""What the Extras tab does: sizes, passes, blending, transparency, other people's files, drawing anew."""

import sys
import types

import numpy as np
import pytest
from PIL import Image as PILImage

from fewstep.checkpoint import safetensors
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.upscaling import catalogue, enlarge, other_files, restoring
from fewstep.engine.upscaling.enlarge import Extras, extras
from fewstep.errors import Cancelled, CheckpointError, DependencyError, NotFoundError, UsageError


class Nearest:
    """A network that repeats pixels, brighter by ``lift`` levels; notes what it is run on."""

    def __init__(self, scale=2, lift=0, tile=8):
        self.scale, self.lift, self.name = scale, lift, f"nearest{scale}"
        self.geometry = catalogue.Geometry(tile=tile)
        self.sizes = []

    def set_averages(self, averages):
        pass

    def run(self, planes, features=None):
        self.sizes.append(planes.shape[1:])
        return planes.repeat(self.scale, axis=1).repeat(self.scale, axis=2) + np.float32(self.lift / 255)


def noise(height, width, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def plain(monkeypatch):
    monkeypatch.setattr(catalogue, "_missing", lambda upscaler: [])


def test_lanczos_and_nearest_are_pillows():
    image = noise(7, 9)
    for name, kind in (("lanczos", PILImage.Resampling.LANCZOS), ("nearest", PILImage.Resampling.NEAREST)):
        made = extras(image, Extras(upscaler=name, scale=2.5))
        wanted = np.asarray(PILImage.fromarray(image).resize((22, 18), kind))
        assert np.array_equal(made.image, wanted)
        assert made.infotext == f"Postprocess upscale by: 2.5, Postprocess upscaler: {name}"


def test_as_many_passes_as_the_target_needs_and_at_most_three(monkeypatch):
    plain(monkeypatch)
    image = noise(3, 5)
    for factor, runs in ((2.0, 1), (3.0, 2), (4.0, 2), (8.0, 3), (16.0, 3), (0.5, 0), (1.0, 0)):
        network = Nearest(tile=64)
        made = extras(image, Extras(upscaler="mine", scale=factor), others={"mine": network})
        assert len(network.sizes) == runs, factor
        assert made.image.shape == (max(round(3 * factor), 1), round(5 * factor), 3)
    ups = catalogue.UPSCALERS
    scales = {
        f: [n.scale for n in enlarge.passes(ups["animevideo"], 10, 10, (f, f))] for f in (15, 30, 40, 50)
    }
    assert scales == {15: [2], 30: [3], 40: [4], 50: [4, 2]}


def test_noise_is_removed_once_and_at_the_size_that_is_asked_for():
    cunet, anime = catalogue.UPSCALERS["waifu2x-cunet-noise2"], catalogue.UPSCALERS["waifu2x-anime-noise0"]

    def names(upscaler, factor):
        return [one.name for one in enlarge.passes(upscaler, 10, 10, (10 * factor, 10 * factor))]

    assert names(cunet, 1) == ["waifu2x-cunet-noise2"]
    assert names(cunet, 4) == ["waifu2x-cunet-noise2_scale2.0x", "waifu2x-cunet-scale2.0x"]
    # It has no network for the same size: enlarged, then shrunk.
    assert names(anime, 1) == ["waifu2x-upconv_7_anime_style_art_rgb-noise0_scale2.0x"]
    assert names(catalogue.UPSCALERS["waifu2x-cunet"], 1) == []


def test_a_size_is_covered_and_cut_in_the_middle_or_not():
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[:, :2] = image[:, 6:] = 255
    cut = extras(image, Extras(upscaler="nearest", size=(8, 8)))
    assert cut.image.shape == (8, 8, 3) and not cut.image.any()  # the white ends are cut off
    assert cut.infotext == (
        "Postprocess upscale to: 8x8, Postprocess crop to: 8x8, Postprocess upscaler: nearest"
    )
    left = extras(image, Extras(upscaler="nearest", size=(8, 8), crop=False))
    assert left.image.shape == (8, 16, 3) and left.image[:, :4].all()


def test_two_are_blended_as_pillow_does():
    image = noise(6, 6)
    both = {"dark": Nearest(), "light": Nearest(lift=20)}
    made = extras(image, Extras(upscaler="dark", upscaler_2="light", visibility=0.25, scale=2), others=both)
    dark, light = (extras(image, Extras(upscaler=name, scale=2), others=both).image for name in both)
    wanted = dark + 0.25 * (light.astype(float) - dark)
    assert np.abs(made.image - wanted).max() <= 1 and not np.array_equal(made.image, dark)
    assert made.infotext.endswith("Postprocess upscaler: dark, Postprocess upscaler 2: light")
    assert made.record["visibility"] == 0.25
    unseen = Nearest()
    extras(image, Extras(upscaler="dark", upscaler_2="u", scale=2), others={**both, "u": unseen})
    assert unseen.sizes == []  # visibility 0: not run at all


def test_transparency_stays_within_its_neighbours_and_hidden_colours_do_not_show():
    image = np.zeros((12, 12, 4), dtype=np.uint8)
    image[2:10, 2:10] = (200, 100, 50, 255)  # the hidden pixels around it are black
    made = extras(image, Extras(upscaler="n", scale=2), others={"n": Nearest(lift=9)}).image
    alpha = made[..., 3]
    assert (alpha[6:18, 6:18] == 255).all() and (alpha[:2] == 0).all()
    assert np.abs(made[..., :3].astype(int) - (209, 109, 59))[alpha > 0].max() <= 1
    smooth = extras(image, Extras(upscaler="lanczos", scale=3)).image
    assert np.abs(smooth[..., :3].astype(int) - (200, 100, 50))[smooth[..., 3] > 0].max() <= 1


def test_an_opaque_alpha_channel_costs_no_second_run():
    network = Nearest(tile=64)
    image = np.concatenate([noise(6, 6), np.full((6, 6, 1), 255, dtype=np.uint8)], axis=2)
    made = extras(image, Extras(upscaler="n", scale=2), others={"n": network})
    assert len(network.sizes) == 1 and (made.image[..., 3] == 255).all()


def test_progress_counts_every_run_and_a_stop_is_heard():
    told = []
    image = noise(20, 20, 4)
    options = Extras(upscaler="a", upscaler_2="b", visibility=0.5, scale=4)
    both = {"a": Nearest(), "b": Nearest(scale=4)}
    extras(image, options, others=both, on_progress=lambda done, total: told.append((done, total)))
    total = len(both["a"].sizes) + len(both["b"].sizes)
    assert told == [(done + 1, total) for done in range(total)]
    with pytest.raises(Cancelled):
        extras(image, options, others=both, cancelled=lambda: True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Extras(upscaler="esrgan-9"), "is not known"),
        (Extras(upscaler="lanczos", visibility=1.5), "visibility is 1.5: give 0 to 1"),
        (Extras(upscaler="lanczos", visibility=float("nan")), "visibility is nan"),
        (Extras(upscaler="lanczos", scale=2, size=(4, 4)), "give one of them"),
        (Extras(upscaler="lanczos", scale=0.0), "factor is 0.0"),
        (Extras(upscaler="lanczos", scale=17.0), "at most 16"),
        (Extras(upscaler="lanczos", size=(0, 4)), "at least 1 pixel"),
        (Extras(upscaler="lanczos", size=(100_000, 100_000)), "at most 67,108,864 pixels"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(UsageError, match=message):
        extras(noise(8, 8), options)


def test_what_is_made_on_the_way_is_bounded_too():
    with pytest.raises(UsageError, match="what big makes on the way would be 9600x9600"):
        extras(noise(600, 600), Extras(upscaler="big", scale=5.0), others={"big": Nearest(scale=16)})


def test_none_leaves_the_picture_as_it_is():
    image = noise(4, 4)
    made = extras(image, Extras(upscaler="None", scale=3))
    assert made.image is image and made.infotext == "" and made.record == {}


# Files of other people


@pytest.fixture
def spandrel(monkeypatch):
    """Stands in for the library: every file is a network that repeats pixels by the number of its tensors."""
    torch = pytest.importorskip("torch")
    seen = {}

    class Model:
        input_channels = output_channels = 3

        def __init__(self, state):
            self.scale = len(state)

        def eval(self):
            return self

        def __call__(self, planes):
            return planes.repeat_interleave(self.scale, 2).repeat_interleave(self.scale, 3)

    class ModelLoader:
        def __init__(self, device):
            seen["device"] = device

        def load_from_state_dict(self, state):
            seen["names"] = sorted(state)
            if "odd" in state:
                raise ValueError("unsupported model")
            return Model(state)

    module = types.ModuleType("spandrel")
    module.ModelLoader = ModelLoader
    monkeypatch.setitem(sys.modules, "spandrel", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return seen


def weights(path, *names):
    safetensors.save(path, {name: np.zeros(2, dtype=np.float32) for name in names})
    return path


def test_a_file_through_spandrel(tmp_path, spandrel):
    path = weights(tmp_path / "x2.safetensors", "params_ema.a", "params_ema.b", "params.a")
    runner = other_files.SpandrelRunner(path)
    image = noise(5, 5)
    made = extras(image, Extras(upscaler=runner.name, scale=2), others={runner.name: runner})
    assert spandrel == {"device": "cpu", "names": ["a", "b"]}
    assert np.array_equal(made.image, image.repeat(2, axis=0).repeat(2, axis=1))
    assert made.infotext.endswith("Postprocess upscaler: x2")


def test_files_that_are_refused(tmp_path, spandrel):
    with pytest.raises(NotFoundError, match="no such file"):
        other_files.SpandrelRunner(tmp_path / "none.pth")
    pickle = tmp_path / "RealESRGAN.pth"
    pickle.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match=r"fewstep convert .*RealESRGAN.pth --allow-pickle --out"):
        other_files.SpandrelRunner(pickle)
    with pytest.raises(CheckpointError, match=r"not an upscaler that spandrel knows \(unsupported model\)"):
        other_files.SpandrelRunner(weights(tmp_path / "odd.safetensors", "odd"))


def test_without_spandrel_it_says_what_to_install(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(DependencyError, match="pip install spandrel torchvision"):
        other_files.SpandrelRunner(weights(tmp_path / "x.safetensors", "a"))


# Drawing anew


def restoration(where="auto", **settings):
    backend = FakeBackend()
    drawing = Engine(backend=backend)
    settings = {"prompt": "a red apple", "seed": 5, "num_inference_steps": 4, **settings}
    return restoring.Restoration(drawing=drawing, strength=0.5, settings=settings, where=where)


def test_a_small_picture_is_drawn_whole_before_it_is_enlarged():
    work = restoration()
    width, height = work.drawing.info.native_size
    image = noise(height - 10, width, 4)
    made = restoring.restored(image, Extras(upscaler="nearest", scale=2), work)
    assert made.image.shape == (2 * (height - 10), 2 * width, 4)
    assert np.array_equal(made.image[::2, ::2, 3], image[..., 3])
    assert made.record["restore"]["where"] == "whole" and made.record["restore"]["tiles"] == 1
    assert made.infotext.endswith(f"Restore strength: 0.5, Restore model: {work.drawing.info.name}")
    assert not np.array_equal(made.image[::2, ::2, :3], image[..., :3])
    again = restoring.restored(image, Extras(upscaler="nearest", scale=2), work)
    assert np.array_equal(again.image, made.image)


def test_a_large_picture_is_enlarged_and_drawn_in_tiles(monkeypatch):
    work = restoration("tiles")
    width, height = work.drawing.info.native_size
    assert restoration().whole(2 * width, height) and not restoration().whole(2 * width + 1, height)
    told = []
    made = restoring.restored(
        noise(height, width + 9), Extras(upscaler="nearest", scale=2), work,
        on_progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert made.image.shape == (2 * height, 2 * width + 18, 3)
    count = made.record["restore"]["tiles"]
    assert made.record["restore"]["where"] == "tiles" and count == 9
    assert told == [(done + 1, count) for done in range(count)]
    monkeypatch.setattr(restoring, "MAX_PIXELS", 1000)
    with pytest.raises(UsageError, match="to draw anew"):
        restoring.restored(noise(8, 8), Extras(upscaler="nearest", scale=4), work)
