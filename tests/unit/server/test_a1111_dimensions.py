"""Sizes that a model does not draw, and pictures and masks in the shape that it does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.upscaling import catalogue
from fewstep.errors import UsageError
from fewstep.server.a1111 import dimensions, pictures
from fewstep.server.orders import Upscale
from fewstep.server.settings import Limits

INFO = FakeBackend().info
"""Draws 64x64 in steps of 8, up to 256."""


@pytest.fixture
def networks(monkeypatch):
    monkeypatch.setattr(catalogue, "installed", lambda one: True)


def test_what_the_model_draws_is_drawn():
    plan = dimensions.plan(INFO, 64, 64, Limits())
    assert (plan.width, plan.height, plan.upscale) == (64, 64, None)


def test_the_clients_default_is_reached_from_the_native_size(networks):
    plan = dimensions.plan(INFO, 512, 512, Limits())
    assert (plan.width, plan.height) == (64, 64)
    assert plan.upscale == Upscale(name="auto", width=512, height=512)


def test_the_shape_is_kept(networks):
    plan = dimensions.plan(INFO, 768, 512, Limits())
    assert abs(plan.width / plan.height - 1.5) < 0.1 and plan.width * plan.height < 2 * 64 * 64


def test_a_little_more_is_only_resized():
    plan = dimensions.plan(INFO, 66, 66, Limits())
    assert plan.upscale == Upscale(name="lanczos", width=66, height=66)
    small = dimensions.plan(INFO, 30, 30, Limits())
    assert (small.width, small.upscale.name) == (64, "lanczos")


def test_without_a_network_it_is_refused_with_what_works(monkeypatch):
    monkeypatch.setattr(catalogue, "installed", lambda one: False)
    with pytest.raises(UsageError, match=r"pip install .* sizes that work: 64x64"):
        dimensions.plan(INFO, 512, 512, Limits())


def test_too_much_is_refused(networks):
    with pytest.raises(UsageError, match="at most 16 times a side"):
        dimensions.plan(INFO, 2048, 2048, Limits())
    with pytest.raises(UsageError, match="at most 4096 pixels"):
        dimensions.plan(INFO, 512, 512, Limits(max_output=4096))


def test_whoever_wants_no_upscaler_draws_at_the_size_itself():
    plan = dimensions.plan(INFO, 256, 256, Limits(), "none")
    assert (plan.width, plan.height, plan.upscale) == (256, 256, None)


def test_two_passes_are_as_many_times_larger_as_asked_for(networks):
    made = dimensions.passes(INFO, (64, 64), (128, 128), Limits())
    assert (made.first, made.second, made.upscale) == ((64, 64), (128, 128), None)
    made = dimensions.passes(INFO, (512, 512), (1024, 1024), Limits())
    assert (made.first, made.second) == ((64, 64), (128, 128))
    assert made.upscale == Upscale(name="auto", width=1024, height=1024)


def test_the_second_pass_is_no_larger_than_the_model_draws(networks):
    made = dimensions.passes(INFO, (64, 64), (512, 512), Limits())
    assert made.second == (256, 256) and made.upscale.width == 512
    small = dataclasses.replace(INFO, max_size=64)
    assert dimensions.passes(small, (64, 64), (128, 128), Limits()).second is None


@pytest.mark.parametrize(
    ("resize", "size"),
    [((0, 0), (150, 75)), ((200, 0), (200, 100)), ((0, 200), (400, 200)), ((9, 8), (9, 8))],
)
def test_final_sizes(resize, size):
    assert dimensions.final_size((100, 50), 1.5, resize) == size


def gradient(height, width):
    across = np.linspace(0, 255, width, dtype=np.uint8)
    return np.repeat(np.repeat(across[None], height, axis=0)[..., None], 3, axis=2)


def test_pictures_are_stretched_cropped_or_filled():
    image = gradient(32, 64)
    for mode in (pictures.STRETCH, pictures.LATENT):
        assert pictures.shaped(image, mode, 48, 48)[0, 0, 0] <= 5
    cropped = pictures.shaped(image, pictures.CROP, 32, 32)
    assert cropped.shape == (32, 32, 3) and np.array_equal(cropped, image[:, 16:48])
    filled = pictures.shaped(image, pictures.FILL, 64, 64)
    assert np.array_equal(filled[16:48], image)
    assert np.array_equal(filled[0], image[0]) and np.array_equal(filled[63], image[31])


@pytest.mark.parametrize("mode", range(4))
@pytest.mark.parametrize("size", [(7, 90), (64, 64), (33, 31), (1, 1)])
def test_every_mode_gives_the_size_also_of_masks(mode, size):
    for array in (gradient(40, 50), gradient(40, 50)[..., 0]):
        assert pictures.shaped(array, mode, *size).shape[:2] == (size[1], size[0])
