"""Members of panels that are resources of their own, over several nights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import Warehouse, observation, patient, reference


def _panel(name: str, **more: Any) -> dict[str, Any]:
    panel = observation(name, hasMember=[reference("Observation", "o1")], **more)
    del panel["valueQuantity"]
    return panel


def test_a_member_follows_the_least_of_its_panels_until_the_last_one_goes(warehouse: Warehouse) -> None:
    site = SiteSettings(name="one", mapping=MappingOptions(panel_row="always"))
    settings = warehouse.runtime.settings.model_copy(update={"sites": {"one": site}})
    place = replace(warehouse, runtime=Runtime(settings, warehouse.runtime.clock))

    def panel_of_member() -> list[tuple[str | None]]:
        return place.rows(
            "SELECT panel.resource_id FROM row_source AS member JOIN cdm.measurement ON measurement_id = member.row_id"
            " LEFT JOIN row_source AS panel ON panel.cdm_table = 'measurement' AND panel.row_id = measurement_event_id"
            " WHERE member.cdm_table = 'measurement' AND member.resource_id = 'o1'"
        )

    panels = [_panel(f"panel{number}") for number in range(3)]
    place.load({"Patient": [patient()], "Observation": [observation(), *panels]})
    by_number = "SELECT resource_id FROM resource_state WHERE resource_id LIKE 'panel%' ORDER BY surrogate_id"
    order = [name for (name,) in place.rows(by_number)]
    assert len(order) == 3
    for name, next_one in zip(order, [*order[1:], None], strict=True):
        assert panel_of_member() == [(name,)]
        place.load({"Observation": [_panel(name, status="entered-in-error")]})
        assert panel_of_member() == [(next_one,)]
    assert place.value("SELECT count(*) FROM cdm.measurement WHERE meas_event_field_concept_id IS NOT NULL") == 0
