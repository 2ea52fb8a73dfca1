"""Chains of links: ends and cycles, against following each link by itself."""

from __future__ import annotations

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from pipeline.publication.chains import CHAIN_SCHEMA, in_cycles, resolved_chains

NUMBERS = st.integers(0, 12)


def _frame(links: dict[int, int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"from": list(links), "next": list(links.values())}, schema={"from": pl.Int64, "next": pl.Int64}
    )


def _reaches_itself(start: int, links: dict[int, int]) -> bool:
    here = links[start]
    for _ in links:
        if here == start:
            return True
        if here not in links:
            return False
        here = links[here]
    return here == start


@given(st.dictionaries(NUMBERS, NUMBERS, max_size=12))
def test_cycles_are_those_that_reach_themselves(links: dict[int, int]) -> None:
    assert set(in_cycles(_frame(links))) == {start for start in links if _reaches_itself(start, links)}


@given(st.dictionaries(NUMBERS, NUMBERS, max_size=12), st.sets(NUMBERS))
def test_chains_end_at_the_last_known(links: dict[int, int], known: set[int]) -> None:
    links = {start: after for start, after in links.items() if not _reaches_itself(start, links)}
    expected = []
    for start, after in links.items():
        if after not in known:
            continue
        last = after
        while last in links and links[last] in known:
            last = links[last]
        expected.append((start, after, last))
    found = resolved_chains(_frame(links), pl.Series(sorted(known), dtype=pl.Int64))
    assert dict(found.schema) == CHAIN_SCHEMA
    assert sorted(found.iter_rows()) == sorted(expected)


def test_a_long_chain() -> None:
    links = {number: number + 1 for number in range(1000)}
    chains = resolved_chains(_frame(links), pl.Series(range(1001)))
    assert chains["last"].unique().to_list() == [1000]
