"""Where the cluster is and how to prove membership: options, environment, or a file.

Each of the two is taken from the first place that says it: the command's options; the variables
PENSTOCK_CONTROLLER and PENSTOCK_SECRET_FILE or PENSTOCK_TLS; the file that PENSTOCK_CLUSTER names;
`.penstock-cluster/cluster.toml` in the working directory, which `scripts/cluster up` writes.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.elements.errors import SettingsError

CONTROLLER_VARIABLE = "PENSTOCK_CONTROLLER"
SECRET_VARIABLE = "PENSTOCK_SECRET_FILE"
TLS_VARIABLE = "PENSTOCK_TLS"
"""Certificate, key and authority, with commas between them."""
CLUSTER_VARIABLE = "PENSTOCK_CLUSTER"
CLUSTER_DIRECTORY = ".penstock-cluster"
CLUSTER_FILE = "cluster.toml"

TlsFiles = tuple[str, str, str]


@dataclass(frozen=True)
class Whereabouts:
    """The controller's address, and the files with what proves membership: one of the two."""

    controller: str
    secret_file: str | None = None
    tls: TlsFiles | None = None


def find_cluster(
    controller: str | None = None,
    secret_file: str | None = None,
    tls: TlsFiles | None = None,
    environment: Mapping[str, str] | None = None,
) -> Whereabouts:
    """What the arguments and the places around them say; SettingsError that lists the places."""
    around = os.environ if environment is None else environment
    said = _Said(controller, secret_file, tls)
    if not said.complete():
        text = around.get(TLS_VARIABLE)
        said.fill(
            around.get(CONTROLLER_VARIABLE), around.get(SECRET_VARIABLE), _tls(text, TLS_VARIABLE)
        )
    if not said.complete():
        path = around.get(CLUSTER_VARIABLE)
        default = os.path.join(CLUSTER_DIRECTORY, CLUSTER_FILE)
        if path is not None or os.path.exists(default):
            found = read_cluster_file(path or default)
            said.fill(found.controller, found.secret_file, found.tls)
    if said.controller is None:
        raise SettingsError(
            "no cluster is named\n"
            f"  Say  --controller HOST:PORT  or set {CONTROLLER_VARIABLE}, or name a file in "
            f"{CLUSTER_VARIABLE},\n"
            f"  or work where  scripts/cluster up  has made {CLUSTER_DIRECTORY}/{CLUSTER_FILE}."
        )
    if said.secret_file is None and said.tls is None:
        raise SettingsError(
            f"the controller is at {said.controller}, but nothing says how to prove membership\n"
            f"  Say  --secret-file FILE  or  --tls CERT KEY CA,  or set {SECRET_VARIABLE} "
            f"or {TLS_VARIABLE}."
        )
    if said.secret_file is not None and said.tls is not None:
        raise SettingsError("a cluster has a shared secret or TLS, not both: leave one out")
    return Whereabouts(said.controller, said.secret_file, said.tls)


def read_cluster_file(path: str) -> Whereabouts:
    """`controller`, and `secret_file` or `tls`; relative paths begin at the file's folder."""
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read the cluster's whereabouts from {path}: {error}") from None
    folder = os.path.dirname(os.path.abspath(path))
    controller, secret, tls = (content.get(n) for n in ("controller", "secret_file", "tls"))
    if not isinstance(controller, str) or not isinstance(secret, str | None):
        raise SettingsError(f"{path}: controller and secret_file must be texts")
    if tls is not None and not (
        isinstance(tls, list) and len(tls) == 3 and all(isinstance(name, str) for name in tls)
    ):
        raise SettingsError(f"{path}: tls must be three file names: certificate, key, authority")
    secret = None if secret is None else os.path.join(folder, secret)
    files = None if tls is None else (*(os.path.join(folder, name) for name in tls),)
    return Whereabouts(controller, secret, files)  # type: ignore[arg-type]


def write_cluster_file(path: str, found: Whereabouts) -> None:
    """The counterpart of `read_cluster_file`; replaces the file in one step."""
    content: dict[str, Any] = {"controller": found.controller}
    if found.secret_file is not None:
        content["secret_file"] = found.secret_file
    if found.tls is not None:
        content["tls"] = list(found.tls)
    # What JSON makes of texts and lists of texts is TOML as well.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in content.items()]
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        file.writelines(lines)
    os.replace(f"{path}.new", path)


@dataclass
class _Said:
    controller: str | None
    secret_file: str | None
    tls: TlsFiles | None

    def complete(self) -> bool:
        return self.controller is not None and self._proof()

    def fill(self, controller: str | None, secret_file: str | None, tls: TlsFiles | None) -> None:
        self.controller = self.controller or controller
        if not self._proof():
            self.secret_file, self.tls = secret_file or None, tls

    def _proof(self) -> bool:
        return self.secret_file is not None or self.tls is not None


def _tls(text: str | None, where: str) -> TlsFiles | None:
    if not text:
        return None
    names = text.split(",")
    if len(names) != 3:
        raise SettingsError(f"{where}={text}: write  certificate,key,authority")
    return names[0], names[1], names[2]
