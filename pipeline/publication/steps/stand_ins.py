"""Stand-ins: what references name in place of the resource that is a row, and which resource that is now.

A PractitionerRole stands for its practitioner. The key of an identifier (`pipeline.transform.identifiers`) stands for the one
resource that has it: for nobody while there is none, or more than one. A link through a stand-in stays in `etl.reference`,
`resolved` where it has led to a row and `pending` where not, so that it follows when the stand-in changes: the role or
the practitioner comes later, is corrected or removed; a second resource has the identifier. Facts: `role_practitioner` of
the role, `identifier` about the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import polars as pl

from pipeline.publication.link_roles import LinkRole, role_names, roles_to
from pipeline.publication.sql import Database
from pipeline.publication.tables import place_names, target_rows
from pipeline.publication.values import Decisions, Entities
from pipeline.staging import schemas

__all__ = [
    "FACTS_ABOUT_KEYS",
    "IDENTIFIER",
    "ROLE",
    "STAND_IN_FACTS",
    "TARGETS_BY_STAND_IN",
    "StandIns",
    "about_owners",
    "follow",
    "note_users",
]

IDENTIFIER, ROLE = "identifier", "role_practitioner"
STAND_IN_FACTS = (IDENTIFIER, ROLE)

#: Facts about a practitioner, who may be named by an identifier.
FACTS_ABOUT_KEYS = ("provider_specialty", "provider_care_site")

#: Tables whose resources have stand-ins.
TARGETS_BY_STAND_IN = ("care_site", "provider")

_RESOLVED = {"surrogate_id": pl.Int64, "target": pl.Int64}


class StandIns:
    """Whom references stand for by the facts of the warehouse or, in its first load, by those of the export. The facts of
    this export must be in place."""

    def __init__(self, db: Database, decisions: Decisions, *, is_first: bool) -> None:
        self._db, self._decisions, self.is_first = db, decisions, is_first

    def resolved(self, references: pl.Series) -> pl.DataFrame:
        """Whom those of the references (surrogate ids, keys) stand for that are stand-ins. Columns: surrogate_id, target.

        target is NULL where an identifier is not that of one resource. An identifier may be that of a role, and a role
        may name its practitioner by an identifier; longer chains are none.
        """
        chain = pl.DataFrame({"surrogate_id": references.drop_nulls().unique()}, schema={"surrogate_id": pl.Int64})
        chain = chain.with_columns(pl.col("surrogate_id").alias("target"))
        for number, fact in enumerate((IDENTIFIER, ROLE, IDENTIFIER)):
            if chain["target"].drop_nulls().is_empty():
                break
            step = self._step(fact, chain["target"], f"stand_in_{number}")
            if not step.is_empty():
                step = step.rename({"surrogate_id": "target", "target": "next"})
                step = step.with_columns(pl.lit(True).alias("stands"))
                chain = chain.join(step, on="target", how="left", maintain_order="left").select(
                    "surrogate_id", pl.when(pl.col("stands")).then("next").otherwise("target").alias("target")
                )
        return chain.filter(pl.col("target").ne_missing(pl.col("surrogate_id")))

    def _step(self, fact: str, references: pl.Series, table: str) -> pl.DataFrame:
        """What facts of one name say of references, one step on. Columns: surrogate_id, target."""
        if self.is_first:
            facts = self.first_facts.filter(
                (pl.col("name") == fact) & pl.col("surrogate_id").is_in(references.implode())
            )
            only = pl.when(pl.len() == 1).then(pl.col("owner_surrogate_id").min())
            target = only if fact == IDENTIFIER else pl.col("value").min().cast(pl.Int64)
            return facts.group_by("surrogate_id").agg(target.alias("target"))
        target_of = (
            "CASE WHEN count(*) = 1 THEN min(owner_surrogate_id) END" if fact == IDENTIFIER else "min(value)::bigint"
        )
        self._db.put(table, pl.DataFrame({"surrogate_id": references.drop_nulls().unique()}))
        return self._db.frame("stand_in_step", _RESOLVED, {"fact": fact}, references=table, target=target_of)

    @cached_property
    def first_facts(self) -> pl.DataFrame:
        """The facts of an empty warehouse's first load that this module asks for: they are few among all facts, which
        have no index yet. Columns: surrogate_id, name, owner_surrogate_id, value."""
        names = pl.col("name").is_in([*STAND_IN_FACTS, *FACTS_ABOUT_KEYS])
        facts = self._decisions.staged.scan(schemas.REFERENCE_VALUE).filter(names).collect()
        lines = self._decisions.not_loaded.rename({"surrogate_id": "owner_surrogate_id"})
        facts = facts.join(lines, on=["owner_surrogate_id", "file_number", "line"], how="anti", maintain_order="left")
        return facts.drop("file_number", "line").unique(
            ["surrogate_id", "name", "owner_surrogate_id"], keep="last", maintain_order=True
        )


def about_owners(facts: pl.LazyFrame) -> pl.DataFrame:
    """Facts for the workers: those about a practitioner who is named by an identifier are about the one who has it.

    `facts`: all of them, columns surrogate_id, name, owner_surrogate_id, value. The identifiers themselves are left out.
    """
    every = facts.collect()
    keyed = every.filter(pl.col("name").is_in(FACTS_ABOUT_KEYS))
    others = every.filter(~pl.col("name").is_in([*STAND_IN_FACTS, *FACTS_ABOUT_KEYS]))
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


def follow(db: Database, stand_ins: StandIns, entities: Entities, removed_from: frozenset[str]) -> None:
    """Bring links through stand-ins in line with whom these stand for after this publication.

    Facts, references and the rows of the entity tables must be in place, and the temporary table `moved_stand_in`.
    `removed_from`: tables with a temporary table `removed_<table>`.
    """
    _find_moved(db, entities.new_rows, removed_from)
    db.execute("moved_links", {"roles": role_names(*TARGETS_BY_STAND_IN)})
    names = {name for (name,) in db.rows("moved_link_roles")}
    if not names:
        return
    used = db.frame("moved_link_targets", {"to": pl.Int64})
    db.put("stands_for", stand_ins.resolved(used["to"]))
    for target in TARGETS_BY_STAND_IN:
        db.execute("moved_rows", target=target, target_rows=target_rows(target, db.cdm))
        for role in roles_to(target):
            if role.name in names:
                _follow_role(db, role)
            if role.by_row in names:
                db.execute("moved_by_row", {"role": role.by_row})


def _follow_role(db: Database, role: LinkRole) -> None:
    """Fill the places of one role with what the moved stand-ins stand for now, or with nothing."""
    own = {"role": role.name}
    for place in role.places:
        db.execute("follow_stand_ins", own, target=role.target, **place_names(place))
    db.execute("save_followed", own, target=role.target)


def _find_moved(db: Database, new_rows: Mapping[str, pl.Series], removed_from: frozenset[str]) -> None:
    """Stand-ins that may stand for another row than before, in `moved_stand_in`."""
    db.execute("stand_ins_with_changed_facts", {"names": list(STAND_IN_FACTS)})
    for table in TARGETS_BY_STAND_IN:
        db.put(f"new_{table}", pl.DataFrame({"surrogate_id": new_rows[table]}))
        db.execute("targets_moved", resources=f"new_{table}")
        if table in removed_from:
            db.execute("targets_moved", resources=f"removed_{table}")
    db.execute("stand_ins_moved", {"role": ROLE, "identifier": IDENTIFIER})


def note_users(db: Database, stand_ins: StandIns) -> None:
    """Practitioners whom facts are about by an identifier (their role's specialty), where it moved or a fact changed:
    they wait to be mapped again, in `waiting`.

    Also those of this export: they were mapped before it was known whose the identifier is. Reads `changed_fact`, but
    for a first load.
    """
    if stand_ins.is_first:
        facts = stand_ins.first_facts
        owners = facts.filter(pl.col("name") == IDENTIFIER).select("surrogate_id", "owner_surrogate_id")
        keyed = facts.filter(pl.col("name").is_in(FACTS_ABOUT_KEYS)).select("surrogate_id", "name").unique()
        db.put("user_of_key", keyed.join(owners, on="surrogate_id").unique())
    else:
        db.execute("users_of_keys", {"names": list(FACTS_ABOUT_KEYS), "identifier": IDENTIFIER})
    db.execute("users_of_keys_wait")
