"""Reading landed lines by their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import LandingError
from pipeline.landing.reading import open_landed, read_line, read_lines_at

LINES = [b'{"resourceType":"Patient","id":"p1"}', b'{"resourceType":"Patient","id":"p\xc3\xa4"}', b""]
CONTENT = b"\n".join(LINES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "Patient.00001.ndjson"
    path.write_bytes(CONTENT)
    return path


def test_a_line_is_read_by_its_place(file: Path) -> None:
    second = len(LINES[0]) + 1
    assert read_line(file, 0, len(LINES[0])) == LINES[0]
    assert read_line(file, second, len(LINES[1])) == LINES[1]
    assert list(read_lines_at(file, [(second, 4), (0, 3)])) == [LINES[1][:4], LINES[0][:3]]
    with open_landed(file) as stream:
        assert stream.read() == CONTENT


@pytest.mark.parametrize(("offset", "length"), [(0, len(CONTENT) + 1), (len(CONTENT), 1), (10_000, 5)])
def test_a_file_that_ends_before_the_line_is_refused(file: Path, offset: int, length: int) -> None:
    with pytest.raises(LandingError, match="bytes at offset"):
        read_line(file, offset, length)


def test_a_missing_file_is_an_error_with_advice(tmp_path: Path, file: Path) -> None:
    for missing in (tmp_path / "gone.ndjson", tmp_path / "gone" / "Patient.00001.ndjson", file / "below"):
        with pytest.raises(LandingError, match="is missing") as refusal:
            read_line(missing, 0, 1)
        assert "export again" in refusal.value.advice
