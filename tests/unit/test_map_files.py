"""Files of decisions about codes: what is said of a file that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import UsageError
from pipeline.quality.unmapped.files import read_map_file


@pytest.mark.parametrize(
    "first_line",
    [
        '{"resourceType":"Patient","id":"p1","name":[{"family":"Nightingale"}]}',
        "name,birth date\nNightingale,1960-05-04",
    ],
)
def test_a_file_of_another_kind_is_refused_without_its_content(tmp_path: Path, first_line: str) -> None:
    file = tmp_path / "Patient.ndjson"
    file.write_text(first_line + "\n", encoding="utf-8")
    with pytest.raises(UsageError) as error:
        read_map_file(file)
    for part in ("Nightingale", "nightingale", "p1", "birth", "1960"):
        assert part not in str(error.value)


def test_the_columns_that_are_known_are_named(tmp_path: Path) -> None:
    file = tmp_path / "map.csv"
    file.write_text("sourceCode,nightingale\n", encoding="utf-8")
    with pytest.raises(UsageError, match="its header has sourcecode") as error:
        read_map_file(file)
    assert "nightingale" not in str(error.value)


PLAIN = "source_system,source_code,source_name,target_concept_id\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (PLAIN.replace("\n", "\r") + "urn:x,007,n,123\r", 2),
        ("sep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n") + "urn:x;007;n;123\r\n", 3),
        ('"source_system","source_code","a\nnote",target_concept_id\n' + "urn:x,007,n,123\n", 3),
    ],
    ids=["lines end as on an old Mac", "the delimiter is named first", "a line break in the header"],
)
def test_files_as_spreadsheets_write_them_are_read(tmp_path: Path, content: str, line: int) -> None:
    file = tmp_path / "map.csv"
    file.write_bytes(content.encode("utf-8-sig"))
    read = read_map_file(file)
    assert [(one.line, one.code, one.target) for one in read.lines] == [(line, "007", 123)]
    assert not read.refusals


@pytest.mark.parametrize("content", ["\r\r\r", "a" * 200_000, '"' + "b" * 200_000])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "map.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match="none of the formats"):
        read_map_file(file)
