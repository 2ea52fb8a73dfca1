"""Reading landed lines by their place."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import LandingError
from pipeline.landing import frames
from pipeline.landing.chunks import plan_chunks, read_lines
from pipeline.landing.reading import compressed_name, landed_digest, open_landed, read_line, read_lines_at, stored_file
from pipeline.landing.store import LandedExport, LandingStore
from pipeline.landing.storing import compressed

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


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of 64 bytes; a line above 200 is cut."""
    monkeypatch.setattr(frames, "FRAME_BYTES", 64)
    monkeypatch.setattr(frames, "_MOST_FRAME_BYTES", 200)


def store_compressed(path: Path, pieces: list[bytes]) -> Path:
    with compressed(path) as (write, temporary):
        for piece in pieces:
            write(piece)
    temporary.replace(compressed_name(path))
    return path


LINE = st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b" ")) | st.integers(150, 700).map(lambda n: b"x" * n)


@pytest.mark.usefixtures("small_frames")
@settings(max_examples=150, deadline=None)
@given(
    lines=st.lists(LINE, max_size=30),
    ends=st.booleans(),
    cuts=st.lists(st.integers(1, 150), max_size=20),
    chunk_bytes=st.integers(1, 400),
)
def test_compressed_files_are_read_as_plain_ones(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool, cuts: list[int], chunk_bytes: int
) -> None:
    """In chunks, line by line, and as a stream; however the bytes came, and lines longer than a frame among them."""
    folder = tmp_path_factory.mktemp("frames")
    content = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    pieces, rest = [], content
    for cut in cuts:
        pieces.append(rest[:cut])
        rest = rest[cut:]
    stored = store_compressed(folder / "a.ndjson", [*pieces, rest])
    (folder / "b.ndjson").write_bytes(content)
    with open_landed(stored) as stream:
        assert stream.read() == content
        stream.seek(7)
        assert (
            list(stream) == list((folder / "b.ndjson").read_bytes()[7:].splitlines(keepends=True)) or b"\r" in content
        )
    chunks = list(plan_chunks(stored, chunk_bytes))
    assert sum(chunk.length for chunk in chunks) == len(content)
    by_chunk = [line for chunk in chunks for line in read_lines(stored, chunk)]
    plain = [line for chunk in plan_chunks(folder / "b.ndjson") for line in read_lines(folder / "b.ndjson", chunk)]
    assert by_chunk == plain
    for line in plain:
        assert read_line(stored, line.offset, len(line.raw)) == line.raw
    assert landed_digest(stored) == landed_digest(folder / "b.ndjson")
    with pytest.raises(LandingError, match="bytes at offset"):
        read_line(stored, len(content), 1)


def test_zstd_itself_reads_what_is_stored(tmp_path: Path) -> None:
    """Whoever has no epic-omop at hand: the table is a frame that every zstd passes over."""
    content = b"".join(b'{"resourceType":"Patient","id":"%d"}\n' % number for number in range(50_000))
    file = compressed_name(store_compressed(tmp_path / "a.ndjson", [content]))
    assert file.stat().st_size < len(content) / 8
    with file.open("rb") as stream:
        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        assert reader.read(len(content) + 1) == content


def land(store: LandingStore, number: int, *contents: bytes) -> LandedExport:
    draft = store.begin("site_a", number)
    files = []
    for index, content in enumerate(contents, start=1):
        with draft.writer(index, "Observation") as writer:
            writer.write(content)
            files.append(draft.keep(writer, index, "Observation"))
    return draft.finish("folder", datetime(2026, 1, number, tzinfo=UTC), tuple(files))


def test_equal_files_are_stored_once_and_outlive_each_other(tmp_path: Path) -> None:
    store = LandingStore(tmp_path)
    same, large = CONTENT * 3, b"".join(b'{"id":"%d"}\n' % number for number in range(900_000))
    first = land(store, 1, same, large)
    second = land(store, 2, large, CONTENT, same)
    stored = [stored_file(file.path) for export in (first, second) for file in export.files]
    assert [path.stat().st_nlink for path in stored] == [2, 2, 2, 1, 2]
    assert stored[1].samefile(stored[2])
    for path in stored[:2]:
        path.unlink()
    assert store.open("site_a", 2, verify=True) == second
    third = land(store, 3, same)
    assert stored_file(third.files[0].path).samefile(stored[4])


def test_a_damaged_file_is_no_twin_of_another(tmp_path: Path) -> None:
    """What comes again whole is stored again: one bad byte on the disk must not spoil every later night."""
    store = LandingStore(tmp_path)
    (file,) = land(store, 1, CONTENT).files
    stored = stored_file(file.path)
    content = bytearray(stored.read_bytes())
    content[5] ^= 1
    stored.write_bytes(bytes(content))
    (again,) = land(store, 2, CONTENT).files
    assert not stored_file(again.path).samefile(stored)
    assert open_landed(again.path).read() == CONTENT


#: Modules whose `.path` is no landed file.
_OTHER_FILES = ("lakehouse", "warehouse/vocabulary/", "postgres", "sandbox")


def test_nothing_else_opens_landed_files() -> None:
    """A landed file has another name on disk, and another size: whoever asks the disk itself is wrong about it."""
    root = Path(__file__).parents[2] / "pipeline"
    asks_disk = re.compile(r"(file|landed|letter)\w*(\[\w+\])?\.path\.(open|read_bytes|read_text|stat|exists|unlink)\(")
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        if not any(name in str(path.relative_to(root)) for name in _OTHER_FILES)
        for line in path.read_text().splitlines()
        if asks_disk.search(line)
    ]
    assert found == []
