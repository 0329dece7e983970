"""The README's picture of few steps: the same prompts and seeds at 1, 2 and 4 steps and by the teacher.

A row is a prompt, a column a number of steps; students and teacher are those of one bundle, and each is drawn
as `fewstep generate --steps N` draws it. The heads have the milliseconds of one whole call, measured in this
run: every column draws once before the clock starts, then columns take turns, picture by picture. Run it on a
quiet machine. Writes docs/images/steps.png.

    python benchmarks/steps_picture.py [--bundle FOLDER] [--student 4=NAME] [--rounds 5]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fewstep.engine.engine import Engine
from fewstep.engine.request import GenerateRequest, resolve
from fewstep.errors import FewstepError
from fewstep.evaluation.plots import new_figure, save_figure

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (1, 2, 4)
PROMPTS = (
    "a red apple, noto style, on a sky blue background",
    "a fox, twemoji style, on a mint green background",
    "a cat face, noto style, on a lavender background",
    "a cactus, twemoji style, on a yellow background",
    "a strawberry, noto style, on a white background",
)
GAP = 6
HEAD = 46
LEFT = 150


@dataclass
class Column:
    """One way of drawing: what is said of it, its steps, the student's name, pictures and times."""

    head: str
    more: str
    steps: int
    student: str
    pictures: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def request(self, engine: Engine, prompt: str, seed: int) -> GenerateRequest:
        return resolve(
            engine.info, prompt=prompt, seed=seed, num_inference_steps=self.steps, student=self.student
        )


def columns_of(engine: Engine, named: dict[int, str], teacher_steps: int | None) -> list[Column]:
    """A column for every step count that has a student, and the teacher's."""
    info, found = engine.info, []
    for count in COUNTS:
        able = [s.name for s in info.students if count in s.steps]
        name = named.get(count, able[0] if able else None)
        if name is not None:
            found.append(Column(f"{count} step{'s' if count > 1 else ''}", "", count, name))
    steps = teacher_steps or info.contract.num_inference_steps
    guided = " guided" if info.contract.guidance_scale != 1.0 else ""
    return [*found, Column("teacher", f"{steps}{guided} steps, ", steps, "none")] if found else []


def draw(engine: Engine, columns: list[Column], prompts: list[str], seed: int, rounds: int) -> None:
    """Fill the columns; every prompt has the same seed in all of them."""
    for column in columns:
        engine.generate(column.request(engine, prompts[0], seed))
    for number in range(rounds):
        for place, prompt in enumerate(prompts):
            for column in columns if (number + place) % 2 == 0 else columns[::-1]:
                request = column.request(engine, prompt, seed + place)
                started = time.perf_counter()
                image = engine.generate(request).images[0]
                column.seconds.append(time.perf_counter() - started)
                if number == 0:
                    column.pictures.append(image)


def save(columns: list[Column], prompts: list[str], path: Path) -> None:
    """Lay the columns out with matplotlib, one image pixel to one pixel."""
    height, width = columns[0].pictures[0].shape[:2]
    size = (LEFT + len(columns) * (width + GAP), HEAD + len(prompts) * (height + GAP))
    page = np.full((size[1], size[0], 3), 255, np.uint8)
    figure = new_figure(*size)
    for across, column in enumerate(columns):
        left = LEFT + across * (width + GAP)
        for down, picture in enumerate(column.pictures):
            top = HEAD + down * (height + GAP)
            page[top : top + height, left : left + width] = picture
        middle = (left + width / 2) / size[0]
        milliseconds = 1000 * statistics.median(column.seconds)
        figure.text(middle, 1 - 7 / size[1], column.head, fontsize=8, weight="bold", ha="center", va="top")
        said = f"{column.more}{milliseconds:.0f} ms"
        figure.text(middle, 1 - 24 / size[1], said, fontsize=7.5, ha="center", va="top", color="#404040")
    for down, prompt in enumerate(prompts):
        middle = HEAD + down * (height + GAP) + height / 2
        text = prompt.replace(", ", ",\n").replace("$", "\\$")
        figure.text((LEFT - 8) / size[0], 1 - middle / size[1], text, fontsize=7, ha="right", va="center")
    figure.figimage(page, resize=False, zorder=-1)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, help="default: the bundled model")
    parser.add_argument("--student", action="append", default=[], metavar="STEPS=NAME", help="who draws them")
    parser.add_argument("--teacher-steps", type=int, help="default: the model's own")
    parser.add_argument("--prompt", action="append", help="may be repeated; default five")
    parser.add_argument("--seed", type=int, default=0, help="of the first prompt; each has the next")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "steps.png")
    arguments = parser.parse_args()
    try:
        engine = Engine(arguments.bundle, threads=arguments.threads)
        named = {int(steps): name for steps, _, name in (text.partition("=") for text in arguments.student)}
        columns = columns_of(engine, named, arguments.teacher_steps)
        if not columns:
            message = f"{engine.info.name}: no student for 1, 2 or 4 steps in it, so there is nothing to show"
            if arguments.bundle is None:  # `make bench` runs it before students have landed
                print(message)
                return
            sys.exit(message)
        prompts = arguments.prompt or list(PROMPTS)
        draw(engine, columns, prompts, arguments.seed, max(1, arguments.rounds))
    except (FewstepError, ValueError) as error:
        sys.exit(f"steps_picture: {error}")
    save(columns, prompts, arguments.out)
    for column in columns:
        times = [1000 * s for s in column.seconds]
        name = "" if column.student == "none" else f" ({column.student})"
        print(
            f"{column.head}{name}: {column.more}{statistics.median(times):.0f} ms an image, "
            f"{min(times):.0f} to {max(times):.0f}, {len(times)} calls"
        )
    print(arguments.out)


if __name__ == "__main__":
    main()
