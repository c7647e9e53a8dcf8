"""Jobs, nodes and logs as tables for people and as JSON documents for programs.

The documents' shapes are described in docs/cluster.md and only ever grow.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from penstock.cluster.client_messages import JobInfo, NodeInfo
from penstock.cluster.submitting import status_of
from penstock.dataflow.launcher import JobStatus, Summary
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

OVERLAP_CHARS = 4096
"""As much of a log's last look is searched for in the next one."""


def write_document(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def job_document(info: JobInfo) -> dict[str, Any]:
    """One submission."""
    return {
        "id": info.id,
        "job": info.job,
        "state": info.state,
        "note": info.note,
        "slots": info.slots,
        "nodes": list(info.nodes),
        "launch": info.launch,
        "submitted": _instant(info.submitted_ns),
        "ended": _instant(info.ended_ns),
        "status": _status_document(info.status),
        "summary": msgspec.json.decode(info.summary) if info.summary else None,
    }


def node_document(info: NodeInfo) -> dict[str, Any]:
    """One node."""
    document: dict[str, Any] = msgspec.to_builtins(info)
    return document


def log_document(job: str, texts: Mapping[str, str]) -> dict[str, Any]:
    """Lines by process: "coordinator" or a node's name."""
    return {
        "job": job,
        "logs": [{"where": where, "lines": text.splitlines()} for where, text in texts.items()],
    }


def jobs_table(jobs: Sequence[JobInfo], *, operators: bool = False) -> str:
    """One line per job, and below it one per chain of operators if asked for."""
    rows = [("ID", "JOB", "STATE", "SLOTS", "NODES", "EPOCH", "IN", "OUT", "RESTARTS", "NOTE")]
    for info in jobs:
        counted = _counted(info)
        rows.append(
            (
                str(info.id),
                info.job,
                info.state,
                str(info.slots),
                ",".join(info.nodes) or "-",
                str(counted.epoch),
                f"{counted.rows_in:,}",
                f"{counted.rows_out:,}",
                str(counted.restarts),
                first_line(info.note),
            )
        )
    text = _table(rows)
    for info in jobs if operators else ():
        chains = [("  OPERATORS", "X", "IN", "OUT", "BUSY", "BLOCKED")]
        chains += [
            (
                f"  {chain.name}",
                str(chain.parallelism),
                f"{chain.rows_in:,}",
                f"{chain.rows_out:,}",
                f"{chain.busy:.0%}",
                f"{chain.blocked:.0%}",
            )
            for chain in status_of(info).operators
        ]
        text += _table(chains) if len(chains) > 1 else ""
        text += "".join(f"  {line}\n" for line in info.note.splitlines()[1:])
    return text


def nodes_table(nodes: Sequence[NodeInfo]) -> str:
    """One line per node."""
    rows = [("NODE", "STATE", "SLOTS", "USED", "JOBS", "ADDRESS", "PID", "LABELS", "NOTE")]
    rows += [
        (
            node.name,
            node.state,
            str(node.slots),
            str(node.used),
            ",".join(node.jobs) or "-",
            node.address,
            str(node.pid),
            ",".join(f"{name}={value}" for name, value in sorted(node.labels.items())) or "-",
            first_line(node.note),
        )
        for node in nodes
    ]
    return _table(rows)


def first_line(text: str) -> str:
    """What fits into a table.

    >>> first_line("ValueError: bad" + chr(10) + "  more")
    'ValueError: bad …'
    """
    line, more, _ = text.partition("\n")
    return f"{line} …" if more else line


def log_news(before: str, now: str) -> str:
    """What a log's second look has beyond its first; both are the ends of one growing text.

    >>> log_news("a\\nb\\nc\\n", "b\\nc\\nd\\n")
    'd\\n'
    >>> log_news("", "all"), log_news("gone\\n", "all new")
    ('all', 'all new')
    """
    if now.startswith(before):
        return now[len(before) :]
    # Both are whole lines, cut at the front: the longest end of the first that the second has.
    tail = before[-OVERLAP_CHARS:]
    while tail:
        at = now.rfind(tail)
        if at >= 0:
            return now[at + len(tail) :]
        tail = tail.partition("\n")[2]
    return now


def _counted(info: JobInfo) -> JobStatus | Summary:
    """What has the job's counters: its summary once it has ended."""
    if info.summary:
        return msgspec.json.decode(info.summary, type=Summary)
    return status_of(info)


def _status_document(status: bytes) -> dict[str, Any] | None:
    """JobStatus, with the watermark as nanoseconds or null before the first and after the last."""
    if not status:
        return None
    document: dict[str, Any] = msgspec.json.decode(status)
    for part in (document, *document["operators"]):
        watermark = part["watermark"]
        if watermark is not None and not WATERMARK_MIN < watermark < WATERMARK_MAX:
            part["watermark"] = None
    return document


def _instant(at_ns: int) -> str | None:
    if not at_ns:
        return None
    return dt.datetime.fromtimestamp(at_ns / 1e9, dt.UTC).isoformat(timespec="milliseconds")


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)
