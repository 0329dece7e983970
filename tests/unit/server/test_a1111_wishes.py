"""Requests of the WebUI's clients as orders of ours."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.request import resolve
from fewstep.engine.upscaling import catalogue
from fewstep.errors import DataError, NotFoundError, UsageError
from fewstep.prompt.styles import Style
from fewstep.server import media
from fewstep.server.a1111 import img2img, options, pasted, txt2img
from fewstep.server.a1111.wishes import Setting
from fewstep.server.orders import Upscale
from fewstep.server.schemas import a1111 as schema
from fewstep.server.schemas.a1111 import Img2Img, Txt2Img
from fewstep.server.settings import Limits

LIMITS = Limits()
SMALL = {"width": 64, "height": 64}


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setattr(catalogue, "installed", lambda one: True)
    monkeypatch.setattr(catalogue, "check_installed", lambda one: None)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def grey(height=64, width=64, level=100):
    return np.full((height, width, 3), level, dtype=np.uint8)


def spot(height=64, width=64):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[16:32, 16:32] = 255
    return mask


def at(info=None, **changed):
    return Setting(
        info=info or FakeBackend(students={"four": (4,)}).info, owner="ann",
        options=options.Store().get("ann") | options.checked(changed, strict=True), limits=LIMITS,
        styles=(Style("sketch", "pencil, {prompt}", "colour"),),
        decode=lambda text, what, mask=False: media.decode_text(text, what=what, limits=LIMITS, mask=mask),
    )  # fmt: skip


def text(given, where=None):
    where = where or at()
    wish = txt2img.wish(Txt2Img(**given), where, model="fake", save=True)
    (order,) = wish.orders
    return wish, order, resolve(where.info, **order.settings)


def image(given, where=None):
    where = where or at()
    given = {"init_images": [png(grey())], **SMALL, **given}
    wish = img2img.wish(Img2Img(**given), where, model="fake", save=True)
    return wish, wish.orders[0], resolve(where.info, **wish.orders[0].settings)


def test_an_empty_request_is_drawn_as_the_model_wants():
    wish, order, request = text({"prompt": "a red apple"})
    assert (request.num_inference_steps, request.guidance_scale, request.solver) == (5, 2.0, "ddim")
    assert (request.width, request.height) == (64, 64)
    assert order.upscale == Upscale(name="auto", width=512, height=512)
    assert wish.asked == {"Size": "512x512"} and order.extra == {"asked": {"Size": "512x512"}}
    assert (order.owner, order.client, order.model) == ("ann", "a1111", "fake")


def test_seeds_are_drawn_by_lot_where_they_are_not_given():
    found = {text({"prompt": "a", "seed": seed})[2].seed for seed in (-1, None, "") for _ in range(3)}
    assert len(found) == 9 and all(0 <= one < 2**32 for one in found)
    assert text({"prompt": "a", "seed": 7})[2].seed == 7
    with pytest.raises(ValidationError):
        Txt2Img(seed=-2)


def test_pictures_are_batch_size_times_n_iter():
    assert text({"prompt": "a", "batch_size": 3, "n_iter": 2, **SMALL})[2].n == 6
    with pytest.raises(UsageError, match="at most 16"):
        text({"prompt": "a", "batch_size": 3, "n_iter": 6})


def test_variations_and_seeds_of_another_size():
    given = {"prompt": "a", "seed": 1, "subseed": 9, "subseed_strength": 0.25, **SMALL}
    request = text(given)[2]
    assert (request.variation.seed, request.variation.strength) == (9, 0.25)
    given |= {"seed_resize_from_w": 128, "seed_resize_from_h": 64, "subseed_strength": 0}
    assert text(given)[2].variation.resize_from == (128, 64)
    # A picture that is drawn at an eighth of its size has its seed's size at an eighth too.
    given |= {"width": 512, "height": 512, "seed_resize_from_w": 1024, "seed_resize_from_h": 512}
    assert text(given)[2].variation.resize_from == (128, 64)
    assert text({"prompt": "a", "subseed": 9, **SMALL})[2].variation is None


def test_styles_are_put_in_and_unknown_ones_refused():
    request = text({"prompt": "a dog", "styles": ["sketch"], **SMALL})[2]
    assert (request.prompt, request.negative_prompt) == ("pencil, a dog", "colour")
    with pytest.raises(NotFoundError, match="sketch"):
        text({"prompt": "a", "styles": ["skitch"]})


def test_scheduler_and_sampler_together():
    request = text({"prompt": "a", "sampler_name": "DPM++ 2M Karras", **SMALL})[2]
    assert (request.solver, request.spacing) == ("dpmpp_2m", "karras")
    request = text({"prompt": "a", "sampler_name": "DPM++ 2M Karras", "scheduler": "exponential", **SMALL})[2]
    assert request.spacing == "exponential"
    request = text({"prompt": "a", "sampler_index": "Heun", "scheduler": "Automatic", **SMALL})[2]
    assert (request.solver, request.spacing) == ("heun", None)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"sampler_name": "LMS"}, NotFoundError),
        ({"scheduler": "beta"}, NotFoundError),
        ({"hr_sampler_name": "LMS", "enable_hr": True}, NotFoundError),
        ({"hr_upscaler": "SwinIR 4x", "enable_hr": True}, NotFoundError),
        ({"script_name": "x/y/z plot"}, UsageError),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}}, UsageError),
        ({"alwayson_scripts": {"roop": {"args": ["...", True]}}}, UsageError),
        ({"refiner_checkpoint": "sd_xl_refiner"}, UsageError),
        ({"hr_checkpoint_name": "other", "enable_hr": True}, UsageError),
    ],
)
def test_what_there_is_not_is_refused(given, kind):
    with pytest.raises(kind):
        text({"prompt": "a", **given})


@pytest.mark.parametrize(
    "script",
    [
        {"ControlNet": {"args": []}}, {"ADetailer": {"args": [False]}}, {"x": {}}, {"x": {"args": None}},
        {"ControlNet": {"args": [{"enabled": False, "image": None}]}},
    ],
)  # fmt: skip
def test_a_script_that_is_off_is_none(script):
    text({"prompt": "a", "alwayson_scripts": script})


def test_fields_without_effect_are_said():
    wish, *_ = text({"prompt": "a", "restore_faces": True, "tiling": True, "s_churn": 1.0, **SMALL})
    said = " ".join(wish.comments)
    assert all(word in said for word in ("restore_faces", "tiling", "s_churn"))


def test_lora_tags_are_left_out_where_networks_are_disabled():
    wish, _, request = text({"prompt": "a dog <lora:../../x:1>", "disable_extra_networks": True, **SMALL})
    assert request.prompt == "a dog " and "../../x" in wish.comments[0]
    with pytest.raises(UsageError, match="not found"):
        text({"prompt": "a dog <lora:../../x:1>", **SMALL})


def test_options_of_the_request():
    info = dataclasses.replace(FakeBackend().info, max_clip_skip=2)
    assert text({"prompt": "a", **SMALL}, at(info, CLIP_stop_at_last_layers=2))[2].clip_skip == 1
    wish, _, request = text({"prompt": "a", **SMALL}, at(info, CLIP_stop_at_last_layers=4))
    assert request.clip_skip == 0 and "CLIP_stop_at_last_layers" in wish.comments[0]
    assert text({"prompt": "a", **SMALL}, at(emphasis="No norm"))[2].emphasis == "no_norm"
    assert text({"prompt": "a", **SMALL}, at(fewstep_student="four"))[2].student == "four"
    assert text({"prompt": "a", "steps": 4, **SMALL}, at(fewstep_student="None"))[2].student is None
    given = {"prompt": "a", "width": 256, "height": 128}
    assert text(given, at(fewstep_upscaler="none"))[2].width == 256
    assert text(given, at(fewstep_upscaler="Lanczos"))[1].upscale.name == "lanczos"


def test_options_are_a_closed_list():
    with pytest.raises(UsageError, match="outdir_samples"):
        options.checked({"outdir_samples": "/elsewhere"}, strict=True)
    assert options.checked({"outdir_samples": "/elsewhere", "randn_source": "GPU"}, strict=False) == {}
    for name, value in {
        "samples_format": "gif", "CLIP_stop_at_last_layers": 0, "jpeg_quality": 1.5, "emphasis": "loud",
        "live_previews_enable": "yes", "fewstep_upscaler": "SwinIR", "sd_vae": "kl-f8.ckpt",
    }.items():  # fmt: skip
        with pytest.raises((UsageError, NotFoundError), match=name if name[:2] != "fe" else "upscaler"):
            options.checked({name: value}, strict=True)


def test_a_second_pass():
    given = {"prompt": "a", "steps": 10, "enable_hr": True, "denoising_strength": 0.5, "hr_scale": 2, **SMALL}
    _, order, request = text(given)
    second = request.hires
    assert (second.width, second.height, second.upscaler, second.strength) == (128, 128, "latent", 0.5)
    assert second.scale == 2.0
    # As many steps run as in the first pass: the WebUI counts those.
    assert (second.num_inference_steps, second.runs, order.upscale) == (20, 10, None)
    assert text({**given, "hr_second_pass_steps": 3})[2].hires.runs == 3
    assert text({**given, "hr_upscaler": "R-ESRGAN 4x+ Anime6B"})[2].hires.upscaler == "anime"
    _, order, request = text({**given, "hr_resize_x": 512, "hr_resize_y": 256})
    assert (request.hires.width, request.hires.height) == (256, 128)
    assert order.upscale == Upscale(name="auto", width=512, height=256)
    _, order, request = text({**given, "denoising_strength": 0})
    assert request.hires is None and order.upscale == Upscale(name="auto", width=128, height=128)


def test_the_old_form_of_a_second_pass():
    given = {"prompt": "a", "enable_hr": True, "firstphase_width": 64, "firstphase_height": 64}
    _, order, request = text({**given, "width": 128, "height": 128})
    assert (request.width, request.hires.width, order.upscale) == (64, 128, None)


def test_a_picture_in_place_of_the_first_pass():
    given = {"prompt": "a", "enable_hr": True, "firstpass_image": png(grey(32, 32)), **SMALL}
    request = text({**given, "denoising_strength": 0.4})[2]
    assert (request.width, request.strength, request.hires) == (128, 0.4, None)
    assert request.init_image.shape == (128, 128, 3)


def test_unknown_fields_are_ignored_and_logged_once(caplog):
    caplog.set_level(logging.INFO, "fewstep.server")
    schema._ignored.discard("distilled_cfg_scale")
    for _ in range(3):
        Txt2Img(prompt="a", distilled_cfg_scale=3.5)
    assert sum("distilled_cfg_scale" in line for line in caplog.messages) == 1


def test_a_picture_is_changed():
    _, order, request = image({"prompt": "a", "denoising_strength": 0.6})
    assert (request.strength, request.init_image.shape, order.upscale) == (0.6, (64, 64, 3), None)
    assert image({"denoising_strength": 0})[2].strength == 0.01
    _, order, request = image({"width": 512, "height": 512})
    assert (request.width, order.upscale) == (64, Upscale(name="auto", width=512, height=512))


def test_no_picture_and_too_many_pictures_are_refused():
    for given in (None, []):
        with pytest.raises(NotFoundError, match="init_images"):
            image({"init_images": given})
    with pytest.raises(UsageError, match="batch_size is 1"):
        image({"init_images": [png(grey())] * 2})
    with pytest.raises(DataError):
        image({"init_images": ["/etc/passwd"]})
    with pytest.raises(UsageError, match="URLs are disabled"):
        image({"init_images": ["http://127.0.0.1/x.png"]})


def test_every_picture_of_a_batch_may_start_from_its_own():
    wish, *_ = image(
        {"init_images": [png(grey(level=level)) for level in (10, 20)], "batch_size": 2, "seed": 5}
    )
    assert [order.settings["seed"] for order in wish.orders] == [5, 6]
    assert [order.settings["n"] for order in wish.orders] == [1, 1]
    assert [int(order.settings["init_image"][0, 0, 0]) for order in wish.orders] == [10, 20]


@pytest.mark.parametrize("fill", range(4))
def test_what_stands_under_the_mask(fill):
    contents = ("fill", "original", "latent_noise", "latent_nothing")
    given = {"mask": png(spot()), "inpainting_fill": fill, "inpaint_full_res": False, "mask_blur": 3}
    request = image(given)[2]
    assert (request.masking.content, request.masking.blur) == (contents[fill], 3)
    assert request.mask[20, 20] == 255 and request.mask[0, 0] == 0 and not request.masking.only_masked


def test_only_the_masked_part_is_drawn_and_the_picture_keeps_its_size():
    given = {"init_images": [png(grey(200, 300))], "mask": png(spot(200, 300)), "inpaint_full_res_padding": 8}
    _, order, request = image({**given, "width": 512, "height": 512})
    assert request.masking.only_masked and request.masking.padding == 8 and order.upscale is None
    assert request.init_image.shape == (200, 300, 3) and (request.width, request.height) == (64, 64)


def test_a_whole_masked_picture_that_is_not_drawn_at_its_size_keeps_what_is_not_masked():
    given = {"mask": png(spot()), "inpaint_full_res": False, "width": 512, "height": 512}
    _, order, request = image(given)
    assert request.init_image.shape == (512, 512, 3) and (request.width, order.upscale) == (64, None)
    assert request.masking.only_masked and request.masking.padding == 4096


def test_a_blank_mask_draws_the_whole_picture_and_an_inverted_one_the_rest():
    wish, _, request = image({"mask": png(np.zeros((64, 64), dtype=np.uint8))})
    assert request.mask is None and "blank" in wish.comments[0]
    request = image({"mask": png(spot()), "inpainting_mask_invert": 1})[2]
    assert request.mask[20, 20] == 0 and request.mask[0, 0] == 255


def test_masks_by_their_transparency_and_of_another_size():
    rgba = np.zeros((32, 32, 4), dtype=np.uint8)
    rgba[8:16, 8:16, 3] = 255
    request = image({"mask": png(rgba)})[2]
    assert request.mask.shape == (64, 64) and request.mask[24, 24] == 255 and request.mask[60, 60] == 0
    assert image({"latent_mask": png(spot())})[2].mask is not None


def test_models_that_take_instructions_are_shown_the_picture_beside_the_noise():
    info = dataclasses.replace(FakeBackend().info, inputs="instruct")
    request = image({"image_cfg_scale": 1.7, "denoising_strength": 0.3}, at(info))[2]
    assert (request.image_guidance_scale, request.strength) == (1.7, 1.0)


PASTED = (
    "a red apple\nNegative prompt: blurry\nSteps: 7, Sampler: DPM++ 2M, Schedule type: Karras, "
    "CFG scale: 3.5, Seed: 12, Size: 64x96, Model hash: 0123456789, Model: other, Variation seed: 3, "
    "Variation seed strength: 0.2, Clip skip: 2, Emphasis: No norm, Version: v1.10.1"
)


def test_a_pasted_text_fills_in_what_is_not_said():
    body, made_by = pasted.filled(Txt2Img(infotext=PASTED, steps=3, prompt="a dog"))
    assert (body.prompt, body.steps) == ("a dog", 3)
    assert (body.negative_prompt, body.cfg_scale, body.seed) == ("blurry", 3.5, 12)
    assert (body.sampler_name, body.scheduler, body.width, body.height) == ("DPM++ 2M", "Karras", 64, 96)
    assert (body.subseed, body.subseed_strength) == (3, 0.2)
    assert body.override_settings == {"CLIP_stop_at_last_layers": 2, "emphasis": "No norm"}
    assert made_by == "other"  # which is said, and never switched to


def test_a_pasted_text_of_a_picture_that_was_enlarged_asks_for_the_enlarged_size():
    body, _ = pasted.filled(
        Txt2Img(infotext="a\nSteps: 4, Seed: 1, Size: 64x64, Postprocess upscale to: 512x512")
    )
    assert (body.width, body.height) == (512, 512)


@pytest.mark.parametrize("item", ["Steps: many", "Size: large", "Steps: 0", "CFG scale: nan", "Seed: -5"])
def test_a_pasted_text_that_cannot_be_is_refused(item):
    with pytest.raises(UsageError, match="infotext: "):
        pasted.filled(Txt2Img(infotext=f"a\nSampler: Euler, Model: x, {item}, Version: 1"))


def test_a_pasted_text_of_masks():
    text = "a\nSteps: 4, Seed: 1, Mask blur: 7, Inpaint area: Only masked, Masked content: latent noise"
    body, _ = pasted.filled(Img2Img(infotext=text, init_images=["x"]))
    assert (body.mask_blur, body.inpaint_full_res, body.inpainting_fill) == (7, True, 2)
    assert body.init_images == ["x"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 10**9, "sampler_name": "Euler", "scheduler": "sgm_uniform"}, "at most 150"),
        ({"seed_resize_from_w": 16384, "seed_resize_from_h": 16, "width": 16, "height": 16}, "at most 64x64"),
        ({"enable_hr": True, "hr_scale": 16, "width": 1024, "height": 1024}, "at most 16777216 pixels"),
        ({"width": 16384, "height": 16}, "times as long as wide"),
        ({"override_settings": {"CLIP_stop_at_last_layers": float("inf")}}, "from 1 to 12"),
    ],
)  # fmt: skip
def test_h12_numbers_beyond_all_bounds_are_refused_before_anything_is_made(given, words):
    with pytest.raises(UsageError, match=words):
        text({"prompt": "a", **given}, at(**given.get("override_settings", {})))


def test_h12_a_tiny_strength_of_a_second_pass_runs_one_step():
    given = {"prompt": "a", "enable_hr": True, "denoising_strength": 1e-300, "steps": 2, **SMALL}
    assert text(given)[2].hires.runs == 1


@pytest.mark.parametrize("mode", range(4))
def test_h12_long_and_narrow_pictures_are_not_blown_up(mode, monkeypatch):
    largest = []
    own = img2img.pictures.resized

    def watched(array, width, height, *more):
        largest.append(width * height)
        return own(array, width, height, *more)

    monkeypatch.setattr(img2img.pictures, "resized", watched)
    image({"init_images": [png(grey(16, 30_000))], "resize_mode": mode})
    assert max(largest) <= 64 * 64


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": None}, {"cfg_scale": float("nan")}, {"cfg_scale": -1}, {"steps": 0}, {"width": 0},
        {"denoising_strength": -1}, {"denoising_strength": 2}, {"seed": 2**64}, {"batch_size": 0},
        {"subseed_strength": 1.5}, {"styles": "sketch"}, {"seed": "many"}, {"alwayson_scripts": []},
    ],
)  # fmt: skip
def test_h12_values_of_another_kind_or_out_of_range_are_refused(change):
    with pytest.raises(ValidationError):
        Txt2Img(**change)
