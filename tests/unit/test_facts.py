"""Facts of resources in files that are mapped: what is looked up is what was written."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.core.errors import LandingError
from pipeline.staging.facts import Facts, write_facts

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1


def _facts(*rows: tuple[int, str, str]) -> pl.LazyFrame:
    schema = {"surrogate_id": pl.Int64, "name": pl.String, "value": pl.String}
    return pl.LazyFrame(rows, schema=schema, orient="row")


def test_a_look_up_finds_what_was_written_and_nothing_else(tmp_path: Path) -> None:
    written = [(number * 7, "birth_date", f"19{number:02}") for number in range(100)]
    written += [(_LOWEST, "birth_date", "first"), (_HIGHEST, "birth_date", "last"), (7, "place", "a place")]
    write_facts(tmp_path / "facts", _facts(*written))
    facts = Facts(tmp_path / "facts")
    wanted = pl.Series([_HIGHEST, 14, 13, 14, None, _LOWEST, -1, 700], dtype=pl.Int64)
    assert facts.of("birth_date", wanted).rows() == [(_LOWEST, "first"), (14, "1902"), (_HIGHEST, "last")]
    assert facts.of("place", wanted).rows() == []
    assert facts.of("place", pl.Series([7])).rows() == [(7, "a place")]
    assert facts.of("other", wanted).rows() == []
    assert facts.of("place", pl.Series([], dtype=pl.Int64)).schema == {"surrogate_id": pl.Int64, "value": pl.String}


def test_of_several_values_the_least_counts(tmp_path: Path) -> None:
    write_facts(
        tmp_path, _facts((1, "code", "b"), (1, "code", "a long text that no view holds inline"), (1, "code", "c"))
    )
    assert Facts(tmp_path).of("code", pl.Series([1])).rows() == [(1, "a long text that no view holds inline")]


def test_a_look_up_before_anything_is_written_sees_what_comes_later(tmp_path: Path) -> None:
    facts = Facts(tmp_path / "facts")
    assert facts.of("code", pl.Series([1])).is_empty()
    write_facts(tmp_path / "facts", _facts((1, "code", "a")))
    assert facts.of("code", pl.Series([1])).rows() == [(1, "a")]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "facts").write_text("a file")
    with pytest.raises(LandingError, match="Staging cannot be written"):
        write_facts(tmp_path / "facts", _facts((1, "code", "a")))
