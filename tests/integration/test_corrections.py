"""What is corrected by hand, in loaded warehouses: times, forgotten exports, `--force`, exports that a database lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.commands.cli import app as program
from pipeline.core.errors import SiteBusy, UsageError, WarehouseError
from pipeline.extract import bulk
from pipeline.extract.notes import export_notes
from pipeline.landing.store import LandedExport
from pipeline.load import corrections
from pipeline.load.landed_exports import landed_export
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import SiteWork, site_lock
from pipeline.warehouse.runtime import Runtime
from tests.databases import empty
from tests.integration.support import START, Warehouse, patient

BIRTHS = "SELECT s.resource_id, year_of_birth FROM cdm.person JOIN row_source AS s ON row_id = person_id"
FUTURE = timedelta(days=400)


def births(warehouse: Warehouse) -> dict[str, int]:
    return dict(warehouse.rows(f"{BIRTHS} WHERE cdm_table = 'person' ORDER BY 1"))  # type: ignore[arg-type]


def born(**years: int) -> dict[str, list[dict[str, Any]]]:
    return {"Patient": [patient(name, birthDate=f"{year}-05-06") for name, year in years.items()]}


def load_of_the_future(warehouse: Warehouse, **years: int) -> LandedExport:
    """An export as earlier versions took it: with the site's time, more than a year ahead."""
    landed = warehouse.land(born(**years), group="g", complete=True)
    when = landed.transaction_time + FUTURE
    warehouse.rows(
        "UPDATE export_job SET transaction_time = %s WHERE export_id = %s RETURNING 1", when, landed.export_id
    )
    draft = warehouse.runtime.landing.draft_of("one", landed.export_id)
    draft.write_manifest(LandedExport(**{**vars(landed), "transaction_time": when}))
    landed = warehouse.runtime.landing.open("one", landed.export_id)
    warehouse.ingest(landed)
    return landed


def load(warehouse: Warehouse, **years: int) -> LandedExport:
    landed = warehouse.land(born(**years), group="g", complete=True)
    warehouse.ingest(landed)
    return landed


def load_again(warehouse: Warehouse, result: corrections.Corrected) -> None:
    for number in result.load_again:
        warehouse.ingest(warehouse.runtime.landing.open("one", number))


@pytest.fixture
def frozen(warehouse: Warehouse) -> tuple[Warehouse, LandedExport, list[LandedExport]]:
    """A site that an export of the future keeps as it was: what came later counts as older."""
    load(warehouse, p1=1950, p2=1950)
    future = load_of_the_future(warehouse, p1=1960, p2=1960, p3=1960)
    later = [load(warehouse, p1=1970, p2=1970), load(warehouse, p1=1980, p2=1980)]
    assert births(warehouse) == {"p1": 1960, "p2": 1960, "p3": 1960}, "the site is frozen"
    return warehouse, future, later


def test_the_time_of_a_published_export_is_set(frozen: tuple[Warehouse, LandedExport, list[LandedExport]]) -> None:
    warehouse, future, later = frozen
    result = corrections.retime(warehouse.runtime, "one", future.export_id)
    assert result.time == future.transaction_time - FUTURE
    assert list(result.load_again) == [export.export_id for export in later]
    again = corrections.retime(warehouse.runtime, "one", future.export_id)
    assert (again.former_time, again.load_again) == (result.time, []), "called again, nothing is left to do"
    load_again(warehouse, result)
    assert births(warehouse) == {"p1": 1980, "p2": 1980, "p3": 1960}
    absent = "SELECT last_export_id FROM absent_resource"
    assert warehouse.rows(absent) == [(future.export_id,)], "p3 left the group after the export of the future"
    load(warehouse, p1=1990, p2=1990)
    assert births(warehouse)["p1"] == 1990, "the next night counts"
    with pytest.raises(UsageError, match="in the future"):
        corrections.retime(warehouse.runtime, "one", future.export_id, START + FUTURE)
    with pytest.raises(UsageError, match="no export 999"):
        corrections.retime(warehouse.runtime, "one", 999)


def test_an_export_is_forgotten(frozen: tuple[Warehouse, LandedExport, list[LandedExport]]) -> None:
    warehouse, future, later = frozen
    result = corrections.forget(warehouse.runtime, "one", future.export_id)
    assert list(result.load_again) == [later[-1].export_id]
    warehouse.assert_whole()
    load_again(warehouse, result)
    assert births(warehouse) == {"p1": 1980, "p2": 1980, "p3": 1960}
    assert warehouse.value("SELECT count(*) FROM resource_state WHERE export_id = %s", future.export_id) == 1
    load(warehouse, p1=1990, p2=1990)
    assert births(warehouse)["p1"] == 1990
    warehouse.ingest(future)  # and can be loaded again, as any landed export


def test_force_loads_an_older_export_over_newer_ones_until_the_next_comes(warehouse: Warehouse) -> None:
    first = load(warehouse, p1=1950)
    load(warehouse, p1=1960)
    program = CommandLineOf(warehouse)
    program("ingest", "--site", "one", "--export", first.export_id)
    assert births(warehouse) == {"p1": 1960}
    program("ingest", "--site", "one", "--export", first.export_id, "--force")
    assert births(warehouse) == {"p1": 1950}
    warehouse.assert_whole()
    load(warehouse, p1=1960)
    assert births(warehouse) == {"p1": 1960}


def test_force_loads_over_an_export_of_the_future(
    frozen: tuple[Warehouse, LandedExport, list[LandedExport]],
) -> None:
    warehouse, _, later = frozen
    CommandLineOf(warehouse)("ingest", "--site", "one", "--export", later[-1].export_id, "--force")
    assert births(warehouse) == {"p1": 1980, "p2": 1980, "p3": 1960}


class CommandLineOf:
    """Commands on a warehouse's home and database, in this process."""

    def __init__(self, warehouse: Warehouse) -> None:
        settings = warehouse.runtime.settings
        self.environment = {
            "EPIC_OMOP_HOME": str(settings.home),
            "EPIC_OMOP_DATABASE_URL": settings.database_url or "",
            "EPIC_OMOP_WORKERS": "1",
            "COLUMNS": "200",
        }

    def __call__(self, *words: object, fails: bool = False) -> Result:
        result = CliRunner(env=self.environment).invoke(program, [str(word) for word in words])
        assert (result.exit_code != 0) is fails, f"{result.output}\n{result.exception}"
        return result


def test_the_commands(frozen: tuple[Warehouse, LandedExport, list[LandedExport]]) -> None:
    warehouse, future, _ = frozen
    command = CommandLineOf(warehouse)
    told = command("export", "retime", "--site", "one", "--export", future.export_id, "--no-load").output
    assert "To be loaded again, in this order" in told
    for wrong in ("yesterday", "2024-02-31", "1066-10-14", "9999-12-31", "0001-01-01T00:00+14:00"):
        command("export", "retime", "--site", "one", "--export", future.export_id, "--time", wrong, fails=True)
    offset = ("--time", "2026-03-01T23:00-05:00", "--no-load")
    assert (
        "2026-03-02 04:00 UTC"
        in command("export", "retime", "--site", "one", "--export", future.export_id, *offset).output
    )
    forget = ("export", "forget", "--site", "one", "--export", future.export_id)
    with (
        warehouse.runtime.connect() as other,
        export_jobs.site_lock(other, "one", export_jobs.SiteWork.EXPORT, future.export_id),
    ):
        assert isinstance(command(*forget, fails=True).exception, SiteBusy), "while it is downloaded"
    assert "is forgotten" in command(*forget).output
    before = warehouse.rows("SELECT export_id, as_of FROM resource_state ORDER BY surrogate_id")
    told_again = command("export", "retime", "--site", "one", "--export", future.export_id, fails=True).exception
    assert isinstance(told_again, UsageError), "its time would let it count again"
    assert warehouse.rows("SELECT export_id, as_of FROM resource_state ORDER BY surrogate_id") == before
    assert births(warehouse)["p1"] == 1980
    assert isinstance(command("export", "abandon", "--site", "one", "--group", "g", fails=True).exception, Exception)
    assert isinstance(command("export", fails=True).exception, UsageError)
    assert isinstance(command("export", "--site", "x", "retime", fails=True).exception, Exception)


# --- gaps


@pytest.mark.parametrize("reason", ["lost", "unusable", "count"])
def test_what_an_export_lacks_makes_nothing_vanish_and_is_in_the_account(warehouse: Warehouse, reason: str) -> None:
    sites = {
        "one": warehouse.runtime.settings.site_or_folder("one").model_copy(
            update={"vanished": "delete", "left_group": "delete"}
        )
    }
    warehouse.runtime = Runtime(warehouse.runtime.settings.model_copy(update={"sites": sites}), warehouse.runtime.clock)
    load(warehouse, p1=1950, p2=1950)
    landed = warehouse.land(born(p1=1950), group="g", complete=True)
    number = landed.files[0].number if reason == "count" else 7
    warehouse.rows(
        "INSERT INTO export_gap (export_id, file_number, category, resource_type, reason, lines)"
        " VALUES (%s, %s, 'files', 'Patient', %s, 0) RETURNING 1",
        landed.export_id,
        number,
        reason,
    )
    warehouse.ingest(landed)
    assert births(warehouse) == {"p1": 1950, "p2": 1950}
    account = "SELECT gap, lines FROM file_account WHERE export_id = %s AND gap IS NOT NULL"
    assert warehouse.rows(account, landed.export_id) == [(reason, 1 if reason == "count" else 0)]
    with warehouse.runtime.connect() as connection:
        assert "1 of Patient" in " ".join(export_notes(connection, [landed.export_id]).sentences())
    load(warehouse, p1=1950)
    assert births(warehouse) == {"p1": 1950}, "a whole export says that p2 is gone"


# --- exports that the database does not know


def test_a_landed_export_that_a_new_database_does_not_know_can_be_loaded(warehouse: Warehouse) -> None:
    first = load(warehouse, p1=1950, p2=1950)
    second = load(warehouse, p1=1960)
    before = warehouse.content()
    with warehouse.runtime.connect() as connection:
        empty(connection)
        connection.execute("SELECT setval(pg_get_serial_sequence('export_job', 'export_id'), 1)")
    command = CommandLineOf(warehouse)
    for export in (first, second):
        command("ingest", "--site", "one", "--export", export.export_id)
    assert warehouse.content() == before
    assert births(warehouse) == {"p1": 1960, "p2": 1950}
    rows = warehouse.rows("SELECT export_id, group_id, kind, state, resource_types FROM export_job ORDER BY 1")
    assert rows == [(export.export_id, "g", "folder", "published", ["Patient"]) for export in (first, second)]
    assert warehouse.rows("SELECT DISTINCT error FROM export_job") == [(None,)], (
        "`status` would show it as the last error"
    )
    assert warehouse.rows("SELECT group_id, last_export_id FROM absent_resource") == [("g", first.export_id)]
    assert load(warehouse, p1=1970).export_id > second.export_id


def test_a_restored_database_that_knows_half_of_it(warehouse: Warehouse) -> None:
    landed = warehouse.land(born(p1=1950))
    with warehouse.runtime.connect() as connection:
        connection.execute("UPDATE export_job SET state = 'requested', landed_at = NULL, transaction_time = NULL")
        connection.execute("DELETE FROM export_file")
    assert landed_export(warehouse.runtime, "one", landed.export_id) == landed
    warehouse.ingest(landed)
    assert births(warehouse) == {"p1": 1950}


def test_a_number_that_is_another_exports_by_now(warehouse: Warehouse) -> None:
    landed = warehouse.land(born(p1=1950))
    warehouse.rows("UPDATE export_job SET site = 'two' RETURNING 1")
    with pytest.raises(WarehouseError, match="another export") as caught:
        landed_export(warehouse.runtime, "one", landed.export_id)
    assert f"--from {landed.folder / 'files'}" in caught.value.advice


# --- interrupted loads


def folder_states(warehouse: Warehouse) -> list[str]:
    return [state for (state,) in warehouse.rows("SELECT state FROM export_job ORDER BY export_id")]


def landed_folders(warehouse: Warehouse) -> list[str]:
    return sorted(path.parent.name for path in warehouse.runtime.landing.root.rglob("manifest.json"))


def test_a_second_load_is_refused_before_anything_is_landed(warehouse: Warehouse) -> None:
    folder = warehouse.write(born(p1=1950))
    command = CommandLineOf(warehouse)
    for work in (SiteWork.INGEST, SiteWork.FOLDER):
        with warehouse.runtime.connect() as other, site_lock(other, "one", work):
            result = command("ingest", "--site", "one", "--from", folder, fails=True)
        assert isinstance(result.exception, SiteBusy)
    assert folder_states(warehouse) == []
    assert landed_folders(warehouse) == []


#: Ends the process where the load of the landed folder begins.
_KILLED = """
import os, signal, sys
import pipeline.load.load
from pipeline.commands.cli import app
number = getattr(signal, sys.argv.pop(1))
pipeline.load.load.load = lambda *_, **__: os.kill(os.getpid(), number)
app(sys.argv[1:])
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_load_that_was_killed_between_landing_and_loading_leaves_nothing(warehouse: Warehouse, how: str) -> None:
    folder = warehouse.write(born(p1=1950))
    command = CommandLineOf(warehouse)
    words = ["ingest", "--site", "one", "--from", str(folder)]
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, how, *words],
        env={**os.environ, **command.environment},
        capture_output=True,
        check=False,
    )
    if how == "SIGKILL":
        assert killed.returncode == -signal.SIGKILL
        assert folder_states(warehouse) == ["landed"]
    else:
        assert (folder_states(warehouse), landed_folders(warehouse)) == (["failed"], [])
    command(*words)
    assert folder_states(warehouse) == ["failed", "published"]
    assert len(landed_folders(warehouse)) == 1
    assert births(warehouse) == {"p1": 1950}


def test_replays_that_a_process_left_are_taken_away(warehouse: Warehouse) -> None:
    with warehouse.runtime.connect() as connection:
        for state in ("requested", "landed"):
            job = bulk.new_job(warehouse.runtime, connection, "one", "replay")
            draft = warehouse.runtime.landing.begin("one", job.export_id)
            if state == "landed":
                export_jobs.save_landed(connection, draft.finish("replay", START, ()), START)
    load(warehouse, p1=1950)
    assert folder_states(warehouse) == ["failed", "failed", "published"]
    assert len(landed_folders(warehouse)) == 1
