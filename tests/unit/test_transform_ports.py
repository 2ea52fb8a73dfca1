"""The transform stage alone, as another executor would run it: lines in memory in, rows out, and no file is opened."""

from __future__ import annotations

import base64
import multiprocessing
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import polars as pl

import pipeline
from pipeline.fhir.identity import SurrogateKeys
from pipeline.staging import schemas
from pipeline.staging.facts import Facts
from pipeline.staging.known_lines import KnownLines
from pipeline.staging.parts import StagedExport
from pipeline.transform.content import Contents
from pipeline.transform.lines import LineBatch, LinesTransform
from pipeline.transform.plan import Worker
from pipeline.transform.ports import NO_PORTS, Ports
from tests.transforming import index_of, plan_of

PLACE = "1/files/Binary.00002.ndjson|0|10"
LINES: dict[str, list[dict[str, Any]]] = {
    "Binary": [{"id": "b1", "contentType": "text/plain", "data": ""}],
    "Patient": [{"id": "p1", "birthDate": "1960-02-03", "gender": "female"}],
    "DocumentReference": [
        {
            "id": "n1",
            "status": "current",
            "type": {"coding": [{"system": "http://loinc.org", "code": "28570-0"}], "text": "Procedure note"},
            "subject": {"reference": "Patient/p1"},
            "date": "2024-03-10T09:30:00Z",
            "content": [{"attachment": {"contentType": "text/plain", "url": "https://fhir.example.org/R4/Binary/b1"}}],
        }
    ],
    "Observation": [
        {
            "id": "o1",
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "718-7"}]},
            "subject": {"reference": "Patient/p1"},
            "effectiveDateTime": "2024-03-10T09:30:00Z",
            "valueQuantity": {"value": 12.5, "unit": "g/dL"},
        }
    ],
}


@dataclass
class InMemory:
    """All ports but known contents: one Binary, the fact where it lies, and what is written."""

    keys: SurrogateKeys
    parts: dict[str, pl.DataFrame] = field(default_factory=dict)

    def of(self, name: str, resources: pl.Series) -> pl.DataFrame:
        binary = self.keys.of("Binary", "b1")
        known = [(binary, PLACE)] if name == "binary" and binary in resources else []
        return pl.DataFrame(known, schema={"surrogate_id": pl.Int64, "value": pl.String}, orient="row")

    def read(self, places: Iterable[str]) -> list[tuple[str, bytes]]:
        text = base64.b64encode(b"all went well").decode()
        line = orjson.dumps({"resourceType": "Binary", "id": "b1", "contentType": "text/plain", "data": text})
        return [(place, line) for place in places if place == PLACE]

    def write(self, kind: str, part: str, frame: pl.DataFrame) -> None:
        if not frame.is_empty():
            self.parts[kind] = pl.concat([self.parts[kind], frame]) if kind in self.parts else frame


def positions(raws: list[bytes]) -> pl.DataFrame:
    count = len(raws)
    return pl.DataFrame(
        {
            "index": pl.int_range(count, dtype=pl.Int32, eager=True),
            "file_number": pl.repeat(2, count, dtype=pl.Int32, eager=True),
            "line": pl.int_range(1, count + 1, dtype=pl.Int64, eager=True),
            "byte_offset": pl.repeat(0, count, dtype=pl.Int64, eager=True),
            "byte_length": pl.Series(list(map(len, raws)), dtype=pl.Int64),
            "raw_hash_high": pl.repeat(0, count, dtype=pl.Int64, eager=True),
            "raw_hash_low": pl.repeat(0, count, dtype=pl.Int64, eager=True),
        }
    )


def transform_in_memory(folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """(kind of part → rows, files that were opened and mapped meanwhile: but for modules, and facts of the project)."""
    index = index_of(folder, [("LOINC", "718-7", 3000963, "Measurement")])
    plan = plan_of(index, folder / "facts", StagedExport(folder / "staged"), folder, mapping={"notes": "on"})
    ports = InMemory(SurrogateKeys(plan.transform.site.name, plan.transform.surrogate_salt))
    worker = Worker(plan.transform, Ports(NO_PORTS.known, ports, ports, ports))
    opened: list[str] = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "mmap.__new__", "socket.connect"):
            opened.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    for kind, resources in LINES.items():
        raws = [orjson.dumps({"resourceType": kind, **resource}) for resource in resources]
        names = {2: f"1/files/{kind}.00002.ndjson"}
        batch = LineBatch(kind, "part", raws, positions(raws), list(range(len(raws))), names)
        LinesTransform(worker, batch, Contents(worker)).run()
    # What belongs to the program: its modules and tables, and Python's data of time zones.
    own = f"open {Path(pipeline.__file__).parent}"
    others = [each for each in opened if not each.endswith((".py", ".pyc", ".so")) and "/zoneinfo/" not in each]
    found = [each for each in others if not each.startswith(own)]
    return {kind: frame.to_dicts() for kind, frame in ports.parts.items()}, found


def test_lines_in_memory_become_rows_and_no_file_is_opened(tmp_path: Path) -> None:
    """In a process of its own: an audit hook stays for ever."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows, opened = pool.submit(transform_in_memory, tmp_path).result()
    assert opened == []
    assert {row["outcome"] for row in rows[schemas.OUTCOME]} == {"loaded"}
    assert [row["note_text"] for row in rows["note"]] == ["all went well"], "the text came through the port"
    (place,) = [row["value"] for row in rows[schemas.REFERENCE_VALUE] if row["name"] == "binary"]
    assert place.startswith("1/files/Binary.00002.ndjson|0|"), "as the positions and the file's name say"
    assert {"person", "measurement", "note"} <= rows.keys()
    assert not (tmp_path / "staged").exists()


def test_no_ports_know_nothing_and_keep_nothing() -> None:
    ids = pl.Series([1, 2])
    assert not NO_PORTS.known.has_contents
    assert NO_PORTS.known.are_known(ids, ids).to_list() == [False, False]
    assert NO_PORTS.facts.of("binary", ids).is_empty()
    assert list(NO_PORTS.binaries.read([PLACE])) == []
    NO_PORTS.parts.write(schemas.OUTCOME, "part", pl.DataFrame({"line": [1]}))


def test_staging_fills_the_ports(tmp_path: Path) -> None:
    """What mypy says as well: the stores have the methods that the Protocols name, and answer without any file."""
    nothing = KnownLines(None)
    ports = Ports(nothing, Facts(tmp_path), NO_PORTS.binaries, StagedExport(tmp_path / "staged"))
    assert ports.known.are_known(pl.Series([1]), pl.Series([1])).to_list() == [False]
    assert ports.facts.of("binary", pl.Series([1], dtype=pl.Int64)).is_empty()
