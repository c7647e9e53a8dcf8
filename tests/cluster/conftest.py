"""What tests of the controller share, and those of links."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from controlled_cluster import Cluster
from link_ends import SECRET

from penstock.cluster.security import make_tls
from penstock.runtime.net.credentials import Credentials


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path / "data", stack).start()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Credentials]:
    ours = make_tls(tmp_path_factory.mktemp("ours"), ["controller", "127.0.0.1"])
    foreign = make_tls(tmp_path_factory.mktemp("foreign"), ["controller"])
    return {
        "controller": Credentials(tls=ours["controller"]),
        "node": Credentials(tls=ours["127.0.0.1"]),
        "foreign": Credentials(tls=foreign["controller"]),
        "misled": Credentials(tls=(*foreign["controller"][:2], ours["controller"][2])),
    }


@pytest.fixture(params=["secret", "tls"])
def both(request: pytest.FixtureRequest, certificates: dict[str, Credentials]) -> Credentials:
    return SECRET if request.param == "secret" else certificates["controller"]
