"""What deploy/ holds: no container engine is at hand, so the files are read as an engine reads them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
FILES = ("Dockerfile", "Dockerfile.gpu")


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", DEPLOY / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look there
    spec.loader.exec_module(made)
    return made


steps = module("steps")


def complaints(text: str) -> list[str]:
    """What is wrong with a Dockerfile of ours."""
    found: list[str] = []
    stages = steps.stages(text)
    known: set[str] = set()
    for stage in stages:
        image, _, tag = stage.base.partition(":")
        if stage.base not in known and (not re.fullmatch(r"\d+\.\d+\.\d+[a-z0-9.-]*", tag) or "$" in image):
            found.append(f"FROM {stage.base}: pin a version of three numbers")
        known.add(stage.name)
    last = stages[-1]
    users = last.all("USER")
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("USER: not root, and in numbers, so that an engine can check it")
    order = [one.name for one in last.instructions]
    if users and any(name in ("COPY", "RUN") for name in order[order.index("USER") :]):
        found.append("USER: nothing is installed as the user that the server runs as")
    for name in ("ENTRYPOINT", "CMD"):
        for value in last.all(name):
            try:
                words = json.loads(value)
                assert isinstance(words, list) and all(isinstance(word, str) for word in words)
            except (ValueError, AssertionError):
                found.append(f"{name}: the exec form, or a shell gets the SIGTERM")
    if not last.all("ENTRYPOINT"):
        found.append("ENTRYPOINT is missing")
    health = last.all("HEALTHCHECK")
    if not health or "/healthz" not in health[0] or "CMD [" not in health[0]:
        found.append("HEALTHCHECK: ask /healthz, in the exec form")
    if "VOLUME" not in order:
        found.append("VOLUME is missing: pictures would end with the container")
    for one in (one for stage in stages for one in stage.instructions):
        if one.name in ("ARG", "ENV") and re.search(r"(?i)key|secret|token|password", one.value):
            found.append(f"line {one.line}: secrets come at run time, not into the image")
        if one.name == "RUN" and re.search(r"curl|wget|\bsudo\b|--trusted-host|chmod 777", one.value):
            found.append(f"line {one.line}: {one.value}")
        if one.name == "RUN" and "pip install" in one.value and "-c constraints.txt" not in one.value:
            found.append(f"line {one.line}: pip install without constraints")
        if one.name == "COPY" and one.value.split()[0] == ".":
            found.append(f"line {one.line}: name what is copied")
    build = [f"{one.name} {one.value}" for one in stages[0].instructions]
    needs = [number for number, one in enumerate(build) if "-r requirements.txt" in one]
    source = [number for number, one in enumerate(build) if one.startswith("COPY src")]
    if not needs or not source or needs[0] > source[0]:
        found.append("COPY src comes after the dependencies, or every change installs them anew")
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_images_are_as_they_should_be(name: str) -> None:
    assert complaints((DEPLOY / name).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("USER 10001:10001\n", "", "USER"),
        ("USER 10001:10001", "USER 0:0", "USER"),
        (":3.11.14-slim-bookworm AS", ":latest AS", "FROM"),
        (":3.11.14-slim-bookworm AS", " AS", "FROM"),
        ('ENTRYPOINT ["fewstep", "serve"', 'ENTRYPOINT fewstep serve "', "ENTRYPOINT"),
        ("PYTHONUNBUFFERED=1", "FEWSTEP_KEYS=anna:12345678", "secrets"),
        ("/healthz", "/", "HEALTHCHECK"),
        ("pip install -c constraints.txt -r", "pip install -r", "constraints"),
        ("COPY src src", "COPY . .", "name what is copied"),
        ("COPY constraints.txt pyproject", "COPY src src\nCOPY constraints.txt pyproject", "COPY src"),
        ('VOLUME ["/data"]', "", "VOLUME"),
    ],
)  # fmt: skip
def test_each_rule_can_be_broken(old: str, new: str, complaint: str) -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert old in text
    assert any(complaint in one for one in complaints(text.replace(old, new, 1)))


def test_the_cpu_image_has_no_torch_and_the_other_one_has() -> None:
    needs = module("requirements").requirements
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, torch in zip(FILES, (False, True), strict=True):
        (build, _) = steps.stages((DEPLOY / name).read_text(encoding="utf-8"))
        (asked,) = [line for line in build.all("RUN") if "requirements.py" in line]
        (installed,) = [line for line in build.all("RUN") if '".[' in line]
        extras = asked.partition("requirements.py ")[2].partition(" >")[0].split()
        assert f'".[{",".join(extras)}]"' in installed, "the layer of dependencies is for what is installed"
        lines = needs(project, extras)
        assert any(line.startswith("torch") for line in lines) == torch
        assert {"openvino", "fastapi", "ncnn"} <= {re.split(r"[>=\[<]", line)[0] for line in lines}
    assert any(line.startswith("ray") for line in needs(project, ["ray"]))
    assert any(line.startswith("fastapi") for line in needs(project, ["ray"])), "extras of extras"


def test_what_is_copied_is_sent_and_nothing_else() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in FILES:
        for stage in steps.stages((DEPLOY / name).read_text(encoding="utf-8")):
            for value in stage.all("COPY"):
                if not value.startswith("--from"):
                    for source in value.split()[:-1]:
                        assert (ROOT / source).exists() and steps.sent(source, ignore), source
    assert steps.sent("src/fewstep/server/app.py", ignore)
    for name in (
        ".git/config",
        "runs/a/last.safetensors",
        ".venv/bin/python",
        "deploy/keys",
        "src/a/__pycache__/b.pyc",
    ):
        assert not steps.sent(name, ignore), name


def test_the_entry_points_options_exist() -> None:
    reference = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
    serve = reference.partition("fewstep serve")[2]
    for name in FILES:
        words = json.loads(steps.stages((DEPLOY / name).read_text(encoding="utf-8"))[-1].all("ENTRYPOINT")[0])
        assert words[:2] == ["fewstep", "serve"]
        assert all(word in serve for word in words if word.startswith("--"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("RUN a\n", "before FROM"),
        ("FROM a:1\nRUNN b\n", "no instruction"),
        ("FROM a:1\nRUN b \\\n", "goes on"),
    ],
)
def test_a_file_that_is_none_is_not_read(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        steps.stages(text)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_every_service_is_fenced_in(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert not {"privileged", "pid", "ipc", "network_mode", "devices"} & set(service), name
        tag = service["image"].partition(":")[2]
        assert re.match(r"\d+\.\d+\.\d+", tag), f"{name}: pin a version"
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", []))


def test_the_server_is_reached_through_the_proxy_only(compose: dict[str, Any]) -> None:
    server, proxy = compose["services"]["fewstep"], compose["services"]["proxy"]
    assert "ports" not in server and server["networks"] == ["inside"]
    inside = compose["networks"]["inside"]
    assert inside["internal"] is True
    (network,) = inside["ipam"]["config"]
    assert server["environment"]["FORWARDED_ALLOW_IPS"] == network["subnet"]
    assert set(proxy["networks"]) == {"inside", "outside"} and proxy["cap_add"] == ["NET_BIND_SERVICE"]
    assert proxy["depends_on"]["fewstep"]["condition"] == "service_healthy"


def test_the_server_has_its_time_its_folder_and_its_secret(compose: dict[str, Any]) -> None:
    from fewstep.server.settings import ServerSettings

    server = compose["services"]["fewstep"]
    grace = float(server["stop_grace_period"].removesuffix("s"))
    assert grace >= ServerSettings.model_fields["grace"].default + 10
    (user,) = steps.stages((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))[-1].all("USER")
    assert server["user"] == user and "data:/data" in server["volumes"]
    (secret,) = server["secrets"]
    assert server["environment"]["FEWSTEP_KEYS_FILE"] == f"/run/secrets/{secret}"
    assert list(compose["secrets"][secret]) == ["file"]
    used = {
        volume.partition(":")[0] for service in compose["services"].values() for volume in service["volumes"]
    }
    assert {name for name in used if not name.startswith(".")} == set(compose["volumes"])


def test_nothing_in_the_folder_is_a_secret() -> None:
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"-----BEGIN|[a-z]+:[0-9a-f]{32,}", text), path
