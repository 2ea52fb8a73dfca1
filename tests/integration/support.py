"""What integration and fault tests share: a warehouse to load folders into and to ask."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg

from pipeline.core.clock import ManualClock
from pipeline.extract.bulk import ingest_folder
from pipeline.landing.store import LandedExport
from pipeline.load.load import LoadOptions
from pipeline.load.load import load as load_export
from pipeline.publication.publish import PublicationReport
from pipeline.quality.verify import verify_warehouse
from pipeline.staging.known_lines import KnownLines, Pairs
from pipeline.warehouse.runtime import Runtime

START = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)

Lines = Sequence[Mapping[str, Any] | bytes]


def write_folder(folder: Path, files: Mapping[str, Lines]) -> None:
    """Make a folder of NDJSON: type → resources, or lines as bytes."""
    folder.mkdir()
    for resource_type, lines in files.items():
        content = b"".join(
            (line if isinstance(line, bytes) else json.dumps({"resourceType": resource_type, **line}).encode()) + b"\n"
            for line in lines
        )
        (folder / f"{resource_type}.ndjson").write_bytes(content)


@dataclass
class Warehouse:
    """A runtime and its database; every load is one export, a day after the last."""

    runtime: Runtime
    folder: Path
    loads: int = field(default=0)

    def write(self, files: Mapping[str, Lines]) -> Path:
        """A folder of NDJSON: type → resources, or lines as bytes."""
        self.loads += 1
        folder = self.folder / f"source-{self.loads}"
        write_folder(folder, files)
        return folder

    def land(
        self,
        files: Mapping[str, Lines] | Path,
        site: str = "one",
        *,
        group: str | None = None,
        complete: bool = False,
    ) -> LandedExport:
        assert isinstance(self.runtime.clock, ManualClock)
        self.runtime.clock.advance(86_400)
        folder = files if isinstance(files, Path) else self.write(files)
        return ingest_folder(self.runtime, site, folder, group=group, complete=complete)

    def load(self, files: Mapping[str, Lines] | Path, site: str = "one") -> list[PublicationReport]:
        return self.ingest(self.land(files, site), site)

    def ingest(
        self, export: LandedExport, site: str = "one", *, force: bool = False, confirmed: bool = False
    ) -> list[PublicationReport]:
        options = LoadOptions(force=force, confirmed=confirmed)
        result = load_export(self.runtime, self.runtime.settings.site_or_folder(site), export, options)
        self.assert_whole()
        return result.reports

    def assert_whole(self) -> None:
        """What must hold after every run."""
        with self.runtime.connect() as connection:
            assert [check for check in verify_warehouse(connection, "cdm") if not check.ok] == []
            for folder in (self.runtime.settings.home / "known").glob("*"):
                assert_known(connection, folder)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.runtime.connect() as connection:
            return connection.execute(query, parameters or None).fetchall()

    def value(self, query: str, *parameters: Any) -> Any:
        return self.rows(query, *parameters)[0][0]

    def checksums(self) -> dict[str, tuple[int, str]]:
        """CDM table → rows and MD5 over all their values."""
        tables = [row[0] for row in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'cdm' ORDER BY 1")]
        return {
            table: self.rows(
                f"SELECT count(*), md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM cdm.{table} AS t"
            )[0]
            for table in tables
        }

    def content(self) -> Counter[tuple[Any, ...]]:
        """Rows by source: (table, site, type, id), so that databases can be compared whatever their ids."""
        return Counter(
            self.rows("SELECT cdm_table, site, resource_type, resource_id FROM row_source")  # type: ignore[arg-type]
        )


def patient(resource_id: str = "p1", **more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": resource_id, "birthDate": "1970-05-06", "gender": "female", **more}


def reference(resource_type: str, resource_id: str) -> dict[str, str]:
    return {"reference": f"{resource_type}/{resource_id}"}


def encounter(resource_id: str = "e1", person: str = "p1", **more: Any) -> dict[str, Any]:
    return {
        "id": resource_id,
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": reference("Patient", person),
        "period": {"start": "2025-01-02T15:00:00Z", "end": "2025-01-02T16:00:00Z"},
        **more,
    }


def observation(resource_id: str = "o1", person: str = "p1", **more: Any) -> dict[str, Any]:
    return {
        "id": resource_id,
        "status": "final",
        "category": [{"coding": [{"code": "laboratory"}]}],
        "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        "subject": reference("Patient", person),
        "effectiveDateTime": "2025-01-02T15:30:00Z",
        "valueQuantity": {"value": 1.1, "unit": "mg/dL", "system": "http://unitsofmeasure.org", "code": "mg/dL"},
        **more,
    }


def assert_known(connection: psycopg.Connection, folder: Path) -> bool:
    """The files of known lines say what the states say, or do not count (then False)."""
    said = json.loads((folder / "mark.json").read_bytes()) if (folder / "mark.json").exists() else {"mark": None}
    mark = connection.execute("SELECT mark FROM known_mark WHERE site = %s", (folder.name,)).fetchone()
    if mark is None or mark[0] != said["mark"]:
        return False
    rows = connection.execute(
        "SELECT raw_hash_high, raw_hash_low, surrogate_id, content_hash, fingerprint, resource_type FROM resource_state"
        " JOIN site_resource_type USING (site_resource_type_id) WHERE site = %s AND (raw_hash_high, raw_hash_low) <> (0, 0)",
        (folder.name,),
    ).fetchall()
    marks = said["fingerprints"]
    rows = [row for row in rows if row[4] == marks.get(row[5], marks[""])]
    files = KnownLines(folder)
    assert rows_of(files.lines) == sorted(row[:3] for row in rows)
    contents = sorted((row[2], row[3]) for row in rows if row[3] is not None)
    assert rows_of(files.contents) == contents
    return True


def rows_of(pairs: Pairs) -> list[tuple[int, ...]]:
    """The rows of a file of `pipeline.staging.known_lines`."""
    return sorted(map(tuple, np.column_stack([pairs.first, pairs.others]).tolist()))
