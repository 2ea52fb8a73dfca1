"""Who a person is: all Patients of all sites that are the same one, by replaced-by links and the person crosswalk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import psycopg

from pipeline.core.settings import Settings
from pipeline.fhir.identity import SurrogateKeys
from pipeline.publication.steps.crosswalk import crosswalk_lines

__all__ = ["known_patients", "same_people"]


def same_people(connection: psycopg.Connection, settings: Settings, patients: Mapping[int, str]) -> dict[int, str]:
    """Surrogate id of Patient → site: the given ones and all that are tied to them, by any number of links."""
    links: dict[int, set[int]] = defaultdict(set)
    sites = dict(patients)
    rows = connection.execute(
        "SELECT fact.surrogate_id, fact.value::bigint, kind.site FROM reference_value AS fact"
        " JOIN resource_state AS state ON state.surrogate_id = fact.owner_surrogate_id"
        " JOIN site_resource_type AS kind USING (site_resource_type_id) WHERE fact.name = 'replaced_by'"
    ).fetchall()
    pairs = [((patient, site), (other, site)) for patient, other, site in rows]
    for _, (site, patient, other_site, other) in crosswalk_lines(settings.person_crosswalk):
        pairs.append(((_key(settings, site, patient), site), (_key(settings, other_site, other), other_site)))
    for (first, first_site), (second, second_site) in pairs:
        links[first].add(second)
        links[second].add(first)
        sites |= {first: first_site, second: second_site}
    found = set(patients)
    waiting = list(patients)
    while waiting:
        new = links[waiting.pop()] - found
        found |= new
        waiting += new
    return {patient: sites[patient] for patient in found}


def _key(settings: Settings, site: str, patient: str) -> int:
    return SurrogateKeys(site, settings.surrogate_salt).of("Patient", patient)


def known_patients(connection: psycopg.Connection, patients: Iterable[int]) -> set[int]:
    """Those of whom the warehouse holds anything, be it a tombstone."""
    rows = connection.execute(
        "SELECT surrogate_id FROM resource_state WHERE surrogate_id = ANY(%(ids)s)"
        " UNION SELECT surrogate_id FROM id_map WHERE surrogate_id = ANY(%(ids)s)"
        " UNION SELECT surrogate_id FROM erased_person WHERE surrogate_id = ANY(%(ids)s)"
        " UNION SELECT caused_by_surrogate_id FROM dead_letter WHERE caused_by_surrogate_id = ANY(%(ids)s)",
        {"ids": sorted(patients)},
    ).fetchall()
    return {row[0] for row in rows}
