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
