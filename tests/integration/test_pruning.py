"""Pruning: old exports go, and every line that is needed stays where its state says."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.errors import UsageError
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.erasure.run import erasing
from pipeline.extract import bulk as exports
from pipeline.landing.reading import open_landed, read_line, stored_file
from pipeline.landing.usage import landing_usage
from pipeline.load import corrections
from pipeline.load.landed_exports import landed_export
from pipeline.load.landed_lines import missing_lines
from pipeline.load.pruning import PrunedExport, prune
from pipeline.load.replay import replay_dead_letters
from pipeline.publication.landed_line import LANDED_LINE, LandedLine
from pipeline.quality.verify import verify_landing
from pipeline.warehouse import export_jobs
from tests.databases import empty
from tests.integration.support import Lines, Warehouse, encounter, observation, patient
from tests.integration.test_landed_lines import binary, document, drugs, medication, request

_SITE = SiteSettings(name="one", mapping=MappingOptions(notes="on"), landing_keep="1 export")


def world(changed: int = 0, **others: Lines) -> Mapping[str, Lines]:
    """Of 40 observations the first `changed` have another value; one waits for its person."""
    values = [
        observation(f"o{number}", person=f"p{number % 3}", valueQuantity={"value": 2 if number < changed else 1})
        for number in range(40)
    ]
    files: dict[str, Lines] = {
        "Patient": [patient(f"p{number}") for number in range(3)],
        "Encounter": [encounter(f"e{number}", f"p{number % 3}") for number in range(12)],
        "Observation": [*values, observation("late", person="later")],
        "Medication": [medication("314076")],
        "MedicationRequest": [{**request(), "subject": {"reference": "Patient/p1"}}],
        "Binary": [binary()],
        "DocumentReference": [{**document(), "subject": {"reference": "Patient/p2"}}],
    }
    return {**files, **others}


@pytest.fixture
def place(warehouse: Warehouse) -> Warehouse:
    """Three exports, each of them everything: most observations changed in the second, all of it came again in the third."""
    settings = warehouse.runtime.settings
    warehouse.runtime = replace(warehouse.runtime, settings=settings.model_copy(update={"sites": {"one": _SITE}}))
    warehouse.load(world())
    # Binary and document are gone from here on: their lines are in the first export alone.
    warehouse.load(world(36, Binary=[], DocumentReference=[], Encounter=[]))
    warehouse.load(world(36, Binary=[], DocumentReference=[], Encounter=[]))
    return warehouse


def pruned(place: Warehouse, *, dry_run: bool = False, keep: str = "1 export") -> list[PrunedExport]:
    found = prune(place.runtime, _SITE.model_copy(update={"landing_keep": keep}), dry_run=dry_run)
    assert_lines(place)
    return found


def assert_lines(place: Warehouse) -> None:
    """Every state's line is where it says, every letter's too, and what is in landing is as its manifest says."""
    landing = place.runtime.landing
    for row in place.rows(
        f"SELECT {LANDED_LINE} FROM resource_state AS state JOIN site_resource_type AS kind USING (site_resource_type_id)"
    ):
        line = LandedLine(*row)
        files = {file.number: file for file in landing.read_manifest("one", line.export_id).files}
        raw = read_line(files[line.file_number].path, line.byte_offset, line.byte_length)
        assert orjson_id(raw)[0] == line.resource_type
    for export_id, file, offset, length, raw in place.rows(
        "SELECT export_id, file, byte_offset, byte_length, raw FROM dead_letter WHERE state = 'open'"
    ):
        assert read_line(landing.folder("one", export_id) / file, offset, length) == bytes(raw)
    with place.runtime.connect() as connection:
        assert [check for check in verify_landing(connection, landing) if not check.ok] == []
        assert missing_lines(connection) == 0
    place.assert_whole()


def orjson_id(raw: bytes) -> tuple[str, str]:
    import orjson

    resource = orjson.loads(raw)
    return resource["resourceType"], resource["id"]


def on_disk(place: Warehouse) -> Counter[str]:
    root = place.runtime.settings.landing
    return Counter(str(path.relative_to(root)) for path in root.rglob("*"))


def test_needed_lines_stay_and_everything_works_as_before(place: Warehouse) -> None:
    before, sums = on_disk(place), place.checksums()
    looked = pruned(place, dry_run=True)
    assert on_disk(place) == before
    found = pruned(place)
    assert [export.export_id for export in found] == [export.export_id for export in looked] == [1, 2]
    assert [export.lines_moved for export in found] == [export.lines_moved for export in looked]
    assert found[0].lines_moved == 4, "observations that did not change; other files are needed whole"
    assert found[0].bytes_after is not None
    assert found[0].bytes_after < found[0].bytes_before
    assert place.checksums() == sums
    assert pruned(place) == [], "nothing is left to do"
    with pytest.raises(UsageError, match="was pruned"):
        place.ingest(place.runtime.landing.open("one", 1))
    # What depends on something else finds its line.
    place.load({"Medication": [medication("314077")]})
    assert drugs(place) == ["314077"]
    site = place.runtime.settings.site("one")
    assert [report.outcomes["rejected"] for report in replay_dead_letters(place.runtime, site)] == [1]
    place.load({"Patient": [patient("later")]})
    assert place.value("SELECT count(*) FROM dead_letter_open") == 0
    place.load({"DocumentReference": [{**document(), "date": "2025-01-04T10:00:00Z"}]})
    assert place.rows("SELECT note_text FROM cdm.note") == [("The text.",)]
    pruned(place)
    # A night that brings everything anew: of the exports before it nothing is needed but what it does not hold.
    issued = {"issued": "2025-02-02T10:00:00Z"}
    anew = [observation(f"o{number}", person=f"p{number % 3}", **issued) for number in range(40)]
    place.load(world(Observation=anew))
    pruned(place)
    with erasing(place.runtime, "one", ["p1"]) as work:
        assert work.run() == []
    assert_lines(place)
    gone = b'"Patient/p1"'
    for export in place.runtime.landing.finished("one"):
        assert not any(gone in open_landed(file.path).read() for file in export.files)


def test_what_another_export_uses_stays_for_it(place: Warehouse) -> None:
    """Files of the second and third export are one on disk; the second goes, and the third is whole."""
    files = [place.runtime.landing.open("one", number).files for number in (2, 3)]
    pairs = [pair for pair in zip(*files, strict=True) if pair[0].bytes]
    assert all(stored_file(second.path).samefile(stored_file(third.path)) for second, third in pairs)
    place.load(world(40))
    place.load(world(40))
    pruned(place, keep="3 exports")
    assert place.runtime.landing.open("one", 3, verify=True).files == files[1]


def test_how_much_is_kept(place: Warehouse) -> None:
    assert pruned(place, keep="all", dry_run=True) == []
    assert [export.export_id for export in pruned(place, keep="2 exports", dry_run=True)] == [1]
    assert [export.export_id for export in pruned(place, keep="1 day", dry_run=True)] == [1]
    place.runtime.clock.advance(40 * 86_400)  # type: ignore[attr-defined] # a clock that only tests move
    found = pruned(place, keep="30 days", dry_run=True)
    assert [export.export_id for export in found] == [1, 2], "the newest of each group stays, however old"
    rows: list[tuple[Any, ...]] = place.rows("SELECT site, export_id, landed_at FROM export_job")
    times = {(site, number): at for site, number, at in rows}
    usage = landing_usage(place.runtime.landing, times, max(times.values()))
    assert usage.nights == 3
    assert usage.stored < usage.exported + 20_000
    assert usage.sentence().startswith("Landing holds ")
    assert f"enough for {usage.days_left:,} days" in usage.sentence()


def test_what_ended_without_a_publication_is_pruned_in_its_time(place: Warehouse) -> None:
    """Forgotten, and failed with half a file: their folders go as those of their age do, but for lines that are needed."""
    runtime = place.runtime
    corrections.forget(runtime, "one", 2)
    with runtime.connect() as connection:
        job = exports.new_job(runtime, connection, "one", "bulk", group="g")
        export_jobs.mark_failed(connection, job.export_id, "it broke")
        connection.commit()
    half = runtime.landing.begin("one", job.export_id).folder / "half.part"
    half.write_bytes(b"{")
    forgotten = {1: "older", 2: "failed: It was forgotten by hand."}
    assert {export.export_id: export.reason for export in pruned(place, dry_run=True)} == forgotten
    assert pruned(place, keep="all") == []
    assert half.exists()
    runtime.clock.advance(2 * 86_400)  # type: ignore[attr-defined] # a clock that only tests move
    found = {export.export_id: export.reason for export in pruned(place, keep="1 day")}
    assert found == {**forgotten, job.export_id: "failed: it broke"}
    assert not half.parent.exists()
    assert pruned(place, keep="1 day") == []


_KILLED = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from pipeline.core.clock import ManualClock
from pipeline.load import corrections
from pipeline.load.pruning import prune
from pipeline.warehouse.runtime import Runtime
from pipeline.core.settings import Settings, SiteSettings
from tests.faults.nursery import DurableWrites
home, url, kill_at = sys.argv[1:]
runtime = Runtime(Settings(home=Path(home), database_url=url, workers=1), ManualClock(datetime(2026, 4, 1, tzinfo=UTC)))
DurableWrites(int(kill_at))
prune(runtime, SiteSettings(name="one", landing_keep="1 export"))
"""


def test_pruning_is_killed_at_any_point_and_continues(place: Warehouse) -> None:
    """Killed -9 before the third thing that is made to last, then before the sixth, and so on: whatever was done stays right."""
    sums = place.checksums()
    settings = place.runtime.settings
    ends = []
    for kill_at in (*range(3, 60, 3), 1000):
        arguments = (str(settings.home), str(settings.database_url), str(kill_at))
        run = subprocess.run([sys.executable, "-c", _KILLED, *arguments], check=False, cwd=Path(__file__).parents[2])
        ends.append(run.returncode)
        assert_lines(place)
        if run.returncode == 0:
            break
    assert ends[-1] == 0
    assert ends.count(-signal.SIGKILL) == len(ends) - 1
    assert len(ends) > 3
    assert pruned(place) == []
    assert place.checksums() == sums
    assert not [path for path in settings.landing.rglob("*") if path.suffix in (".part", ".tmp")]


def test_what_pruning_left_of_exports_can_be_loaded_into_a_new_database(place: Warehouse) -> None:
    """Some of it is in no other export. None of them is complete any more, so that nothing vanishes by them."""
    pruned(place)
    before = place.content()
    with place.runtime.connect() as connection:
        empty(connection)
    for number in (1, 2, 3):
        export = landed_export(place.runtime, "one", number)
        place.ingest(export)
        if number == 1:
            with pytest.raises(UsageError, match="was pruned"):
                place.ingest(export)
    assert place.content() == before
    assert place.rows("SELECT DISTINCT resource_types FROM export_job WHERE kind = 'folder'") == [([],)]
    assert any("had been pruned" in note for (notes,) in place.rows("SELECT notes FROM export_job") for note in notes)
