"""The house rules that a machine can hold: docstrings, sizes, clocks, the map of the tree."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    "elements",
    "state",
    "expressions",
    "operators",
    "dataflow",
    "runtime",
    "cluster",
    "connectors",
    "cli",
    "testing",
)
FUNCTION_LINES_MAX = 75
FILE_LINES_MAX = 450
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
MODULE_IDS = [str(path.relative_to(ROOT)) for path in MODULES]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_every_module_says_what_it_is_and_stays_one_room(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert text.count("\n") <= FILE_LINES_MAX
    long = [
        f"{node.name}: {lines} lines"
        for node in ast.walk(tree)
        if isinstance(node, FUNCTIONS)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_public_names_have_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, (*FUNCTIONS, ast.ClassDef))
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not _is_overload(node)
    ]
    assert not bare


def _is_overload(node: ast.stmt) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in decorators)


@pytest.mark.parametrize("path", MODULES, ids=MODULE_IDS)
def test_only_the_clock_reads_the_time(path: Path) -> None:
    if path.name == "clock.py" or "testing" in path.parts:
        pytest.skip("the one place that may")
    read = re.findall(
        r"\b(?:time\.(?:time|monotonic|sleep|perf_counter)|random\.)\w*", path.read_text()
    )
    assert not read


def test_every_layer_is_linked_into_the_package() -> None:
    for layer in LAYERS:
        link = ROOT / "src" / "penstock" / layer
        assert link.is_symlink(), layer
        assert link.resolve() == ROOT / layer


def test_the_map_names_every_module_and_no_other() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:" + "|".join(LAYERS) + r")/[\w/]+\.py)`", text))
    existing = {str(p.relative_to(ROOT)) for p in MODULES if p.name != "__init__.py"}
    assert named - existing == set()
    assert existing - named == set()


def test_the_changelog_is_of_this_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"## {version.group(1)}" in (ROOT / "CHANGELOG.md").read_text()
    door = (ROOT / "src" / "penstock" / "__init__.py").read_text()
    assert f'__version__ = "{version.group(1)}"' in door


def test_no_dead_markers_are_left() -> None:
    markers = re.compile(r"\b(?:TODO|FIXME|XXX)\b")
    assert [str(p) for p in MODULES if markers.search(p.read_text())] == []


def test_no_two_test_files_have_one_name() -> None:
    """Tests are no package, so one name is one module wherever its file lies.

    pytest keeps its own files of fixtures apart.
    """
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
