"""Cutting files into chunks and lines: any chunk size gives the same lines."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.fhir.ndjson import Chunk
from pipeline.landing import chunks as landing_chunks
from pipeline.landing.chunks import plan_chunks, read_lines

#: The machine may be busy; what a test does is what counts.
UNTIMED = settings(deadline=None)

BOM = b"\xef\xbb\xbf"
LINES = st.lists(
    st.sampled_from([b"{}", b'{"a": 1}', b"", b"  \t", b"\r", b'{"b": "\xc3\xa9"}\r', b"x", b'\xff\x00"']), max_size=12
)


class Line(NamedTuple):
    number: int
    offset: int
    raw: bytes


def lines_of(file: Path, chunk: Chunk) -> list[Line]:
    lines = read_lines(file, chunk)
    return [Line(*line) for line in lines]


def every_line(file: Path, chunk_bytes: int) -> list[Line]:
    return [line for chunk in plan_chunks(file, chunk_bytes) for line in lines_of(file, chunk)]


@UNTIMED
@given(LINES, st.booleans(), st.booleans(), st.integers(1, 40), st.integers(1, 16))
def test_any_chunk_size_gives_the_same_lines(tmp_path_factory, lines, last_newline, bom, chunk_bytes, block):
    file = tmp_path_factory.mktemp("ndjson") / "file.ndjson"
    content = (BOM if bom else b"") + b"\n".join(lines) + (b"\n" if last_newline else b"")
    file.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landing_chunks, "_READ", block)
        chunks = list(plan_chunks(file, chunk_bytes))
        found = every_line(file, chunk_bytes)
    expected = [
        (number, text)
        for number, line in enumerate(content.split(b"\n"), start=1)
        if (text := without_ends(line, first=number == 1)).strip()
    ]
    assert [(line.number, line.raw) for line in found] == expected
    assert sum(chunk.length for chunk in chunks) == len(content)
    assert [chunk.offset for chunk in chunks] == [sum(c.length for c in chunks[:n]) for n in range(len(chunks))]
    for line in found:
        assert content[line.offset :].startswith(line.raw)


def without_ends(line: bytes, *, first: bool) -> bytes:
    return (line.removeprefix(BOM) if first else line).removesuffix(b"\r")


def test_crlf_blank_lines_and_no_last_newline(tmp_path):
    file = tmp_path / "file.ndjson"
    file.write_bytes(BOM + b'{"a":1}\r\n\r\n   \n{"b":2}\n{"c":3}')
    assert every_line(file, 1000) == [Line(1, 3, b'{"a":1}'), Line(4, 18, b'{"b":2}'), Line(5, 26, b'{"c":3}')]


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \n\n", BOM, BOM + b"\r\n"])
def test_nothing_but_blank_lines(tmp_path, content):
    file = tmp_path / "file.ndjson"
    file.write_bytes(content)
    assert every_line(file, 10) == []


def test_a_line_longer_than_a_chunk_is_one_line(tmp_path):
    file = tmp_path / "file.ndjson"
    long = b'{"text": "' + b"x" * 9_000_000 + b'"}'
    file.write_bytes(b"{}\n" + long + b"\n{}\n")
    chunks = list(plan_chunks(file, 1000))
    assert sum(chunk.length for chunk in chunks) == file.stat().st_size
    assert [(line.number, len(line.raw)) for chunk in chunks for line in lines_of(file, chunk)] == [
        (1, 2),
        (2, len(long)),
        (3, 2),
    ]


def test_a_chunk_knows_the_number_of_its_first_line(tmp_path):
    file = tmp_path / "file.ndjson"
    file.write_bytes(b"{}\n\n{}\n{}\n")
    assert lines_of(file, Chunk(4, 6, 3)) == [Line(3, 4, b"{}"), Line(4, 7, b"{}")]


def test_hashes_are_those_that_earlier_versions_stored(tmp_path):
    """What is stored of a line must not change: all lines of a warehouse would count as new."""
    file = tmp_path / "file.ndjson"
    file.write_bytes(b'{"a":1}\r\n{"b":2}')
    high, low = read_lines(file, Chunk(0, 16, 1)).hashes().T.tolist()
    digests = [xxhash.xxh3_128_digest(raw) for raw in (b'{"a":1}', b'{"b":2}')]
    assert high == [int.from_bytes(digest[:8], "little", signed=True) for digest in digests]
    assert low == [int.from_bytes(digest[8:], "little", signed=True) for digest in digests]
