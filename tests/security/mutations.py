"""Takes guards away one by one, each in a copy of the last commit, and expects the named test to fail.

    python tests/security/mutations.py [--only WORDS] [--seconds 200] [--table]

The list is in mutations.yaml. Results are kept in docs/results/mutations.json, so that a run may be a part
of the list; docs/results/mutations.md is written from both. Packages are imported once and every test runs
in a fork, since starting pytest takes longer than most tests.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]


class Mutation(NamedTuple):
    id: str
    """Of the reliability table, `docs/results/reliability.md`."""
    guard: str
    """What it promises."""
    file: str
    old: str
    new: str
    test: str
    only: str


MUTATIONS = [
    Mutation(**values)
    for values in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
]
RESULTS = ROOT / "docs" / "results" / "mutations.json"
TABLE = RESULTS.with_suffix(".md")
PACKAGES = (
    "numpy", "PIL.Image", "fastapi", "starlette.testclient", "uvicorn", "httpx", "sqlmodel", "pytest",
    "hypothesis", "structlog", "prometheus_client", "sse_starlette", "websockets.sync.client", "openvino",
    "tokenizers", "psutil", "typer", "torch",
)  # fmt: skip
"""None of them is fewstep's: its modules are read from the copy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a guard's test passes without the guard."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="a regular expression of guards, ids or tests")
    parser.add_argument("--missing", action="store_true", help="only those without a result")
    parser.add_argument("--seconds", type=float, default=200.0, help="for one test; longer counts as failed")
    parser.add_argument("--until", type=float, default=float("inf"), help="begin none after so many seconds")
    parser.add_argument("--table", action="store_true", help="write the table from earlier results")
    given = parser.parse_args(arguments)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    chosen = [
        one
        for one in MUTATIONS
        if re.search(given.only, f"{one.id} {one.guard} {one.test}")
        and not (given.missing and one.guard in known)
    ]
    if not given.table:
        began = time.monotonic()
        commit = _git("rev-parse", "--short=10", "HEAD")
        with copied() as place:
            _preload(place)
            for one in chosen:
                if time.monotonic() - began > given.until:
                    break
                known[one.guard] = {**run(place, one, given.seconds), "commit": commit}
                print(f"{known[one.guard]['result']:9} {one.id:12} {one.guard}", flush=True)  # noqa: T201
                RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(table(known))
    return int(any(known.get(one.guard, {}).get("result") in ("survived", "stale") for one in chosen))


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of the last commit; the checkout is never touched."""
    with tempfile.TemporaryDirectory(prefix="fewstep-mutations-") as folder:
        packed = subprocess.run(
            ["git", "archive", "HEAD", "src", "tests", "recipes", "pyproject.toml", "constraints.txt"],
            cwd=ROOT, capture_output=True, check=True,
        )  # fmt: skip
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Path(folder)


def run(place: Path, one: Mutation, seconds: float) -> dict[str, Any]:
    """The test without its guard, after the same test with it has passed.

    Returns:
        ``result``: ``killed``, ``survived``, ``stale`` (the text of the guard is not there any more) or
        ``broken`` (the test fails with the guard too, or there is none of that name); ``seconds``.
    """
    file = place / one.file
    whole = file.read_text()
    if one.old not in whole:
        return {"result": "stale", "seconds": 0.0}
    began = time.monotonic()
    code, output = in_a_fork(place, one, seconds)
    if code != 0:
        return {"result": "broken", "seconds": round(time.monotonic() - began, 1), "by": output[-300:]}
    try:
        file.write_text(whole.replace(one.old, one.new))
        code, output = in_a_fork(place, one, seconds)
    finally:
        file.write_text(whole)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    took = round(time.monotonic() - began, 1)
    if code == 0:
        return {"result": "survived", "seconds": took}
    if (code == 1 and failed) or code == -signal.SIGKILL:
        return {"result": "killed", "seconds": took, "by": failed[0] if failed else "its time was over"}
    return {"result": "broken", "seconds": took, "by": output[-300:]}


def in_a_fork(place: Path, one: Mutation, seconds: float) -> tuple[int, str]:
    """The exit code of pytest, and what it printed; minus a signal when it took too long."""
    log = place / "pytest.log"
    child = os.fork()
    if child == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        _test(place, one)
    end = time.monotonic() + seconds
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # servers that the test left behind too
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def _test(place: Path, one: Mutation) -> None:
    import pytest

    code = 3
    try:
        os.chdir(place)
        arguments = ["-q", "-x", "-p", "no:cacheprovider", "-n", "0", "--show-capture=no", "--tb=line"]
        selected = ["-k", one.only] if one.only else []
        code = int(pytest.main([*arguments, "--rootdir", str(place), one.test, *selected]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _preload(place: Path) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{place}/src", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.path.insert(0, str(place / "src"))
    found = importlib.util.find_spec("fewstep")
    if "fewstep" in sys.modules or found is None or not str(found.origin).startswith(str(place)):
        raise SystemExit(f"fewstep would be read from {found and found.origin}, not from the copy")


def table(known: dict[str, Any]) -> str:
    """The results as Markdown."""
    counts: dict[str, int] = {}
    rows = []
    for one in sorted(MUTATIONS, key=lambda one: one.id):
        found = known.get(one.guard, {})
        result = str(found.get("result", "not run"))
        counts[result] = counts.get(result, 0) + 1
        test = one.test + (f" -k '{one.only}'" if one.only else "")
        rows.append(
            f"| {one.id} | {one.guard} | `{one.file}` | `{test}` | {result} | {found.get('commit', '')} |"
        )
    day = datetime.datetime.now(datetime.UTC).date()
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    head = f"""# Guards that were taken away

Each row is a patch that removes one guard; its test must then fail ("killed"). The patches are in
`tests/security/mutations.yaml`; the last column is the commit of which a copy was changed. Written by

    python tests/security/mutations.py

On {day}: {len(MUTATIONS)} guards, {summary}.

| id | guard | file | test | result | commit |
| --- | --- | --- | --- | --- | --- |
"""
    return head + "\n".join(rows) + "\n"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
