"""Which packages of which extra are installed, and the exact pip command that installs an extra."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import DependencyError

BASE = "base"
_REQUIREMENT = re.compile(r"^\s*(?P<name>[\w.-]+)\s*(?:\[(?P<extras>[\w,\s-]+)\])?(?P<rest>.*)$")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w-]+)['"]""")


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """One extra of the package, with the requirements of the extras that it names."""

    name: str
    packages: dict[str, str | None]
    """Installed version by package name; None for a package that is missing."""

    @property
    def missing(self) -> list[str]:
        """Names of the packages that are not installed."""
        return [name for name, version in self.packages.items() if version is None]


def extras(requirements: list[str] | None = None) -> list[Extra]:
    """Return the base and every extra with the installed versions of their packages.

    Args:
        requirements: ``Requires-Dist`` lines; those of the installed fewstep when left out, and none for a
            source tree that was never installed.
    """
    if requirements is None:
        try:
            requirements = importlib.metadata.requires("fewstep") or []
        except importlib.metadata.PackageNotFoundError:
            requirements = []
    names: dict[str, list[str]] = {BASE: []}
    includes: dict[str, list[str]] = {}
    for line in requirements:
        match = _REQUIREMENT.match(line)
        if match is None:
            continue
        marker = _EXTRA.search(match["rest"])
        extra = marker[1] if marker else BASE
        if match["name"].lower() == "fewstep":
            includes.setdefault(extra, []).extend(re.findall(r"[\w-]+", match["extras"] or ""))
            names.setdefault(extra, [])
        else:
            names.setdefault(extra, []).append(match["name"])
    for extra, others in includes.items():
        names[extra] = [name for other in others for name in names.get(other, [])] + names[extra]
    return [Extra(name=extra, packages={n: version(n) for n in found}) for extra, found in names.items()]


def version(package: str) -> str | None:
    """Return the installed version of a package, None when it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def pip_line(extra: str) -> str:
    """Return the command that installs an extra into the running Python, from where fewstep itself came."""
    suffix = "" if extra == BASE else f"[{extra}]"
    source = _source_folder()
    arguments = [_python(), "-m", "pip", "install"]
    if source is None:
        return _join([*arguments, f"fewstep{suffix}"])
    constraints = source / "constraints.txt"
    if constraints.is_file():
        arguments += ["-c", str(constraints)]
    return _join([*arguments, "-e", f"{source}{suffix}"])


def _python() -> str:
    """Return the interpreter as a person would type it: relative when it lies below the current folder."""
    path = Path(sys.executable)
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _source_folder() -> Path | None:
    """Return the folder of an editable installation (PEP 610), None for any other or when it is gone."""
    try:
        text = importlib.metadata.distribution("fewstep").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(text) if text else {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    # Costs 20 ms to import, which drawing should not pay.
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    folder = Path(url2pathname(urlsplit(origin["url"]).path))
    return folder if folder.is_dir() else None


def _join(arguments: list[str]) -> str:
    if os.name == "nt":
        import subprocess

        return subprocess.list2cmdline(arguments)
    return shlex.join(arguments)


def require(extra: str, package: str, purpose: str) -> None:
    """Refuse to go on without a package.

    Args:
        extra: the extra that brings the package.
        package: name it is imported by.
        purpose: what needs it, as the subject of a sentence.

    Raises:
        DependencyError: it is not installed; the message has the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise DependencyError(f"{purpose} needs {package}, which is not installed; run: {pip_line(extra)}")
