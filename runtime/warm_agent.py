"""An agent that warms up while the program that will need it is still being imported (hazard 73).

Light to import, so that a command can launch it as its very first act.
"""

from __future__ import annotations

from .agent_handle import AgentHandle


class WarmAgent:
    """Makes a launcher's agents: the first is the one launched here, if it still fits."""

    def __init__(self) -> None:
        self._warm: AgentHandle | None = AgentHandle()
        self._warm.launch()

    def __call__(self) -> AgentHandle:
        """An agent to `start`. Raises EngineError as AgentHandle does."""
        warm, self._warm = self._warm, None
        if warm is not None:
            if warm.fits:
                return warm
            warm.close()
        return AgentHandle()

    def close(self) -> None:
        """End the agent that nobody took. May be repeated."""
        warm, self._warm = self._warm, None
        if warm is not None:
            warm.close()
