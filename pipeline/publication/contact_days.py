"""On which days rows of events count as contacts: SQL made of the schema's facts and of what the rules leave open.

What a day of contact is says `omop_schema.contact`; what periods are made of them, `derived`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

from pipeline.publication.sql import fragment
from pipeline.publication.tables import contact_names

__all__ = ["contact_days", "contacts_after"]

#: Rows that make no periods whatever their dates, of contact or their own.
_COUNTS = {
    "condition_occurrence": "event.condition_type_concept_id <> ALL(%(period_excluded_condition_types)s)",
    "observation": "event.observation_concept_id <> ALL(%(period_excluded_observations)s)",
}
#: What is done to a patient counts on its own day also where it was recorded some days later; what is reported of one does not.
_LATE_DAYS = dict.fromkeys(
    ("drug_exposure", "procedure_occurrence", "device_exposure", "measurement", "note", "specimen"), 60
)


def contact_days(go_live: Mapping[str, date], of_period_persons: str, **schemas: str) -> str:
    """A query (person_id, on_day) over all tables of events. `go_live`: table → from when on its rows count;
    `of_period_persons`: a join that limits persons; `schemas`: cdm and etl."""
    days = []
    for names in contact_names():
        table = names["table"]
        counts = [_COUNTS[table]] if table in _COUNTS else []
        if table in go_live:
            counts.append(f"event.{names['start']} >= DATE '{go_live[table].isoformat()}'")
        days.append(
            fragment(
                "contact_days",
                **schemas,
                **names,
                visits=fragment("contact_visits", **schemas, **names) if names["contact_of_visit"] else "",
                contact=f"coalesce({names['contact_of_visit']}origin.contact_date)",
                late=str(_LATE_DAYS.get(table, 0)),
                counts=" AND ".join(counts) or "true",
                of_period_persons=of_period_persons,
            )
        )
    return " UNION ALL ".join(days)


def contacts_after(**schemas: str) -> str:
    """A query (person_id) over all tables of events: whose rows are known by a contact after `%(previous)s`."""
    return " UNION ALL ".join(fragment("contacts_after", **schemas, **names) for names in contact_names())
