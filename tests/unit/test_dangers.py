"""One module owns each danger: unpickling, renaming files, the network, a shell. All else is refused.

The lists are closed. To need a new entry is a design change: say why in docs/adr/.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "fewstep"
MODULES = sorted(PACKAGE.rglob("*.py"))

# danger -> the only modules that may do it (a folder ends in a slash)
OWNERS = {
    "pickle": {"checkpoint/pickle_compat.py"},
    "rename": {"checkpoint/atomic.py"},
    "network": {
        "server/urls.py",
        "models/load.py",
        "models/hub.py",
        "data/sources/",
        "data/sources.py",
        "studio/client.py",
    },
    "shell": set(),
    "code from data": set(),
}

DANGEROUS_IMPORTS = {
    "pickle": {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"},
    "network": {
        "socket",
        "ssl",
        "ftplib",
        "smtplib",
        "http.client",
        "urllib.request",
        "requests",
        "httpx",
        "aiohttp",
        "websockets",
        "huggingface_hub",
    },
}
DANGEROUS_CALLS = {
    "torch.load": "pickle",
    "torch.save": "pickle",
    "os.rename": "rename",
    "os.renames": "rename",
    "os.replace": "rename",
    "os.link": "rename",
    "shutil.move": "rename",
    "os.fsync": "rename",
    "torch.hub.load": "network",
    "os.system": "shell",
    "os.popen": "shell",
    "subprocess.getoutput": "shell",
    "subprocess.getstatusoutput": "shell",
    "eval": "code from data",
    "exec": "code from data",
    "yaml.load": "code from data",
    "yaml.unsafe_load": "code from data",
    "yaml.full_load": "code from data",
}
HARMLESS = {"urllib.request.url2pathname", "urllib.request.pathname2url"}
DANGEROUS_METHODS = {
    "rename": "rename",  # pathlib.Path
    "load_state": "pickle",  # accelerate's: pickles random states and schedulers
    "save_state": "pickle",
}
DANGEROUS_KEYWORDS = {
    ("shell", True): "shell",
    ("allow_pickle", True): "pickle",
    ("weights_only", False): "pickle",
    ("trust_remote_code", True): "code from data",
}


def dangers(source: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, danger, what) for every dangerous import or call in the source."""
    tree = ast.parse(source)
    safe_loaders = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                base = node.module or ""
                names = [f"{base}.{name}" for name in names] if node.level == 0 else []
            for name in names:
                if name in HARMLESS:
                    continue
                for danger, modules in DANGEROUS_IMPORTS.items():
                    if any(name == module or name.startswith(module + ".") for module in modules):
                        yield node.lineno, danger, name
                if name in DANGEROUS_CALLS:  # from os import replace
                    yield node.lineno, DANGEROUS_CALLS[name], name
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            loaders = {ast.unparse(k.value) for k in node.keywords if k.arg == "Loader"}
            if called == "yaml.load" and loaders and loaders <= safe_loaders:
                continue
            if called in DANGEROUS_CALLS:
                yield node.lineno, DANGEROUS_CALLS[called], called
            elif method in DANGEROUS_METHODS:
                yield node.lineno, DANGEROUS_METHODS[method], called
            elif method == "replace" and len(node.args) == 1 and not node.keywords:  # str.replace takes two
                yield node.lineno, "rename", called
            if method == "from_pretrained" and "Pipeline" in called:  # may run code that a folder names
                yield node.lineno, "code from data", called
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if isinstance(value, bool) and (keyword.arg, value) in DANGEROUS_KEYWORDS:
                    yield (
                        node.lineno,
                        DANGEROUS_KEYWORDS[keyword.arg, value],
                        f"{called}({keyword.arg}={value})",
                    )


def is_owner(path: str, danger: str) -> bool:
    return any(path == owner or (owner.endswith("/") and path.startswith(owner)) for owner in OWNERS[danger])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_dangerous_calls_stay_with_their_owner(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    found = [d for d in dangers(path.read_text(encoding="utf-8")) if not is_owner(name, d[1])]
    assert not found, "\n".join(f"{name}:{line}: {what} ({danger})" for line, danger, what in found)


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("import pickle", "pickle"),
        ("from joblib import load", "pickle"),
        ("import torch\ntorch.load('x')", "pickle"),
        ("np.load('x', allow_pickle=True)", "pickle"),
        ("accelerator.save_state('x')", "pickle"),
        ("import os\nos.replace(a, b)", "rename"),
        ("from os import replace", "rename"),
        ("Path('a').replace(b)", "rename"),
        ("path.rename(b)", "rename"),
        ("shutil.move(a, b)", "rename"),
        ("import urllib.request", "network"),
        ("from urllib import request", "network"),
        ("def f():\n    import socket", "network"),
        ("from huggingface_hub import snapshot_download", "network"),
        ("subprocess.run(x, shell=True)", "shell"),
        ("os.system('ls')", "shell"),
        ("eval('1')", "code from data"),
        ("yaml.load(x, Loader=Loader)", "code from data"),
        ("DiffusionPipeline.from_pretrained(x)", "code from data"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "code from data"),
    ],
)
def test_the_check_sees(source: str, danger: str) -> None:
    assert danger in [found for _, found, _ in dangers(source)]


@pytest.mark.parametrize(
    "source",
    [
        "'a-b'.replace('-', '_')",
        "dataclasses.replace(request, seed=1)",
        "from urllib.parse import urlsplit",
        "from urllib.request import url2pathname",
        "class L(yaml.SafeLoader):\n    pass\nyaml.load(x, Loader=L)",
        "model.eval()",
        "subprocess.run(['npm', 'install'], check=True)",
        "yaml.safe_load(text)",
        "AutoencoderKL.from_pretrained(folder)",
        "np.load(path, allow_pickle=False)",
        "optimizer.load_state_dict(state)",
    ],
)
def test_the_check_lets_pass(source: str) -> None:
    assert list(dangers(source)) == []
