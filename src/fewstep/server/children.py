"""Long work: trainings, distillations and the like, each as a process of its own, one at a time.

An order is checked and recorded before it is acknowledged, as pictures are (`fewstep.server.generation`), and
waits in a queue of its own. Every job has a folder, where its process keeps what it needs to go on: one that
was cut off or cancelled is done again from where it was. Callers hold a `ChildJob`, which is watched and
cancelled as a `fewstep.server.pending.Pending` is.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.checkpoint import atomic
from fewstep.engine.queue import WorkQueue
from fewstep.errors import (
    Cancelled,
    ConflictError,
    DataError,
    FewstepError,
    NotFoundError,
    NotReady,
    RunError,
)
from fewstep.server import childprocess, products, worklist, workplan
from fewstep.server.childjob import ChildJob, order_of
from fewstep.server.redaction import Redactor
from fewstep.server.schemas.work import EnlargeBody, WorkBody

if TYPE_CHECKING:
    from fewstep.engine.tasks import Task
    from fewstep.server.childprocess import Said
    from fewstep.server.datasets import Datasets
    from fewstep.server.history import History
    from fewstep.server.jobstore import JobStore
    from fewstep.server.settings import ServerSettings
    from fewstep.server.tables import JobRow
    from fewstep.server.workplan import Plan, Run

_log = logging.getLogger("fewstep.server")

QUEUE = 8
"""Orders of long work that may wait."""
CONFIG = "config.json"
_CUT_OFF = "the server stopped before this job was finished; it can be done again and goes on where it was"
_MESSAGE = 300


class Children:
    """See the module. Safe to use from several threads; calls wait for the database and the disk.

    Args:
        settings: folders, threads, and the seconds that a process has to save and stop.
        jobs: where orders are recorded.
        history: where pictures come from and go to.
        datasets: what is trained on.
        size: orders that may wait.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        jobs: JobStore,
        history: History,
        datasets: Datasets,
        size: int = QUEUE,
    ) -> None:
        self._settings, self._jobs, self._history, self._datasets = settings, jobs, history, datasets
        self._runs = runs_folder(settings)
        self._redact = Redactor(settings)
        self._find = workplan.finder(settings)
        self._lock = threading.Lock()
        self._pending: dict[str, ChildJob] = {}
        self.queue: WorkQueue[ChildJob, dict[str, Any]] = WorkQueue(self._run, size=size)

    def submit(
        self,
        body: WorkBody,
        *,
        owner: str = "",
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
    ) -> str:
        """Check an order, record it, put it into the queue, and return the id of its job.

        Raises:
            NotFoundError: a model, dataset or picture that is not there.
            UsageError, DataError, TooLarge, DependencyError: it cannot be done.
            ConflictError: the name of what is made is taken, or the idempotency key was used for another.
            QueueFull, NotReady: not now.
            OutputError: it cannot be recorded.
        """
        if idempotency_key is not None:
            known = self._jobs.find_idempotent(owner, idempotency_key, fingerprint, kind=body.kind)
            if known is not None:
                return known.id
        pictures = worklist.pictures(body, owner, self._history, self._settings)
        self._plan(body, workplan.Run(folder=self._runs / "new"), owner)
        self.queue.check_room()
        row, new = self._jobs.add(
            {"body": body.model_dump(mode="json", exclude={"image", "files"})}, kind=body.kind,
            client="native", owner=owner, idempotency_key=idempotency_key, fingerprint=fingerprint,
        )  # fmt: skip
        if not new:
            return row.id
        try:
            run = self.run(row.id)
            plan = self._plan(body, run, owner)
            for name, data in pictures.items():
                atomic.write_bytes(run.inputs / name, data)
            self._queue(ChildJob(row.id, owner, body, plan))
        except BaseException as error:
            self._state(row.id, "failed", error=self._shown(error))
            raise
        return row.id

    def again(self, row: JobRow) -> None:
        """Queue a job that came to nothing once more; it goes on with what is in its folder.

        Raises:
            As `submit`; DataError: its record is of another version of fewstep, or its pictures are gone.
        """
        body = order_of(row)
        run = self.run(row.id)
        if isinstance(body, EnlargeBody) and not run.inputs.is_dir():
            raise DataError("the pictures of this job are gone: order it anew")
        plan = self._plan(body, run, row.owner, resume=run.work.is_dir(), but=row.id)
        self.queue.check_room()
        self._jobs.requeue(row.id, row.owner)
        try:
            self._queue(ChildJob(row.id, row.owner, body, plan))
        except FewstepError as error:
            self._state(row.id, "failed", error=str(error))
            raise

    def pending(self, job_id: str) -> ChildJob | None:
        """Work that has not ended, by the id of its job."""
        with self._lock:
            return self._pending.get(job_id)

    def waiting(self) -> list[ChildJob]:
        """All work that has not ended."""
        with self._lock:
            return list(self._pending.values())

    def position(self, child: ChildJob) -> int:
        """1 for what is next, and so on; 0 when it does not wait."""
        return 0 if child.task is None else self.queue.position(child.task)

    def uses(self, owner: str, dataset: str) -> bool:
        """Whether work that has not ended needs a dataset."""
        with self._lock:
            waiting = list(self._pending.values())
        return any(one.owner == owner and getattr(one.body, "dataset", None) == dataset for one in waiting)

    def run(self, job_id: str) -> Run:
        """The folder of a job."""
        return workplan.Run(folder=self._runs / job_id)

    def samples(self, job_id: str) -> dict[str, Path]:
        """Pictures that a job has drawn so far, by name; those of a training are numbered by images seen."""
        return self.run(job_id).samples()

    def log(self, job_id: str, lines: int) -> list[str]:
        """The last lines of what a job has said, without paths."""
        path = self.run(job_id).folder / childprocess.STDERR
        return [self._redact(line) for line in childprocess.tail(path, lines)]

    def begin_drain(self) -> None:
        """Take nothing more, and tell what runs to save and stop; `close` waits for it."""
        self.queue.drain(0.0)

    def close(self) -> None:
        """Stop everything, after the grace of the settings by force, and wait for it."""
        self.queue.close()

    def _plan(
        self, body: WorkBody, run: Run, owner: str, *, resume: bool = False, but: str | None = None
    ) -> Plan:
        plan = worklist.plan(
            body, run, find=self._find, dataset=lambda name: self._dataset(owner, name), resume=resume,
            threads=self._settings.threads,
        )  # fmt: skip
        products.check_free(self._settings, plan)
        with self._lock:
            others = [one for one in self._pending.values() if one.id not in (but, run.folder.name)]
        places = products.targets(self._settings, plan)
        if places & {place for one in others for place in products.targets(self._settings, one.plan)}:
            raise ConflictError(f"name: another job is making a {plan.product} called {plan.name!r}; wait")
        return plan

    def _dataset(self, owner: str, name: str) -> Path:
        folder = self._datasets.folder(owner, name)
        if not self._datasets.summary(owner, name).pictures:
            raise NotFoundError(f"dataset {name!r} has no pictures: send some first")
        return folder

    def _queue(self, child: ChildJob) -> None:
        with self._lock:
            self._pending[child.id] = child
        try:
            child.task = self.queue.submit(child, owner=child.owner)
        except FewstepError:
            self._forget(child)
            raise
        child.task.add_done_callback(lambda task: self._ended(child, task))

    def _run(self, tasks: Sequence[Task[dict[str, Any]]]) -> None:
        """In the worker's thread: the commands of one order, one after the other."""
        (task,) = tasks
        child: ChildJob = task.order
        child.task = task  # `_queue` may not have come to it yet
        self._state(child.id, "running")
        child.begin()
        # Another server may have found that the one before is gone sooner than its process has.
        childprocess.stop_orphans(self._runs, only=child.id)
        run = self.run(child.id)
        for folder in (run.folder, run.work.parent):
            folder.mkdir(parents=True, exist_ok=True)
        atomic.remove_folder(run.made)
        run.made.mkdir()
        (run.folder / childprocess.STDERR).unlink(missing_ok=True)  # of the time before
        if child.plan.recipe is not None:
            atomic.write_text(run.recipe, child.plan.recipe)
        for command in child.plan.commands:
            if task.cancelled():
                raise Cancelled("stopped by request")
            child.tell(0, 0, None)  # it counts for itself, and begins
            self._one(child, task, run, command)
        result = products.publish(
            self._settings,
            child.plan,
            run,
            history=self._history,
            owner=child.owner,
            job_id=child.id,
            redact=self._redact,
        )
        task.finish(result)

    def _one(self, child: ChildJob, task: Task[dict[str, Any]], run: Run, command: workplan.Command) -> None:
        config = run.folder / CONFIG
        atomic.write_text(config, json.dumps(command.to_json(), indent=1))

        def told(said: Said) -> None:
            message = self._redact(said.text)[:_MESSAGE]
            now = child.progress
            before = (0, 0) if now is None else (now.step, now.total)
            child.tell(
                *before if said.done is None or said.total is None else (said.done, said.total), message
            )

        try:
            ended = childprocess.run(
                config, run.folder, stop=task.cancelled, told=told, grace=self._settings.grace,
                variables=childprocess.environment(
                    workplan.search_path(self._settings), network=child.plan.product == "download"
                ),
            )  # fmt: skip
        except OSError as error:
            raise RunError(f"the process cannot be started ({error.strerror})") from error
        if ended.code == 0:
            return
        if ended.stopped:
            raise Cancelled("stopped by request; done again, it goes on where it was")
        if ended.code < 0:
            raise RunError(
                f"the process was killed by signal {-ended.code}; if that was for want of memory, give it "
                "less to do"
            )
        raise RunError(self._redact(ended.error or f"the process ended with code {ended.code}"))

    def _ended(self, child: ChildJob, task: Task[dict[str, Any]]) -> None:
        try:
            result = task.result(0)
        except BaseException as error:
            state = "failed"
            if isinstance(error, Cancelled | NotReady):
                state = "cancelled" if isinstance(error, Cancelled) else "cut_off"
            elif not isinstance(error, FewstepError):
                _log.error("job %s failed", child.id, exc_info=error)
            shown = _CUT_OFF if state == "cut_off" else self._shown(error)
            self._state(child.id, state, error=shown)
            self._forget(child)
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                child.future.set_exception(error)
        else:
            self._state(child.id, "done", result=result)
            self._forget(child)
            child.future.set_result(result)

    def _shown(self, error: BaseException) -> str:
        known = isinstance(error, FewstepError)
        return self._redact(str(error)) if known else "a bug of fewstep; see the server's log"

    def _forget(self, child: ChildJob) -> None:
        with self._lock:
            if self._pending.get(child.id) is child:  # and not the same job, done again already
                del self._pending[child.id]

    def _state(self, job_id: str, state: str, **values: Any) -> None:
        """Record a state; a database that fails now is logged, and stops no work."""
        try:
            self._jobs.set_state(job_id, state, **values)
        except Exception:
            _log.exception("state %s of job %s cannot be recorded", state, job_id)


def runs_folder(settings: ServerSettings) -> Path:
    """Where the jobs' folders are."""
    return settings.data / "runs"
