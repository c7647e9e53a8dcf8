"""The life of jobs, from submission to outcome, over any number of launches: pure.

A launch is one job process and the agents it opened. There is one at a time: the next begins when
the process of the last is reaped and each of its agents has been closed or its node is gone.
What must survive the controller is ordered to be saved before what depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from penstock.elements.errors import SettingsError
from penstock.runtime.restart import RestartPolicy, Restarts

from .job_messages import (
    AgentGone,
    CloseAgent,
    Ended,
    NeedSlots,
    NodeGone,
    NodeLost,
    OpenAgent,
    Report,
    StopJob,
)
from .job_record import (
    AskSlots,
    CloseOnNode,
    FreeSlots,
    JobCommand,
    JobRecord,
    KillProcess,
    OpenOnNode,
    SaveJob,
    StartProcess,
    TellJob,
)
from .node_messages import NodeName

NS = 1_000_000_000
LAUNCHES_IN_A_ROW = RestartPolicy(
    attempts=10, delay_ns=NS // 5, delay_ns_max=30 * NS, healthy_ns=60 * NS
)
"""For job processes that die; attempts of the job itself are counted by the process."""
EXIT_S = 10.0
"""For a job process that has said its last word, or shall stop now, to be gone."""
STOP_MODES = ("checkpoint", "drain", "now")


_FOR_USERS = {
    "running": "running",
    "ending the attempt": "restarting",
    "restarting": "restarting",
    "stopping": "stopping",
}
"""By what the job itself says of its state (runtime/controller.py)."""


class _State(msgspec.Struct):
    state: str


_decode_state = msgspec.json.Decoder(_State).decode


@dataclass
class _Life:
    """A submission that has not ended."""

    record: JobRecord
    restarts: Restarts = field(default_factory=lambda: Restarts(LAUNCHES_IN_A_ROW))
    wake_ns: int = 0
    active: bool = False
    """The process of `record.launch` was started and has not said its last word."""
    again: str = ""
    """Why the present launch is to stop and be followed by another: a state for the user."""
    status: bytes = b""
    state: str = "starting"


@dataclass
class _Remains:
    """What runs in a job's name; may belong to a submission that has ended."""

    process: int = 0
    """The launch whose process is not reaped yet; 0: none."""
    kill_ns: int | None = None
    agents: dict[NodeName, int] = field(default_factory=dict)


class Jobs:
    """All jobs that have not ended. Time comes in as monotonic nanoseconds."""

    def __init__(self, launches: Mapping[str, int]) -> None:
        """`launches`: the last number of each job's name that was ever used."""
        self._launches = dict(launches)
        self._lives: dict[str, _Life] = {}
        self._remains: dict[str, _Remains] = {}

    # What the shell reads -------------------------------------------------------------------------

    @property
    def records(self) -> list[JobRecord]:
        """Those that live, oldest first."""
        return sorted((life.record for life in self._lives.values()), key=lambda r: r.id)

    def find(self, job: str) -> JobRecord | None:
        """The live submission of this name."""
        life = self._lives.get(job)
        return life.record if life is not None else None

    def status(self, job: str) -> bytes:
        """The last one known; empty before the first."""
        life = self._lives.get(job)
        return life.status if life is not None else b""

    def state(self, job: str, waits: bool) -> str:
        """A word for users. `waits`: the job waits for slots. Requires: it lives."""
        life = self._lives[job]
        if life.record.stop:
            return "stopping"
        if life.again:
            return life.again
        if not life.active:
            return "restarting" if life.record.launch else "starting"
        return "waiting" if waits else life.state

    def agents(self, job: str) -> Mapping[NodeName, int]:
        """Agents that run in the job's name, with their launches."""
        remains = self._remains.get(job)
        return remains.agents if remains is not None else {}

    def runs_on(self, name: NodeName) -> bool:
        """Some job, even one that has ended, has an agent there."""
        return any(name in remains.agents for remains in self._remains.values())

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` wants to be called at the latest."""
        due = [r.kill_ns for r in self._remains.values() if r.kill_ns is not None]
        due += [life.wake_ns for life in self._lives.values() if self._delayed(life)]
        return min(due, default=None)

    # What users want ------------------------------------------------------------------------------

    def begin(self, record: JobRecord, now_ns: int) -> list[JobCommand]:
        """A submission that the catalog holds: a new one, or after the controller's own restart.
        Requires: no other of its name lives."""
        assert record.job not in self._lives
        assert not record.outcome
        life = self._lives[record.job] = _Life(record)
        if record.stop in ("checkpoint", "now"):
            return self._end(life, "stopped", "the controller was restarted while it was stopping")
        return self._proceed(record.job, now_ns)

    def stop(self, job: str, mode: str, now_ns: int) -> list[JobCommand]:
        """End it. Once said, only "now" changes it."""
        life = self._live(job)
        if mode not in STOP_MODES:
            raise SettingsError(f"stop {job}: the modes are {', '.join(STOP_MODES)}, not {mode!r}")
        if life.record.stop and mode != "now":
            return []
        life.again = ""
        commands: list[JobCommand] = [self._save(life, stop=mode)]
        if not life.active and mode != "drain":
            return commands + self._end(life, "stopped", "")
        if life.active:
            commands.append(self._tell(life, StopJob(mode)))
        if mode == "now":
            self._remains[job].kill_ns = now_ns + int(EXIT_S * NS)
        return commands

    def scale(self, job: str, parallelism: Mapping[str, int], now_ns: int) -> list[JobCommand]:
        """Go on with these widths, from a checkpoint."""
        life = self._live(job)
        if life.record.stop:
            raise SettingsError(f"{job} is stopping; submit it again with another parallelism")
        wrong = [f"{name or 'default'}={n}" for name, n in parallelism.items() if n < 1]
        if wrong or not parallelism:
            raise SettingsError(f"scale {job}: write OPERATOR=N with N of 1 or more {wrong or ''}")
        before = life.record.fallback
        fallback = life.record.parallelism if before is None else before
        wanted = {**life.record.parallelism, **parallelism}
        # Durable at once: whatever happens from here on, the next launch is as wide as was asked.
        saved = self._save(life, parallelism=wanted, fallback=fallback, note="")
        return [saved, *self._again(life, "rescaling")]

    def move(self, job: str, now_ns: int) -> list[JobCommand]:
        """A node that it runs on wants to leave: go on elsewhere, from a checkpoint."""
        life = self._lives.get(job)
        if life is None or life.record.stop:
            return []
        return self._again(life, "restarting")

    # What job processes do ------------------------------------------------------------------------

    def on_need_slots(self, job: str, launch: int, need: NeedSlots) -> list[JobCommand]:
        """It wants to deploy."""
        life = self._current(job, launch)
        if life is None:
            return []
        again = need.again or life.record.ran
        return [AskSlots(job, need.grant, need.count, again, life.record.placement)]

    def on_open_agent(self, job: str, launch: int, message: OpenAgent) -> list[JobCommand]:
        """It wants an agent on a node. Requires: the node is a member."""
        life = self._current(job, launch)
        if life is None:
            return []
        self._remains[job].agents[message.name] = launch
        return [OpenOnNode(message.name, life.record)]

    def on_close_agent(self, job: str, launch: int, message: CloseAgent) -> list[JobCommand]:
        """It has no use for an agent any more."""
        life = self._current(job, launch)
        if life is None:
            return []
        if message.name in self._remains[job].agents:
            return [CloseOnNode(message.name, job, launch)]
        return [self._tell(life, AgentGone(message.name, "it had been closed"))]

    def on_report(self, job: str, launch: int, report: Report, now_ns: int) -> list[JobCommand]:
        """How it is."""
        life = self._current(job, launch)
        if life is None:
            return []
        life.status = report.status
        try:
            # What follows a comma is about some subtask.
            state = _decode_state(report.status).state.partition(",")[0]
        except msgspec.DecodeError:
            state = ""
        life.state = _FOR_USERS.get(state, "starting")
        if state != "running":
            return []
        life.restarts.on_running(now_ns)
        if life.again:
            # Still as wide as before: it proves nothing about what was asked for.
            return []
        if life.record.ran and life.record.fallback is None:
            return []
        return [self._save(life, ran=True, fallback=None)]

    def on_ended(self, job: str, launch: int, ended: Ended, now_ns: int) -> list[JobCommand]:
        """Its last word; its process and its agents are still to go."""
        life = self._current(job, launch)
        if life is None:
            return []
        life.active = False
        self._remains[job].kill_ns = now_ns + int(EXIT_S * NS)
        close = self._close_agents(job)
        record = life.record
        unfit = ended.outcome == "failed" and record.fallback is not None and not life.again
        if unfit and not record.stop:
            note = f"it could not run as scaled and goes on as before: {ended.failure}"
            saved = self._save(life, parallelism=record.fallback, fallback=None, note=note)
            return [saved, *close, FreeSlots(job), *self._proceed(job, now_ns)]
        if ended.outcome == "stopped" and life.again and not record.stop:
            life.again = ""
            return [*close, FreeSlots(job), *self._proceed(job, now_ns)]
        return self._end(life, ended.outcome, ended.failure, ended.summary)

    def on_process_gone(self, job: str, launch: int, cause: str, now_ns: int) -> list[JobCommand]:
        """It is reaped."""
        remains = self._remains.get(job)
        if remains is None or remains.process != launch:
            return []
        remains.process, remains.kill_ns = 0, None
        life = self._current(job, launch)
        commands: list[JobCommand] = []
        if life is not None:
            life.active = False
            commands += self._crashed(life, cause, now_ns)
        return commands + self._proceed(job, now_ns)

    def forget_agent(self, job: str, launch: int, name: NodeName) -> None:
        """It could not be opened, and its process has been told."""
        remains = self._remains.get(job)
        if remains is not None and remains.agents.get(name) == launch:
            del remains.agents[name]

    # What nodes do --------------------------------------------------------------------------------

    def on_agent_gone(
        self, job: str, launch: int, name: NodeName, cause: str, now_ns: int
    ) -> list[JobCommand]:
        """The job's agent there, and all below it, are gone."""
        remains = self._remains.get(job)
        if remains is None or remains.agents.get(name) != launch:
            return []
        del remains.agents[name]
        life = self._current(job, launch)
        told = [] if life is None else [self._tell(life, AgentGone(name, cause))]
        return [*told, *self._proceed(job, now_ns)]

    def on_node_lost(self, name: NodeName, cause: str, holders: Iterable[str]) -> list[JobCommand]:
        """`holders`: who holds slots there."""
        return [self._tell(life, NodeLost(name, cause)) for life in self._concerned(name, holders)]

    def on_node_gone(self, name: NodeName, holders: Iterable[str], now_ns: int) -> list[JobCommand]:
        """Nothing of it runs any more."""
        commands = [self._tell(life, NodeGone(name)) for life in self._concerned(name, holders)]
        bereft = [job for job, remains in self._remains.items() if name in remains.agents]
        for job in bereft:
            del self._remains[job].agents[name]
        return [*commands, *(c for job in bereft for c in self._proceed(job, now_ns))]

    def tick(self, now_ns: int) -> list[JobCommand]:
        """Time has passed."""
        commands: list[JobCommand] = []
        for job, remains in list(self._remains.items()):
            if remains.kill_ns is not None and now_ns >= remains.kill_ns:
                remains.kill_ns = None
                if remains.process:
                    commands.append(KillProcess(job, remains.process))
        due = [job for job, life in self._lives.items() if self._delayed(life)]
        return [*commands, *(c for job in due for c in self._proceed(job, now_ns))]

    # Inside ---------------------------------------------------------------------------------------

    def _live(self, job: str) -> _Life:
        life = self._lives.get(job)
        if life is None:
            raise SettingsError(
                f"no job named {job!r} runs here; `penstock ps` lists those that do"
            )
        return life

    def _current(self, job: str, launch: int) -> _Life | None:
        life = self._lives.get(job)
        return life if life is not None and life.active and life.record.launch == launch else None

    def _concerned(self, name: NodeName, holders: Iterable[str]) -> list[_Life]:
        holding = set(holders)
        return [
            life
            for job, life in sorted(self._lives.items())
            if life.active and (job in holding or name in self._remains[job].agents)
        ]

    def _delayed(self, life: _Life) -> bool:
        return not life.active and self._idle(life.record.job)

    def _idle(self, job: str) -> bool:
        remains = self._remains.get(job)
        return remains is None or not (remains.process or remains.agents)

    def _tell(self, life: _Life, message: AgentGone | NodeLost | NodeGone | StopJob) -> TellJob:
        return TellJob(life.record.job, life.record.launch, message)

    def _save(self, life: _Life, **changes: object) -> SaveJob:
        life.record = replace(life.record, **changes)  # type: ignore[arg-type]
        return SaveJob(life.record)

    def _again(self, life: _Life, state: str) -> list[JobCommand]:
        if not life.active:
            return []
        stops_already, life.again = bool(life.again), state
        return [] if stops_already else [self._tell(life, StopJob("checkpoint"))]

    def _proceed(self, job: str, now_ns: int) -> list[JobCommand]:
        """Launch the job if nothing is in its way; forget a name of which nothing is left."""
        if not self._idle(job):
            return []
        self._remains.pop(job, None)
        life = self._lives.get(job)
        if life is None or life.active or now_ns < life.wake_ns:
            return []
        launch = self._launches.get(job, 0) + 1
        self._launches[job] = launch
        self._remains[job] = _Remains(process=launch)
        life.active, life.state = True, "starting"
        commands: list[JobCommand] = [self._save(life, launch=launch), StartProcess(life.record)]
        if life.record.stop:
            # Data is to be ended, which only a running job can.
            commands.append(self._tell(life, StopJob(life.record.stop)))
        return commands

    def _crashed(self, life: _Life, cause: str, now_ns: int) -> list[JobCommand]:
        """The process died without a last word."""
        job, life.again = life.record.job, ""
        if life.record.stop in ("checkpoint", "now"):
            return self._end(life, "stopped", f"its coordinator died while stopping: {cause}")
        life.restarts.on_failure(life.record.launch, cause, now_ns)
        if life.restarts.exhausted:
            story = f"its coordinator died: {life.restarts.verdict}; the last time: {cause}"
            return self._end(life, "failed", story)
        life.wake_ns = life.restarts.wake_ns
        note = f"its coordinator died ({life.restarts.next}): {cause}"
        return [self._save(life, note=note), *self._close_agents(job), FreeSlots(job)]

    def _close_agents(self, job: str) -> list[JobCommand]:
        agents = self._remains[job].agents if job in self._remains else {}
        return [CloseOnNode(name, job, launch) for name, launch in sorted(agents.items())]

    def _end(self, life: _Life, outcome: str, note: str, summary: bytes = b"") -> list[JobCommand]:
        job, life.active = life.record.job, False
        saved = self._save(life, outcome=outcome, note=note, summary=summary, fallback=None)
        del self._lives[job]
        if self._idle(job):
            self._remains.pop(job, None)
        return [saved, *self._close_agents(job), FreeSlots(job)]
