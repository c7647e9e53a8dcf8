"""Where compiled kernels lie, who compiles them, and what runs without."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numba
import pytest

from penstock.operators.kernels import compile as compiling

USE = """
import pyarrow as pa, sys
from penstock.operators.kernels.slot_index import SlotIndex
index = SlotIndex(pa.schema([("a", pa.int64())]))
slots, new = index.add(pa.record_batch({"a": [7, 8, 7]}))
print(slots.tolist(), new.tolist(), "numba" in sys.modules)
"""


def start(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", USE],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_of_processes_that_find_the_cache_cold_one_compiles_and_says_so(tmp_path: Path) -> None:
    environment = {"XDG_CACHE_HOME": str(tmp_path), compiling.MODE_VARIABLE: ""}
    running = [start(**environment) for _ in range(2)]
    said = [process.communicate() for process in running]
    assert [out for out, _ in said] == ["[0, 1, 0] [True, True, False] True\n"] * 2
    assert sum("kernels in" in err for _, err in said) == 1, said
    (directory,) = (tmp_path / "penstock" / "kernels").iterdir()
    assert (directory / compiling.COMPLETE).exists()
    assert not any("could not" in err for _, err in said)
    out, err = start(**environment).communicate()
    assert (out, err) == (said[0][0], "")


def test_the_reference_needs_no_compiler_and_gives_the_same() -> None:
    out, err = start(**{compiling.MODE_VARIABLE: "reference"}).communicate()
    assert (out, err) == ("[0, 1, 0] [True, True, False] False\n", "")


def test_a_home_that_cannot_be_written_gives_way_to_a_private_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directory = compiling.cache_directory(numba)
    assert directory.is_relative_to(tmp_path)
    assert directory.stat().st_mode & 0o077 == 0


def test_a_temporary_folder_of_somebody_else_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shared = compiling.cache_directory(numba)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    theirs = compiling.cache_directory(numba)
    assert theirs != shared
    assert theirs.name.startswith("penstock-kernels-")
    assert not list(theirs.iterdir())


def test_the_users_own_cache_of_numba_is_left_alone(tmp_path: Path) -> None:
    @compiling.kernel("int64(int64)")
    def double(number: int) -> int:
        return 2 * number

    settings: Any = numba.config
    settings.CACHE_DIR = str(tmp_path)
    try:
        assert double(21) == 42
        assert str(tmp_path) == settings.CACHE_DIR
    finally:
        settings.CACHE_DIR = ""
    assert not list(tmp_path.iterdir())
