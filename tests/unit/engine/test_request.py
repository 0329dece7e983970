import numpy as np
import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.request import IMAGE_STRENGTH, resolve
from fewstep.errors import UsageError

INFO = FakeBackend().info
IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)
WHITE = np.full((64, 64), 255, dtype=np.uint8)


def test_defaults_come_from_the_contract():
    request = resolve(INFO, prompt="a dog")
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (5, 2.0, "ddim")
    assert (request.width, request.height, request.seed, request.n) == (64, 64, 0, 1)
    assert request.warnings == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_inference_steps": 0}, "steps is 0: at least one step is needed, give --steps 1 or more"),
        ({"num_inference_steps": 1001}, "at most 1000"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"num_inference_steps": True}, "whole number"),
        ({"guidance_scale": float("nan")}, "guidance is nan"),
        ({"guidance_scale": float("inf")}, "guidance is inf"),
        ({"guidance_scale": 0.5}, "from 1 to 100"),
        ({"guidance_rescale": float("nan")}, "guidance rescale is nan"),
        ({"guidance_rescale": 1.5}, "0 to 1"),
        ({"solver": "dimm"}, "ddim"),
        ({"solver": "flow_euler"}, "rectified-flow"),
        ({"eta": 2.0}, "eta is 2.0"),
        ({"seed": -1}, "seed is -1"),
        ({"n": 0}, "n is 0"),
        ({"n": 65}, "at most 64"),
        ({"width": 65}, "multiples of 8"),
        ({"height": 512}, "from 32 to 256"),
        ({"width": 8}, "from 32 to 256"),
        ({"width": 0}, "from 32 to 256"),
        ({"strength": 0.5}, "without an image"),
        ({"mask": WHITE}, "without an image"),
        ({"init_image": IMAGE, "strength": 0.0}, "leaves none"),
        ({"init_image": IMAGE, "strength": float("nan")}, "strength is nan"),
        ({"init_image": IMAGE, "strength": 1.5}, "strength is 1.5"),
        ({"init_image": IMAGE[..., :2]}, "RGB"),
        ({"init_image": IMAGE.astype(np.float32)}, "8-bit"),
        ({"init_image": IMAGE, "mask": WHITE[:32]}, "mask is 64x32 and image is 64x64"),
        ({"init_image": IMAGE, "mask": WHITE * 0}, "black everywhere"),
        ({"init_image": IMAGE, "mask": IMAGE}, "8-bit grey"),
        ({"prompt": "a" * 20_001}, "20001 characters"),
    ],
)
def test_bad_values_are_refused_in_one_line(given, words):
    with pytest.raises(UsageError) as caught:
        resolve(INFO, **{"prompt": "a dog", **given})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_strength_defaults():
    assert resolve(INFO, prompt="", init_image=IMAGE).strength == IMAGE_STRENGTH
    assert resolve(INFO, prompt="", init_image=IMAGE, mask=WHITE).strength == 1.0


@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 64), (64, 64)), ((512, 512), (64, 64)), ((100, 200), (88, 48)), ((3000, 30), (32, 256))],
)
def test_size_follows_the_picture(shape, size):
    image = np.zeros((*shape, 3), dtype=np.uint8)
    request = resolve(INFO, prompt="", init_image=image)
    assert (request.width, request.height) == size


def test_other_sizes_and_idle_negative_prompts_are_warned_about():
    assert "trained at 64x64" in resolve(INFO, prompt="", width=96).warnings[0]
    idle = resolve(INFO, prompt="", negative_prompt="blue", guidance_scale=1.0)
    assert "no effect" in idle.warnings[0]
