"""The queries in Polars, over lazy frames of the files."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

Frames = dict[str, pl.LazyFrame]
TEN = pl.col("datetime").dt.truncate("10s").alias("w")


def _q5(f: Frames) -> pl.LazyFrame:
    panes = (
        f["bids"]
        .group_by("auction", pl.col("datetime").dt.truncate("2s").alias("slide"))
        .agg(n=pl.len())
    )
    slides = pl.LazyFrame({"k": [0, 1, 2, 3, 4]})
    counts = (
        panes.join(slides, how="cross")
        .with_columns(bucket=pl.col("slide") + pl.duration(seconds=2 * pl.col("k")))
        .group_by("auction", "bucket")
        .agg(pl.col("n").sum())
    )
    return counts.group_by("bucket").agg(
        top=pl.col("n").max(), auctions=pl.len(), bids=pl.col("n").sum()
    )


def _q8(f: Frames) -> pl.LazyFrame:
    persons = f["persons8"].select("id", "name", TEN)
    auctions = f["auctions8"].select(pl.col("seller").alias("id"), "reserve", TEN)
    return persons.join(auctions, on=["id", "w"]).select("id", "name", "reserve")


def _q11(f: Frames) -> pl.LazyFrame:
    ordered = f["bids"].select("bidder", "datetime").sort("bidder", "datetime")
    gap = pl.col("datetime").diff().over("bidder") < pl.duration(seconds=10)
    fresh = (~gap).fill_null(True).cast(pl.Int64).cum_sum().alias("session")
    return ordered.with_columns(fresh).group_by("bidder", "session").agg(n=pl.len())


IN_POLARS: dict[str, Callable[[Frames], pl.LazyFrame]] = {
    "q1": lambda f: f["bids"].select(
        "auction", "bidder", "datetime", price=pl.col("price") * 908 // 1000
    ),
    "q2": lambda f: f["bids"].filter(pl.col("auction") % 123 == 0).select("auction", "price"),
    "q5": _q5,
    "q7": lambda f: f["bids"].group_by(TEN).agg(top=pl.col("price").max()),
    "q8": _q8,
    "q11": _q11,
    "q12": lambda f: f["bids"].group_by("bidder", TEN).agg(n=pl.len()),
    "running": lambda f: f["bids"].group_by("auction").agg(n=pl.len()),
    "join": lambda f: (
        f["bids"]
        .select("auction", "price")
        .join(f["auctions"].select(pl.col("id").alias("auction"), "category"), on="auction")
    ),
    "top3": lambda f: (
        f["bids"]
        .select("auction", "bidder", "price")
        .group_by("auction")
        .agg(pl.all().top_k_by("price", 3))
        .explode("bidder", "price")
    ),
    "dedup": lambda f: (
        f["bids"].group_by("bidder").agg(pl.col("price").sort_by("datetime").first())
    ),
}
