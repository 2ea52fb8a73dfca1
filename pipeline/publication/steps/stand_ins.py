"""Stand-ins: what references name in place of the resource that is a row, and which resource that is now.

A PractitionerRole stands for its practitioner. The key of an identifier (`pipeline.transform.identifiers`) stands for the one
resource that has it: for nobody while there is none, or more than one. A link through a stand-in stays in `etl.reference`,
`resolved` where it has led to a row and `pending` where not, so that it follows when the stand-in changes: the role or
the practitioner comes later, is corrected or removed; a second resource has the identifier. Facts: `role_practitioner` of
the role, `identifier` about the key.
"""

from __future__ import annotations

import polars as pl

from omop_schema.cdm import primary_key
from omop_schema.etl import lineage_table_name
from pipeline.publication.context import Publication
from pipeline.publication.link_roles import LinkRole, role_names, roles_to
from pipeline.publication.steps.targets import target_rows
from pipeline.staging import schemas
from pipeline.warehouse.copying import read_frame, temporary_table

__all__ = [
    "IDENTIFIER",
    "ROLE",
    "STAND_IN_FACTS",
    "TARGETS_BY_STAND_IN",
    "about_owners",
    "follow",
    "note_users",
    "resolved",
]

IDENTIFIER, ROLE = "identifier", "role_practitioner"
STAND_IN_FACTS = (IDENTIFIER, ROLE)

#: Facts about a practitioner, who may be named by an identifier.
_FACTS_ABOUT_KEYS = ("provider_specialty", "provider_care_site")

#: Tables whose resources have stand-ins.
TARGETS_BY_STAND_IN = ("care_site", "provider")

_RESOLVED = {"surrogate_id": pl.Int64, "target": pl.Int64}


def resolved(p: Publication, references: pl.Series) -> pl.DataFrame:
    """Whom those of the references (surrogate ids, keys) stand for that are stand-ins. Columns: surrogate_id, target.

    target is NULL where an identifier is not that of one resource. The facts of this export must be in place. An
    identifier may be that of a role, and a role may name its practitioner by an identifier; longer chains are none.
    """
    chain = pl.DataFrame({"surrogate_id": references.drop_nulls().unique()}, schema={"surrogate_id": pl.Int64})
    chain = chain.with_columns(pl.col("surrogate_id").alias("target"))
    for number, fact in enumerate((IDENTIFIER, ROLE, IDENTIFIER)):
        if chain["target"].drop_nulls().is_empty():
            break
        step = _step(p, fact, chain["target"], f"stand_in_{number}")
        if not step.is_empty():
            step = step.rename({"surrogate_id": "target", "target": "next"}).with_columns(pl.lit(True).alias("stands"))
            chain = chain.join(step, on="target", how="left", maintain_order="left").select(
                "surrogate_id", pl.when(pl.col("stands")).then("next").otherwise("target").alias("target")
            )
    return chain.filter(pl.col("target").ne_missing(pl.col("surrogate_id")))


def _step(p: Publication, fact: str, references: pl.Series, name: str) -> pl.DataFrame:
    """What facts of one name say of references, one step on. Columns: surrogate_id, target."""
    if p.is_first:
        facts = _first_facts(p).filter((pl.col("name") == fact) & pl.col("surrogate_id").is_in(references.implode()))
        alone = pl.when(pl.len() == 1).then(pl.col("owner_surrogate_id").min())
        target = alone if fact == IDENTIFIER else pl.col("value").min().cast(pl.Int64)
        return facts.group_by("surrogate_id").agg(target.alias("target"))
    said = "CASE WHEN count(*) = 1 THEN min(owner_surrogate_id) END" if fact == IDENTIFIER else "min(value)::bigint"
    p.connection.execute(f"DROP TABLE IF EXISTS pg_temp.{name}")
    temporary_table(p.connection, name, pl.DataFrame({"surrogate_id": references.drop_nulls().unique()}))
    return read_frame(
        p.connection,
        f"SELECT surrogate_id, {said} FROM pg_temp.{name} JOIN reference_value AS fact USING (surrogate_id)"
        f" WHERE fact.name = '{fact}' GROUP BY surrogate_id",
        _RESOLVED,
    )


def _first_facts(p: Publication) -> pl.DataFrame:
    """The facts of an empty warehouse's first load that this module asks for: they are few among all facts, which have
    no index yet. Columns: surrogate_id, name, owner_surrogate_id, value."""
    if p.first_facts is None:
        names = pl.col("name").is_in([*STAND_IN_FACTS, *_FACTS_ABOUT_KEYS])
        facts = p.staged.scan(schemas.REFERENCE_VALUE).filter(names).collect()
        lines = p.not_loaded.rename({"surrogate_id": "owner_surrogate_id"})
        facts = facts.join(lines, on=["owner_surrogate_id", "file_number", "line"], how="anti", maintain_order="left")
        p.first_facts = facts.drop("file_number", "line").unique(
            ["surrogate_id", "name", "owner_surrogate_id"], keep="last", maintain_order=True
        )
    return p.first_facts


def about_owners(facts: pl.LazyFrame) -> pl.DataFrame:
    """Facts for the workers: those about a practitioner who is named by an identifier are about the one who has it.

    `facts`: all of them, columns surrogate_id, name, owner_surrogate_id, value. The identifiers themselves are left out.
    """
    every = facts.collect()
    keyed = every.filter(pl.col("name").is_in(_FACTS_ABOUT_KEYS))
    others = every.filter(~pl.col("name").is_in([*STAND_IN_FACTS, *_FACTS_ABOUT_KEYS]))
    columns = ["surrogate_id", "name", "value"]
    if keyed.is_empty():
        return others.select(columns)
    owners = (
        every.filter((pl.col("name") == IDENTIFIER) & pl.col("surrogate_id").is_in(keyed["surrogate_id"].implode()))
        .select("surrogate_id", owner="owner_surrogate_id")
        .unique()
        .filter(pl.len().over("surrogate_id") == 1)
    )
    keyed = keyed.join(owners, on="surrogate_id", how="left", maintain_order="left")
    about = keyed.with_columns(pl.coalesce("owner", "surrogate_id").alias("surrogate_id"))
    return pl.concat([others.select(columns), about.select(columns)])


# --- what moves ------------------------------------------------------------------------------------------------------


def follow(p: Publication) -> None:
    """Bring links through stand-ins in line with whom these stand for after this publication.

    Facts, references and the rows of the entity tables must be in place.
    """
    if p.is_first:
        return
    p.connection.execute("CREATE TEMP TABLE moved_stand_in (surrogate_id bigint) ON COMMIT DROP")
    _find_moved(p)
    p.connection.execute("ANALYZE pg_temp.moved_stand_in")
    p.connection.execute(
        "CREATE TEMP TABLE moved_link ON COMMIT DROP AS SELECT from_surrogate_id, role, to_surrogate_id FROM reference"
        " JOIN pg_temp.moved_stand_in AS moved ON moved.surrogate_id = to_surrogate_id WHERE role = ANY(%s)",
        (role_names(*TARGETS_BY_STAND_IN),),
    )
    names = {name for (name,) in p.connection.execute("SELECT DISTINCT role FROM pg_temp.moved_link").fetchall()}
    if not names:
        return
    p.connection.execute("ANALYZE pg_temp.moved_link")
    used = read_frame(p.connection, "SELECT DISTINCT to_surrogate_id FROM pg_temp.moved_link", {"to": pl.Int64})
    temporary_table(p.connection, "stands_for", resolved(p, used["to"]))
    for target in TARGETS_BY_STAND_IN:
        p.connection.execute(
            f"CREATE TEMP TABLE moved_{target} ON COMMIT DROP AS SELECT stand_in.surrogate_id, row.row_id"
            f" FROM pg_temp.stands_for AS stand_in JOIN {target_rows(p, target)} AS row"
            " ON row.surrogate_id = stand_in.target"
        )
        for role in roles_to(target):
            if role.name in names:
                _follow_role(p, role)
            if role.by_row in names:
                p.connection.execute(
                    "UPDATE reference SET state = 'stale' FROM pg_temp.moved_link AS moved"
                    " WHERE reference.from_surrogate_id = moved.from_surrogate_id AND reference.role = moved.role"
                    " AND reference.to_surrogate_id = moved.to_surrogate_id AND moved.role = %s",
                    (role.by_row,),
                )


def _follow_role(p: Publication, role: LinkRole) -> None:
    """Fill the places of one role with what the moved stand-ins stand for now, or with nothing."""
    for place in role.places:
        p.connection.execute(
            f"UPDATE {p.cdm}.{place.table} AS row SET {place.column} = target.row_id"
            f" FROM pg_temp.moved_link AS moved JOIN {lineage_table_name(place.table)} AS lineage"
            " ON lineage.surrogate_id = moved.from_surrogate_id"
            f" LEFT JOIN pg_temp.moved_{role.target} AS target ON target.surrogate_id = moved.to_surrogate_id"
            f" WHERE moved.role = %s AND row.{primary_key(place.table) or 'person_id'} = lineage.row_id"
            f" AND row.{place.column} IS DISTINCT FROM target.row_id{place.rows.value}",
            (role.name,),
        )
    p.connection.execute(
        "UPDATE reference SET state = CASE WHEN target.row_id IS NULL THEN 'pending' ELSE 'resolved' END"
        f" FROM pg_temp.moved_link AS moved LEFT JOIN pg_temp.moved_{role.target} AS target"
        " ON target.surrogate_id = moved.to_surrogate_id WHERE moved.role = %s"
        " AND reference.from_surrogate_id = moved.from_surrogate_id AND reference.role = moved.role"
        " AND reference.to_surrogate_id = moved.to_surrogate_id",
        (role.name,),
    )


def _find_moved(p: Publication) -> None:
    """Stand-ins that may stand for another row than before, in `moved_stand_in`."""
    names = list(STAND_IN_FACTS)
    p.connection.execute(
        "INSERT INTO pg_temp.moved_stand_in SELECT DISTINCT surrogate_id FROM"
        " (SELECT surrogate_id, owner_surrogate_id, name, value FROM pg_temp.former_fact WHERE name = ANY(%s)) AS before"
        " FULL JOIN (SELECT fact.surrogate_id, fact.owner_surrogate_id, fact.name, fact.value"
        "  FROM reference_value AS fact JOIN pg_temp.changed AS own ON own.surrogate_id = fact.owner_surrogate_id"
        "  WHERE fact.name = ANY(%s)) AS after USING (surrogate_id, owner_surrogate_id, name)"
        " WHERE before.value IS DISTINCT FROM after.value",
        (names, names),
    )
    p.connection.execute("CREATE TEMP TABLE moved_target (surrogate_id bigint) ON COMMIT DROP")
    for table in TARGETS_BY_STAND_IN:
        temporary_table(p.connection, f"new_{table}", pl.DataFrame({"surrogate_id": p.new_rows[table]}))
        p.connection.execute(f"INSERT INTO pg_temp.moved_target SELECT surrogate_id FROM pg_temp.new_{table}")
        if p.count(f"SELECT (to_regclass('pg_temp.removed_{table}') IS NOT NULL)::integer"):
            p.connection.execute(f"INSERT INTO pg_temp.moved_target SELECT surrogate_id FROM pg_temp.removed_{table}")
    # Roles of moved practitioners; what these and all others that moved are identified by.
    p.connection.execute("ANALYZE pg_temp.moved_target; ANALYZE pg_temp.moved_stand_in")
    p.connection.execute(
        "INSERT INTO pg_temp.moved_stand_in SELECT fact.surrogate_id FROM reference_value AS fact"
        " JOIN (SELECT surrogate_id FROM pg_temp.moved_target UNION SELECT surrogate_id FROM pg_temp.moved_stand_in) AS moved"
        f" ON fact.value = moved.surrogate_id::text WHERE fact.name = '{ROLE}'"
    )
    p.connection.execute(
        "INSERT INTO pg_temp.moved_stand_in SELECT fact.surrogate_id FROM reference_value AS fact"
        " JOIN (SELECT surrogate_id FROM pg_temp.moved_target UNION SELECT surrogate_id FROM pg_temp.moved_stand_in) AS moved"
        f" ON fact.owner_surrogate_id = moved.surrogate_id WHERE fact.name = '{IDENTIFIER}'"
    )
    p.connection.execute(
        "CREATE TEMP TABLE moved_once ON COMMIT DROP AS SELECT DISTINCT surrogate_id FROM pg_temp.moved_stand_in"
    )
    p.connection.execute("TRUNCATE pg_temp.moved_stand_in; INSERT INTO pg_temp.moved_stand_in TABLE pg_temp.moved_once")


#: Keys (surrogate_id) and names of facts about them: those that moved, and those whose facts changed.
_MOVED_KEYS = (
    "SELECT fact.surrogate_id, fact.name FROM pg_temp.moved_stand_in AS moved"
    " JOIN reference_value AS fact USING (surrogate_id) WHERE fact.name = ANY(%(names)s)"
    " UNION SELECT surrogate_id, name FROM pg_temp.changed_fact JOIN"
    " (SELECT surrogate_id, name FROM pg_temp.former_fact UNION SELECT fact.surrogate_id, fact.name"
    "  FROM reference_value AS fact JOIN pg_temp.changed AS own ON own.surrogate_id = fact.owner_surrogate_id"
    "  WHERE fact.name = ANY(%(names)s)) AS said USING (surrogate_id, name) WHERE name = ANY(%(names)s)"
)


def note_users(p: Publication) -> None:
    """Practitioners whom facts are about by an identifier (their role's specialty), where it moved or a fact changed:
    they wait to be mapped again, in `waiting`.

    Also those of this export: they were mapped before it was known whose the identifier is. Uses `changed_fact`.
    """
    if p.is_first:
        facts = _first_facts(p)
        owners = facts.filter(pl.col("name") == IDENTIFIER).select("surrogate_id", "owner_surrogate_id")
        keyed = facts.filter(pl.col("name").is_in(_FACTS_ABOUT_KEYS)).select("surrogate_id", "name").unique()
        temporary_table(p.connection, "user_of_key", keyed.join(owners, on="surrogate_id").unique())
    else:
        p.connection.execute("CREATE TEMP TABLE IF NOT EXISTS moved_stand_in (surrogate_id bigint) ON COMMIT DROP")
        p.connection.execute(
            f"CREATE TEMP TABLE user_of_key ON COMMIT DROP AS WITH key AS ({_MOVED_KEYS}), owner AS ("
            " SELECT fact.surrogate_id, fact.owner_surrogate_id FROM reference_value AS fact"
            " JOIN (SELECT DISTINCT surrogate_id FROM key) AS key USING (surrogate_id) WHERE fact.name = %(identifier)s"
            " UNION SELECT surrogate_id, owner_surrogate_id FROM pg_temp.former_fact JOIN key USING (surrogate_id)"
            " WHERE former_fact.name = %(identifier)s)"
            " SELECT DISTINCT owner.owner_surrogate_id, key.name, key.surrogate_id FROM key"
            " JOIN owner USING (surrogate_id)"
            " JOIN resource_state AS state ON state.surrogate_id = owner.owner_surrogate_id AND state.outcome = 'loaded'",
            {"names": list(_FACTS_ABOUT_KEYS), "identifier": IDENTIFIER},
        )
    p.connection.execute(
        "INSERT INTO reference (from_surrogate_id, role, to_surrogate_id, state, is_by_identifier)"
        " SELECT owner_surrogate_id, name, surrogate_id, 'stale', true FROM pg_temp.user_of_key"
        " ON CONFLICT (from_surrogate_id, role, to_surrogate_id) DO UPDATE SET state = 'stale'"
    )
    p.connection.execute("INSERT INTO pg_temp.waiting SELECT DISTINCT owner_surrogate_id FROM pg_temp.user_of_key")
