"""penstock controller: the one process of a cluster that knows all others.

Exit codes: 0 it was asked to end; 1 it failed; 2 it cannot run as it was started.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import setproctitle
import typer

from penstock.cluster.controller import (
    HEARTBEAT_S,
    LEASE_S,
    ClusterController,
    ControllerSettings,
    make_directory,
)
from penstock.cluster.link import format_address, parse_address
from penstock.cluster.membership import is_loopback
from penstock.cluster.security import load_credentials, make_secret
from penstock.elements.durations import duration_ns
from penstock.elements.errors import PlanError, SettingsError

from .options import EXIT_FAILED, say

SIGNAL_POLL_S = 0.5
"""How late it may notice a signal."""
SECRET_NAME = "secret"

Tls = tuple[str, str, str]


def register(app: typer.Typer) -> None:
    """Make the command known."""
    app.command()(controller)


def controller(
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="For jobs, bundles and logs; kept between starts.")
    ],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where nodes and clients call.")
    ] = "127.0.0.1:7070",
    state_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Checkpoints, on a path that all nodes reach; DIR/state if not said.",
        ),
    ] = None,
    secret_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The cluster's shared secret.")
    ] = None,
    tls: Annotated[
        Tls | None,
        typer.Option(metavar="CERT KEY CA", help="Certificate, key and authority, instead."),
    ] = None,
    lease: Annotated[
        str, typer.Option(metavar="DURATION", help="A node that is silent for so long is lost.")
    ] = f"{LEASE_S:g}s",
    heartbeat: Annotated[
        str, typer.Option(metavar="DURATION", help="How often nodes ask for a new lease.")
    ] = f"{HEARTBEAT_S:g}s",
) -> None:
    """Run a cluster's controller until SIGTERM or Ctrl-C; jobs resume when it is started again."""
    setproctitle.setproctitle("penstock: controller")
    how = _proof(listen, data, secret_file, tls)
    settings = ControllerSettings(
        listen,
        data,
        load_credentials(how, None) if isinstance(how, str) else load_credentials(None, how),
        state_dir,
        _seconds(lease, "--lease"),
        _seconds(heartbeat, "--heartbeat"),
    )
    serving = ClusterController(settings)
    try:
        serving.start()
        _greet(serving, how)
        # A signal that comes just before a wait begins does not interrupt it: no wait is long.
        while not serving.wait(SIGNAL_POLL_S):
            pass
    except KeyboardInterrupt:
        say("ending job processes; jobs go on when the controller is started again")
        serving.close()
    except Exception as error:
        # Its log has the whole story.
        say(f"the controller failed: {type(error).__name__}: {error}")
        raise typer.Exit(EXIT_FAILED) from error


def _proof(listen: str, data: Path, secret_file: str | None, tls: Tls | None) -> str | Tls:
    """What proves membership: what was given, or on loopback a secret of our own."""
    if tls is not None and secret_file is None:
        return tls
    if secret_file is not None and tls is None:
        return secret_file
    if secret_file is not None:
        raise SettingsError("a cluster has a shared secret or TLS, not both: leave one out")
    host, _ = parse_address(listen)
    if not is_loopback(host):
        raise SettingsError(
            f"{host} can be reached from other machines, and who may call can run code on every "
            "node: say --secret-file FILE or --tls CERT KEY CA"
        )
    path = data / SECRET_NAME
    if not path.exists():
        make_directory(data, "--data")
        make_secret(path)
    return str(path.absolute())


def _seconds(text: str, option: str) -> float:
    try:
        return duration_ns(text, option) / 1e9
    except PlanError as error:
        raise SettingsError(str(error)) from None


def _greet(serving: ClusterController, how: str | Tls) -> None:
    """One line: where it is, and how to join."""
    address = format_address(*serving.address)
    proof = ["--secret-file", how] if isinstance(how, str) else ["--tls", "CERT", "KEY", how[2]]
    command = shlex.join(["penstock", "agent", "--join", address, *proof])
    sys.stdout.write(f"controller on {address} (term {serving.term}); join with:  {command}\n")
    sys.stdout.flush()
