"""penstock submit, ps, stop, logs, scale: what a person asks of a cluster.

Exit codes are those of `penstock run`. With --json one document goes to stdout (cluster_view.py);
everything else is for people. Ctrl-C while waiting leaves the job running.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

import typer

from penstock.cluster.client import LOG_BYTES_DEFAULT, Client
from penstock.cluster.client_messages import JobInfo
from penstock.cluster.security import load_credentials
from penstock.cluster.submitting import ClusterLauncher, SubmittedJob, summary_of
from penstock.cluster.whereabouts import find_cluster
from penstock.dataflow.launcher import JobHandle, StopMode, Summary, use_launcher
from penstock.dataflow.overrides import CommandLine, use_command_line
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import SettingsError, Unreachable

from .cluster_view import (
    job_document,
    jobs_table,
    log_document,
    log_news,
    node_document,
    nodes_table,
    write_document,
)
from .live import watch
from .options import CheckpointInterval, File, Fresh, Parallelism, Set, pairs, said, say
from .program import execute, the_pipeline

FOLLOW_S = 0.5
LINE_BYTES_GUESSED = 200
"""How many bytes are fetched per line of log that is asked for."""
FOLLOW_BYTES = 64 * 1024

Controller = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Where the controller listens.")
]
SecretFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="The cluster's shared secret.")
]
Tls = Annotated[
    tuple[str, str, str] | None,
    typer.Option(metavar="CERT KEY CA", help="Certificate, key and authority, instead."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The pipeline's name.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it has ended.")]


def register(app: typer.Typer) -> None:
    """Add the commands of clusters."""
    for command in (submit, ps, stop, logs, scale):
        app.command()(command)


def submit(
    file: File,
    parallelism: Parallelism = None,
    state_dir: Annotated[
        str | None, typer.Option(help="Where checkpoints lie: a path that all nodes share.")
    ] = None,
    checkpoint_interval: CheckpointInterval = None,
    fresh: Fresh = False,
    settings: Set = None,
    placement: Annotated[
        Literal["pack", "spread"], typer.Option(help="On as few nodes as possible, or as many.")
    ] = "pack",
    environment: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="For the job's processes; repeatable."),
    ] = None,
    wait: Wait = False,
    controller: Controller = None,
    secret_file: SecretFile = None,
    tls: Tls = None,
    json: Json = False,
) -> None:
    """Run the pipeline of a file on a cluster, as `penstock run` does here."""
    overrides = said(
        settings,
        parallelism=parallelism,
        state_dir=state_dir,
        checkpoint_interval=checkpoint_interval,
        fresh=True if fresh else None,
    )
    with _client(controller, secret_file, tls) as client:
        launcher = ClusterLauncher(
            client, placement=placement, environment=pairs(environment, "--env", "NAME=VALUE")
        )
        command_line = CommandLine(
            overrides,
            watch=(_wait_quietly if json else _watch) if wait else _submitted,
            refuses_rows="a cluster runs this program, so rows cannot come back to it",
        )
        use_command_line(command_line)
        use_launcher(launcher)
        names = execute(file)
        if not launcher.submitted:
            the_pipeline(file, names).run()
        if json:
            jobs = [job.info for job in launcher.submitted.values()]
            write_document({"jobs": [job_document(info) for info in jobs]})
            return
        for job in launcher.submitted.values():
            _say_submitted(job, command_line.ran.get(job.info.job))


def ps(
    job: Annotated[str, typer.Argument(metavar="[JOB]", help="Only this job.")] = "",
    ended: Annotated[bool, typer.Option("--all", help="Those that have ended as well.")] = False,
    nodes: Annotated[bool, typer.Option("--nodes", help="The nodes instead.")] = False,
    controller: Controller = None,
    secret_file: SecretFile = None,
    tls: Tls = None,
    json: Json = False,
) -> None:
    """Show jobs, or nodes."""
    with _client(controller, secret_file, tls) as client:
        if nodes:
            members = client.nodes()
            if json:
                write_document({"nodes": [node_document(node) for node in members]})
            else:
                sys.stdout.write(nodes_table(members))
            return
        jobs = client.jobs(job, ended=ended or bool(job))
        if job and not jobs:
            raise SettingsError(f"the cluster knows no job {job!r}; penstock ps --all lists them")
        # Of one name the last submission is meant, unless all were asked for.
        jobs = jobs if ended or not job else jobs[-1:]
        if json:
            write_document({"jobs": [job_document(info) for info in jobs]})
        else:
            sys.stdout.write(jobs_table(jobs, operators=bool(job)))


def stop(
    job: Job,
    drain: Annotated[
        bool, typer.Option("--drain", help="End the data here: windows flush, then it is finished.")
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="Without a checkpoint.")] = False,
    wait: Wait = False,
    controller: Controller = None,
    secret_file: SecretFile = None,
    tls: Tls = None,
    json: Json = False,
) -> None:
    """Stop a job with a checkpoint: submitted again, it goes on from there."""
    if drain and now:
        raise SettingsError("--drain and --now contradict each other")
    mode: StopMode = "drain" if drain else "now" if now else "checkpoint"
    with _client(controller, secret_file, tls) as client:
        _end(client, client.stop(job, mode), wait, json)


def scale(
    job: Job,
    widths: Annotated[
        list[str],
        typer.Argument(
            metavar="OPERATOR=N…|N", help="Widths by operator, or one for all that name none."
        ),
    ],
    controller: Controller = None,
    secret_file: SecretFile = None,
    tls: Tls = None,
    json: Json = False,
) -> None:
    """Stop a job with a checkpoint and go on at another parallelism."""
    asked = _widths(widths)
    with _client(controller, secret_file, tls) as client:
        info = client.scale(job, asked)
    if json:
        write_document({"jobs": [job_document(info)]})
    else:
        said_widths = ", ".join(f"{name or 'all'}: {width}" for name, width in asked.items())
        say(f"{job}: {info.state} ({said_widths}); see  penstock ps {job}")


def logs(
    job: Job,
    lines: Annotated[int, typer.Option(min=1, help="The last lines of each process.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="And what comes, until Ctrl-C.")] = False,
    controller: Controller = None,
    secret_file: SecretFile = None,
    tls: Tls = None,
    json: Json = False,
) -> None:
    """Show what a job's coordinator and its processes on the nodes have written."""
    if follow and json:
        raise SettingsError("--follow writes lines as they come: leave out --json")
    with _client(controller, secret_file, tls) as client:
        parts = client.logs(job, max(LOG_BYTES_DEFAULT, lines * LINE_BYTES_GUESSED))
        shown = {part.where: "\n".join(part.text.splitlines()[-lines:]) for part in parts}
        if json:
            write_document(log_document(job, shown))
            return
        _write_lines(shown)
        if follow:
            _follow(client, job, {part.where: part.text for part in parts})


# Inside -------------------------------------------------------------------------------------------


def _client(
    controller: str | None, secret_file: str | None, tls: tuple[str, str, str] | None
) -> Client:
    found = find_cluster(controller, secret_file, tls)
    return Client(found.controller, load_credentials(found.secret_file, found.tls))


def _submitted(handle: JobHandle, settings: JobSettings) -> Summary:
    return Summary(handle.status().job, "submitted")


def _wait_quietly(handle: JobHandle, settings: JobSettings) -> Summary:
    try:
        return handle.wait()
    except KeyboardInterrupt:
        _leave(handle)


def _watch(handle: JobHandle, settings: JobSettings) -> Summary:
    try:
        return watch(handle)
    except KeyboardInterrupt:
        _leave(handle)


def _leave(handle: JobHandle) -> NoReturn:
    job = handle.info.job if isinstance(handle, SubmittedJob) else handle.status().job
    say(f"{job} goes on; penstock stop {job} ends it")
    # Not SystemExit: this may come from a run() in the user's file, whose own exits are faults.
    raise KeyboardInterrupt


def _say_submitted(job: SubmittedJob, summary: Summary | None) -> None:
    info = job.info
    if summary is not None and summary.outcome != "submitted":
        if summary.outcome == "already finished":
            say(f"{info.job}: finished at epoch {summary.epoch}; --fresh runs it again")
        else:
            say(str(summary))
        return
    note = f" ({info.note})" if info.note else ""
    say(f"{info.job}: submitted, {info.state}{note}")
    say(f"  see  penstock ps {info.job}   penstock logs {info.job}   penstock stop {info.job}")


def _end(client: Client, info: JobInfo, wait: bool, json: bool) -> None:
    """Wait for a job that was told to stop, and say what became of it."""
    handle = SubmittedJob(client, info)
    summary: Any = None
    if wait:
        try:
            summary = handle.wait()
        except KeyboardInterrupt:
            say(f"{info.job} is still stopping")
            raise
    if json:
        write_document({"jobs": [job_document(handle.info)]})
    elif summary is not None:
        say(str(summary_of(handle.info)))
    else:
        say(f"{info.job}: {info.state}; see  penstock ps --all {info.job}")


def _widths(texts: Sequence[str]) -> dict[str, int]:
    """`4` is every operator that names no width itself; `count=4` is that operator."""
    found: dict[str, int] = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not number.isdecimal() or int(number) < 1 or (equals and not name.strip()):
            raise SettingsError(f"{text}: write  OPERATOR=N  or  N,  with N from 1")
        found[name.strip()] = int(number)
    return found


def _follow(client: Client, job: str, before: dict[str, str]) -> NoReturn:
    """Write what is new since `before`, also beyond an absence of the controller."""
    never = threading.Event()
    lost = False
    while True:
        never.wait(FOLLOW_S)
        try:
            parts = client.logs(job, FOLLOW_BYTES)
        except Unreachable as error:
            if not lost:
                say(f"{error}; asking again until it answers")
            lost = True
            continue
        if lost:
            say(f"the controller at {client.address} answers again")
        lost = False
        now = {part.where: part.text for part in parts}
        _write_lines({w: log_news(before.get(w, ""), text) for w, text in now.items()})
        before |= now


def _write_lines(texts: dict[str, str]) -> None:
    width = max(map(len, texts), default=0)
    for where, text in texts.items():
        for line in text.splitlines():
            sys.stdout.write(f"{where:{width}} | {line}\n")
    sys.stdout.flush()
