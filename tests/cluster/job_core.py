"""The core of the jobs of a cluster, brought where a test begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from penstock.cluster.job_messages import (
    OpenAgent,
    Report,
)
from penstock.cluster.job_record import (
    JobRecord,
    OpenOnNode,
    SaveJob,
    StartProcess,
)
from penstock.cluster.jobs import Jobs
from penstock.cluster.node_messages import NodeName

A, B = NodeName("a", "1"), NodeName("b", "1")
RUNNING = Report(b'{"state": "running"}')


def record(job: str = "j", **changes: Any) -> JobRecord:
    return replace(JobRecord(1, "s", job, "sha", 10, b"{}", "pack"), **changes)


def kinds(commands: list[Any]) -> list[type]:
    return [type(command) for command in commands]


def running(agents: tuple[NodeName, ...] = (A, B)) -> Jobs:
    """Job j in its first launch, with agents."""
    jobs = Jobs({})
    assert kinds(jobs.begin(record(), 0)) == [SaveJob, StartProcess]
    for name in agents:
        assert kinds(jobs.on_open_agent("j", 1, OpenAgent(name))) == [OpenOnNode]
    assert kinds(jobs.on_report("j", 1, RUNNING, 0)) == [SaveJob]
    return jobs
