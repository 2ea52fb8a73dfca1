"""The crawl as a Dagster job, and hydration inside an ingest run: the same rows, and no id of anybody in the instance."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg

from pipeline.orchestration.definitions import build_definitions
from pipeline.orchestration.nightly import run_nightly
from pipeline.orchestration.partitions import day_of
from tests.databases import Prepared
from tests.integration.rest_world import PATIENTS, SHARED, World, generated, world

QUIET: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def stored(instance: dg.DagsterInstance) -> str:
    """Everything that the instance keeps."""
    runs = instance.get_runs()
    events = [entry.to_json() for run in runs for entry in instance.all_logs(run.run_id)]
    return "\n".join([*events, *(str(run.tags) for run in runs)])


def ids(place: World) -> set[str]:
    every = {resource.get("id") for resource in generated(place.sandbox.state.desk.started.date())}
    found = {one for one in every if one}
    assert len(found) > 500, "otherwise nothing could be found in any text"
    return found


def test_the_crawl_job_lands_and_loads(demo_warehouse: Prepared, tmp_path: Path) -> None:
    listed = tmp_path / "patients.txt"
    site = {"hydrate": True, "patients_file": listed, "groups": ()}
    with world(demo_warehouse, tmp_path / "home", site=site) as place, dg.DagsterInstance.ephemeral() as instance:
        place.clock.shift = timedelta(days=-5)  # Dagster has partitions up to the real today
        definitions = build_definitions(place.runtime.settings, {"runtime": place.runtime})
        names = {job.name for job in definitions.resolve_all_job_defs()}
        assert "site_a__crawl" in names
        assert "site_a__kick_off" not in names, "there is no group to export"
        assert definitions.resolve_schedule_def("site_a__nightly").job_name == "site_a__crawl"
        job = definitions.resolve_job_def("site_a__crawl")

        def run() -> dg.ExecuteInProcessResult:
            return job.execute_in_process(run_config=QUIET, instance=instance, raise_on_error=False)

        missing = run()
        assert not missing.success
        listed.write_text("\n".join(place.patients()))
        place.watched.answers["Goal"] = (500, b"", 10_000)
        assert not run().success, "the server is down"
        place.watched.answers.clear()
        result = run()
        assert result.success
        (crawl_job,) = place.jobs("crawl")
        assert crawl_job.state == "published"
        assert place.rows("SELECT count(*) FROM cdm.person") == [(PATIENTS,)]
        assert place.rows("SELECT count(*) FROM cdm.provider")[0][0] > 0
        place.content()
        events = {event.asset_key.to_user_string(): event for event in result.get_asset_materialization_events()}
        metadata = events["site_a/landing"].materialization.metadata
        assert metadata["patients"].value == PATIENTS
        assert events["site_a/load"].partition == day_of(place.site, crawl_job.requested_at)
        kept = stored(instance)
        assert "resources fetched by reference" in kept
        assert [one for one in ids(place) if one in kept] == []


def test_a_night_hydrates_what_its_exports_lack(demo_warehouse: Prepared, tmp_path: Path) -> None:
    changes = {"left_out_types": frozenset(SHARED)}
    with (
        world(demo_warehouse, tmp_path / "home", site={"hydrate": True, "poll_floor_seconds": 1}, **changes) as place,
        dg.DagsterInstance.ephemeral() as instance,
    ):
        place.clock.shift = timedelta(days=-5)
        outcome = run_nightly(place.runtime, "site_a", instance, lambda _: None)
        assert (outcome.success, outcome.problems) == (True, [])
        assert [job.state for job in place.jobs("hydration")] == ["published"]
        assert place.rows("SELECT count(*) FROM cdm.provider") == [(5,)]
        place.content()
        kept = stored(instance)
        assert "45 resources fetched by reference" in kept
        assert [one for one in ids(place) if one in kept] == []
        # a backfill of the day maps again, and asks nobody
        asked = len(place.watched.paths)
        definitions = build_definitions(place.runtime.settings, {"runtime": place.runtime})
        job = definitions.resolve_job_def("site_a__ingest")
        day = day_of(place.site, place.jobs("bulk")[0].requested_at)
        again = job.execute_in_process(run_config=QUIET, instance=instance, partition_key=day, raise_on_error=False)
        assert again.success
        assert not [path for path in place.watched.paths[asked:] if path.startswith(SHARED)]
        place.content()
