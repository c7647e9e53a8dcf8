"""penstock agent: makes this machine a node of a cluster.

Exit codes: 0 it left; 2 it cannot be a node as it was started, or the controller refuses it.
"""

from __future__ import annotations

from typing import Annotated, NoReturn

import typer

from penstock.cluster.node_process import default_directory, default_name, serve_node
from penstock.cluster.security import load_credentials
from penstock.cluster.whereabouts import find_cluster
from penstock.elements.durations import duration_ns

from .options import pairs


def register(app: typer.Typer) -> None:
    """Make the command known."""
    app.command()(agent)


def agent(
    join: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the controller listens.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Unique in the cluster; the host's.")] = None,
    slots: Annotated[int | None, typer.Option(min=1, help="One per core if not said.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Repeatable.")
    ] = None,
    directory: Annotated[
        str | None, typer.Option(metavar="DIR", help="For bundles and logs; of this node alone.")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Where other nodes reach this one; where it calls the controller from.",
        ),
    ] = None,
    secret_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The cluster's shared secret.")
    ] = None,
    tls: Annotated[
        tuple[str, str, str] | None,
        typer.Option(metavar="CERT KEY CA", help="Certificate, key and authority, instead."),
    ] = None,
    drain_timeout: Annotated[
        str, typer.Option(metavar="DURATION", help="On SIGTERM, for jobs to move away.")
    ] = "30s",
) -> NoReturn:
    """Make this machine a node of a cluster, until SIGTERM."""
    found = find_cluster(join, secret_file, tls)
    node = default_name() if name is None else name
    code = serve_node(
        found.controller,
        load_credentials(found.secret_file, found.tls),
        directory=default_directory(node) if directory is None else directory,
        name=node,
        slots=slots,
        labels=pairs(label, "--label", "name=value"),
        data_host=host or "",
        drain_timeout_s=duration_ns(drain_timeout, "--drain-timeout") / 1e9,
    )
    raise typer.Exit(code)
