"""How a process of ours is tied to its parent, and what it does about signals.

The kernel's parent-death signal follows the *thread* that forked, so that thread must live as
long as the child should. It tidies up on one machine; it is no fencing (hazards 36, 37).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from types import FrameType

_PR_SET_PDEATHSIG = 1

THREAD_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
    "TOKIO_WORKER_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # The allocator inside Polars.
    "_RJEM_MALLOC_CONF": "background_thread:false",
    # Arrow's allocator gives pages back after 10 ms of its own accord; a batch later they are
    # wanted again, and the kernel clears each anew.
    "MIMALLOC_PURGE_DELAY": "1000",
    # Nor is a batch worth a huge page, all of which would be cleared.
    "MIMALLOC_ALLOW_THP": "0",
}
"""Set before exec, since libraries read it when they are loaded (hazard 35)."""

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent's forking thread ends; leave at once if it has ended already."""
    if _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    if os.getppid() != parent_pid:
        os._exit(0)


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the process that interprets it, and treat SIGTERM as no more than a hint.

    SIGTERM gets an empty handler rather than being ignored, since what is ignored stays so
    across exec: a user's own `subprocess.terminate()` would have no effect.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _heed_nothing)


def _heed_nothing(number: int, frame: FrameType | None) -> None:
    del number, frame


def raise_open_files_limit() -> None:
    """Take as many descriptors as the system allows us: large shuffles need them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # Some systems refuse "unlimited"; what we have is then what there is.
            pass
