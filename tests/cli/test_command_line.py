"""penstock run, explain and version, as a person or a script meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import LEDGER, ROWS, penstock

import penstock as ps


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "rows.py").write_text(ROWS)
    (tmp_path / "ledger.py").write_text(LEDGER)
    return tmp_path


def written(here: Path) -> list[int]:
    texts = [path.read_text() for path in (here / "out").rglob("*.jsonl")]
    return sorted(json.loads(line)["n"] for text in texts for line in text.splitlines())


def test_a_file_with_one_pipeline_runs_to_its_end(here: Path) -> None:
    done = penstock("run", "rows.py", cwd=here)
    assert done.returncode == 0, done.stderr
    assert written(here) == [3, 4, 5, 6, 7, 8, 9]
    assert "rows: finished at epoch" in done.stderr
    assert "10 rows in, 7 out" in done.stderr
    assert done.stdout == ""


def test_a_run_in_the_file_is_honoured_once_with_the_command_lines_settings(here: Path) -> None:
    (here / "twice.py").write_text(
        ROWS + 'print(p.run(state_dir="mine").rows_out, p.run(state_dir="mine").rows_out)\n'
    )
    done = penstock("run", "twice.py", "--state-dir", "theirs", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "7 7\n"
    assert written(here) == [3, 4, 5, 6, 7, 8, 9]
    assert (here / "theirs" / "rows").is_dir()
    assert not (here / "mine").exists()


def test_a_main_guard_is_true(here: Path) -> None:
    (here / "guarded.py").write_text(ROWS + 'if __name__ == "__main__":\n    print("guarded")\n')
    assert penstock("run", "guarded.py", cwd=here).stdout == "guarded\n"


def test_a_finished_job_says_so_and_runs_again_when_fresh(here: Path) -> None:
    command = ("run", "rows.py", "--state-dir", "state")
    first = penstock(*command, cwd=here)
    again = penstock(*command, cwd=here)
    epoch = first.stderr.partition("finished at epoch ")[2].split()[0]
    assert again.returncode == 0, again.stderr
    assert f"rows: finished at epoch {epoch}; --fresh runs it again" in again.stderr
    assert written(here) == [3, 4, 5, 6, 7, 8, 9]
    fresh = penstock(*command, "--fresh", cwd=here)
    assert fresh.returncode == 0, fresh.stderr
    assert written(here) == sorted([3, 4, 5, 6, 7, 8, 9] * 2)


def test_what_the_program_puts_into_the_environment_reaches_its_operators(here: Path) -> None:
    """The agent has been launched before the program could say so."""
    (here / "environment.py").write_text(
        ROWS.replace('.filter("n >= 3")', ".map_batches(only)").replace(
            "p = ps",
            'import os\nos.environ["FROM"] = "5"\n'
            "def only(batch: pa.RecordBatch) -> pa.RecordBatch:\n"
            '    return batch.slice(int(os.environ["FROM"]))\n'
            "p = ps",
        )
    )
    done = penstock("run", "environment.py", cwd=here)
    assert done.returncode == 0, done.stderr
    assert written(here) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("command", ["run", "explain"])
def test_a_plan_error_reaches_the_user_without_a_traceback(here: Path, command: str) -> None:
    (here / "wrong.py").write_text(ROWS.replace('"n >= 3"', '"m >= 3"'))
    done = penstock(command, "wrong.py", cwd=here)
    assert done.returncode == 2
    assert done.stderr.startswith('PlanError: filter: no column "m"  (wrong.py:7)\n')
    assert "Traceback" not in done.stderr


def test_an_exception_of_the_file_shows_the_users_frames_only(here: Path) -> None:
    (here / "broken.py").write_text("def f():\n    return 1 / 0\nf()\n")
    done = penstock("run", "broken.py", cwd=here)
    assert done.returncode == 2
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert 'File "broken.py", line 2, in f' in done.stderr
    assert "penstock/cli" not in done.stderr


def test_a_syntax_error_names_the_file_and_the_line(here: Path) -> None:
    (here / "typo.py").write_text("p = = 1\n")
    done = penstock("run", "typo.py", cwd=here)
    assert done.returncode == 2
    assert "SyntaxError" in done.stderr
    assert 'File "typo.py", line 1' in done.stderr
    assert "penstock/cli" not in done.stderr


def test_a_job_that_gives_up_exits_with_one_and_its_cause(here: Path) -> None:
    (here / "bad.py").write_text(
        ROWS.replace('.filter("n >= 3")', ".map_batches(bad)").replace(
            "p = ps",
            "def bad(batch: pa.RecordBatch) -> pa.RecordBatch:\n"
            '    raise ValueError("no such luck")\n'
            "p = ps",
        )
    )
    done = penstock("run", "bad.py", "--set", "restart_attempts=1", cwd=here)
    assert done.returncode == 1, done.stderr
    assert "JobFailed: rows: " in done.stderr
    assert "ValueError: no such luck" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "absent.py"], "there is no file 'absent.py'"),
        (["run", "rows.py", "--set", "parallelism"], "--set name=value"),
        (["run", "rows.py", "--set", "paralelism=2"], "did you mean parallelism?"),
        (["run", "rows.py", "--checkpoint-interval", "soon"], "checkpoint_interval"),
        (["run", "rows.py", "--parallelism", "0"], "--parallelism"),
        (["run", "empty.py"], "empty.py defines no pipeline"),
        (["run", "two.py"], "two.py defines 2 pipelines: 'rows', 'other'"),
        (["fly", "rows.py"], "fly"),
    ],
)
def test_what_cannot_be_used_exits_with_two_and_says_why(
    here: Path, words: list[str], said: str
) -> None:
    (here / "empty.py").write_text("x = 1\n")
    (here / "two.py").write_text(ROWS + 'q = ps.Pipeline("other")\n')
    done = penstock(*words, cwd=here)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_set_reaches_any_setting(here: Path) -> None:
    done = penstock("explain", "rows.py", "--set", "parallelism=3", cwd=here)
    assert done.stdout.startswith("pipeline rows, parallelism 3"), done.stderr


def test_an_option_stands_above_set(here: Path) -> None:
    words = ("explain", "rows.py", "--parallelism", "2", "--set", "parallelism=3")
    done = penstock(*words, cwd=here)
    assert done.stdout.startswith("pipeline rows, parallelism 2"), done.stderr


def test_explain_runs_nothing_even_if_the_file_does(here: Path) -> None:
    (here / "runs.py").write_text(ROWS + 'p.run(state_dir="state")\n')
    done = penstock("explain", "runs.py", "--parallelism", "2", cwd=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pipeline rows, parallelism 2")
    assert not (here / "out").exists()
    assert not (here / "state").exists()


def test_version_is_the_packages(here: Path) -> None:
    done = penstock("version", cwd=here)
    assert (done.returncode, done.stdout) == (0, f"penstock {ps.__version__}\n")


def test_the_door_imports_nothing_heavy_before_the_agent_is_launched() -> None:
    program = (
        "import sys, penstock.cli.main, penstock.runtime.warm_agent; "
        "print(sorted({'numpy', 'pyarrow', 'polars', 'datafusion', 'typer', 'rich'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
