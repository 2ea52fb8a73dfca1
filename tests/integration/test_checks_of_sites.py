"""Checks of a warehouse with several sites: what they cost, what they stop, and what `verify` and a snapshot say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.settings import SiteSettings
from pipeline.orchestration.definitions import build_definitions
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine
from tests.integration.support import Warehouse, encounter, patient

JOB, LAKEHOUSE = "warehouse_checks__run", "lakehouse__publish"


@contextmanager
def queries() -> Iterator[Counter[str]]:
    """Statements that are sent, by their text."""
    asked: Counter[str] = Counter()
    execute = psycopg.Cursor.execute

    def counting(self: psycopg.Cursor[Any], query: Any, *values: Any, **more: Any) -> Any:
        asked[query.decode() if isinstance(query, bytes) else str(query)] += 1
        return execute(self, query, *values, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", counting)
        yield asked


def with_sites(warehouse: Warehouse, *names: str, lakehouse: Path | None = None) -> Runtime:
    settings = warehouse.runtime.settings.model_copy(
        update={"sites": {name: SiteSettings(name=name) for name in names}, "lakehouse": lakehouse and str(lakehouse)}
    )
    return Runtime(settings, warehouse.runtime.clock)


def run(runtime: Runtime, job: str, instance: dg.DagsterInstance, **more: Any) -> dg.ExecuteInProcessResult:
    definitions = build_definitions(runtime.settings, {"runtime": runtime})
    return definitions.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False, **more)


def failed(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {
        f"{found.asset_key.to_user_string()}:{found.check_name}": found
        for found in result.get_asset_check_evaluations()
        if not found.passed
    }


def test_checks_by_dagsters_own_jobs(warehouse: Warehouse, tmp_path: Path) -> None:
    for site in ("one", "two"):
        warehouse.load({"Patient": [patient()], "Encounter": [encounter("e1"), encounter("e2")]}, site)
    lake = tmp_path / "lake"
    runtime = with_sites(warehouse, "one", "two", lakehouse=lake)
    with dg.DagsterInstance.ephemeral() as instance:
        _all_pass_and_are_kept(warehouse, run(runtime, JOB, instance))
        _no_site_adds_a_query(warehouse, instance)
        assert run(runtime, LAKEHOUSE, instance).success
        first = (lake / "latest").readlink()
        # of site two a row that is lost, and one that nobody brought
        with runtime.connect() as connection:
            connection.execute("SET session_replication_role = replica")  # the visit after it names it
            connection.execute(
                "DELETE FROM cdm.visit_occurrence WHERE visit_occurrence_id IN (SELECT row_id FROM lineage_visit_occurrence"
                " JOIN resource_state USING (surrogate_id) JOIN site_resource_type USING (site_resource_type_id)"
                " WHERE site = 'two' ORDER BY row_id LIMIT 1)"
            )
            connection.execute(
                "INSERT INTO cdm.visit_occurrence (visit_occurrence_id, person_id, visit_concept_id, visit_start_date,"
                " visit_end_date, visit_type_concept_id) SELECT 999999, min(person_id), 0, '2026-01-01', '2026-01-01', 0"
                " FROM cdm.person"
            )
        result = run(runtime, JOB, instance)
        found = failed(result)
        assert found.keys() == {
            "cdm/visit_occurrence:rows_have_sources",
            "cdm/visit_occurrence:sources_have_rows",
        }
        lost, orphan = found["cdm/visit_occurrence:sources_have_rows"], found["cdm/visit_occurrence:rows_have_sources"]
        assert (lost.metadata["problems"].value, lost.severity) == (1, dg.AssetCheckSeverity.ERROR)
        assert [record.data for record in _by_site(lost)] == [{"site": "two", "problems": 1}]
        assert [record.data for record in _by_site(orphan)] == [{"site": "not known", "problems": 1}]
        # the snapshot's job ends before it writes; so does the command, which has an option to go on
        snapshot = run(runtime, LAKEHOUSE, instance)
        assert not snapshot.success
        assert not snapshot.get_asset_materialization_events()
        assert (lake / "latest").readlink() == first
    _by_command(warehouse, lake)


def _by_site(found: dg.AssetCheckEvaluation) -> Sequence[dg.TableRecord]:
    table = found.metadata["by site"]
    assert isinstance(table, dg.TableMetadataValue)
    return table.records


def _all_pass_and_are_kept(warehouse: Warehouse, result: dg.ExecuteInProcessResult) -> None:
    assert result.success
    assert failed(result) == {}
    checks = {(found.asset_key.to_user_string(), found.check_name) for found in result.get_asset_check_evaluations()}
    assert {(f"cdm/{table}", "rows_have_sources") for table in LINEAGE_TABLES} <= checks
    assert {(f"{site}/load", "lines_as_before") for site in ("one", "two")} <= checks
    kept = warehouse.rows("SELECT check_name, cdm_table, problems FROM check_result WHERE site IS NULL")
    assert len(kept) == len(set(kept)) == len({(name, asset if asset[:4] == "cdm/" else "") for asset, name in checks})
    assert {problems for *_, problems in kept} == {0}


def _no_site_adds_a_query(warehouse: Warehouse, instance: dg.DagsterInstance) -> None:
    """Of a rule one query, however many sites there are."""
    counts = []
    for number in (1, 12):
        runtime = with_sites(warehouse, *("one", "two", *(f"s{site}" for site in range(10)))[:number])
        with queries() as asked:
            assert run(runtime, JOB, instance).success
        counts.append(Counter({text: times for text, times in asked.items() if "SELECT" in text}))
    assert counts[0].total() > len(LINEAGE_TABLES)
    assert counts[0].total() == counts[1].total()


def _by_command(warehouse: Warehouse, lake: Path) -> None:
    settings = warehouse.runtime.settings
    command = CommandLine(settings.home, settings.database_url or "")
    first = (lake / "latest").readlink()
    before = warehouse.value("SELECT count(*) FROM check_result")
    command.run("verify", code=70)
    assert warehouse.value("SELECT count(*) FROM check_result") > before
    newest = "SELECT site, problems FROM check_result WHERE check_name = 'sources_have_rows'"
    newest += " AND cdm_table = 'visit_occurrence' ORDER BY checked_at DESC, site NULLS LAST LIMIT 2"
    assert warehouse.rows(newest) == [("two", 1), (None, 0)]
    refused = command.run("lakehouse", "snapshot", "--to", lake, code=70)
    assert "--despite-checks" in refused.err
    assert (lake / "latest").readlink() == first
    command.run("lakehouse", "snapshot", "--to", lake, "--despite-checks")
    assert (lake / "latest").readlink() != first
