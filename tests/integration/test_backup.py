"""Backup and restore by their commands: what comes back is what was there, whatever happened in between."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import orjson
import psycopg
import pytest

from pipeline.core.clock import ManualClock
from pipeline.core.settings import Settings
from pipeline.operations.backup import create
from pipeline.operations.backup.contents import landed_files
from pipeline.operations.backup.create import create_backup
from pipeline.operations.backup.database import dump
from pipeline.operations.backup.restoring import check_backup, restore_backup
from pipeline.warehouse.embedded.binaries import installed_binaries
from pipeline.warehouse.embedded.folder import make_private_folder, open_server_folder
from pipeline.warehouse.runtime import Runtime
from tests.command_line import CommandLine, killed, limited
from tests.databases import Prepared, fresh_database
from tests.documented import commands_below
from tests.integration.conftest import warehouse_of
from tests.integration.support import START, Warehouse, encounter, observation, patient, reference

SITES = """\
sites:
  one:
    fhir_url: https://epic.example.org/api/FHIR/R4
    client_id: c
    groups: [g]
    private_key_file: keys/one.pem
"""


def loaded(warehouse: Warehouse) -> Warehouse:
    home = warehouse.runtime.settings.home
    (home / "keys").mkdir(parents=True)
    (home / "keys" / "one.pem").write_text("not a real key")
    (home / "mappings" / "sites" / "two").mkdir(parents=True)
    (home / "mappings" / "sites" / "two" / "note.txt").write_text("ours")
    files = {
        "Patient": [patient()],
        "Encounter": [encounter()],
        "Observation": [observation(encounter=reference("Encounter", "e1")), observation("wrong", code="x")],
    }
    warehouse.load(files)
    (home / "sites.yaml").write_text(SITES)
    return warehouse


@pytest.fixture(scope="module")
def source(demo_warehouse: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    with warehouse_of(demo_warehouse, tmp_path_factory.mktemp("source")) as found:
        yield loaded(found)


@pytest.fixture(scope="module")
def backups(source: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one backup that nobody changes."""
    folder = tmp_path_factory.mktemp("backups") / "of one"
    create_backup(source.runtime, folder)
    return folder


def terminal(source: Warehouse) -> CommandLine:
    settings = source.runtime.settings
    return CommandLine(settings.home, str(settings.database_url))


def line(home: Path, url: str, variables: Mapping[str, str] = MappingProxyType({})) -> CommandLine:
    home.mkdir(exist_ok=True)
    return CommandLine(home, url, variables)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_restored(source: Warehouse, home: Path, url: str) -> Warehouse:
    """What was restored is whole, is what was there, and the next night goes on from it."""
    settings = source.runtime.settings.model_copy(update={"home": home, "database_url": url})
    restored = Warehouse(Runtime(settings, ManualClock(source.runtime.clock.now())), home.parent)
    restored.assert_whole()
    assert restored.checksums() == source.checksums()
    assert contents(home / "landing") == contents(source.runtime.settings.home / "landing")
    line(home, url).run("verify")
    return restored


def test_a_restored_warehouse_is_what_it_was(source: Warehouse, postgres_url: str, tmp_path: Path) -> None:
    folder, home, role = tmp_path / "backups", tmp_path / "new", f"maria_{os.getpid()}"
    ours = terminal(source)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        ours.run("db", "init")
        ours.run("db", "grant", "omop_reader", role)
        made = ours.run("backup", folder)
        assert "identifier.key" in made.out
        assert "keys/one.pem" in made.out
        assert not any(b"not a real key" in content for content in contents(folder).values())
        assert {path.stat().st_mode & 0o077 for path in [folder, *folder.rglob("*")]} == {0}
        with fresh_database(postgres_url) as url:
            there = line(home, url)
            done = there.run("restore", folder)
            assert "put back before the next load" in done.out
            for name in ("keys/one.pem", "identifier.key"):
                (home / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source.runtime.settings.home / name, home / name)
            restored = as_restored(source, home, url)
            assert (home / "sites.yaml").read_text() == SITES
            assert (home / "mappings/sites/two/note.txt").read_text() == "ours"
            assert restored.value("SELECT has_table_privilege(%s, 'cdm.person', 'SELECT')", role)
            (report,) = restored.load({"Patient": [patient()], "Observation": [observation("new")]})
            assert (report.outcomes["unchanged"], report.outcomes["loaded"]) == (1, 1)
            there.run("verify", "--deep")
            refused = there.run("restore", folder, code=2)
            assert "holds a warehouse already" in refused.err
            forced = there.run("restore", folder, "--force")
            assert "before-restore-" in forced.out
            as_restored(source, home, url)
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


def test_secrets_come_with_a_backup_that_is_asked_for_them(
    source: Warehouse, postgres_url: str, tmp_path: Path
) -> None:
    manifest = create_backup(source.runtime, tmp_path / "backups", include_secrets=True)
    assert manifest.left_out == []
    with fresh_database(postgres_url) as url:
        settings = Settings(home=tmp_path / "new", database_url=url)
        restore_backup(Runtime(settings), tmp_path / "backups")
    key = tmp_path / "new" / "keys" / "one.pem"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("not a real key", 0o600)


def test_a_night_during_the_backup_is_in_it_or_not(
    demo_warehouse: Prepared, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A night publishes while the database is dumped, without waiting: the backup is of the moment before."""
    with warehouse_of(demo_warehouse, tmp_path / "source") as found:
        warehouse = loaded(found)
        before, landing = warehouse.checksums(), contents(warehouse.runtime.settings.landing)

        seen = warehouse.runtime.settings.home / "seen" / "one" / "99.parquet"

        def with_members(*arguments: object) -> object:
            """As a publication between the copy of the settings and the snapshot leaves them."""
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_bytes(b"members")
            return landed_files(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(create, "landed_files", with_members)

        def with_a_night(*arguments: object) -> None:
            warehouse.load({"Observation": [observation("in the night")]})
            dump(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(create, "dump", with_a_night)
        first = create_backup(warehouse.runtime, tmp_path / "backups")
        monkeypatch.undo()
        assert "seen/one/99.parquet" in {file.path for file in first.files}
        seen.unlink()
        assert warehouse.checksums() != before
        warehouse.runtime.clock.advance(60)  # type: ignore[attr-defined]
        pool = set(contents(tmp_path / "backups" / "files"))
        second = create_backup(warehouse.runtime, tmp_path / "backups")
        new = set(contents(tmp_path / "backups" / "files")) - pool
        assert (
            0 < len(new) < len(second.files) - len(first.files) + 3
        )  # the night's files, and settings that it changed
        for backup, rows, files in (
            (first.backup, before, landing),
            (second.backup, warehouse.checksums(), contents(warehouse.runtime.settings.landing)),
        ):
            with fresh_database(postgres_url) as url:
                home = tmp_path / backup
                restore_backup(Runtime(Settings(home=home, database_url=url)), tmp_path / "backups", backup=backup)
                there = Warehouse(Runtime(Settings(home=home, database_url=url), ManualClock(START)), home)
                there.assert_whole()
                assert (there.checksums(), contents(home / "landing")) == (rows, files)
                line(home, url).run("verify")
        _prune(terminal(warehouse), tmp_path / "backups", second.backup, len({file.sha256 for file in second.files}))


def _prune(ours: CommandLine, folder: Path, newest: str, files: int) -> None:
    """What is kept needs nothing of what goes."""
    before = contents(folder)
    assert "would go" in ours.run("backup", "prune", folder, "--keep", "1", "--dry-run").out
    assert contents(folder) == before
    ours.run("backup", "prune", folder, "--keep", "1")
    assert [path.name for path in folder.glob("2*")] == [newest]
    assert len(contents(folder / "files")) == files
    ours.run("backup", "check", folder)


def test_landed_files_that_change_under_way_are_copied_again(source: Warehouse, tmp_path: Path) -> None:
    """As an erasure or a pruning changes them, between the list and the copy."""
    landing = source.runtime.settings.landing
    file = next(path for path in sorted(landing.rglob("*.json")) if path.name == "manifest.json")
    real, calls = create.landed_files, []

    def changing(*arguments: object) -> object:
        found = real(*arguments)  # type: ignore[arg-type]
        calls.append(len(calls))
        if len(calls) in {2, 5}:
            file.write_bytes(file.read_bytes() + b"\n")
        return found

    create.landed_files = changing  # type: ignore[assignment]
    try:
        create_backup(source.runtime, tmp_path / "backups")
    finally:
        create.landed_files = real
    assert len(calls) > 5
    check_backup(tmp_path / "backups")
    manifest = orjson.loads(next((tmp_path / "backups").glob("2*/manifest.json")).read_bytes())
    name = str(file.relative_to(source.runtime.settings.home))
    assert [item["bytes"] for item in manifest["files"] if item["path"] == name] == [file.stat().st_size]


def test_a_person_erased_since_is_back_and_erased_again(
    backups: Path, source: Warehouse, postgres_url: str, tmp_path: Path
) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("p1\n")
    erase = ("erase", "--site", "one", "--patient-file", ids, "--yes")
    with fresh_database(postgres_url) as url:
        there = line(tmp_path / "new", url)

        def persons() -> object:
            with psycopg.connect(url) as connection:
                return connection.execute("SELECT count(*) FROM cdm.person").fetchone()

        there.run("restore", backups)
        there.run(*erase)
        assert persons() == (0,)
        said = there.run("restore", backups, "--force").out
        assert "Persons who were erased after 2026-" in said
        assert "epic-omop erase --site SITE --patient-file FILE" in said
        assert persons() == (1,)
        there.run(*erase)
        assert persons() == (0,)
        there.run("verify")


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        ("truncated dump", 74, "damaged"),
        ("changed file", 74, "damaged"),
        ("missing file", 74, "incomplete"),
        ("changed manifest", 74, "damaged"),
        ("newer version", 2, "newer than this one"),
        ("newer format", 2, "newer than this one"),
        ("path outside", 74, "damaged"),
        ("no backup", 2, "holds no finished backup"),
    ],
)
def test_a_bad_backup_is_refused_and_nothing_changed(
    backups: Path, source: Warehouse, tmp_path: Path, damage: str, code: int, words: str
) -> None:
    folder, home = tmp_path / "backups", tmp_path / "new"
    shutil.copytree(backups, folder)
    _damage(folder, damage)
    there = line(home, str(source.runtime.settings.database_url))
    for command in (("backup", "check", folder), ("restore", folder)):
        refused = there.run(*command, code=code)
        assert words in refused.err
    assert not (home / "landing").exists()


def _damage(folder: Path, damage: str) -> None:
    from dataclasses import replace

    from pipeline.operations.backup.manifest import find_backup, write_manifest

    manifest = find_backup(folder, None)
    own = folder / manifest.backup
    blob = next(path for path in sorted((folder / "files").rglob("*")) if path.is_file())
    if damage == "truncated dump":
        os.truncate(own / "database.dump", manifest.dump_bytes // 2)
    elif damage == "changed file":
        blob.write_bytes(b"x" * blob.stat().st_size)
    elif damage == "missing file":
        blob.unlink()
    elif damage == "changed manifest":
        file = own / "manifest.json"
        file.write_bytes(file.read_bytes().replace(b'"cdm"', b'"abc"'))
    elif damage == "newer version":
        write_manifest(own, replace(manifest, alembic_revision="9999", program="99.0.0"))
    elif damage == "newer format":
        write_manifest(own, replace(manifest, format=2))
    elif damage == "path outside":
        write_manifest(own, replace(manifest, files=[replace(manifest.files[0], path="../../evil")]))
    else:
        shutil.rmtree(own)


def test_a_full_disk_and_a_kill_leave_no_half_backup(source: Warehouse, tmp_path: Path) -> None:
    ours, folder = terminal(source), tmp_path / "backups"
    full = ours.run("backup", folder, program=limited(4096), code=74)
    assert "ulimit" in full.err
    killing = killed("pipeline.operations.backup.create:write_manifest")
    ours.run("backup", folder, program=killing, code=None)
    assert "no finished backup" in ours.run("backup", "check", folder, code=2).err
    ours.run("backup", folder)
    ours.run("backup", "check", folder)
    assert [path.name for path in folder.glob(".*.unfinished")] == []
    assert "1" in ours.run("backup", "list", folder, "--json").out


def test_a_disk_that_fills_up(source: Warehouse, tmp_path: Path) -> None:
    """A real one, of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)), capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        full = terminal(source).run("backup", folder, code=74)
        assert re.search("full|space", full.err)
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@pytest.mark.parametrize("where", ["put_in_place", "restore", "install_schemas", "_give_roles"])
def test_a_killed_restore_goes_through_again(
    backups: Path, source: Warehouse, postgres_url: str, tmp_path: Path, where: str
) -> None:
    with fresh_database(postgres_url) as url:
        there = line(tmp_path / "new", url)
        there.run("restore", backups, program=killed(f"pipeline.operations.backup.restoring:{where}"), code=None)
        there.run("restore", backups)
        as_restored(source, tmp_path / "new", url)
        assert not (tmp_path / "new" / "restore.unfinished").exists()


def test_folders_that_are_none_of_ours(source: Warehouse, tmp_path: Path) -> None:
    ours = terminal(source)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    assert "other things" in ours.run("backup", tmp_path / "other", code=2).err
    assert "is a file" in ours.run("backup", tmp_path / "other" / "thesis.txt", code=2).err
    assert "landing store" in ours.run("backup", ours.home / "landing" / "b", code=2).err


def test_another_servers_warehouse_with_other_names(other_postgres_url: str, postgres_url: str, tmp_path: Path) -> None:
    """From a customer's server by TCP and password, with schemas of other names, to the embedded one of another version,
    and back."""
    names = {"EPIC_OMOP_CDM_SCHEMA": "clinic", "EPIC_OMOP_VOCAB_SCHEMA": "words", "EPIC_OMOP_ETL_SCHEMA": "own_etl",
             "EPIC_OMOP_ROLE_SUFFIX": f"_{os.getpid()}"}  # fmt: skip
    folder = tmp_path / "backups"
    with fresh_database(other_postgres_url) as old, fresh_database(postgres_url) as new:
        there = line(tmp_path / "old", old, names)
        there.run("db", "init")
        sample = tmp_path / "sample"
        sample.mkdir()
        (sample / "Patient.ndjson").write_bytes(orjson.dumps(patient()))
        there.run("vocabulary", "load", Path(__file__).parents[2] / "mappings" / "demo_vocabulary")
        there.run("ingest", "--site", "one", "--from", sample)
        there.run("backup", folder)
        unnamed = line(tmp_path / "new", new).run("restore", folder, code=2)
        assert "EPIC_OMOP_CDM_SCHEMA=clinic" in unnamed.err
        line(tmp_path / "new", new, names).run("restore", folder)
        line(tmp_path / "new", new, names).run("verify")
        with fresh_database(other_postgres_url) as again:
            line(tmp_path / "again", again, names).run("restore", folder)
            line(tmp_path / "again", again, names).run("verify")
        for url in (old, new):
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT count(*) FROM clinic.person").fetchone() == (1,)


def test_the_documented_commands_run(source: Warehouse, postgres_url: str, tmp_path: Path) -> None:
    ours, home = terminal(source), tmp_path / "restored"
    here = tmp_path / "here"
    here.mkdir()
    made, restored = (commands_below("docs/backup.md", heading) for heading in ("Make a backup", "Restore"))
    for command in made:
        line(here, ours.url, {"EPIC_OMOP_HOME": str(ours.home)}).run(*command)
    with fresh_database(postgres_url) as url:
        for command in restored:
            line(here, url, {"EPIC_OMOP_HOME": "../restored"}).run(*command, code=None if command == ["status"] else 0)
        as_restored(source, home, url)


def test_data_of_another_major_version_is_recognised(
    server_home: Path, other_postgres_folder: Path | None, tmp_path: Path
) -> None:
    """Of a real older server: the message says how it is moved, and nothing is changed."""
    if other_postgres_folder is None:
        pytest.skip("there is no other PostgreSQL here")
    folder = open_server_folder(server_home.resolve())
    make_private_folder(folder.path / "data", folder.account)
    initdb = [str(other_postgres_folder / "initdb"), "-D", str(folder.data), "-U", "epic_omop", "-N"]
    account = folder.account if os.geteuid() == 0 else None
    user = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    subprocess.run(initdb, check=True, capture_output=True, cwd="/", **user)  # type: ignore[call-overload]
    major = (folder.data / "PG_VERSION").read_text().strip()
    if major == installed_binaries().major_version:
        pytest.skip("the other PostgreSQL is of the same version")
    refused = CommandLine(server_home, "").run("status", code=74)
    assert f"made by PostgreSQL {major}" in refused.err
    assert "epic-omop restore FOLDER" in refused.err
    assert (folder.data / "PG_VERSION").read_text().strip() == major


def test_a_backup_needs_rights_and_says_so(source: Warehouse, tmp_path: Path) -> None:
    role, url = f"nobody_{os.getpid()}", str(source.runtime.settings.database_url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role}")
        connection.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {connection.info.dbname} SET role = {role}")
    try:
        refused = terminal(source).run("backup", tmp_path / "backups", code=None)
        assert refused.code in {1, 74}
        assert "permission denied" in refused.err or "may not" in refused.err
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET ROLE NONE")
            connection.execute(f"ALTER ROLE CURRENT_USER IN DATABASE {connection.info.dbname} RESET role")
            connection.execute(f"DROP ROLE {role}")
