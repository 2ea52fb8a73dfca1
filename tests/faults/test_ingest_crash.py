"""Loading under faults: the program killed −9 between and inside its stages, the server killed, the disk full.

Whatever happens, running it again ends in the very content of a run that nobody disturbed: each line counted once,
nothing half done, nothing left behind.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from pipeline.core.settings import register_site
from pipeline.extract.bulk import ingest_folder
from pipeline.warehouse.embedded.folder import find_server_folder
from pipeline.warehouse.embedded.server import EmbeddedServer
from tests.command_line import CommandLine, Finished, killed, limited
from tests.databases import Prepared
from tests.faults.places import VOCABULARY, KillPoint, Place, wait, waits_for_lock, write_patients
from tests.integration.support import observation, patient, reference
from tests.warehouse_content import Content

#: From how many lines on a first load drops indices.
_BULK_ROWS = "import pipeline.publication.steps.bulk as bulk; bulk._BULK_ROWS = {}"


@dataclass(frozen=True)
class Crash:
    """Where the program is killed: function, before or after its n-th call; whether the export is landed by then."""

    name: str
    where: KillPoint
    when: str = "before"
    number: int = 1
    landed: bool = True
    bulk_rows: int = 50_000

    @property
    def program(self) -> tuple[str, ...]:
        return killed(self.where, self.when, self.number, first=_BULK_ROWS.format(self.bulk_rows))


CRASHES = (
    Crash("half of the files landed", KillPoint.FILE_LANDED, "after", 9, landed=False),
    Crash("all files landed, not yet known", KillPoint.LANDED_SAVED, landed=False),
    Crash("landed, not committed", KillPoint.LANDED_SAVED, "after", landed=False),
    Crash("in the middle of transform", KillPoint.CHUNK_COMPARED, "after", 8),
    Crash("start of publish", KillPoint.PUBLISHED),
    Crash("in the middle of COPY", KillPoint.ROWS_COPIED, "after", 12),
    Crash("right before the commit", KillPoint.RECORDED, "after"),
    Crash("indices dropped", KillPoint.INDICES_DROPPED, "after", bulk_rows=1),
    Crash("committed, not yet cleared", KillPoint.PUBLISHED, "after"),
)
LANDED = tuple(crash for crash in CRASHES if crash.landed)


_INDICES = "SELECT indexdef FROM pg_indexes WHERE schemaname IN ('cdm', 'vocab', 'etl') ORDER BY 1"
_CONSTRAINTS = "SELECT conname, convalidated FROM pg_constraint ORDER BY 1, 2"


@pytest.fixture(scope="module")
def folder(make_home: Callable[[], AbstractContextManager[Path]]) -> Iterator[Path]:
    """Fifteen synthetic patients, broken lines among theirs."""
    with make_home() as home:
        write_patients(home)
        yield home


@contextmanager
def _copied(prepared: Prepared, home: Path) -> Iterator[Place]:
    with prepared.copy(home) as url:
        yield Place(CommandLine(home, url))


@pytest.fixture
def place(demo_warehouse: Prepared, tmp_path: Path) -> Iterator[Place]:
    with _copied(demo_warehouse, tmp_path / "home") as place:
        yield place


@pytest.fixture(scope="module")
def undisturbed(demo_warehouse: Prepared, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Content:
    """The content after one run that nobody disturbed."""
    with _copied(demo_warehouse, tmp_path_factory.mktemp("undisturbed") / "home") as place:
        place.load(folder)
        place.assert_whole()
        content = place.content()
    assert {"person", "measurement", "drug_exposure", "reference_value", "dead_letter"} <= content.keys()
    return content


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def _crashed(place: Place, folder: Path, crash: Crash) -> None:
    ended = place.terminal.start("ingest", "--site", "s", "--from", folder, program=crash.program).finish()
    assert ended.code == -signal.SIGKILL, f"it was not killed: {ended}"
    state = place.rows("SELECT state FROM export_job")
    published = crash.name.startswith("committed")
    assert state == [("published" if published else "landed" if crash.landed else "requested",)]
    assert bool(place.content().get("person")) == published, "readers see before or after"


@pytest.mark.deep
@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: crash.name)
def test_killed_and_the_same_command_again(place: Place, folder: Path, undisturbed: Content, crash: Crash) -> None:
    indices, constraints = place.rows(_INDICES), place.rows(_CONSTRAINTS)
    _crashed(place, folder, crash)
    place.load(folder)
    assert place.content() == undisturbed
    place.assert_whole()
    assert (place.rows(_INDICES), place.rows(_CONSTRAINTS)) == (indices, constraints)
    place.load(folder)
    assert place.content() == undisturbed


@pytest.mark.deep  # the very crashes of the test before, and another way to go on
@pytest.mark.parametrize("crash", LANDED, ids=lambda crash: crash.name)
def test_killed_and_the_landed_export_taken_up(place: Place, folder: Path, undisturbed: Content, crash: Crash) -> None:
    _crashed(place, folder, crash)
    place.load_landed(1)
    assert place.content() == undisturbed
    place.assert_whole()
    assert place.rows("SELECT state FROM export_job") == [("published",)]


def test_a_landed_export_is_told_and_may_be_taken_up_late(place: Place, folder: Path, undisturbed: Content) -> None:
    """An older export that is loaded after a newer one changes nothing."""
    _crashed(place, folder, LANDED[0])
    told = place.terminal.run("status").out
    assert "export 1 of a folder: landed" in told
    place.load(folder)
    place.terminal.run("ingest", "--site", "s", "--export", "1")
    assert place.content() == undisturbed
    place.assert_whole()
    assert place.rows("SELECT state FROM export_job") == [("published",), ("published",)]


def test_killed_while_it_waits_for_a_lock(place: Place, folder: Path, undisturbed: Content) -> None:
    """The server does not see that the client is gone until it gets the lock: the next run must stand that."""
    with psycopg.connect(place.terminal.url) as other:
        other.execute("LOCK TABLE cdm.measurement IN ACCESS EXCLUSIVE MODE")
        child = place.terminal.start("ingest", "--site", "s", "--from", folder)
        wait(lambda: waits_for_lock(other))
        child.kill()
        assert child.finish().code == -signal.SIGKILL
        again = threading.Thread(target=place.load, args=(folder,))
        again.start()
        wait(lambda: place.rows("SELECT 1 FROM export_job WHERE export_id = 2 AND state = 'landed'") == [(1,)])
        other.rollback()
        again.join(60)
    assert place.content() == undisturbed
    place.assert_whole()


# --- what waits for a resource ----------------------------------------------------------------------------------------

REQUEST: dict[str, object] = {
    "id": "m1",
    "status": "active",
    "intent": "order",
    "subject": reference("Patient", "p1"),
    "authoredOn": "2025-01-02",
    "medicationReference": reference("Medication", "med"),
}


def _folder(path: Path, **files: list[dict[str, object]]) -> Path:
    path.mkdir()
    for name, resources in files.items():
        lines = [json.dumps({"resourceType": name, **resource}) for resource in resources]
        (path / f"{name}.ndjson").write_text("\n".join(lines) + "\n")
    return path


def _medication(code: str) -> dict[str, object]:
    return {"id": "med", "code": {"coding": [{"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": code}]}}


@pytest.mark.parametrize(
    "crash",
    [
        Crash("before the dependents are read", KillPoint.DEPENDENTS_READ),
        Crash("while they are landed", KillPoint.REPLAY_LANDED, "after"),
        Crash("before they are published", KillPoint.PUBLISHED, "before", 2),
    ],
    ids=lambda crash: crash.name,
)
def test_killed_before_the_dependents_of_a_change(place: Place, tmp_path: Path, crash: Crash) -> None:
    place.load(
        _folder(tmp_path / "1", Patient=[patient()], MedicationRequest=[REQUEST], Medication=[_medication("314076")])
    )
    changed = _folder(tmp_path / "2", Medication=[_medication("314077")])
    ended = place.terminal.start("ingest", "--site", "s", "--from", changed, program=crash.program).finish()
    assert ended.code == -signal.SIGKILL
    place.load(changed)
    assert place.rows("SELECT drug_source_value FROM cdm.drug_exposure") == [("314077",)]
    place.assert_whole()


@pytest.mark.parametrize(
    "crash",
    [
        Crash("before the dead letters are read", KillPoint.LETTERS_FOUND),
        Crash("while they are landed", KillPoint.REPLAY_LANDED, "after"),
        Crash("before they are published", KillPoint.PUBLISHED, "before", 2),
    ],
    ids=lambda crash: crash.name,
)
def test_killed_before_the_dead_letters_of_a_person_who_came(place: Place, tmp_path: Path, crash: Crash) -> None:
    place.load(_folder(tmp_path / "1", Observation=[observation()]))
    came = _folder(tmp_path / "2", Patient=[patient()])
    ended = place.terminal.start("ingest", "--site", "s", "--from", came, program=crash.program).finish()
    assert ended.code == -signal.SIGKILL
    place.load(came)
    assert place.rows("SELECT count(*) FROM cdm.measurement") == [(1,)]
    assert place.rows("SELECT count(*) FROM dead_letter_open") == [(0,)]
    place.assert_whole()


@pytest.mark.parametrize(
    "crash",
    [
        Crash("members are written, nothing committed", KillPoint.MEMBERS_WRITTEN, "after"),
        Crash("right before the commit", KillPoint.RECORDED, "after"),
        Crash("before the users of what vanished are mapped again", KillPoint.DEPENDENTS_READ),
    ],
    ids=lambda crash: crash.name,
)
def test_killed_while_vanished_resources_go(place: Place, tmp_path: Path, crash: Crash) -> None:
    register_site(place.terminal.home, "s", {"vanished": "delete", "left_group": "delete"})
    medications = [_medication("314076"), {**_medication("314077"), "id": "other"}]
    first = _folder(
        tmp_path / "1",
        Patient=[patient()],
        Observation=[observation(), observation("o2")],
        MedicationRequest=[REQUEST],
        Medication=medications,
    )
    later = _folder(
        tmp_path / "2",
        Patient=[patient()],
        Observation=[observation("o2")],
        MedicationRequest=[REQUEST],
        Medication=medications[1:],
    )
    of_group = ("ingest", "--site", "s", "--group", "g", "--complete", "--from")
    place.terminal.run(*of_group, first)
    ended = place.terminal.start(*of_group, later, program=crash.program).finish()
    assert ended.code == -signal.SIGKILL
    committed = crash.where is KillPoint.DEPENDENTS_READ
    assert place.rows("SELECT count(*) FROM cdm.measurement") == [(1 if committed else 2,)]
    assert place.rows("SELECT count(*) FROM absent_resource") == [(2 if committed else 0,)]
    place.terminal.run("ingest", "--site", "s", "--export", "2")
    assert place.rows("SELECT resource_id FROM row_source WHERE cdm_table = 'measurement'") == [("o2",)]
    assert place.rows("SELECT drug_source_value FROM cdm.drug_exposure") == [(None,)]
    assert place.rows("SELECT count(*) FROM reference WHERE state = 'stale'") == [(0,)]
    place.assert_whole()


# --- the server, the disk ---------------------------------------------------------------------------------------------


def test_the_server_is_killed_in_the_middle_of_publication(
    server_home: Path, folder: Path, undisturbed: Content
) -> None:
    embedded = EmbeddedServer(server_home)
    place = Place(CommandLine(server_home, ""))
    place.terminal.run("vocabulary", "load", VOCABULARY)
    with psycopg.connect(embedded.ensure_running()) as other:
        other.execute("LOCK TABLE cdm.measurement IN ACCESS EXCLUSIVE MODE")
        child = place.terminal.start("ingest", "--site", "s", "--from", folder)
        wait(lambda: waits_for_lock(other))
        server = find_server_folder(server_home)
        assert server is not None
        postmaster = server.postmaster()
        assert postmaster is not None
        postmaster.kill()
        stopped = child.finish()
        other.close()
    assert "Traceback" not in stopped.err
    assert stopped.code == 74
    assert "Error:" in stopped.err
    running = Place(CommandLine(server_home, embedded.ensure_running()))
    assert running.content() == {}
    place.terminal.run("ingest", "--site", "s", "--from", folder)
    assert running.content() == undisturbed
    running.assert_whole()


@pytest.mark.parametrize("largest_file", [512, 4_096, 16_384])
def test_staging_is_full(place: Place, folder: Path, undisturbed: Content, largest_file: int) -> None:
    """No file may grow beyond a size: the nearest to a full disk that needs no rights and no disk."""
    ingest_folder(place.runtime, "s", folder)
    stopped = _limited(place.terminal, largest_file, "ingest", "--site", "s", "--export", "1")
    assert "Traceback" not in stopped.err
    assert stopped.code == 74, stopped.err
    assert "cannot be written" in stopped.err
    assert str(place.runtime.settings.home) in stopped.err  # in staging, or where known lines are kept
    assert place.content() == {}
    place.load_landed(1)
    assert place.content() == undisturbed
    place.assert_whole()


def test_landing_is_full(place: Place, folder: Path, undisturbed: Content) -> None:
    stopped = _limited(place.terminal, 16_384, "ingest", "--site", "s", "--from", folder)
    assert "Traceback" not in stopped.err
    assert stopped.code == 74, stopped.err
    assert "landing" in stopped.err
    assert place.rows("SELECT state FROM export_job") == [("failed",)]
    assert not list(place.runtime.settings.landing.rglob("*.ndjson*")), "what cannot be finished is not kept"
    place.load(folder)
    assert place.content() == undisturbed
    place.assert_whole()


def _limited(terminal: CommandLine, largest_file: int, *arguments: str | Path) -> Finished:
    return terminal.start(*arguments, program=limited(largest_file)).finish()


# --- at once ----------------------------------------------------------------------------------------------------------


def test_two_sites_at_once_and_one_site_twice(
    place: Place, folder: Path, demo_warehouse: Prepared, tmp_path: Path
) -> None:
    """Two sites' loads are both under way, of the very same resources and addresses; a second run of a site is refused."""
    with psycopg.connect(place.terminal.url) as other:
        other.execute("LOCK TABLE cdm.measurement IN ACCESS EXCLUSIVE MODE")
        both = [place.terminal.start("ingest", "--site", site, "--from", folder) for site in ("s", "t")]
        wait(lambda: waits_for_lock(other))
        wait(lambda: len(place.rows(_AT_WORK)) == 2)
        twice = place.terminal.run("ingest", "--site", "s", "--from", folder, code=75)
        assert "Another process is working on ingest of site s.\nWait until it has ended" in twice.err
        assert [child.returncode for child in both] == [None, None]
        other.rollback()
    for child in both:
        ended = child.finish()
        assert (ended.code, "Traceback" in ended.err) == (0, False), ended.err
    with _copied(demo_warehouse, tmp_path / "one after the other") as calm:
        for site in ("s", "t"):
            calm.load(folder, site)
        assert place.content() == calm.content()
    place.assert_whole()
    assert place.rows("SELECT site, state FROM export_job ORDER BY site") == [
        ("s", "published"),
        ("t", "published"),
    ], "the refused run has landed nothing"


#: Sites whose load holds its lock.
_AT_WORK = (
    "SELECT site FROM unnest(ARRAY['s', 't']) AS site,"
    " hashtextextended('etl epic-omop export:' || site || ':ingest', 0) AS key"
    " JOIN pg_locks ON locktype = 'advisory' AND granted AND objsubid = 1"
    " AND key = (classid::bigint << 32 | objid::bigint)"
)
