"""How kernels become machine code: eagerly, from a disk cache, never twice (hazards 33, 34).

A kernel is a plain function with one signature. `load()` makes all that were imported ready; the
fork server calls it before its first fork, so that subtasks share the code. When the cache is cold
one process compiles everything under a file lock while others wait, and says so once.
PENSTOCK_KERNELS=reference runs the plain implementations instead; results and state never depend
on which ran. Not: lazy specialisation, threads, or kernels that call each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from penstock.elements.clock import SystemClock

MODE_VARIABLE = "PENSTOCK_KERNELS"
COMPLETE = "complete"
"""A file in the cache directory once every kernel is in it."""
COMPILE_TIMEOUT_S = 300
PACKAGE = __name__.rpartition(".")[0]

F = TypeVar("F", bound=Callable[..., Any])


class Kernel:
    """A function that runs compiled. `function` is the Python that is compiled."""

    def __init__(self, function: Callable[..., Any], signature: str) -> None:
        self.function = function
        self.signature = signature
        self.__doc__ = function.__doc__
        self._run: Callable[..., Any] = self._load_first

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def _load_first(self, *args: Any) -> Any:
        load()
        return self._run(*args)

    def make_ready(self, numba: Any) -> None:
        """Compile, or find it in the cache."""
        # Only what lies in the package is found again by another process.
        ours = self.function.__module__.startswith(PACKAGE)
        options = {"cache": ours, "nogil": True, "error_model": "numpy"}
        self._run = numba.njit(self.signature, **options)(self.function)


_registered: list[Kernel] = []
_ready = 0
_lock = threading.Lock()


def kernel(signature: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Register a function with its one signature, such as "void(int64[::1], int64)"."""

    def register(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function, signature)
        _registered.append(made)
        return made

    return register


def uses_reference() -> bool:
    """Whether the plain implementations were asked for."""
    return os.environ.get(MODE_VARIABLE, "") == "reference"


def load() -> None:
    """Make every kernel ready that has been imported so far; from the cache if it can be."""
    global _ready
    with _lock:
        if _ready == len(_registered):
            return
        import numba  # Late: a third of a second, which the reference never pays.

        directory = cache_directory(numba)
        if not (directory / COMPLETE).exists() and os.environ.get(MODE_VARIABLE) != "build":
            _compile_in_another_process(directory)
        # The locator of a cache is chosen when a function is decorated: others' stay theirs.
        config: Any = numba.config
        before = config.CACHE_DIR
        config.CACHE_DIR = str(directory)
        try:
            for each in _registered[_ready:]:
                each.make_ready(numba)
                _ready += 1
        finally:
            config.CACHE_DIR = before


def import_all() -> None:
    """Import every kernel module, so that load() knows all kernels."""
    package = importlib.import_module(PACKAGE)
    for module in pkgutil.iter_modules(package.__path__, f"{PACKAGE}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def build() -> int:
    """Compile all kernels into the cache; how many there are."""
    import numba

    os.environ[MODE_VARIABLE] = "build"
    import_all()
    load()
    (cache_directory(numba) / COMPLETE).touch()
    return len(_registered)


def cache_directory(numba: Any) -> Path:
    """Where the machine code of these very sources lies for this processor; it exists."""
    digest = hashlib.blake2b(digest_size=12)
    llvmlite = importlib.import_module("llvmlite")
    binding = importlib.import_module("llvmlite.binding")
    for fact in (
        numba.__version__,
        llvmlite.__version__,
        sys.version,
        binding.get_host_cpu_name(),
        binding.get_host_cpu_features().flatten(),
    ):
        digest.update(f"{fact}\0".encode())
    for source in sorted(Path(__file__).resolve().parent.glob("*.py")):
        # Numba tells a stale entry by path, time and size of its own file only.
        stat = source.stat()
        digest.update(f"{source}\0{stat.st_mtime_ns}\0{stat.st_size}\0".encode())
        digest.update(source.read_bytes())
    for root in (_home_cache(), _temporary_cache()):
        directory = root / digest.hexdigest()
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError:
            continue
        if all(each.stat().st_uid == os.getuid() for each in (root, directory)):
            return directory
    # Nothing can be kept: each process compiles for itself.
    return Path(tempfile.mkdtemp(prefix="penstock-kernels-"))


def _home_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "penstock" / "kernels"


def _temporary_cache() -> Path:
    # Named after the user, and used only if it is theirs: what lies there is executed.
    return Path(tempfile.gettempdir()) / f"penstock-kernels-{os.getuid()}"


def _compile_in_another_process(directory: Path) -> None:
    """Fill the cache unless somebody has by now. Whoever compiles grows by 100 MB: not us."""
    with open(directory / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (directory / COMPLETE).exists():
            return
        clock = SystemClock()
        begun_ns = clock.monotonic_ns()
        done = subprocess.run(
            [sys.executable, "-m", PACKAGE],
            env={**os.environ, MODE_VARIABLE: "build"},
            capture_output=True,
            text=True,
            timeout=COMPILE_TIMEOUT_S,
            check=False,
        )
        took_s = (clock.monotonic_ns() - begun_ns) / 1e9
        if done.returncode:
            # Each process then compiles for itself, or fails with the same error.
            sys.stderr.write(f"penstock: kernels could not be cached: {done.stderr[-500:]}\n")
        else:
            sys.stderr.write(
                f"penstock: compiled {done.stdout.strip()} kernels in {took_s:.1f} s\n"
            )
