"""The note on the proof of operators names every operator, and only tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTE = (ROOT / "docs" / "design" / "0019-proof-of-operators.md").read_text()
ROWS = [line.strip("| ").split(" | ") for line in NOTE.splitlines() if line.startswith("| ")][1:]
NOT_BUILT_IN = {
    "Processor", "JoinProcessor",
    # What they do is up to users or systems.
    "BatchProcessor", "KeyedProcessor", "RowMapProcessor", "RowFilterProcessor",
    "SourceProcessor", "ConnectorSourceProcessor", "SinkProcessor",
}  # fmt: skip


def parsed(*folders: str) -> list[ast.AST]:
    """All nodes of the Python files of some folders."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text()))]


def test_every_operator_has_a_row() -> None:
    classes = {
        node.name
        for node in parsed("operators")
        if isinstance(node, ast.ClassDef) and node.name.endswith("Processor")
    }
    built_in = {name for name in classes if not name.startswith("_")} - NOT_BUILT_IN
    named = {name for row in ROWS for name in re.findall(r"`(\w+Processor)`", row[0])}
    assert named == built_in


def test_every_row_names_tests_that_exist() -> None:
    known = {
        node.name
        for node in parsed("tests/operators", "tests/laws")
        if isinstance(node, ast.FunctionDef)
    }
    assert len(ROWS) > 30
    for row in ROWS:
        names = re.findall(r"`([^`]+)`", " ".join(row[1:]))
        assert names or row[1].startswith(("the same", "in the rows")), row
        for name in names:
            assert (ROOT / name).exists() if "/" in name else name in known, name
