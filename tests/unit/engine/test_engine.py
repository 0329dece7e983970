import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled, EngineError, UsageError


def draw(backend=None, **given):
    engine = Engine(backend=backend or FakeBackend())
    return engine.generate(resolve(engine.info, **{"prompt": "a red apple", **given}))


def ramp(height=64, width=64):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8)


def test_the_same_request_gives_the_same_bits():
    first, second = draw(seed=3), draw(seed=3)
    assert first.images[0].shape == (64, 64, 3)
    assert first.images[0].dtype == np.uint8
    assert np.array_equal(first.images[0], second.images[0])
    assert first.record == second.record
    assert json.loads(json.dumps(first.record, allow_nan=False)) == first.record


def test_seed_prompt_and_negative_prompt_change_the_picture():
    plain = draw(seed=3).images[0]
    others = [{"seed": 4}, {"seed": 3, "prompt": "a green dog"}, {"seed": 3, "negative_prompt": "blue"}]
    for given in others:
        assert not np.array_equal(plain, draw(**given).images[0])


@pytest.mark.parametrize("solver", ["ddim", "euler_a", "dpmpp_2m_sde", "unipc"])
def test_alone_and_in_a_batch(solver):
    batch = draw(n=5, seed=7, solver=solver)
    assert batch.seeds == [7, 8, 9, 10, 11]
    exact = draw(n=5, seed=7, solver=solver, deterministic=True)
    for index, seed in enumerate(batch.seeds):
        alone = draw(seed=seed, solver=solver).images[0]
        assert np.array_equal(exact.images[index], alone)
        assert np.abs(batch.images[index].astype(int) - alone).max() <= 1


def test_steps_are_counted_over_all_images():
    engine = Engine(backend=FakeBackend())
    seen = []
    engine.generate(resolve(engine.info, prompt="", n=6), on_step=seen.append)
    assert [report.total for report in seen] == [30] * 10
    assert [report.index for report in seen] == [3, 7, 11, 15, 19, 21, 23, 25, 27, 29]
    assert seen[0].images == 4 and seen[-1].images == 2 and seen[-1].image == 4
    assert engine.preview(seen[-1].x0)[0].shape == (64, 64, 3)


def test_guidance_one_costs_one_evaluation_and_guidance_two_rows():
    class Counting(FakeBackend):
        rows_seen = 0

        def denoise(self, x, t, text, student=None):
            self.rows_seen += len(x)
            return super().denoise(x, t, text, student)

    for scale, rows in ((1.0, 5), (2.0, 10)):
        backend = Counting()
        draw(backend, guidance_scale=scale)
        assert backend.rows_seen == rows


def test_cancelling_stops_at_the_next_step():
    gate = threading.Event()
    backend = FakeBackend(gate=gate)
    stop = threading.Event()
    engine = Engine(backend=backend)
    request = resolve(engine.info, prompt="a dog")
    failures = []

    def work():
        try:
            engine.generate(request, cancelled=stop.is_set)
        except Cancelled as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert backend.waiting.wait(10)
    stop.set()
    gate.set()
    thread.join(10)
    assert len(failures) == 1 and backend.calls == 1


def test_requests_of_two_threads_wait_for_one_another():
    class Alone(FakeBackend):
        inside = 0
        most = 0

        def denoise(self, x, t, text, student=None):
            self.inside += 1
            self.most = max(self.most, self.inside)
            result = super().denoise(x, t, text, student)
            self.inside -= 1
            return result

    backend = Alone()
    engine = Engine(backend=backend)
    request = resolve(engine.info, prompt="a dog", n=4)
    threads = [threading.Thread(target=engine.generate, args=(request,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert backend.calls == 20 and backend.most == 1


def test_values_that_are_not_finite_are_an_error_and_not_a_black_picture():
    with pytest.raises(EngineError, match=r"step 3 of 5 .*not finite"):
        draw(FakeBackend(poison_after=2))


def test_a_long_prompt_is_cut_and_said_so():
    result = draw(prompt="a red apple on the blue dog " * 4)
    assert len(result.warnings) == 1
    assert "longer than the encoder takes (16 tokens)" in result.warnings[0]
    assert "left out 'apple on the blue dog a red" in result.warnings[0]
    assert result.record["warnings"] == result.warnings
    assert draw(prompt="a red apple").warnings == []


def test_strength_decides_how_much_of_the_picture_stays():
    image = ramp()
    far = [
        np.abs(draw(init_image=image, strength=s).images[0].astype(int) - image).mean()
        for s in (0.2, 0.6, 1.0)
    ]
    assert far[0] < far[1] < far[2]
    assert draw(init_image=image, strength=0.2).record["task"] == "img2img"


def test_full_strength_leaves_nothing_of_the_picture():
    assert np.array_equal(draw(init_image=ramp(), strength=1.0).images[0], draw().images[0])


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "euler_a"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_inpainting_keeps_every_pixel_outside_the_mask(solver, strength):
    image = ramp()
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[13:40, 21:50] = 255
    drawn = draw(init_image=image, mask=mask, solver=solver, strength=strength).images[0]
    assert np.array_equal(drawn[mask == 0], image[mask == 0])
    assert np.abs(drawn[mask == 255].astype(int) - image[mask == 255]).mean() > 20


def test_the_known_part_is_at_the_level_of_the_step():
    """Latents outside the mask are the diffused picture at every step."""

    seen: list[tuple[float, np.ndarray]] = []

    class Watching(FakeBackend):
        def denoise(self, x, t, text, student=None):
            seen.append((float(t[0]), x[0].copy()))
            return super().denoise(x, t, text, student)

    image = ramp()
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[32:] = 255
    backend = Watching()
    draw(backend, init_image=image, mask=mask, seed=5, guidance_scale=1.0)
    from fewstep.diffusion.noise import image_noise
    from fewstep.engine.pictures import to_pixels

    known = backend.encode_image(to_pixels(image)[None])[0]
    eps = image_noise(5, known.shape)
    schedule = backend.info.contract.make_schedule()
    for t, x in seen:
        expected = schedule.alpha(t) * known + schedule.sigma(t) * eps
        np.testing.assert_allclose(x[:, :4], expected[:, :4], atol=1e-5)


def test_a_grey_mask_blends():
    image = ramp()
    mask = np.full((64, 64), 128, dtype=np.uint8)
    half = draw(init_image=image, mask=mask).images[0].astype(float)
    full = draw(init_image=image, mask=np.full_like(mask, 255)).images[0].astype(float)
    np.testing.assert_allclose(half, full * 128 / 255 + image.astype(float) * 127 / 255, atol=1.0)


def test_a_picture_of_another_size_is_fitted():
    image = ramp(85, 85)
    mask = np.zeros((85, 85), dtype=np.uint8)
    mask[:40] = 255
    result = draw(init_image=image, mask=mask, width=64, height=64)
    assert result.images[0].shape == (64, 64, 3)
    assert "resized from 85x85 to 64x64" in result.warnings[0]


def test_other_sizes():
    assert draw(width=96, height=40).images[0].shape == (40, 96, 3)


def test_unknown_backend_and_threads():
    with pytest.raises(UsageError, match="openvino"):
        Engine("x", "onnx")
    with pytest.raises(UsageError, match="threads is 0"):
        Engine("x", "openvino", threads=0)


def test_no_torch_is_imported_to_draw():
    code = (
        "import sys\n"
        "from fewstep.engine import engine, registry, request, upscale\n"
        "from fewstep.engine.backends import fake, openvino, torch\n"
        "e = engine.Engine(backend='fake')\n"
        "e.generate(request.resolve(e.info, prompt='a dog'))\n"
        "bad = {'torch', 'diffusers', 'transformers', 'nncf', 'openvino'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
