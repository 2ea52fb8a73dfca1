"""Chains of resources: a sub-encounter of a sub-encounter, a patient who was merged twice. Set-based, and cycles found."""

from __future__ import annotations

import polars as pl

__all__ = ["CHAIN_SCHEMA", "in_cycles", "resolved_chains"]

#: from: a resource with a link; next: what it links to; last: the end of the chain.
CHAIN_SCHEMA = {"from": pl.Int64, "next": pl.Int64, "last": pl.Int64}


def in_cycles(links: pl.DataFrame) -> pl.Series:
    """The resources (`from`) that reach themselves by following links. Columns of `links`: from, next (one a resource).

    What only leads into a cycle is not in it. Each round takes off the ends of all chains.
    """
    rest = links.select("from", "next")
    while not rest.is_empty():
        inner = rest.filter(pl.col("next").is_in(rest["from"].implode()) & pl.col("from").is_in(rest["next"].implode()))
        if inner.height == rest.height:
            break
        rest = inner
    return rest["from"]


def resolved_chains(links: pl.DataFrame, known: pl.Series) -> pl.DataFrame:
    """Where each chain ends: links to what is not known are as if they were not there. Columns: CHAIN_SCHEMA.

    `links` (from, next) must be free of cycles. A chain of n links takes log n rounds: each doubles its stride.
    """
    known_links = links.filter(pl.col("next").is_in(known.implode())).select(
        "from", "next", pl.col("next").alias("last")
    )
    while True:
        further = known_links.select(pl.col("from").alias("last"), pl.col("last").alias("beyond"))
        step = known_links.join(further, on="last", how="left", maintain_order="left")
        if step["beyond"].null_count() == step.height:
            return known_links.select(pl.col(name).cast(kind) for name, kind in CHAIN_SCHEMA.items())
        known_links = step.select("from", "next", pl.coalesce("beyond", "last").alias("last"))
