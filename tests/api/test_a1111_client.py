"""The unmodified `webuiapi` client against a whole server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from served import Served, serving, until

from fewstep.engine.upscaling import catalogue
from fewstep.errors import Cancelled
from fewstep.server.settings import Key

HTTP = httpx.Client(timeout=30)
SMALL: dict[str, Any] = {"width": 64, "height": 64}

needs_networks = pytest.mark.skipif(
    not catalogue.installed(catalogue.UPSCALERS[catalogue.DEFAULT]), reason="no upscaler is installed"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("a1111")
    (data / "styles.csv").write_text('name,prompt,negative_prompt\nsketch,"pencil, {prompt}",colour\n')
    with serving(data) as served:
        yield served


@pytest.fixture
def api(server: Served) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(baseurl=f"{server.url}/sdapi/v1")


def grey(size: tuple[int, int] = (64, 64), level: int = 120) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


def spot(size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = np.zeros(size[::-1], dtype=np.uint8)
    mask[16:32, 16:32] = 255
    return Image.fromarray(mask)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image.convert("RGB"))


def post(server: Served, path: str, **body: Any) -> httpx.Response:
    return HTTP.post(f"{server.url}/sdapi/v1/{path}", json=body)


@needs_networks
def test_a_picture_with_nothing_but_the_clients_defaults(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a red apple", seed=5)
    assert made.image.size == (512, 512)
    assert (made.info["width"], made.info["sampler_name"], made.info["steps"]) == (512, "Euler a", 20)
    # 7 is the client's, 2 the model's: what was drawn is said, and what had been asked for.
    assert made.info["cfg_scale"] == 2.0 and made.info["all_seeds"] == [5]
    further = made.info["extra_generation_params"]
    assert further["Asked CFG scale"] == "7" and further["Drawn size"] == "64x64"
    assert further["Postprocess upscaler"] and any("guidance 7" in one for one in made.info["comments"])
    assert made.parameters["fewstep"]["drawn_width"] == 64 and made.parameters["width"] == 512
    assert made.image.info["parameters"] == made.info["infotexts"][0]
    assert "Size: 64x64" in made.info["infotexts"][0] and "upscale to: 512x512" in made.info["infotexts"][0]


def test_a_seed_draws_the_same_picture_again(api: webuiapi.WebUIApi) -> None:
    first = api.txt2img(prompt="a red apple", batch_size=2, n_iter=2, **SMALL)
    assert len(first.images) == 4 and len(set(first.info["all_seeds"])) == 4
    again = api.txt2img(prompt="a red apple", seed=first.info["all_seeds"][2], **SMALL)
    assert np.array_equal(pixels(first.images[2]), pixels(again.image))
    assert first.parameters["seed"] == first.info["seed"] >= 0


def test_a_step_count_of_a_student_is_drawn_by_it(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a dog", steps=4, **SMALL)
    assert (made.info["steps"], made.info["cfg_scale"], made.info["sampler_name"]) == (4, 1.0, "LCM")
    assert made.parameters["fewstep"]["student"] == made.info["extra_generation_params"]["Student"] == "four"
    kept = api.txt2img(prompt="a dog", steps=4, override_settings={"fewstep_insist": True}, **SMALL)
    assert (kept.info["cfg_scale"], kept.info["sampler_name"]) == (7.0, "Euler a")


def test_pictures_are_kept_unless_the_client_says_not_to(server: Served, api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a dog", send_images=False, **SMALL)
    assert made.images == [] and len(made.info["ids"]) == 1
    assert server.services.history.get(made.info["ids"][0], "") is not None
    assert api.txt2img(prompt="a dog", do_not_save_samples=True, **SMALL).info["ids"] == []


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_files_are_of_the_format_that_is_asked_for(api: webuiapi.WebUIApi, kind: str, name: str) -> None:
    made = api.txt2img(prompt="a dog", seed=1, override_settings={"samples_format": kind}, **SMALL)
    assert made.image.format == name
    assert api.png_info(Raw(made)).info.startswith("a dog\nSteps: 20")


class Raw:
    """In place of a picture: the client would make a PNG of it, this is the file as it came."""

    def __init__(self, made: Any) -> None:
        self.info: dict[str, str] = {}
        self._data = base64.b64decode(made.json["images"][0])

    def save(self, out: io.BytesIO, **_: Any) -> None:
        out.write(self._data)


def test_variations_styles_and_schedulers(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(
        prompt="a dog", styles=["sketch"], seed=1, subseed=9, subseed_strength=0.5, batch_size=2,
        sampler_name="DPM++ 2M Karras", **SMALL,
    )  # fmt: skip
    assert made.info["all_seeds"] == [1, 1] and made.info["all_subseeds"] == [9, 10]
    assert made.info["prompt"] == "pencil, a dog" and made.info["negative_prompt"] == "colour"
    assert "Schedule type: Karras" in made.info["infotexts"][0]
    assert "Variation seed: 10" in made.info["infotexts"][1]
    again = api.txt2img(prompt="", **SMALL, sampler_name="Euler")
    assert "Schedule type" not in again.info["infotexts"][0]


def test_a_second_pass(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a dog", enable_hr=True, denoising_strength=0.5, steps=10, **SMALL)
    assert made.image.size == (128, 128) and made.info["denoising_strength"] == 0.5
    assert "Hires upscaler: Latent" in made.info["infotexts"][0]
    assert "Hires steps: 10" in made.info["infotexts"][0]


def test_a_pasted_text_draws_the_same_picture(server: Served, api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a red dog", seed=3, steps=7, cfg_scale=3.0, sampler_name="Heun", **SMALL)
    answer = post(server, "txt2img", infotext=made.info["infotexts"][0]).json()
    image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert np.array_equal(pixels(made.image), pixels(image))
    assert json.loads(answer["info"])["infotexts"] == made.info["infotexts"]


def test_a_picture_is_changed(api: webuiapi.WebUIApi) -> None:
    made = api.img2img(images=[grey()], prompt="a dog", denoising_strength=0.5, seed=1, **SMALL)
    assert made.image.size == (64, 64) and "Denoising strength: 0.5" in made.info["infotexts"][0]
    assert made.parameters["init_images"] is None
    echo = api.img2img(images=[grey()], prompt="a dog", include_init_images=True, **SMALL).parameters
    assert echo["init_images"][0].startswith("data:image/png;base64,")


def test_only_what_is_masked_changes(api: webuiapi.WebUIApi) -> None:
    mask = np.asarray(spot())
    for full in (True, False):
        made = api.img2img(
            images=[grey()], mask_image=spot(), prompt="a red apple", inpaint_full_res=full, mask_blur=0,
            denoising_strength=1.0, inpainting_fill=1, **SMALL,
        )  # fmt: skip
        changed = np.any(pixels(made.image) != 120, axis=2)
        assert not changed[mask == 0].any() and changed[mask == 255].mean() > 0.9


def test_a_large_picture_keeps_its_size_and_what_is_not_masked(api: webuiapi.WebUIApi) -> None:
    picture, mask = grey((300, 200)), spot((300, 200))
    made = api.img2img(images=[picture], mask_image=mask, prompt="a red apple", mask_blur=0)
    assert made.image.size == (300, 200)
    assert np.all(pixels(made.image)[np.asarray(mask) == 0] == 120)
    made = api.img2img(
        images=[picture], mask_image=mask, prompt="a red apple", mask_blur=0, inpaint_full_res=False,
        width=480, height=320,
    )  # fmt: skip
    assert made.image.size == (480, 320) and np.all(pixels(made.image)[200:] == 120)


def test_a_picture_for_each_of_a_batch(api: webuiapi.WebUIApi) -> None:
    pictures = [grey(level=20), grey(level=220)]
    made = api.img2img(
        images=pictures, batch_size=2, prompt="a dog", denoising_strength=0.01, seed=4, **SMALL
    )
    assert made.info["all_seeds"] == [4, 5] and len(made.images) == 2
    assert pixels(made.images[0]).mean() < pixels(made.images[1]).mean()


def test_extras(api: webuiapi.WebUIApi) -> None:
    made = api.extra_single_image(grey(), upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    assert made.image.size == (96, 96) and "Postprocess upscaler: lanczos" in made.info
    made = api.extra_single_image(
        grey(), resize_mode=1, upscaling_resize_w=100, upscaling_resize_h=50,
        upscaler_1=webuiapi.Upscaler.Nearest, upscaler_2=webuiapi.Upscaler.Lanczos,
        extras_upscaler_2_visibility=0.5,
    )  # fmt: skip
    assert made.image.size == (100, 50) and "upscaler 2: lanczos" in made.info
    assert made.image.info["postprocessing"].startswith("Postprocess upscale to: 100x50")
    many = api.extra_batch_images([grey(), grey((32, 64))], upscaler_1="Lanczos")
    assert [one.size for one in many.images] == [(128, 128), (64, 128)]
    assert api.extra_single_image(grey()).image.size == (64, 64)  # by "None"


def test_png_info(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a dog", seed=7, **SMALL)
    read = api.png_info(made.image)
    assert read.info == made.info["infotexts"][0]
    assert read.parameters["Prompt"] == "a dog" and read.parameters["Size-1"] == "64"
    assert json.loads(read.json["items"]["fewstep"])["seed"] == 7
    assert api.png_info(grey()).info == ""


def test_no_picture_is_described(api: webuiapi.WebUIApi) -> None:
    with pytest.raises(RuntimeError) as refused:
        api.interrogate(grey())
    assert refused.value.args[0] == 422 and "no_model" in refused.value.args[1]


class Turnstile:
    """A gate that lets one call through for each `let`."""

    def __init__(self) -> None:
        self._passes = threading.Semaphore(0)

    def wait(self, timeout: float) -> bool:
        return self._passes.acquire(timeout=timeout)

    def let(self, calls: int) -> None:
        self._passes.release(calls)


def test_progress_with_a_preview_and_a_name(server: Served, api: webuiapi.WebUIApi) -> None:
    api.util_wait_for_ready(check_interval=0.01)
    before, turnstile = server.backend.gate, Turnstile()
    server.backend.gate = turnstile  # type: ignore[assignment]
    named: dict[str, Any] = {"id_task": "mine"}
    try:
        with ThreadPoolExecutor(1) as pool:
            given = {"prompt": "a dog", "force_task_id": "mine", "steps": 6, "cfg_scale": 1, **SMALL}
            waiting = pool.submit(post, server, "txt2img", **given)
            until(server.backend.waiting.is_set)
            seen = api.get_progress()
            assert 0.0 < seen["progress"] < 0.1 and seen["state"]["job_count"] == 1
            pending = HTTP.get(f"{server.url}/internal/pending-tasks").json()
            assert pending == {"size": 1, "tasks": ["mine"]}
            turnstile.let(3)
            until(lambda: api.get_progress()["state"]["sampling_step"] == 3)
            now = api.get_progress()
            assert now["progress"] == 0.5 and now["state"]["sampling_steps"] == 6 and now["eta_relative"] > 0
            picture = Image.open(io.BytesIO(base64.b64decode(now["current_image"])))
            assert picture.size == (64, 64)
            bare = HTTP.get(f"{server.url}/sdapi/v1/progress?skip_current_image=true").json()
            assert bare["current_image"] is None and bare["progress"] == 0.5
            told = HTTP.post(f"{server.url}/internal/progress", json=named).json()
            assert told["active"] and told["live_preview"].startswith("data:image/png;base64,")
            same = {**named, "id_live_preview": told["id_live_preview"]}
            assert HTTP.post(f"{server.url}/internal/progress", json=same).json()["live_preview"] is None
            turnstile.let(100)
            assert waiting.result().status_code == 200
    finally:
        server.backend.gate = before
        turnstile.let(1000)
    told = HTTP.post(f"{server.url}/internal/progress", json=named).json()
    assert (told["active"], told["completed"]) == (False, True)
    unknown = HTTP.post(f"{server.url}/internal/progress", json={"id_task": "other"}).json()
    assert (unknown["active"], unknown["queued"], unknown["completed"]) == (False, False, False)
    assert api.get_progress()["progress"] == 0.0


def test_interrupt_answers_with_what_was_finished(server: Served, api: webuiapi.WebUIApi) -> None:
    """O06."""
    with server.held() as gate, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, server, "txt2img", prompt="a dog", steps=20, **SMALL)
        until(server.backend.waiting.is_set)
        assert api.interrupt() == {} and api.interrupt() == {}
        calls = server.backend.calls
        gate.set()
        answer = waiting.result()
        assert answer.status_code == 200 and answer.json()["images"] == []
        assert "interrupted" in json.loads(answer.json()["info"])["comments"][-1]
        assert server.backend.calls <= calls + 2  # one step, with and without guidance
    assert api.txt2img(prompt="a dog", **SMALL).images


def test_skip_goes_on_with_the_next_order_of_the_request(server: Served, api: webuiapi.WebUIApi) -> None:
    picture = webuiapi.webuiapi.b64_img(grey())
    with server.held() as gate, ThreadPoolExecutor(1) as pool:
        given = {"init_images": [picture, picture], "batch_size": 2, "prompt": "a dog", "seed": 1, **SMALL}
        waiting = pool.submit(post, server, "img2img", **given)
        until(server.backend.waiting.is_set)
        assert api.skip() is None
        gate.set()
        answer = waiting.result().json()
        assert json.loads(answer["info"])["all_seeds"] == [2] and len(answer["images"]) == 1


def test_the_asynchronous_client(api: webuiapi.WebUIApi) -> None:
    async def draw() -> Any:
        return await asyncio.gather(
            *(api.txt2img(prompt="a dog", seed=seed, use_async=True, **SMALL) for seed in range(3))
        )

    assert [made.info["seed"] for made in asyncio.run(draw())] == [0, 1, 2]


def test_h18_callers_see_their_own_tasks_and_options(tmp_path: Path) -> None:
    keys = tuple(Key(name=name, secret=f"{name}-secret") for name in ("ann", "bob"))
    with serving(tmp_path, keys=keys) as server:
        base = f"{server.url}/sdapi/v1"
        ann = webuiapi.WebUIApi(baseurl=base, username="ann", password=keys[0].secret.get_secret_value())
        bob = webuiapi.WebUIApi(baseurl=base, username="bob", password=keys[1].secret.get_secret_value())
        ann.set_options({"samples_format": "webp"})
        assert bob.get_options()["samples_format"] == "png"
        with server.held() as gate, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(ann.txt2img, prompt="a dog", **SMALL)
            until(server.backend.waiting.is_set)
            assert ann.get_progress()["progress"] > 0.0
            seen = bob.get_progress()
            assert seen["progress"] == 0.0 and seen["state"]["job_count"] == 0
            assert bob.interrupt() == {}  # which is not his
            gate.set()
            assert waiting.result().image.format == "WEBP"
        with pytest.raises(RuntimeError) as refused:
            webuiapi.WebUIApi(baseurl=base).txt2img(prompt="a dog")
        assert refused.value.args[0] == 401


def test_o05_extras_stop_when_told_to_and_when_the_client_is_gone(
    server: Served, api: webuiapi.WebUIApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    began, hold = threading.Event(), threading.Event()

    def slow(image: Any, options: Any, *, cancelled: Any, **_: Any) -> Any:
        began.set()
        hold.wait(20)
        until(cancelled)
        ended.append("cancelled")
        raise Cancelled("stopped by request")

    monkeypatch.setattr("fewstep.server.a1111.enlarging.enlarge.extras", slow)
    body = {"image": webuiapi.webuiapi.b64_img(grey()), "upscaler_1": "Lanczos"}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, server, "extra-single-image", **body)
        until(began.is_set)
        assert api.get_progress()["state"]["job"] == "extras"
        api.interrupt()
        hold.set()
        assert waiting.result().status_code == 499
    began.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/sdapi/v1/extra-single-image", json=body, timeout=0.5)
    until(lambda: len(ended) == 2)


def test_extras_that_cannot_be_are_refused(server: Served) -> None:
    image = webuiapi.webuiapi.b64_img(grey())
    for given, status, words in (
        ({"upscaler_1": "SwinIR 4x"}, 404, "there are: None"),
        ({"gfpgan_visibility": 1}, 422, "no face restorers"),
        ({"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 9000, "upscaling_resize_h": 9000},
         422, "at most"),
        ({"image": "data:image/png;base64,AAAA"}, 422, "image"),
        ({"image": "http://127.0.0.1:1/x.png"}, 422, "URLs are disabled"),
        ({"upscaling_resize": 17}, 422, "16"),
    ):  # fmt: skip
        answer = post(server, "extra-single-image", **{"image": image, **given})
        assert answer.status_code == status and words in answer.text
    assert post(server, "extra-batch-images", imageList=[]).status_code == 422
    many = [{"data": image, "name": str(index)} for index in range(17)]
    assert "at most 16" in post(server, "extra-batch-images", imageList=many, upscaler_1="Lanczos").text
