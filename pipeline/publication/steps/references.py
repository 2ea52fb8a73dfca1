"""What resources wait for and use, facts that others use, and who is to be mapped again because a fact changed."""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import primary_key
from omop_schema.etl import lineage_table_name
from pipeline.publication.context import LANDED_LINE, LandedLine, Publication
from pipeline.publication.link_roles import NO_FACTS
from pipeline.publication.steps import stand_ins
from pipeline.publication.steps.returning import mapped_again
from pipeline.staging import schemas
from pipeline.warehouse.copying import encoded, temporary_table

__all__ = ["EVENT_COLUMNS", "facts", "find_dependents", "link_events", "references"]


#: CDM table → its columns for the row that a row belongs to: the row's id, and the concept of the field that holds it.
EVENT_COLUMNS = {
    "observation": ("observation_event_id", "obs_event_field_concept_id"),
    "measurement": ("measurement_event_id", "meas_event_field_concept_id"),
    "note": ("note_event_id", "note_event_field_concept_id"),
}


def link_events(p: Publication) -> None:
    """Rows that belong to another row of their resource get its id. A table without such columns keeps them apart."""
    links = p.loaded(p.staged.scan(schemas.EVENT_LINK).collect())
    if links.is_empty():
        return
    temporary_table(p.connection, "event_link", links)
    for table, event_table in links.select("cdm_table", "event_table").unique().sort("cdm_table", "event_table").rows():
        if table not in EVENT_COLUMNS:
            continue
        identifier, field = EVENT_COLUMNS[table]
        event_id = primary_key(event_table)
        p.connection.execute(
            f"UPDATE {p.cdm}.{table} AS row SET {identifier} = event.row_id, {field} = coalesce((SELECT concept_id"
            f" FROM {p.vocab}.concept WHERE vocabulary_id = 'CDM' AND concept_name = '{event_table}.{event_id}'), 0)"
            f" FROM pg_temp.event_link AS link JOIN {lineage_table_name(table)} AS own USING (surrogate_id, row_key)"
            f" JOIN {lineage_table_name(event_table)} AS event ON event.surrogate_id = link.surrogate_id"
            " AND event.row_key = link.event_row_key"
            f" WHERE link.cdm_table = '{table}' AND link.event_table = '{event_table}'"
            f" AND row.{primary_key(table)} = own.row_id"
        )


def facts(p: Publication) -> None:
    """Replace the facts that the changed resources leave; `former_fact` keeps those that they left before."""
    p.connection.execute(
        "CREATE TEMP TABLE former_fact ON COMMIT DROP AS SELECT fact.* FROM reference_value AS fact"
        " JOIN pg_temp.former AS former ON fact.owner_surrogate_id = former.surrogate_id"
    )
    p.connection.execute(
        "DELETE FROM reference_value USING pg_temp.former AS former WHERE owner_surrogate_id = former.surrogate_id"
    )
    for part in p.staged.frames(schemas.REFERENCE_VALUE):
        found = part
        if not p.not_loaded.is_empty():
            lines = p.not_loaded.rename({"surrogate_id": "owner_surrogate_id"})
            found = part.join(lines, on=["owner_surrogate_id", "file_number", "line"], how="anti")
        found = found.drop("file_number", "line").unique(
            ["surrogate_id", "name", "owner_surrogate_id"], keep="last", maintain_order=True
        )
        p.copy(f"{p.etl}.reference_value", encoded(found))


def references(p: Publication) -> None:
    """Replace what the changed resources wait for and depend on."""
    p.connection.execute(
        "DELETE FROM reference USING pg_temp.former AS former WHERE from_surrogate_id = former.surrogate_id"
    )
    found = [*p.staged.frames(schemas.REFERENCE), *p.pending]
    if found:
        every = pl.concat(found).unique()
        every = every.join(p.dropped, left_on="from_surrogate_id", right_on="surrogate_id", how="anti")
        temporary_table(p.connection, "new_reference", every)
        temporary_table(
            p.connection, "identifier_key", p.staged.scan(schemas.IDENTIFIER_KEY).unique("surrogate_id").collect()
        )
        p.connection.execute(
            "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state, is_by_identifier)"
            " SELECT from_surrogate_id, role, to_surrogate_id, min(state),"
            # a provider's care site comes from a role, which may have come long ago: its form is not known here
            " bool_or(key.surrogate_id IS NOT NULL AND role <> 'provider.care_site_id')"
            " FROM pg_temp.new_reference LEFT JOIN pg_temp.identifier_key AS key ON key.surrogate_id = to_surrogate_id"
            " GROUP BY from_surrogate_id, role, to_surrogate_id ON CONFLICT DO NOTHING"
        )


#: Facts about another resource that only the derived tables ask for.
_DERIVED_FACTS = ("discharge_death", "panel_member")

_OWN_CHANGED = "EXISTS (SELECT FROM pg_temp.changed AS own WHERE own.surrogate_id = {})"

#: Facts (surrogate id, name) with another value than before: what transform takes is the least. A table, because the
#: question asked for each reference would search all former facts each time.
_CHANGED_FACTS = (
    "CREATE TEMP TABLE changed_fact ON COMMIT DROP AS SELECT surrogate_id, name FROM"
    " (SELECT surrogate_id, name, min(value) AS value FROM pg_temp.former_fact GROUP BY surrogate_id, name) AS before"
    " FULL JOIN (SELECT fact.surrogate_id, fact.name, min(fact.value) AS value FROM reference_value AS fact"
    " JOIN pg_temp.touched USING (surrogate_id) GROUP BY fact.surrogate_id, fact.name) AS after"
    " USING (surrogate_id, name) WHERE before.value IS DISTINCT FROM after.value"
)


def find_dependents(p: Publication) -> None:
    """Resources that did not come in this export and used a fact that changed: to be transformed again.

    Their references are stale until that is done: a process that ends before leaves them to the next run. What waits
    for a fact stays pending until the fact is there.
    """
    p.connection.execute("CREATE TEMP TABLE waiting (surrogate_id bigint) ON COMMIT DROP")
    if p.is_first:
        stand_ins.note_users(p)
        p.report.dependents = _waiting_lines(p)
        return
    target, role = "reference.to_surrogate_id", "reference.role"
    p.connection.execute(
        "CREATE TEMP TABLE touched ON COMMIT DROP AS SELECT surrogate_id FROM pg_temp.changed UNION"
        " SELECT surrogate_id FROM pg_temp.former_fact UNION SELECT fact.surrogate_id FROM reference_value AS fact"
        " JOIN pg_temp.changed AS owner ON owner.surrogate_id = fact.owner_surrogate_id"
    )
    p.connection.execute("ANALYZE pg_temp.touched")
    p.connection.execute(_CHANGED_FACTS)
    p.connection.execute("ANALYZE pg_temp.changed_fact")
    p.connection.execute(
        "UPDATE reference SET state = 'stale' FROM pg_temp.changed_fact AS fact"
        f" WHERE fact.surrogate_id = {target} AND fact.name = {role} AND {role} <> ALL(%s)"
        f" AND NOT {_OWN_CHANGED.format('reference.from_surrogate_id')}",
        (NO_FACTS,),
    )
    p.connection.execute(
        "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state)"
        " SELECT DISTINCT about.surrogate_id, about.name, about.owner_surrogate_id, 'stale' FROM ("
        "  SELECT surrogate_id, name, owner_surrogate_id FROM pg_temp.former_fact UNION"
        "  SELECT fact.surrogate_id, fact.name, fact.owner_surrogate_id FROM reference_value AS fact"
        "  JOIN pg_temp.changed AS owner ON owner.surrogate_id = fact.owner_surrogate_id"
        "  WHERE fact.surrogate_id <> fact.owner_surrogate_id) AS about"
        " JOIN resource_state AS state ON state.surrogate_id = about.surrogate_id AND state.outcome = 'loaded'"
        " WHERE about.surrogate_id <> about.owner_surrogate_id AND about.name <> ALL(%s)"
        f" AND NOT {_OWN_CHANGED.format('about.surrogate_id')}"
        " AND EXISTS (SELECT FROM pg_temp.changed_fact AS changed"
        " WHERE changed.surrogate_id = about.surrogate_id AND changed.name = about.name)"
        " ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale'",
        (list(_DERIVED_FACTS),),
    )
    stand_ins.note_users(p)
    p.connection.execute(
        "INSERT INTO pg_temp.waiting SELECT DISTINCT from_surrogate_id FROM reference"
        # said of all, so that the index of what is not resolved is used: most references are
        f" WHERE reference.state <> 'resolved' AND {role} <> ALL(%s)"
        f" AND (reference.state = 'stale' OR (reference.state = 'pending' AND EXISTS (SELECT FROM reference_value AS fact"
        f" WHERE fact.surrogate_id = {target} AND fact.name = {role})))"
        f" AND NOT {_OWN_CHANGED.format('reference.from_surrogate_id')}",
        (NO_FACTS,),
    )
    p.report.dependents = list(dict.fromkeys((*_waiting_lines(p), *(LandedLine(*row) for row in mapped_again(p)))))


def _waiting_lines(p: Publication) -> list[LandedLine]:
    """Where the last lines of the resources in `waiting` lie."""
    # Counted, so that the states are looked up for them, and not they for all states.
    p.connection.execute("ANALYZE pg_temp.waiting")
    rows = p.connection.execute(
        f"SELECT DISTINCT {LANDED_LINE}"
        " FROM pg_temp.waiting JOIN resource_state AS state USING (surrogate_id)"
        " JOIN site_resource_type AS kind USING (site_resource_type_id)"
        " WHERE state.outcome IN ('loaded', 'excluded') AND kind.site = %s",
        (p.export.site,),
    ).fetchall()
    return [LandedLine(*row) for row in rows]
