"""The bundle: a program and the user's modules it imports, as one zip named by its hash.

    meta.json        BundleMeta
    program.pickle   a Program by cloudpickle; classes of __main__ are in it by value
    modules/…        what the program imports from its own directory and the working directory

The same program and files give the same bytes. Reading one unpickles nothing: controllers and
node agents handle bundles, job processes and subtasks run them. Nothing in a bundle is believed
before it is checked: paths, kinds of members, sizes.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock import __version__
from penstock.dataflow.program import Program
from penstock.elements.errors import PlanError, ProtocolError

from .bundle_modules import user_modules, user_roots
from .node_messages import BUNDLE_BYTES_MAX, PROTOCOL_VERSION

META = "meta.json"
PROGRAM = "program.pickle"
MODULES = "modules/"
UNPACKED_BYTES_MAX = 2 * BUNDLE_BYTES_MAX
"""All members together, however well they were packed."""
MEMBERS_MAX = 50_000
META_BYTES_MAX = 64 * 1024
COPY_BYTES = 1024 * 1024
LARGEST_NAMED = 5
"""Files that the error about a bundle's size tells of."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest date a zip can hold; real ones would make equal content differ."""


class BundleMeta(msgspec.Struct, frozen=True):
    """What is known of a program without running anything of it."""

    penstock: str
    python: str
    protocol: int
    job: str
    cwd: str
    """Where it was submitted; relative paths mean this directory, where it exists."""
    program: str
    """The file's name, for people."""


@dataclass(frozen=True)
class Bundle:
    """A finished bundle; `sha256` is its name."""

    sha256: str
    data: bytes
    size: int


@dataclass(frozen=True)
class BundleContents:
    """What a job process reads. `program` is program_of's to unpickle."""

    program: bytes
    meta: BundleMeta


def python_minor() -> str:
    """Such as "3.11": pickled functions hold byte code of one minor version."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def make_bundle(program: Program, roots: Sequence[str] | None = None) -> Bundle:
    """The bundle of a program of this process.

    `roots` are the directories whose imported modules go with it; None: the directory of the
    program's file and the working directory. Raises PlanError for what cannot be sent, or is too
    large.
    """
    blob = program.to_bytes()
    files = user_modules(user_roots() if roots is None else roots)
    _refuse_large(program.name, len(blob), [(name, path.stat().st_size) for name, path in files])
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    meta = BundleMeta(
        __version__,
        python_minor(),
        PROTOCOL_VERSION,
        program.name,
        os.getcwd(),
        os.path.basename(main),
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, META, msgspec.json.format(msgspec.json.encode(meta)))
        _add(archive, PROGRAM, blob)
        for name, path in files:
            _add(archive, MODULES + name, path.read_bytes())
    data = out.getvalue()
    return Bundle(hashlib.sha256(data).hexdigest(), data, len(data))


def read_bundle(path: str | os.PathLike[str]) -> BundleContents:
    """What is in it. ProtocolError if it is damaged or not of this version."""
    with _opened(path) as archive:
        raw = _member(archive, META, META_BYTES_MAX)
        try:
            meta = msgspec.json.decode(raw, type=BundleMeta)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"bundle {path}: its {META} cannot be read: {error}") from error
        if meta.protocol != PROTOCOL_VERSION or meta.python != python_minor():
            raise ProtocolError(
                f"bundle {path} was made by Python {meta.python}, protocol {meta.protocol}; here "
                f"are Python {python_minor()}, protocol {PROTOCOL_VERSION}: submit from the same"
            )
        return BundleContents(_member(archive, PROGRAM, BUNDLE_BYTES_MAX), meta)


def unpack_modules(path: str | os.PathLike[str], directory: str | os.PathLike[str]) -> None:
    """Make `directory`, with the user's modules in it; if it is there, it is whole already.

    Built beside and renamed into place, so a death in between leaves nothing that looks whole.
    Raises ProtocolError for a bundle that would write elsewhere, or more than it may.
    """
    target = Path(directory)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path) as archive:
        beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            for member in archive.infolist():
                if member.filename.startswith(MODULES):
                    _extract(archive, member, beside)
            try:
                beside.rename(target)
            except OSError:
                # Somebody else was faster: theirs is as good, since a bundle never changes.
                if not target.is_dir():
                    raise
        except OSError as error:
            raise ProtocolError(f"bundle {path} cannot be unpacked: {error}") from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)


# Writing ------------------------------------------------------------------------------------------


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.compress_type = zipfile.ZIP_DEFLATED
    member.external_attr = (stat.S_IFREG | 0o644) << 16
    member.create_system = 3
    archive.writestr(member, data)


def _refuse_large(job: str, program_bytes: int, files: Sequence[tuple[str, int]]) -> None:
    total = program_bytes + sum(size for _, size in files)
    if total <= BUNDLE_BYTES_MAX and len(files) < MEMBERS_MAX - 2:
        return
    sizes = sorted([("the program itself", program_bytes), *files], key=lambda one: -one[1])
    largest = ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes[:LARGEST_NAMED])
    raise PlanError(
        f"{job}: the program and its {len(files):,} files are {total:,} bytes, more than "
        f"{BUNDLE_BYTES_MAX:,} or {MEMBERS_MAX:,} files\n  The largest: {largest}\n"
        "  Keep data out of the folders of modules; let open() read it from where all nodes can."
    )


# Reading ------------------------------------------------------------------------------------------


def _opened(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """The archive, all its members checked by what its directory says of them."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ProtocolError(f"bundle {path} cannot be read: {error}") from error
    try:
        _check(archive.infolist(), path)
    except BaseException:
        archive.close()
        raise
    return archive


def _check(members: Sequence[zipfile.ZipInfo], path: object) -> None:
    def refuse(why: str) -> ProtocolError:
        return ProtocolError(f"bundle {path} is refused: {why}")

    if len(members) > MEMBERS_MAX:
        raise refuse(f"it has {len(members):,} members")
    if sum(member.file_size for member in members) > UNPACKED_BYTES_MAX:
        raise refuse(f"it would take more than {UNPACKED_BYTES_MAX:,} bytes")
    seen: set[str] = set()
    for member in members:
        name = member.filename
        # What zipfile has made of a name is not what the archive says: a NUL ends it there.
        plain = name == member.orig_filename and name.isprintable() and "\\" not in name
        parts = name.split("/")
        if not plain or any(part in ("", ".", "..") for part in parts):
            raise refuse(f"{member.orig_filename!r} is no path of a file inside")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir() or kind not in (0, stat.S_IFREG):
            raise refuse(f"{name} is no regular file")
        if name not in (META, PROGRAM) and not name.startswith(MODULES):
            raise refuse(f"{name} has no place in a bundle")
        if name in seen:
            raise refuse(f"{name} is in it twice")
        seen.add(name)
    if not {META, PROGRAM} <= seen:
        raise refuse(f"{META} or {PROGRAM} is missing")


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    member = archive.getinfo(name)
    if member.file_size > limit:
        raise ProtocolError(f"{name} of bundle {archive.filename} is larger than {limit:,} bytes")
    out = io.BytesIO()
    _copy(archive, member, out)
    return out.getvalue()


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, directory: Path) -> None:
    target = directory / member.filename.removeprefix(MODULES)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as out:
        _copy(archive, member, out)


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, out: io.BufferedIOBase) -> None:
    """Never more than the directory announced, whatever the packed bytes turn into."""
    left = member.file_size
    try:
        with archive.open(member) as packed:
            while chunk := packed.read(min(COPY_BYTES, left + 1)):
                left -= len(chunk)
                if left < 0:
                    raise ProtocolError(f"{member.filename} is larger than it says")
                out.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ProtocolError(
            f"{member.filename} of bundle {archive.filename} is damaged: {error}"
        ) from error
    if left:
        raise ProtocolError(f"{member.filename} of bundle {archive.filename} is cut short")
