import numpy as np
import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.outpaint import OVERLAP, Outpaint, extend
from fewstep.engine.request import resolve
from fewstep.errors import UsageError


def ramp(height=64, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)


def draw(image, **given):
    engine = Engine(backend=FakeBackend())
    return engine.generate(resolve(engine.info, **{"prompt": "a red apple", "init_image": image, **given}))


def test_the_canvas_grows_and_the_old_pixels_stay_outside_the_blend():
    image = ramp()
    made = draw(image, outpaint=Outpaint(left=32, bottom=16))
    assert made.images[0].shape == (80, 96, 3)
    kept = made.images[0][: 64 - OVERLAP, 32 + OVERLAP :]
    assert np.array_equal(kept, image[: 64 - OVERLAP, OVERLAP:])
    assert not np.array_equal(made.images[0][:64, 32:], image)
    assert made.record["task"] == "outpaint"
    assert made.record["outpaint"] == {"left": 32, "right": 0, "top": 0, "bottom": 16}
    assert made.record["masking"] == {"content": "fill"}
    assert (made.record["width"], made.record["height"], made.record["strength"]) == (96, 80, 0.75)


def test_new_pixels_are_drawn_wholly():
    canvas = extend(ramp(), None, Outpaint(right=24), 8)
    assert (canvas.mask[:, 64:] == 255).all()
    assert (canvas.mask[:, : 64 - OVERLAP] == 0).all()
    falling = canvas.mask[0, 64 - OVERLAP : 64].astype(int)
    assert (np.diff(falling) > 0).all() and 0 < falling[0] and falling[-1] < 255


def test_the_new_part_has_the_colours_of_the_edge():
    image = np.full((64, 64, 3), (10, 200, 60), dtype=np.uint8)
    canvas = extend(image, None, Outpaint(left=40, top=8), 8)
    assert (canvas.image == (10, 200, 60)).all()
    assert np.array_equal(extend(ramp(), None, Outpaint(left=40), 8).image[:, 40:], ramp())


@pytest.mark.parametrize(
    ("size", "wanted", "done"),
    [
        ((64, 64), Outpaint(left=30), Outpaint(left=32)),
        ((64, 64), Outpaint(right=30), Outpaint(right=32)),
        ((64, 64), Outpaint(left=3, right=4), Outpaint(left=3, right=5)),
        ((62, 61), Outpaint(top=8), Outpaint(top=10, right=3)),
    ],
)
def test_rounding_is_said(size, wanted, done):
    canvas = extend(ramp(*size), None, wanted, 8)
    assert canvas.done == done
    assert canvas.image.shape[0] % 8 == canvas.image.shape[1] % 8 == 0
    assert "rounded to" in canvas.warnings[0]
    assert extend(ramp(), None, Outpaint(left=32), 8).warnings == ()


def test_a_mask_of_the_picture_is_drawn_too():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[40:56, 40:56] = 255
    made = draw(ramp(), mask=mask, outpaint=Outpaint(left=32))
    inside = made.images[0][:, 32:]
    keep = mask == 0
    keep[:, :OVERLAP] = False
    assert np.array_equal(inside[keep], ramp()[keep])
    assert not np.array_equal(inside[mask == 255], ramp()[mask == 255])


def test_latents_of_pixels_that_only_blend_are_kept():
    from fewstep.engine import starts, tiling

    backend = FakeBackend()
    request = resolve(backend.info, prompt="", init_image=ramp(), outpaint=Outpaint(right=16))
    start = starts.make(tiling.Autoencoder(backend, False), request)
    assert np.array_equal(start.cells[0, 0, 0], [0] * 8 + [1] * 2)


def test_a_large_picture_is_extended_by_its_masked_part_alone():
    image = ramp(250, 300)
    made = draw(image, outpaint=Outpaint(right=20), only_masked=True)
    assert made.images[0].shape == (256, 320, 3)
    assert np.array_equal(
        made.images[0][: 250 - OVERLAP, : 300 - OVERLAP], image[: 250 - OVERLAP, : 300 - OVERLAP]
    )


def test_a_narrow_picture_keeps_a_half():
    canvas = extend(ramp(64, 24), None, Outpaint(left=8, right=8), 8)
    assert (canvas.mask[32, 8 + 6 : 8 + 18] == 0).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"outpaint": Outpaint()}, "0 on every side"),
        ({"outpaint": Outpaint(left=-8)}, "outpaint left is -8"),
        ({"outpaint": Outpaint(left=5000)}, "from 0 to 4096"),
        ({"outpaint": Outpaint(left=8), "init_image": None}, "without an image"),
        ({"outpaint": Outpaint(left=8), "width": 64}, "leave --size out"),
        ({"outpaint": Outpaint(left=8), "mask_blur": 4}, "leave --mask-blur out"),
        ({"outpaint": Outpaint(left=256)}, "at most 256 pixels a side"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given, words):
    with pytest.raises(UsageError) as caught:
        resolve(FakeBackend().info, **{"prompt": "", "init_image": ramp(), **given})
    assert words in str(caught.value) and "\n" not in str(caught.value)
