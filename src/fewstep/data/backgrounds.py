"""The plain backgrounds that drawings are composed on: names for captions and their colours."""

from __future__ import annotations

from pathlib import Path

import yaml

from fewstep.errors import NotFoundError, RecipeError

RGB = tuple[int, int, int]


def recipe_folder(name: str = "emoji-128") -> Path:
    """Return the folder of a recipe that comes with fewstep: in the wheel, or in the checkout it runs from.

    Raises:
        NotFoundError: there is no such folder.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / "recipes", package.parents[1] / "recipes"):
        if (root / name).is_dir():
            return root / name
    raise NotFoundError(f"recipe folder {name!r} is not here: install fewstep again, or name a file")


def load_backgrounds(path: Path | None = None) -> dict[str, RGB]:
    """Read the backgrounds: name to sRGB colour, 0 to 255, in the order of the file.

    Args:
        path: YAML file, a mapping of names to three integers; default the one of `emoji-128`.

    Raises:
        RecipeError: the file is missing or not such a mapping.
    """
    file = path if path is not None else recipe_folder() / "backgrounds.yaml"
    try:
        data = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{file}: cannot be read as YAML ({reason}); give another file") from error
    if not isinstance(data, dict) or not data:
        raise RecipeError(f"{file}: must map names to colours, such as 'sky blue: [135, 206, 235]'")
    found: dict[str, RGB] = {}
    for name, colour in data.items():
        numbers = colour if isinstance(colour, list) else []
        valid = all(isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255 for c in numbers)
        if not isinstance(name, str) or len(numbers) != 3 or not valid:
            raise RecipeError(f"{file}: {name!r} is {colour!r}: give three whole numbers from 0 to 255")
        found[name] = (numbers[0], numbers[1], numbers[2])
    return found
