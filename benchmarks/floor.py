"""The floor: what no pipeline on the same machine can do without. Parsing all lines, and COPY of the same rows.

- parse: `orjson.loads` over all lines, in as many worker processes as the pipeline has; their start is not counted.
- COPY: the CDM and lineage rows that the pipeline made, in PostgreSQL's binary format and ready in files, into
  fresh logged tables through one connection; then the same primary keys, indices and foreign keys.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson
import psycopg
from sqlalchemy import Connection

from omop_schema import cdm as cdm_schema
from omop_schema import etl as etl_schema
from pipeline.core.settings import Settings
from pipeline.fhir.ndjson import Chunk
from pipeline.landing.chunks import plan_chunks, read_lines
from pipeline.warehouse.schema import transaction

__all__ = ["CopyFloor", "copy_floor", "parse_floor", "save_rows"]

_CDM, _VOCAB, _ETL = "floor_cdm", "floor_vocab", "floor_etl"
_BLOCK = 1 << 20


def parse_floor(files: Iterable[Path], workers: int) -> float:
    """Seconds to parse every line of the files by `workers` processes."""
    tasks = [(file, chunk) for file in files for chunk in plan_chunks(file)]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for ready in [pool.submit(time.sleep, 0.1) for _ in range(workers)]:  # all are started, each has imported us
            ready.result()
        list(pool.map(_parse, [tasks[0]] * workers))
        started = time.perf_counter()
        list(pool.map(_parse, tasks))
        return time.perf_counter() - started


def _parse(task: tuple[Path, Chunk]) -> int:
    """Lines of the chunk that are JSON. Each is dropped at once: a list of them would triple the time."""
    parsed = 0
    for raw in read_lines(*task).raws:
        try:
            orjson.loads(raw)
            parsed += 1
        except orjson.JSONDecodeError:
            continue
    return parsed


@dataclass(frozen=True)
class CopyFloor:
    rows: int
    bytes: int
    copy_seconds: float
    keys_and_indices_seconds: float

    @property
    def seconds(self) -> float:
        return self.copy_seconds + self.keys_and_indices_seconds


def save_rows(connection: psycopg.Connection, settings: Settings, folder: Path) -> dict[str, int]:
    """Write the rows of every CDM and lineage table that has any as `<schema>.<table>`; table → rows."""
    folder.mkdir(parents=True)
    rows: dict[str, int] = {}
    named = [(settings.cdm_schema, _CDM, table) for table in cdm_schema.CDM_TABLES]
    named += [(settings.etl_schema, _ETL, etl_schema.lineage_table_name(table)) for table in etl_schema.LINEAGE_TABLES]
    for source, target, table in named:
        file = folder / f"{target}.{table}"
        with connection.cursor() as cursor:
            with (
                file.open("wb") as out,
                cursor.copy(f"COPY {source}.{table} TO STDOUT (FORMAT binary)") as copy,
            ):
                for block in copy:
                    out.write(block)
            if cursor.rowcount:
                rows[f"{target}.{table}"] = cursor.rowcount
    return rows


def copy_floor(url: str, folder: Path, rows: dict[str, int]) -> CopyFloor:
    """Load what `save_rows` wrote into new tables, which are dropped again."""
    with transaction(url) as connection:
        _drop(connection)
        for schema in (_CDM, _VOCAB, _ETL):
            connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        cdm_schema.create_tables(connection, _CDM, _VOCAB)
        lineage = etl_schema.build_metadata(_ETL)
        tables = [lineage.tables[f"{_ETL}.{etl_schema.lineage_table_name(name)}"] for name in etl_schema.LINEAGE_TABLES]
        indices = [index for table in tables for index in table.indexes]
        for table in tables:
            table.indexes.clear()
        lineage.create_all(connection, tables)
    # Tables made in the transaction that fills them could do without the log: the pipeline's cannot.
    with transaction(url) as connection:
        started = time.perf_counter()
        size = sum(_copy(connection, folder / name, name) for name in rows)
        copied = time.perf_counter()
        cdm_schema.create_primary_keys(connection, _CDM, _VOCAB, tables=cdm_schema.CDM_TABLES)
        cdm_schema.create_indices(connection, _CDM, _VOCAB, tables=cdm_schema.CDM_TABLES)
        for index in indices:
            index.create(connection)
        cdm_schema.create_constraints(connection, _CDM, _VOCAB, tables=cdm_schema.CDM_TABLES)
    ended = time.perf_counter()
    with transaction(url) as connection:
        _drop(connection)
    return CopyFloor(sum(rows.values()), size, copied - started, ended - copied)


def _copy(connection: Connection, file: Path, table: str) -> int:
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    size = 0
    with (
        file.open("rb", buffering=0) as stream,
        driver.cursor() as cursor,
        cursor.copy(f"COPY {table} FROM STDIN (FORMAT binary)") as copy,
    ):
        while block := stream.read(_BLOCK):
            copy.write(block)
            size += len(block)
    return size


def _drop(connection: Connection) -> None:
    for schema in (_CDM, _VOCAB, _ETL):
        connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
