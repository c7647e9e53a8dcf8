"""The job's ordered log: the only commit point, and the fence between leaders (hazards 10, 11).

1. Entry n+1 is created only by someone who knows entry n; a name is created once.
2. A leader begins with a takeover. From then on it lists no more: its next entry is its own last
   one plus 1, so it cannot step over a newer takeover, and whoever finds its slot taken is fenced.
3. A checkpoint counts from the moment its entry exists, never before, and for ever.
4. Entries are never deleted while the job exists.

The format is docs/formats/log.md. Randomness comes in as `writer`, a token unique to this leader.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec

from penstock.elements.errors import Fenced, StateError
from penstock.state.store import Store

FOLDER = "log"
RESERVED_IDS = 8
"""Checkpoint ids that may be triggered beyond the last entry; a new leader begins above them, so
that no id is used twice even if its checkpoint came to nothing."""
APPEND_TRIES = 5
"""A create whose fate is unknown is looked up and repeated this often."""
LINE_MAX = 1024
"""Checkpoints that a history remembers; manifests further back are collected long since."""
TAKEOVER_TRIES = 100
"""Takeovers lost in a row to others; more than a handful means that leaders fight."""


_FIND_OUT = "  Make the state directory usable and run the job again: it will find out."


class UncertainLog(StateError):
    """Whether an entry exists cannot be found out, so this leader must not go on."""


class Takeover(msgspec.Struct, frozen=True, tag="takeover"):
    """A leader begins: it runs on from checkpoint entry `restores`, 0 for from the start."""

    seq: int
    generation: int
    run_id: str
    restores: int
    reserved: int
    writer: str


class Attempted(msgspec.Struct, frozen=True, tag="attempt"):
    """An attempt starts from checkpoint id `restores`, 0 for from the start: for the record."""

    seq: int
    generation: int
    attempt: int
    restores: int
    writer: str


class Checkpointed(msgspec.Struct, frozen=True, tag="checkpoint"):
    """Checkpoint `id` is complete. `owes`: some sink had staged rows that this cut commits."""

    seq: int
    generation: int
    attempt: int
    id: int
    manifest: str
    owes: bool
    reserved: int
    writer: str


class Reserved(msgspec.Struct, frozen=True, tag="reserved"):
    """Ids up to `reserved` may be triggered: many checkpoints came to nothing."""

    seq: int
    generation: int
    reserved: int
    writer: str


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """All data is read and every commit up to checkpoint `id` is done."""

    seq: int
    generation: int
    id: int
    writer: str


Entry = Takeover | Attempted | Checkpointed | Reserved | Finished
_decoder = msgspec.json.Decoder(Entry)


def entry_name(seq: int) -> str:
    """The object that holds entry `seq`."""
    return f"{FOLDER}/{seq:08d}"


def encode_entry(entry: Entry) -> bytes:
    """A line of JSON behind its checksum."""
    body = msgspec.json.encode(entry)
    return b"%08x " % zlib.crc32(body) + body + b"\n"


def decode_entry(data: bytes, name: str) -> Entry:
    """StateError that names the entry if it is damaged."""
    crc, body = data[:8], data[9:-1]
    if len(data) < 10 or data[8:9] != b" " or crc != b"%08x" % zlib.crc32(body):
        raise StateError(
            f"{name} is damaged: the job's history cannot be known beyond it\n"
            "  Restore the state directory from a copy, or begin anew with --fresh."
        )
    entry: Entry = _decoder.decode(body)
    return entry


@dataclass(frozen=True)
class History:
    """What the entries say, read in order."""

    length: int = 0
    line: tuple[Checkpointed, ...] = ()
    """The checkpoints that count, oldest first: those that the present was derived from; at most
    LINE_MAX of them."""
    generation: int = 0
    run_id: str = ""
    reserved: int = 0
    """No id up to this may be used again."""
    finished: Finished | None = None

    @property
    def last(self) -> Checkpointed | None:
        """The checkpoint to go on from."""
        return self.line[-1] if self.line else None

    def then(self, entry: Entry) -> History:
        """The story with one more entry. StateError where it contradicts itself."""
        seq = self.length + 1
        _require(entry.seq == seq, entry.seq, f"expected entry {seq}")
        _require(not self.finished, seq, "the job had finished")
        if isinstance(entry, Takeover):
            return self._taken_over(entry)
        _require(entry.generation == self.generation, seq, "an old leader wrote it")
        if isinstance(entry, Finished):
            return replace(self, length=seq, finished=entry)
        if isinstance(entry, Attempted):
            return replace(self, length=seq)
        reserved = max(self.reserved, entry.reserved)
        if isinstance(entry, Reserved):
            return replace(self, length=seq, reserved=reserved)
        last = self.last
        _require(last is None or entry.id > last.id, seq, "checkpoint ids must grow")
        return replace(self, length=seq, reserved=reserved, line=(*self.line, entry)[-LINE_MAX:])

    def _taken_over(self, entry: Takeover) -> History:
        seq = entry.seq
        _require(entry.generation == self.generation + 1, seq, "generations must count up")
        _require(self.run_id in ("", entry.run_id), seq, "it belongs to another run")
        line = tuple(kept for kept in self.line if kept.seq <= entry.restores)
        _require((line[-1].seq if line else 0) == entry.restores, seq, "unknown restore")
        return History(
            seq, line, entry.generation, entry.run_id, max(self.reserved, entry.reserved)
        )


def history_of(entries: Iterable[Entry]) -> History:
    """Read the story from its beginning."""
    history = History()
    for entry in entries:
        history = history.then(entry)
    return history


def _require(holds: bool, seq: int, what: str) -> None:
    if not holds:
        raise StateError(f"{entry_name(seq)} contradicts the entries before it: {what}")


def read_entries(store: Store) -> Iterator[Entry]:
    """Every entry, oldest first."""
    for seq, stored in enumerate(store.list(FOLDER), start=1):
        if stored.name != entry_name(seq):
            raise StateError(f"{entry_name(seq)} is missing, but {stored.name} is there")
        yield decode_entry(store.get(stored.name), stored.name)


def read_history(store: Store) -> History:
    """The whole log; empty if the job has never run."""
    return history_of(read_entries(store))


@dataclass
class JobLog:
    """One leader's hold on the log. Use `take_over` first; after Fenced it appends no more."""

    store: Store
    writer: str
    history: History = field(default_factory=History)
    generation: int = 0
    first_id: int = 0
    """The first checkpoint id that is this leader's to use."""
    _last: int = 0
    _reserved: int = 0
    _fenced: str = ""

    def take_over(
        self, run_id: str, choose: Callable[[History], Checkpointed | None]
    ) -> Takeover | None:
        """Become the leader; None if the job has finished already.

        `run_id` counts only for a job that never ran. `choose` says which checkpoint of the
        history to go on from; it is asked again when another leader was faster.
        """
        for _ in range(TAKEOVER_TRIES):
            history = read_history(self.store)
            if history.finished:
                self.history = history
                return None
            chosen = choose(history)
            entry = Takeover(
                seq=history.length + 1,
                generation=history.generation + 1,
                run_id=history.run_id or run_id,
                restores=chosen.seq if chosen else 0,
                reserved=history.reserved + RESERVED_IDS,
                writer=self.writer,
            )
            if self._create(entry):
                self.history = history.then(entry)
                self.generation, self._last = entry.generation, entry.seq
                self.first_id = history.reserved + 1
                self._reserved = entry.reserved
                return entry
        raise Fenced(f"{TAKEOVER_TRIES} other leaders were faster: is the job started in a loop?")

    def reserve(self, checkpoint_id: int) -> None:
        """Make sure that nobody will use this id again; call before triggering it."""
        if checkpoint_id > self._reserved:
            upto = checkpoint_id + RESERVED_IDS
            self._append(Reserved(self._last + 1, self.generation, upto, self.writer))
            self._reserved = upto

    def append_attempt(self, attempt: int, restores: int) -> None:
        """Note that an attempt starts. Raises Fenced if a newer leader owns the job."""
        self._append(Attempted(self._last + 1, self.generation, attempt, restores, self.writer))

    def append_checkpoint(self, attempt: int, checkpoint_id: int, manifest: str, owes: bool) -> int:
        """Complete a checkpoint; its manifest and all runs must be durable. Returns the seq.

        Raises Fenced if a newer leader owns the job: then it does not count.
        """
        assert checkpoint_id <= self._reserved
        reserved = max(self._reserved, checkpoint_id + RESERVED_IDS)
        entry = Checkpointed(
            seq=self._last + 1,
            generation=self.generation,
            attempt=attempt,
            id=checkpoint_id,
            manifest=manifest,
            owes=owes,
            reserved=reserved,
            writer=self.writer,
        )
        self._append(entry)
        self._reserved = reserved
        return entry.seq

    def append_finished(self, checkpoint_id: int) -> None:
        """The job is done; no leader will take over after this."""
        self._append(Finished(self._last + 1, self.generation, checkpoint_id, self.writer))

    def is_fenced(self) -> bool:
        """Whether somebody has written behind this leader's last entry."""
        if not self._fenced and self.store.size(entry_name(self._last + 1)) is not None:
            self._fence(self._last + 1)
        return bool(self._fenced)

    def _append(self, entry: Entry) -> None:
        assert self._last, "take over first"
        if self._fenced:
            raise Fenced(self._fenced)
        if not self._create(entry):
            self._fence(entry.seq)
            raise Fenced(self._fenced)
        self._last = entry.seq
        self.history = self.history.then(entry)

    def _fence(self, seq: int) -> None:
        name = entry_name(seq)
        other = decode_entry(self.store.get(name), name)
        if getattr(other, "writer", "") == self.writer:
            raise UncertainLog(f"{name}, which had seemed to fail, exists after all\n{_FIND_OUT}")
        self._fenced = (
            f"generation {other.generation} has taken the job over from generation "
            f"{self.generation} ({name}); this one stops without further effect"
        )

    def _create(self, entry: Entry) -> bool:
        """True if the entry is there and ours, also when only an earlier try succeeded.

        StateError: it is not there. UncertainLog: it may be.
        """
        name, body = entry_name(entry.seq), encode_entry(entry)
        refused: StateError | None = None
        for _ in range(APPEND_TRIES):
            try:
                created = self.store.put(name, body)
            except StateError as error:
                # The reply was lost or the store refused: look what became of it.
                refused, created = error, False
            try:
                if not created and self.store.size(name) is None:
                    continue
                if not created and self.store.get(name) != body:
                    return False
                self.store.sync()
            except StateError as error:
                raise UncertainLog(f"{name} may or may not exist: {error}\n{_FIND_OUT}") from error
            return True
        assert refused is not None
        raise refused
