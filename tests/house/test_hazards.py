"""The note on hazards has a row for each, and names only tests and files that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTE = (ROOT / "docs" / "design" / "0014-hazards.md").read_text()
NUMBERS = (
    *(str(n) for n in range(1, 63)),
    *("44a", "44b", "44c", "69", "71", "73", "R1", "R2", "R3", "R4", "R5"),
)


def functions(*folders: str) -> set[str]:
    """Names of all functions in the Python files of some folders."""
    return {
        node.name
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


def test_every_hazard_has_one_row() -> None:
    rows = re.findall(r"^\| (\w+) \|", NOTE, re.MULTILINE)
    assert sorted(rows) == sorted(NUMBERS)


def test_every_row_names_something_that_exists() -> None:
    known = functions("tests", "testing")
    for row in re.findall(r"^\| (?:R?\d+\w?) \|.*$", NOTE, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        missing = [
            name
            for name in names
            if (re.match(r"(test|law)_\w+$", name) and name not in known)
            or ("/" in name and not (ROOT / name).exists())
        ]
        assert not missing
        assert names or "R1" in row, row
