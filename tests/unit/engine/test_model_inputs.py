"""Models that see a picture beside the latents (inpainting, instruct), or are told the guidance."""

import dataclasses

import numpy as np
import pytest

from fewstep.engine import pictures
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import IMAGE_STRENGTH, resolve
from fewstep.errors import UsageError
from fewstep.evaluation import drawing


class Seeing(FakeBackend):
    """Notes what its denoiser is given."""

    def __init__(self, inputs="latents", **changes):
        super().__init__()
        self.info = dataclasses.replace(self.info, inputs=inputs, **changes)
        self.seen = []
        self.encoded = 0

    def denoise(self, x, t, conditions, student=None):
        self.seen.append((float(t[0]), x.copy(), conditions))
        return super().denoise(x, t, conditions, student)

    def encode_image(self, pixels, *, scaled=True):
        self.encoded += 1
        plain = super().encode_image(pixels)
        return plain if scaled else 10 * plain


def ordinary(backend):
    """The backend with a schedule that does not end at pure noise."""
    spec = dataclasses.replace(backend.info.contract.schedule, rescale_zero_terminal_snr=False)
    contract = dataclasses.replace(backend.info.contract, schedule=spec)
    backend.info = dataclasses.replace(backend.info, contract=contract)
    backend._schedule = contract.make_schedule()
    return backend


def picture():
    y, x = np.mgrid[0:64, 0:64]
    return np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)


def hole():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[13:40, 21:50] = 255
    mask[60:, :] = 100  # less than half: stays
    return mask


def draw(backend, **given):
    engine = Engine(backend=backend)
    return engine.generate(resolve(engine.info, prompt="a red apple", **given))


def test_an_inpainting_model_is_given_the_mask_and_the_masked_picture():
    backend = Seeing("inpaint")
    image, mask = picture(), hole()
    result = draw(backend, init_image=image, mask=mask, guidance_scale=2.0, n=2)
    _, x, told = backend.seen[0]
    assert x.shape == (4, 4, 8, 8) and told.concat.shape == (4, 5, 8, 8)
    # The mask at the first pixel of each cell, as diffusers' nearest neighbour takes it.
    assert np.array_equal(told.concat[0, 0], (mask[::8, ::8] >= 128).astype(np.float32))
    grey = pictures.to_pixels(image)
    grey[:, mask >= 128] = 0.0
    assert np.array_equal(told.concat[0, 1:], FakeBackend().encode_image(grey[None])[0])
    assert all(np.array_equal(told.concat[0], row) for row in told.concat)
    # Nothing outside the mask changes, and nothing is put back on the way.
    assert np.array_equal(result.images[0][mask == 0], image[mask == 0])
    assert result.record["task"] == "inpaint"
    assert backend.encoded == 1  # at full strength the picture itself is not needed


def test_an_inpainting_model_starts_from_the_picture_below_full_strength():
    backend = Seeing("inpaint")
    draw(backend, init_image=picture(), mask=hole(), strength=0.6, guidance_scale=1.0)
    assert backend.encoded == 2 and len(backend.seen) == 3


def test_an_inpainting_model_without_a_mask_sees_a_hole_everywhere():
    without, textual = Seeing("inpaint"), Seeing("inpaint")
    draw(without, init_image=picture(), guidance_scale=1.0)
    draw(textual, guidance_scale=1.0)
    for backend in (without, textual):
        concat = backend.seen[0][2].concat
        assert (concat[:, 0] == 1).all() and not concat[:, 1:].any()
    assert len(without.seen) == int(5 * IMAGE_STRENGTH) and len(textual.seen) == 5


def test_an_instruct_model_is_given_the_picture_and_three_rows():
    backend = Seeing("instruct")
    image = picture()
    result = draw(backend, init_image=image, negative_prompt="blue", guidance_scale=5.0, seed=3)
    _, x, told = backend.seen[0]
    plain = 10 * FakeBackend().encode_image(pictures.to_pixels(image)[None])
    assert x.shape == (3, 4, 8, 8)
    # With text and picture, with the picture alone, with neither; without the latents' scale.
    assert np.array_equal(told.concat[:2], np.concatenate([plain, plain])) and not told.concat[2].any()
    assert np.array_equal(told.tokens[1], told.tokens[2])
    assert not np.array_equal(told.tokens[0], told.tokens[1])
    assert len(backend.seen) == 5  # the whole grid, from pure noise
    assert result.record["image_guidance_scale"] == 1.5
    assert result.record["strength"] == 1.0


def test_an_instruct_model_without_guidance_is_asked_once():
    backend = Seeing("instruct")
    draw(backend, init_image=picture(), guidance_scale=1.0, image_guidance_scale=1.0)
    assert backend.seen[0][1].shape[0] == 1
    draw(backend, init_image=picture(), guidance_scale=1.0, image_guidance_scale=2.0)
    assert backend.seen[-1][1].shape[0] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give --image"),
        ({"init_image": picture(), "mask": hole()}, "leave --mask out"),
        ({"init_image": picture(), "strength": 0.5}, "leave --strength out"),
        ({"init_image": picture(), "image_guidance_scale": 0.5}, "from 1 to 100"),
        ({"init_image": picture(), "image_guidance_scale": float("nan")}, "from 1 to 100"),
    ],
)
def test_what_an_instruct_model_cannot_do(given, message):
    with pytest.raises(UsageError, match=message):
        draw(Seeing("instruct"), **given)


def test_guidance_by_a_picture_is_for_instruct_models():
    with pytest.raises(UsageError, match="leave --image-guidance out"):
        draw(Seeing(), image_guidance_scale=2.0)
    assert "image_guidance_scale" not in draw(Seeing(), image_guidance_scale=1.0).record


def test_embedded_guidance_is_told_and_costs_one_row():
    backend = Seeing()
    contract = dataclasses.replace(
        backend.info.contract, guidance="embedded", guidance_scale=8.0, negative_prompt_effective=False
    )
    backend.info = dataclasses.replace(backend.info, contract=contract)
    draw(backend, guidance_scale=6.0, n=2)
    _, x, told = backend.seen[0]
    assert len(x) == 2 and told.guidance.tolist() == [6.0, 6.0]


def test_evaluation_draws_what_the_engine_draws_with_an_inpainting_model():
    engine = Engine(backend=Seeing("inpaint"))
    jobs = [drawing.Job("a red apple", 3), drawing.Job("a green dog", 4)]
    for job, image in zip(jobs, drawing.draw(engine, jobs), strict=True):
        alone = engine.generate(resolve(engine.info, prompt=job.prompt, seed=job.seed)).images[0]
        assert np.abs(alone.astype(int) - image).max() <= 1


@pytest.mark.parametrize("solver", ["plms", "heun"])
def test_solvers_that_look_twice_see_the_known_part_at_its_level(solver):
    backend = ordinary(Seeing())
    image, mask = picture(), np.zeros((64, 64), dtype=np.uint8)
    mask[32:] = 255
    draw(backend, init_image=image, mask=mask, solver=solver, guidance_scale=1.0, seed=5)
    from fewstep.diffusion.noise import image_noise

    known = FakeBackend().encode_image(pictures.to_pixels(image)[None])[0]
    eps = image_noise(5, known.shape)
    schedule = backend.info.contract.make_schedule()
    assert len(backend.seen) > 5
    for t, x, _ in backend.seen[1:]:
        expected = schedule.alpha(t) * known + schedule.sigma(t) * eps
        np.testing.assert_allclose(x[0][:, :4], expected[:, :4], atol=1e-5)


def test_noise_is_as_strong_as_the_solvers_first_level():
    """Euler's first level is sigma, not 1: see `SamplingContract.first_noise`."""
    first = {}
    for solver in ("ddim", "euler"):
        backend = ordinary(Seeing())
        draw(backend, solver=solver, guidance_scale=1.0)
        first[solver] = backend.seen[0][1]
    ratio = first["euler"] / first["ddim"]
    assert np.allclose(ratio, backend._schedule.sigma(999.0)) and ratio.max() < 0.999
