"""`etl.medication_record`: records of medications, by the order or encounter that they share with others.

When a record comes, changes or goes, those that share a link with it are looked at again: which count follows from the
records alone (`pipeline.publication.double_counting`), so that it does not matter in which night each came. An arriving
record that another one counts for is excluded; one that is known already is mapped again from landing.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from omop_schema.cdm_fields import polars_schema
from omop_schema.etl import LINEAGE_TABLES
from pipeline.publication.double_counting import (
    COUNTED_ELSEWHERE,
    ENCOUNTER,
    ORDER,
    ORDER_FACT,
    PRECEDENCE,
    RECORD,
    RECORD_SCHEMA,
    covered,
)
from pipeline.publication.sql import Database
from pipeline.publication.values import ID_SCHEMA, LINE, LINE_SCHEMA, Counted, Decisions, Incoming
from pipeline.staging import schemas
from pipeline.staging.parts import StagedExport
from pipeline.warehouse.copying import encoded

__all__ = ["count_once", "map_again", "mark_stale", "note_erased", "note_left_links", "recount_left", "save_records"]

_STORED: dict[str, type[pl.DataType]] = {**RECORD_SCHEMA, "counts": pl.Boolean}
_LINK: dict[str, type[pl.DataType]] = {"linked_surrogate_id": pl.Int64}
_INGREDIENT: dict[str, type[pl.DataType]] = {"concept_id": pl.Int32, "substance": pl.Int32}
_REQUEST = PRECEDENCE["MedicationRequest"]

#: Tables of events in which a record may have its row.
_TABLES = [table for table in LINEAGE_TABLES if "visit_occurrence_id" in polars_schema(table)]


def count_once(db: Database, incoming: Incoming, lines: pl.DataFrame) -> Counted:
    """Which of the export's records are counted elsewhere, and which stored ones count otherwise than before.

    `lines`: those that are loaded (LINE). The temporary table `changed` has their resources, and others that change.
    """
    arriving = _arriving(incoming.staged, incoming.site.mapping.double_counting)
    arriving = arriving.join(lines, on=LINE, how="semi")
    links = arriving.select("linked_surrogate_id")
    if not incoming.is_first:
        links = pl.concat([links, db.frame("links_of_changed", _LINK)])
    if links.is_empty():
        return Counted()
    recount = _Recount(db, arriving, is_first=incoming.is_first)
    recount.run(links)
    elsewhere = recount.found.with_columns(pl.lit(False).alias("counts"))
    decided = arriving.join(elsewhere, on=RECORD, how="left").with_columns(pl.col("counts").fill_null(True))
    rows = decided.filter(~pl.col("counts")).select(*LINE, "cdm_table").unique()
    # Lines that have a row in no table.
    lines = rows.select(LINE).unique().join(decided.filter("counts"), on=LINE, how="anti")
    return Counted(rows, lines, decided.select(list(_STORED)), recount.recounted)


def save_records(db: Database, incoming: Incoming, decisions: Decisions) -> None:
    """Replace the records of the changed resources, and note which of the others count now."""
    if not incoming.is_first:
        db.execute("remove_records")
    db.copy(f"{db.etl}.medication_record", encoded(decisions.counted.records))
    _save_counts(db, decisions.counted.recounted)


def note_left_links(db: Database) -> None:
    """The temporary table `left_link`: links of records that go with their person (`removed_persons`)."""
    db.execute("left_link")


def note_erased(db: Database) -> None:
    """The links of the records of erased resources (temporary table `erased`) join `left_link`."""
    db.execute("links_of_erased")


def recount_left(db: Database) -> pl.DataFrame:
    """Look again at those that share a link with records that went with their person (`left_link`). Returns those that
    count otherwise than before (surrogate_id)."""
    links = db.frame("left_links", _LINK)
    if links.is_empty():
        return links.rename({"linked_surrogate_id": "surrogate_id"})
    recount = _Recount(db, pl.DataFrame(schema={**RECORD_SCHEMA, **LINE_SCHEMA}), is_first=False, all_are_stored=True)
    recount.run(links)
    _save_counts(db, recount.recounted)
    return recount.recounted.select("surrogate_id")


def mark_stale(db: Database, resources: pl.DataFrame, role: str = COUNTED_ELSEWHERE) -> None:
    """Note that resources (surrogate_id) are to be mapped again: until then, whatever happens, they wait in
    `etl.reference` under the role."""
    if not resources.is_empty():
        db.put("recounted", resources.unique())
        db.execute("recounted_are_stale", {"role": role})


def map_again(db: Database, resources: pl.DataFrame, role: str = COUNTED_ELSEWHERE) -> None:
    """The same, in this run: they join the temporary table `waiting`."""
    mark_stale(db, resources, role)
    if not resources.is_empty():
        db.execute("recounted_wait")


def _save_counts(db: Database, recounted: pl.DataFrame) -> None:
    if not recounted.is_empty():
        db.put("new_count", recounted)
        db.execute("save_counts")


# --- arriving records -------------------------------------------------------------------------------------------------


def _arriving(staged: StagedExport, option: str) -> pl.DataFrame:
    """The records of an export that have a row: RECORD_SCHEMA, file_number, line."""
    found = [pl.DataFrame(schema={**RECORD_SCHEMA, **LINE_SCHEMA})]
    if option == "keep":
        return found[0]
    kinds = set(staged.kinds())
    for resource_type in PRECEDENCE:
        rows = [_rows(staged, table, resource_type) for table in _TABLES if table in kinds]
        if not rows:
            continue
        every = pl.concat(rows)
        found.append(_by_order(every, _orders(staged, resource_type)))
        if option == "overlap":
            found.append(_by_encounter(every))
    return pl.concat(found)


def _rows(staged: StagedExport, table: str, resource_type: str) -> pl.DataFrame:
    """Staged rows of one type in one table, what they are about under the names of RECORD_SCHEMA, visit_occurrence_id."""
    about: dict[str, pl.Expr] = {
        "concept_id": pl.lit(None),
        "start_date": pl.lit(None),
        "end_date": pl.lit(None),
    }
    if table == "drug_exposure":
        start, end = pl.col("drug_exposure_start_date"), pl.col("drug_exposure_end_date")
        about = {"concept_id": pl.col("drug_concept_id"), "start_date": start, "end_date": pl.coalesce(end, start)}
    own = {
        "precedence": pl.lit(PRECEDENCE[resource_type]),
        "cdm_table": pl.lit(table),
        "person_surrogate_id": pl.col("person_id"),
        **about,
    }
    columns = [*LINE, "visit_occurrence_id"]
    parts = [pl.scan_parquet(part) for part in staged.parts_of(table, resource_type)]
    frames = [
        part.select(*columns, *(value.cast(RECORD_SCHEMA[name]).alias(name) for name, value in own.items()))
        for part in parts
    ]
    schema: dict[str, type[pl.DataType]] = {**LINE_SCHEMA, "visit_occurrence_id": pl.Int64}
    schema |= {name: RECORD_SCHEMA[name] for name in own}
    return pl.concat(frames).collect() if frames else pl.DataFrame(schema=schema)


def _orders(staged: StagedExport, resource_type: str) -> pl.DataFrame | None:
    """Which orders the records of a type name (LINE, linked_surrogate_id); None: each is its own order."""
    if PRECEDENCE[resource_type] == _REQUEST:
        return None
    parts = [pl.read_parquet(part) for part in staged.parts_of(schemas.REFERENCE_VALUE, resource_type)]
    facts = pl.concat([pl.DataFrame(schema=schemas.SCHEMAS[schemas.REFERENCE_VALUE]), *parts])
    return facts.filter(pl.col("name") == ORDER_FACT).select(
        pl.col("owner_surrogate_id").alias("surrogate_id"),
        "file_number",
        "line",
        pl.col("value").cast(pl.Int64).alias("linked_surrogate_id"),
    )


def _by_order(rows: pl.DataFrame, orders: pl.DataFrame | None) -> pl.DataFrame:
    if orders is None:
        linked = rows.with_columns(pl.col("surrogate_id").alias("linked_surrogate_id"))
    else:
        linked = rows.join(orders, on=LINE, how="inner")
    nothing = [pl.lit(None, dtype=RECORD_SCHEMA[name]).alias(name) for name in ("concept_id", "start_date", "end_date")]
    return _linked(linked.with_columns(nothing), ORDER)


def _by_encounter(rows: pl.DataFrame) -> pl.DataFrame:
    dated = rows.filter(pl.col("visit_occurrence_id").is_not_null() & pl.col("start_date").is_not_null())
    return _linked(dated.with_columns(pl.col("visit_occurrence_id").alias("linked_surrogate_id")), ENCOUNTER)


def _linked(rows: pl.DataFrame, link: str) -> pl.DataFrame:
    columns = {**RECORD_SCHEMA, **LINE_SCHEMA}
    return rows.with_columns(pl.lit(link).alias("link")).select(list(columns)).unique()


# --- which count ------------------------------------------------------------------------------------------------------


class _Recount:
    """Looks at the records that share a link with those that came, changed or went; the more definite ones first, because
    a dispense that does not count stands in nobody's place."""

    def __init__(self, db: Database, arriving: pl.DataFrame, *, is_first: bool, all_are_stored: bool = False) -> None:
        self._db = db
        self._arriving = arriving.select(list(RECORD_SCHEMA)).with_columns(pl.lit(True).alias("counts"))
        self._is_first = is_first
        #: those of the temporary table `changed` are not stored as they are now
        self._stored_but = "" if all_are_stored else "changed"
        #: what another record counts for, of all that were looked at (RECORD)
        self.found = pl.DataFrame(schema={name: RECORD_SCHEMA[name] for name in RECORD})
        #: stored ones that count otherwise than before (RECORD, counts)
        self.recounted = pl.DataFrame(schema={name: _STORED[name] for name in (*RECORD, "counts")})

    def run(self, links: pl.DataFrame) -> None:
        """`links` (linked_surrogate_id): those of records that came, changed or went."""
        definite, *others = sorted(PRECEDENCE.values())
        above = [definite]
        for precedence in others:
            links = pl.concat([links, self._look_at(precedence, above, links)]).unique()
            above.append(precedence)

    def _look_at(self, precedence: int, above: Sequence[int], links: pl.DataFrame) -> pl.DataFrame:
        """Decide about the records of one precedence; the links of stored ones that count otherwise now."""
        stored = self._of_resources(self._of_links(links, [precedence]))
        records = pl.concat([self._arriving.filter(pl.col("precedence") == precedence), stored])
        better = self._counting(records.select("linked_surrogate_id"), above)
        found = covered(records.drop("counts"), better, self._ingredients(records, better))
        self.found = pl.concat([self.found, found])
        stopped = stored.filter("counts").join(found, on=RECORD, how="semi")
        returned = stored.filter(~pl.col("counts")).join(found, on=RECORD, how="anti")
        changed = pl.concat([stopped, returned])
        recounted = changed.select(*RECORD, (~pl.col("counts")).alias("counts")).unique()
        self.recounted = pl.concat([self.recounted, recounted])
        return changed.select("linked_surrogate_id")

    def _counting(self, links: pl.DataFrame, precedences: Sequence[int]) -> pl.DataFrame:
        """Records of these links and precedences that count, as far as is decided (RECORD_SCHEMA)."""
        arriving = self._arriving.filter(pl.col("precedence").is_in(list(precedences)))
        arriving = arriving.join(links, on="linked_surrogate_id", how="semi")
        arriving = arriving.join(self.found, on=RECORD, how="anti")
        stored = self._of_links(links, precedences)
        stored = stored.join(self.recounted.rename({"counts": "now"}), on=RECORD, how="left")
        stored = stored.filter(pl.coalesce("now", "counts"))
        return pl.concat([arriving.select(list(RECORD_SCHEMA)), stored.select(list(RECORD_SCHEMA))])

    def _of_links(self, links: pl.DataFrame, precedences: Sequence[int]) -> pl.DataFrame:
        """Stored records of these links and precedences, but of resources that change."""
        if self._is_first or links.is_empty():
            return pl.DataFrame(schema=_STORED)
        self._db.put("asked_link", links.unique())
        found = self._db.frame("records_of_links", _STORED, {"precedences": list(precedences)})
        return self._unchanged(found)

    def _of_resources(self, resources: pl.DataFrame) -> pl.DataFrame:
        """All stored records of resources (surrogate_id) that do not change."""
        if resources.is_empty():
            return pl.DataFrame(schema=_STORED)
        self._db.put("asked_resource", resources.select("surrogate_id").unique())
        return self._db.frame("records_of_resources", _STORED)

    def _unchanged(self, found: pl.DataFrame) -> pl.DataFrame:
        if not self._stored_but or found.is_empty():
            return found
        self._db.put("asked_resource", found.select("surrogate_id").unique())
        changed = self._db.frame("changed_records", ID_SCHEMA)
        return found.join(changed, on="surrogate_id", how="anti")

    def _ingredients(self, *records: pl.DataFrame) -> pl.DataFrame:
        """Of the drugs that are compared: concept_id, substance."""
        drugs = pl.concat([frame.select("concept_id") for frame in records]).drop_nulls().unique()
        if drugs.is_empty():
            return pl.DataFrame(schema=_INGREDIENT)
        self._db.put("compared_drug", drugs)
        return self._db.frame("drug_ingredients", _INGREDIENT)
