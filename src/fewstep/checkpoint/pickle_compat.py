"""Pickle checkpoints (``.ckpt``, ``.pt``, ``.pth``, ``.bin``) become safetensors files, in a child process.

This is the only module that unpickles, and ``fewstep convert --allow-pickle`` its only caller. A pickle is a
program for a small machine that can name any function of any library. torch's ``weights_only`` loader runs it
with a closed list of functions that make tensors; nothing falls back to anything else, and a name that is
not on the list ends the conversion. Versions of torch before 2.10 are refused: that loader could be got
around (CVE-2025-32434 before 2.6, CVE-2026-24747 before 2.10).

In case the loader fails all the same, it runs in a process of its own: with limits on memory, processor
time, time and file size, without the parent's environment (proxies, tokens), and with a hook that ends
sockets, other programs, and writing anywhere but beside the output. The hook sees what Python does, not what
machine code does; it is a second fence and no sandbox. What the child wrote is then read as any foreign
safetensors file is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic, half, tensorfile
from fewstep.checkpoint.naming import shown
from fewstep.checkpoint.safetensors import is_pickle
from fewstep.checkpoint.tensorfile import Entry, TensorFile
from fewstep.errors import CheckpointError, DependencyError, NotFoundError, UsageError

if TYPE_CHECKING:
    import torch

TORCH_FLOOR = (2, 10)
"""Oldest torch whose ``weights_only`` loader has no known way around it."""

_ZIP = b"PK\x03\x04"
_GROWTH = 4
"""The tensors of a checkpoint take no more than so many times its size: a small file must not fill a disk."""
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "LANG", "LC_ALL")
_DEPTH = 8
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from fewstep.checkpoint import pickle_compat; sys.exit(pickle_compat.child(sys.argv[2:]))"
)
_REFUSED_EVENTS = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile",
    "os.link", "os.symlink", "os.kill", "shutil.", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What the child may use: bytes of memory and of a file, seconds of processor and of the clock.

    Memory is address space over what the process has with torch imported: with CUDA that alone is gigabytes.
    """

    memory: int
    file: int
    cpu: int
    wall: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """What came of a pickle: tensors that were written, and entries that were none and were left out."""

    tensors: int
    left_out: int


def limits_for(size: int) -> Limits:
    """Limits for a checkpoint of so many bytes: several times what the work takes on a slow machine."""
    seconds = size // 20_000_000
    return Limits(
        memory=1_500_000_000 + 3 * size,
        file=_GROWTH * size + 64_000_000,
        cpu=120 + seconds,
        wall=300.0 + 4 * seconds,
    )


def convert(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *, limits: Limits | None = None
) -> Converted:
    """Write the tensors of a pickle checkpoint as a safetensors file, atomically.

    Their names are those of the checkpoint; nested tables are joined with dots, and the usual ``state_dict``
    around them is taken off, with what lies beside it (optimisers, counters) left out.

    Args:
        source: the pickle, whatever its name; its first bytes decide.
        out: the safetensors file.
        limits: of the child; by the size of the file when None.

    Raises:
        NotFoundError: no such file.
        UsageError: it is no pickle.
        DependencyError: torch is missing or too old, or this system cannot limit a process.
        CheckpointError: it asks for a function that is not allowed, is damaged, went over a limit, or holds
            no tensors.
        OutputError: the output cannot be written.
    """
    path, final = Path(source), Path(out)
    if not path.exists():
        raise NotFoundError(f"{path}: no such file; check the path")
    if not is_pickle(path):
        raise UsageError(f"{path}: no pickle checkpoint by its content; leave --allow-pickle out")
    _check_torch()
    _check_system()
    try:
        with atomic.file(final) as temporary:
            told = _run(path, temporary, limits or limits_for(path.stat().st_size))
            with TensorFile(temporary) as written:
                if len(written.entries) != told.tensors:
                    raise CheckpointError(f"{path}: was not written completely; try again")
    finally:
        atomic.sweep(final.parent)  # what a child that was stopped left
    return told


def _check_torch() -> None:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        raise DependencyError("converting a pickle needs PyTorch: pip install 'fewstep[torch]'") from None
    if _version(version) < TORCH_FLOOR:
        floor = ".".join(map(str, TORCH_FLOOR))
        raise DependencyError(
            f"torch {version} is older than {floor}, and its loader of weights can be made to run code: "
            f"pip install 'torch>={floor}'"
        )


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _check_system() -> None:
    try:
        import resource  # noqa: F401

        _address_space()
    except (ImportError, OSError):
        raise DependencyError(
            "this system cannot limit what a process uses, so no pickle is read on it: convert the file on "
            "Linux"
        ) from None


def _run(source: Path, out: Path, limits: Limits) -> Converted:
    """Run the child, and say what it says or what became of it."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-I", "-B", "-c", _PROGRAM, str(root)]
    command += [str(source.resolve()), str(out.resolve()), json.dumps(asdict(limits))]
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment = {**kept, "OMP_NUM_THREADS": "1", "HOME": os.devnull, "HF_HUB_OFFLINE": "1"}
    try:
        # The program is ours and the arguments are paths; nothing goes through a shell.
        done = subprocess.run(  # noqa: S603
            command,
            env=environment,
            cwd=out.resolve().parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limits.wall,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{source}: was not read within {limits.wall:.0f} s and was given up; it is damaged or hostile"
        ) from None
    try:
        told = json.loads(done.stdout[:65_536])
        if done.returncode == 0:
            return Converted(tensors=int(told["tensors"]), left_out=int(told["left_out"]))
        reason = str(told["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        reason = (
            f"the process that read it was stopped by signal {-done.returncode}, as happens at a limit"
            if done.returncode < 0
            else f"the process that read it ended with code {done.returncode}"
        )
    raise CheckpointError(f"{source}: {shown(reason, 300)}")


def child(arguments: list[str]) -> int:
    """Entry of the child process: limit itself, unpickle, write; tell the parent in one line of JSON."""
    source, out, limits = Path(arguments[0]), Path(arguments[1]), Limits(**json.loads(arguments[2]))
    try:
        import torch

        _limit(limits)
        if _version(torch.__version__) < TORCH_FLOOR:
            raise CheckpointError(f"torch {torch.__version__} is too old to read it")
        lock_down(out.parent)
        tensors, left_out = unpickle(source)
        plan = {name: Entry(half.code_of(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
        tensorfile.write(out, plan, tensors.items(), {"format": "pt"})
    except MemoryError:
        return _tell({"error": "takes more memory than its size allows; it is damaged or hostile"}, 3)
    except Exception as error:
        return _tell({"error": " ".join(str(error).split()) or type(error).__name__}, 3)
    return _tell({"tensors": len(tensors), "left_out": left_out}, 0)


def _tell(what: Mapping[str, Any], code: int) -> int:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
    return code


def _limit(limits: Limits) -> None:
    import resource

    for kind, value in (
        (resource.RLIMIT_AS, _address_space() + limits.memory),
        (resource.RLIMIT_FSIZE, limits.file),
        (resource.RLIMIT_CPU, limits.cpu),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))  # also the hard limit: it cannot be raised again


def _address_space() -> int:
    """Bytes of address space that this process has; raises OSError where the system does not tell."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


def lock_down(folder: Path) -> None:
    """End sockets, other programs, and writing outside of ``folder``, for the rest of this process."""
    allowed = str(folder.resolve())
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED_EVENTS):
            raise PermissionError(f"it asked for {event}, which is not allowed")
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
            path = os.path.realpath(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else ""
            if os.path.dirname(path) != allowed:
                raise PermissionError("it asked to write outside of the output's folder")

    sys.addaudithook(refuse)


class _Parameters:
    """Stands in for ``ParameterDict``, in which the first tools of textual inversion saved their vectors.

    torch's own class is never made: what the pickle says of it is kept as a table, and nothing else of it.
    """

    def __init__(self) -> None:
        self.entries: Mapping[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        entries = state.get("_parameters") if isinstance(state, dict) else None
        self.entries = entries if isinstance(entries, dict) else {}


def unpickle(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The tensors of a pickle by name, and how many entries were none.

    Raises:
        CheckpointError: a function that is not allowed, a damaged file, or tensors that are not plain.
    """
    import torch

    with path.open("rb") as file:
        mapped = file.read(4) == _ZIP  # the older form cannot be mapped
    try:
        with torch.serialization.safe_globals([(_Parameters, "torch.nn.modules.container.ParameterDict")]):
            loaded = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # the loader raises almost anything on damaged files
        raise CheckpointError(_reason(error)) from None
    left_out = 0
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        left_out = len(loaded) - 1
        loaded = loaded["state_dict"]
    found: dict[str, torch.Tensor] = {}
    for name, value in _leaves(loaded, "", 0):
        if not isinstance(value, torch.Tensor):
            left_out += 1
            continue
        if name in found:
            raise CheckpointError(f"it has two tensors for the name {shown(name)}")
        found[name] = _plain(name, value)
    if not found:
        raise CheckpointError("it holds no tensors by name; it is no checkpoint of weights")
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if size > _GROWTH * path.stat().st_size + 1_000_000:
        raise CheckpointError(f"its tensors take {size} bytes, far more than the file has; it is hostile")
    return found, left_out


def _plain(name: str, value: torch.Tensor) -> torch.Tensor:
    import torch

    plain = (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )
    try:
        half.code_of(value.dtype)
    except KeyError:
        plain = False
    if not plain:
        raise CheckpointError(f"{shown(name)} is no plain tensor ({value.layout}, {value.dtype})")
    return value.detach()


def _leaves(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _Parameters):
        value = getattr(value, "entries", {})  # without a state nothing set it
    if isinstance(value, dict) and depth < _DEPTH:
        for key, item in value.items():
            if isinstance(key, str) and len(key) <= 1000:
                yield from _leaves(item, f"{name}.{key}" if name else key, depth + 1)
            else:
                yield "", None
    else:
        yield name, value


def _reason(error: Exception) -> str:
    """What was wrong with a pickle. torch's own words say how to switch its protection off."""
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    ask = "ask its author for a safetensors file"
    if asked is not None:
        return f"asks for {shown(asked[1])}, which no weights need, so it is not read; {ask}"
    if "weights_only" in text:
        return f"is not what torch writes for plain tensors, so it is not read; {ask}"
    first = (text.strip().splitlines() or [type(error).__name__])[0]
    return f"cannot be read ({shown(first, 120)}); download it again"
