"""`check_mappings`: the whole of a folder of mappings, with a site's own over them."""

from __future__ import annotations

from pathlib import Path

from pipeline.transform.mapping.mappings import read_mappings
from pipeline.transform.mapping.sources import MappingProblem
from pipeline.transform.mapping_check.concepts import KnownConcepts, concept_problems
from pipeline.transform.mapping_check.rehearsal import rehearsal, rehearse
from pipeline.transform.mapping_check.resources import ResourceCheck

__all__ = ["check_mappings"]


def check_mappings(
    folder: Path,
    site: str | None = None,
    site_mappings: Path | None = None,
    concepts: KnownConcepts | None = None,
) -> list[MappingProblem]:
    """Every problem of the mappings in `folder`, with a site's own over them, in the order of files and lines.

    Rules of every option are looked at, not only those that hold under a site's. Without `concepts` no concept id is
    judged.
    """
    reading = read_mappings(folder, site, None, site_mappings)
    problems = set(reading.problems)
    with rehearsal(reading, folder) as worker:
        for name, mapping in reading.resources.items():
            found = list(ResourceCheck(mapping, reading.sources.resources[name], worker, reading).problems())
            problems.update(found)
            if not found and reading.mappings is not None:
                problems.update(rehearse(mapping, reading.sources.resources[name], worker))
    for row in reading.sources.tables["unmapped_types.csv"].values():
        if row.values["resource_type"] in reading.resources:
            problems.add(row.problem(f"{row.values['resource_type']} has a mapping as well"))
    if concepts is not None:
        problems.update(concept_problems(reading, concepts))
    return sorted(problems)
