"""Who is to be mapped again: users of facts that changed, records that count now or no more, and resources whose rows were
removed for a reason that is over."""

from __future__ import annotations

import polars as pl

from pipeline.publication.landed_line import LANDED_LINE, LandedLine
from pipeline.publication.link_roles import NO_FACTS
from pipeline.publication.removed_persons import PERSON_REMOVED
from pipeline.publication.specimens import SPECIMEN_RESULT
from pipeline.publication.sql import Database
from pipeline.publication.steps.medication_records import map_again, recount_left
from pipeline.publication.steps.stand_ins import StandIns, note_users
from pipeline.publication.values import PERSONS_HOME, Decisions
from pipeline.transform.mapping.duplicate_rules import FACT

__all__ = ["find_dependents"]

#: Facts about another resource that only steps of publication, or the derived tables, ask for.
_DERIVED_FACTS = ("discharge_death", "panel_member", "infusion_action", SPECIMEN_RESULT)


def find_dependents(
    db: Database, site: str, decisions: Decisions, stand_ins: StandIns, *, with_duplicates: bool = False
) -> list[LandedLine]:
    """Where the lines of resources lie that did not come in this export and used a fact that changed: to be transformed
    again.

    Their references are stale until that is done: a process that ends before leaves them to the next run. What waits
    for a fact stays pending until the fact is there. `with_duplicates`: also those that came with a resource that says
    the same (`pipeline.transform.duplicates`).
    """
    db.execute("waiting")
    map_again(db, pl.concat([decisions.counted.recounted.select("surrogate_id"), recount_left(db)]))
    map_again(db, decisions.homes.moved, PERSONS_HOME)
    if with_duplicates:
        db.execute("duplicates_wait", {"duplicate": FACT})
    if stand_ins.is_first:
        note_users(db, stand_ins)
        return _waiting_lines(db, site)
    db.execute("changed_facts")
    db.execute("stale_users", {"no_facts": NO_FACTS})
    db.execute("stale_subjects", {"derived_facts": list(_DERIVED_FACTS)})
    note_users(db, stand_ins)
    db.execute("users_wait", {"no_facts": NO_FACTS})
    return list(dict.fromkeys((*_waiting_lines(db, site), *_mapped_again(db, site, decisions))))


def _waiting_lines(db: Database, site: str) -> list[LandedLine]:
    """Where the last lines of the resources in `waiting` lie."""
    db.execute("count_waiting")
    return [LandedLine(*row) for row in db.rows("lines_of_waiting", {"site": site}, landed_line=LANDED_LINE)]


def _mapped_again(db: Database, site: str, decisions: Decisions) -> list[LandedLine]:
    """Lines whose rows were removed for a reason that is over. All of it follows from what the database has, so that a
    process that ends before leaves it to the next run.

    - What had vanished, and a late export of a group has it after all.
    - Resources of a removed person who is there again, or follows another one.
    - Patients who followed another one that is not there any more.
    """
    db.put("followed", decisions.merged.select("from").unique().rename({"from": "patient"}))
    own = {"site": site, "person_removed": PERSON_REMOVED}
    return [LandedLine(*row) for row in db.rows("lines_mapped_again", own, landed_line=LANDED_LINE)]
