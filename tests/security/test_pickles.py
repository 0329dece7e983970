"""Pickle checkpoints: converted in a child process by a restricted loader, or refused (A03, A04)."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from hostile_files import hostile, payloads

from fewstep.checkpoint import pickle_compat
from fewstep.checkpoint.pickle_compat import Limits
from fewstep.cli.main import main
from fewstep.errors import CheckpointError, DependencyError, UsageError

PACKAGE = Path(__file__).parents[2] / "src" / "fewstep"


def state(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a.weight": scale * torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


@pytest.mark.slow
def test_A03_a_plain_checkpoint_is_converted_in_a_child(tmp_path: Path, capsys: Any) -> None:
    source, out = tmp_path / "model.ckpt", tmp_path / "model.safetensors"
    torch.save({"state_dict": state(), "global_step": 3, "optimizer_states": [{"x": torch.ones(9)}]}, source)
    assert main(["convert", str(source), "--allow-pickle", "--out", str(out)]) == 0
    assert "2 tensors; 2 entries that are no tensors were left out" in capsys.readouterr().err
    found = load_file(out)
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], value) for name, value in state().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.ckpt", "model.safetensors"]


def test_A03_the_loader_is_always_the_one_for_weights_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tried again in another way, whatever the first attempt raises."""
    torch.save(state(), tmp_path / "new.pt")
    torch.save(state(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    calls: list[dict[str, Any]] = []
    real = torch.load

    def spied(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return real(*arguments, **options)

    monkeypatch.setattr(torch, "load", spied)
    for name in ("new.pt", "old.pt"):
        assert pickle_compat.unpickle(tmp_path / name)[0].keys() == state().keys()
    hostile(tmp_path / "evil.pt", payloads(tmp_path / "canary")["open"])
    with pytest.raises(CheckpointError, match="so it is not read"):
        pickle_compat.unpickle(tmp_path / "evil.pt")
    assert [call["weights_only"] for call in calls] == [True, True, True]
    assert not (tmp_path / "canary").exists()


def test_A03_only_one_call_in_the_package_unpickles_and_it_is_restricted() -> None:
    calls = [
        (path, node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("torch.load")
    ]
    assert [path.name for path, _ in calls] == ["pickle_compat.py"]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in calls[0][1].keywords}
    assert given["weights_only"] == "True"


@pytest.mark.parametrize("name", ["system", "exec", "open", "pip"])
@pytest.mark.parametrize("form", ["torch", "2"])
def test_A03_a_function_that_is_not_allowed_ends_it(name: str, form: str, tmp_path: Path) -> None:
    file = hostile(tmp_path / "model.ckpt", payloads(tmp_path / "canary")[name], form)
    with pytest.raises(CheckpointError, match="so it is not read; ask its author") as caught:
        pickle_compat.unpickle(file)
    # torch's own message says how to load it all the same.
    assert "weights_only" not in str(caught.value) and "safe_globals" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_A03_the_name_of_what_was_asked_for_is_said(tmp_path: Path) -> None:
    from argparse import Namespace

    torch.save({"hyper": Namespace(x=1), "w": torch.ones(1)}, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"asks for argparse\.Namespace, which no weights need"):
        pickle_compat.unpickle(tmp_path / "model.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(1).expand(10**10)}, "far more than the file has; it is hostile"),
        ({"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (2, 2), check_invariants=True)}, "no plain tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "a is no plain tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is no plain tensor"),
        ({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, "two tensors for the name a.b"),
        ({"a": 1, "b": [torch.ones(1)]}, "holds no tensors by name"),
        ([torch.ones(1)], "holds no tensors by name|two tensors"),
    ],
)  # fmt: skip
def test_A03_tensors_that_are_not_plain_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.ckpt")
    before = psutil.Process().memory_info().rss
    with pytest.raises(CheckpointError, match=message):
        pickle_compat.unpickle(tmp_path / "model.ckpt")
    assert psutil.Process().memory_info().rss - before < 200 * 2**20


@pytest.mark.parametrize("cut", [5, 60, 400])
def test_A03_a_damaged_checkpoint_is_an_error_in_one_line(cut: int, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "model.ckpt")
    (tmp_path / "model.ckpt").write_bytes((tmp_path / "model.ckpt").read_bytes()[:cut])
    with pytest.raises(CheckpointError) as caught:
        pickle_compat.unpickle(tmp_path / "model.ckpt")
    assert "\n" not in str(caught.value)


def test_A03_an_old_tar_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    """torch once wrote tar files, whose loader unpacks them to disk."""
    with tarfile.open(tmp_path / "model.pt", "w") as archive:
        info = tarfile.TarInfo("../escaped")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(UsageError, match="no pickle checkpoint by its content"):
        pickle_compat.convert(tmp_path / "model.pt", tmp_path / "out.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wall": 0.05}, "was not read within 0 s and was given up"),
        ({"memory": 0}, r"model\.ckpt: "),
        ({"file": 10}, r"model\.ckpt: "),
    ],
)
def test_A03_a_child_over_its_limits_is_reported_and_leaves_nothing(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = tmp_path / "model.ckpt"
    torch.save(state(), source)
    usual = pickle_compat.limits_for(source.stat().st_size)
    given = {"memory": usual.memory, "file": usual.file, "cpu": usual.cpu, "wall": usual.wall} | change
    with pytest.raises(CheckpointError, match=message) as caught:
        pickle_compat.convert(source, tmp_path / "out.safetensors", limits=Limits(**given))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def test_A03_what_a_stopped_child_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(source: Path, out: Path, limits: Limits) -> Any:
        dead = 2**22 + 12345  # beyond the largest pid of Linux
        (out.parent / f".{out.name}.tmp-{dead}-0123abcd").write_bytes(b"half")
        raise CheckpointError("it was stopped")

    monkeypatch.setattr(pickle_compat, "_run", run)
    torch.save(state(), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="it was stopped"):
        pickle_compat.convert(tmp_path / "model.ckpt", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


def in_child(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); sys.argv[1:] = {arguments!r}\n{program}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def test_A03_the_childs_limits_hold_and_cannot_be_raised() -> None:
    done = in_child(
        "import resource, json\n"
        "from fewstep.checkpoint import pickle_compat as p\n"
        "p._limit(p.Limits(memory=700_000_000, file=1_000_000, cpu=77, wall=1.0))\n"
        "kinds = (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_CORE)\n"
        "limits = [resource.getrlimit(kind) for kind in kinds]\n"
        "try:\n"
        "    bytearray(900_000_000)\n"
        "except MemoryError:\n"
        "    print(json.dumps(limits))\n"
    )
    memory, *others = json.loads(done.stdout or "[[0, 0]]")
    assert others == [[1_000_000] * 2, [77] * 2, [0, 0]], done.stderr
    assert 700_000_000 < memory[0] == memory[1] < 3_000_000_000


@pytest.mark.parametrize(
    "attack",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.fork()",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "open(sys.argv[2], 'w')",
        "import os; os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)",
        "import os; os.symlink('/etc/passwd', sys.argv[2])",
        "import shutil; shutil.copyfile('/etc/hostname', sys.argv[2])",
    ],
)
def test_A03_the_child_reaches_no_network_no_program_and_no_other_file(attack: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = in_child(
        "from pathlib import Path\n"
        "from fewstep.checkpoint import pickle_compat\n"
        "pickle_compat.lock_down(Path(sys.argv[1]))\n"
        "(Path(sys.argv[1]) / 'beside').write_text('allowed')\n"
        f"try:\n    {attack}\nexcept PermissionError as error:\n    print('refused:', error)\n",
        str(tmp_path / "out"),
        str(tmp_path / "elsewhere"),
    )
    assert done.stdout.startswith("refused: it asked "), done.stderr
    assert (tmp_path / "out" / "beside").read_text() == "allowed"
    assert not (tmp_path / "elsewhere").exists()


def test_A03_the_child_knows_no_proxy_and_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "LD_PRELOAD"):
        monkeypatch.setenv(name, "secret")
    seen: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> Any:
        seen.update(options, command=command)
        return subprocess.CompletedProcess(command, -24, b"", b"")

    monkeypatch.setattr(pickle_compat.subprocess, "run", run)
    torch.save(state(), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match="was stopped by signal 24, as happens at a limit"):
        pickle_compat.convert(tmp_path / "model.ckpt", tmp_path / "out.safetensors")
    assert "secret" not in seen["env"].values()
    assert seen["command"][1] == "-I"
    assert not seen.get("shell")


@pytest.mark.parametrize(
    "answer",
    [
        b'{"tensors": 2, "left_out": 0}',
        b'{"tensors": 99, "left_out": 0}',
        b"{}",
        b"[" * 100_000,
        b'{"error": "\\u001b[2J\\n"}',
    ],
)
def test_A03_a_child_that_lies_is_not_believed(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote is read as a foreign file: here a pickle, or fewer tensors than it says."""

    def run(command: list[str], **options: Any) -> Any:
        if b"99" in answer:
            save_file(state(), command[7])
        else:
            torch.save(state(), command[7])
        return subprocess.CompletedProcess(command, 0, answer, b"")

    monkeypatch.setattr(pickle_compat.subprocess, "run", run)
    torch.save(state(), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError) as caught:
        pickle_compat.convert(tmp_path / "model.ckpt", tmp_path / "out.safetensors")
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["model.ckpt"]


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121", "2.6.0", "2.9.1"])
def test_A04_an_old_torch_reads_no_pickle(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state(), tmp_path / "model.ckpt")
    monkeypatch.setattr(pickle_compat.metadata, "version", lambda name: version)
    monkeypatch.setattr(pickle_compat, "_run", lambda *arguments: pytest.fail("the child was started"))
    with pytest.raises(DependencyError, match=r"is older than 2\.10"):
        pickle_compat.convert(tmp_path / "model.ckpt", tmp_path / "out.safetensors")


def test_A04_the_child_looks_at_the_torch_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    torch.save(state(), tmp_path / "model.ckpt")
    monkeypatch.setattr(pickle_compat, "_limit", lambda limits: None)
    monkeypatch.setattr(pickle_compat, "lock_down", lambda folder: None)
    monkeypatch.setattr(torch, "__version__", "2.9.0")
    limits = json.dumps({"memory": 1, "file": 1, "cpu": 1, "wall": 1.0})
    assert pickle_compat.child([str(tmp_path / "model.ckpt"), str(tmp_path / "out"), limits]) == 3
    assert "too old" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
