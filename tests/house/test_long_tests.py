"""What machines of few cores leave out is there, by the names that are said."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_every_test_that_may_be_left_out_exists() -> None:
    text = (TESTS / "conftest.py").read_text()
    names = set(re.findall(r'"(test_\w+)', text))
    folders = re.findall(r'"(\w+)"', text[text.index("FOLDERS = ") :].splitlines()[0])
    assert names
    assert folders == ["cluster", "flights", "laws"]
    found = {
        name
        for folder in folders
        for path in (TESTS / folder).glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert names - found == set()
