from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import penstock

DOOR = Path(penstock.__file__)


def test_every_public_name_resolves() -> None:
    for name in penstock.__all__:
        assert getattr(penstock, name) is not None


def test_all_is_sorted_and_names_each_once() -> None:
    assert list(penstock.__all__) == sorted(set(penstock.__all__))


def test_all_is_what_the_table_and_the_type_checker_know() -> None:
    table = {name for names in penstock._WHERE.values() for name in names} | {"testing"}
    assert set(penstock.__all__) == table
    checked = DOOR.read_text().split("if TYPE_CHECKING:")[1].split("__version__")[0]
    seen = re.sub(r"from \S+ import", "", checked)
    assert set(re.findall(r"\w+", seen)) == table


def test_a_public_name_is_the_object_of_its_module() -> None:
    for module, names in penstock._WHERE.items():
        for name in names:
            home = importlib.import_module(f"penstock.{module}")
            assert getattr(penstock, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(penstock, "Pipelines")


def test_importing_penstock_imports_nothing_heavy() -> None:
    heavy = ("pyarrow", "numpy", "polars", "datafusion")
    code = f"import sys, penstock; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package() -> None:
    text = (DOOR.parents[2] / "pyproject.toml").read_text()
    assert f'version = "{penstock.__version__}"' in text
