"""What a job leaves behind: tidied sinks when it is finished, poisoned rows when it has failed."""

from __future__ import annotations

import hashlib
import logging

from penstock.dataflow.plan import Plan
from penstock.elements.errors import StateError
from penstock.operators.sink import Sink
from penstock.state.store import Store

from .messages import Failure

log = logging.getLogger("penstock.controller")

POISON = "poison"
"""The folder of rows that failed twice, each as an Arrow IPC stream (hazard 43)."""


def tidy_sinks(plan: Plan, run_id: str) -> None:
    """Tell every sink that all its commits are done. What goes wrong is only clutter."""
    for vertex in plan.vertices:
        for spec in vertex.operators:
            sink = getattr(spec.processor, "sink", None)
            if not isinstance(sink, Sink):
                continue
            try:
                sink.job_finished(run_id)
            except Exception as error:
                log.warning("%s could not tidy up: %s", spec.name, error)


def set_aside(store: Store, failure: Failure) -> str | None:
    """Keep the rows that fail again and again; where they lie, None if they are not known."""
    if not failure.poison:
        return None
    name = f"{POISON}/{hashlib.sha256(failure.identity.encode()).hexdigest()[:12]}.arrow"
    try:
        store.put(name, failure.poison)
    except StateError as error:
        log.warning("the rows that failed twice could not be kept: %s", error)
        return None
    return name
