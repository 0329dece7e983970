"""The server's database: opened, tuned, its version checked, its errors in sentences.

Any SQLAlchemy URL works. SQLite, the default, is set up so that several servers and the command line may
share one file:

- a write-ahead log, so that readers never wait for a writer;
- ``synchronous=FULL``: a commit is on the disk before it returns. With a write-ahead log ``NORMAL`` would
  lose the last commits in a power cut, and a job is acknowledged on the strength of its commit;
- ``BEGIN IMMEDIATE`` for transactions that write: two that read first and write then cannot both wait for the
  other, which SQLite answers with an error at once, whatever the timeout;
- ten seconds of waiting for another writer.

Importing this module costs SQLAlchemy and SQLModel, half a second of one core.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event, exc
from sqlalchemy import inspect as inspect_schema
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import StaticPool
from sqlmodel import Session, SQLModel, create_engine, select

from fewstep.errors import DependencyError, FewstepError, NotReady, OutputError, UsageError
from fewstep.server import tables

VERSION = 1
"""Of all tables together; kept in ``schema_version``."""

_BUSY_SECONDS = 10.0
_DISK = ("disk is full", "disk i/o error", "readonly database", "unable to open database file")
_BROKEN = ("malformed", "not a database", "unsupported file format")
_TABLES = [
    SQLModel.metadata.tables[str(row.__tablename__)]
    for row in (tables.VersionRow, tables.ServerRow, tables.JobRow, tables.ImageRow, tables.TagRow)
]
# The index holds no copy of the text; triggers keep it in step whoever changes a row. What is indexed was
# split and folded by `history_search.words`, so that the tokeniser has nothing left to decide: trigram would
# also find the middle of a word, but nothing shorter than three characters, and a Chinese word has two.
_FULL_TEXT = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS image_words USING fts5("
    "words, content='images', content_rowid='number', tokenize='unicode61 remove_diacritics 0', "
    "prefix='2 3')",
    "CREATE TRIGGER IF NOT EXISTS image_words_added AFTER INSERT ON images BEGIN "
    "INSERT INTO image_words(rowid, words) VALUES (new.number, new.words); END",
    "CREATE TRIGGER IF NOT EXISTS image_words_removed AFTER DELETE ON images BEGIN "
    "INSERT INTO image_words(image_words, rowid, words) VALUES ('delete', old.number, old.words); END",
    "CREATE TRIGGER IF NOT EXISTS image_words_changed AFTER UPDATE OF words ON images BEGIN "
    "INSERT INTO image_words(image_words, rowid, words) VALUES ('delete', old.number, old.words); "
    "INSERT INTO image_words(rowid, words) VALUES (new.number, new.words); END",
)


class Database:
    """An open database. Safe to use from several threads; every call waits, so not from an event loop."""

    def __init__(self, url: str | Path, *, full_text: bool = True) -> None:
        """Open a database, and make its tables where they are missing.

        Args:
            url: a SQLAlchemy URL, or the path of a SQLite file, whose folder is made.
            full_text: use SQLite's index for searches; other databases look through the text.

        Raises:
            UsageError: the text is no URL, or the database was made by a newer fewstep.
            DependencyError: the driver of the URL is not installed.
            OutputError: the file cannot be opened or is no database.
            NotReady: the database does not answer.
        """
        self.url = URL.create("sqlite", database=str(url)) if isinstance(url, Path) else _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.full_text = self.is_sqlite and full_text
        in_memory = self.is_sqlite and self.url.database in (None, "", ":memory:")
        # One connection is all that a database in memory has: its users take turns.
        self._turn = threading.RLock() if in_memory else None
        self.engine = self._engine(in_memory)
        with self._sentences():
            self._prepare()

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session that sees one state of the database throughout.

        Raises:
            OutputError, NotReady: as the constructor.
        """
        with self._sentences(), self._turn or contextlib.nullcontext():
            with Session(self.engine, expire_on_commit=False) as session:
                yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """Yield a session whose changes are committed, durably, at the end, and none of them on an error.

        Raises:
            sqlalchemy.exc.IntegrityError: a constraint forbids a change.
            OutputError, NotReady: as the constructor; also when another writer does not let go.
        """
        engine = self.engine.execution_options(fewstep_writes=True)
        with self._sentences(), self._turn or contextlib.nullcontext():
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _engine(self, in_memory: bool) -> Engine:
        options: dict[str, Any] = {"pool_pre_ping": not self.is_sqlite}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": _BUSY_SECONDS, "check_same_thread": False}
            if in_memory:
                options["poolclass"] = StaticPool
            elif self.url.database is not None:
                folder = Path(self.url.database).parent
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise OutputError(
                        f"{folder}: cannot be made ({error.strerror}); give another --data or --database"
                    ) from error
        try:
            engine = create_engine(self.url, **options)
        except exc.NoSuchModuleError as error:
            raise UsageError(
                f"database {self.name}: SQLAlchemy knows no {self.url.drivername}; "
                "give a URL such as sqlite:///fewstep.db or postgresql+psycopg://user@host/name"
            ) from error
        except ImportError as error:
            missing = error.name or self.url.drivername
            raise DependencyError(
                f"database {self.name} needs {missing}, which is not installed; run: pip install {missing}"
            ) from error
        if self.is_sqlite:
            event.listen(engine, "connect", _tune)
            event.listen(engine, "begin", _begin)
        return engine

    def _prepare(self) -> None:
        engine = self.engine.execution_options(fewstep_writes=True)
        with self._turn or contextlib.nullcontext():
            with self.engine.connect() as connection:
                version = self._version(connection)
            if version is None:
                for attempt in range(2):
                    try:
                        with engine.begin() as connection:
                            self._create(connection)
                        break
                    except (exc.ProgrammingError, exc.IntegrityError, exc.OperationalError):
                        # Another server made them at the same time; then the second attempt finds them.
                        if attempt:
                            raise
                with self.engine.connect() as connection:
                    version = self._version(connection)
        if version is not None and version > VERSION:
            raise UsageError(
                f"database {self.name} has version {version}, and this fewstep knows versions up to "
                f"{VERSION}: update fewstep, or give another --database"
            )

    def _version(self, connection: Connection) -> int | None:
        if not inspect_schema(connection).has_table(str(tables.VersionRow.__tablename__)):
            return None
        with Session(connection) as session:
            return session.exec(select(tables.VersionRow.number)).first()

    def _create(self, connection: Connection) -> None:
        if self._version(connection) is not None:
            return
        SQLModel.metadata.create_all(connection, tables=_TABLES)
        if self.full_text:
            for statement in _FULL_TEXT:
                connection.exec_driver_sql(statement)
        with Session(connection) as session:
            session.add(tables.VersionRow(number=VERSION))
            session.flush()

    @contextlib.contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turn errors of the database itself, not of what was put into it, into those of fewstep."""
        try:
            yield
        except (FewstepError, exc.IntegrityError):
            raise
        except (exc.OperationalError, exc.DatabaseError, exc.InterfaceError) as error:
            raise self._explained(error) from error
        except exc.TimeoutError as error:
            raise NotReady(f"database {self.name}: all connections are in use; try again") from error

    def _explained(self, error: exc.DBAPIError) -> FewstepError:
        reason = " ".join(str(error.orig).split())[:200]
        low = reason.lower()
        if any(part in low for part in _DISK):
            return OutputError(
                f"database {self.name}: cannot be written ({reason}); free some space or give another --data"
            )
        if any(part in low for part in _BROKEN):
            return OutputError(
                f"database {self.name}: is broken or none ({reason}); move it away and run fewstep history "
                "rebuild, which makes it anew from the pictures"
            )
        if isinstance(error, exc.OperationalError):
            return NotReady(f"database {self.name}: does not answer ({reason}); is it running?")
        return OutputError(f"database {self.name}: {reason}")


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        # The text may hold a password: it is not repeated.
        raise UsageError(
            "--database is no SQLAlchemy URL: give one such as sqlite:///fewstep.db or "
            "postgresql+psycopg://user@host/name"
        ) from error


def _tune(connection: Any, _record: object) -> None:
    """Set up one connection of SQLite; statements run outside of any transaction here."""
    # The sqlite3 module would begin transactions by itself, and never immediate ones: see `_begin`.
    connection.isolation_level = None
    run = connection.execute
    run(f"PRAGMA busy_timeout={int(_BUSY_SECONDS * 1000)}")
    run("PRAGMA foreign_keys=ON")
    run("PRAGMA synchronous=FULL")
    if run("PRAGMA journal_mode").fetchone()[0] == "delete":
        _use_log(run)


def _use_log(run: Any) -> None:
    """Switch to a write-ahead log; SQLite does not wait for another process that does the same."""
    import sqlite3

    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            run("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    writes = connection.get_execution_options().get("fewstep_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
