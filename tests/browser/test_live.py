"""Pictures while somebody types: seen, kept, compared; hostile words; a connection that breaks."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from playwright.sync_api import Page

from fewstep.server import media

NOW = "#live [data-part=now] img"
HOSTILE = """<img src=x onerror="alert('x')"> {{constructor}} ${alert(2)} `"'><script>alert(3)</script>"""

BYTES = """async selector => {
  const data = await (await fetch(document.querySelector(selector).src)).arrayBuffer();
  return btoa(String.fromCharCode(...new Uint8Array(data)));
}"""
SOCKETS = """() => {
  const Real = WebSocket;
  window.sockets = [];
  window.WebSocket = class extends Real {
    constructor(...given) { super(...given); window.sockets.push(this); }
  };
}"""


class Live:
    """The island of a page, and what it says to the server."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[dict[str, Any]] = []
        page.on("websocket", lambda socket: socket.on("framesent", self._heard))
        page.reload()
        self.state("idle")
        page.wait_for_function("() => window.fewstep.order()?.num_inference_steps")  # the form is known
        self.prompt = page.locator("#prompt textarea")

    def _heard(self, payload: str | bytes) -> None:
        self.said.append(json.loads(payload))

    def state(self, *names: str) -> None:
        which = ",".join(f"#live [data-part=state][data-state={name}]" for name in names)
        self.page.locator(which).wait_for()

    def finished(self, text: str) -> None:
        """Until the picture on the stage is the finished one of these words."""
        script = "([selector, text]) => document.querySelector(selector)?.alt === text"
        self.page.wait_for_function(script, arg=[NOW, text])
        self.state("idle")

    def until(self, true: Callable[[], bool]) -> None:
        for _ in range(600):
            if true():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError("it did not come about")

    def wishes(self) -> list[dict[str, Any]]:
        return [one for one in self.said if one["type"] == "draw"]

    def data(self, selector: str = NOW) -> bytes:
        return base64.b64decode(self.page.evaluate(BYTES, selector))

    def shot(self) -> npt.NDArray[np.uint8]:
        """What is seen of the stage, uint8 (H, W, 3)."""
        return pixels(self.page.locator("#live [data-part=stage]").screenshot())

    def part(self, name: str) -> Any:
        return self.page.locator(f"#live [data-part={name}]")


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def order_of(wish: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in wish.items() if name not in ("type", "id", "format", "idle_ms")}


@pytest.fixture
def live(page: Page) -> Live:
    return Live(page)


def test_pictures_follow_the_words_and_enter_keeps_what_was_seen(live: Live, studio: Any) -> None:
    page = live.page
    assert page.locator("#create-draw").inner_text() == "Draw"
    live.prompt.press_sequentially("an", delay=60)
    live.finished("an")
    seen = {live.data()}
    seed = page.locator("#create-seed input").first
    seed.fill("7")
    seed.blur()
    live.until(lambda: live.wishes()[-1]["seed"] == 7)  # the picture follows the form as well
    live.state("idle")
    seen.add(live.data())
    live.prompt.fill("")
    for words in ("a ", "red ", "apple"):
        live.prompt.press_sequentially(words, delay=60)
        live.finished(live.prompt.input_value())
        seen.add(live.data())
    assert len(seen) == 5
    wish = live.wishes()[-1]
    assert (wish["prompt"], wish["seed"]) == ("a red apple", 7)
    # What was seen are the pixels of the same order by the API, but for the JPEG that they came in.
    job = studio.draw(**order_of(wish))
    drawn = pixels(studio.bytes(f"/api/v1/images/{job['result']['images'][0]}/file"))
    as_sent = media.encode(drawn, kind="jpeg", quality=85, infotext=None, record=None)
    assert np.array_equal(pixels(live.data()), pixels(as_sent))

    before = {one["id"] for one in studio.get("/api/v1/images")["images"]}
    live.prompt.press("Enter")
    live.state("kept")
    page.wait_for_function(f"() => document.querySelector('{NOW}').src.includes('/api/v1/images/')")
    (kept,) = [one for one in studio.get("/api/v1/images")["images"] if one["id"] not in before]
    record = studio.get(f"/api/v1/images/{kept['id']}")["record"]
    assert (record["prompt"], record["seed"]) == ("a red apple", 7)
    data = studio.bytes(f"/api/v1/images/{kept['id']}/file")
    assert np.array_equal(pixels(data), drawn)
    assert live.data() == data
    page.locator("#create-gallery img").first.wait_for()
    assert live.prompt.input_value() == "a red apple"  # Enter makes no new line
    # The same again is kept once.
    live.prompt.press("Enter")
    page.wait_for_timeout(300)
    assert len(studio.get("/api/v1/images")["images"]) == len(before) + 1

    # The strip holds every picture that was seen; scrubbing shows it, with the words of then.
    scrub = live.part("scrub")
    scrub.evaluate("one => { one.value = 0; one.dispatchEvent(new Event('input')); }")
    assert page.locator(NOW).get_attribute("alt") != "a red apple"
    assert live.part("facts").inner_text().startswith("1 of ")


def test_compared_under_a_divider_that_mouse_finger_and_keys_move(live: Live) -> None:
    page = live.page
    live.prompt.fill("a fox, noto style")
    live.finished("a fox, noto style")
    live.prompt.fill("a banana, noto style")
    live.finished("a banana, noto style")
    banana = live.shot()
    live.part("compare").click()
    live.part("other").wait_for()
    assert live.part("changes").inner_text() == "prompt a fox, noto style → a banana, noto style"
    wipe = live.part("wipe")
    box = wipe.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
    quarter = float(wipe.input_value())
    assert 20 <= quarter <= 30
    page.keyboard.press("ArrowRight")
    assert float(wipe.input_value()) == quarter + 1
    half = live.shot()
    edge = box["width"] * 0.5
    assert np.abs(half[:, int(edge) :].astype(int) - banana[:, int(edge) :]).mean() < 3
    left = slice(2, int(box["width"] * 0.2))
    page.keyboard.press("End")
    fox = live.shot()
    assert np.abs(fox.astype(int) - banana).mean() > 5
    assert np.abs(half[:, left].astype(int) - fox[:, left]).mean() < 3

    # Another step count at the same seed.
    live.part("with").select_option("1")
    page.wait_for_function(
        "() => document.querySelector('#live [data-part=changes]').textContent.startsWith('steps')"
    )
    assert live.part("changes").inner_text().startswith("steps 1 → ")
    wish = live.wishes()[-1]
    assert (wish["num_inference_steps"], wish["prompt"]) == (1, "a banana, noto style")
    assert wish["seed"] == live.wishes()[0]["seed"]
    live.part("compare").click()
    live.part("other").wait_for(state="hidden")
    # Held, C shows the other picture, whole; pressed for a moment it opens the comparison.
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur()")
    page.keyboard.down("c")
    page.wait_for_timeout(400)
    held = live.shot()
    page.keyboard.up("c")
    assert np.abs(held.astype(int) - live.shot()).mean() > 5
    page.keyboard.press("c")
    live.part("wipe").wait_for()


def test_hostile_words_stay_words(live: Live) -> None:
    """A dialog or an error in the console fails the test, see conftest."""
    page = live.page
    live.prompt.fill("a fox")
    live.finished("a fox")
    live.prompt.fill(HOSTILE)
    live.finished(HOSTILE)
    live.part("compare").click()
    live.part("other").wait_for()
    assert HOSTILE in live.part("changes").inner_text()
    page.evaluate("document.activeElement.blur()")
    live.part("scrub").focus()
    page.keyboard.press("Home")
    page.keyboard.press("End")
    assert HOSTILE in live.part("facts").inner_text()
    live.prompt.press("Enter")
    live.state("kept")
    page.wait_for_timeout(500)
    assert page.locator("#live script, #live img[onerror], #create-body img[onerror]").count() == 0


def test_a_connection_that_breaks_goes_on_with_its_session(page: Page) -> None:
    page.add_init_script(f"({SOCKETS})()")
    live = Live(page)
    live.prompt.fill("a fox, noto style")
    page.evaluate("() => window.sockets.at(-1).close()")
    live.finished("a fox, noto style")
    assert page.evaluate("window.sockets.length") == 2
    (resumed,) = [one for one in live.said if one["type"] == "resume"]
    assert resumed["token"]
    live.prompt.fill("a banana, noto style")
    live.finished("a banana, noto style")


def test_off_is_off_and_stays_so_and_stop_stops(live: Live) -> None:
    page = live.page
    live.prompt.fill("a fox, noto style")
    live.state("drawing")
    page.keyboard.press("Escape")
    live.state("idle")
    assert live.said[-1]["type"] == "stop"
    page.wait_for_timeout(800)
    assert page.locator(f"{NOW}[alt='a fox, noto style']").count() == 0
    live.part("toggle").click()
    live.state("off")
    page.reload()
    live.state("off")
    wishes = len(live.wishes())
    live.prompt.press_sequentially("a fox", delay=30)
    page.wait_for_timeout(500)
    assert len(live.wishes()) == wishes


def test_letters_that_an_input_method_composes_are_not_drawn_yet(live: Live) -> None:
    """Nor does the Enter that ends the composition keep anything: Chinese is typed so."""
    page = live.page
    live.prompt.focus()
    devtools = page.context.new_cdp_session(page)
    devtools.send("Input.imeSetComposition", {"text": "pingguo", "selectionStart": 7, "selectionEnd": 7})
    page.wait_for_timeout(300)
    assert live.wishes() == []
    devtools.send("Input.insertText", {"text": "苹果"})
    live.finished("苹果")
    assert {one["prompt"] for one in live.wishes()} == {"苹果"}


def test_phone_width_in_chinese_has_nothing_beyond_its_edge(open_page: Callable[..., Page]) -> None:
    page = open_page("zh", viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    live = Live(page)
    live.prompt.fill("a fox, noto style")
    live.finished("a fox, noto style")
    live.prompt.fill("a banana, noto style")
    live.finished("a banana, noto style")
    live.part("compare").tap()
    live.part("wipe").tap(position={"x": 40, "y": 60})
    assert float(live.part("wipe").input_value()) < 25
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    outside = """() => [...document.querySelectorAll("#live *, #top *, #prompt *")].filter(one => {
      const box = one.getBoundingClientRect();
      return box.width && !one.closest("[data-part=thumbs]") && (box.left < 0 || box.right > 390);
    }).map(one => one.outerHTML.slice(0, 90))"""
    assert page.evaluate(outside) == []
    assert page.locator("body.dark").count() == 1
    page.locator("[data-do=theme]").tap()
    assert page.locator("body.dark").count() == 0
    page.reload()
    live.prompt.wait_for()
    page.wait_for_function("() => !document.body.classList.contains('dark')")
