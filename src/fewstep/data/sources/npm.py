"""Packages from the npm registry, fetched by the npm client with pinned versions and no install scripts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from fewstep.checkpoint import atomic
from fewstep.errors import DataError, DependencyError

_TIMEOUT_SECONDS = 900


def package_version(packages: Path, name: str) -> str:
    """Return the version of an unpacked package.

    Args:
        packages: folder laid out as npm's node_modules.
        name: package name, such as "@iconify-json/noto".

    Raises:
        DataError: the package is not there or its package.json is broken.
    """
    manifest = packages / name / "package.json"
    try:
        return str(json.loads(manifest.read_text("utf-8"))["version"])
    except FileNotFoundError:
        raise DataError(
            f"{packages}: package {name} is not in this folder; run 'npm install --ignore-scripts {name}' "
            f"and give its node_modules folder"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{manifest}: not a readable package.json ({error}); install the package again"
        ) from error


def fetch(versions: Mapping[str, str], cache: Path) -> Path:
    """Fetch packages through the npm client into `cache`, and return a folder laid out as node_modules.

    A cache that holds every package in its pinned version is used as it is, without npm and network.

    Args:
        versions: package name to exact version.
        cache: folder to keep the packages in; its content is replaced when a version differs.

    Raises:
        DependencyError: the npm client is not installed.
        DataError: npm failed (no network, unknown version), or brought another version than asked for.
    """
    packages = cache / "node_modules"
    if packages.is_dir() and not _differences(versions, packages):
        return packages
    npm = shutil.which("npm")
    if npm is None:
        raise DependencyError(
            "the npm client is not installed: install Node.js (https://nodejs.org), or give a folder of "
            "packages that was fetched elsewhere"
        )
    with atomic.folder(cache, replace=True) as folder:
        (folder / "package.json").write_text('{"name": "fewstep-drawings", "private": true}\n', "utf-8")
        command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
        command += [f"{name}@{version}" for name, version in versions.items()]
        try:
            # Arguments are our own constants; npm.cmd on Windows is found by shutil.which.
            run = subprocess.run(  # noqa: S603
                command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise DataError(
                f"npm install took more than {_TIMEOUT_SECONDS} s; check the network and try again"
            ) from None
        if run.returncode != 0:
            lines = [line for line in run.stderr.splitlines() if line.strip()]
            raise DataError(
                f"npm install failed: {lines[0] if lines else run.returncode}; check the network, or give a "
                f"folder of packages that was fetched elsewhere"
            )
        wrong = _differences(versions, folder / "node_modules")
        if wrong:
            raise DataError(f"npm brought other packages than asked for: {', '.join(wrong)}; try again")
    return packages


def _differences(versions: Mapping[str, str], packages: Path) -> list[str]:
    wrong = []
    for name, version in versions.items():
        try:
            found = package_version(packages, name)
        except DataError:
            found = "missing"
        if found != version:
            wrong.append(f"{name} {found} instead of {version}")
    return wrong
