"""H20: what callers write reaches no shell, no other option and no path when a job starts a process."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "server"))

import fake_child

from fewstep.cli import child
from fewstep.errors import UsageError
from fewstep.server import childprocess, worklist, workplan
from fewstep.server.children import Children, runs_folder
from fewstep.server.database import Database
from fewstep.server.datasets import Datasets
from fewstep.server.history import History
from fewstep.server.jobstore import JobStore
from fewstep.server.schemas import work
from fewstep.server.settings import Key, ServerSettings

SECRET = "a-key-of-the-server"  # noqa: S105
HOSTILE = (
    "; touch /tmp/owned", "$(touch /tmp/owned)", "`id`", "--out=/tmp/owned", "-x", "a && b | c", "'\"", "--",
    "%s%n", "../../etc/passwd", "\u202e", "--debug", "=", "a=b", "~root", "*", "é" * 50,
)  # fmt: skip
LINES = ("a\nb", "a\n--out=x", "\n", "a\r\nb\n")


class Spy:
    """Notes how a process is started, and starts the fake one."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._real = subprocess.Popen

    def __call__(self, *args: Any, **options: Any) -> subprocess.Popen[bytes]:
        self.calls.append((args, options))
        line = [sys.executable, fake_child.__file__, args[0][-1]]
        started: subprocess.Popen[bytes] = self._real(line, **options)
        return started


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    found = Spy()
    monkeypatch.setattr(childprocess.subprocess, "Popen", found)  # type: ignore[attr-defined]
    monkeypatch.setenv("FEWSTEP_KEYS", f"ann:{SECRET}")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return found


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    own = tmp_path / "own" / "base"
    own.mkdir(parents=True)
    (own / "model_index.json").write_text("{}")
    settings = ServerSettings(
        data=tmp_path / "data", models_dirs=(tmp_path / "own",), grace=1.0,
        keys=(Key(name="ann", secret=SECRET),),
    )  # fmt: skip
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    jobs = JobStore(database)
    datasets = Datasets(settings.data / "datasets", settings.limits)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20)).save(buffer, "PNG")
    datasets.add("ann", "dog", {"one": buffer.getvalue()}, {"one": "; $(x) `id`"})
    made = Children(settings, jobs=jobs, history=History(database, settings.outputs), datasets=datasets)
    yield made
    made.close()
    jobs.close()
    database.close()


def body(trigger: str, name: str = "x") -> work.TrainBody:
    return work.TrainBody(kind="train", name=name, dataset="dog", model="base", trigger=trigger)


def finished(children: Children, order: work.WorkBody) -> Path:
    job_id = children.submit(order, owner="ann")
    pending = children.pending(job_id)
    if pending is not None:
        pending.future.result(30)
    return children.run(job_id).folder


def check(folder: Path, text: str) -> None:
    """What the process does with a configuration: the text is a trigger, and all else is the server's."""
    from fewstep.cli.main import group

    line = child.arguments(json.loads((folder / "config.json").read_text()))
    assert line.count(f"--trigger={text}") == 1 and line[-3:-1] == ["--", "lora"]
    parsed = group().get_command(None, "train").make_context("train", line[1:]).params
    assert parsed["trigger"] == text
    assert str(parsed["out"]) == str(folder / "made" / "x.safetensors")
    assert (parsed["recipe"], parsed["override"], parsed["dry_run"]) == ("lora", False, False)


@pytest.mark.parametrize("text", HOSTILE[:5])
def test_h20_the_command_line_is_the_same_whatever_is_asked(children: Children, spy: Spy, text: str) -> None:
    folder = finished(children, body(text))
    ((args, options),) = spy.calls
    assert args == ([sys.executable, "-m", "fewstep.cli.child", str(folder / "config.json")],)
    assert options["shell"] is False and options["start_new_session"] is True and options["close_fds"] is True
    assert "executable" not in options and "preexec_fn" not in options
    check(folder, text)


@pytest.mark.parametrize("text", HOSTILE)
def test_h20_a_text_is_the_value_of_one_option_and_nothing_else(
    children: Children, tmp_path: Path, text: str
) -> None:
    run = workplan.Run(folder=tmp_path)
    found = worklist.plan(body(text), run, find=children._find, dataset=lambda name: tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(found.commands[0].to_json()))
    check(tmp_path, text)


@pytest.mark.parametrize("text", LINES)
def test_h20_texts_of_several_lines_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="trigger"):
        body(text)


@pytest.mark.parametrize("text", [*HOSTILE, *LINES, "..", "a/b", "a.b", "", "x" * 65])
def test_h20_names_that_are_made_are_plain(text: str) -> None:
    for field in ("name", "dataset"):
        values = {"kind": "train", "name": "x", "dataset": "dog", field: text}
        with pytest.raises(ValidationError, match=field):
            work.TrainBody.model_validate(values)


def test_h20_the_environment_is_a_closed_list_without_secrets(children: Children, spy: Spy) -> None:
    folder = finished(children, body("word"))
    ((_, options),) = spy.calls
    known = {*childprocess.PASSED, "FEWSTEP_MODELS", "PYTHONUNBUFFERED"}
    assert options["env"].keys() <= known
    assert SECRET not in json.dumps(options["env"]) and options["env"]["HF_HUB_OFFLINE"] == "1"
    seen = json.loads((folder / "seen.json").read_text())["environment"]
    assert SECRET not in json.dumps(seen) and seen["OMP_NUM_THREADS"] == "1"
    # What a process keeps on the disk has no key either.
    assert not any(SECRET in path.read_text("utf-8", "replace") for path in files(folder))


def test_h20_only_a_download_may_use_the_network_and_gets_no_key_for_it() -> None:
    given = {"HF_TOKEN": "t", "HTTPS_PROXY": "p", "FEWSTEP_KEYS": SECRET, "HF_HUB_OFFLINE": "1", "PATH": "x"}
    offline = childprocess.environment("", given)
    assert not {"HF_TOKEN", "HTTPS_PROXY"} & offline.keys()
    online = childprocess.environment("", given, network=True)
    assert (online["HF_TOKEN"], online["HTTPS_PROXY"]) == ("t", "p")
    assert online["HF_HUB_OFFLINE"] == "1"  # the operator's own word counts
    assert "FEWSTEP_KEYS" not in online
    assert "HF_HUB_OFFLINE" not in childprocess.environment("", {}, network=True)
    assert childprocess.environment("", {})["HF_HUB_OFFLINE"] == "1"


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_h20_all_output_goes_to_files_of_the_job(children: Children, spy: Spy) -> None:
    folder = finished(children, body("word"))
    ((_, options),) = spy.calls
    assert Path(options["stdout"].name) == folder / "stdout.txt"
    assert Path(options["stderr"].name) == folder / "stderr.txt"
    assert options["stdin"] == subprocess.PIPE
    assert folder.parent == runs_folder(children._settings)


def config(command: Any = "train", **given: Any) -> dict[str, Any]:
    return {"command": command, "arguments": {"options": [], "flags": [], "positionals": [], **given}}


@pytest.mark.parametrize(
    "wrong",
    [
        config("serve"), config("generate"), config("models"),
        config("models", positionals=["remove", "x"]), config("models", positionals=["add", "x", "/"]),
        config("--help"), config(None),
        config(["train"]),
        config(options=[["debug", "x"]]), config(options=[["schema", "x"]]), config(options=[["into", "/x"]]),
        config(options=[["out", 3]]), config(options=[["out", ["a"]]]), config(options=[["out=/x --y", "z"]]),
        config(options=[["out"]]), config(options=["out"]), config(flags=["dry-run"]), config(flags=[""]),
        config(flags=["resume=1"]), config("export", flags=["replace"]), config(positionals=[1]),
        config(positionals=["a\0b"]), {}, [], None, "train", {"command": "train"},
        config("merge", options=[["discard", "x"]]), config("upscale", options=[["loras-dir", "x"]]),
        config("distill", options=[["into", "x"]]), config("evaluate", options=[["folder", "/"]]),
    ],
)  # fmt: skip
def test_h20_the_process_takes_only_commands_and_options_of_its_list(wrong: Any) -> None:
    with pytest.raises(UsageError):
        child.arguments(wrong)


def test_h20_positionals_never_become_options() -> None:
    line = child.arguments(config(positionals=["--resume", "-x"]))
    assert line == ["train", "--", "--resume", "-x"]


def test_h20_a_real_process_refuses_and_says_so(tmp_path: Path) -> None:
    """The real one, started as the server starts it."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config("serve")))
    done = subprocess.run(
        childprocess.command(path), env=childprocess.environment(""), capture_output=True, timeout=120,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and b"a server runs only" in done.stderr and not done.stdout
    assert os.listdir(tmp_path) == ["config.json"]
