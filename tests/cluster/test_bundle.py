"""Bundles hold a program and its modules, and no bundle is believed before it is checked."""

from __future__ import annotations

import hashlib
import importlib
import io
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.cluster import bundle as bundles
from penstock.cluster.bundle import Bundle, make_bundle, read_bundle, unpack_modules
from penstock.dataflow.program import Program, program_of
from penstock.elements.errors import PlanError, ProtocolError

ROWS = [{"v": 1}, {"v": 2}]


def tiny(name: str = "tiny") -> Program:
    pipeline = ps.Pipeline(name)
    pipeline.source(ROWS).filter("v > 1").sink(ps.StdoutSink())
    return Program(name, tuple(pipeline._ends), pipeline.functions)


def saved(made: Bundle | bytes, folder: Path) -> Path:
    data = made if isinstance(made, bytes) else made.data
    path = folder / f"{hashlib.sha256(data).hexdigest()}.zip"
    path.write_bytes(data)
    return path


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path whose modules are forgotten afterwards."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    before = set(sys.modules)
    yield root
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) is None or str(root) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def unpacked(made: Bundle, folder: Path) -> dict[str, bytes]:
    target = folder / "unpacked"
    unpack_modules(saved(made, folder), target)
    return {
        path.relative_to(target).as_posix(): path.read_bytes()
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }


def test_a_program_comes_out_as_it_went_in(tmp_path: Path) -> None:
    made = make_bundle(tiny(), [])
    contents = read_bundle(saved(made, tmp_path))
    there = program_of(contents.program)
    assert there.plan(1).plan.explain() == tiny().plan(1).plan.explain()
    assert contents.meta.job == "tiny"
    assert contents.meta.cwd == str(Path.cwd())
    assert (made.sha256, made.size) == (hashlib.sha256(made.data).hexdigest(), len(made.data))


def test_the_same_program_has_the_same_name() -> None:
    assert make_bundle(tiny(), []) == make_bundle(tiny(), [])
    assert make_bundle(tiny(), []).sha256 != make_bundle(tiny("other"), []).sha256


def test_modules_beside_the_program_travel_and_others_do_not(project: Path, tmp_path: Path) -> None:
    write(
        project,
        {
            "rates.py": "def lookup(): import lazily; return lazily.VALUE",
            "lazily.py": "VALUE = 7",
            "never.py": "raise RuntimeError",
            "kit/__init__.py": "from . import parts",
            "kit/parts.py": "",
            "kit/more/later.py": "",
            "kit/table.csv": "a,b",
            "kit/.hidden": "",
            "kit/__pycache__/parts.pyc": "",
            "spaces/inner.py": "",
            ".venv/lib/python3/site-packages/installed.py": "",
        },
    )
    sys.path.append(str(project / ".venv/lib/python3/site-packages"))
    try:
        for name in ("rates", "kit", "spaces.inner", "installed"):
            importlib.import_module(name)
    finally:
        sys.path.pop()
    found = unpacked(make_bundle(tiny(), [str(project)]), tmp_path)
    assert sorted(found) == [
        "kit/__init__.py",
        "kit/more/later.py",
        "kit/parts.py",
        "kit/table.csv",
        "lazily.py",
        "rates.py",
        "spaces/inner.py",
    ]


def test_a_large_data_file_stays_behind(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.cluster.bundle_modules.DATA_BYTES_MAX", 10)
    write(project, {"heavy/__init__.py": "", "heavy/data.bin": "x" * 11, "heavy/ok.bin": "x" * 10})
    importlib.import_module("heavy")
    found = unpacked(make_bundle(tiny(), [str(project)]), tmp_path)
    assert sorted(found) == ["heavy/__init__.py", "heavy/ok.bin"]


def test_a_bundle_beyond_its_bound_names_the_largest_files(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, {"big/__init__.py": "", "big/a.bin": "x" * 9000, "big/b.bin": "x"})
    importlib.import_module("big")
    monkeypatch.setattr(bundles, "BUNDLE_BYTES_MAX", 8000)
    with pytest.raises(PlanError, match=r"largest: big/a\.bin \(9,000 bytes\)"):
        make_bundle(tiny(), [str(project)])


def test_another_process_runs_what_the_modules_define(project: Path, tmp_path: Path) -> None:
    write(project, {"logic.py": "def twice(v: int) -> int:\n    return 2 * v\n"})
    logic: Any = importlib.import_module("logic")
    pipeline = ps.Pipeline("imported")
    pipeline.register(ps.udf(logic.twice))
    pipeline.source(ROWS).with_columns(w="twice(v)").sink(ps.StdoutSink())
    program = Program("imported", tuple(pipeline._ends), pipeline.functions)
    path = saved(make_bundle(program, [str(project)]), tmp_path)
    unpack_modules(path, tmp_path / "modules")
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path / "modules")!r})
        from penstock.cluster.bundle import read_bundle
        from penstock.dataflow.program import program_of
        program = program_of(read_bundle({str(path)!r}).program)
        plan = program.plan(2).plan
        print(sys.modules["logic"].__file__, len(plan.vertices))
    """
    said = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert said.stdout.split() == [str(tmp_path / "modules" / "logic.py"), "1"]


def test_what_is_unpacked_already_is_left_alone(tmp_path: Path) -> None:
    path = saved(make_bundle(tiny(), []), tmp_path)
    target = tmp_path / "there"
    target.mkdir()
    (target / "kept").write_text("")
    unpack_modules(path, target)
    assert [entry.name for entry in target.iterdir()] == ["kept"]


# Bundles that nobody of ours has made ----------------------------------------------------------


def forged(*members: tuple[str | zipfile.ZipInfo, bytes], whole: bool = True) -> bytes:
    meta, program = zipfile.ZipInfo("meta.json"), zipfile.ZipInfo("program.pickle")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        if whole:
            with zipfile.ZipFile(io.BytesIO(make_bundle(tiny(), []).data)) as good:
                archive.writestr(meta, good.read("meta.json"))
                archive.writestr(program, b"never unpickled")
        for member, data in members:
            archive.writestr(member, data)
    return out.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "modules/../../outside.py",
        "modules//absolute.py",
        "/etc/outside.py",
        "modules/./x.py",
        "modules/a\\..\\..\\outside.py",
        "modules/folder/",
        "modules/new\nline.py",
        "elsewhere/x.py",
        "outside.py",
    ],
)
def test_no_member_may_lie_outside(name: str, tmp_path: Path) -> None:
    path = saved(forged((name, b"x")), tmp_path)
    with pytest.raises(ProtocolError, match="is refused"):
        unpack_modules(path, tmp_path / "in" / "here")
    with pytest.raises(ProtocolError, match="is refused"):
        read_bundle(path)
    assert not (tmp_path / "in" / "here").exists()
    assert not list(tmp_path.rglob("outside.py"))


def test_no_member_may_be_a_link(tmp_path: Path) -> None:
    path = saved(forged((link("modules/x"), b"/etc"), ("modules/x/y", b"")), tmp_path)
    with pytest.raises(ProtocolError, match="no regular file"):
        unpack_modules(path, tmp_path / "here")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_member_may_come_twice(tmp_path: Path) -> None:
    path = saved(forged(("modules/x.py", b"1"), ("modules/x.py", b"2")), tmp_path)
    with pytest.raises(ProtocolError, match="in it twice"):
        unpack_modules(path, tmp_path / "here")


def test_a_file_may_not_stand_where_a_folder_is_meant(tmp_path: Path) -> None:
    path = saved(forged(("modules/x", b"1"), ("modules/x/y.py", b"2")), tmp_path)
    with pytest.raises(ProtocolError, match="cannot be unpacked"):
        unpack_modules(path, tmp_path / "here")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_bomb_is_refused_by_what_it_announces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "UNPACKED_BYTES_MAX", 1_000_000)
    path = saved(forged(("modules/zeros", b"\0" * 2_000_000)), tmp_path)
    assert path.stat().st_size < 10_000
    with pytest.raises(ProtocolError, match="more than 1,000,000 bytes"):
        unpack_modules(path, tmp_path / "here")


def test_a_bomb_that_lies_about_its_size_is_found_out(tmp_path: Path) -> None:
    data = bytearray(forged(("modules/zeros", b"\0" * 2_000_000)))
    # The sizes of the last member stand in the central directory, which readers go by.
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    path = saved(bytes(data), tmp_path)
    with pytest.raises(ProtocolError, match="zeros"):
        unpack_modules(path, tmp_path / "here")
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("cut", [0, 10, 200, -30])
def test_damage_is_told_as_such(cut: int, tmp_path: Path) -> None:
    path = saved(make_bundle(tiny(), []).data[:cut], tmp_path)
    with pytest.raises(ProtocolError, match="cannot be read"):
        read_bundle(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    data = bytearray(make_bundle(tiny(), []).data)
    data[len(data) // 2] ^= 1
    path = saved(bytes(data), tmp_path)
    with pytest.raises(ProtocolError, match=r"damaged|cannot be read|refused|announces|larger"):
        read_bundle(path)


def test_a_bundle_without_a_program_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="is missing"):
        read_bundle(saved(forged(("modules/x.py", b""), whole=False), tmp_path))


def test_a_bundle_of_another_python_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_bundle(tiny(), [])
    monkeypatch.setattr(bundles, "python_minor", lambda: "3.99")
    with pytest.raises(ProtocolError, match=r"made by Python 3\.1.*here\s+are Python 3\.99"):
        read_bundle(saved(made, tmp_path))
