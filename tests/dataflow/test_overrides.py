from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from penstock.dataflow.overrides import CommandLine, resolve_settings, use_command_line
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import SettingsError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command_line() -> Iterator[CommandLine]:
    mine = CommandLine()
    before = use_command_line(mine)
    yield mine
    use_command_line(before)


def test_nothing_said_gives_the_defaults() -> None:
    assert resolve_settings({"parallelism": None}, {}) == JobSettings()


def test_argument_below_file_below_environment_below_command_line(
    tmp_path: Path, command_line: CommandLine
) -> None:
    (tmp_path / "penstock.toml").write_text(
        "[run]\nparallelism = 2\nrestart_attempts = 3\nbatch_rows = 100\nlinger = '1 ms'\n"
    )
    command_line.settings = {"parallelism": 9}
    found = resolve_settings(
        {"parallelism": 1, "restart_attempts": 1, "batch_rows": 1, "checkpoint_interval": "1s"},
        {"PENSTOCK_RESTART_ATTEMPTS": "7", "PENSTOCK_HOME": "ignored"},
    )
    assert found == JobSettings(
        parallelism=9,
        restart_attempts=7,
        batch_rows=100,
        linger_ms=1.0,
        checkpoint_interval_s=1.0,
    )


def test_durations_are_taken_with_or_without_their_unit() -> None:
    for name, value in [
        ("checkpoint_interval", "250 ms"),
        ("checkpoint_interval", timedelta(milliseconds=250)),
        ("checkpoint_interval_s", 0.25),
        ("checkpoint-interval-s", "0.25"),
    ]:
        assert resolve_settings({name: value}, {}).checkpoint_interval_s == 0.25


def test_text_becomes_what_the_setting_is() -> None:
    found = resolve_settings({"fresh": "true", "restore_from": "4", "state_dir": "s"}, {})
    assert (found.fresh, found.restore_from, found.state_dir) == (True, 4, "s")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"paralelism": 2}, "there is no setting 'paralelism'; did you mean parallelism?"),
        ({"parallelism": "many"}, "run(): parallelism='many'"),
        ({"checkpoint_interval": 5}, "checkpoint_interval: 5 is not a duration"),
        ({"durability": "hope"}, "durability='hope'"),
    ],
)
def test_settings_that_cannot_be_used_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve_settings(arguments, {})
    assert text in str(caught.value)


def test_a_settings_file_that_was_named_must_be_there() -> None:
    with pytest.raises(SettingsError, match="cannot read settings from gone"):
        resolve_settings({}, {"PENSTOCK_CONFIG": "gone.toml"})


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"parallelism": 0}, r"run\(\): parallelism=0: Expected `int` >= 1"),
        ({"checkpoint_interval": "0 s"}, r"checkpoint_interval_s=0.0: Expected `float` >= 0.001"),
        ({"checkpoint_interval_s": -1}, r"checkpoint_interval_s=-1: Expected `float` >= 0.001"),
        ({"restart_delay": "-5 s"}, r"restart_delay_s=-5.0: Expected `float` >= 0"),
        ({"batch_rows": 0}, r"batch_rows=0: Expected `int` >= 1"),
        ({"channel_slots": 1}, r"channel_slots=1: Expected `int` >= 2"),
        ({"retained_checkpoints": 0}, r"retained_checkpoints=0: Expected `int` >= 1"),
    ],
)
def test_a_setting_out_of_its_limits_is_refused(said: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        resolve_settings(said, {})
