"""The landing store: counting lines, gzip that was cut, immutability, resuming, folders."""

from __future__ import annotations

import errno
import gzip
import hashlib
import itertools
import os
import resource
import signal
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import LandingError, UsageError
from pipeline.core.files import landing_errors
from pipeline.core.resource_types import type_in_file_name
from pipeline.core.settings import SiteSettings
from pipeline.fhir.gzip_stream import DamagedGzipError, gunzip
from pipeline.fhir.lines import LineCounter, is_blank
from pipeline.landing.folder import land_folder
from pipeline.landing.reading import open_landed, read_line, stored_file
from pipeline.landing.store import LandedExport, LandingProgress, LandingStore

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PATIENT = b'{"resourceType":"Patient","id":"p1"}'


def count(content: bytes, cuts: list[int]) -> int:
    counter = LineCounter()
    edges = [0, *sorted(min(cut, len(content)) for cut in cuts), len(content)]
    for start, end in itertools.pairwise(edges):
        counter.add(content[start:end])
    return counter.lines


@given(
    st.lists(st.sampled_from([b"a", b"{}", b"\n", b"\n\n", b"\r\n", b" ", b"\t", b"\xef\xbb\xbf", b"\xc3\xa4"])),
    st.lists(st.integers(0, 60)),
)
def test_lines_are_counted_alike_however_the_file_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    content = b"".join(parts)
    expected = sum(1 for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip(b" \t\r"))
    assert count(content, cuts) == expected


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", 0),
        (b"\xef\xbb\xbf", 0),
        (b"{}\n{}", 2),
        (b"{}\r\n\r\n{}\r\n", 2),
        (b"\n \t\r\n", 0),
        (b"\x0b\n", 1),
    ],
)
def test_what_is_a_line(content: bytes, lines: int) -> None:
    assert count(content, []) == lines


def test_blank_lines() -> None:
    assert is_blank(b" \t\r\n")
    assert not is_blank(b"\x00")


@given(st.binary(max_size=5000), st.integers(1, 700), st.integers(1, 3))
def test_gzip_survives_any_cut_into_chunks(content: bytes, size: int, members: int) -> None:
    packed = gzip.compress(content) * members
    chunks = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert b"".join(gunzip(chunks)) == content * members


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_gzip_that_was_cut_short_never_passes(content: bytes, data: st.DataObject) -> None:
    packed = gzip.compress(content)
    end = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(DamagedGzipError):
        list(gunzip([packed[:end]]))


def test_gzip_bombs_come_in_small_pieces() -> None:
    bomb = gzip.compress(bytes(50 << 20))
    sizes = [len(piece) for piece in gunzip([bomb])]
    assert sum(sizes) == 50 << 20
    assert max(sizes) <= 1 << 20


def test_gzip_ignores_zero_padding_but_not_rubbish() -> None:
    packed = gzip.compress(b"x")
    assert b"".join(gunzip([packed + bytes(512)])) == b"x"
    with pytest.raises(DamagedGzipError):
        list(gunzip([packed + b"rubbish"]))


@pytest.mark.parametrize(
    ("name", "resource_type"),
    [
        ("Observation.ndjson", "Observation"),
        ("Observation.000.ndjson.gz", "Observation"),
        ("1.Observation.ndjson", "Observation"),
        ("Patient-2.jsonl", "Patient"),
        ("data.ndjson", None),
        ("Export.ndjson", None),
    ],
)
def test_types_in_file_names(name: str, resource_type: str | None) -> None:
    assert type_in_file_name(name) == resource_type


@pytest.fixture
def store(tmp_path: Path) -> LandingStore:
    return LandingStore(tmp_path / "landing")


def land_one(store: LandingStore, content: bytes = PATIENT + b"\n", export_id: int = 1) -> LandedExport:
    draft = store.begin("site_a", export_id)
    with draft.writer(1, "Patient") as writer:
        for byte in content:
            writer.write(bytes([byte]))
        landed = draft.keep(writer, 1, "Patient", expected_count=1)
    return draft.finish("bulk", NOW, (landed,))


def test_what_was_landed_is_opened_again(store: LandingStore) -> None:
    landed = land_one(store)
    assert store.open("site_a", 1, verify=True) == landed
    (file,) = landed.files
    assert (file.bytes, file.lines, file.expected_count) == (len(PATIENT) + 1, 1, 1)
    assert file.sha256 == hashlib.sha256(PATIENT + b"\n").hexdigest()
    assert landed.relative_name(file) == "files/Patient.00001.ndjson"
    assert open_landed(file.path).read() == PATIENT + b"\n"


def test_rights_are_for_the_owner_only(store: LandingStore) -> None:
    old = os.umask(0)
    try:
        landed = land_one(store)
    finally:
        os.umask(old)
    for path in (store.root, *store.root.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert landed.folder.is_dir()


def test_a_finished_export_is_never_written_again(store: LandingStore) -> None:
    land_one(store)
    with pytest.raises(LandingError, match="finished export"):
        store.begin("site_a", 1)
    store.discard("site_a", 1)
    assert store.open("site_a", 1).lines == 1


def test_an_unfinished_export_cannot_be_opened_and_can_be_discarded(store: LandingStore) -> None:
    store.begin("site_a", 7)
    with pytest.raises(LandingError, match="no finished export 7"):
        store.open("site_a", 7)
    store.discard("site_a", 7)
    assert not store.exists("site_a", 7)


def test_a_file_without_keep_leaves_nothing(store: LandingStore) -> None:
    draft = store.begin("site_a", 1)
    with draft.writer(1, "Patient") as writer:
        writer.write(PATIENT)
    assert draft.landed(1, "Patient") is None
    assert list((draft.folder / "files").iterdir()) == []


def test_a_complete_file_is_found_by_the_next_run_and_a_torn_one_is_not(store: LandingStore) -> None:
    draft = store.begin("site_a", 1)
    with draft.writer(1, "Patient") as writer:
        writer.write(PATIENT)
        kept = draft.keep(writer, 1, "Patient", expected_count=9)
    again = store.begin("site_a", 1)
    assert again.landed(1, "Patient") == kept
    assert again.landed(2, "Patient") is None
    stored = stored_file(kept.path)
    stored.write_bytes(stored.read_bytes()[:5])
    assert again.landed(1, "Patient") is None


def test_restart_forgets_what_a_cut_connection_brought(store: LandingStore) -> None:
    draft = store.begin("site_a", 1)
    with draft.writer(1, "Patient") as writer:
        writer.write(b"half of a long line that will come again")
        writer.restart()
        writer.write(PATIENT)
        kept = draft.keep(writer, 1, "Patient")
    assert open_landed(kept.path).read() == PATIENT
    assert (kept.lines, kept.bytes) == (1, len(PATIENT))


@pytest.mark.parametrize("name", ["../../x", "", "Patient/..", "Patient.ndjson", "a" * 65])
def test_a_type_never_becomes_a_path(store: LandingStore, name: str) -> None:
    with pytest.raises(LandingError, match="file name"):
        store.begin("site_a", 1).writer(1, name)


def test_damage_is_found(store: LandingStore) -> None:
    (file,) = land_one(store).files
    stored = stored_file(file.path)
    sound = stored.read_bytes()
    for place in range(len(sound)):  # a byte of the frame is found when it is read, one of the table at once
        stored.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(LandingError, match=r"damaged|instead of"):
            store.open("site_a", 1, verify=True)
    stored.write_bytes(b"")
    with pytest.raises(LandingError, match="ends before its table"):
        store.open("site_a", 1)
    stored.unlink()
    with pytest.raises(LandingError, match="missing"):
        store.open("site_a", 1)


def test_files_that_older_versions_landed_are_read_as_they_are(store: LandingStore) -> None:
    """Plain NDJSON under the name that the manifest has; damage is found by size and SHA-256."""
    (file,) = land_one(store).files
    stored_file(file.path).unlink()
    file.path.write_bytes(PATIENT + b"\n")
    assert store.open("site_a", 1, verify=True).files == (file,)
    assert read_line(file.path, 0, len(PATIENT)) == PATIENT
    file.path.write_bytes(PATIENT.replace(b"p1", b"p2") + b"\n")
    store.open("site_a", 1)
    with pytest.raises(LandingError, match="SHA-256"):
        store.open("site_a", 1, verify=True)
    file.path.write_bytes(b"")
    with pytest.raises(LandingError, match="0 bytes instead of"):
        store.open("site_a", 1)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"site": "site_a", "export_id": 1}'])
def test_a_damaged_manifest_is_told(store: LandingStore, content: bytes) -> None:
    landed = land_one(store)
    (landed.folder / "manifest.json").write_bytes(content)
    with pytest.raises(LandingError, match="damaged"):
        store.open("site_a", 1)


def test_a_full_disk_is_a_landing_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(LandingError, match=r"disk is full.*Free space"), landing_errors(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_in_the_middle_of_a_file(store: LandingStore) -> None:
    """The kernel's own refusal (a file size limit stands for the disk): nothing half remains."""
    draft = store.begin("site_a", 1)
    refusal = pytest.raises(LandingError, match=r"Patient\.00001\.ndjson cannot be read or written")
    with file_size_limit(1 << 20), draft.writer(1, "Patient") as writer, refusal:
        writer.write(os.urandom(16 << 20))
    assert draft.landed(1, "Patient") is None
    assert list((draft.folder / "files").iterdir()) == []


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_folder_is_landed_byte_for_byte(store: LandingStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    strange = b'\xef\xbb\xbf{"resourceType":"Patient"}\r\n\r\n\xff\xfe not json\n{"a":"\\u0000"}'
    (source / "Patient.ndjson").write_bytes(strange)
    (source / "Observation.000.ndjson.gz").write_bytes(gzip.compress(b'{"resourceType":"Observation"}\n' * 3))
    (source / "export_a.jsonl").write_bytes(b'garbage\n[1]\n{"resourceType":"../x"}\n{"resourceType":"Goal"}\n')
    (source / "nothing.ndjson").write_bytes(b"")
    (source / "notes.txt").write_text("not ours")
    events: list[LandingProgress] = []
    landed = land_folder(store, "site_a", 4, source, NOW, events.append)
    assert store.open("site_a", 4, verify=True) == landed
    assert [(file.number, file.resource_type, file.lines) for file in landed.files] == [
        (1, "Observation", 3),
        (2, "Patient", 3),
        (3, "Goal", 4),
        (4, "Unknown", 0),
    ]
    assert open_landed(landed.files[1].path).read() == strange
    assert open_landed(landed.files[0].path).read() == b'{"resourceType":"Observation"}\n' * 3
    assert (landed.kind, landed.transaction_time) == ("folder", NOW)
    assert sum(event.bytes_added for event in events) == sum(file.bytes for file in landed.files)
    assert (events[-1].files_done, events[-1].files_total) == (4, 4)


def test_a_folder_without_ndjson_is_a_users_mistake(store: LandingStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no NDJSON"):
        land_folder(store, "site_a", 1, tmp_path, NOW)
    with pytest.raises(UsageError, match="neither a folder nor"):
        land_folder(store, "site_a", 1, tmp_path / "absent", NOW)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_gzip_file_is_named(store: LandingStore, tmp_path: Path, damage: str) -> None:
    packed = bytearray(gzip.compress(PATIENT * 1000))
    if damage == "cut":
        del packed[-20:]
    else:
        packed[-6] ^= 0xFF
    (tmp_path / "Patient.ndjson.gz").write_bytes(packed)
    with pytest.raises(LandingError, match=r"Patient\.ndjson\.gz cannot be decompressed"):
        land_folder(store, "site_a", 1, tmp_path, NOW)
    assert not store.is_finished("site_a", 1)


@settings(max_examples=20)
@given(st.binary(max_size=2000))
def test_any_bytes_are_landed_as_they_are(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    packed = zlib.compressobj(wbits=31)
    (folder / "Patient.ndjson.gz").write_bytes(packed.compress(content) + packed.flush())
    landed = land_folder(LandingStore(folder / "landing"), "site_a", 1, folder, NOW)
    assert open_landed(landed.files[0].path).read() == content


@pytest.mark.parametrize(
    ("text", "kept"),
    [("all", (0, "all")), ("1 export", (1, "exports")), ("14 exports", (14, "exports")), ("30 days", (30, "days"))],
)
def test_how_long_landing_keeps_exports(text: str, kept: tuple[int, str]) -> None:
    assert SiteSettings(name="a", landing_keep=text).landing_kept == kept


@pytest.mark.parametrize("text", ["", "0 days", "-1 exports", "30", "days", "30 nights", "99999 days", "1.5 days"])
def test_what_is_no_landing_keep_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="N exports and N days"):
        SiteSettings(name="a", landing_keep=text)
