"""Training an evaluator: its losses by hand, that it learns, what it leaves, and what it never saw."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny_runs
import torch

from fewstep.data.emoji import Drawing, Drawings
from fewstep.data.labelled import LabelledDrawings
from fewstep.data.order import sample_rng
from fewstep.errors import DataError, RecipeError, RunError
from fewstep.models import load
from fewstep.models.features import load_evaluator
from fewstep.training import datasets, products
from fewstep.training.evaluator import EvaluatorTask
from fewstep.training.objectives import matching
from fewstep.training.recipe import load_recipe, parse_recipe
from fewstep.training.sections import Data
from fewstep.training.trainer import make_task

LABELS = ("fox", "goose", "red apple", "grapes", "owl")
BACKGROUNDS = {"white": (255, 255, 255), "sky blue": (135, 206, 235), "navy blue": (0, 0, 128)}


def eight_drawings(folder: Path = Path("set")) -> Drawings:
    """Four trained objects in two styles, each with a picture of its own, and the held-out goose."""
    items, rgba = [], []
    for style in ("noto", "twemoji"):
        for label in LABELS:
            items.append(Drawing(style, "food-drink", label, (), label, "p", "1", "MIT", "train"))
            own = np.random.default_rng([len(items)]).integers(0, 256, (4, 4, 4), np.uint8)
            own[..., 3] = 255
            rgba.append(np.pad(own.repeat(28, 0).repeat(28, 1), ((8, 8), (8, 8), (0, 0))))
    return Drawings(folder, np.stack(rgba), tuple(items), "f" * 64, ())


def labelled(side: int = 64) -> LabelledDrawings:
    texts = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    return LabelledDrawings(eight_drawings(), BACKGROUNDS, texts, embeddings_from="x", side=side)


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    found = matching.cross_entropy(logits, torch.tensor([1, 0]))
    assert found == pytest.approx([math.log(4 / 3), math.log(2)])
    assert matching.first(logits, torch.tensor([1, 1])).tolist() == [1, 0]


def test_label_smoothing_by_hand() -> None:
    logits, wanted = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([1])
    # target (0.05, 0.95) against shares (1/4, 3/4)
    expected = -(0.05 * math.log(1 / 4) + 0.95 * math.log(3 / 4))
    assert matching.cross_entropy(logits, wanted, 0.1).item() == pytest.approx(expected)
    torch.manual_seed(0)
    many, labels = torch.randn(7, 5), torch.arange(7) % 5
    theirs = torch.nn.functional.cross_entropy(many, labels, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(matching.cross_entropy(many, labels, 0.2), theirs)
    # the least loss is the entropy of the target
    target = torch.tensor([[0.05, 0.95]])
    least = matching.cross_entropy(target.log(), wanted, 0.1)
    assert least.item() == pytest.approx(-(target * target.log()).sum().item())


def test_the_loss_is_concept_plus_weighted_style() -> None:
    recipe = tiny_runs.recipe("evaluator", "objective.style=0.5", "model.dropout=0.0")
    task = make_task(recipe)
    assert isinstance(task, EvaluatorTask)
    batch = {
        key: torch.from_numpy(value)
        for key, value in labelled().batch(np.arange(8), sample_rng(0, 0)).items()
    }
    modules = {"evaluator": task.roles["evaluator"].module}
    losses, values = task.loss("evaluator", batch, modules, {}, 0)
    assert losses.shape == (8,)
    torch.testing.assert_close(losses.detach(), values["concept"] + 0.5 * values["style"])
    # candidates are the four trained concepts, never the goose: a network that knows nothing pays log 4
    assert batch["candidates"].shape == (4, 6)
    logits, _ = modules["evaluator"](batch["pixels"], batch["candidates"])
    torch.testing.assert_close(
        values["concept"], torch.nn.functional.cross_entropy(logits, batch["concept"], reduction="none")
    )
    losses.mean().backward()
    idle = [name for name, value in task.roles["evaluator"].weights.named_parameters() if value.grad is None]
    assert idle == []


def test_eight_drawings_are_learnt_by_heart_and_generalise_to_other_backgrounds(tmp_path: Path) -> None:
    data = labelled()
    tiny_runs.run(
        "evaluator",
        tmp_path,
        "stop.images=800",
        "data.batch_size=8",
        "schedule.total_images=800",
        "model.dropout=0.0",
        "objective.style=1.0",
        dataset=data,
    )
    lines = tiny_runs.losses(tmp_path)
    assert lines[-1]["evaluator/concept"] < 0.3 * lines[0]["evaluator/concept"]
    task = make_task(tiny_runs.recipe("evaluator", "model.dropout=0.0", f"init_from={tmp_path}"))
    batch = data.batch(np.arange(8), sample_rng(99, 0))
    with torch.no_grad():
        concepts, styles = task.roles["evaluator"].module.eval()(
            torch.from_numpy(batch["pixels"]), torch.from_numpy(batch["candidates"])
        )
    assert (concepts.argmax(-1).numpy() == batch["concept"]).all()
    assert (styles.argmax(-1).numpy() == batch["style"]).all()


def test_candidates_are_kept_once_when_samples_are_joined() -> None:
    from fewstep.training.feed import collate

    data = labelled()
    joined = collate([data.batch(np.array([n]), sample_rng(0, n)) for n in range(3)])
    assert joined["candidates"].shape == (4, 6)
    assert joined["pixels"].shape[0] == len(joined["concept"]) == len(joined["style"]) == 3


@pytest.mark.parametrize("wrong", ["model.text_width=7", "model.styles=1"])
def test_data_that_do_not_fit_the_model_are_told(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(DataError, match=r"model\.text_width"):
        tiny_runs.run("evaluator", tmp_path, wrong, dataset=labelled())


def test_unknown_keys_of_the_model_are_told() -> None:
    with pytest.raises(RecipeError, match="unknown key 'width'"):
        make_task(tiny_runs.recipe("evaluator", "model.width=3"))


@pytest.fixture
def on_disk(tmp_path: Path, tiny_components: object) -> Data:
    """A drawing set and a text encoder in folders, as a recipe names them."""
    from dataclasses import asdict

    drawings = eight_drawings()
    folder = tmp_path / "drawings"
    folder.mkdir()
    np.save(folder / "drawings.npy", drawings.rgba)
    (folder / "drawings.jsonl").write_text(
        "".join(json.dumps(asdict(item)) + "\n" for item in drawings.items)
    )
    (folder / "set.json").write_text(json.dumps({"fingerprint": "f" * 64, "sources": []}))
    load.save_pipeline(tmp_path / "parts", tiny_components, texts={}, half=False)  # type: ignore[arg-type]
    return Data(source="labelled", path=str(folder), batch_size=4, options={"text": str(tmp_path / "parts")})


def test_a_run_leaves_an_evaluator_of_all_concepts(tmp_path: Path, on_disk: Data) -> None:
    data = json.dumps(on_disk.model_dump(mode="json"))
    settings = (f"data={data}", "stop.images=8", "model.text_width=8", "card=emoji-128")
    result = tiny_runs.run("evaluator", tmp_path / "run", *settings, dataset=datasets.open_dataset(on_disk))
    folder = products.finish(result.run_folder)
    assert folder == tmp_path / "run" / "evaluator"
    loaded = load_evaluator(folder)
    assert loaded.labels == LABELS
    assert loaded.trained == (True, False, True, True, True)
    assert loaded.styles == ("noto", "twemoji")
    assert len(loaded.backgrounds) == 16 and loaded.backgrounds["sky blue"] == (135, 206, 235)
    assert loaded.meta["images_seen"] == 8 and loaded.meta["drawings"] == "f" * 64
    assert loaded.meta["licence"] == "Apache-2.0 AND MIT AND CC-BY-4.0"
    np.testing.assert_allclose(np.linalg.norm(loaded.text_embeddings, axis=1), 1, atol=1e-3)
    averaged = make_task(
        tiny_runs.recipe("evaluator", "model.text_width=8", f"init_from={tmp_path / 'run'}")
    ).roles["evaluator"]
    for name, value in averaged.weights.state_dict().items():
        torch.testing.assert_close(loaded.module.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    card = (folder / "README.md").read_text()
    assert "on 8 images" in card and "{" not in card
    assert (folder / "NOTICE").is_file() and (folder / "attribution.json").is_file()
    found = loaded.run(np.zeros((2, 128, 128, 3), np.uint8))
    assert found.concept_logits.shape == (2, 5)


def test_embeddings_are_those_of_the_concepts_captions(on_disk: Data, tmp_path: Path) -> None:
    from fewstep.models import text

    data = datasets.open_dataset(on_disk)
    assert isinstance(data, LabelledDrawings)
    captions = ["a fox", "a goose", "a red apple", "grapes", "an owl"]
    expected = text.sentences(captions, *load.text_parts(tmp_path / "parts")).numpy()
    np.testing.assert_allclose(data.embeddings, expected, atol=2e-3)


def test_options_of_the_data_are_checked(on_disk: Data) -> None:
    def opened(**options: object) -> None:
        datasets.open_dataset(on_disk.model_copy(update={"options": {**on_disk.options, **options}}))

    with pytest.raises(RecipeError, match="did you mean 'noise'"):
        opened(augmentation={"nose": 1.0})
    with pytest.raises(RecipeError, match="text is missing"):
        datasets.open_dataset(on_disk.model_copy(update={"options": {}}))
    opened(augmentation=None, side=128)


def test_only_evaluator_runs_on_labelled_drawings_leave_one(tmp_path: Path) -> None:
    tiny_runs.run("evaluator", tmp_path / "run", "stop.images=4")
    (tmp_path / "images").mkdir()
    for n in range(2):
        from PIL import Image

        Image.new("RGB", (16, 16)).save(tmp_path / "images" / f"{n}.png")
        (tmp_path / "images" / f"{n}.txt").write_text("x")
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    data = Data(source="folder", path=str(tmp_path / "images"), options={"width": 16, "height": 16})
    recipe = parse_recipe(text, [f"data={json.dumps(data.model_dump(mode='json'))}"])
    from fewstep.training.recipe import dump_recipe

    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(recipe))
    with pytest.raises(RecipeError, match="use labelled"):
        products.finish(tmp_path / "run")
    tiny_runs.run("denoiser", tmp_path / "other", "stop.images=4")
    with pytest.raises(RunError, match="kind evaluator"):
        products.evaluator_folder(tmp_path / "other", tmp_path / "out")


def test_the_bundled_recipe_fits_the_drawing_set_and_the_text_encoder() -> None:
    from fewstep.data.emoji_sets import STYLES

    recipe = load_recipe("emoji-128/evaluator")
    task = make_task(recipe)
    assert isinstance(task, EvaluatorTask)
    config = task.roles["evaluator"].weights.config
    assert config.styles == len(STYLES)
    assert config.side == recipe.data.options["side"]
    root = Path(__file__).resolve().parents[3]
    encoder = json.loads((root / recipe.data.options["text"] / "text_encoder" / "config.json").read_text())
    assert config.text_width == encoder["hidden_size"]
