"""What the lines of golden cases are looked up by is found in them again: else another release would not reach them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.fhir.ndjson import Chunk, lines_of
from pipeline.load.code_search import CodeSearch
from pipeline.staging import schemas
from pipeline.transform.concepts.answers import codings_of
from pipeline.transform.mapping.mappings import load_mappings
from tests.golden.test_golden import CASES, as_json
from tests.transforming import transform


def resources_of_cases() -> dict[str, list[bytes]]:
    """The lines of all golden cases by type; of a Bundle its entries."""
    mapped = set(load_mappings(MAPPINGS_FOLDER).resources)
    found: dict[str, list[bytes]] = {}
    for case in CASES:
        waiting: list[Any] = [*case.resources("fhir"), *case.resources("then")]
        while waiting:
            one = waiting.pop(0)
            if isinstance(one, dict) and one.get("resourceType") == "Bundle":
                waiting += [entry.get("resource") for entry in one.get("entry") or () if isinstance(entry, dict)]
            elif isinstance(one, dict) and one.get("resourceType") in mapped:
                found.setdefault(one["resourceType"], []).append(as_json(one))
    return found


def test_whatever_a_line_is_looked_up_by_is_found_in_it(tmp_path: Path) -> None:
    """Each code set that the transform of any golden case notes, in a line or a fact: a rule that makes codes in another way
    would keep its lines from being mapped again."""
    by_type = resources_of_cases()
    transform(tmp_path, [], lines=by_type)
    mappings = load_mappings(MAPPINGS_FOLDER)
    noted = pl.read_parquet(tmp_path / "staged" / schemas.CODE_SET / "*.parquet")["asked"].unique().to_list()
    facts = pl.read_parquet(tmp_path / "staged" / schemas.REFERENCE_VALUE / "*.parquet")["value"].unique()
    facts = facts.filter(facts.str.contains(r"^[\[{]"))
    content = b"\n".join(raw for raws in by_type.values() for raw in raws)
    lines = lines_of(content, Chunk(0, len(content), 1))
    missing = []
    for one in noted:
        # Codes in no vocabulary's system are looked up in value maps alone.
        if not any(system is None or system in mappings.code_systems for system, _, _ in codings_of(one)):
            continue
        search = CodeSearch([one], mappings.systems.canonical, by_link=True)
        raws = lines.raws_at(search.candidates(lines))
        if not any(map(search.matches, raws)) and not any(map(search.touches, facts)):
            missing.append(orjson.loads(one))
    assert len(noted) > 300
    assert missing == []
