"""Named crash points of the protocol: no-ops unless PENSTOCK_FAILPOINTS asks for one (hazard 69).

    PENSTOCK_FAILPOINTS="before-upload@count[0]#2=kill;after-log=pause"

kills subtask count[0] when it reaches `before-upload` for the second time, and stops (SIGSTOP) the
process of the controller after its first log entry. `@where` may be left out (anywhere), `#k` too
(the first time in a process). With PENSTOCK_FAILPOINTS_ONCE=<directory> each rule acts once in the
whole job, whichever process gets there first, and leaves its text in a file there: else a
restarted process dies at the same point again.
"""

from __future__ import annotations

import os
import signal
import threading
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, get_args

from penstock.elements.errors import EngineError, SettingsError

Action = Literal["kill", "pause", "raise"]

SUBTASK_FAILPOINTS = (
    "before-snapshot",
    "after-snapshot",
    "before-barrier-forward",
    "after-barrier-forward",
    "before-upload",
    "after-upload",
    "before-acknowledge",
    "after-acknowledge",
    "before-commit",
    "after-commit",
)
"""Reached in subtasks; `@where` is the subtask, "vertex[index]"."""
AGENT_FAILPOINTS = ("before-relay", "after-relay")
"""Reached in the agent around each message it passes on; `@where` is the subtask concerned."""
CONTROLLER_FAILPOINTS = (
    "before-takeover",
    "after-takeover",
    "before-deploy",
    "after-deploy",
    "before-trigger",
    "after-trigger",
    "before-manifest",
    "after-manifest",
    "before-log",
    "after-log",
    "before-commit-send",
    "after-commit-send",
    "before-finished",
    "after-finished",
)
"""Reached in the controller; `@where` is "controller"."""
FAILPOINTS = SUBTASK_FAILPOINTS + AGENT_FAILPOINTS + CONTROLLER_FAILPOINTS


@dataclass(frozen=True)
class _Rule:
    name: str
    where: str
    at: int
    action: Action
    text: str


_counts: dict[str, int] = {}
_lock = threading.Lock()


def failpoint(name: str, where: str = "") -> None:
    """Do what the environment asks for here. `where` says which actor this is."""
    rules = os.environ.get("PENSTOCK_FAILPOINTS")
    if not rules:
        return
    for rule in _parse(rules):
        if rule.name != name or rule.where not in ("", where):
            continue
        with _lock:
            _counts[rule.text] = reached = _counts.get(rule.text, 0) + 1
        if reached >= rule.at and (reached == rule.at or _once_directory()) and _claim(rule):
            _act(rule, where)


@lru_cache(maxsize=8)
def _parse(rules: str) -> tuple[_Rule, ...]:
    return tuple(_parse_rule(text.strip()) for text in rules.split(";") if text.strip())


def _parse_rule(text: str) -> _Rule:
    point, _, action = text.rpartition("=")
    point, _, times = point.rpartition("#") if "#" in point else (point, "", "1")
    name, _, where = point.partition("@")
    if name not in FAILPOINTS or action not in get_args(Action) or not times.isdecimal():
        raise SettingsError(
            f"PENSTOCK_FAILPOINTS: {text!r} is not name[@where][#k]=kill|pause|raise "
            f"with one of the names {', '.join(FAILPOINTS)}"
        )
    return _Rule(name, where, int(times), cast(Action, action), text)


def _once_directory() -> str | None:
    return os.environ.get("PENSTOCK_FAILPOINTS_ONCE")


def _claim(rule: _Rule) -> bool:
    directory = _once_directory()
    if directory is None:
        return True
    path = os.path.join(directory, f"{zlib.crc32(rule.text.encode()):08x}")
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    os.write(handle, rule.text.encode())
    os.close(handle)
    return True


def _act(rule: _Rule, where: str) -> None:
    if rule.action == "raise":
        raise EngineError(f"failpoint {rule.name} at {where or 'an unnamed place'}")
    os.kill(os.getpid(), signal.SIGKILL if rule.action == "kill" else signal.SIGSTOP)
