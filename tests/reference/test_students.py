"""Students exported and drawn: against torch, against plain diffusers, and what may not go into a bundle."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from fewstep.checkpoint import bundle
from fewstep.engine.engine import Engine
from fewstep.engine.request import resolve
from fewstep.errors import CheckpointError, NotFoundError, OutputError, UsageError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

PROMPT = "a red apple"
LIGHT = {
    "method": "lightning", "num_inference_steps": 4, "allowed_steps": (2, 4), "guidance": "off",
    "guidance_scale": 1.0, "guidance_rescale": 0.0, "negative_prompt_effective": False,
}  # fmt: skip
CONSISTENT = {**LIGHT, "method": "flash", "solver": "lcm", "boundary_scaling": 0.0, "allowed_steps": (1, 4)}


def parts(pipeline, *, contract=None, changed="denoiser"):
    """The components of a pipeline, one of its networks changed, sampled as ``contract`` says."""
    import torch

    from fewstep.models import load

    found = load.pipeline(pipeline)
    network = copy.deepcopy(getattr(found, changed))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.05)
    fields = LIGHT if contract is None else contract
    return dataclasses.replace(
        found, **{changed: network, "contract": dataclasses.replace(found.contract, **fields)}
    )


@pytest.fixture(scope="module")
def student(pipeline, tmp_path_factory):
    """As ``fewstep distill`` leaves it: a pipeline folder of its own."""
    from fewstep.models import load

    folder = tmp_path_factory.mktemp("light") / "student"
    load.save_pipeline(folder, parts(pipeline), texts={})
    return folder


@pytest.fixture(scope="module")
def consistent(pipeline, tmp_path_factory):
    from fewstep.models import load

    folder = tmp_path_factory.mktemp("consistent") / "student"
    load.save_pipeline(folder, parts(pipeline, contract=CONSISTENT), texts={})
    return folder


@pytest.fixture(scope="module")
def exported(pipeline, student, tmp_path_factory):
    from fewstep.models.export import export

    out = tmp_path_factory.mktemp("exported") / "bundle"
    return out, export(pipeline, out, precision="fp16", students={"light": student})


@pytest.fixture
def copied(exported, tmp_path):
    shutil.copytree(exported[0], tmp_path / "bundle")
    return tmp_path / "bundle"


def draw(folder, **given):
    engine = Engine(folder)
    try:
        return engine.generate(resolve(engine.info, **{"prompt": PROMPT, "seed": 4, **given}))
    finally:
        engine.close()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("steps", [2, 4])
def test_openvino_torch_and_plain_diffusers_draw_the_same(exported, student, steps):
    """The scheduler in the student's folder says the same as its contract, so diffusers is right unaided."""
    import torch
    from diffusers import StableDiffusionPipeline

    from fewstep.diffusion.noise import image_noise

    ours = draw(exported[0], num_inference_steps=steps)
    assert ours.record["student"]["name"] == "light"
    alone = draw(student, num_inference_steps=steps)  # a model of its own, in torch
    assert ours.images[0].std() > 5
    assert np.abs(ours.images[0].astype(int) - alone.images[0]).max() <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(student, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPT,
        latents=torch.from_numpy(image_noise(4, (4, 8, 8)))[None],
        num_inference_steps=steps,
        guidance_scale=1.0,
        height=64,
        width=64,
        output_type="np",
    ).images[0]
    assert np.abs(ours.images[0] - 255 * theirs).max() <= 1.01


def test_a_student_beside_its_base_in_torch_draws_the_same(pipeline, exported, consistent, tmp_path):
    """Also one whose solver adds noise; and a folder's own students are exported with it."""
    from fewstep.models import load
    from fewstep.models.export import export

    shutil.copytree(pipeline, tmp_path / "base")
    found = parts(pipeline, contract=CONSISTENT)
    load.save_student(tmp_path / "base", "own", found.denoiser, found.contract)
    first = draw(tmp_path / "base", num_inference_steps=4)
    assert first.record["student"]["method"] == "flash"
    export(tmp_path / "base", tmp_path / "out", precision="fp16")
    second = draw(tmp_path / "out", num_inference_steps=4)
    third = draw(consistent, num_inference_steps=4)
    for other in (second, third):
        assert np.abs(first.images[0].astype(int) - other.images[0]).max() <= 1
    with pytest.raises(UsageError, match="has a student of a name that was given"):
        export(tmp_path / "base", tmp_path / "again", precision="fp16", students={"own": consistent})


def test_the_base_is_the_same_with_and_without(pipeline, exported, tmp_path):
    from fewstep.models.export import export

    export(pipeline, tmp_path / "plain", precision="fp16")
    plain, made = bundle.open_bundle(tmp_path / "plain"), bundle.open_bundle(exported[0], verify=True)
    assert plain.hash == made.hash == exported[1].hash
    assert (plain.format_version, made.format_version) == (1, 2)
    assert np.array_equal(draw(tmp_path / "plain").images[0], draw(exported[0]).images[0])
    assert exported[1].parts["students/light"].relative_error < 1e-3


@pytest.mark.parametrize("recorded", [True, False])
def test_adding_to_a_bundle_changes_nothing_else(copied, consistent, pipeline, tmp_path, recorded, capfd):
    from fewstep.models import load
    from fewstep.models.export import add_students

    before = bundle.open_bundle(copied)
    if not recorded:  # a bundle of an older version does not say which networks it was made from
        old = {key: text for key, text in before.made_by.items() if key not in ("vae", "text_encoder")}
        bundle.write(dataclasses.replace(before, made_by=old))
    files = contents(copied)
    picture, light = draw(copied).images[0], draw(copied, num_inference_steps=2).images[0]
    capfd.readouterr()
    precision, least = ("int8", 1e-5) if recorded else ("fp16", 0.0)  # half a minute less
    report = add_students(
        copied, {"flash": consistent}, precision=precision, calibration_prompts=["red apple", "a dog", "e"]
    )
    assert capfd.readouterr() == ("", "")  # no bars of NNCF unless stages are asked for
    made = bundle.open_bundle(copied, verify=True)
    assert [student.name for student in made.students] == ["light", "flash"]
    assert (made.students[1].precision, report.parts.keys()) == (precision, {"students/flash"})
    assert least < report.parts["students/flash"].relative_error < 0.35
    after = contents(copied)
    changed = {path.as_posix() for path in after if after[path] != files.get(path)}
    assert changed == {"bundle.json", "students/flash.bin", "students/flash.xml"}
    assert np.array_equal(draw(copied).images[0], picture)
    assert np.array_equal(draw(copied, num_inference_steps=2).images[0], light)
    assert draw(copied, num_inference_steps=1).record["student"]["name"] == "flash"
    with pytest.raises(OutputError, match="has a student 'flash' already"):
        add_students(copied, {"flash": consistent})
    add_students(copied, {"light": consistent}, replace=True)
    made = bundle.open_bundle(copied, verify=True)
    assert [(s.name, s.precision, s.contract["method"]) for s in made.students] == [
        ("light", "fp16", "flash"),
        ("flash", precision, "flash"),
    ]
    for changed, words in (
        ("text_encoder", "its text[ _]encoder"),
        ("autoencoder", "its (autoencoder|vae_encoder)"),
    ):
        load.save_pipeline(tmp_path / changed, parts(pipeline, changed=changed), texts={})
        with pytest.raises(CheckpointError, match=rf"student 'other': {words}"):
            add_students(copied, {"other": tmp_path / changed})
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "text_encoder", "autoencoder"}


def foreign_scale(folder):
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.7}))


def foreign_words(folder):
    file = next(path for path in (folder / "tokenizer").iterdir() if path.name == "tokenizer.json")
    file.write_text(file.read_text().replace('"apple"', '"pear"'))


def guided(folder):
    contract = json.loads((folder / "fewstep.json").read_text())
    contract |= {"guidance": "classifier_free", "guidance_scale": 3.0}
    (folder / "fewstep.json").write_text(json.dumps(contract))


def other_family(folder):
    contract = json.loads((folder / "fewstep.json").read_text())
    (folder / "fewstep.json").write_text(json.dumps(contract | {"base_family": "sdxl"}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (foreign_scale, r"its scaling factor differs from the base's \(0.7 instead of 1.5\)"),
        (foreign_words, "its tokenizer differs from the base's"),
        (guided, "its contract has guidance 'classifier_free'"),
        (other_family, "its base family differs from the base's"),
        (lambda folder: shutil.rmtree(folder / "unet"), "config.json"),
    ],
)
def test_a_student_of_another_base_is_refused_before_any_work(
    pipeline, student, copied, spoil, words, tmp_path
):
    from fewstep.models.export import add_students, export

    shutil.copytree(student, tmp_path / "student")
    spoil(tmp_path / "student")
    stages: list[str] = []
    files = contents(copied)
    for attempt in (
        lambda given: export(pipeline, tmp_path / "out", students=given, on_stage=stages.append),
        lambda given: add_students(copied, given, on_stage=stages.append),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            attempt({"spoilt": tmp_path / "student"})
        assert "\n" not in str(caught.value)
    assert stages == []
    assert contents(copied) == files
    assert not (tmp_path / "out").exists()


def test_bad_names_and_folders(pipeline, student, copied, tmp_path):
    from fewstep.models.export import add_students, export

    with pytest.raises(UsageError, match="not a name for a student"):
        export(pipeline, tmp_path / "out", students={"../light": student})
    with pytest.raises(NotFoundError, match="no such folder"):
        add_students(copied, {"more": tmp_path / "nothing"})
    with pytest.raises(NotFoundError, match="not a runtime bundle"):
        add_students(pipeline, {"more": student})
    with pytest.raises(UsageError, match="precision is 'int4'"):
        add_students(copied, {"more": student}, precision="int4")
    (copied / "denoiser.bin").write_bytes(bytes(len((copied / "denoiser.bin").read_bytes())))
    with pytest.raises(CheckpointError, match="recorded hash"):
        add_students(copied, {"more": student})


def test_a_killed_addition_leaves_the_bundle_as_it_was(copied, consistent):
    from fewstep.checkpoint import atomic

    code = (
        "import sys\nfrom fewstep.models.export import add_students\n"
        "add_students(sys.argv[1], {'flash': sys.argv[2]}, on_stage=lambda s: print(s, flush=True))\n"
    )
    files = contents(copied)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(copied), str(consistent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "exporting students/flash" in line:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    assert atomic.sweep(copied.parent)
    assert contents(copied) == files
