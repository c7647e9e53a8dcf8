"""The console script's door: launches the agent, then imports all that a command needs.

Nothing heavy is imported here: what the agent does meanwhile is what `penstock run` does not wait
for (hazard 73, docs/design/0013-start-up.md).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.runtime.warm_agent import WarmAgent


EXIT_INTERRUPTED = 130
"""Ctrl-C before the job had started."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; ends the process with its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Imports make few cycles; looking for them while importing costs a tenth of the time.
    gc.disable()
    agent = None
    try:
        agent = _launch() if _will_run(words) else None
        from .commands import run_command

        gc.freeze()
        gc.enable()
        run_command(words, agent)
    except KeyboardInterrupt:
        # Ctrl-C while everything is still being imported; later ones are run_command's.
        sys.exit(EXIT_INTERRUPTED)
    finally:
        if agent is not None:
            agent.close()


def _will_run(words: Sequence[str]) -> bool:
    """`penstock run` of a file that exists: the only command that has use for an agent."""
    return words[:1] == ["run"] and "--help" not in words and any(map(os.path.isfile, words))


def _launch() -> WarmAgent:
    from penstock.runtime.warm_agent import WarmAgent

    return WarmAgent()
