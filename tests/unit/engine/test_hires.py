import dataclasses

import numpy as np
import pytest

from fewstep.engine import hires, tiling, upscale
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.hires import Hires
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled, UsageError


def draw(backend=None, on_step=None, cancelled=None, **given):
    engine = Engine(backend=backend or FakeBackend())
    request = resolve(engine.info, **{"prompt": "a red apple", "seed": 3, **given})
    return engine.generate(request, on_step=on_step, cancelled=cancelled)


@pytest.mark.parametrize("upscaler", ["latent", "lanczos", "nearest"])
def test_the_second_pass_is_larger_and_goes_on_from_the_first(upscaler):
    made = draw(hires=Hires(scale=2, upscaler=upscaler))
    assert made.images[0].shape == (128, 128, 3)
    assert made.record["hires"] == {
        "width": 128, "height": 128, "num_inference_steps": 5, "strength": 0.5, "upscaler": upscaler,
        "runs": 2, "scale": 2,
    }  # fmt: skip
    assert (made.record["width"], made.record["height"]) == (64, 64)
    assert made.record["strength"] is None and made.record["task"] == "txt2img"
    other = draw(seed=30, hires=Hires(scale=2, upscaler=upscaler))
    assert not np.array_equal(made.images[0], other.images[0])


def test_the_upscaler_decides_what_the_second_pass_starts_from():
    given = {"strength": 0.3, "steps": 20}
    made = [draw(hires=Hires(scale=2, upscaler=name, **given)).images[0] for name in ("latent", "nearest")]
    assert not np.array_equal(*made)


def test_it_equals_image_to_image_by_hand():
    """Decoding, enlarging and drawing the last steps with the noise of the same seed."""
    first = draw()
    from fewstep.engine import pictures

    large = pictures.resized(first.images[0], 128, 96, "nearest")
    by_hand = draw(init_image=large, width=128, height=96, strength=0.5)
    made = draw(hires=Hires(size=(128, 96), upscaler="nearest"))
    assert np.abs(made.images[0].astype(int) - by_hand.images[0]).max() <= 1


@pytest.mark.parametrize(("steps", "strength", "runs"), [(5, 0.5, 2), (4, 0.1, 1), (1, 0.3, 1), (8, 1.0, 8)])
def test_at_least_one_step_runs(steps, strength, runs):
    backend = FakeBackend()
    made = draw(backend, guidance_scale=1.0, hires=Hires(scale=1.5, steps=steps, strength=strength))
    assert backend.calls == 5 + runs
    assert made.record["hires"]["runs"] == runs
    said = [warning for warning in made.warnings if "so one is run" in warning]
    assert bool(said) == (steps * strength < 1.0)


def test_steps_are_counted_over_both_passes():
    seen = []
    draw(n=6, hires=Hires(scale=2, upscaler="latent"), on_step=seen.append)
    assert {report.total for report in seen} == {6 * 7}
    indices = [report.index for report in seen]
    assert indices == sorted(indices) and indices[-1] == 41
    assert seen[5].x0.shape == (4, 4, 16, 16)


def test_each_image_has_the_pixels_that_it_has_alone():
    given = {"hires": Hires(scale=1.5, upscaler="lanczos"), "solver": "euler_a"}
    batch = draw(n=3, deterministic=True, **given)
    assert np.array_equal(batch.images[2], draw(**(given | {"seed": 5})).images[0])


def test_it_can_be_stopped_in_the_second_pass():
    done = []
    with pytest.raises(Cancelled):
        draw(hires=Hires(scale=2), on_step=done.append, cancelled=lambda: len(done) >= 6)
    assert len(done) == 6


def test_students_keep_their_steps():
    backend = FakeBackend(students={"quick": (2, 4)})
    made = draw(backend, num_inference_steps=4, hires=Hires(scale=2))
    assert made.record["student"]["name"] == "quick"
    assert any("hires" in warning and "leaves 2 of the 4 steps" in warning for warning in made.warnings)
    with pytest.raises(UsageError, match="made for 2, 4"):
        draw(backend, num_inference_steps=4, hires=Hires(scale=2, steps=3))


def test_steps_that_a_student_was_not_made_for_are_kept_for_who_insists():
    backend = FakeBackend(students={"quick": (2, 4)})
    made = draw(
        backend, student="quick", num_inference_steps=4, hires=Hires(scale=2, steps=3, strength=1.0),
        guidance_scale=1.0, insist=True,
    )  # fmt: skip
    assert made.record["hires"]["num_inference_steps"] == 3
    assert made.record["insist"] is True
    assert backend.calls == 4 + 3
    (said,) = [warning for warning in made.warnings if "3 steps on" in warning]
    assert said.startswith("hires: ") and "3 is kept, as you insist" in said


@pytest.mark.parametrize("insist", [False, True])
def test_steps_that_a_model_of_few_steps_was_not_made_for(insist):
    """A checkpoint of few steps, no student: what fits is taken, or what was asked for."""
    backend = FakeBackend()
    few = dataclasses.replace(
        backend.info.contract, method="lightning", base_family="sdxl", num_inference_steps=4,
        allowed_steps=(4,), guidance="off", guidance_scale=1.0, negative_prompt_effective=False,
    )  # fmt: skip
    backend.info = dataclasses.replace(backend.info, contract=few)
    made = draw(backend, hires=Hires(scale=2, steps=6, strength=1.0), insist=insist)
    steps = 6 if insist else 4
    assert made.record["hires"]["num_inference_steps"] == steps
    assert backend.calls == 4 + steps
    (said,) = [warning for warning in made.warnings if "6 steps on" in warning]
    assert ("as you insist" in said) == insist and "SDXL-Lightning" in said


def test_bilinear_is_torchs():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)
    for size in ((10, 14), (8, 9), (5, 7), (3, 4)):
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(x), size=size, mode="bilinear", align_corners=False, antialias=False
        )
        np.testing.assert_allclose(hires.bilinear(x, *size), theirs.numpy(), atol=1e-5)


def test_auto_is_real_esrgan_where_it_is_installed(monkeypatch):
    asked = Hires(scale=2)
    info = FakeBackend().info
    monkeypatch.setattr(upscale, "available", list)
    assert resolve(info, prompt="", hires=asked).hires.upscaler == "lanczos"
    monkeypatch.setattr(upscale, "available", lambda: ["animevideo"])
    assert resolve(info, prompt="", hires=asked).hires.upscaler == "animevideo"


def test_real_esrgan_is_brought_to_the_size_that_was_asked_for(monkeypatch):
    seen = []

    def four_times(image, name, **_):
        seen.append(name)
        return upscale.Upscaled(image.repeat(4, axis=0).repeat(4, axis=1), name)

    monkeypatch.setattr(upscale, "upscale", four_times)
    backend = FakeBackend()
    second = hires.SecondPass(
        width=128, height=96, num_inference_steps=5, strength=0.5, upscaler="anime", runs=2
    )
    latents = np.zeros((2, 4, 8, 8), dtype=np.float32)
    made = hires.enlarged(tiling.Autoencoder(backend, False), latents, second, 8)
    assert made.shape == (2, 4, 12, 16) and seen == ["anime", "anime"]
    assert second.record()["upscaler"] == "realesrgan-x4plus-anime"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Hires(), "scale or a size"),
        (Hires(scale=2, size=(128, 128)), "scale or a size"),
        (Hires(scale=0.5), "from 1 to 8"),
        (Hires(scale=float("nan")), "hires scale is nan"),
        (Hires(scale=8), "to 256 pixels"),
        (Hires(size=(100, 128)), "multiple of 8"),
        (Hires(scale=2, strength=0.0), "above 0"),
        (Hires(scale=2, strength=1.5), "hires strength is 1.5"),
        (Hires(scale=2, steps=0), "hires steps is 0"),
        (Hires(scale=2, upscaler="bicubic"), "auto, latent, lanczos, nearest"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(wanted, words):
    with pytest.raises(UsageError) as caught:
        resolve(FakeBackend().info, prompt="", hires=wanted)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_it_is_not_for_pictures():
    with pytest.raises(UsageError, match="leave --image out"):
        resolve(
            FakeBackend().info,
            prompt="",
            hires=Hires(scale=2),
            init_image=np.zeros((64, 64, 3), dtype=np.uint8),
        )


def test_openvino_prepares_both_sizes(ir_bundle):
    engine = Engine(ir_bundle, threads=1)
    request = resolve(engine.info, prompt="red", hires=Hires(scale=1.5, upscaler="lanczos"))
    engine.prepare(request)
    assert ("vae_encoder", (("pixels", (1, 3, 96, 96)),)) in engine.backend._loaded
    made = engine.generate(request)
    assert made.images[0].shape == (96, 96, 3)
    loaded = {(part, shapes[0][1][2:]) for part, shapes in engine.backend._loaded if part != "text_encoder"}
    sizes = [("denoiser", (8, 8)), ("denoiser", (12, 12)), ("vae_decoder", (8, 8)), ("vae_decoder", (12, 12))]
    assert loaded == {*sizes, ("vae_encoder", (96, 96))}
    engine.close()
