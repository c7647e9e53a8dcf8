"""The controller's memory: jobs, launches, terms and members, in one SQLite database.

Each method is one transaction, on disk (WAL, synchronous=FULL) when it returns: who dies in the
middle of one finds all or nothing of it. Counters only ever go up.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from penstock.elements.errors import SettingsError, StateError

from .job_record import JobRecord

SCHEMA_VERSION = 1
BUSY_S = 5.0
"""For whoever else has the file open, such as a backup."""
ENDED_KEPT = 1000
"""Submissions that are over and still listed, the newest ones."""

_metadata = sa.MetaData()
_counters = sa.Table(
    "counters",
    _metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
"""schema, term, and the last launch of each job's name as "launch:NAME"."""
_jobs = sa.Table(
    "jobs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("submission", sa.Text, nullable=False, unique=True),
    sa.Column("job", sa.Text, nullable=False),
    sa.Column("bundle", sa.Text, nullable=False),
    sa.Column("bundle_bytes", sa.Integer, nullable=False),
    sa.Column("settings", sa.LargeBinary, nullable=False),
    sa.Column("placement", sa.Text, nullable=False),
    sa.Column("environment", sa.JSON, nullable=False),
    sa.Column("parallelism", sa.JSON, nullable=False),
    sa.Column("fallback", sa.JSON(none_as_null=True)),
    sa.Column("stop", sa.Text, nullable=False),
    sa.Column("ran", sa.Boolean, nullable=False),
    sa.Column("launch", sa.Integer, nullable=False),
    sa.Column("submitted_ns", sa.Integer, nullable=False),
    sa.Column("ended_ns", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("summary", sa.LargeBinary, nullable=False),
    # An id is never used again, even of a submission that is listed no more.
    sqlite_autoincrement=True,
)
sa.Index("one_live_job_of_a_name", _jobs.c.job, unique=True, sqlite_where=_jobs.c.outcome == "")
_nodes = sa.Table("nodes", _metadata, sa.Column("node", sa.Text, primary_key=True))
"""Members, so that a new term knows whom to expect."""


class Catalog:
    """One open database. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. Raises StateError if it cannot be used."""
        _make_private(path)
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(path)),
            # Transactions are begun by us, the driver would begin them too late.
            connect_args={"timeout": BUSY_S, "isolation_level": None, "check_same_thread": False},
            poolclass=sa.StaticPool,
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        try:
            with self._engine.begin() as connection:
                self._prepare(connection, path)
        except DBAPIError as error:
            self._engine.dispose()
            raise StateError(f"{path} cannot be used: {error.orig}") from error
        except StateError:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """All that was said is on disk already."""
        self._engine.dispose()

    # Counters -----------------------------------------------------------------------------------

    def next_term(self) -> int:
        """A number that no start of this controller had before."""
        with self._engine.begin() as connection:
            return _raise_to(connection, "term", _read(connection, "term") + 1)

    def launches(self) -> dict[str, int]:
        """The last launch of each name."""
        prefix = "launch:"
        query = sa.select(_counters).where(_counters.c.name.startswith(prefix, autoescape=True))
        with self._engine.begin() as connection:
            rows = connection.execute(query).all()
        return {row.name.removeprefix(prefix): row.value for row in rows}

    # Members ------------------------------------------------------------------------------------

    def members(self) -> set[str]:
        """Nodes that were members when last heard of."""
        with self._engine.begin() as connection:
            return set(connection.execute(sa.select(_nodes.c.node)).scalars())

    def add_member(self, node: str) -> None:
        """It may run something from now on."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_nodes).prefix_with("OR IGNORE").values(node=node))

    def remove_member(self, node: str) -> None:
        """Nothing of it runs any more."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_nodes).where(_nodes.c.node == node))

    # Jobs ---------------------------------------------------------------------------------------

    def add(self, record: JobRecord) -> JobRecord:
        """The submission with its id. Raises SettingsError if one of its name lives, StateError if
        it cannot be kept, as on a full disk."""
        values = _values(record)
        del values["id"]
        try:
            with self._engine.begin() as connection:
                made = connection.execute(sa.insert(_jobs).values(values)).inserted_primary_key
        except IntegrityError as error:
            raise SettingsError(f"a job named {record.job!r} runs already") from error
        except DBAPIError as error:
            # Nothing depends on it yet: jobs that run need not end for it.
            raise StateError(f"the controller cannot save the job: {error.orig}") from error
        assert made is not None
        return replace(record, id=made[0])

    def save(self, record: JobRecord) -> None:
        """The submission as it is now, and its launch among those of its name."""
        values = _values(record)
        with self._engine.begin() as connection:
            if record.launch:
                _raise_to(connection, f"launch:{record.job}", record.launch)
            query = sa.update(_jobs).where(_jobs.c.id == record.id, _jobs.c.outcome == "")
            changed = connection.execute(query.values(values)).rowcount
            assert changed == 1, "an outcome is final"
            if record.outcome:
                _forget_old(connection)

    def live(self) -> list[JobRecord]:
        """Those without an outcome, oldest first."""
        return self._select(_jobs.c.outcome == "")

    def ended(self, job: str = "") -> list[JobRecord]:
        """Those with one, oldest first; `job` names one name."""
        wanted = (_jobs.c.job == job,) if job else ()
        return self._select(_jobs.c.outcome != "", *wanted)

    def _select(self, *conditions: sa.ColumnElement[bool]) -> list[JobRecord]:
        query = sa.select(_jobs).where(*conditions).order_by(_jobs.c.id)
        with self._engine.begin() as connection:
            rows: Sequence[sa.Row[Any]] = connection.execute(query).all()
        return [JobRecord(**row._mapping) for row in rows]

    def _prepare(self, connection: sa.Connection, path: Path) -> None:
        known = sa.inspect(connection).get_table_names()
        if not known:
            _metadata.create_all(connection)
            _raise_to(connection, "schema", SCHEMA_VERSION)
            return
        version = _read(connection, "schema") if "counters" in known else 0
        if version != SCHEMA_VERSION:
            raise StateError(
                f"{path} has schema {version}, this Penstock reads {SCHEMA_VERSION}: use the "
                "Penstock that wrote it, or another --data directory"
            )


def _make_private(path: Path) -> None:
    """Environments of jobs hold passwords; SQLite gives its other files the mode of this one."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StateError(f"{path} cannot be used: {error.strerror}") from error


def _on_connect(connection: sqlite3.Connection, record: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _on_begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _values(record: JobRecord) -> dict[str, Any]:
    values = asdict(record)
    # Any mapping will do for a record; JSON wants dicts.
    for name in ("environment", "parallelism", "fallback"):
        values[name] = msgspec.to_builtins(values[name])
    return values


def _read(connection: sa.Connection, name: str) -> int:
    query = sa.select(_counters.c.value).where(_counters.c.name == name)
    return connection.execute(query).scalar() or 0


def _raise_to(connection: sa.Connection, name: str, value: int) -> int:
    """Set a counter unless it is higher already; what it is then."""
    value = max(value, _read(connection, name))
    insert = sa.insert(_counters).prefix_with("OR REPLACE")
    connection.execute(insert.values(name=name, value=value))
    return value


def _forget_old(connection: sa.Connection) -> None:
    newest = (
        sa.select(_jobs.c.id)
        .where(_jobs.c.outcome != "")
        .order_by(_jobs.c.id.desc())
        .limit(ENDED_KEPT)
    )
    old = sa.delete(_jobs).where(_jobs.c.outcome != "", _jobs.c.id.not_in(newest))
    connection.execute(old)
