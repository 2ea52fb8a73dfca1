"""The benchmark's own code, on tiny worlds: what it generates, counts and writes. Never how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

_ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(_ROOT))  # benchmarks are not installed with the package: they run from the project's folder

from benchmarks.exports import World, _write_part, make_volatile, patients_of, volatile_line, write_day  # noqa: E402 - as above
from benchmarks.floor import parse_floor  # noqa: E402
from benchmarks.memory import CpuSeconds, PeakMemory, postgres_tree  # noqa: E402
from pipeline.core.errors import WarehouseError  # noqa: E402
from pipeline.warehouse.embedded.server import EmbeddedServer  # noqa: E402


def _lines(folder: Path) -> list[bytes]:
    return sorted(line for file in folder.glob("*.ndjson") for line in file.read_bytes().splitlines())


def test_a_world_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    one = write_day(World(4), 0, tmp_path / "one", 1)
    two = write_day(World(4), 0, tmp_path / "two", 2)
    assert _lines(one) == _lines(two)


def test_files_are_small_and_named_by_their_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.exports.LINES_PER_FILE", 10)
    _write_part(World(3), 0, tmp_path, 0, 1)
    for file in tmp_path.iterdir():
        assert len(file.read_bytes().splitlines()) <= 10
    patients = (tmp_path / "Patient.000-00000.ndjson").read_bytes().splitlines()
    assert {orjson.loads(line)["resourceType"] for line in patients} == {"Patient"}


def test_a_volatile_line_differs_in_bytes_and_not_in_content() -> None:
    line = (
        b'{"resourceType":"DocumentReference","id":"a","meta":{"versionId":"1","source":"b"},'
        b'"content":[{"attachment":{"contentType":"text/html","url":"https://b.example/c?signature=1"}}]}\n'
    )
    turned = volatile_line(line)
    before, after = orjson.loads(line), orjson.loads(turned)
    assert turned != line
    assert list(after) == list(reversed(before))
    assert list(after["content"][0]["attachment"]) == ["url", "contentType"]
    assert after["content"][0]["attachment"].pop("url") == "https://b.example/c?signature=6f9e2c"
    assert before["content"][0]["attachment"].pop("url") == "https://b.example/c?signature=1"
    meta = after.pop("meta")
    assert meta.pop("lastUpdated")
    assert meta.pop("versionId") != before["meta"].pop("versionId")
    assert meta == before.pop("meta")
    assert after == before


@pytest.mark.parametrize("line", [b'{"resourceType": "Pat\n', b"[1]\n"])
def test_a_volatile_line_that_is_no_resource_stays(line: bytes) -> None:
    assert volatile_line(line) == line


def test_a_volatile_folder_has_the_same_files_and_number_of_lines(tmp_path: Path) -> None:
    folder = write_day(World(2), 0, tmp_path / "day", 1)
    before = {file.name: file.read_bytes().splitlines() for file in folder.iterdir()}
    make_volatile(folder, 1)
    after = {file.name: file.read_bytes().splitlines() for file in folder.iterdir()}
    assert {name: len(lines) for name, lines in after.items()} == {name: len(lines) for name, lines in before.items()}
    for name, lines in after.items():
        for line in set(lines) & set(before[name]):  # only what is no resource
            with pytest.raises(orjson.JSONDecodeError):
                orjson.loads(line)


def test_a_number_of_resources_is_about_that_of_its_patients(tmp_path: Path) -> None:
    lines = _lines(write_day(World(patients_of(10_000)), 0, tmp_path / "day", 1))
    assert 7_000 < len(lines) < 13_000


def test_the_parse_floor_passes_over_broken_lines(tmp_path: Path) -> None:
    file = tmp_path / "Patient.ndjson"
    file.write_bytes(b'{"a": 1}\n{"broken\n')
    assert parse_floor([file], 1) > 0


def test_peak_memory_counts_this_process_and_a_server_apart() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other,
        PeakMemory(other.pid) as peak,
    ):
        other.communicate(b"\n")
    assert peak.samples >= 1
    assert peak.ours > 1_000_000
    assert postgres_tree(None) == []


def test_a_server_that_has_gone_counts_nothing() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not psutil.pid_exists(gone.pid)
    assert postgres_tree(gone.pid) == []


def test_cpu_seconds_count_this_process_and_a_server_apart() -> None:
    with CpuSeconds(None) as cpu:
        sum(number * number for number in range(500_000))
    assert cpu.ours > 0
    assert cpu.postgres == 0


def _benchmark(folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    output = folder / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--repeat=1", f"--json={output}", *arguments]
    environment = {**os.environ, "TMPDIR": str(folder), "COLUMNS": "160"}
    try:
        done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    finally:  # also where it was killed half way
        for home in folder.rglob("epic-omop-benchmark-*/home"):
            with suppress(WarehouseError):  # its server is gone, as it should be
                EmbeddedServer(home).stop()
    assert done.returncode == 0, done.stderr
    return orjson.loads(output.read_bytes()), done.stdout


@pytest.mark.timeout(900)  # seconds: a busy machine is no fault
def test_the_whole_benchmark_on_a_tiny_world(tmp_path: Path) -> None:
    """As `make benchmark` runs it: every load is there, accounts for its lines, and nothing is left behind."""
    found, printed = _benchmark(tmp_path, "--patients=3", "--workers=1")
    loads = {load["name"]: load for load in found["loads"]}
    assert list(loads) == ["first load", "nothing changed", "a day later", "every line volatile"]
    assert all(sum(load["outcomes"].values()) == load["lines"] > 0 for load in loads.values())
    assert loads["nothing changed"]["changed_rows"] == 0
    assert loads["nothing changed"]["outcomes"]["unchanged"] > 0
    assert found["copy_floor"]["rows"] > 0
    assert set(found["transform_by_workers"]) == {"1"}
    assert {"decide", "state", "derived"} <= set(loads["first load"]["steps"])
    assert "first load" in printed
    assert list(tmp_path.glob("epic-omop-benchmark-*")) == []


@pytest.mark.timeout(900)
def test_a_part_of_the_benchmark_in_a_folder_of_its_own(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    found, _ = _benchmark(tmp_path, "--resources=100", "--workers=1", "--parts=none", f"--folder={place}", "--keep")
    assert [load["name"] for load in found["loads"]] == ["first load"]
    assert found["patients"] == 2
    assert found["first_load_times_floor"] is None
    assert len(list(place.glob("epic-omop-benchmark-*"))) == 1
