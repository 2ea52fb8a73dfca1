"""`epic-omop lakehouse`: what is in the Parquet files is what was in the database at one moment, whatever happens meanwhile.

One loaded world serves all tests; what a test adds to it stays. Files are read by polars and by DuckDB, which shares no
code with what wrote them.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import orjson
import polars as pl
import psycopg
import pytest

from omop_schema.cdm import CDM_TABLES, VOCABULARY_TABLES, tables_of
from omop_schema.versions import DEFAULT_CDM_VERSION
from pipeline.core.clock import ManualClock
from pipeline.core.errors import LakehouseError, TransientError, UsageError, WarehouseError
from pipeline.core.settings import MAPPINGS_FOLDER, Settings
from pipeline.lakehouse.check import check_snapshot, snapshot_to_check
from pipeline.lakehouse.snapshot import SnapshotOptions, SnapshotReport, publish_snapshot
from pipeline.lakehouse.store import lakehouse_folder
from pipeline.load.load import load as load_export
from pipeline.orchestration.definitions import build_definitions
from pipeline.sandbox.generator import generate
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.schema import install_schemas
from pipeline.warehouse.vocabulary import compile_index, load_vocabulary
from tests.command_line import CommandLine, killed, limited
from tests.integration.support import START, Warehouse, observation, patient

TABLES = tables_of(DEFAULT_CDM_VERSION)

EVERYTHING = SnapshotOptions(vocabulary=True, lineage=True)

#: PostgreSQL's types, and what DuckDB must find in the files.
TYPES = {
    "bigint": "BIGINT",
    "integer": "INTEGER",
    "numeric": "DOUBLE",
    "date": "DATE",
    "timestamp without time zone": "TIMESTAMP",
    "character varying": "VARCHAR",
    "text": "VARCHAR",
}


@pytest.fixture(scope="module")
def world(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Some synthetic patients, and rows such as no mapping makes: texts, numbers and dates at their limits."""
    url, folder = module_database_url, tmp_path_factory.mktemp("world")
    settings = Settings(home=folder / "home", database_url=url, workers=1)
    install_schemas(url, cdm="cdm", vocab="vocab", etl="etl")
    release = load_vocabulary(url, MAPPINGS_FOLDER / "demo_vocabulary", vocab_schema="vocab", etl_schema="etl")
    compile_index(url, release, vocab_schema="vocab", home=settings.home)
    warehouse = Warehouse(Runtime(settings, ManualClock(START)), folder)
    lines: dict[str, list[bytes]] = {}
    for resource_type, line in generate(6, 3, START.date(), 0):
        lines.setdefault(resource_type, []).append(line)
    warehouse.load(lines)
    with warehouse.runtime.connect() as connection:
        _add_limits(connection)
    return warehouse


TEXTS = ("", "\\N", '"quoted"', "two\nlines\r\n", " spaces ", "é 漢 🙂", "1", "a,b", "NULL", None)
NUMBERS = (
    "0.1",
    "-0.000000000000001",
    "12345678901234567.25",  # a double holds another number
    "0.333333333333333333333333333333",
    "1e400",  # no double at all
    "9007199254740993",
    "1.10",
    "1e21",
)


def _add_limits(connection: psycopg.Connection) -> None:
    for number, text in enumerate(TEXTS):
        connection.execute(
            "INSERT INTO cdm.cohort_definition (cohort_definition_id, cohort_definition_name,"
            " cohort_definition_description, definition_type_concept_id, subject_concept_id, cohort_initiation_date)"
            " VALUES (%s, 'name', %s, 0, 0, %s)",
            (number, text, "9999-12-31" if number else "0001-01-01"),
        )
    for number, value in enumerate(NUMBERS):
        connection.execute(
            "INSERT INTO cdm.cost (cost_id, cost_event_id, cost_domain_id, cost_type_concept_id, total_cost)"
            " VALUES (%s, 1, 'Drug', 0, %s::numeric)",
            (number, value),
        )


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    return tmp_path / "lake"


def publish(world: Warehouse, lake: Path, options: SnapshotOptions = EVERYTHING) -> SnapshotReport:
    return publish_snapshot(world.runtime, lakehouse_folder(str(lake)), options)


def database(world: Warehouse) -> dict[str, Counter[tuple[Any, ...]]]:
    """All rows of all tables, by path; numbers as doubles, NULL where a double cannot hold them."""
    relations = {f"cdm/{name}": f"cdm.{name}" for name in CDM_TABLES}
    of_version = [name for name in VOCABULARY_TABLES if name in TABLES]
    relations |= {f"vocab/{name}": f"vocab.{name}" for name in of_version}
    relations["etl/row_source"] = "etl.row_source"
    rows = {path: world.rows(f"SELECT * FROM {relation}") for path, relation in relations.items()}
    return {path: Counter(tuple(map(_as_double, row)) for row in content) for path, content in rows.items()}


def _as_double(value: Any) -> Any:
    if not isinstance(value, Decimal):
        return value
    number = float(value)
    return None if number in (float("inf"), float("-inf")) else number


def by_polars(snapshot: Path, paths: Iterator[str] | list[str]) -> dict[str, Counter[tuple[Any, ...]]]:
    content = {}
    for path in paths:
        files = sorted((snapshot / path).rglob("*.parquet"))
        content[path] = Counter(pl.read_parquet(files, hive_partitioning=False).rows())
    return content


def by_duckdb(lake: Path, paths: list[str]) -> dict[str, Counter[tuple[Any, ...]]]:
    with duckdb.connect() as connection:
        connection.execute((lake / "latest" / "open.sql").read_text())
        content = {}
        for path in paths:
            view = path.replace("/", ".")
            columns = [row[0] for row in connection.execute(f"DESCRIBE {view}").fetchall()]
            kept = ", ".join(f'"{name}"' for name in columns if name != "year")
            content[path] = Counter(connection.execute(f"SELECT {kept} FROM {view}").fetchall())
        return content


def described(lake: Path) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads((lake / "latest" / "snapshot.json").read_bytes())
    return content


@pytest.mark.parametrize(
    "options",
    [EVERYTHING, SnapshotOptions(vocabulary=True, lineage=True, batch_bytes=1_000, file_bytes=2_000)],
    ids=["at once", "in many batches and files"],
)
def test_every_table_is_what_the_database_holds(world: Warehouse, lake: Path, options: SnapshotOptions) -> None:
    expected = database(world)
    report = publish(world, lake, options)
    _, files, _ = report.tables["vocab/concept"]
    assert (files > 3) is (options is not EVERYTHING)
    assert len(expected) == len(TABLES) + 1
    assert sum(1 for rows in expected.values() if rows) > 25
    assert by_polars(lake / "latest", list(expected)) == expected
    assert by_duckdb(lake, list(expected)) == expected
    assert {path: rows for path, (rows, _, _) in report.tables.items() if path in expected} == {
        path: rows.total() for path, rows in expected.items()
    }
    assert list(check_snapshot(snapshot_to_check(str(lake)))) == []


def test_types_are_the_databases(world: Warehouse, lake: Path) -> None:
    publish(world, lake)
    wanted: dict[str, dict[str, str]] = {}
    for schema, table, column, kind in world.rows(
        "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema IN ('cdm', 'vocab') ORDER BY ordinal_position"
    ):
        wanted.setdefault(f"{schema}.{table}", {})[column] = TYPES[kind]
    with duckdb.connect() as connection:
        connection.execute((lake / "latest" / "open.sql").read_text())
        for view, columns in wanted.items():
            found = {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE {view}").fetchall()}
            assert found.pop("year", "INTEGER") == "INTEGER"
            assert found == columns
        # What Spark reads: no unsigned numbers, microseconds without a zone, plain texts; no dictionary in any type.
        schemas = connection.execute(
            "SELECT DISTINCT type, converted_type, logical_type FROM parquet_schema(?) WHERE type IS NOT NULL",
            [f"{lake}/latest/**/*.parquet"],
        ).fetchall()
    kinds = {(kind, converted) for kind, converted, _ in schemas if kind}
    assert kinds == {
        ("INT64", None),
        ("INT32", None),
        ("DOUBLE", None),
        ("INT32", "DATE"),
        ("BYTE_ARRAY", "UTF8"),
    }
    stamps = {logical for _, _, logical in schemas if logical and "Timestamp" in logical}
    assert len(stamps) == 1
    assert "isAdjustedToUTC=0" in (stamp := stamps.pop())
    assert "MICROS=MicroSeconds()" in stamp


def test_numbers_that_no_double_holds_are_kept_as_text(world: Warehouse, lake: Path) -> None:
    publish(world, lake)
    exact = pl.read_parquet(lake / "latest" / "meta" / "exact_number" / "*.parquet")
    assert {(row[1], Decimal(row[3])) for row in exact.rows()} == {
        (number, Decimal(NUMBERS[number])) for number in (2, 3, 4, 5)
    }
    assert exact.select("table_name", "column_name").unique().rows() == [("cost", "total_cost")]


def test_partitions_and_order(world: Warehouse, lake: Path) -> None:
    publish(world, lake, SnapshotOptions(batch_bytes=1_000, file_bytes=2_000))
    folder = lake / "latest" / "cdm" / "measurement"
    years = {
        f"year={row[0]}"
        for row in world.rows("SELECT DISTINCT extract(year FROM measurement_date)::int FROM cdm.measurement")
    }
    assert len(years) > 2
    assert {path.name for path in folder.iterdir()} == years
    assert any(len(list(year.iterdir())) > 1 for year in folder.iterdir())
    for year in folder.iterdir():
        frame = pl.read_parquet(sorted(year.iterdir()), hive_partitioning=False)
        assert frame["measurement_date"].dt.year().unique().to_list() == [int(year.name.removeprefix("year="))]
        assert frame.equals(frame.sort("person_id", "measurement_id"))
    # An empty table keeps its columns, and its partition column's type.
    assert [path.name for path in (lake / "latest" / "cdm" / "note").iterdir()] == ["year=0"]


def test_what_a_snapshot_says_of_itself(world: Warehouse, lake: Path) -> None:
    publish(world, lake, SnapshotOptions())
    said = described(lake)
    [(export, transaction_time, published_at)] = world.rows(
        "SELECT export_id, transaction_time, published_at FROM export_job WHERE kind = 'folder' AND state = 'published'"
        " ORDER BY export_id DESC LIMIT 1"
    )
    [site] = said["sites"]
    assert (site["site"], site["export_id"]) == ("one", export)
    assert site["transaction_time"] == transaction_time.isoformat().replace("+00:00", "Z")
    assert site["published_at"] == published_at.isoformat().replace("+00:00", "Z")
    assert said["vocabulary"]["release"] == world.value("SELECT release FROM vocabulary_release WHERE is_current")
    assert said["last_publication"]["fingerprint"] == site["fingerprint"]
    assert said["cdm_version"] == "v5.4"
    assert said["created_at"] == world.runtime.clock.now().isoformat().replace("+00:00", "Z")
    # Without being asked for: no vocabulary, no ids of resources.
    assert sorted(path.name for path in (lake / "latest").iterdir()) == ["cdm", "meta", "open.sql", "snapshot.json"]
    names = "\n".join(str(path) for path in lake.rglob("*")) + (lake / "latest" / "snapshot.json").read_text()
    ids = {row[0] for row in world.rows("SELECT resource_id FROM row_source WHERE resource_type = 'Patient'")}
    assert len(ids) > 5
    assert [one for one in ids if one in names] == []


def test_a_publication_in_between_is_not_seen(world: Warehouse, lake: Path) -> None:
    before, committed = database(world), []
    export = world.land({"Patient": [patient("late")], "Observation": [observation("late-o", "late")]}, "two")

    def between(table: str, done: int, total: int) -> None:
        if table == "cdm/measurement" and not committed:
            site = world.runtime.settings.site_or_folder("two")
            committed.extend(load_export(world.runtime, site, export).reports)
            # What replaces whole tables waits: TRUNCATE is seen by every transaction at once.
            with world.runtime.connect() as other, pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("LOCK TABLE vocab.concept, vocab.concept_ancestor IN ACCESS EXCLUSIVE MODE NOWAIT")

    publish_snapshot(world.runtime, lakehouse_folder(str(lake)), EVERYTHING, between)
    assert committed[0].rows_inserted["measurement"] == 1
    assert by_polars(lake / "latest", list(before)) == before
    assert [site["site"] for site in described(lake)["sites"]] == ["one"]
    after = database(world)
    assert after["cdm/measurement"].total() == before["cdm/measurement"].total() + 1
    publish(world, lake)
    assert by_polars(lake / "latest", list(after)) == after
    assert [site["site"] for site in described(lake)["sites"]] == ["one", "two"]


def test_old_snapshots_stay_as_long_as_asked(world: Warehouse, lake: Path) -> None:
    first = publish(world, lake)
    with duckdb.connect() as reader:
        reader.execute((lake / "latest" / "open.sql").read_text())
        second = publish(world, lake)
        assert second.removed_snapshots == 0
        assert reader.execute("SELECT count(*) FROM cdm.person").fetchone() == (first.tables["cdm/person"][0],)
    third = publish(world, lake)
    assert third.removed_snapshots == 1
    assert sorted(path.name for path in (lake / "snapshots").iterdir()) == [second.snapshot, third.snapshot]
    assert publish(world, lake, SnapshotOptions(keep=0)).removed_snapshots == 2
    assert len(list((lake / "snapshots").iterdir())) == 1


def test_what_has_not_changed_takes_no_space(world: Warehouse, lake: Path) -> None:
    name = "cdm/person/part-00000.parquet"
    first = publish(world, lake).folder
    second = publish(world, lake).folder
    assert (first / name).stat().st_ino == (second / name).stat().st_ino
    good = (second / name).read_bytes()
    (second / name).write_bytes(b"damaged")
    third = publish(world, lake).folder
    assert (third / name).read_bytes() == good


def test_readers_are_the_owner_or_the_group(world: Warehouse, lake: Path) -> None:
    old = os.umask(0)
    try:
        publish(world, lake, SnapshotOptions())
        assert _modes(lake) == {0o700, 0o600}
        publish(world, lake, SnapshotOptions(keep=0, group_readable=True))
    finally:
        os.umask(old)
    assert _modes(lake / "snapshots") == {0o750, 0o640}
    assert lake.stat().st_mode & 0o777 == 0o750


def _modes(folder: Path) -> set[int]:
    paths = (path for path in (folder, *folder.rglob("*")) if not path.is_symlink())
    return {path.stat().st_mode & 0o777 for path in paths}


def test_a_moved_folder_is_read_after_saying_so(world: Warehouse, lake: Path, tmp_path: Path) -> None:
    publish(world, lake, SnapshotOptions())
    moved = lake.rename(tmp_path / "it's elsewhere")
    with duckdb.connect() as connection:
        connection.execute("SET VARIABLE lakehouse = ?", [str(moved)])
        connection.execute((moved / "latest" / "open.sql").read_text())
        assert connection.execute("SELECT count(*) FROM cdm.person").fetchone() == (
            world.value("SELECT count(*) FROM cdm.person"),
        )
        assert connection.execute("SELECT snapshot FROM meta.snapshot").fetchone() == (described(moved)["snapshot"],)


def test_damage_is_found(world: Warehouse, lake: Path) -> None:
    publish(world, lake, SnapshotOptions())
    snapshot = snapshot_to_check(str(lake))
    person = snapshot / "cdm" / "person" / "part-00000.parquet"
    content = bytearray(person.read_bytes())
    content[100] ^= 1
    person.write_bytes(content)
    (snapshot / "cdm" / "death" / "part-00000.parquet").unlink()
    (snapshot / "cdm" / "cost" / "part-00000.parquet").write_bytes(b"PAR1")
    (snapshot / "cdm" / "person" / "part-00001.parquet").write_bytes(bytes(content))
    problems = dict(problem.split(": ") for problem in check_snapshot(snapshot))
    assert {path: words.split(" ")[:2] for path, words in problems.items()} == {
        "cdm/person/part-00000.parquet": ["has", "other"],
        "cdm/death/part-00000.parquet": ["is", "missing"],
        "cdm/cost/part-00000.parquet": ["has", "4"],
        "cdm/person/part-00001.parquet": ["does", "not"],
    }
    (snapshot / "snapshot.json").write_text("{")
    with pytest.raises(LakehouseError, match="missing or damaged"):
        list(check_snapshot(snapshot))


@pytest.fixture
def terminal(world: Warehouse) -> CommandLine:
    settings = world.runtime.settings
    assert settings.database_url
    return CommandLine(settings.home, settings.database_url)


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("pipeline.lakehouse.parquet:make_folder", 20),
        ("pathlib:Path.symlink_to", 1),  # the snapshot has its name, and nothing points to it
        ("shutil:rmtree", 1),  # the pointer is set; the oldest snapshot is about to go
    ],
)
def test_killed_and_run_again(world: Warehouse, lake: Path, terminal: CommandLine, where: str, number: int) -> None:
    publish(world, lake, SnapshotOptions())
    before = (lake / "latest").readlink()
    ended = terminal.run(
        "lakehouse",
        "snapshot",
        "--to",
        lake,
        "--keep",
        "0",
        program=killed(where, "before", number),
        code=-signal.SIGKILL,
    )
    assert ended.out == ""
    assert ((lake / "latest").readlink() == before) is (where != "shutil:rmtree")
    assert list(check_snapshot(snapshot_to_check(str(lake)))) == []
    expected = database(world)
    publish(world, lake, SnapshotOptions(keep=0))
    paths = [path for path in expected if path.startswith("cdm/")]
    assert by_polars(lake / "latest", paths) == {path: expected[path] for path in paths}
    assert [path.resolve() for path in (lake / "snapshots").iterdir()] == [(lake / "latest").resolve()]


def test_the_command_and_its_errors(world: Warehouse, lake: Path, terminal: CommandLine, tmp_path: Path) -> None:
    done = terminal.run("lakehouse", "snapshot", "--to", lake)
    assert "cdm/measurement" in done.out
    assert str(lake / "latest" / "open.sql") in done.out
    assert "as it was written" in terminal.run("lakehouse", "check", lake).out
    former = terminal.run("publish", "--check", lake)
    assert "as it was written" in former.out
    assert "is now `epic-omop lakehouse check PATH`" in former.err
    assert "is now" not in former.out
    assert not any(line.strip(" │").startswith("publish ") for line in terminal.run("--help").out.splitlines())
    full = terminal.run("lakehouse", "snapshot", "--to", lake, program=limited(20_000), code=74)
    assert "stays as it is" in full.err
    (lake / "latest" / "cdm" / "person" / "part-00000.parquet").write_bytes(b"")
    damaged = terminal.run("lakehouse", "check", lake, code=74)
    assert "cdm/person/part-00000.parquet: has 0 bytes" in damaged.out


def test_dagster_publishes_where_a_folder_is_set(world: Warehouse, lake: Path) -> None:
    settings = world.runtime.settings.model_copy(update={"lakehouse": str(lake)})
    definitions = build_definitions(settings, {"runtime": world.runtime})
    with dg.DagsterInstance.ephemeral() as instance:
        result = definitions.resolve_job_def("lakehouse__publish").execute_in_process(instance=instance)
    assert {check.passed for check in result.get_asset_check_evaluations()} <= {True}
    [event] = result.get_asset_materialization_events()
    assert event.asset_key == dg.AssetKey(["lakehouse"])
    metadata = event.materialization.metadata
    assert metadata["snapshot"].value == (lake / "latest").readlink().name
    assert metadata["dagster/row_count"].value == sum(table["rows"] for table in described(lake)["tables"].values())
    schedule = definitions.resolve_schedule_def("lakehouse__daily")
    assert (schedule.cron_schedule, schedule.job_name) == ("0 6 * * *", "lakehouse__publish")
    assert "lakehouse__publish" not in {
        job.name for job in build_definitions(world.runtime.settings).resolve_all_job_defs()
    }


def test_folders_that_cannot_be_one(world: Warehouse, lake: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    for path in ("s3://bucket/lake", str(tmp_path / "file"), str(tmp_path / "a=b"), str(tmp_path / "full")):
        with pytest.raises(UsageError):
            publish_snapshot(world.runtime, lakehouse_folder(path))
    with pytest.raises(LakehouseError):
        publish_snapshot(world.runtime, lakehouse_folder(str(tmp_path / "file" / "below")))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("file", "full")) == []
    with pytest.raises(LakehouseError, match="no snapshot"):
        snapshot_to_check(str(lake))
    with lakehouse_folder(str(lake)).writing(), pytest.raises(TransientError, match="Another run"):
        publish(world, lake)


def test_databases_that_hold_nothing(database_url: str, lake: Path, tmp_path: Path) -> None:
    runtime = Runtime(Settings(home=tmp_path / "home", database_url=database_url), ManualClock(START))
    with pytest.raises(WarehouseError, match="no warehouse"):
        publish_snapshot(runtime, lakehouse_folder(str(lake)))
    install_schemas(database_url, cdm="cdm", vocab="vocab", etl="etl")
    with pytest.raises(WarehouseError, match="Nothing has been published"):
        publish_snapshot(runtime, lakehouse_folder(str(lake)))
    assert not (lake / "latest").exists()


def test_dates_that_are_missing_or_impossible(world: Warehouse, lake: Path) -> None:
    """The last test: it changes the table."""
    with world.runtime.connect() as connection:
        connection.execute("ALTER TABLE cdm.measurement ALTER measurement_date DROP NOT NULL")
        connection.execute("UPDATE cdm.measurement SET measurement_date = NULL WHERE measurement_id % 7 = 0")
    expected = database(world)["cdm/measurement"]
    publish(world, lake, SnapshotOptions())
    assert (lake / "latest" / "cdm" / "measurement" / "year=__HIVE_DEFAULT_PARTITION__").is_dir()
    assert by_duckdb(lake, ["cdm/measurement"])["cdm/measurement"] == expected
    before = (lake / "latest").readlink()
    with world.runtime.connect() as connection:
        connection.execute("UPDATE cdm.visit_occurrence SET visit_end_date = 'infinity'")
    with pytest.raises(LakehouseError, match=r"visit_occurrence\.visit_end_date holds a value") as raised:
        publish(world, lake, SnapshotOptions())
    assert "infinity" not in str(raised.value)
    assert (lake / "latest").readlink() == before
