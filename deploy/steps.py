"""Run the steps of a Dockerfile without a container engine, in a fresh environment, and try what comes out.

    python deploy/steps.py [deploy/Dockerfile] [--keep]

What is run: the COPY and RUN instructions of the first stage, in a temporary folder in place of its WORKDIR,
with /opt/fewstep and `python` replaced; then the ENTRYPOINT, the HEALTHCHECK's command, an order, and
SIGTERM. As root the server runs as the user of the image, by setpriv.

What is not: the base image, the second stage's RUN instructions (they make a user and a folder), the engine's
isolation (read-only root, capabilities, limits of memory).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE_VENV = "/opt/fewstep"
KEY = "a-key-for-this-run-only"


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile; what follows its name, on one line."""

    name: str
    value: str
    line: int


@dataclass
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Values of the instructions of one name."""
        return [one.value for one in self.instructions if one.name == name]


def stages(text: str) -> list[Stage]:
    """Read a Dockerfile: comments and continued lines, no heredocs and no parser directives.

    Raises:
        ValueError: an instruction that is none, or one before FROM.
    """
    found: list[Stage] = []
    joined, first = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not joined):
            continue
        first = first or number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip() + " "
            continue
        name, _, value = joined.partition(" ")
        one = Instruction(name, value.strip(), first)
        joined, first = "", 0
        if one.name not in _KNOWN:
            raise ValueError(f"line {one.line}: {one.name} is no instruction")
        if one.name == "FROM":
            base, _, stage = one.value.partition(" AS ")
            found.append(Stage(base.strip(), stage.strip()))
        elif not found:
            raise ValueError(f"line {one.line}: {one.name} before FROM")
        else:
            found[-1].instructions.append(one)
    if joined:
        raise ValueError("the last line goes on")
    return found


_KNOWN = frozenset(
    "FROM RUN CMD LABEL EXPOSE ENV COPY ENTRYPOINT VOLUME USER WORKDIR ARG STOPSIGNAL HEALTHCHECK".split()
)


def sent(name: str, ignore: str) -> bool:
    """Whether a path, relative to the context, is sent to the engine, by the text of a .dockerignore.

    The last line that matches decides, for the path or for one of its folders.
    """
    taken = True
    parts = Path(name).parts
    paths = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for line in ignore.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep, pattern = pattern.startswith("!"), pattern.removeprefix("!")
        alternatives = (pattern, pattern.removeprefix("**/")) if pattern.startswith("**/") else (pattern,)
        if any(fnmatch.fnmatchcase(path, one) for path in paths for one in alternatives):
            taken = keep
    return taken


def build(stage: Stage, context: Path, place: Path, venv: Path) -> None:
    """Run a stage's COPY and RUN instructions.

    Raises:
        subprocess.CalledProcessError: one failed.
    """
    ignore = (context / ".dockerignore").read_text(encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PIP_CONSTRAINT")}
    for value in stage.all("ENV"):
        environment |= dict(pair.split("=", 1) for pair in value.split())
    for one in stage.instructions:
        if one.name == "COPY":
            *sources, target = one.value.split()
            for source in sources:
                _copy(context, source, place, target, ignore)
        elif one.name == "RUN":
            print(f"+ {one.value}", flush=True)
            command = one.value.replace(IMAGE_VENV, str(venv))
            if command.startswith("python "):
                command = f"{sys.executable} {command.removeprefix('python ')}"
            subprocess.run(["/bin/sh", "-c", command], cwd=place, env=environment, check=True)


def _copy(context: Path, source: str, place: Path, target: str, ignore: str) -> None:
    goal = place / target
    origin = context / source
    files = sorted(path for path in origin.rglob("*") if path.is_file()) if origin.is_dir() else [origin]
    copied = 0
    for path in files:
        if not sent(path.relative_to(context).as_posix(), ignore):
            continue
        if origin.is_dir():
            to = goal / path.relative_to(origin)
        else:
            to = goal / path.name if target.endswith("/") else goal
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
        copied += 1
    if not copied:
        raise SystemExit(f"steps: COPY {source}: nothing of it is sent to the engine; see .dockerignore")


def try_it(stage: Stage, venv: Path, data: Path) -> dict[str, object]:
    """Start the server as the image does, order a picture, check its health, and stop it.

    Raises:
        SystemExit: something of it did not work.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    entry = json.loads(stage.all("ENTRYPOINT")[0])
    entry = [str(port) if word == "7860" else str(data) if word == "/data" else word for word in entry]
    entry[0] = str(venv / "bin" / entry[0])
    (user,) = stage.all("USER")
    if os.getuid() == 0:
        uid, gid = user.split(":")
        entry = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs", *entry]
        os.chown(data, int(uid), int(gid))
    environment = {
        "PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": tempfile.gettempdir(), "FEWSTEP_KEYS": f"steps:{KEY}",
        "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    began = time.monotonic()
    log = data.parent / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(entry, env=environment, cwd=data, stdout=out, stderr=out)
    try:
        health = json.loads(stage.all("HEALTHCHECK")[0].partition(" CMD ")[2])
        health = [word.replace("7860", str(port)) for word in health]
        health[0] = str(venv / "bin" / health[0])
        while subprocess.run(health, stderr=subprocess.DEVNULL).returncode:
            if server.poll() is not None or time.monotonic() - began > 120:
                raise SystemExit(f"steps: the server is not healthy; its log:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        healthy = time.monotonic() - began
        url = f"http://127.0.0.1:{port}"
        while _status(f"{url}/readyz") != 200:
            if server.poll() is not None or time.monotonic() - began > 240:
                raise SystemExit(f"steps: the server is not ready; its log:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        ready = time.monotonic() - began
        without_key = _status(f"{url}/sdapi/v1/samplers")
        body = json.dumps({"prompt": "a red apple", "steps": 4, "width": 128, "height": 128}).encode()
        request = urllib.request.Request(
            f"{url}/sdapi/v1/txt2img",
            body,
            {"Content-Type": "application/json", "X-API-Key": KEY},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            pictures = len(json.load(answer)["images"])
        owner = uid_of(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    kept = len(list((data / "images").rglob("*.png")))
    report = {
        "healthy_after_s": round(healthy, 1), "ready_after_s": round(ready, 1),
        "status_without_key": without_key, "pictures": pictures, "kept": kept, "uid": owner,
        "exit_code": code, "torch": bool(list(venv.glob("lib/python*/site-packages/torch"))),
    }  # fmt: skip
    if (without_key, pictures, kept, code) != (401, 1, 1, 0):
        raise SystemExit(f"steps: {report}; its log:\n{log.read_text()[-3000:]}")
    return report


def uid_of(pid: int) -> int:
    """Effective user of a process; from /proc, so that nothing needs to be installed."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[2])
    return -1


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Run a Dockerfile's steps in a fresh environment.")
    parser.add_argument("dockerfile", nargs="?", type=Path, default=ROOT / "deploy" / "Dockerfile")
    parser.add_argument("--keep", action="store_true", help="do not delete the environment")
    arguments = parser.parse_args()
    first, *_, last = stages(arguments.dockerfile.read_text(encoding="utf-8"))
    folder = Path(tempfile.mkdtemp(prefix="fewstep-steps-"))
    folder.chmod(0o755)
    try:
        place, venv, data = folder / "build", folder / "venv", folder / "data"
        place.mkdir()
        data.mkdir()
        began = time.monotonic()
        build(first, ROOT, place, venv)
        built = time.monotonic() - began
        report = {"built_s": round(built, 1), **try_it(last, venv, data)}
        size = sum(path.lstat().st_size for path in venv.rglob("*") if not path.is_dir())
        print(json.dumps({**report, "environment_mb": round(size / 1e6)}, indent=1))
    finally:
        if arguments.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
