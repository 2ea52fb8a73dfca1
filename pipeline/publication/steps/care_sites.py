"""fact_relationship: which care site is a part of which, by `partOf` of Organization and Location.

The rows follow from the facts `site_part_of` and are compared as a whole: care sites are few.
"""

from __future__ import annotations

import polars as pl

from pipeline.publication.sql import Database
from pipeline.publication.steps.stand_ins import StandIns
from pipeline.publication.values import RowCounts

__all__ = ["relate_care_sites"]

#: Concepts: domain Care site; is part of; contains. One that the vocabulary lacks is 0.
_DOMAIN, _PART_OF, _CONTAINS = 57, 46233688, 46233689


def relate_care_sites(db: Database, stand_ins: StandIns) -> RowCounts:
    """Bring the rows between care sites in line with the facts, in both directions; equal rows are not touched."""
    concepts = (_DOMAIN, _PART_OF, _CONTAINS)
    known = {concept for (concept,) in db.rows("known_concepts", {"concepts": list(concepts)})}
    domain, part_of, contains = (concept if concept in known else 0 for concept in concepts)
    named = db.frame("named_care_sites", {"value": pl.Int64})
    db.put("site_stand_in", stand_ins.resolved(named["value"]))
    db.execute("site_relations", part_of=str(part_of), contains=str(contains))
    counts = RowCounts()
    counts.deleted["fact_relationship"] = db.execute("remove_site_relations", domain=str(domain))
    counts.inserted["fact_relationship"] = db.execute("insert_site_relations", domain=str(domain))
    return counts
