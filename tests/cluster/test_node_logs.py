"""Logs of a node's jobs: bounded, in whole lines, and never in the way of who writes them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from penstock.cluster import node_logs
from penstock.cluster.node_directory import LAUNCHES_KEPT, NodeDirectory, launches
from penstock.cluster.node_logs import JobLog, tail

PATIENCE_S = 20.0


def written(log: JobLog, path: Path, data: bytes) -> None:
    """All of it is in the files, or was thrown away with older lines."""
    log.keep(path, "heading")
    with open(log.descriptor, "wb", closefd=False) as out:
        out.write(data)
        out.write(b"the end\n")
    log.launched()
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_bytes().endswith(b"the end\n")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_is_written_can_be_read_line_by_line(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    written(JobLog(), folder / "3.log", b"one\ntwo\n")
    assert tail(folder, 1000) == "heading\none\ntwo\nthe end\n"
    assert tail(folder, len("wo\nthe end\n")) == "the end\n"
    assert tail(folder, 3) == ""
    assert tail(folder, 0) == ""


def test_what_is_written_before_anybody_knows_where_it_goes_is_kept(tmp_path: Path) -> None:
    log = JobLog()
    os.write(log.descriptor, b"early\n")
    written(log, tmp_path / "1.log", b"late\n")
    assert tail(tmp_path, 1000) == "heading\nearly\nlate\nthe end\n"


def test_a_log_never_takes_more_than_two_files_of_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_logs, "LOG_BYTES_MAX", 100_000)
    lines = b"".join(b"line %08d\n" % n for n in range(40_000))
    path = tmp_path / "1.log"
    written(JobLog(), path, lines)
    assert path.stat().st_size <= 100_000
    assert 0 < (tmp_path / "1.log.1").stat().st_size <= 100_000
    assert sorted(os.listdir(tmp_path)) == ["1.log", "1.log.1"]
    # Read across both files, nothing is missing between them.
    read = tail(tmp_path, 120_000).splitlines()
    numbers = [int(line.split()[1]) for line in read[:-1]]
    assert numbers == list(range(numbers[0], 40_000))
    assert len(numbers) > 100_000 // 14


def test_a_disk_that_takes_nothing_does_not_hold_up_the_job(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("a file where the folder should be")
    log = JobLog()
    log.keep(tmp_path / "job" / "1.log", "heading")
    with open(log.descriptor, "wb") as out:
        # Far more than a pipe holds: this returns because somebody reads it.
        out.write(bytes(1024 * 1024))


def test_the_newest_launch_is_read_and_old_ones_are_swept(tmp_path: Path) -> None:
    directory = NodeDirectory(str(tmp_path))
    folder = directory.job_logs("a job")
    folder.mkdir()
    for launch in (9, 10, 2, 11, 1, 8, 100):
        (folder / f"{launch}.log").write_text(f"launch {launch}\n")
    (folder / "notes.txt").touch()
    assert tail(folder, 100) == "launch 100\n"
    directory.sweep_logs()
    assert launches(folder) == [100, 11, 10, 9, 8][:LAUNCHES_KEPT]
    assert (folder / "notes.txt").exists()
    directory.close()


@pytest.mark.parametrize("job", ["..", ".", "a/b", "../../etc", "a\0b", "ä" * 300])
def test_every_job_has_a_folder_of_its_own_inside(tmp_path: Path, job: str) -> None:
    directory = NodeDirectory(str(tmp_path))
    folder = directory.job_logs(job)
    folder.mkdir()
    assert folder.resolve().parent == directory.logs.resolve()
    directory.close()
