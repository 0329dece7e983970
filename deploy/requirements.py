"""Print what the package and some of its extras need, from pyproject.toml beside this folder.

    python deploy/requirements.py serve upscale > requirements.txt

So that an image's layer of dependencies does not depend on the source.
"""

import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """Lines for pip; extras that name extras of this package are followed."""
    lines = list(project["dependencies"])
    for extra in extras:
        for line in project["optional-dependencies"][extra]:
            if line.startswith(f"{project['name']}["):
                inner = line.partition("[")[2].partition("]")[0].split(",")
                lines += requirements({**project, "dependencies": []}, inner)
            else:
                lines.append(line)
    return list(dict.fromkeys(lines))


if __name__ == "__main__":
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    print("\n".join(requirements(tomllib.loads(text)["project"], sys.argv[1:])))
