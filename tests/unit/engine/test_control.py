import json

import numpy as np
import pytest

from fewstep.engine import control, starts
from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.control import ControlUse
from fewstep.engine.engine import Engine
from fewstep.engine.masks import Region
from fewstep.engine.request import resolve
from fewstep.errors import NotFoundError, UsageError

IMAGE = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)


class Steered(FakeBackend):
    """Remembers what it was told to be steered by."""

    def __init__(self):
        super().__init__()
        self.uses = []

    def control(self, uses):
        self.uses.append(list(uses))


def folder(root, name, kind="ControlNetModel"):
    path = root / name
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"_class_name": kind}))
    return path


def test_the_picture_has_the_size_that_is_drawn_in_both_passes(tmp_path):
    from fewstep.engine.hires import Hires

    backend = Steered()
    engine = Engine(backend=backend)
    use = ControlUse(folder=folder(tmp_path, "edges"), image=IMAGE[:50], scale=0.5)
    made = engine.generate(
        resolve(engine.info, prompt="", control=[use], hires=Hires(scale=2, upscaler="latent"))
    )
    assert [[one.image.shape for one in uses] for uses in backend.uses] == [[(64, 64, 3)], [(128, 128, 3)]]
    assert backend.uses[0][0].scale == 0.5
    (said,) = made.record["control"]
    assert (said["name"], said["scale"], len(said["image_hash"])) == ("edges", 0.5, 64)
    assert str(tmp_path) not in json.dumps(made.record)


def test_a_request_without_takes_the_former_ones_away(tmp_path):
    backend = Steered()
    engine = Engine(backend=backend)
    use = ControlUse(folder=folder(tmp_path, "edges"), image=IMAGE)
    engine.generate(resolve(engine.info, prompt="", control=[use]))
    plain = engine.generate(resolve(engine.info, prompt=""))
    assert backend.uses[-1] == [] and "control" not in plain.record


def test_it_is_cut_like_the_picture_when_only_a_part_is_drawn(tmp_path):
    info = FakeBackend().info
    whole = np.arange(100 * 120 * 3, dtype=np.uint8).reshape(100, 120, 3)
    start = starts.Start(region=Region(10, 20, 74, 84), whole=whole)
    request = resolve(info, prompt="")
    shown = control.fitted([ControlUse(folder=tmp_path, image=whole)], request, start)
    assert np.array_equal(shown[0].image, whole[20:84, 10:74])
    other = control.fitted([ControlUse(folder=tmp_path, image=IMAGE)], request, start)
    assert np.array_equal(other[0].image, IMAGE)


def test_backends_without_control_networks_refuse(tmp_path, ir_bundle):
    use = ControlUse(folder=folder(tmp_path, "edges"), image=IMAGE)
    for engine in (Engine(backend=FakeBackend()), Engine(ir_bundle, threads=1)):
        with pytest.raises(UsageError, match=r"control 'edges': engine \w+ runs no control networks"):
            engine.generate(resolve(engine.info, prompt="", control=[use]))
        engine.close()


def test_names_are_found_among_the_models(tmp_path, monkeypatch):
    near, far = tmp_path / "near", tmp_path / "far"
    wanted = folder(near, "edges")
    folder(far, "edges")
    pose = folder(far, "pose", "T2IAdapter")
    folder(far, "unet", "UNet2DConditionModel")
    monkeypatch.setenv("FEWSTEP_MODELS", str(far))
    assert control.find("edges", [near]) == wanted
    assert control.find("pose") == pose
    assert control.find(str(pose)) == pose
    with pytest.raises(NotFoundError, match="there are: edges, pose"):
        control.find("unet")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"_class_name": ["ControlNetModel"]}', "[" * 100_000])
def test_a_path_without_a_control_network_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(NotFoundError, match="ControlNetModel or T2IAdapter"):
        control.find(str(tmp_path))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scale": -0.5}, "from 0 to 10"),
        ({"scale": float("nan")}, "control scale is nan"),
        ({"image": IMAGE[..., 0]}, "8-bit RGB"),
        ({"image": IMAGE.astype(np.float32)}, "8-bit RGB"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(tmp_path, given, words):
    use = ControlUse(**{"folder": tmp_path, "image": IMAGE, **given})
    with pytest.raises(UsageError) as caught:
        resolve(FakeBackend().info, prompt="", control=[use])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_there_is_a_limit(tmp_path):
    with pytest.raises(UsageError, match="at most 8"):
        control.resolve([ControlUse(folder=tmp_path, image=IMAGE)] * 9)
