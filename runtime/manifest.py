"""A manifest: everything a checkpoint consists of, in one immutable object.

It says per old subtask where the sealed state lies and how far it was, and which splits were seen.
State is found by operator id at any parallelism and in any chain (hazard 29). A manifest counts
only once the job's log names it. The format is docs/formats/manifest.md.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from penstock.dataflow.plan import Plan, Vertex
from penstock.elements.errors import StateError
from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange
from penstock.elements.signals import BarrierFlag
from penstock.state.log_history import LogPart
from penstock.state.store import Store

from .messages import Acknowledge, RunRef, SubtaskKey

FOLDER = "chk"
MAGIC = b"PSTKMAN1"
MAGIC_PARTS = b"PSTKMAN2"
"""With parts of logs, which readers of version 1 would overlook."""
INLINE_BYTES_MAX = 4 * 1024 * 1024
"""State carried inside one manifest (hazard 57); the largest pieces above it become objects."""
_HEAD = struct.Struct("<8sII")


class OperatorRecord(msgspec.Struct, frozen=True):
    """An operator of the plan that was checkpointed."""

    id: str
    name: str
    stateful: bool


class SubtaskRecord(msgspec.Struct, frozen=True):
    """One subtask at the cut. `run` and `parts` hold the state of all of `operators`."""

    key: SubtaskKey
    operators: list[str]
    parallelism: int
    run: RunRef | None
    finished: bool
    watermark: int
    owes: bool
    parts: list[LogPart] = []


class Manifest(msgspec.Struct, frozen=True):
    """One complete checkpoint."""

    job: str
    run_id: str
    id: int
    generation: int
    attempt: int
    flags: int
    key_groups: int
    fingerprint: str
    operators: list[OperatorRecord]
    subtasks: list[SubtaskRecord]
    seen_splits: dict[str, list[str]]

    @property
    def owes(self) -> bool:
        """Whether some sink had staged rows that this cut commits."""
        return any(record.owes for record in self.subtasks)

    @property
    def runs(self) -> list[RunRef]:
        """Every piece of state, each once: subtasks may share parts of logs."""
        own = [record.run for record in self.subtasks if record.run is not None]
        shared = {part.run: part for part in self.parts}
        return own + [RunRef(part.run, part.size, part.crc) for part in shared.values()]

    @property
    def parts(self) -> list[LogPart]:
        """The parts of all logs."""
        return [part for record in self.subtasks for part in record.parts]


_decoder = msgspec.msgpack.Decoder(Manifest)


def manifest_name(checkpoint_id: int, generation: int, attempt: int) -> str:
    """The object of a manifest (hazard 46)."""
    return f"{FOLDER}/{checkpoint_id}-{generation}-{attempt}"


def manifest_generation(name: str) -> int:
    """The generation that wrote the manifest of this name."""
    return int(name.split("-")[1])


def encode_manifest(manifest: Manifest) -> bytes:
    """Magic, checksum, length, msgpack."""
    body = msgspec.msgpack.encode(manifest)
    magic = MAGIC_PARTS if manifest.parts else MAGIC
    return _HEAD.pack(magic, zlib.crc32(body), len(body)) + body


def decode_manifest(data: bytes, name: str) -> Manifest:
    """StateError that names the object if it is damaged or of another version."""
    if len(data) < _HEAD.size or data[:7] != MAGIC[:7]:
        raise StateError(f"{name} is damaged: it does not begin like a manifest")
    magic, crc, length = _HEAD.unpack_from(data)
    if magic not in (MAGIC, MAGIC_PARTS):
        found = magic[7:].decode()
        raise StateError(f"{name} was written in format {found!r}, this one reads '1' and '2'")
    body = data[_HEAD.size :]
    if len(body) != length or zlib.crc32(body) != crc:
        raise StateError(f"{name} is damaged: {len(body)} bytes of {length}, or a wrong checksum")
    manifest: Manifest = _decoder.decode(body)
    if manifest.key_groups != KEY_GROUPS:
        raise StateError(f"{name} has {manifest.key_groups} key groups, this one has {KEY_GROUPS}")
    return manifest


def plan_fingerprint(plan: Plan) -> str:
    """Changes with operators and edges, not with parallelism: for people who compare manifests."""
    parts = [f"{op.id}:{op.name}" for vertex in plan.vertices for op in vertex.operators]
    parts += [f"{edge.id}:{edge.partition}:{','.join(edge.keys)}" for edge in plan.edges]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def manifest_of(
    plan: Plan,
    run_id: str,
    checkpoint_id: int,
    generation: int,
    attempt: int,
    flags: int,
    acknowledged: Mapping[SubtaskKey, Acknowledge],
    seen_before: Mapping[str, Sequence[str]],
) -> Manifest:
    """Put the acknowledgements of all subtasks together.

    `seen_before` are the splits of the restored checkpoint: ids are never forgotten, also when a
    source is missing from this attempt.
    """
    seen = {operator: dict.fromkeys(ids) for operator, ids in seen_before.items()}
    records = []
    for vertex in plan.vertices:
        for index in range(vertex.parallelism):
            key = SubtaskKey(vertex.id, index)
            ack = acknowledged[key]
            for operator, ids in ack.seen_splits.items():
                seen.setdefault(operator, {}).update(dict.fromkeys(ids))
            records.append(
                SubtaskRecord(
                    key=key,
                    operators=[op.id for op in vertex.operators],
                    parallelism=vertex.parallelism,
                    run=ack.run,
                    finished=ack.finished,
                    watermark=ack.watermark,
                    owes=ack.owes_commit,
                    parts=ack.parts,
                )
            )
    return Manifest(
        job=plan.name,
        run_id=run_id,
        id=checkpoint_id,
        generation=generation,
        attempt=attempt,
        flags=flags,
        key_groups=KEY_GROUPS,
        fingerprint=plan_fingerprint(plan),
        operators=[
            OperatorRecord(op.id, op.name, op.stateful or op.is_source)
            for vertex in plan.vertices
            for op in vertex.operators
        ],
        subtasks=records,
        seen_splits={operator: list(ids) for operator, ids in seen.items()},
    )


def inline_surplus(manifest: Manifest) -> list[int]:
    """Indices of the subtasks whose inline state must become objects: the largest first."""
    sizes = [
        (len(record.run.inline), index)
        for index, record in enumerate(manifest.subtasks)
        if record.run is not None and record.run.inline
    ]
    total = sum(size for size, _ in sizes)
    surplus = []
    for size, index in sorted(sizes, reverse=True):
        if total <= INLINE_BYTES_MAX:
            break
        surplus.append(index)
        total -= size
    return surplus


def check_runs(store: Store, runs: Iterable[RunRef], read: bool = False) -> None:
    """Each run exists with its size, and with `read` also its checksum; else StateError.

    A run that is acknowledged but gone must never be named by a manifest (hazard 15).
    """
    for run in runs:
        if run.inline:
            continue
        size = store.size(run.name)
        if size is None:
            raise StateError(
                f"{run.name} is missing: if its subtask ran on another machine, the state "
                "directory is not the same there"
            )
        if size != run.size:
            raise StateError(f"{run.name} is damaged: {size} bytes, expected {run.size}")
        if read and zlib.crc32(store.get(run.name)) != run.crc:
            raise StateError(f"{run.name} is damaged: its checksum is not {run.crc:08x}")


def restored_runs(manifest: Manifest, vertex: Vertex) -> list[RunRef]:
    """Runs that may hold state of this vertex's operators, in the order of the old subtasks."""
    wanted = {op.id for op in vertex.operators}
    return [
        record.run
        for record in manifest.subtasks
        if record.run is not None and wanted.intersection(record.operators)
    ]


def restored_parts(manifest: Manifest, vertex: Vertex, groups: KeyGroupRange) -> list[LogPart]:
    """What logs of this vertex's operators have in `groups`, oldest first."""
    wanted = {op.id for op in vertex.operators}
    clipped = [part.clipped(groups) for part in manifest.parts if part.operator_id in wanted]
    return [part for part in clipped if part is not None]


def finished_vertices(manifest: Manifest, plan: Plan) -> set[str]:
    """Vertices that start in FINISHED: all their old subtasks had finished, and so had all before.

    A vertex of which only some had finished starts anew on the state of all, since list state is
    dealt out afresh: a finished subtask might be dealt work. A finished vertex behind one that is
    new to the program starts, too, or it would be deaf to it.
    """
    finished: set[str] = set()
    for vertex in plan.vertices:
        wanted = {op.id for op in vertex.operators}
        records = [r for r in manifest.subtasks if wanted.intersection(r.operators)]
        before = {edge.source_vertex for edge in plan.inputs(vertex.id)}
        if records and all(r.finished for r in records) and before <= finished:
            finished.add(vertex.id)
    return finished


def refuse_changed_end(manifest: Manifest, plan: Plan) -> None:
    """StateError when a job that had ended would go on: a FINAL checkpoint has nothing by key."""
    if BarrierFlag.FINAL not in BarrierFlag(manifest.flags):
        return
    left = {vertex.id: vertex for vertex in plan.vertices}
    for ended in finished_vertices(manifest, plan):
        del left[ended]
    if left:
        names = ", ".join(vertex.name for vertex in left.values())
        raise StateError(
            f"all rows had been processed at checkpoint {manifest.id}, and its state is not kept; "
            f"the program has changed and would run on: {names}\n"
            "  Run the program that it was, or begin anew with --fresh."
        )


def refuse_dropped_state(manifest: Manifest, plan: Plan) -> None:
    """StateError when the checkpoint holds state of operators that the program no longer has."""
    present = {op.id: op for vertex in plan.vertices for op in vertex.operators}
    dropped = [op for op in manifest.operators if op.stateful and op.id not in present]
    if not dropped:
        return
    known = {op.id for op in manifest.operators}
    fresh = [op for op in present.values() if op.stateful and op.id not in known]
    lines = [
        f"checkpoint {manifest.id} holds state of operators that the program no longer has",
        *(f"  in the checkpoint only: {op.name} ({op.id})" for op in dropped),
        *(f"  in the program only:    {op.name} ({op.id})" for op in fresh),
        "  Give the operator its old name= back, or give its state up with",
        "  --set allow_dropped_state=true, or begin anew with --fresh.",
    ]
    raise StateError("\n".join(lines))
