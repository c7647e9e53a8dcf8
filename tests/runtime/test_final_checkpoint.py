"""What is kept of a job that has read everything: nothing by key."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

import penstock as ps
from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange
from penstock.elements.signals import BarrierFlag
from penstock.runtime.manifest import decode_manifest
from penstock.runtime.messages import RunRef
from penstock.state.run import read_run
from penstock.state.store import LocalStore

EVERYTHING = KeyGroupRange(0, KEY_GROUPS)
ROWS = 20_000


def kinds_by_flags(root: Path) -> dict[BarrierFlag, set[str]]:
    """The kinds of state that hold rows in each kept checkpoint, parts of logs as "part"."""
    store = LocalStore(str(root), durability="process")
    found: dict[BarrierFlag, set[str]] = {}
    for stored in store.list("chk"):
        manifest = decode_manifest(store.get(stored.name), stored.name)
        kinds = found.setdefault(BarrierFlag(manifest.flags), set())
        kinds.update("part" for _ in manifest.parts)
        for record in manifest.subtasks:
            assert record.run is not None
            sections = read_run(bytes_of(store, record.run), everyone(record.operators), EVERYTHING)
            kinds.update(section.kind for section in sections if section.batch.num_rows)
    store.close()
    return found


def bytes_of(store: LocalStore, run: RunRef) -> bytes:
    return run.inline or store.get(run.name)


def everyone(operators: list[str]) -> list[str]:
    return [*operators, *(f"{operator}#watermark" for operator in operators)]


def test_the_last_checkpoint_of_a_bounded_job_holds_nothing_by_key(tmp_path: Path) -> None:
    p = ps.Pipeline("ends")
    left = p.source(pa.table({"k": range(ROWS), "l": range(ROWS)}))
    right = p.source(pa.table({"k": range(ROWS), "r": range(ROWS)}))
    joined = left.join(right, on="k", ttl=ps.FOREVER)
    counted = joined.key_by("k").aggregate(n="count(*)", ttl=ps.FOREVER)
    joined.sink(ps.FileSink(str(tmp_path / "out")))
    counted.sink(ps.BlackholeSink())
    summary = p.run(parallelism=2, state_dir=str(tmp_path), checkpoint_interval="50 ms")
    assert (summary.outcome, summary.rows_in) == ("finished", 2 * ROWS)

    found = kinds_by_flags(tmp_path / "ends")
    assert found[BarrierFlag.FINAL] == {"operator"}
