from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.elements.errors import EngineError, SettingsError
from penstock.runtime.failpoint import FAILPOINTS, failpoint

PROGRAM = """
from penstock.runtime.failpoint import failpoint
for _ in range(3):
    failpoint("before-upload", "count[0]")
    print("passed", flush=True)
"""


def run(monkeypatch: pytest.MonkeyPatch, rules: str) -> subprocess.CompletedProcess[str]:
    monkeypatch.setenv("PENSTOCK_FAILPOINTS", rules)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60
    )


def test_without_the_variable_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PENSTOCK_FAILPOINTS", raising=False)
    failpoint("before-upload", "count[0]")


def test_a_rule_kills_the_process_the_kth_time_it_gets_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = run(monkeypatch, "after-upload=kill; before-upload@count[0]#2=kill")
    assert ran.returncode == -signal.SIGKILL
    assert ran.stdout == "passed\n"


def test_a_rule_for_another_place_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run(monkeypatch, "before-upload@count[1]=kill")
    assert ran.returncode == 0
    assert ran.stdout == "passed\n" * 3


def test_with_a_directory_a_rule_acts_once_in_the_whole_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_FAILPOINTS_ONCE", str(tmp_path))
    rule = "before-upload@count[0]#2=kill"
    assert run(monkeypatch, rule).returncode == -signal.SIGKILL
    assert run(monkeypatch, rule).returncode == 0
    assert [path.read_text() for path in tmp_path.iterdir()] == [rule]


def test_raise_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_FAILPOINTS", "before-manifest=raise")
    with pytest.raises(EngineError, match="before-manifest at controller"):
        failpoint("before-manifest", "controller")


@pytest.mark.parametrize(
    "rules", ["before-nothing=kill", "before-log=explode", "before-log#x=kill"]
)
def test_a_rule_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, rules: str) -> None:
    monkeypatch.setenv("PENSTOCK_FAILPOINTS", rules)
    with pytest.raises(SettingsError, match="with one of the names"):
        failpoint("before-log", "controller")


def test_the_documented_list_is_what_the_code_calls() -> None:
    root = Path(__file__).resolve().parents[2] / "runtime"
    called = {
        name
        for path in root.glob("*.py")
        for name in re.findall(r'\bfailpoint\("([\w-]+)"', path.read_text())
    }
    assert called - {"name"} == set(FAILPOINTS)
