"""A server under load: nothing lost, nothing twice, how fast, and how much of the engine's speed is left.

A server of its own (`fewstep serve`, bundled model, native 128 px, a student's steps) is asked by
CLIENTS at once for SECONDS, each order with a seed of its own; a client that is turned away waits as
long as it is told. Meanwhile `/healthz` is asked every 50 ms. Then what the clients saw, the database
and `/metrics` are compared, number by number. The bare engine draws the same orders in a process without
a server, one by one and together, while the same clients ask a server for nothing (`/healthz`) as often
as they asked before. Batches are compared with one by one in turns, once networks are loaded. Live mode:
from a wish sent on the socket to its first frame, and what ten letters typed quickly cost.

    python benchmarks/serving.py [--seconds 60] [--clients 64] [--parts load bare batch live start] [--quick]

Needs a quiet machine. Prints a table; writes docs/results/serving.json unless ``--quick``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import websockets
from first_picture import ROOT, cpu

STEPS = 4
TOGETHER = 8
"""Orders that a server draws together when it is not told otherwise."""
WARM = 6.0
PROMPTS = tuple(
    f"a {thing}, {style} style, on a {colour} background"
    for colour in ("sky blue", "mint green", "lavender", "navy blue", "yellow", "white")
    for style in ("noto", "twemoji", "fluent flat")
    for thing in ("red apple", "fox", "banana", "pizza", "cat face", "cactus", "rocket", "bee", "crab",
                  "tulip", "whale", "guitar")
)  # fmt: skip
"""More than the engine keeps the encoded texts of, so that every order's is encoded."""


@dataclass
class Seen:
    """What all clients saw."""

    done: dict[int, str] = field(default_factory=dict)
    """Seed -> image id."""
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of orders that were taken, from sending to the picture."""
    health: list[float] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.done) / (self.ended - self.began)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextlib.contextmanager
def server(data: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[bytes], float, float]]:
    """A server's URL and process; seconds until it listened, and until it was ready."""
    port = free_port()
    command = [sys.executable, "-m", "fewstep", "serve", "--port", str(port), "--data", str(data), *options]
    began = time.perf_counter()
    with (data.parent / f"{data.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    listening = 0.0
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                listening = listening or time.perf_counter() - began
                if answer.status_code == 200:
                    break
            if process.poll() is not None:
                raise SystemExit(f"serving: the server ended with {process.returncode}; see {log.name}")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", process, listening, time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def order(seed: int) -> dict[str, Any]:
    return {
        "prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "steps": STEPS, "cfg_scale": 1, "width": 128,
        "height": 128, "save_images": True,
    }  # fmt: skip


async def ask(http: httpx.AsyncClient, number: int, clients: int, until: float, seen: Seen) -> None:
    """One client: its next order when the one before is drawn; turned away, it comes again when told."""
    turn = 0
    while time.perf_counter() < until:
        seed = turn * clients + number
        began = time.perf_counter()
        answer = await http.post("/sdapi/v1/txt2img", json=order(seed))
        seen.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            seen.seconds.append(time.perf_counter() - began)
            info = json.loads(answer.json()["info"])
            if seed in seen.done:
                raise SystemExit(f"serving: seed {seed} was drawn twice")
            seen.done[seed] = info["ids"][0]
            turn += 1
        elif answer.status_code == 429:
            await asyncio.sleep(float(answer.headers["Retry-After"]))
        else:
            turn += 1


async def watch_health(http: httpx.AsyncClient, until: float, seen: Seen) -> None:
    while time.perf_counter() < until:
        began = time.perf_counter()
        await http.get("/healthz")
        seen.health.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)


async def load(url: str, clients: int, seconds: float) -> Seen:
    seen = Seen(began=time.perf_counter())
    until = seen.began + seconds
    limits = httpx.Limits(max_connections=clients + 2)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        asked = [ask(http, number, clients, until, seen) for number in range(clients)]
        await asyncio.gather(*asked, watch_health(http, until, seen))
    seen.ended = time.perf_counter()
    return seen


def compare(url: str, data: Path, seen: Seen) -> dict[str, Any]:
    """What clients, database, files and metrics say; they must agree."""
    database = sqlite3.connect(f"file:{data / 'fewstep.db'}?mode=ro", uri=True)
    jobs = Counter(dict(database.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall()))
    kept = {row[0] for row in database.execute("SELECT id FROM images")}
    files = {path.stem for path in (data / "images").rglob("*.png")}
    counters: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            counters[name] = float(value)
    drawn = set(seen.done.values())
    said = {
        "clients": {"done": len(seen.done), "turned_away": seen.statuses[429]},
        "database": {"done": jobs["done"], "others": sum(jobs.values()) - jobs["done"]},
        "files": len(files),
        "metrics": {
            "done": counters.get('fewstep_orders_total{client="a1111",outcome="done"}', 0.0),
            "turned_away": counters.get('fewstep_rejected_total{reason="full"}', 0.0),
        },
    }
    said["agree"] = (
        drawn == kept == files
        and len(drawn) == len(seen.done) == jobs["done"] == said["metrics"]["done"]
        and said["metrics"]["turned_away"] == seen.statuses[429]
        and said["database"]["others"] == 0
    )
    return said


_BARE = """
import sys, time
from fewstep.engine.batching import generate_batch
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
prompts, steps, together, seconds = %r
engine = Engine(rows=together)
def draw(first):
    seeds = range(first, first + together)
    generate_batch(engine, [
        resolve(engine.info, prompt=prompts[seed %% len(prompts)], seed=seed, num_inference_steps=steps)
        for seed in seeds])
for first in range(3):
    draw(first)
print("ready", flush=True)
sys.stdin.readline()
began = time.perf_counter()
drawn = 0
while time.perf_counter() - began < seconds:
    draw(drawn); drawn += together
print(drawn / (time.perf_counter() - began), flush=True)
"""


async def bare(url: str, seen: Seen, clients: int, seconds: float, together: int) -> float:
    """Pictures a second of the engine alone, while clients ask a server for nothing as often as they did."""
    program = _BARE % ((PROMPTS, STEPS, together, seconds),)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    if process.stdin is None or process.stdout is None:
        raise SystemExit("serving: no pipes to the engine's process")
    await process.stdout.readline()
    process.stdin.write(b"go\n")
    await process.stdin.drain()
    period = clients * (seen.ended - seen.began) / max(sum(seen.statuses.values()), 1)
    until = time.perf_counter() + seconds

    async def nothing(http: httpx.AsyncClient) -> None:
        while time.perf_counter() < until:
            await http.get("/healthz")
            await asyncio.sleep(period)

    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=httpx.Limits(max_connections=clients)
    ) as http:
        await asyncio.gather(*(nothing(http) for _ in range(clients)))
    rate = float(await process.stdout.readline())
    await process.wait()
    return rate


@contextlib.asynccontextmanager
async def live(url: str) -> AsyncIterator[Any]:
    async with websockets.connect(url.replace("http", "ws") + "/api/v1/live") as socket:
        await socket.recv()  # hello
        yield socket


async def frame_of(socket: Any, wish: int) -> dict[str, Any]:
    """The first frame of a wish; others are read and dropped."""
    while True:
        message = await socket.recv()
        if isinstance(message, bytes):
            continue
        said: dict[str, Any] = json.loads(message)
        if said["type"] == "frame":
            await socket.recv()
            if said["id"] == wish:
                return said


async def measure_live(url: str, rounds: int) -> dict[str, Any]:
    seconds = []
    async with live(url) as socket:
        for wish in range(rounds + 2):
            began = time.perf_counter()
            await socket.send(
                json.dumps({"id": wish, "prompt": PROMPTS[wish % len(PROMPTS)], "seed": wish, "final": False})
            )
            await frame_of(socket, wish)
            seconds.append(time.perf_counter() - began)
    before = httpx.get(f"{url}/metrics").text
    async with live(url) as socket:
        for wish, length in enumerate(range(1, 11)):
            await socket.send(
                json.dumps({"id": wish, "prompt": "a red apple, noto style"[: length + 4], "final": False})
            )
            await asyncio.sleep(0.02)
        await frame_of(socket, 9)
    after = httpx.get(f"{url}/metrics").text
    return {
        "first_frame": spread(seconds[2:]),
        "typed": 10,
        "drawn_of_typed": drawn(after) - drawn(before),
    }


def drawn(text: str) -> int:
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if line.startswith('fewstep_orders_total{client="live",outcome="done"}')))  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {
        "n": len(ordered), "median": statistics.median(ordered), "p95": at(0.95), "p99": at(0.99),
        "max": ordered[-1],
    }  # fmt: skip


def measured(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    parts = set(arguments.parts)
    if "start" in parts:
        starts = []
        for number in range(arguments.rounds):
            with server(scratch / f"start-{number}") as (url, _, listening, ready):
                began = time.perf_counter()
                httpx.post(f"{url}/sdapi/v1/txt2img", json=order(0), timeout=60).raise_for_status()
                starts.append((listening, ready, ready + time.perf_counter() - began))
        names = ("listening", "ready", "first_picture")
        found["start"] = {name: spread([one[place] for one in starts]) for place, name in enumerate(names)}
    if "load" in parts:
        data = scratch / "load"
        with server(data, "--queue", "16") as (url, _, _, _):
            seen = asyncio.run(load(url, arguments.clients, arguments.seconds))
            found["load"] = {
                "clients": arguments.clients, "seconds": arguments.seconds, "images_per_second": seen.rate,
                "latency": spread(seen.seconds), "healthz": spread(seen.health),
                "statuses": {str(status): count for status, count in seen.statuses.items()},
                "agreement": compare(url, data, seen),
            }  # fmt: skip
            if "bare" in parts:
                for name, together in (("bare", 1), ("bare_together", TOGETHER)):
                    rate = asyncio.run(bare(url, seen, arguments.clients, arguments.seconds / 2, together))
                    found |= {name: rate, f"share_of_{name}": seen.rate / rate}
    if "batch" in parts:
        one, many = "1", str(TOGETHER)
        rates: dict[str, list[float]] = {one: [], many: []}
        for number in range(arguments.rounds):
            for most in (one, many) if number % 2 else (many, one):
                with server(scratch / f"batch-{number}-{most}", "--batch", most) as (url, _, _, _):
                    asyncio.run(load(url, arguments.clients, WARM))
                    seen = asyncio.run(load(url, arguments.clients, arguments.seconds / 4))
                    rates[most].append(seen.rate)
        ratios = [some / alone for some, alone in zip(rates[many], rates[one], strict=True)]
        found["batch"] = {"images_per_second": rates, "ratio": statistics.median(ratios), "ratios": ratios}
    if "live" in parts:
        with server(scratch / "live") as (url, _, _, _):
            time.sleep(12)  # the studio is built and every student loaded: what somebody finds who types
            found["live"] = asyncio.run(measure_live(url, 10 * arguments.rounds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", default=["start", "load", "bare", "batch", "live"])
    parser.add_argument("--quick", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measured(arguments, Path(scratch))
    found = {"machine": cpu(), "cores": os.cpu_count(), "steps": STEPS, **found}
    print(json.dumps(found, indent=1))
    if not arguments.quick:
        path = ROOT / "docs" / "results" / "serving.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
