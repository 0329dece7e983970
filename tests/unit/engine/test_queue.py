"""The queue by itself: order, batches, clocks, events and callbacks. What goes wrong: tests/faults/server."""

import asyncio
import threading

import pytest

from fewstep.engine.queue import WorkQueue
from fewstep.errors import Cancelled, Expired, NotReady, QueueFull, UsageError

LONG = 20.0
"""Seconds after which a test has failed; nothing waits that long."""


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Held:
    """A worker whose first call waits until it is let go; it says what it was given."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.calls = []

    def __call__(self, tasks):
        self.calls.append([task.order for task in tasks])
        self.begun.set()
        assert self.go.wait(LONG)
        for task in tasks:
            task.finish(task.order * 2)


@pytest.fixture
def made():
    """Makes queues that are closed at the end, whatever happens."""
    queues = []

    def make(run, **given):
        queues.append(WorkQueue(run, **{"size": 8, **given}))
        return queues[-1]

    yield make
    for queue in queues:
        if isinstance(queue._run, Held):
            queue._run.go.set()
        assert queue.close(LONG)


def doubled(tasks):
    for task in tasks:
        task.finish(task.order * 2)


def test_orders_are_done_one_by_one_in_the_order_of_their_arrival(made):
    held = Held()
    queue = made(held)
    tasks = [queue.submit(number, owner="ada") for number in range(5)]
    assert held.begun.wait(LONG)
    assert [queue.position(task) for task in tasks] == [0, 1, 2, 3, 4]
    assert (queue.depth, queue.running) == (4, 1)
    held.go.set()
    assert [task.result(LONG) for task in tasks] == [0, 2, 4, 6, 8]
    assert held.calls == [[0], [1], [2], [3], [4]]
    assert {task.state for task in tasks} == {"done"} and tasks[0].owner == "ada"
    assert len({task.id for task in tasks}) == 5 and len(tasks[0].id) == 32


def test_a_batch_is_the_oldest_order_and_what_goes_with_it_and_the_rest_keeps_its_order(made):
    held = Held()
    queue = made(held, batch=lambda first, other: first % 2 == other % 2, most=3)
    tasks = [queue.submit(0)]
    assert held.begun.wait(LONG)
    tasks += [queue.submit(number) for number in (1, 2, 3, 4, 5, 7, 9)]
    held.go.set()
    assert [task.result(LONG) for task in tasks] == [0, 2, 4, 6, 8, 10, 14, 18]
    assert held.calls == [[0], [1, 3, 5], [2, 4], [7, 9]]


def test_without_a_batch_rule_and_with_one_that_fails_orders_go_alone(made):
    def broken(first, other):
        raise RuntimeError("no idea")

    for rule in (None, broken):
        held = Held()
        queue = made(held, batch=rule, most=4)
        tasks = [queue.submit(number) for number in range(3)]
        held.go.set()
        assert [task.result(LONG) for task in tasks] == [0, 2, 4]
        assert held.calls == [[0], [1], [2]]


def test_the_batch_rule_and_events_run_without_the_lock(made):
    """Another thread may ask the queue meanwhile: with the lock held, this would wait for ever."""
    free = []

    def ask(*_):
        asker = threading.Thread(target=lambda: free.append(queue.depth))
        asker.start()
        asker.join(LONG)
        assert not asker.is_alive()
        return True

    held = Held()
    queue = made(held, batch=ask, most=2, on_event=ask)
    tasks = [queue.submit(0)]
    assert held.begun.wait(LONG)
    tasks += [queue.submit(1), queue.submit(2)]
    held.go.set()
    assert [task.result(LONG) for task in tasks] == [0, 2, 4]
    assert held.calls == [[0], [1, 2]]
    assert len(free) == 1 + 3 * 3


def test_each_order_of_a_batch_has_its_own_end(made):
    begun, held, ends = threading.Event(), threading.Event(), []

    def run(tasks):
        if tasks[0].order == "first":
            begun.set()
            assert held.wait(LONG)
            tasks[0].finish("first")
            return
        ends.append(len(tasks))
        tasks[0].finish("drawn")
        tasks[1].fail(UsageError("too large"))
        tasks[2].fail(Cancelled("stopped"))
        raise RuntimeError("the last one")

    queue = made(run, batch=lambda first, other: True, most=4)
    queue.submit("first")
    assert begun.wait(LONG)
    tasks = [queue.submit(name) for name in "abcd"]
    held.set()
    assert tasks[0].result(LONG) == "drawn"
    with pytest.raises(UsageError, match="too large"):
        tasks[1].result(LONG)
    with pytest.raises(Cancelled):
        tasks[2].result(LONG)
    with pytest.raises(RuntimeError, match="the last one"):
        tasks[3].result(LONG)
    assert ends == [4]
    assert [task.state for task in tasks] == ["done", "failed", "cancelled", "failed"]


def test_an_order_is_told_of_from_queued_to_finished_before_its_caller_knows(made):
    told = []
    queue = made(doubled, on_event=lambda task, what: told.append((task.order, what, task.state)))
    queue.submit(1).result(LONG)
    assert told == [(1, "queued", "queued"), (1, "started", "running"), (1, "finished", "done")]


def test_what_is_told_may_fail_or_cancel(made, caplog):
    def on_event(task, what):
        if task.order == 1 and what == "queued":
            assert task.cancel()
        raise RuntimeError("no database")

    queue = made(doubled, on_event=on_event)
    with pytest.raises(Cancelled):
        queue.submit(1).result(LONG)
    assert queue.submit(2).result(LONG) == 4
    assert "no database" in caplog.text


def test_callbacks_run_in_the_workers_thread_and_at_once_when_it_is_over(made, caplog):
    held, names = Held(), []
    queue = made(held)
    task = queue.submit(3)

    def done(ended):
        names.append((threading.current_thread().name, ended.result(0)))
        raise RuntimeError("a bad callback")

    task.add_done_callback(done)
    held.go.set()
    task.result(LONG)
    assert queue.submit(1).result(LONG) == 2  # the worker goes on
    task.add_done_callback(done)
    assert names == [("fewstep-worker", 6), (threading.current_thread().name, 6)]
    assert "a bad callback" in caplog.text


def test_asyncio_can_wait_for_it_and_leaves_it_alone_when_it_is_cancelled(made):
    held = Held()
    queue = made(held)

    async def wait():
        task = queue.submit(4)
        outer = asyncio.wrap_future(task.future)
        outer.cancel()
        held.go.set()
        return await asyncio.wrap_future(task.future)

    assert asyncio.run(wait()) == 8


def test_times_are_of_the_given_clock(made):
    clock, held = Clock(), Held()
    queue = made(held, clock=clock)
    first, second = queue.submit(1), queue.submit(2)
    assert held.begun.wait(LONG)
    clock.now += 3.0
    held.go.set()
    second.result(LONG)
    assert (first.waited, first.seconds) == (0.0, 3.0)
    assert (second.waited, second.seconds) == (3.0, 0.0)


def test_when_to_come_again_is_told_from_the_last_orders(made):
    clock, begun, go = Clock(), threading.Semaphore(0), threading.Semaphore(0)

    def run(tasks):
        begun.release()
        assert go.acquire(timeout=LONG)
        doubled(tasks)

    queue = made(run, size=2, clock=clock)
    tasks = [queue.submit(number) for number in range(3)]
    assert begun.acquire(timeout=LONG)
    with pytest.raises(QueueFull, match=r"2 orders wait: try again in 1 s") as none_yet:
        queue.submit(3)
    assert none_yet.value.retry_after == 1.0
    clock.now += 8.0
    go.release()
    assert begun.acquire(timeout=LONG)
    tasks.append(queue.submit(3))
    with pytest.raises(QueueFull, match="try again in 16 s") as full:
        queue.check_room()
    assert full.value.retry_after == 16.0
    for _ in range(3):
        go.release()
    assert [task.result(LONG) for task in tasks] == [0, 2, 4, 6]


def test_a_result_can_be_waited_for_in_vain(made):
    held = Held()
    task = made(held).submit(1)
    with pytest.raises(TimeoutError):
        task.result(0)


def test_a_queue_that_waits_notices_a_deadline_by_itself(made):
    held = Held()
    queue = made(held)
    queue.submit(1)
    with pytest.raises(Expired, match="did not start by its deadline"):
        queue.submit(2, deadline=0.01).result(LONG)


def test_several_workers_have_an_order_each(made):
    together = threading.Barrier(3)

    def run(tasks):
        together.wait(LONG)
        doubled(tasks)

    queue = made(run, workers=2, size=1)
    tasks = [queue.submit(1), queue.submit(2)]
    together.wait(LONG)
    assert sorted(task.result(LONG) for task in tasks) == [2, 4]


def test_a_closed_queue_takes_nothing_and_closing_again_is_nothing(made):
    queue = made(doubled)
    assert queue.close(LONG) and queue.close(LONG)
    assert not queue.healthy
    with pytest.raises(NotReady, match="stopping"):
        queue.submit(1)
