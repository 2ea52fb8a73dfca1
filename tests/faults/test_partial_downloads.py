"""Files that come in pieces: what is there is gone on with by HTTP Range, after a cut and after a killed process."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from pipeline.core.errors import LandingError, RemoteUnavailable
from pipeline.extract.http.ranges import OVERLAP_BYTES
from pipeline.landing.reading import open_landed
from tests.faults.support import FaultyEpic, FixedLines, Nursery, exported, landed_bytes, states


def content(seed: int) -> FixedLines:
    """About 3.4 MB that hardly compress, in one file."""
    dice = random.Random(seed)
    lines = [
        orjson.dumps({"resourceType": "Binary", "id": f"b{number}", "data": dice.randbytes(4200).hex()})
        for number in range(400)
    ]
    return FixedLines(tuple(("Binary", line) for line in lines))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


def epic_at(home: Path, url: str, **more: int) -> FaultyEpic:
    epic = FaultyEpic(home, url, content(1), ("Binary",), **more)
    with epic.runtime().connect() as connection:
        connection.execute("TRUNCATE export_job, export_file, export_outcome, cool_down")
    return epic


@pytest.fixture
def epic(tmp_path: Path, installed_url: str) -> FaultyEpic:
    return epic_at(tmp_path / "home", installed_url)


def expected(epic: FaultyEpic) -> bytes:
    assert isinstance(epic.source, FixedLines)
    return b"".join(line + b"\n" for _, line in epic.source.content)


NO_GZIP = {"fault": "no-gzip"}
NO_RANGES = {"fault": "no-ranges"}


def cut(after_bytes: int, times: int | str = 1) -> dict[str, object]:
    return {"fault": "cut-body", "bytes": after_bytes, "times": times}


@pytest.mark.parametrize("gzip", [True, False], ids=["compressed", "plain"])
def test_a_file_that_is_cut_goes_on_where_it_was(epic: FaultyEpic, gzip: bool) -> None:
    with epic.serving(cut(700_000, 3), *(() if gzip else (NO_GZIP,))) as runtime:
        landed = exported(runtime)
    assert open_landed(landed.files[0].path).read() == expected(epic)
    starts = [start for start, _ in epic.ranges]
    assert len(starts) == 3
    assert starts == sorted(set(starts))
    assert starts[0] > 600_000 - OVERLAP_BYTES
    # Bytes that were decoded have no version of their own: they are compared. Others are vouched for by their ETag.
    assert all((validator is None) is gzip for _, validator in epic.ranges)


def test_a_server_without_ranges_sends_the_file_again(epic: FaultyEpic) -> None:
    with epic.serving(NO_RANGES, cut(700_000, 2)) as runtime:
        landed = exported(runtime)
    assert open_landed(landed.files[0].path).read() == expected(epic)
    assert len(epic.ranges) == len(epic.file_requests()) - 1 == 2


@pytest.mark.parametrize("gzip", [True, False], ids=["compressed", "plain"])
def test_the_next_run_goes_on_with_the_part(epic: FaultyEpic, gzip: bool) -> None:
    plain = () if gzip else (NO_GZIP,)
    with epic.serving(cut(300_000, "always"), *plain) as runtime, pytest.raises(RemoteUnavailable):
        exported(runtime)
    (part,) = runtime.landing.root.rglob("*.part")
    held = part.stat().st_size
    assert held > 1_500_000, "six attempts, each of which went on"
    epic.ranges.clear()
    with epic.serving(*plain) as runtime:
        landed = exported(runtime)
    assert open_landed(landed.files[0].path).read() == expected(epic)
    assert [start for start, _ in epic.ranges] == [held - OVERLAP_BYTES]
    assert set(landed_bytes(landed)) == {"files/Binary.00001.ndjson"}


@pytest.mark.parametrize("gzip", [True, False], ids=["compressed", "plain"])
def test_other_content_is_seen_and_fetched_from_its_beginning(epic: FaultyEpic, gzip: bool) -> None:
    """The server wrote the file again meanwhile: of the same length, but its lines are others."""
    plain = () if gzip else (NO_GZIP,)
    with epic.serving(cut(300_000, "always"), *plain) as runtime, pytest.raises(RemoteUnavailable):
        exported(runtime)
    (file,) = (epic.home / "sandbox").rglob("*.ndjson")
    epic.source = content(2)
    file.write_bytes(expected(epic))
    with epic.serving(*plain) as runtime:
        landed = exported(runtime)
    assert open_landed(landed.files[0].path).read() == expected(epic)
    assert epic.kick_offs == 1


def test_a_part_that_was_damaged_is_thrown_away(epic: FaultyEpic) -> None:
    with epic.serving(cut(300_000, "always")) as runtime, pytest.raises(RemoteUnavailable):
        exported(runtime)
    (part,) = runtime.landing.root.rglob("*.part")
    damaged = bytearray(part.read_bytes())
    damaged[1000] ^= 1
    part.write_bytes(damaged)
    epic.ranges.clear()
    with epic.serving() as runtime:
        assert open_landed(exported(runtime).files[0].path).read() == expected(epic)
    assert epic.ranges == []


def test_killed_in_the_middle_of_a_file(tmp_path: Path, installed_url: str, nursery: Nursery) -> None:
    """Before each note of how far the file is, and before whatever is written after it."""
    whole = epic_at(tmp_path / "whole", installed_url)
    with whole.serving(NO_GZIP):
        nursery.start(whole, durable=True)
        assert nursery.ended() == 0
    writes = (whole.home / "durable").read_text().split()
    assert writes.count("note") == 3, "a note for each MB"
    noted = len(writes) - writes[::-1].index("note")
    following = writes[noted]
    kills = [("note", 1), ("note", 2), ("note", 3), (following, writes[:noted].count(following) + 1)]
    resumed = []
    for number, (of, kill_at) in enumerate(kills):
        epic = epic_at(tmp_path / f"home-{number}", installed_url)
        with epic.serving(NO_GZIP) as runtime:
            nursery.start(epic, kill_at=kill_at, of=of, durable=True)
            assert nursery.ended() == -signal.SIGKILL
            landed = exported(runtime)
        assert open_landed(landed.files[0].path).read() == expected(epic), number
        assert epic.kick_offs == 1
        resumed.append(len(epic.ranges))
    assert resumed == [0, 1, 1, 1], "what the notes vouch for is gone on with"


# --- a full disk


def test_a_disk_quota_ends_the_run_and_the_next_goes_on(epic: FaultyEpic, nursery: Nursery) -> None:
    """The system refuses to write a file beyond 2.5 megabytes: no simulated error."""
    with epic.serving() as runtime:
        nursery.start(epic, largest_file=2_500_000)
        assert nursery.ended() == LandingError.exit_code
        assert states(runtime) == ["complete"]
        assert not any(line.startswith("DELETE") for line in epic.requests)
        landed = exported(runtime)
    assert open_landed(landed.files[0].path).read() == expected(epic)
    assert epic.kick_offs == 1
    assert len(epic.ranges) == 1, "the part that found room is kept"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB. Needs root and the right to mount: elsewhere the quota above stands for it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no file system be mounted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_the_next_goes_on(small_disk: Path, tmp_path: Path, installed_url: str) -> None:
    epic = epic_at(tmp_path / "home", installed_url, resources_per_file=40)
    (epic.home / "landing").symlink_to(small_disk)
    with epic.serving() as runtime:
        with pytest.raises(LandingError, match="The disk is full") as caught:
            exported(runtime)
        assert "Free space" in caught.value.advice
        assert states(runtime) == ["complete"]
        fetched = len(epic.file_requests())
        complete = [path for path in small_disk.rglob("*.ndjson.zst") if path.with_suffix(".json").exists()]
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        landed = exported(runtime)
        assert runtime.landing.open("site_a", landed.export_id, verify=True) == landed
    assert b"".join(open_landed(file.path).read() for file in landed.files) == expected(epic)
    assert complete
    assert len(epic.file_requests()) - fetched == len(landed.files) - len(complete)
    assert epic.kick_offs == 1
