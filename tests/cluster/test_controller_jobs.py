"""What a controller makes of jobs: places, launches, scales, logs, and launches again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from controlled_cluster import CREDENTIALS, PATIENCE_S, Cluster, bundle_of, until

from penstock.cluster.client import Client
from penstock.cluster.node_messages import (
    CHUNK_BYTES,
    BundleChunk,
    CloseJob,
    Draining,
    FetchLog,
    Leave,
    LogText,
    NeedBundle,
    ToJobAgent,
)
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import ProtocolError, SettingsError


def test_a_job_runs_on_its_slots_to_its_end(cluster: Cluster) -> None:
    a, b = cluster.node("a").joined(), cluster.node("b").joined()
    info = cluster.submit(slots=4)
    assert info.job == "j"
    opened = a.opened("j")
    assert b.opened("j").launch == opened.launch == 1
    assert a.until(ToJobAgent).body == b"deploy"
    a.from_agent("j", 1, b"hello")
    assert a.until(ToJobAgent).body == b"heard hello"
    running = cluster.until_state("running")
    assert (running.slots, running.nodes) == (4, ["a", "b"])
    a.from_agent("j", 1, b"finish")
    for node in (a, b):
        node.until(CloseJob)
        node.agent_gone("j", 1)
    ended = cluster.until_state("finished")
    assert ended.summary == b"summary"
    assert ended.ended_ns > ended.submitted_ns > 0
    until(lambda: [n.used for n in cluster.client.nodes()] == [0, 0])


def test_a_job_without_a_state_directory_gets_the_clusters(cluster: Cluster) -> None:
    cluster.node().joined()
    cluster.submit()
    status = json.loads(cluster.until_state("running").status)
    assert json.loads(status["settings"])["state_dir"] == str(cluster.data / "state")


def test_a_node_fetches_the_bundle_in_pieces(cluster: Cluster) -> None:
    node = cluster.node().joined()
    bundle = bundle_of(slots=1, padding="x" * (CHUNK_BYTES + 5))
    cluster.client.submit("j", bundle, JobSettings())
    opened = node.opened("j")
    assert (opened.bundle, opened.bundle_bytes) == (bundle.sha256, bundle.size)
    data = b""
    while len(data) < bundle.size:
        node.say(NeedBundle(bundle.sha256, len(data)))
        piece = node.until(BundleChunk)
        assert piece.offset == len(data)
        assert 0 < len(piece.data) <= CHUNK_BYTES
        data += piece.data
    assert data == bundle.data
    node.say(NeedBundle(bundle.sha256, bundle.size))
    assert node.until(BundleChunk).data == b""
    node.say(NeedBundle("f" * 64, 0))
    assert node.until(BundleChunk).data == b""


def test_a_job_waits_for_slots_and_says_for_which(cluster: Cluster) -> None:
    cluster.node("a").joined()
    cluster.submit(slots=4)
    waiting = cluster.until_state("waiting")
    assert "needs 4 slots; 2 of 2 are free" in waiting.note
    cluster.node("b").joined()
    assert cluster.until_state("running").note == ""


def test_a_name_that_runs_is_refused_with_what_to_do(cluster: Cluster) -> None:
    node = cluster.node().joined()
    cluster.submit()
    cluster.until_state("running")
    with pytest.raises(SettingsError, match="running already: stop it first"):
        cluster.submit()
    cluster.client.stop("j")
    node.until(CloseJob)
    # The old launch still has an agent: the new submission is taken, and waits for its end.
    assert cluster.submit().launch == 0
    node.agent_gone("j", 1)
    assert node.opened("j").launch == 2
    assert cluster.client.jobs("j", ended=True)[0].state == "stopped"


@pytest.mark.parametrize(
    ("job", "changes", "says"),
    [
        ("../j", {}, "cannot name a directory"),
        ("j" * 201, {}, "bytes at most"),
        ("j", {"placement": "anywhere"}, "pack or spread"),
        ("j", {"environment": {"A=B": "c"}}, "environment variable"),
    ],
)
def test_a_submission_that_cannot_be_is_refused(
    cluster: Cluster, job: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(Exception, match=says):
        cluster.client.submit(job, bundle_of(slots=1), JobSettings(), **changes)
    assert cluster.client.jobs(ended=True) == []


def test_a_coordinator_that_is_killed_is_launched_again_after_its_agents_are_closed(
    cluster: Cluster,
) -> None:
    node = cluster.node().joined()
    cluster.submit()
    cluster.until_state("running")
    os.kill(cluster.coordinator(), signal.SIGKILL)
    closed = node.until(CloseJob)
    assert closed.launch == 1
    info = cluster.until_state("restarting")
    assert "SIGKILL" in info.note
    assert info.launch == 1
    node.agent_gone("j", 1)
    assert node.opened("j").launch == 2
    cluster.until_state("running")


def test_a_coordinator_that_always_dies_fails_the_job(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.cluster import jobs
    from penstock.runtime.restart import RestartPolicy

    monkeypatch.setattr(jobs, "LAUNCHES_IN_A_ROW", RestartPolicy(2, 1000, 1000, 10**12))
    cluster.submit(dies=True)
    failed = cluster.until_state("failed")
    assert "SIGKILL" in failed.note
    assert failed.launch == 3
    (part,) = cluster.client.logs("j")
    assert part.text.count("launch 3 of") == 1


def test_a_lost_node_is_replaced_only_when_it_is_gone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "data", stack, lease_s=1.0, margin_s=0.5).start()
        a, spare = cluster.node("a").joined(), cluster.node("b").joined()
        cluster.submit()
        a.opened("j")
        cluster.until_state("running")
        last_beat = time.monotonic()
        a.close()
        spare.opened("j")
        assert time.monotonic() - last_beat > 1.0
        assert cluster.job().nodes == ["b"]


def test_a_draining_node_moves_its_jobs_away_and_leaves(cluster: Cluster) -> None:
    a = cluster.node("a").joined()
    cluster.submit()
    a.opened("j")
    cluster.until_state("running")
    b = cluster.node("b").joined()
    a.say(Draining("SIGTERM"))
    a.until(CloseJob)
    a.agent_gone("j", 1)
    a.until(Leave)
    assert b.opened("j").launch == 2
    a.close()
    until(lambda: cluster.client.nodes()[0].note == "it left")


def test_scaling_relaunches_with_the_new_widths(cluster: Cluster) -> None:
    node = cluster.node(slots=8).joined()
    cluster.submit(slots=2)
    cluster.until_state("running")
    cluster.client.scale("j", {"": 5})
    node.until(CloseJob)
    assert cluster.job().state in ("rescaling", "restarting")
    node.agent_gone("j", 1)
    until(lambda: cluster.job().slots == 5)
    assert cluster.until_state("running").launch == 2


def test_widths_that_cannot_be_are_taken_back(cluster: Cluster) -> None:
    node = cluster.node().joined()
    cluster.submit()
    cluster.until_state("running")
    cluster.client.scale("j", {"nonsense": 5})
    node.until(CloseJob)
    node.agent_gone("j", 1)
    info = until(lambda: i if (i := cluster.job()).launch == 3 and i.state == "running" else None)
    assert "no operator nonsense" in info.note


def test_logs_come_from_the_coordinator_and_all_nodes_that_have_some(cluster: Cluster) -> None:
    nodes = [cluster.node(name).joined() for name in "abc"]
    cluster.submit()
    cluster.until_state("running")
    link_client = Client(cluster.address, CREDENTIALS)
    try:
        parts: list[Any] = []
        asking = threading.Thread(target=lambda: parts.extend(link_client.logs("j", 1000)))
        asking.start()
        texts = {"a": "from a\n", "b": ""}
        for node in nodes[:2]:
            asked = node.until(FetchLog)
            assert (asked.job, asked.bytes_max) == ("j", 1000)
            node.say(LogText(asked.request, texts[node.name.node]))
        # c never answers: what there is comes in time.
        asking.join(PATIENCE_S)
        assert [part.where for part in parts] == ["coordinator", "a", "c"]
        assert "launch 1 of" in parts[0].text
        assert parts[1].text == "from a\n"
        assert "did not answer" in parts[2].text
    finally:
        link_client.close()


def test_an_answer_that_is_too_large_fails_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [cluster.node(name).joined() for name in "ab"]
    cluster.submit()
    cluster.until_state("running")
    monkeypatch.setattr("penstock.cluster.link.BODY_BYTES_MAX", 50_000)
    with Client(cluster.address, CREDENTIALS) as asking, ThreadPoolExecutor(1) as thread:
        parts = thread.submit(asking.logs, "j", 1000)
        for node in nodes:
            node.say(LogText(node.until(FetchLog).request, "x" * 40_000))
        with pytest.raises(ProtocolError, match="the answer"):
            parts.result(PATIENCE_S)
        # Neither the node whose part was the last is cut off for it, nor the client.
        assert [(node.name, node.state) for node in asking.nodes()] == [
            ("a", "member"), ("b", "member"),
        ]  # fmt: skip


def test_who_asks_for_a_job_that_never_was_is_told(cluster: Cluster) -> None:
    for ask in (cluster.client.stop, cluster.client.logs):
        with pytest.raises(SettingsError, match="there is no job 'x'"):
            ask("x")
    with pytest.raises(SettingsError, match="there is no job 'x'"):
        cluster.client.scale("x", {"": 2})
