"""Resources that complete exports no longer hold: kept or deleted by the site's policy, and back when they come again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.landing.store import LandedExport
from pipeline.runtime import Runtime
from pipeline.settings import SiteSettings
from tests.integration.support import Warehouse, encounter, observation, patient

Files = Mapping[str, Sequence[Mapping[str, Any] | bytes]]


def under(warehouse: Warehouse, vanished: str = "delete", left_group: str = "keep", **more: Any) -> Warehouse:
    """The same warehouse with other settings of its site."""
    site = SiteSettings(name="one", vanished=vanished, left_group=left_group, **more)
    runtime = warehouse.runtime
    settings = runtime.settings.model_copy(update={"sites": {"one": site}})
    return replace(warehouse, runtime=Runtime(settings, runtime.clock))


def of(*ids: str, **more: Any) -> Files:
    """p1 is a patient, e1 an encounter, o1, o21 observations of p1."""
    made: dict[str, list[Mapping[str, Any] | bytes]] = {"Patient": [], "Observation": []}
    for name in ids:
        person = f"p{name[-1]}"
        if name[0] == "p":
            made["Patient"].append(patient(name))
        elif name[0] == "e":
            made.setdefault("Encounter", []).append(encounter(name, person))
        else:
            made["Observation"].append(observation(name, person))
    return {kind: lines for kind, lines in made.items() if lines} | more


def load(warehouse: Warehouse, files: Files, group: str = "g", *, complete: bool = True) -> LandedExport:
    export = warehouse.land(files, group=group, complete=complete)
    warehouse.ingest(export)
    return export


def measured(warehouse: Warehouse) -> list[str]:
    """Ids of the observations that have rows."""
    rows = warehouse.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'measurement' ORDER BY resource_id")
    return [row[0] for row in rows]


def told(warehouse: Warehouse, export: LandedExport) -> Any:
    return warehouse.value("SELECT vanished FROM publication WHERE export_id = %s", export.export_id)


def test_what_a_complete_export_no_longer_holds_goes_with_its_rows(warehouse: Warehouse) -> None:
    place = under(warehouse)
    load(place, of("p1", "o1", "o21", "e1"))
    last = load(place, of("p1", "o21"))
    assert measured(place) == ["o21"]
    assert told(place, last) == {"vanished": {"Observation": 1}}
    assert place.rows(
        "SELECT resource_id, outcome, reason FROM resource_state WHERE outcome = 'excluded' ORDER BY 1"
    ) == [("o1", "excluded", "vanished")]
    assert place.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'visit_occurrence'") == [("e1",)]
    again = load(place, of("p1", "o1", "o21"))
    assert measured(place) == ["o1", "o21"], "the very same line is loaded again"
    assert told(place, again) == {}
