"""Which of the user's modules go with a program: what it imported from around it.

A module goes with it if its file lies below one of the roots and in no installed package. Of a
package everything goes, data files up to DATA_BYTES_MAX included, since a program may load more
of it later. Modules that a function imports only when it runs are found by reading the sources.
"""

from __future__ import annotations

import ast
import logging
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

log = logging.getLogger("penstock")

DATA_BYTES_MAX = 10 * 1024 * 1024
"""A larger file in a package is data, which a program reads from where all nodes can."""
_INSTALLED = {"site-packages", "dist-packages"}
_LEFT_OUT = {"__pycache__", "node_modules"}


def user_roots() -> list[str]:
    """The directory of the program's file, and the working directory."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    roots = [] if main is None else [os.path.dirname(os.path.abspath(main))]
    return list(dict.fromkeys([*roots, os.getcwd()]))


def user_modules(roots: Sequence[str]) -> list[tuple[str, Path]]:
    """(path in the bundle, file here), sorted: all that importing the same names will need."""
    found: dict[str, Path] = {}
    real = [Path(root).resolve() for root in roots]
    # What was imported comes first: it is right where two roots have a file of one name.
    waiting = deque(_imported(real))
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and _is_users(Path(main), real):
        waiting += _named_in(Path(main), roots)
    seen: set[str] = set()
    while waiting:
        name, file = waiting.popleft()
        if name in seen or not _is_users(file, real):
            continue
        seen.add(name)
        for place, path in _files_of(name, file):
            if place not in found:
                found[place] = path
                if path.suffix == ".py":
                    waiting += _named_in(path, roots)
    return sorted(found.items())


def _imported(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Modules of this process with a file below the roots, by their outermost package."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        outermost = name.partition(".")[0]
        if not isinstance(file, str) or outermost in ("__main__", "__mp_main__", "penstock"):
            continue
        if not _is_users(Path(file), roots):
            continue
        package = getattr(sys.modules.get(outermost), "__file__", None)
        if isinstance(package, str):
            yield outermost, Path(package)
        else:
            # Below a folder that is no package: nothing says what else belongs to it.
            yield name, Path(file)


def _is_users(file: Path, roots: Sequence[Path]) -> bool:
    path = file.resolve()
    if _INSTALLED.intersection(path.parts):
        return False
    if any(path.is_relative_to(library) for library in _libraries()):
        return False
    return any(path.is_relative_to(root) for root in roots)


def _libraries() -> set[Path]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return {Path(sysconfig.get_path(name)).resolve() for name in names}


def _files_of(name: str, file: Path) -> Iterator[tuple[str, Path]]:
    """What a module or package consists of, by its place below a folder on sys.path."""
    base = name.replace(".", "/")
    if file.name != "__init__.py":
        if file.suffix in (".py", ".so"):
            # An extension module keeps its tag: cpython-311-x86_64-linux-gnu.so.
            yield "/".join([*base.split("/")[:-1], file.name]), file
        return
    for folder, folders, names in os.walk(file.parent):
        folders[:] = sorted(
            each for each in folders if each not in _LEFT_OUT and not each.startswith(".")
        )
        for each in sorted(names):
            path = Path(folder, each)
            if each.startswith(".") or each.endswith(".pyc") or not path.is_file():
                continue
            if path.stat().st_size > DATA_BYTES_MAX:
                log.warning("%s is larger than %d MiB, it is not sent", path, DATA_BYTES_MAX >> 20)
                continue
            yield f"{base}/{path.relative_to(file.parent).as_posix()}", path


def _named_in(file: Path, roots: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Modules beside the program that a source imports anywhere, also inside its functions."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        # What cannot be read here was not imported here either.
        return
    for name in sorted({name.partition(".")[0] for name in _imports(tree)}):
        for root in roots:
            for path in (Path(root, name, "__init__.py"), Path(root, f"{name}.py")):
                if name != "penstock" and path.is_file():
                    yield name, path
                    break


def _imports(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
