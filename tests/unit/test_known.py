"""Known lines and contents: what the mapped files answer is what a dict of the same rows would."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.publication import known_lines as writing
from pipeline.publication.known_lines import KnownWriter, install_known, merged_known
from pipeline.staging import known_lines as known
from pipeline.staging.known_lines import KnownLines
from tests.integration.support import rows_of

#: Few, so that first halves repeat, with both ends of the range; and some of any size.
HALVES = st.one_of(
    st.sampled_from([-(2**63), -(2**63) + 1, -1, 1, 2, 2**55, 2**63 - 1]), st.integers(-(2**63), 2**63 - 1)
)
PAIRS = st.tuples(HALVES, HALVES)


def written(folder, lines, contents):
    folder.mkdir(exist_ok=True)
    for kind, rows in ((known.LINES, lines), (known.CONTENTS, contents)):
        sorter = writing._Sorter(folder, *kind)
        for start in range(0, len(rows), 3):  # in several blocks
            sorter.add(np.array(rows[start : start + 3], np.int64).reshape(-1, kind[1]))
        sorter.finish()
    return KnownLines(folder)


def hashes(pairs):
    return pl.DataFrame(pairs, schema={"raw_hash_high": pl.Int64, "raw_hash_low": pl.Int64}, orient="row")


@pytest.mark.parametrize("rows_a_sort", [1_000_000, 4])  # in memory, and spilled to parts
@settings(max_examples=150, deadline=None)
@given(st.dictionaries(PAIRS, HALVES, max_size=40), st.dictionaries(HALVES, HALVES, max_size=40), st.lists(PAIRS))
def test_answers_are_those_of_a_dict(tmp_path_factory, rows_a_sort, lines, contents, others):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_ROWS_A_SORT", rows_a_sort)
        patch.setattr(known, "_MAPPED_BYTES", 64)  # look-ups in several slices
        files = written(
            tmp_path_factory.mktemp("known"),
            [(*pair, resource) for pair, resource in lines.items()],
            list(contents.items()),
        )
        wanted = [*lines, *others, *((high, low + 1 if low < 0 else low - 1) for high, low in lines)]
        assert files.resources_of_lines(hashes(wanted)).to_list() == [lines.get(pair) for pair in wanted]
        asked = [*contents.items(), *others, *((resource, None) for resource in contents), (None, 1)]
        resources, content = (
            pl.Series(name, values, pl.Int64) for name, values in zip("ab", zip(*asked, strict=True), strict=True)
        )
        expected = [given is not None and contents.get(of) == given for of, given in asked]
        assert files.are_known(resources, content).to_list() == expected
        assert files.has_contents == bool(contents)


@pytest.mark.parametrize("rows_a_sort", [1_000_000, 5])  # in one slice, and in several
@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(HALVES, st.tuples(HALVES, HALVES, HALVES), max_size=40),
    st.dictionaries(HALVES, st.tuples(HALVES, HALVES, HALVES), max_size=4),
    st.lists(HALVES, max_size=8),
)
def test_a_merged_change_is_what_all_rows_written_anew_would_be(tmp_path_factory, rows_a_sort, before, added, removed):
    folder, anew = tmp_path_factory.mktemp("known"), tmp_path_factory.mktemp("anew")
    removed = sorted({*removed, *added})
    after = {resource: row for resource, row in before.items() if resource not in removed} | added
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "_ROWS_A_SORT", rows_a_sort)
        for target, rows in ((folder, before), (anew, after)):
            writer = KnownWriter(target)
            writer.add(states(rows))
            writer.finish()
        writer = KnownWriter(folder / "new")
        writer.add(states(added))
        written = merged_known(folder, writer, np.array(removed, np.int64))
        assert written is not None
        install_known(folder, written)
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in anew.iterdir())
    found, expected = KnownLines(folder), KnownLines(anew)
    assert rows_of(found.lines) == rows_of(expected.lines)
    assert rows_of(found.contents) == rows_of(expected.contents)
    assert found.lines.first.tolist() == sorted(found.lines.first.tolist())


def states(rows):
    """resource → (high, low, content hash)."""
    return np.array([(resource, *row) for resource, row in rows.items()], np.int64).reshape(-1, 4)


def test_nothing_is_known_where_nothing_is_written(tmp_path):
    files = KnownLines(tmp_path / "missing")
    assert not files.has_contents
    assert files.resources_of_lines(hashes([(1, 2)])).to_list() == [None]
    assert files.are_known(pl.Series([1]), pl.Series([2])).to_list() == [False]


def test_no_part_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_ROWS_A_SORT", 2)
    written(tmp_path, [(number << 55, number, number) for number in range(-100, 100)], [])
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "contents.first",
        "contents.others",
        "lines.first",
        "lines.others",
    ]
