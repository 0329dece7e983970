"""What callers see of their requests."""

from __future__ import annotations

import numpy as np

from fewstep.server.a1111.tracking import Tracker
from fewstep.server.orders import Progress

IMAGE = np.zeros((8, 8, 3), dtype=np.uint8)


def progress(step, total, previews=None):
    def preview():
        previews.append(step)
        return IMAGE

    return Progress(
        step=step, total=total, image=0, images=1, seconds=1.0, preview=None if previews is None else preview
    )


def test_a_task_waits_runs_and_ends():
    tracker = Tracker()
    task = tracker.begin("ann", "txt2img", name="mine", orders=2)
    assert (task.share, task.eta, tracker.active("ann")) == (0.0, 0.0, [task])
    task.tell(progress(0, 0))
    assert task.share == 0.01 and task.running  # 0 is what clients take for idle
    task.tell(progress(2, 4))
    assert task.share == 0.25
    task.done += 1
    task.tell(progress(4, 4))
    assert task.share == 1.0 and task.eta == 0.0
    tracker.end(task)
    assert tracker.active("ann") == [] and tracker.find("ann", "mine") is task and task.share == 1.0


def test_the_time_left_follows_its_own_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("fewstep.server.a1111.tracking.time.monotonic", lambda: now[0])
    task = Tracker().begin("ann", "txt2img")
    task.tell(progress(0, 4))
    now[0] += 3.0
    task.tell(progress(1, 4))
    assert task.eta == 9.0


def test_previews_are_made_only_while_somebody_looks():
    now, made = [0.0], []
    tracker = Tracker(clock=lambda: now[0])
    task = tracker.begin("ann", "txt2img")
    task.tell(progress(1, 9, made))
    tracker.look("bob")
    task.tell(progress(2, 9, made))
    assert made == [] and task.preview is None
    tracker.look("ann")
    task.tell(progress(3, 9, made))
    now[0] = 11.0
    task.tell(progress(4, 9, made))
    assert made == [3] and task.preview is IMAGE and task.preview_id == 0
    tracker.end(task)
    assert task.preview is None


def test_tasks_are_their_owners_and_those_that_run_come_first():
    tracker = Tracker()
    first, second = tracker.begin("ann", "txt2img"), tracker.begin("ann", "img2img")
    tracker.begin("bob", "txt2img", name="his")
    second.tell(progress(1, 2))
    assert tracker.active("ann") == [second, first]
    assert tracker.find("ann", "his") is None


def test_few_tasks_that_have_ended_are_remembered():
    tracker = Tracker()
    for index in range(400):
        tracker.end(tracker.begin("ann", "txt2img", name=str(index)))
    assert tracker.find("ann", "399") is not None and tracker.find("ann", "100") is None
