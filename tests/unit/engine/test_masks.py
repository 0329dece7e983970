import dataclasses

import numpy as np
import pytest

from fewstep.engine import masks
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import UsageError


def ramp(height=64, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)


def hole(height=64, width=64, top=16, left=16, side=32):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def draw(**given):
    engine = Engine(backend=FakeBackend())
    request = resolve(engine.info, **{"prompt": "a red apple", "seed": 3, "init_image": ramp(), **given})
    return engine.generate(request)


def test_fill_takes_the_colours_around():
    image = np.full((40, 56, 3), (200, 30, 90), dtype=np.uint8)
    image[8:24, 8:40] = 0
    mask = np.zeros((40, 56), dtype=np.uint8)
    mask[8:24, 8:40] = 255
    assert (masks.filled(image, mask) == (200, 30, 90)).all()


def test_fill_is_smooth_between_two_colours_and_leaves_what_is_known():
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, 32:] = 240
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, 16:48] = 255
    filled = masks.filled(image, mask)
    assert np.array_equal(filled[mask == 0], image[mask == 0])
    row = filled[32, 12:52, 0].astype(int)
    assert (np.diff(row) >= -1).all()
    assert 0 < filled[32, 28, 0] < filled[32, 36, 0] < 240
    assert np.abs(np.diff(row)).max() < 40


def test_fill_of_everything_is_grey_and_of_nothing_is_the_picture():
    assert (masks.filled(ramp(), np.full((64, 64), 255, dtype=np.uint8)) == 128).all()
    assert np.array_equal(masks.filled(ramp(), np.zeros((64, 64), dtype=np.uint8)), ramp())
    assert masks.filled(ramp(33, 47), hole(33, 47, 5, 5, 20)).shape == (33, 47, 3)


def test_blur_is_a_gaussian():
    edge = np.zeros((5, 80), dtype=np.uint8)
    edge[:, 40:] = 255
    soft = masks.blurred(edge, 4)[2]
    # The edge lies between two pixels, so the level there is the Gaussian's distribution at halves.
    distance = np.arange(-10, 11)
    kernel = np.exp(-(distance**2) / 32.0)
    kernel /= kernel.sum()
    expected = [255 * kernel[distance <= x].sum() for x in range(-10, 11)]
    assert np.abs(soft[30:51] - np.array(expected)).max() <= 1
    assert soft[28] == 0 and soft[52] == 255
    assert np.array_equal(masks.blurred(edge, 0), edge)


@pytest.mark.parametrize(
    ("top", "left", "wide", "tall"),
    [(100, 100, 64, 64), (0, 0, 64, 64), (180, 240, 64, 32), (90, 5, 32, 96)],
)
def test_region_holds_the_mask_and_its_padding_in_the_shape_that_is_drawn(top, left, wide, tall):
    mask = hole(200, 260, top, left, 20)
    part = masks.region(mask, 8, wide, tall)
    assert part.cut(mask).sum() == mask.sum()
    assert 0 <= part.left < part.right <= 260 and 0 <= part.top < part.bottom <= 200
    assert part.left <= max(left - 8, 0) and part.bottom >= min(top + 28, 200)
    assert abs((part.right - part.left) * tall - (part.bottom - part.top) * wide) <= max(wide, tall)


def test_region_is_as_large_as_there_is_room():
    mask = np.full((40, 200), 255, dtype=np.uint8)
    assert masks.region(mask, 32, 64, 64) == masks.Region(0, 0, 200, 40)


@pytest.mark.parametrize("content", masks.CONTENTS)
def test_outside_the_mask_every_bit_stays(content):
    mask = hole()
    for strength in (0.4, 1.0):
        made = draw(mask=mask, masked_content=content, strength=strength).images[0]
        assert np.array_equal(made[mask == 0], ramp()[mask == 0])
        assert not np.array_equal(made, ramp())


def test_each_masked_content_begins_otherwise():
    given = {"mask": hole(), "strength": 0.4, "solver": "ddim"}
    made = {name: draw(masked_content=name, **given).images[0] for name in masks.CONTENTS}
    names = list(made)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            assert not np.array_equal(made[one], made[other]), (one, other)
    assert np.array_equal(made["original"], draw(**given).images[0])


def test_masked_noise_is_each_seeds_own():
    given = {"mask": hole(), "strength": 0.4, "masked_content": "latent_noise"}
    batch = draw(n=3, deterministic=False, **given)
    assert not np.array_equal(batch.images[0], batch.images[1])
    alone = draw(**(given | {"seed": 5})).images[0]
    assert np.abs(batch.images[2].astype(int) - alone).max() <= 1


def test_hidden_changes_the_hole_alone():
    latents = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    cells = np.zeros((1, 1, 4, 4), dtype=np.float32)
    cells[..., :2, :2] = 1
    fresh = np.full((2, 1, 4, 4), 7.0, dtype=np.float32)
    nothing = masks.hidden(latents, cells, "latent_nothing", None)
    noise = masks.hidden(latents, cells, "latent_noise", fresh)
    assert (nothing[..., :2, :2] == 0).all() and (noise[..., :2, :2] == 7).all()
    for made in (nothing, noise):
        assert (made[:, :, 2:] == latents[:, :, 2:]).all()
    assert masks.hidden(latents, cells, "fill", None) is latents


def test_blur_makes_an_edge_between_picture_and_drawing():
    hard, soft = (draw(mask=hole(), mask_blur=blur, strength=1.0) for blur in (0, 4))
    far = masks.blurred(hole(), 4) == 0
    assert np.array_equal(soft.images[0][far], ramp()[far])
    assert not np.array_equal(soft.images[0][(~far) & (hole() == 0)], ramp()[(~far) & (hole() == 0)])
    assert soft.record["masking"] == {"blur": 4}
    assert "masking" not in hard.record


def test_only_the_masked_part_is_drawn_and_put_back():
    image, mask = ramp(150, 170), hole(150, 170, 60, 90, 24)
    made = draw(init_image=image, mask=mask, only_masked=True, padding=4)
    assert made.images[0].shape == (150, 170, 3)
    assert np.array_equal(made.images[0][mask == 0], image[mask == 0])
    assert not np.array_equal(made.images[0], image)
    assert (made.record["width"], made.record["height"]) == (64, 64)
    assert made.record["masking"] == {"only_masked": True, "padding": 4}
    assert made.warnings == []
    # The prompt's colours are drawn at 64x64 for 32 pixels of the picture: cells of 4 pixels, not of 8.
    part = masks.region(mask, 4, 64, 64)
    assert part.right - part.left == part.bottom - part.top == 32


def test_inverted_is_the_other_part():
    mask = hole()
    made = draw(mask=mask, invert_mask=True)
    assert np.array_equal(made.images[0][mask == 255], ramp()[mask == 255])
    assert np.array_equal(made.images[0], draw(mask=255 - mask).images[0])
    assert made.record["masking"] == {"inverted": True}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"masked_content": "filled"}, "fill, original, latent_noise, latent_nothing"),
        ({"mask_blur": -1}, "mask blur is -1"),
        ({"mask_blur": 257}, "from 0 to 256"),
        ({"mask_blur": 1.5}, "whole pixels"),
        ({"padding": 3}, "--only-masked"),
        ({"only_masked": True, "padding": -1}, "padding is -1"),
        ({"mask": None, "only_masked": True}, "without a mask"),
        ({"mask": None, "masked_content": "fill"}, "without a mask"),
        ({"mask": None, "mask_blur": 4}, "without a mask"),
        ({"mask": None, "invert_mask": True}, "without a mask"),
        ({"mask": np.full((64, 64), 255, dtype=np.uint8), "invert_mask": True}, "white everywhere"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, words):
    info = FakeBackend().info
    with pytest.raises(UsageError) as caught:
        resolve(info, **{"prompt": "", "init_image": ramp(), "mask": hole(), **given})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_strength_follows_the_masked_content():
    info = FakeBackend().info
    given = {"prompt": "", "init_image": ramp(), "mask": hole()}
    assert resolve(info, **given).strength == 1.0
    assert resolve(info, **given, masked_content="fill").strength == 0.75
    warned = resolve(info, **given, masked_content="fill", strength=1.0).warnings
    assert warned == ("masked content fill has no effect at strength 1: all begins as noise",)


class Nine(FakeBackend):
    """A model of nine channels: it is shown the mask and the masked picture."""

    def __init__(self):
        super().__init__()
        self.info = dataclasses.replace(self.info, inputs="inpaint")
        self.shown = []

    def denoise(self, x, t, conditions, student=None):
        self.shown.append(conditions.concat)
        return super().denoise(x, t, conditions, student)


def test_models_of_nine_channels_take_every_content():
    made = {}
    for content in masks.CONTENTS:
        backend = Nine()
        engine = Engine(backend=backend)
        given = {"init_image": ramp(), "mask": hole(), "masked_content": content, "strength": 0.4}
        made[content] = engine.generate(resolve(engine.info, prompt="a red apple", **given)).images[0]
        assert np.array_equal(made[content][hole() == 0], ramp()[hole() == 0])
        # What it is shown beside the latents is the picture with a grey hole, whatever is under the mask.
        mask, picture = backend.shown[0][0, 0], backend.shown[0][0, 1:4]
        assert mask.sum() == 16 and not picture[:, mask == 1].any() and picture[:, mask == 0].any()
    names = list(made)
    for index, one in enumerate(names):
        assert all(not np.array_equal(made[one], made[other]) for other in names[index + 1 :])
