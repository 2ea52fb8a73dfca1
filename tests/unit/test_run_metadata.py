"""Tables in Dagster's metadata are stored in its event log, which takes no enumerations but its own."""

from __future__ import annotations

from dagster._serdes import serialize_value

from omop_schema.exports import ExportKind, ExportState
from pipeline.orchestration.run_metadata import table_value
from pipeline.staging.outcomes import LineOutcome


def test_a_table_with_enumerations_can_be_stored() -> None:
    table = table_value(tuple(LineOutcome)[:3], [(ExportKind.BULK, ExportState.PUBLISHED, 3)])
    serialize_value(table)
    (record,) = table.records
    assert record.data == {"loaded": "bulk", "unchanged": "published", "superseded": 3}
    assert [column.type for column in table.schema.columns] == ["string", "string", "int"]
