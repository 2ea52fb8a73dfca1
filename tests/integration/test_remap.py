"""`remap`: settings that changed reach everything that is loaded, from landing alone, also after an interruption."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.extract.bulk import ingest_folder, new_job
from pipeline.landing.reading import compressed_name, open_landed
from pipeline.load import remap as remapping
from pipeline.load.remap import remap, remap_plan
from pipeline.load.replay import replay_dead_letters
from pipeline.quality.settings_notes import settings_notes
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import Warehouse, encounter, observation, patient, reference
from tests.warehouse_content import Content, warehouse_content

CHICAGO = SiteSettings(name="one", time_zone="America/Chicago")


def with_site(warehouse: Warehouse, *sites: SiteSettings) -> Warehouse:
    """The same warehouse under other settings of its sites."""
    settings = warehouse.runtime.settings.model_copy(update={"sites": {site.name: site for site in sites}})
    return replace(warehouse, runtime=Runtime(settings, warehouse.runtime.clock))


def evening(number: int) -> dict[str, Any]:
    """After midnight in UTC, and the day before in Chicago."""
    return observation(
        f"o{number}", effectiveDateTime=f"2025-01-{number:02d}T03:00:00Z", encounter=reference("Encounter", "e1")
    )


def nights() -> list[dict[str, Any]]:
    """Current lines lie in several exports: some of the first, some of the second."""
    late = {"start": "2025-01-02T03:00:00Z", "end": "2025-01-02T04:00:00Z"}
    first = {
        "Patient": [patient(), patient("p2")],
        "Encounter": [encounter(period=late)],
        "Observation": [evening(2), evening(3), {**evening(4), "status": "preliminary"}],
    }
    second = {"Patient": [patient(gender="male"), patient("p2")], "Observation": [evening(3), evening(5)]}
    return [first, second]


def content(warehouse: Warehouse) -> Content:
    with warehouse.runtime.connect() as connection:
        return warehouse_content(connection, state=False)


def notes(warehouse: Warehouse) -> list[str]:
    with warehouse.runtime.connect() as connection:
        return list(settings_notes(warehouse.runtime, connection))


def dates(warehouse: Warehouse) -> list[str]:
    return [str(row[0]) for row in warehouse.rows("SELECT measurement_date FROM cdm.measurement ORDER BY 1")]


class Killed(Exception):
    """What no code expects."""


def test_what_changed_in_settings_reaches_everything(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    for night in nights():
        warehouse.load(night)
    assert notes(warehouse) == []
    before = content(warehouse)
    other = with_site(warehouse, CHICAGO)
    (note,) = notes(other)
    assert "Site one: 7 resources with 6 rows are under old settings" in note
    assert remap_plan(other.runtime, CHICAGO).resources == {"Encounter": 1, "Observation": 4, "Patient": 2}

    # Killed after the first batch, it goes on with the rest.
    monkeypatch.setattr(remapping, "_BATCH_LINES", 3)
    real, calls = remapping.replay_lines, []

    def killed(*arguments: Any) -> Any:
        calls.append(len(arguments[2]))
        if len(calls) == 2:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(remapping, "replay_lines", killed)
    with pytest.raises(Killed):
        remap(other.runtime, CHICAGO)
    assert any("a remap begun at" in note for note in notes(other))
    assert sum(remap_plan(other.runtime, CHICAGO).resources.values()) == 4
    report = remap(other.runtime, CHICAGO)
    assert (report.resumed, report.mapped.total()) == (True, 4)
    other.assert_whole()
    assert notes(other) == []
    assert dates(other) == ["2025-01-01", "2025-01-02", "2025-01-04"]
    assert str(other.value("SELECT visit_start_date FROM cdm.visit_occurrence")) == "2025-01-01"
    # Unlike the first, which had an end, it begins anew: everything is mapped, and nothing changes by it.
    after = content(other)
    again = remap(other.runtime, CHICAGO, everything=True)
    assert (again.resumed, again.mapped.total(), content(other)) == (False, 7, after)
    assert remap(other.runtime, CHICAGO).mapped.total() == 0
    # And back: as if nothing had been.
    utc = with_site(other, SiteSettings(name="one"))
    assert remap(utc.runtime, utc.runtime.settings.site("one")).mapped.total() == 7
    assert content(utc) == before


def test_only_what_an_option_concerns_is_old(warehouse: Warehouse) -> None:
    for night in nights():
        warehouse.load(night)
    site = SiteSettings(name="one", mapping=MappingOptions(preliminary_results="keep"))
    kept = with_site(warehouse, site)
    assert remap_plan(kept.runtime, site).resources == {"Observation": 4}
    remap(kept.runtime, site)
    assert dates(kept) == ["2025-01-02", "2025-01-03", "2025-01-04", "2025-01-05"]


def test_a_go_live_date_reaches_the_periods(warehouse: Warehouse) -> None:
    warehouse.load(nights()[0])
    site = SiteSettings(name="one", go_live_date="2025-01-03")
    later = with_site(warehouse, site)
    assert ["go_live_date" in note for note in notes(later)] == [True]
    assert remap(later.runtime, site).export_ids
    assert notes(later) == []
    assert str(later.value("SELECT observation_period_start_date FROM cdm.observation_period")) == "2025-01-03"


def test_lines_that_are_gone_are_told_and_the_rest_is_mapped(warehouse: Warehouse) -> None:
    """What another export has is read there; and what a newer export brought meanwhile is not overwritten."""
    first = warehouse.load(nights()[0])[0].export_id
    warehouse.load(nights()[1])
    shutil.rmtree(warehouse.runtime.landing.folder("one", first))
    other = with_site(warehouse, CHICAGO)
    report = remap(other.runtime, CHICAGO)
    # p2 and o3 did not change: their states name the first export, and the second one has the same lines.
    assert report.not_in_landing == {"Encounter": 1, "Observation": 2}
    assert report.mapped == {"Patient": 2, "Observation": 2}
    assert ["3 resources" in note for note in notes(other)] == [True]
    other.load({"Patient": [patient(), patient("p2")], **{name: nights()[0][name] for name in ("Encounter",)}})
    assert str(other.value("SELECT visit_start_date FROM cdm.visit_occurrence")) == "2025-01-01"


@pytest.mark.parametrize("other_bytes", [b"", b"{}\n", None])
def test_one_damaged_file_costs_its_own_lines_alone(warehouse: Warehouse, other_bytes: bytes | None) -> None:
    number = warehouse.load(nights()[0])[0].export_id
    files = warehouse.runtime.landing.open("one", number).files
    (damaged,) = (file.path for file in files if file.resource_type == "Encounter")
    stored = compressed_name(damaged)
    if other_bytes is None:  # a file of an earlier version, without digests, that was changed from outside
        with open_landed(damaged) as stream:
            lines = stream.read()
        stored.unlink()
        damaged.write_bytes(lines.replace(b"finished", b"planned "))
    else:
        stored.write_bytes(other_bytes)
    report = remap(with_site(warehouse, CHICAGO).runtime, CHICAGO)
    assert report.not_in_landing == {"Encounter": 1}
    assert report.mapped == {"Patient": 2, "Observation": 3}


def test_a_site_that_lost_its_entry_is_refused(warehouse: Warehouse) -> None:
    """Whether a bulk export or an earlier load says that it had one; a site of folders alone needs none."""
    warehouse.load({"Patient": [patient()]}, "folders")
    warehouse.load({"Patient": [patient()]}, "folders")
    configured = with_site(warehouse, CHICAGO)
    configured.load({"Patient": [patient()]})
    with warehouse.runtime.connect() as connection:
        new_job(warehouse.runtime, connection, "asked", "bulk", group="g")
    landed = configured.land({"Patient": [patient(gender="male")]})
    source = configured.write({"Patient": [patient()]})
    for name in ("one", "asked"):
        site = warehouse.runtime.settings.site_or_folder(name)
        tries = [
            lambda name=name: ingest_folder(warehouse.runtime, name, source),
            lambda site=site: replay_dead_letters(warehouse.runtime, site),
            lambda site=site: remap(warehouse.runtime, site),
            lambda site=site: remap_plan(warehouse.runtime, site),
        ]
        if name == "one":
            tries.append(lambda: warehouse.ingest(landed))
        for attempt in tries:
            with pytest.raises(ConfigurationError, match=f"Site '{name}' is missing from"):
                attempt()
    assert [note for note in notes(warehouse) if "missing" in note]
    configured.ingest(landed)
