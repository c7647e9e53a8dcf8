"""Count the words of log files, minute by minute.

    WORDCOUNT_INPUT='logs/*.jsonl' python examples/wordcount.py

Each line is {"at": "2024-01-01T00:00:00", "text": "..."}; the counts land in wordcount-output/.
Kill it at any time and start it again: it goes on where the last checkpoint was.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import penstock as ps


@dataclass
class Line:
    at: datetime
    text: str


@dataclass
class Word:
    word: str


def words(line: Line) -> Iterator[Word]:
    for word in line.text.lower().split():
        yield Word(word.strip('.,;:!?"'))


def counts(pipeline: ps.Pipeline, files: str) -> ps.Stream:
    """Words per minute; rows that words() yields keep the time of their line."""
    lines = pipeline.source(
        ps.FileSource(files, schema=Line), event_time="at", out_of_order="10 seconds"
    )
    per_minute = lines.flat_map(words).key_by("word").window(ps.tumble("1 minute"))
    return per_minute.aggregate(count="count(*)")


if __name__ == "__main__":
    pipeline = ps.Pipeline("wordcount")
    counts(pipeline, os.environ.get("WORDCOUNT_INPUT", "logs/*.jsonl")).sink(
        ps.FileSink("wordcount-output", format="csv")
    )
    print(pipeline.run(state_dir="wordcount-state"))
