"""The benchmark's own code, on tiny worlds: what it generates, counts and writes. Never how fast anything is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import psutil
import pytest

_ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(_ROOT))  # benchmarks are not installed with the package: they run from the project's folder

from benchmarks.exports import World, _write_part, volatile_line, write_day, write_volatile  # noqa: E402 - as above
from benchmarks.floor import parse_floor  # noqa: E402
from benchmarks.memory import PeakMemory, postgres_tree  # noqa: E402


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
    line = b'{"resourceType":"Patient","id":"a","meta":{"versionId":"1"},"active":true}\n'
    turned = volatile_line(line)
    before, after = orjson.loads(line), orjson.loads(turned)
    assert turned != line
    assert list(after) == list(reversed(before))
    assert after.pop("meta").pop("lastUpdated")
    assert before.pop("meta")
    assert after == before


@pytest.mark.parametrize("line", [b'{"resourceType": "Pat\n', b"[1]\n"])
def test_a_volatile_line_that_is_no_resource_stays(line: bytes) -> None:
    assert volatile_line(line) == line


def test_a_volatile_copy_has_the_same_files_and_number_of_lines(tmp_path: Path) -> None:
    source = write_day(World(2), 0, tmp_path / "day", 1)
    copy = write_volatile(source, tmp_path / "volatile", 1)
    assert [file.name for file in sorted(copy.iterdir())] == [file.name for file in sorted(source.iterdir())]
    assert len(_lines(copy)) == len(_lines(source))
    same = set(_lines(copy)) & set(_lines(source))
    for line in same:  # only what is no resource
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(line)


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


def test_the_whole_benchmark_on_a_tiny_world(tmp_path: Path) -> None:
    """As `make benchmark` runs it: every load is there, accounts for its lines, and nothing is left behind."""
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks", "--patients=3", "--workers=1", "--repeat=1", f"--json={output}"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "160"}
    done = subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = orjson.loads(output.read_bytes())
    loads = {load["name"]: load for load in found["loads"]}
    assert list(loads) == ["first load", "nothing changed", "a day later", "every line volatile"]
    assert all(sum(load["outcomes"].values()) == load["lines"] > 0 for load in loads.values())
    assert loads["nothing changed"]["changed_rows"] == 0
    assert loads["nothing changed"]["outcomes"]["unchanged"] > 0
    assert found["copy_floor"]["rows"] > 0
    assert "first load" in done.stdout
    assert list(tmp_path.glob("epic-omop-benchmark-*")) == []
