"""The client and the commands of clusters, against a controller that does what the test says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from toy_controller import ToyController, job

from penstock.cluster.bundle import BundleMeta, python_minor
from penstock.cluster.client import Client
from penstock.cluster.security import load_credentials, make_secret
from penstock.cluster.submitting import SubmittedJob
from penstock.cluster.whereabouts import (
    Whereabouts,
    find_cluster,
    read_cluster_file,
    write_cluster_file,
)
from penstock.dataflow.launcher import JobStatus, Summary
from penstock.elements.errors import JobFailed, SettingsError, Unreachable
from penstock.runtime.net.credentials import Credentials

SECRET = Credentials(secret=b"s" * 32)
PATIENCE_S = 60
ROWS = """
import penstock as ps
import pyarrow as pa

p = ps.Pipeline("rows")
rows = p.source(pa.table({"n": list(range(10))}))
rows.filter("n >= 3").sink(ps.FileSink("out/", format="jsonl"))
"""


@pytest.fixture
def toy() -> Iterator[ToyController]:
    controller = ToyController(SECRET, python_minor())
    yield controller
    controller.close()


# The client ---------------------------------------------------------------------------------------


def test_a_refusal_is_raised_as_the_error_it_names(toy: ToyController) -> None:
    with Client(toy.address, SECRET) as client, pytest.raises(SettingsError, match="no job 'x'"):
        client.stop("x")


def test_a_client_that_was_cut_off_says_so_and_dials_again(toy: ToyController) -> None:
    toy.jobs.append(job(1, "rows"))
    with Client(toy.address, SECRET) as client:
        assert [info.job for info in client.jobs()] == ["rows"]
        toy.on_list = toy.hang_up
        with pytest.raises(Unreachable, match=toy.address):
            client.jobs()
        toy.on_list = lambda: None
        assert [info.job for info in client.jobs()] == ["rows"]


def test_a_wrong_secret_is_turned_away(toy: ToyController) -> None:
    with (
        Client(toy.address, Credentials(secret=b"t" * 32)) as client,
        pytest.raises(Unreachable, match="credentials"),
    ):
        client.jobs()


def test_a_controller_that_is_not_there_is_unreachable() -> None:
    toy = ToyController(SECRET, python_minor())
    toy.close()
    with Client(toy.address, SECRET) as client, pytest.raises(Unreachable, match="reached"):
        client.nodes()


def test_a_wait_outlives_a_controller_that_is_away(toy: ToyController) -> None:
    toy.jobs.append(job(1, "rows"))
    looks = []

    def away_then_over() -> None:
        looks.append(1)
        if len(looks) == 1:
            toy.hang_up()
        if len(looks) == 3:
            summary = Summary("rows", "finished", rows_out=7)
            toy.end("finished", msgspec.json.encode(summary))

    toy.on_list = away_then_over
    with Client(toy.address, SECRET) as client:
        handle = SubmittedJob(client, toy.jobs[0])
        with pytest.raises(TimeoutError):
            handle.wait(0)
        assert handle.status().state == "running"
        assert handle.wait() == Summary("rows", "finished", rows_out=7)


def test_a_job_that_gave_up_raises_what_the_cluster_says_of_it(toy: ToyController) -> None:
    toy.jobs.append(job(1, "rows"))
    toy.end("failed", note="rows: gave up\n  attempt 1: ValueError")
    with Client(toy.address, SECRET) as client, pytest.raises(JobFailed, match="attempt 1"):
        SubmittedJob(client, toy.jobs[0]).wait()


def test_the_status_of_a_waiting_job_says_why_it_waits(toy: ToyController) -> None:
    info = msgspec.structs.replace(job(1, "rows", "waiting"), note="4 slots, 2 are free")
    toy.jobs.append(info)
    with Client(toy.address, SECRET) as client:
        assert SubmittedJob(client, info).status().state == "waiting: 4 slots, 2 are free"


# Whereabouts --------------------------------------------------------------------------------------


def test_options_stand_above_the_environment_and_that_above_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".penstock-cluster").mkdir()
    write_cluster_file(".penstock-cluster/cluster.toml", Whereabouts("here:1", "secret"))
    (tmp_path / "other").mkdir()
    write_cluster_file("other/c.toml", Whereabouts("other:2", tls=("a", "b", "c")))
    beside = str(tmp_path / ".penstock-cluster" / "secret")
    assert find_cluster(environment={}) == Whereabouts("here:1", beside)
    named = {"PENSTOCK_CLUSTER": "other/c.toml"}
    files = (*(str(tmp_path / "other" / name) for name in "abc"),)
    assert find_cluster(environment=named) == Whereabouts("other:2", tls=files)
    around = {**named, "PENSTOCK_CONTROLLER": "env:3"}
    assert find_cluster(environment=around) == Whereabouts("env:3", tls=files)
    around["PENSTOCK_SECRET_FILE"] = "s"
    assert find_cluster(environment=around) == Whereabouts("env:3", "s")
    assert find_cluster("mine:4", environment=around) == Whereabouts("mine:4", "s")
    mine = find_cluster("mine:4", None, ("x", "y", "z"), around)
    assert mine == Whereabouts("mine:4", tls=("x", "y", "z"))


def test_a_cluster_that_nobody_names_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="PENSTOCK_CONTROLLER"):
        find_cluster(environment={})
    with pytest.raises(SettingsError, match="--secret-file"):
        find_cluster("here:1", environment={})
    (tmp_path / "bad.toml").write_text("controller = 7\n")
    with pytest.raises(SettingsError, match=r"bad\.toml"):
        read_cluster_file("bad.toml")


# The commands -------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, toy_of_file: ToyController) -> Path:
    (tmp_path / "rows.py").write_text(ROWS)
    (tmp_path / ".penstock-cluster").mkdir()
    place = tmp_path / ".penstock-cluster" / "cluster.toml"
    write_cluster_file(str(place), Whereabouts(toy_of_file.address, "../secret"))
    return tmp_path


@pytest.fixture
def toy_of_file(tmp_path: Path) -> Iterator[ToyController]:
    make_secret(tmp_path / "secret")
    credentials = load_credentials(str(tmp_path / "secret"), None)
    controller = ToyController(credentials, python_minor())
    yield controller
    controller.close()


def penstock(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    around = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    return subprocess.run(
        [sys.executable, "-m", "penstock", *words], cwd=cwd, env=around, capture_output=True,
        text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_submit_sends_the_program_with_its_settings_and_comes_back(
    here: Path, toy_of_file: ToyController, tmp_path: Path
) -> None:
    done = penstock(
        "submit", "rows.py", "--parallelism", "3", "--state-dir", "state", "--placement", "spread",
        "--env", "A=b=c", "--set", "batch_rows=10", cwd=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rows: submitted, running" in done.stderr
    asked = toy_of_file.submissions[0]
    assert (asked.job, asked.placement, asked.environment) == ("rows", "spread", {"A": "b=c"})
    settings = json.loads(asked.settings)
    assert (settings["parallelism"], settings["batch_rows"]) == (3, 10)
    assert settings["state_dir"] == str(tmp_path / "state")
    assert not (here / "out").exists()


def test_a_run_in_a_submitted_file_submits_once(here: Path, toy_of_file: ToyController) -> None:
    (here / "twice.py").write_text(ROWS + "print(p.run(), p.run())\n")
    done = penstock("submit", "twice.py", "--json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert len(toy_of_file.submissions) == 1
    assert "rows: submitted rows: submitted" in done.stdout


def test_a_file_that_looks_at_rows_is_refused(here: Path, toy_of_file: ToyController) -> None:
    (here / "looks.py").write_text(ROWS + "print(rows.head(3))\n")
    done = penstock("submit", "looks.py", cwd=here)
    assert done.returncode == 2
    assert "PlanError: head: a cluster runs this program" in done.stderr
    assert "looks.py:8" in done.stderr
    assert not toy_of_file.submissions


@pytest.mark.parametrize(
    ("state", "code", "text"), [("finished", 0, "7 out"), ("failed", 1, "JobFailed: no luck")]
)
def test_submit_waits_and_exits_as_run_does(
    here: Path, toy_of_file: ToyController, state: str, code: int, text: str
) -> None:
    summary = msgspec.json.encode(Summary("rows", "finished", rows_out=7))
    toy_of_file.on_list = lambda: toy_of_file.end(
        state, summary if not code else b"", "no luck" if code else ""
    )
    done = penstock("submit", "rows.py", "--wait", cwd=here)
    assert done.returncode == code, done.stderr
    assert text in done.stderr


def test_every_command_gives_one_document(here: Path, toy_of_file: ToyController) -> None:
    status = JobStatus("rows", "running", 1, 0, 4, 10, 7, 0, 0, None, 0.5)
    info = msgspec.structs.replace(job(1, "rows"), status=msgspec.json.encode(status))
    toy_of_file.jobs.append(info)
    toy_of_file.log = "".join(f"line {n}\n" for n in range(300))

    def document(*words: str) -> dict[str, object]:
        done = penstock(*words, "--json", cwd=here)
        assert done.returncode == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return found

    jobs = document("ps")["jobs"]
    assert isinstance(jobs, list)
    assert jobs[0]["status"]["epoch"] == 4
    assert jobs[0]["submitted"] == "1970-01-01T00:00:01.000+00:00"
    assert jobs[0]["ended"] is None
    nodes = document("ps", "--nodes")["nodes"]
    assert isinstance(nodes, list)
    assert nodes[0]["labels"] == {"zone": "a"}
    logs = document("logs", "rows", "--lines", "2")["logs"]
    assert logs == [
        {"where": "coordinator", "lines": ["line 298", "line 299"]},
        {"where": "n1", "lines": ["x"]},
    ]
    assert document("stop", "rows", "--drain")["jobs"] == jobs
    assert document("scale", "rows", "count=4", "2")["jobs"] == jobs
    stopped, scaled = toy_of_file.asked[-3], toy_of_file.asked[-1]
    assert stopped.mode == "drain"  # type: ignore[attr-defined]
    assert scaled.parallelism == {"count": 4, "": 2}  # type: ignore[attr-defined]


def test_following_a_log_goes_on_beyond_an_absence_of_the_controller(
    here: Path, toy_of_file: ToyController
) -> None:
    toy_of_file.jobs.append(job(1, "rows"))
    toy_of_file.log = "one\n"
    around = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    with subprocess.Popen(
        [sys.executable, "-m", "penstock", "logs", "rows", "--follow"], cwd=here, env=around,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as follower:  # fmt: skip
        assert follower.stdout is not None
        assert follower.stderr is not None
        try:
            lines = [follower.stdout.readline() for _ in range(2)]
            assert [line.split() for line in lines] == [
                ["coordinator", "|", "one"],
                ["n1", "|", "x"],
            ]
            toy_of_file.hang_up()
            assert "asking again until it answers" in follower.stderr.readline()
            toy_of_file.log = "one\ntwo\n"
            assert follower.stdout.readline().split() == ["coordinator", "|", "two"]
            follower.send_signal(signal.SIGINT)
            assert follower.wait(PATIENCE_S) == 130
        finally:
            follower.kill()


def test_tables_show_jobs_and_nodes(here: Path, toy_of_file: ToyController) -> None:
    toy_of_file.jobs.append(job(1, "rows"))
    jobs = penstock("ps", cwd=here)
    assert jobs.stdout.split()[:3] == ["ID", "JOB", "STATE"]
    assert "rows" in jobs.stdout
    assert "zone=a" in penstock("ps", "--nodes", cwd=here).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scale", "rows", "count=0"], "OPERATOR=N"),
        (["stop", "rows", "--drain", "--now"], "contradict"),
        (["stop", "other"], "there is no job 'other'"),
        (["ps", "other"], "knows no job 'other'"),
        (["submit", "absent.py"], "there is no file 'absent.py'"),
        (["submit", "rows.py", "--env", "A"], "--env NAME=VALUE"),
        (["logs", "rows", "--follow", "--json"], "--follow"),
        (["ps", "--controller", "nowhere"], "host:port"),
        (["ps", "--secret-file", "absent"], "absent"),
    ],
)
def test_what_cannot_be_used_exits_with_two_and_says_why(
    here: Path, words: list[str], said: str
) -> None:
    done = penstock(*words, cwd=here)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bundle_says_which_program_it_is(here: Path, toy_of_file: ToyController) -> None:
    assert penstock("submit", "rows.py", cwd=here).returncode == 0
    data = toy_of_file.bundles[toy_of_file.submissions[0].bundle]
    path = here / "bundle.zip"
    path.write_bytes(data)
    from penstock.cluster.bundle import read_bundle

    meta = read_bundle(path).meta
    assert isinstance(meta, BundleMeta)
    assert (meta.job, meta.program, meta.cwd) == ("rows", "rows.py", str(here))


def test_ctrl_c_while_waiting_leaves_the_job_running(
    here: Path, toy_of_file: ToyController
) -> None:
    (here / "runs.py").write_text(ROWS + "p.run()\n")
    around = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
    waiting = subprocess.Popen(
        [sys.executable, "-m", "penstock", "submit", "runs.py", "--wait"], cwd=here, env=around,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    asked = threading.Event()
    toy_of_file.on_list = asked.set
    assert asked.wait(PATIENCE_S)
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 130
    assert "rows goes on; penstock stop rows ends it" in said
    assert "Error" not in said
    assert toy_of_file.jobs[0].state == "running"


def test_what_a_job_has_counted_is_shown_when_it_has_ended(
    here: Path, toy_of_file: ToyController
) -> None:
    toy_of_file.jobs.append(job(1, "rows"))
    toy_of_file.end("finished", msgspec.json.encode(Summary("rows", "finished", 12_345, 7)))
    assert "12,345" in penstock("ps", "rows", cwd=here).stdout
