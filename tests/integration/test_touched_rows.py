"""What analysts must never see is asked before the commit, of the rows that a publication touched; and again of a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.errors import CheckFailed
from pipeline.lakehouse.snapshot import SnapshotOptions, publish_snapshot
from pipeline.lakehouse.store import lakehouse_folder
from tests.integration.support import Warehouse, encounter, patient

_TRIGGER = """
CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$;
CREATE TRIGGER break AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION break()
"""
_BREAKS = {
    "sources without their row": (
        "cdm.visit_occurrence",
        (
            "DELETE FROM cdm.visit_occurrence AS row WHERE NOT EXISTS (SELECT FROM cdm.visit_occurrence WHERE"
            " visit_occurrence_id > row.visit_occurrence_id)"
        ),
    ),
    "rows without a source": (
        "etl.lineage_visit_occurrence",
        "DELETE FROM etl.lineage_visit_occurrence WHERE row_id = (SELECT max(row_id) FROM etl.lineage_visit_occurrence)",
    ),
}


@pytest.mark.parametrize("words", _BREAKS)
def test_a_publication_that_would_leave_them_is_rolled_back(warehouse: Warehouse, words: str) -> None:
    world = warehouse
    world.load({"Patient": [patient()], "Encounter": [encounter("e1")]})
    table, body = _BREAKS[words]
    with world.runtime.connect() as connection:
        connection.execute(_TRIGGER.format(table=table, body=body).encode())
    before = world.checksums()
    export = world.land({"Patient": [patient()], "Encounter": [encounter("e1"), encounter("e2")]})
    with pytest.raises(CheckFailed, match=words) as caught:
        world.ingest(export)
    assert "verify" in caught.value.advice
    assert world.checksums() == before
    assert world.value("SELECT state FROM export_job WHERE export_id = %s", export.export_id) == "landed"
    failed = world.rows("SELECT check_name, cdm_table, problems FROM check_result WHERE problems > 0")
    assert [(table, problems) for _, table, problems in failed] == [("visit_occurrence", 1)]
    with world.runtime.connect() as connection:
        connection.execute("DROP FUNCTION break() CASCADE")
    world.ingest(export)
    assert world.value("SELECT count(*) FROM cdm.visit_occurrence") == 2


def test_a_snapshot_of_a_warehouse_that_fails_is_not_written(warehouse: Warehouse, tmp_path: Path) -> None:
    world = warehouse
    world.load({"Patient": [patient()], "Encounter": [encounter("e1")]})
    with world.runtime.connect() as connection:
        connection.execute("DELETE FROM lineage_visit_occurrence")
    lake = lakehouse_folder(str(tmp_path / "lake"))
    with pytest.raises(CheckFailed, match="visit_occurrence: every row has its source: 1") as caught:
        publish_snapshot(world.runtime, lake)
    assert "--despite-checks" in caught.value.advice
    assert not (tmp_path / "lake" / "latest").exists()
    assert publish_snapshot(world.runtime, lake, SnapshotOptions(despite_checks=True)).rows
