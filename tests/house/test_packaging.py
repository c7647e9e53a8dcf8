"""Wheel and sdist hold every module, and a pipeline runs from the installed wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import penstock as ps
p = ps.Pipeline("installed")
import pyarrow as pa
print(p.source(pa.table({"n": [1, 2, 3]})).filter("n > 1").collect()["n"].to_pylist())
"""


def modules() -> set[str]:
    """Every module as its path inside the package."""
    package = ROOT / "src" / "penstock"
    files = [*package.glob("*.py")]
    for layer in package.iterdir():
        if layer.is_symlink():
            files += [layer / p.relative_to(layer.resolve()) for p in layer.resolve().rglob("*.py")]
    return {"penstock/" + str(p.relative_to(package)) for p in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel that was built from the sdist beside it."""
    copy = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, tracked):
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).exists():
            target.write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True, capture_output=True,
    )  # fmt: skip
    return out


def test_the_wheel_and_the_sdist_hold_every_module(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert modules() <= names
    assert "penstock/py.typed" in names
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        inside = {name.split("/", 1)[-1] for name in sdist.getnames()}
    assert {"src/" + name for name in modules()} <= inside


def test_a_pipeline_runs_from_the_installed_wheel(built: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    wheel = str(next(built.glob("*.whl")))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(site)}, check=False,
    )  # fmt: skip
    assert ran.stdout.strip() == "[2, 3]", ran.stderr
