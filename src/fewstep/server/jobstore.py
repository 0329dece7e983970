"""Jobs in the database: recorded before they are acknowledged, found again after a crash.

A job belongs to the server that has it in its queue. `JobStore.recover` looks for unfinished jobs whose
server is gone (`fewstep.server.presence`), and marks them ``cut_off``. So several servers may share a
database; each calls `recover` when it starts and now and then, because the death of a server on another
machine shows only after a while.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import and_, func, or_
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, col, delete, select, update

from fewstep.errors import ConflictError, NotFoundError, UsageError
from fewstep.server.database import Database
from fewstep.server.ids import is_id, new_id
from fewstep.server.presence import Presence
from fewstep.server.tables import JobRow, ServerRow, storable

UNFINISHED: Final = frozenset({"queued", "running"})
STATES: Final = frozenset({"done", "failed", "cancelled", "expired", "cut_off"}) | UNFINISHED
AGAIN: Final = frozenset({"cut_off", "failed", "cancelled", "expired"})
"""States of jobs that `JobStore.requeue` takes."""
_MAX_KEY = 255
_JOBS: Final = SQLModel.metadata.tables["jobs"]
_ADD: Final = _JOBS.insert()


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """By the names of columns in place of those of attributes."""
    names = {"order": "order_json", "result": "result_json"}
    return {names.get(name, name): value for name, value in values.items()}


class JobStore:
    """Jobs of one server, in a database that other servers may use too.

    Calls wait for the database: make them in a thread. ``owner`` None in `get` and `list` means everybody's
    jobs; an id of another owner is as unknown as one that never was.
    """

    def __init__(
        self, database: Database, *, clock: Callable[[], float] = time.time, host: str | None = None
    ) -> None:
        """Register this process as a server.

        Args:
            database: where the rows are.
            clock: seconds since 1970.
            host: name of this machine; for tests.

        Raises:
            OutputError, NotReady: the database cannot be written.
        """
        self._database = database
        self._clock = clock
        with database.writing() as session:
            self._presence = Presence(session, clock=clock, host=host)

    @property
    def id(self) -> str:
        """Names this server in the database, until it is closed."""
        return self._presence.id

    def add(
        self,
        order: Mapping[str, Any],
        *,
        kind: str,
        client: str,
        owner: str = "",
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
    ) -> tuple[JobRow, bool]:
        """Record a job as queued; when this returns it is on the disk.

        Args:
            order: what was asked, JSON-ready: enough to do it again.
            kind: ``generate``, ``train`` and so on.
            client: API that was asked.
            owner: name of the key that asked.
            idempotency_key: the caller's name for this one order.
            fingerprint: of the request, see `fingerprint`; needed with a key.

        Returns:
            The job, and whether it is new: with a key that was used before for the same order it is the one
            of then.

        Raises:
            ConflictError: the key was used for another order.
            UsageError: the key is empty or longer than 255 characters.
            OutputError, NotReady: the database cannot be written; nothing is recorded.
        """
        if idempotency_key is not None:
            if not 0 < len(idempotency_key) <= _MAX_KEY or not idempotency_key.isprintable():
                raise UsageError(
                    f"idempotency key of {len(idempotency_key)} characters: give 1 to {_MAX_KEY} that print"
                )
            if (known := self.find_idempotent(owner, idempotency_key, fingerprint, kind=kind)) is not None:
                return known, False
        made: dict[str, Any] = {
            "id": new_id(),
            "owner": owner,
            "kind": kind,
            "client": client,
            "state": "queued",
            "order": dict(order),
            "created": self._clock(),
            "idempotency_key": idempotency_key,
            "fingerprint": fingerprint,
            "server": self.id,
        }
        try:
            with self._database.writing() as session:
                self._presence.beat(session)
                session.connection().execute(_ADD, _columns(made | {"attempts": 1}))
        except IntegrityError:
            if idempotency_key is None:
                raise
            # The same request came twice at the same moment, and the other was first.
            known = self.find_idempotent(owner, idempotency_key, fingerprint, kind=kind)
            if known is None:
                raise
            return known, False
        return JobRow(**made), True

    def find_idempotent(
        self, owner: str, key: str, fingerprint: str | None, *, kind: str | None = None
    ) -> JobRow | None:
        """Return the job that an owner's key was used for, None for a new key.

        Raises:
            ConflictError: it was used for an order of another fingerprint or kind.
        """
        with self._database.reading() as session:
            job = session.exec(
                select(JobRow).where(JobRow.owner == owner, JobRow.idempotency_key == key)
            ).first()
        if job is not None and (job.fingerprint != fingerprint or (kind is not None and job.kind != kind)):
            raise ConflictError(
                "the idempotency key was used for another request: send that one again, or give a new key"
            )
        return job

    def set_state(
        self,
        job_id: str,
        state: str,
        *,
        result: Mapping[str, Any] | None = None,
        error: str | None = None,
        started: float | None = None,
    ) -> bool:
        """Record what became of a job; a job that is finished stays as it is.

        One that was cut off may still turn out ``done``: its server was slow to be seen, not gone.

        Args:
            job_id: of a job.
            state: ``running`` or a final state.
            result: JSON-ready, with ``done``.
            error: one line, with ``failed`` and the like.
            started: when it began, for one that ended before it was recorded as ``running``.

        Returns:
            Whether it was recorded: False for a job that was finished already.

        Raises:
            NotFoundError: there is no such job.
            UsageError: there is no such state.
        """
        if state not in STATES - {"queued"}:
            raise UsageError(f"state is {state!r}: give one of {', '.join(sorted(STATES - {'queued'}))}")
        if not is_id(job_id):
            raise _unknown()
        now = self._clock()
        before = {"queued"} if state == "running" else UNFINISHED
        if state == "done":
            before = before | {"cut_off"}
        values: dict[str, Any] = {"state": state, "error": None if error is None else storable(error)}
        if state == "running":
            values["started"] = now
        else:
            values |= {"finished": now, "result": None if result is None else dict(result)}
            if started is not None:
                values["started"] = func.coalesce(_JOBS.c.started, started)
        # By the table and not by its class, whose objects nobody holds: a third of the time.
        change = _JOBS.update().where(_JOBS.c.id == job_id, _JOBS.c.state.in_(sorted(before)))
        with self._database.writing() as session:
            self._presence.beat(session)
            if session.connection().execute(change.values(_columns(values))).rowcount:
                return True
            if session.get(JobRow, job_id) is None:
                raise _unknown()
            return False

    def discard(self, job_id: str) -> None:
        """Forget a job that was recorded and then not taken: nobody was told of it."""
        with self._database.writing() as session:
            session.exec(delete(JobRow).where(col(JobRow.id) == job_id, col(JobRow.state) == "queued"))

    def get(self, job_id: str, owner: str | None) -> JobRow:
        """Return a job.

        Raises:
            NotFoundError: there is none with this id, or it is another owner's.
        """
        if not is_id(job_id):
            raise _unknown()
        with self._database.reading() as session:
            job = session.get(JobRow, job_id)
        if job is None or (owner is not None and job.owner != owner):
            raise _unknown()
        return job

    def list(
        self,
        owner: str | None = None,
        *,
        kind: str | None = None,
        states: Collection[str] | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> Sequence[JobRow]:
        """Return jobs, newest first.

        Args:
            owner: whose; None for everybody's.
            kind: only jobs of this kind.
            states: only jobs in one of these states.
            limit: 1 to 1000.
            before: id of the last job of the page before this one.

        Raises:
            UsageError: ``limit`` is out of range.
            NotFoundError: ``before`` is no job of this owner.
        """
        if not 1 <= limit <= 1000:
            raise UsageError(f"limit is {limit}: give 1 to 1000")
        query = select(JobRow)
        if owner is not None:
            query = query.where(JobRow.owner == owner)
        if kind is not None:
            query = query.where(JobRow.kind == kind)
        if states is not None:
            query = query.where(col(JobRow.state).in_(states))
        if before is not None:
            last = self.get(before, owner)
            query = query.where(
                or_(
                    col(JobRow.created) < last.created,
                    and_(col(JobRow.created) == last.created, col(JobRow.id) < last.id),
                )
            )
        query = query.order_by(col(JobRow.created).desc(), col(JobRow.id).desc()).limit(limit)
        with self._database.reading() as session:
            return [*session.exec(query)]

    def recover(self) -> Sequence[JobRow]:
        """Mark unfinished jobs of servers that are gone as ``cut_off``, and return them, oldest first.

        Jobs of servers that live are left alone. Each is returned to one caller only.
        """
        now = self._clock()
        with self._database.writing() as session:
            self._presence.beat(session)
            gone = self._presence.gone(session)
            known = select(ServerRow.id)
            lost = [
                *session.exec(
                    select(JobRow)
                    .where(
                        col(JobRow.state).in_(UNFINISHED),
                        or_(col(JobRow.server).in_(gone), col(JobRow.server).not_in(known)),
                    )
                    .order_by(col(JobRow.created), col(JobRow.id))
                    .with_for_update(skip_locked=True)
                )
            ]
            for job in lost:
                job.state, job.finished = "cut_off", now
                job.error = "the server stopped before this job was finished"
                session.add(job)
            session.exec(delete(ServerRow).where(col(ServerRow.id).in_(gone)))
        return lost

    def requeue(self, job_id: str, owner: str | None) -> JobRow:
        """Take a job that came to nothing into this server's queue, and return it with its order.

        Raises:
            NotFoundError: there is no such job of this owner.
            ConflictError: it is done, or still in a queue.
        """
        job = self.get(job_id, owner)
        with self._database.writing() as session:
            self._presence.beat(session)
            changed = session.exec(
                update(JobRow)
                .where(col(JobRow.id) == job_id, col(JobRow.state).in_(AGAIN))
                .values(
                    state="queued",
                    server=self.id,
                    started=None,
                    finished=None,
                    error=None,
                    attempts=col(JobRow.attempts) + 1,
                )
            )
            if not changed.rowcount:
                raise ConflictError(
                    f"job {job_id} is {job.state}: only one that came to nothing is done again"
                )
        return self.get(job_id, owner)

    def cancelled(self, job_ids: Collection[str]) -> set[str]:
        """Return which of these jobs the database has as cancelled."""
        query = select(JobRow.id).where(col(JobRow.id).in_(job_ids), JobRow.state == "cancelled")
        with self._database.reading() as session:
            return set(session.exec(query))

    def forget(self, older_than: float) -> int:
        """Delete finished jobs of more than ``older_than`` seconds ago, and return how many.

        Their idempotency keys may then be used anew. Pictures stay.
        """
        with self._database.writing() as session:
            done = session.exec(
                delete(JobRow).where(
                    col(JobRow.state).not_in(UNFINISHED), col(JobRow.finished) < self._clock() - older_than
                )
            )
        return int(done.rowcount)

    def beat(self) -> None:
        """Say that this server lives, as every call that writes does; due every `presence.BEAT` seconds."""
        with self._database.writing() as session:
            self._presence.beat(session, now=True)

    def close(self) -> None:
        """Mark what this server has not finished as ``cut_off``, and sign it off."""
        with self._database.writing() as session:
            session.exec(
                update(JobRow)
                .where(col(JobRow.server) == self._presence.id, col(JobRow.state).in_(UNFINISHED))
                .values(
                    state="cut_off",
                    finished=self._clock(),
                    error="the server stopped before this job was finished",
                )
            )
            self._presence.sign_off(session)


def fingerprint(body: object) -> str:
    """Return the SHA-256 of a JSON-ready request, the same for every order of its fields."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _unknown() -> NotFoundError:
    return NotFoundError("there is no such job; list the jobs to see which there are")
