"""Reliability O01 to O10 and O20 at the level of the queue; the same through HTTP: test_serving*.py."""

import threading
import time

import pytest

from fewstep.engine.backends.fake import FakeBackend
from fewstep.engine.engine import Engine
from fewstep.engine.queue import WorkQueue
from fewstep.engine.request import resolve
from fewstep.errors import Cancelled, EngineError, Expired, NotReady, QueueFull

LONG = 20.0
"""Seconds after which a test has failed; nothing waits that long."""


class Clock:
    """Time that stands still until a test moves it."""

    now = 1000.0

    def __call__(self):
        return self.now


class Drawing:
    """A queue that draws with the fake engine, which is held at every step until it is let on."""

    def __init__(self, **given):
        self.steps = threading.Semaphore(0)
        self.at_step = threading.Semaphore(0)
        held = self

        class Backend(FakeBackend):
            def denoise(self, x, t, conditions, student=None):
                held.at_step.release()
                assert held.steps.acquire(timeout=LONG)
                return super().denoise(x, t, conditions, student)

        self.backend = Backend()
        self.engine = Engine(backend=self.backend)
        self.told = []
        self.queue = WorkQueue(
            self._run,
            on_event=lambda task, what: self.told.append((what, task.state)),
            **{"size": 8, **given},
        )

    def _run(self, tasks):
        for task in tasks:
            task.finish(self.engine.generate(task.order, cancelled=task.cancelled))

    def request(self, seed=0):
        return resolve(self.engine.info, prompt="a dog", seed=seed)

    def submit(self, **given):
        return self.queue.submit(self.request(), **given)

    def reach_step(self):
        assert self.at_step.acquire(timeout=LONG)

    def let_on(self, steps=1):
        for _ in range(steps):
            self.steps.release()


@pytest.fixture
def drawing(request):
    made = Drawing(**getattr(request, "param", {}))
    yield made
    made.let_on(1000)
    assert made.queue.close(LONG)


@pytest.fixture
def clock():
    return Clock()


def test_o01_exactly_as_many_are_taken_as_the_queue_has_room_for(drawing):
    barrier, taken, refused = threading.Barrier(50), [], []

    def client(seed):
        barrier.wait(LONG)
        began = time.perf_counter()
        try:
            taken.append(drawing.queue.submit(drawing.request(seed)))
        except QueueFull as error:
            refused.append((time.perf_counter() - began, error.retry_after))

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(50)]
    for one in clients:
        one.start()
    for one in clients:
        one.join(LONG)
    drawing.reach_step()
    assert (drawing.queue.running, drawing.queue.depth) == (1, 8)
    assert (len(taken), len(refused)) == (9, 41)
    assert all(retry >= 1.0 for _, retry in refused)
    drawing.let_on(1000)
    assert all(len(task.result(LONG).images) == 1 for task in taken)
    assert drawing.backend.calls == 9 * 5
    assert drawing.told.count(("finished", "done")) == 9


@pytest.mark.parametrize("drawing", [{"clock": Clock()}], indirect=True)
def test_o02_an_order_that_waited_past_its_deadline_never_starts(drawing):
    first, late, later = drawing.submit(), drawing.submit(deadline=5.0), drawing.submit(deadline=50.0)
    drawing.reach_step()
    drawing.queue._clock.now += 5.0
    drawing.queue.tick()
    with pytest.raises(Expired, match=r"waited 5.0 s and did not start"):
        late.result(LONG)
    assert late.state == "expired" and late.started is None and drawing.queue.depth == 1
    drawing.let_on(1000)
    assert first.result(LONG) and later.result(LONG)
    assert drawing.backend.calls == 10


@pytest.mark.parametrize("drawing", [{"clock": Clock()}], indirect=True)
def test_o03_an_order_that_runs_past_its_deadline_stops_at_the_next_step(drawing):
    task, after = drawing.submit(deadline=5.0), drawing.submit()
    drawing.reach_step()
    drawing.let_on()
    drawing.reach_step()
    drawing.queue._clock.now += 5.0
    drawing.let_on()
    with pytest.raises(Expired, match=r"not done by its deadline, 5.0 s after it began \(.*after 2 of 5"):
        task.result(LONG)
    assert task.state == "expired" and drawing.backend.calls == 2
    drawing.let_on(1000)
    assert after.result(LONG).images


def test_o04_an_order_that_is_cancelled_while_it_waits_never_runs(drawing):
    first, second = drawing.submit(), drawing.submit()
    drawing.reach_step()
    assert second.cancel()
    assert second.state == "cancelled" and drawing.queue.depth == 0
    with pytest.raises(Cancelled):
        second.result(0)
    drawing.let_on(1000)
    assert first.result(LONG) and drawing.submit().result(LONG)
    assert drawing.backend.calls == 10
    assert drawing.told.count(("started", "running")) == 2


def test_o05_o06_an_order_that_is_cancelled_while_it_runs_stops_at_the_next_step(drawing):
    first, second = drawing.submit(), drawing.submit()
    drawing.reach_step()
    assert first.cancel()
    drawing.let_on()
    with pytest.raises(Cancelled, match="after 1 of 5 steps"):
        first.result(LONG)
    assert first.state == "cancelled" and drawing.backend.calls == 1
    drawing.let_on(1000)
    assert second.result(LONG).images


def test_o07_cancelling_again_is_the_same_and_after_the_end_it_is_nothing(drawing):
    waits, done = drawing.submit(), drawing.submit()
    drawing.reach_step()
    assert waits.cancel() and waits.cancel()
    drawing.let_on(1000)
    assert done.result(LONG)
    assert not done.cancel() and done.state == "done" and done.result(0)
    with pytest.raises(Cancelled):
        waits.result(LONG)
    assert not waits.cancel() and waits.state == "cancelled"
    assert drawing.told.count(("finished", "cancelled")) == 1


@pytest.mark.parametrize(
    ("raised", "seen"),
    [(EngineError("NaN"), EngineError), (KeyError("a bug"), KeyError), (MemoryError(), NotReady)],
)
def test_o08_an_exception_fails_its_order_alone(raised, seen):
    def run(tasks):
        if tasks[0].order:
            raise tasks[0].order
        tasks[0].finish("drawn")

    queue = WorkQueue(run, size=8)
    bad, good = queue.submit(raised), queue.submit(None)
    with pytest.raises(seen):
        bad.result(LONG)
    assert bad.state == "failed" and good.result(LONG) == "drawn"
    assert queue.healthy and queue.close(LONG)


def test_o08_an_order_that_the_worker_forgets_fails():
    queue = WorkQueue(lambda tasks: None, size=8)
    with pytest.raises(EngineError, match="came to no end"):
        queue.submit(1).result(LONG)
    assert queue.close(LONG)


def test_o09_a_worker_that_dies_fails_what_it_had_and_is_started_again_until_it_is_broken(clock):
    begun, go = threading.Semaphore(0), threading.Semaphore(0)

    def run(tasks):
        begun.release()
        assert go.acquire(timeout=LONG)
        if tasks[0].order == "die":
            raise SystemExit(3)
        tasks[0].finish("drawn")

    queue = WorkQueue(run, size=8, restarts=2, backoff=1.0, clock=clock)
    go.release()
    assert queue.submit("draw").result(LONG) == "drawn"
    for death, pause in enumerate((1.0, 2.0), start=1):
        task, waits = queue.submit("die"), queue.submit("draw")
        assert begun.acquire(timeout=LONG)
        go.release()
        for one in (task, waits):
            with pytest.raises(NotReady, match="broke down"):
                one.result(LONG)
        assert not queue.healthy and not queue.broken, death
        with pytest.raises(NotReady, match="being started again"):
            queue.submit("draw")
        clock.now += pause - 0.01
        queue.tick()
        assert not queue.healthy  # not before its time
        clock.now += 0.01
        queue.tick()
        assert queue.healthy
    last = queue.submit("die")
    go.release()
    with pytest.raises(NotReady):
        last.result(LONG)
    assert queue.broken and not queue.healthy
    clock.now += 1000.0
    queue.tick()
    assert not queue.healthy
    with pytest.raises(NotReady, match="3 times: restart the server"):
        queue.submit("draw")
    assert queue.close(LONG)


def test_o09_a_success_counts_deaths_from_0_again_and_the_restart_comes_by_itself():
    def run(tasks):
        if tasks[0].order == "die":
            raise SystemExit(3)
        tasks[0].finish("drawn")

    queue = WorkQueue(run, size=8, restarts=1, backoff=0.0)
    for _ in range(3):
        with pytest.raises(NotReady):
            queue.submit("die").result(LONG)
        with queue._changed:
            assert queue._changed.wait_for(lambda: queue.healthy, LONG)
        assert queue.submit("draw").result(LONG) == "drawn"
    assert queue.close(LONG)


def test_o09_a_batch_rule_that_kills_the_worker_loses_nothing():
    held = threading.Event()

    def rule(first, other):
        raise SystemExit(3)

    def run(tasks):
        assert held.wait(LONG)
        tasks[0].finish("drawn")

    queue = WorkQueue(run, size=8, batch=rule, most=2, restarts=0)
    tasks = [queue.submit(number) for number in range(3)]
    held.set()
    ends = set()
    for task in tasks:
        try:
            ends.add(task.result(LONG))
        except NotReady:
            ends.add("not ready")
    assert "not ready" in ends and queue.broken and queue.close(LONG)


def test_o10_draining_lets_running_orders_end_and_sends_waiting_ones_away(drawing):
    first, second = drawing.submit(), drawing.submit()
    drawing.reach_step()
    calm = []
    drainer = threading.Thread(target=lambda: calm.append(drawing.queue.drain(LONG)))
    drainer.start()
    with pytest.raises(NotReady, match="stopping"):
        second.result(LONG)
    with pytest.raises(NotReady, match="stopping"):
        drawing.submit()
    assert first.state == "running"
    drawing.let_on(1000)
    drainer.join(LONG)
    assert calm == [True] and first.result(LONG).images
    assert drawing.backend.calls == 5


def test_o10_when_grace_is_over_running_orders_stop_at_the_next_step(drawing):
    task = drawing.submit()
    drawing.reach_step()
    assert drawing.queue.drain(0.0) is False
    drawing.let_on()
    with pytest.raises(NotReady, match="stopping"):
        task.result(LONG)
    assert drawing.backend.calls == 1
    assert drawing.queue.close(LONG)
    assert not [one for one in threading.enumerate() if one in drawing.queue._threads]


def test_o10_closing_in_the_middle_of_a_drain_ends_it(drawing):
    task = drawing.submit()
    drawing.reach_step()
    drainer = threading.Thread(target=drawing.queue.drain, args=(600.0,))
    drainer.start()
    closer = threading.Thread(target=drawing.queue.close)
    closer.start()
    with drawing.queue._changed:
        assert drawing.queue._changed.wait_for(task.cancelled, LONG)
    drawing.let_on()
    for thread in (drainer, closer):
        thread.join(LONG)
        assert not thread.is_alive()
    assert drawing.backend.calls == 1


def test_o20_the_systems_clock_decides_nothing(drawing, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    task = drawing.submit(deadline=600.0)
    drawing.reach_step()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    drawing.queue.tick()
    assert not task.cancelled()
    drawing.let_on(1000)
    assert task.result(LONG).images
