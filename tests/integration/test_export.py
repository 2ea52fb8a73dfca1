"""An export's whole life against the simulated Epic and a real PostgreSQL: open, poll, download, land, cool down."""

from __future__ import annotations

import stat
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from pipeline.commands import export as export_command
from pipeline.core.errors import (
    AuthenticationRefused,
    ConfigurationError,
    CooldownActive,
    ExportGone,
    ExportNotReady,
    LandingError,
    RemoteRefused,
    SiteBusy,
    UsageError,
)
from pipeline.core.settings import Settings, SiteSettings, register_site
from pipeline.extract import bulk
from pipeline.extract.asked_types import asked_types
from pipeline.extract.bulk import ExportEvent
from pipeline.extract.smart.session import open_session
from pipeline.landing.reading import open_landed, stored_file
from pipeline.landing.store import LandedExport
from pipeline.sandbox.config import RegisteredClient, SandboxConfig
from pipeline.sandbox.server import RunningSandbox
from pipeline.warehouse import export_jobs
from pipeline.warehouse.export_jobs import CoolDown
from pipeline.warehouse.runtime import Runtime

TYPES = ("Patient", "Observation", "Goal")
KEY = ec.generate_private_key(ec.SECP384R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


class ShiftedClock:
    """The real time and what was slept: waiting costs nothing, and the simulated Epic goes by the same clock."""

    def __init__(self) -> None:
        self.shift = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.shift

    def sleep(self, seconds: float) -> None:
        self.shift += timedelta(seconds=seconds)


@dataclass(frozen=True)
class Lines:
    """A group of given lines; the type that each one goes with comes first."""

    content: tuple[tuple[str, bytes], ...]

    def resource_types(self) -> Collection[str]:
        return TYPES

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        return ((kind, line) for kind, line in self.content if kind in types)


def group_of(prefix: str) -> Lines:
    patients = [("Patient", orjson.dumps({"resourceType": "Patient", "id": f"{prefix}{n}"})) for n in range(5)]
    observations = [("Observation", b'{"resourceType":"Observation","id":"%s%d"}' % (b"o", n)) for n in range(7)]
    return Lines((*patients, *observations, ("Observation", "{broken ä".encode())))


GROUPS = {"group-a": group_of("a"), "group-b": group_of("b")}


@dataclass
class World:
    sandbox: RunningSandbox
    clock: ShiftedClock
    runtime: Runtime
    site: SiteSettings
    events: list[ExportEvent] = field(default_factory=list)

    def jobs(self) -> list[tuple[str | None, str]]:
        with self.runtime.connect() as connection:
            return [(job.group_id, job.state) for job in export_jobs.list_jobs(connection)]

    def kick_offs(self) -> int:
        return len(self.sandbox.state.desk._state.kickoffs)

    def with_site(self, **changes: Any) -> World:
        site = self.site.model_copy(update=changes)
        settings = self.runtime.settings.model_copy(update={"sites": {site.name: site}})
        return replace(self, site=site, runtime=Runtime(settings, self.clock))

    def pass_window(self) -> None:
        self.clock.sleep(25 * 3600)


def sandbox_config(clock: ShiftedClock, **changes: Any) -> SandboxConfig:
    client = RegisteredClient("client-1", (PUBLIC,))
    return SandboxConfig(groups=GROUPS, clients=(client,), clock=clock, resources_per_file=4, **changes)


@pytest.fixture
def world(tmp_path: Path, installed_url: str) -> Iterator[World]:
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)
    key.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    clock = ShiftedClock()
    with RunningSandbox(sandbox_config(clock)) as sandbox:
        site = SiteSettings(
            name="site_a",
            fhir_url=sandbox.fhir_url,
            client_id="client-1",
            private_key_file=key,
            groups=("group-a", "group-b"),
            resource_types=TYPES,
            poll_floor_seconds=60,
            test_mode=True,
        )
        settings = Settings(home=tmp_path / "home", database_url=installed_url, sites={"site_a": site})
        runtime = Runtime(settings, clock)
        with runtime.connect() as connection:
            connection.execute("TRUNCATE export_job, export_file, cool_down")
        yield World(sandbox, clock, runtime, site)


def landed_lines(landed: LandedExport) -> list[bytes]:
    return [line for file in landed.files for line in open_landed(file.path).read().splitlines()]


def test_a_site_is_exported_whole(world: World, caplog: pytest.LogCaptureFixture) -> None:
    events: list[ExportEvent] = []
    landed = bulk.export_site(world.runtime, world.site, events.append)
    first, second = sorted(landed, key=lambda export: export.export_id)  # jitter decides who is polled first
    for landed, group in ((first, "group-a"), (second, "group-b")):
        assert sorted(landed_lines(landed)) == sorted(line for _, line in GROUPS[group].content)
        assert [file.resource_type for file in landed.files] == ["Patient"] * 2 + ["Observation"] * 2
        assert all(file.lines == file.expected_count for file in landed.files)
        assert world.runtime.landing.open("site_a", landed.export_id, verify=True) == landed
    assert world.jobs() == [("group-b", "landed"), ("group-a", "landed")]
    assert "no file came: Goal" in caplog.text
    with world.runtime.connect() as connection:
        job = export_jobs.get_job(connection, first.export_id)
        rows = connection.execute(
            "SELECT file_number, resource_type, file, expected_count, bytes, lines, sha256, loaded FROM export_file"
            " WHERE export_id = %s ORDER BY file_number",
            [first.export_id],
        ).fetchall()
    assert job.deleted_at
    assert job.landed_at
    assert job.transaction_time == first.transaction_time
    assert not world.sandbox.state.desk._state.jobs, "both were deleted on the server"
    assert rows == [
        (f.number, f.resource_type, first.relative_name(f), f.expected_count, f.bytes, f.lines, f.sha256, None)
        for f in first.files
    ]
    assert {event.state for event in events} == {"running", "complete", "landed"}


def test_too_recently_is_a_cool_down_that_lasts(world: World) -> None:
    world = world.with_site(groups=("group-a",))
    bulk.export_site(world.runtime, world.site)
    publish_all(world)
    with pytest.raises(CooldownActive) as caught:
        bulk.export_site(world.runtime, world.site)
    assert world.jobs() == [("group-a", "skipped"), ("group-a", "published")]
    next_try = caught.value.next_try
    assert next_try
    assert timedelta(hours=23) < next_try - world.clock.now() < timedelta(hours=24, minutes=6)
    # From here on the server is not even asked: another address would be refused at once.
    elsewhere = world.with_site(fhir_url="http://127.0.0.1:9/fhir")
    with pytest.raises(CooldownActive, match="is not exported before"):
        bulk.open_or_adopt(elsewhere.runtime, elsewhere.site, "group-a")
    assert len(world.jobs()) == 2
    world.pass_window()
    assert len(bulk.export_site(world.runtime, world.site)) == 1


def publish_all(world: World) -> None:
    with world.runtime.connect() as connection:
        connection.execute("UPDATE export_job SET state = 'published' WHERE state = 'landed'")


def test_an_open_export_is_adopted_and_polled_when_due(world: World) -> None:
    job = bulk.open_or_adopt(world.runtime, world.site, "group-a")
    assert bulk.open_or_adopt(world.runtime, world.site, "group-a") == job
    with pytest.raises(ExportNotReady):
        bulk.download(world.runtime, job)
    polled = bulk.poll_once(world.runtime, job)
    assert polled.state == "running"
    assert polled.progress == "in progress, asked 1 times"
    assert polled.next_poll_at
    assert timedelta(seconds=1) < polled.next_poll_at - world.clock.now() < timedelta(seconds=2.3)
    complete = bulk.poll_once(world.runtime, polled)
    assert complete.state == "complete"
    assert bulk.poll_once(world.runtime, complete) == complete
    landed = bulk.download(world.runtime, complete)
    assert bulk.open_or_adopt(world.runtime, world.site, "group-a").state == "landed"
    assert bulk.download(world.runtime, complete) == landed
    assert world.kick_offs() == 1


def test_outside_of_test_mode_the_floor_holds(world: World) -> None:
    job = bulk.open_or_adopt(world.runtime, world.site, "group-a")
    with open_session(world.site, world.clock) as session:
        strict = world.with_site(test_mode=False)
        polled = bulk.poll_once(strict.runtime, job, session=replace(session, site=strict.site))
    assert polled.next_poll_at
    assert timedelta(seconds=59) < polled.next_poll_at - world.clock.now() <= timedelta(seconds=66)


def test_a_kick_off_that_was_interrupted_is_not_repeated(world: World) -> None:
    with world.runtime.connect() as connection:
        export_jobs.create_job(
            connection,
            export_id=export_jobs.next_export_id(connection),
            site="site_a",
            group="group-a",
            kind="bulk",
            resource_types=TYPES,
            requested_at=world.clock.now(),
        )
    with pytest.raises(CooldownActive, match="interrupted kick-off"):
        bulk.open_or_adopt(world.runtime, world.site, "group-a")
    assert world.jobs() == [("group-a", "failed")]
    assert world.kick_offs() == 0
    world.pass_window()
    assert bulk.open_or_adopt(world.runtime, world.site, "group-a").state == "running"


def test_two_processes_at_once_make_one_export(world: World) -> None:
    found: list[int] = []

    def open_it() -> None:
        found.append(bulk.open_or_adopt(world.runtime, world.site, "group-a").export_id)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert world.jobs() == [("group-a", "running")]


def test_a_group_that_another_process_works_on_is_busy(world: World) -> None:
    with (
        world.runtime.connect() as holder,
        export_jobs.site_lock(holder, "site_a", export_jobs.SiteWork.GROUP, "group-a"),
    ):
        with (
            world.runtime.connect() as connection,
            pytest.raises(SiteBusy, match="group group-a of site site_a"),
            export_jobs.site_lock(connection, "site_a", export_jobs.SiteWork.GROUP, "group-a", wait_seconds=0.05),
        ):
            raise AssertionError("the lock was given twice")
        with (
            world.runtime.connect() as connection,
            export_jobs.site_lock(connection, "site_a", export_jobs.SiteWork.GROUP, "group-b"),
        ):
            pass
    with (
        world.runtime.connect() as connection,
        export_jobs.site_lock(connection, "site_a", export_jobs.SiteWork.GROUP, "group-a"),
    ):
        pass


def test_a_job_that_the_server_forgot_is_gone(world: World) -> None:
    job = bulk.open_or_adopt(world.runtime, world.site, "group-a")
    world.sandbox.state.desk._state.jobs.clear()
    with pytest.raises(ExportGone):
        bulk.poll_once(world.runtime, job)
    assert world.jobs() == [("group-a", "gone")]
    with pytest.raises(CooldownActive):
        bulk.open_or_adopt(world.runtime, world.site, "group-a")


def test_a_server_that_is_down_is_asked_again_later(world: World) -> None:
    job = bulk.open_or_adopt(world.runtime, world.site, "group-a")
    with world.runtime.connect() as connection:
        away = job.status_url and job.status_url.replace(world.sandbox.base_url, "http://127.0.0.1:9")
        connection.execute("UPDATE export_job SET status_url = %s WHERE export_id = %s", [away, job.export_id])
        job = export_jobs.get_job(connection, job.export_id)
    allowing = world.with_site(allowed_origins=("http://127.0.0.1:9",))
    polled = bulk.poll_once(allowing.runtime, job)
    assert polled.state == "running"
    assert "no connection" in (polled.error or "")
    assert polled.next_poll_at
    assert polled.next_poll_at > world.clock.now() + timedelta(seconds=50)


def test_an_address_on_another_host_waits_for_somebody(world: World) -> None:
    job = bulk.open_or_adopt(world.runtime, world.site, "group-a")
    with world.runtime.connect() as connection:
        connection.execute("UPDATE export_job SET status_url = 'http://evil.example/1'")
        job = export_jobs.get_job(connection, job.export_id)
    with pytest.raises(Exception, match="allowed_origins"):
        bulk.poll_once(world.runtime, job)
    assert world.jobs() == [("group-a", "running")]


def test_a_refused_client_starts_nothing_and_does_not_have_to_wait(world: World) -> None:
    stranger = world.with_site(client_id="nobody")
    with pytest.raises(AuthenticationRefused, match="invalid_client"):
        bulk.open_or_adopt(stranger.runtime, stranger.site, "group-a")
    assert world.jobs() == [("group-a", "failed")]
    assert bulk.open_or_adopt(world.runtime, world.site, "group-a").state == "running"


def test_one_group_that_fails_does_not_hold_up_the_others(world: World) -> None:
    world = world.with_site(groups=("no-such-group", "group-b"))
    with pytest.raises(RemoteRefused, match="no-such-group"):
        bulk.export_site(world.runtime, world.site)
    assert world.jobs() == [("group-b", "landed"), ("no-such-group", "failed")]
    result = bulk.export_groups(world.runtime, world.site, ("group-b",))
    assert [landed.lines for landed in result.landed] == [13]
    assert result.missing_types == {result.landed[0].export_id: ("Goal",)}


def test_an_export_whose_files_were_removed_does_not_block_its_group(world: World) -> None:
    world = world.with_site(groups=("group-a",))
    (landed,) = bulk.export_site(world.runtime, world.site)
    stored_file(landed.files[0].path).unlink()
    with pytest.raises(LandingError, match="missing"):
        bulk.export_site(world.runtime, world.site)
    assert world.jobs() == [("group-a", "failed")]


def test_a_new_warehouse_never_takes_an_id_that_the_store_knows(world: World) -> None:
    with world.runtime.connect() as connection:
        following = export_jobs.next_export_id(connection) + 1
    world.runtime.landing.begin("site_a", following)
    assert bulk.open_or_adopt(world.runtime, world.site, "group-a").export_id == following + 1


# --- folders


@pytest.mark.parametrize(("knows", "ids"), [(True, [b"new", b"undated"]), (False, [b"old", b"new", b"undated"])])
def test_since_asks_for_changes_and_many_sites_ignore_it(world: World, knows: bool, ids: list[bytes]) -> None:
    times = {b"old": b"2026-01-01T00:00:00Z", b"new": b"2026-03-02T00:00:00+01:00"}
    lines = [b'{"resourceType":"Patient","id":"%s","meta":{"lastUpdated":"%s"}}' % item for item in times.items()]
    lines.append(b'{"resourceType":"Patient","id":"undated"}')
    config = world.sandbox.state.config
    object.__setattr__(config, "groups", {"group-a": Lines(tuple(("Patient", line) for line in lines))})
    object.__setattr__(config, "knows_since", knows)
    since = datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="_since"):
        bulk.export_groups(world.runtime, world.site, ("group-a",), since=since)
    asked = world.with_site(groups=("group-a",), supports_since=True)
    (landed,) = bulk.export_groups(asked.runtime, asked.site, ("group-a",), since=since).landed
    content = open_landed(landed.files[0].path).read()
    assert [name for name in (b"old", b"new", b"undated") if b'"%s"' % name in content] == ids
    with world.runtime.connect() as connection:
        job = export_jobs.get_job(connection, landed.export_id)
    assert job.since == since


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "Patient.ndjson").write_bytes(b'{"resourceType":"Patient","id":"1"}\n')
    return folder


def test_a_folder_is_ingested_under_any_name(world: World, folder: Path) -> None:
    landed = bulk.ingest_folder(world.runtime, "from_disk", folder)
    with world.runtime.connect() as connection:
        job = export_jobs.get_job(connection, landed.export_id)
    assert (job.kind, job.state, job.group_id, job.site) == ("folder", "landed", None, "from_disk")
    assert job.transaction_time == landed.transaction_time
    assert world.runtime.landing.open("from_disk", landed.export_id) == landed
    assert stat.S_IMODE(landed.folder.stat().st_mode) == 0o700
    with pytest.raises(ConfigurationError):
        bulk.ingest_folder(world.runtime, "Not a name", folder)


def test_an_interrupted_ingest_is_ended_by_the_next(world: World, folder: Path) -> None:
    with world.runtime.connect() as connection:
        left = export_jobs.create_job(
            connection,
            export_id=export_jobs.next_export_id(connection),
            site="from_disk",
            group=None,
            kind="folder",
            resource_types=(),
            requested_at=world.clock.now(),
        )
    world.runtime.landing.begin("from_disk", left.export_id)
    bulk.ingest_folder(world.runtime, "from_disk", folder)
    assert [state for _, state in world.jobs()] == ["landed", "failed"]
    assert not world.runtime.landing.exists("from_disk", left.export_id)


def test_a_wrong_folder_leaves_nothing(world: World, folder: Path) -> None:
    with pytest.raises(UsageError):
        bulk.ingest_folder(world.runtime, "from_disk", folder / "absent")
    assert world.jobs() == []
    (folder / "Zebra.ndjson.gz").write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(LandingError, match=r"Zebra\.ndjson\.gz"):
        bulk.ingest_folder(world.runtime, "from_disk", folder)
    assert world.jobs() == [(None, "failed")]


# --- what is remembered


def test_a_state_is_not_overwritten_by_a_process_that_comes_late(world: World) -> None:
    job = bulk.open_or_adopt(world.runtime, world.site, "group-a")
    with world.runtime.connect() as connection:
        export_jobs.mark_failed(connection, job.export_id, "ended by hand")
        with pytest.raises(SiteBusy, match="is failed now"):
            export_jobs.save_poll(connection, job.export_id, next_poll_at=world.clock.now())


def test_cool_downs_are_per_client_and_end(world: World) -> None:
    end = world.clock.now() + timedelta(hours=1)
    with world.runtime.connect() as connection:
        export_jobs.put_cool_down(connection, "site_a", "client-1", "g", CoolDown(end, "first"))
        export_jobs.put_cool_down(connection, "site_a", "client-1", "g", CoolDown(end, "second"))
        now = world.clock.now()
        assert export_jobs.cool_down(connection, "site_a", "client-1", "g", now) == CoolDown(end, "second")
        assert export_jobs.cool_down(connection, "site_a", "client-2", "g", now) is None
        assert export_jobs.cool_down(connection, "site_a", "client-1", "g", end) is None


# --- the commands


@pytest.fixture
def program(world: World, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("EPIC_OMOP_HOME", str(world.runtime.settings.home))
    monkeypatch.setenv("EPIC_OMOP_DATABASE_URL", world.runtime.settings.database_url or "")
    monkeypatch.setenv("COLUMNS", "200")
    entry = world.site.model_dump(exclude={"name"}, exclude_defaults=True)
    register_site(world.runtime.settings.home, "site_a", {**entry, "poll_floor_seconds": 0})
    app = typer.Typer()
    export_command.register(app)
    return app


def test_the_export_command(world: World, program: typer.Typer) -> None:
    with_short_waits = world.sandbox.state.config
    object.__setattr__(with_short_waits, "retry_after_seconds", 0)
    result = CliRunner().invoke(program, ["export", "--site", "site_a", "--group", "group-b"])
    assert result.exit_code == 0, result.output
    assert "Observation" in result.output
    assert "Asked for, but no file came: Goal." in result.output
    again = CliRunner().invoke(program, ["export", "--site", "site_a", "--group", "group-x"])
    assert isinstance(again.exception, UsageError)
    assert world.jobs() == [("group-b", "landed")]


def test_the_site_list(program: typer.Typer) -> None:
    result = CliRunner().invoke(program, ["site", "list"])
    assert result.exit_code == 0, result.output
    assert "site_a" in result.output
    assert "group-a; group-b" in result.output


def test_a_site_that_names_no_types_is_asked_for_all_that_it_has(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The simulated Epic refuses a type that it does not have (400), and one without a scope (403)."""
    world = world.with_site(resource_types=None, groups=("group-a",))
    assert "AllergyIntolerance" in asked_types(world.runtime.settings, world.site)
    [landed] = bulk.export_site(world.runtime, world.site)
    assert {file.resource_type for file in landed.files} == {"Patient", "Observation"}
    with world.runtime.connect() as connection:
        job = export_jobs.get_job(connection, landed.export_id)
    assert set(job.resource_types) == {"Patient", "Observation"}, "what was not asked for is not missing"
    [note] = job.notes
    assert note.startswith("The site is not asked for AllergyIntolerance, Condition, ")
    assert note.endswith(": its CapabilityStatement does not name them.")
    assert f"Site site_a: {note} `epic-omop site check site_a` shows what it has" in caplog.text
    assert "no file came" not in caplog.text


def test_a_type_without_a_scope_is_left_out_of_what_a_site_does_not_name(
    tmp_path: Path, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    client = RegisteredClient("client-1", (PUBLIC,), ("system/Patient.read",))
    config = SandboxConfig(groups=GROUPS, clients=(client,), clock=world.clock, resources_per_file=4)
    with RunningSandbox(config) as sandbox:
        world = world.with_site(resource_types=None, groups=("group-a",), fhir_url=sandbox.fhir_url)
        [landed] = bulk.export_site(world.runtime, world.site)
    assert {file.resource_type for file in landed.files} == {"Patient"}
    assert "is not asked for Observation: the app is not registered to read them" in caplog.text
