"""The small examples give what they promise, however they are run."""

from __future__ import annotations

import importlib
import json
import random
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
START = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subtasks find the examples where the program found them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


def lines(count: int) -> list[dict[str, str]]:
    chance = random.Random(1)
    some = ["The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog,", "sleeps."]
    return [
        {
            "at": (START + timedelta(seconds=number)).replace(tzinfo=None).isoformat(),
            "text": " ".join(chance.choices(some, k=4)),
        }
        for number in range(count)
    ]


def counted(rows: list[dict[str, str]]) -> Counter[tuple[str, str]]:
    """(word, minute) to count."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for word in row["text"].lower().split():
            found[word.strip(".,"), row["at"][:16]] += 1
    return found


def test_wordcount_keeps_the_law(tmp_path: Path) -> None:
    rows = lines(400)
    for part in range(2):
        text = "".join(json.dumps(row) + "\n" for row in rows[part::2])
        (tmp_path / f"{part}.jsonl").write_text(text)

    def build() -> ps.Stream[Any]:
        made = example("wordcount").counts(ps.Pipeline("wordcount"), str(tmp_path / "*.jsonl"))
        return made.select("word", minute="cast(window_start AS text)", count="count")

    expected = [(word, minute, n) for (word, minute), n in counted(rows).items()]
    found = build().collect().to_pylist()
    assert Counter({(r["word"], r["minute"][:16]): r["count"] for r in found}) == counted(rows)
    assert len(found) == len(expected)
    assert_same_rows(build, [tuple(row.values()) for row in found])


def test_wordcount_runs_as_a_program(tmp_path: Path) -> None:
    rows = lines(100)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = [sys.executable, str(EXAMPLES / "wordcount.py")]
    for said in ("finished", "already finished"):
        ran = subprocess.run(
            program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        assert ran.returncode == 0, ran.stderr
        assert said in ran.stdout
    tables = [pa.csv.read_csv(path) for path in (tmp_path / "wordcount-output").glob("*.csv")]
    assert sum(sum(table["count"].to_pylist()) for table in tables) == 400


def test_sessions_keep_the_law() -> None:
    module = example("sessions")
    chance = random.Random(2)
    clicks = [
        module.Click(
            chance.choice("ab"),
            f"/{number}",
            START + timedelta(minutes=2 * number, seconds=chance.randrange(400)),
        )
        for number in range(300)
    ]

    def build() -> ps.Stream[Any]:
        rows = ps.Pipeline("sessions").source(clicks, event_time="at", out_of_order="7 minutes")
        return module.visits(rows)

    by_user: dict[str, list[Any]] = defaultdict(list)
    for click in sorted(clicks, key=lambda c: c.at):
        visits = by_user[click.user]
        if visits and click.at - visits[-1][-1].at < timedelta(minutes=5):
            visits[-1].append(click)
        else:
            visits.append([click])
    expected = [
        (user, len(v), v[0].page, v[-1].page) for user, visits in by_user.items() for v in visits
    ]
    assert len(expected) > 50
    assert_same_rows(build, expected)


def test_scoring_keeps_the_law() -> None:
    table = pa.table({"id": range(400), "x": np.linspace(-1.0, 2.0, 400)})
    expected = [
        (row["id"], 1.0 + 2.0 * row["x"])
        for row in table.to_pylist()
        if row["x"] > 0 and 1.0 + 2.0 * row["x"] > 2.0
    ]

    def build() -> ps.Stream[Any]:
        return example("scoring").scored(ps.Pipeline("scoring").source(table))

    assert_same_rows(build, expected)


@pytest.mark.parametrize("name", ["sessions", "scoring"])
def test_examples_print_their_rows(name: str, tmp_path: Path) -> None:
    program = [sys.executable, str(EXAMPLES / f"{name}.py")]
    ran = subprocess.run(
        program, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) > 2


def test_the_sqlite_sink_is_exactly_once_across_stops_and_another_parallelism(
    tmp_path: Path,
) -> None:
    module = example("sqlite_sink")
    rows = [
        {"account": n % 7, "cents": n % 100, "at": START + timedelta(minutes=n)} for n in range(600)
    ]
    payments = pa.Table.from_pylist(rows)

    def pipeline() -> ps.Pipeline:
        made = ps.Pipeline("payments")
        paid = made.source(payments, event_time="at", monotone=True)
        module.totals(paid).sink(module.SqliteSink(str(tmp_path / "totals.db")))
        return made

    expected: Counter[tuple[int, int]] = Counter()
    for row in rows:
        hour = row["at"].replace(minute=0)
        expected[row["account"], int(hour.timestamp()) * 10**9] += row["cents"]
    first = pipeline().start(state_dir=str(tmp_path / "state"), checkpoint_interval="50 ms")
    first.stop("checkpoint")
    pipeline().run(state_dir=str(tmp_path / "state"), parallelism=3)
    again = pipeline().run(state_dir=str(tmp_path / "state"))
    assert again.outcome == "already finished"
    database = sqlite3.connect(tmp_path / "totals.db")
    found = database.execute("SELECT account, window_start, total FROM totals").fetchall()
    database.close()
    assert sorted(found) == sorted((a, w, total) for (a, w), total in expected.items())
