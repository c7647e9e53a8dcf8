from __future__ import annotations

import os
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.cluster import catalog as catalog_module
from penstock.cluster.catalog import SCHEMA_VERSION, Catalog
from penstock.cluster.job_record import JobRecord
from penstock.elements.errors import SettingsError, StateError


def record(job: str = "j", submission: str = "s1") -> JobRecord:
    return JobRecord(
        0, submission, job, "ab" * 32, 10, b'{"parallelism": 2}', "spread",
        environment={"A": "b"}, submitted_ns=5,
    )  # fmt: skip


def test_a_submission_reads_back_as_it_was_saved(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    added = catalog.add(record())
    assert added.id == 1
    saved = replace(
        added, launch=4, ran=True, parallelism={"": 2, "x": 3}, fallback={"x": 1}, stop="drain",
        note="é\n", summary=b"\x00",
    )  # fmt: skip
    catalog.save(saved)
    catalog.close()
    again = Catalog(tmp_path / "c.db")
    assert again.live() == [saved]
    assert again.ended() == []
    assert again.launches() == {"j": 4}
    again.close()


def test_nobody_else_can_read_the_environments_of_jobs(tmp_path: Path) -> None:
    before = os.umask(0o022)
    catalog = Catalog(tmp_path / "c.db")
    catalog.add(record())
    os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("c.db", "c.db-wal", "c.db-shm"), 0o600)
    catalog.close()


def test_a_disk_without_room_refuses_a_submission_and_nothing_else(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    first = catalog.add(record())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StateError, match="cannot save"):
            catalog.add(replace(record("k", "s2"), settings=b"x" * 200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    catalog.save(replace(first, launch=1))
    assert catalog.add(record("k", "s2")).id == 2
    catalog.close()


def test_no_fallback_is_none_and_not_empty(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    added = catalog.add(record())
    assert catalog.live()[0].fallback is None
    catalog.save(replace(added, fallback={}))
    assert catalog.live()[0].fallback == {}
    catalog.close()


def test_one_submission_of_a_name_lives(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    first = catalog.add(record())
    with pytest.raises(SettingsError, match="runs already"):
        catalog.add(record(submission="s2"))
    catalog.save(replace(first, outcome="finished"))
    second = catalog.add(record(submission="s2"))
    assert second.id == 2
    assert [r.outcome for r in catalog.ended("j")] == ["finished"]
    assert catalog.ended("other") == []
    catalog.close()


def test_an_outcome_is_final(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    added = catalog.add(record())
    catalog.save(replace(added, outcome="stopped"))
    with pytest.raises(AssertionError):
        catalog.save(replace(added, outcome=""))
    assert catalog.ended()[0].outcome == "stopped"
    catalog.close()


def test_counters_never_go_back(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    added = catalog.add(record())
    catalog.save(replace(added, launch=9))
    catalog.save(replace(added, launch=2))
    assert catalog.launches() == {"j": 9}
    assert [catalog.next_term(), catalog.next_term()] == [1, 2]
    catalog.close()
    again = Catalog(tmp_path / "c.db")
    assert again.next_term() == 3
    again.close()


def test_launches_outlive_the_submissions_of_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_module, "ENDED_KEPT", 2)
    catalog = Catalog(tmp_path / "c.db")
    for number in range(4):
        added = catalog.add(record(f"j{number}", f"s{number}"))
        catalog.save(replace(added, launch=number + 1, outcome="finished"))
    assert [r.job for r in catalog.ended()] == ["j2", "j3"]
    assert catalog.launches() == {"j0": 1, "j1": 2, "j2": 3, "j3": 4}
    catalog.close()


def test_members_are_remembered_until_they_are_gone(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    for node in ("a", "b", "a"):
        catalog.add_member(node)
    catalog.remove_member("b")
    catalog.remove_member("never there")
    assert catalog.members() == {"a"}
    catalog.close()


def test_a_database_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    Catalog(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE counters SET value = ? WHERE name = 'schema'", (99,))
    connection.close()
    with pytest.raises(StateError, match=f"schema 99, this Penstock reads {SCHEMA_VERSION}"):
        Catalog(path)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(StateError, match="cannot be used"):
        Catalog(path)


def test_commits_are_synced_to_disk(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c.db")
    with catalog._engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    catalog.close()


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from penstock.cluster.catalog import Catalog
from penstock.cluster.job_record import JobRecord

catalog = Catalog(Path(sys.argv[1]))
catalog.next_term()
added = catalog.add(JobRecord(0, "s", "j", "b", 1, b"{}", "pack"))
catalog.save(replace(added, launch=1))
with catalog._engine.begin() as connection:
    connection.exec_driver_sql("UPDATE jobs SET launch = 77")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_whole_transactions(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    catalog = Catalog(path)
    assert [r.launch for r in catalog.live()] == [1]
    assert catalog.next_term() == 2
    catalog.close()
