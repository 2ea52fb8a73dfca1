"""The rules of the checks through Dagster: each table's and each site's, what is kept, and a site's past."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg

from pipeline.core.clock import ManualClock
from pipeline.core.settings import SiteSettings
from pipeline.orchestration.definitions import build_definitions
from pipeline.quality.checks.history import history_findings, history_rules
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import Warehouse, encounter, patient

_SITES = {name: SiteSettings(name=name) for name in ("north", "south")}


def _checked(warehouse: Warehouse) -> dict[str, dg.AssetCheckEvaluation]:
    """A minute after the last time: the newest answer is the one that counts."""
    assert isinstance(warehouse.runtime.clock, ManualClock)
    warehouse.runtime.clock.advance(60)
    settings = warehouse.runtime.settings.model_copy(update={"sites": _SITES})
    runtime = Runtime(settings, warehouse.runtime.clock)
    job = build_definitions(settings, {"runtime": runtime}).resolve_job_def("warehouse_checks__run")
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False)
    return {
        f"{check.asset_key.to_user_string()}:{check.check_name}": check
        for check in result.get_asset_check_evaluations()
    }


def test_rules_are_asset_checks_with_sites_as_metadata(warehouse: Warehouse) -> None:
    warehouse.load({"Patient": [patient()], "Encounter": [encounter("e1")]}, "north")
    warehouse.load({"Patient": [patient()], "Encounter": [encounter("e1"), encounter("e2")]}, "south")
    assert {check.passed for check in _checked(warehouse).values()} == {True}
    with warehouse.runtime.connect() as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("DELETE FROM cdm.visit_occurrence")
        connection.execute("UPDATE export_file SET loaded = NULL WHERE export_id = 1")
    found = _checked(warehouse)
    failed = {name for name, check in found.items() if not check.passed}
    assert failed == {"cdm/visit_occurrence:sources_have_rows", "north/load:accounts_exist"}
    visits = found["cdm/visit_occurrence:sources_have_rows"]
    assert visits.severity == dg.AssetCheckSeverity.ERROR
    assert visits.metadata["problems"].value == 3
    by_site = visits.metadata["by site"]
    assert isinstance(by_site, dg.TableMetadataValue)
    assert [(record.data["site"], record.data["problems"]) for record in by_site.records] == [
        ("north", 1),
        ("south", 2),
    ]
    kept = warehouse.rows(
        "SELECT site, problems FROM check_result WHERE check_name = 'sources_have_rows' AND problems > 0"
    )
    assert sorted(kept) == [("north", 1), ("south", 2)]
    with warehouse.runtime.connect() as connection:
        connection.execute("DELETE FROM lineage_visit_occurrence")
    assert "cdm/visit_occurrence:sources_have_rows" not in {
        name for name, check in _checked(warehouse).items() if not check.passed
    }
    newest = warehouse.rows(
        "SELECT DISTINCT ON (site) site, problems FROM check_result WHERE check_name = 'sources_have_rows'"
        " AND cdm_table = 'visit_occurrence' AND site IS NOT NULL ORDER BY site, checked_at DESC"
    )
    assert newest == [("north", 0), ("south", 0)], "what was wrong is kept as right again"


def test_a_night_is_compared_with_the_nights_of_its_own_site(warehouse: Warehouse) -> None:
    runtime = warehouse.runtime
    settings = runtime.settings.model_copy(update={"sites": _SITES})
    now = runtime.clock.now()
    with runtime.connect() as connection:
        for night in range(8, -1, -1):
            for site, lines in (("north", 1000 if night else 300), ("south", 300)):
                connection.execute(
                    "WITH job AS (INSERT INTO export_job (site, group_id, kind, state, requested_at, published_at)"
                    " VALUES (%(site)s, 'g', 'bulk', 'published', %(at)s, %(at)s) RETURNING export_id)"
                    " INSERT INTO export_file (export_id, file_number, file, resource_type, lines, bytes, sha256,"
                    " loaded, unchanged, superseded, excluded, rejected)"
                    " SELECT export_id, 1, 'f', 'Patient', %(lines)s, 1, '', %(lines)s, 0, 0, 0,"
                    " %(rejected)s FROM job",
                    {"site": site, "at": now - timedelta(days=night), "lines": lines, "rejected": 0 if night else 5},
                )
        found = {finding.rule.name: finding for finding in history_findings(connection, settings, history_rules())}
    assert {name: dict(finding.by_site) for name, finding in found.items()} == {
        "mapping_rate_as_before": {},
        "lines_as_before": {"north": 1},
        "rows_removed_as_before": {},
        "dead_letters_as_before": {},
    }
    assert found["lines_as_before"].details["north"].endswith("; the median of 8 nights is 1,000.")
