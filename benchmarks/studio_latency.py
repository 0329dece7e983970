"""From a keystroke to the picture on the screen, measured in the browser while somebody types in the studio.

A server with the bundled model, Chromium without a window, and a person who types prompts with 120 to 180
ms between keys, after a few words a pause of 0.2 to 1.5 s, and after each prompt clears the field. The clock
runs in the page: from `performance.now()` in the first listener of the input event to the animation frame
after the picture was decoded and put on the stage. Two figures for every keystroke that leaves words there:

- **caught up**: until a picture is on the screen that knows this keystroke, its own or a newer one's. This is
  the one that is asked for: p95 below 250 ms on two quiet cores.
- **own**: until its own picture is there; keystrokes that a newer one overtook have none, and are counted.

A picture of an older keystroke never counts for a newer one. Prints a table and writes
docs/results/studio_latency.json.

    python benchmarks/studio_latency.py [--keystrokes 120] [--seed 0] [--browser chromium] [--out FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
from _running import command, guarded

from fewstep.errors import DependencyError, EngineError

ROOT: Final = Path(__file__).resolve().parents[1]
PROMPTS: Final = (
    "a red apple, noto style, on a sky blue background",
    "a fox, twemoji style, on a mint green background",
    "a birthday cake, fluent style, on a white background",
    "an old sailing boat, openmoji style, on a sunny yellow background",
)
ASKED: Final = 0.25
"""Seconds, of the 95th percentile."""
START: Final = 180.0
SETTLE: Final = 3.0
"""Seconds that the last pictures are waited for."""
FLAGS: Final = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-sandbox",
)

WATCH: Final = """() => {
  const log = window.latency = {keys: [], pictures: []};
  const text = () => document.querySelector("#prompt textarea").value;
  addEventListener("input", event => {
    if (event.target.matches("#prompt textarea")) log.keys.push({at: performance.now(), text: text()});
  }, true);
  new MutationObserver(changes => {
    for (const image of changes.flatMap(one => [...one.addedNodes])) {
      image.decode().then(() => requestAnimationFrame(() =>
        log.pictures.push({at: performance.now(), text: image.alt, shown: image.isConnected})));
    }
  }).observe(document.querySelector("#live [data-part=now]"), {childList: true});
}"""

SIZE: Final = """() => {
  const image = document.querySelector("#live [data-part=now] img");
  return `${image.naturalWidth}x${image.naturalHeight}`;
}"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server of its own, and its address."""
    environment = {**os.environ, "XDG_DATA_HOME": str(folder / "share")}
    process = subprocess.Popen(
        [sys.executable, "-m", "fewstep", "serve", "--port", "0", "--data", str(folder / "data")],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment,
    )  # fmt: skip
    address: list[str] = []

    def read() -> None:
        # To the end, or the server would wait for a reader.
        for line in process.stderr or ():
            address.extend(re.findall(r"listening on (http://\S+)", line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        until = time.monotonic() + START
        while not (address and _answers(f"{address[0]}/studio/en/")):
            if process.poll() is not None or time.monotonic() > until:
                raise EngineError("the server did not start: run fewstep serve to see why")
            time.sleep(0.2)
        yield address[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        reader.join(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own server
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def typed(page: Any, count: int, chance: random.Random) -> None:
    """Type prompts like a person until there were so many keystrokes."""
    done = 0
    while done < count:
        for place, letter in enumerate(PROMPTS[(done // 40) % len(PROMPTS)]):
            page.keyboard.type(letter)
            done += 1
            if done >= count:
                return
            # A page's own timer would be slowed down by what is measured.
            time.sleep(chance.uniform(0.12, 0.18))
            if letter == " " and place and chance.random() < 0.3:
                time.sleep(chance.uniform(0.2, 1.5))
        page.keyboard.press("Control+a")
        page.keyboard.press("Backspace")
        time.sleep(0.5)


def latencies(log: dict[str, list[dict[str, Any]]]) -> tuple[list[float], list[float], int]:
    """Seconds of every keystroke until the screen has caught up, and until its own picture.

    Args:
        log: of `WATCH`: ``keys`` and ``pictures``, each with ``at`` in ms and the prompt's ``text``.

    Returns:
        caught up, own, number of keystrokes of which no picture knows.
    """
    keys = log["keys"]
    newest: dict[str, int] = {}
    events = sorted(
        [(one["at"], 0, place) for place, one in enumerate(keys)]
        + [(one["at"], 1, place) for place, one in enumerate(log["pictures"]) if one["shown"]]
    )
    answered: list[tuple[float, int]] = []
    for at, kind, place in events:
        if kind == 0:
            newest[keys[place]["text"]] = place  # words that come again are the newer keystroke's
        elif (text := log["pictures"][place]["text"]) in newest:
            answered.append((at, newest[text]))
    caught, own, lost = [], [], 0
    for place, key in enumerate(keys):
        if not key["text"].strip():
            continue
        knows = [at for at, known in answered if known >= place and at >= key["at"]]
        itself = [at for at, known in answered if known == place]
        if knows:
            caught.append((min(knows) - key["at"]) / 1000)
        else:
            lost += 1
        if itself:
            own.append((min(itself) - key["at"]) / 1000)
    return caught, own, lost


def summary(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        raise EngineError("no picture came for any keystroke: open the studio and look")
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"n": len(seconds), "p50": round(float(p50), 4), "p95": round(float(p95), 4),
            "max": round(max(seconds), 4)}  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise DependencyError(
            "playwright is not installed; install it with: pip install playwright"
        ) from None
    browser_path = shutil.which(arguments.browser)
    if browser_path is None:
        raise DependencyError(f"{arguments.browser} is not installed; give another one with --browser")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch)) as url, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{url}/studio/en/")
        page.locator("#live [data-part=state][data-state=idle]").wait_for(timeout=60_000)
        page.locator("#prompt textarea").click()
        # The first pictures compile and load what is needed: not a person's hundredth keystroke.
        page.keyboard.type("warm", delay=500)
        page.wait_for_timeout(1000 * SETTLE)
        page.locator("#live [data-part=now] img").wait_for()
        page.keyboard.press("Control+a")
        page.keyboard.press("Backspace")
        page.evaluate(WATCH)
        typed(page, arguments.keystrokes, random.Random(arguments.seed))  # noqa: S311 - a typist
        page.wait_for_timeout(1000 * SETTLE)
        log = page.evaluate("window.latency")
        size = page.evaluate(SIZE)
        version = browser.version
        browser.close()
    caught, own, lost = latencies(log)
    result = {
        "what": "seconds from a keystroke to a picture on the screen that knows it, in the browser",
        "command": command(),
        "asked": {"p95": ASKED},
        "met": summary(caught)["p95"] < ASKED and not lost,
        "caught_up": summary(caught),
        "own": summary(own),
        "keystrokes": len(caught) + lost,
        "without_a_picture": lost,
        "overtaken": len(caught) + lost - len(own),
        "gap_ms": [120, 180],
        "picture": size,
        "machine": {
            "platform": platform.machine(),
            "cores": os.cpu_count(),
            "load_average_before": load,
            "browser": version,
            "python": platform.python_version(),
            "packages": {
                name: metadata.version(name) for name in ("fewstep", "gradio", "openvino", "uvicorn")
            },
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{'':12}{'n':>6}{'p50':>8}{'p95':>8}{'max':>8}  seconds")
    for name in ("caught_up", "own"):
        one = result[name]
        print(f"{name:12}{one['n']:6}{one['p50']:8.3f}{one['p95']:8.3f}{one['max']:8.3f}")
    print(f"overtaken {result['overtaken']}, without a picture {lost}; asked: p95 below {ASKED:g} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keystrokes", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0, help="Of the gaps between the keys.")
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "studio_latency.json")
    guarded(run, parser.parse_args())


if __name__ == "__main__":
    main()
