"""Orders come back from JSON as they were; their pictures are files that are checked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fewstep.engine.adapters import AdapterUse
from fewstep.engine.hires import Hires
from fewstep.engine.outpaint import Outpaint
from fewstep.errors import DataError, UsageError
from fewstep.server import orderfiles
from fewstep.server.orders import Order, Upscale

PICTURE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
MASK = np.zeros((24, 32), np.uint8)
ORDER = Order(
    settings={
        "prompt": "ein Fuchs \U0001f98a", "seed": 2**40, "strength": 0.5, "init_image": PICTURE, "mask": MASK,
        "adapters": (AdapterUse(name="gold", weight=0.5), AdapterUse(name="night")),
        "hires": Hires(size=(64, 48)),
        "outpaint": Outpaint(left=8), "only_masked": False,
    },
    model="emoji-128", owner="anna", client="a1111", upscale=Upscale(width=512, height=512), save=False,
    parent="ab" * 16, deadline=3.5, extra={"note": "x"},
)  # fmt: skip


def again(order: Order, folder: Path, **changed: object) -> Order:
    values = json.loads(json.dumps(orderfiles.to_json(order, folder))) | changed
    return orderfiles.from_json(values, folder, owner=order.owner, job_id="7" * 32)


def test_an_order_comes_back(tmp_path: Path) -> None:
    found = again(ORDER, tmp_path)
    assert set(found.settings) == set(ORDER.settings)
    for name, value in ORDER.settings.items():
        np.testing.assert_array_equal(found.settings[name], value)
    assert found.settings["adapters"] == ORDER.settings["adapters"]
    assert found.settings["hires"] == ORDER.settings["hires"]
    assert found.settings["init_image"].dtype == np.uint8
    assert found.job_id == "7" * 32
    for field in dataclasses.fields(Order):
        if field.name not in ("settings", "job_id"):
            assert getattr(found, field.name) == getattr(ORDER, field.name), field.name


def test_the_same_picture_is_kept_once(tmp_path: Path) -> None:
    again(ORDER, tmp_path)
    again(dataclasses.replace(ORDER, owner="ben"), tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_a_changed_or_lost_picture_is_noticed(tmp_path: Path) -> None:
    values = orderfiles.to_json(ORDER, tmp_path)
    path = tmp_path / f"{values['settings']['init_image']['picture']}.png"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DataError, match="was changed"):
        orderfiles.from_json(values, tmp_path, owner="")
    path.unlink()
    with pytest.raises(DataError, match="is gone"):
        orderfiles.from_json(values, tmp_path, owner="")


def test_a_record_of_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        again(ORDER, tmp_path, colour="red")
    with pytest.raises(DataError, match="cannot be read"):
        orderfiles.from_json({"settings": {}}, tmp_path, owner="")


def test_what_has_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be part"):
        orderfiles.to_json(Order(settings={"prompt": object()}), tmp_path)


def test_pictures_that_no_job_needs_are_deleted(tmp_path: Path) -> None:
    kept = orderfiles.to_json(Order(settings={"prompt": "", "init_image": PICTURE}), tmp_path)
    orderfiles.to_json(Order(settings={"prompt": "", "init_image": PICTURE[::-1]}), tmp_path)
    assert orderfiles.sweep(tmp_path, [kept]) == 1
    assert orderfiles.from_json(kept, tmp_path, owner="").settings["init_image"].shape == (24, 32, 3)
    assert orderfiles.sweep(tmp_path / "missing", []) == 0
