"""Bundles of a node: fetched piece by piece, believed by their hash, kept while they are used."""

from __future__ import annotations

import hashlib
import queue
from pathlib import Path

import pytest

import penstock as ps
from penstock.cluster import node_bundles
from penstock.cluster.bundle import Bundle, make_bundle
from penstock.cluster.node_bundles import BundleSettled, NodeBundles
from penstock.cluster.node_messages import BundleChunk, NeedBundle
from penstock.dataflow.program import Program

PATIENCE_S = 20.0


class Node:
    """Bundles, and what they ask for and say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[NeedBundle] = []
        self.said: queue.SimpleQueue[BundleSettled] = queue.SimpleQueue()
        self.bundles = NodeBundles(folder, self.asked.append, self.said.put)

    def settled(self) -> BundleSettled:
        found = self.said.get(timeout=PATIENCE_S)
        self.bundles.on_settled(found)
        return found

    def fetch(self, bundle: Bundle, data: bytes | None = None, step: int = 100) -> BundleSettled:
        whole = bundle.data if data is None else data
        self.bundles.want(bundle.sha256, bundle.size)
        while self.asked:
            need = self.asked.pop()
            piece = whole[need.offset : need.offset + step]
            self.bundles.on_chunk(BundleChunk(need.sha256, need.offset, piece))
        return self.settled()

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def bundle(name: str) -> Bundle:
    pipeline = ps.Pipeline(name)
    pipeline.source([{"v": 1}]).sink(ps.BlackholeSink())
    return make_bundle(Program(name, tuple(pipeline._ends), pipeline.functions), [])


def test_a_bundle_is_fetched_once(tmp_path: Path) -> None:
    node, wanted = Node(tmp_path), bundle("a")
    found = node.fetch(wanted).unpacked
    assert found is not None
    assert found.modules == str(tmp_path / wanted.sha256)
    assert node.names() == {wanted.sha256}
    node.bundles.want(wanted.sha256, wanted.size)
    assert node.settled().unpacked == found
    assert node.asked == []
    assert node.bundles.find(wanted.sha256) == found


def test_two_who_want_it_ask_once(tmp_path: Path) -> None:
    node, wanted = Node(tmp_path), bundle("a")
    node.bundles.want(wanted.sha256, wanted.size)
    assert node.fetch(wanted).unpacked is not None
    assert node.said.empty()


def test_pieces_out_of_place_are_dropped(tmp_path: Path) -> None:
    node, wanted = Node(tmp_path), bundle("a")
    node.bundles.on_chunk(BundleChunk(wanted.sha256, 0, wanted.data))
    node.bundles.want(wanted.sha256, wanted.size)
    node.bundles.on_chunk(BundleChunk(wanted.sha256, 7, b"seven"))
    node.bundles.on_chunk(BundleChunk(wanted.sha256, 0, wanted.data[:50]))
    node.bundles.on_chunk(BundleChunk(wanted.sha256, 0, wanted.data[:50]))
    assert node.asked == [NeedBundle(wanted.sha256, 0), NeedBundle(wanted.sha256, 50)]
    node.bundles.on_chunk(BundleChunk(wanted.sha256, 50, wanted.data[50:]))
    assert node.settled().unpacked is not None


def test_too_much_too_little_and_other_bytes_are_refused(tmp_path: Path) -> None:
    node, wanted = Node(tmp_path), bundle("a")
    for data in (wanted.data + b"x", wanted.data[:-1], bytes(wanted.size)):
        found = node.fetch(wanted, data)
        assert found.unpacked is None
        assert found.failure
        assert node.names() == set()
    assert node.fetch(wanted).unpacked is not None


def test_bytes_that_are_no_bundle_are_refused_although_their_hash_is_right(tmp_path: Path) -> None:
    node = Node(tmp_path)
    data = b"no zip at all"
    found = node.fetch(Bundle(hashlib.sha256(data).hexdigest(), data, len(data)))
    assert found.unpacked is None
    assert "cannot be read" in found.failure
    assert node.names() == set()


def test_a_fetch_that_was_cut_off_begins_anew(tmp_path: Path) -> None:
    node, wanted = Node(tmp_path), bundle("a")
    node.bundles.want(wanted.sha256, wanted.size)
    node.bundles.on_chunk(BundleChunk(wanted.sha256, 0, wanted.data[:50]))
    node.bundles.forget_fetches()
    assert node.names() == set()
    node.asked.clear()
    assert node.fetch(wanted).unpacked is not None


def test_of_what_nobody_uses_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_bundles, "HELD_MAX", 1)
    node = Node(tmp_path)
    used, old, new = bundle("used"), bundle("old"), bundle("new")
    for each in (used, old, new):
        assert node.fetch(each).unpacked is not None
    node.bundles.trim({used.sha256})
    assert node.bundles.find(old.sha256) is None
    assert old.sha256 not in node.names()
    assert {used.sha256, new.sha256} <= node.names()
    assert node.fetch(old).unpacked is not None
