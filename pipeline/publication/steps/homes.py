"""Parts of a person's home: a room or bed whose `Location.partOf` leads to one is no site either (f2o-022).

Which Location is a home by its own words the transform says, which excludes it. What is above a place is known here alone:
places come in any order, line and night. An arriving part is excluded in the same transaction, before it has a row; a
known one that is a part of a home now, or no more, is mapped again.
"""

from __future__ import annotations

import polars as pl

from pipeline.publication.sql import Database
from pipeline.publication.values import ID_SCHEMA, LINE, PERSONS_HOME, Homes
from pipeline.staging import schemas
from pipeline.staging.parts import StagedExport

__all__ = ["find_homes"]

#: The fact of what a place is a part of (value: surrogate id of the place above).
_PART_OF = "site_part_of"
_PLACE = "Location"
#: The fact of the identifiers that a place has (surrogate_id: their keys).
_IDENTIFIER = "identifier"
_NAMES = {"next": pl.Int64, "place": pl.Int64}
_LINKS = {"from": pl.Int64, "next": pl.Int64}


def find_homes(db: Database, staged: StagedExport, lines: pl.DataFrame, *, something_vanished: bool) -> Homes:
    """Which of the export's places are parts of a home, and which known ones are so now or no more.

    `lines`: those that are loaded (LINE). Nothing is asked where no place came, and nothing vanished.
    """
    places = staged.scan(schemas.OUTCOME).filter(pl.col("resource_type") == _PLACE).select(*LINE, "reason").collect()
    places = places.join(lines, on=LINE, how="semi")
    if places.is_empty() and not something_vanished:
        return Homes()
    known = db.frame("resource_links", _LINKS, {"fact": _PART_OF})
    known = known.join(lines, left_on="from", right_on="surrogate_id", how="anti")
    arriving = _arriving_links(staged, places)
    links = pl.concat([known, arriving.select("from", "next")])
    if links.is_empty():
        return Homes()
    links = pl.concat([links, _by_identifier(db, staged, links, places)])
    homes = places.filter(pl.col("reason") == PERSONS_HOME)["surrogate_id"]
    inside = _parts_of(pl.concat([homes, _known_homes(db, links, lines)]), links)
    db.put("known_part", known.select(surrogate_id="from").unique().with_columns(_is_among(inside).alias("is_in_home")))
    moved = db.frame("moved_parts", ID_SCHEMA, {"persons_home": PERSONS_HOME})
    return Homes(arriving.rename({"from": "surrogate_id"}).filter(_is_among(inside)).select(LINE).unique(), moved)


def _arriving_links(staged: StagedExport, places: pl.DataFrame) -> pl.DataFrame:
    """What the export's places are parts of. Columns: from, next, file_number, line."""
    facts = staged.scan(schemas.REFERENCE_VALUE).filter(pl.col("name") == _PART_OF).collect()
    own = facts.select(
        pl.col("owner_surrogate_id").alias("surrogate_id"),
        pl.col("value").cast(pl.Int64).alias("next"),
        "file_number",
        "line",
    )
    return own.join(places, on=LINE, how="semi").rename({"surrogate_id": "from"})


def _by_identifier(db: Database, staged: StagedExport, links: pl.DataFrame, places: pl.DataFrame) -> pl.DataFrame:
    """The links (from, next) whose next is the key of an identifier, each to every place that has it: none may leak."""
    facts = staged.scan(schemas.REFERENCE_VALUE).filter(pl.col("name") == _IDENTIFIER).collect()
    arriving = facts.select("file_number", "line", next="surrogate_id", surrogate_id="owner_surrogate_id")
    arriving = arriving.join(places, on=LINE, how="semi").select("next", place="surrogate_id")
    db.put("place_above", links.select(surrogate_id="next").unique())
    known = db.frame("named_places", _NAMES, {"identifier": _IDENTIFIER})
    known = known.join(places, left_on="place", right_on="surrogate_id", how="anti")
    named = pl.concat([known, arriving]).unique()
    return links.join(named, on="next").select("from", next="place")


def _known_homes(db: Database, links: pl.DataFrame, lines: pl.DataFrame) -> pl.Series:
    """Those of the places above that did not come and are homes by their own words."""
    above = links.select(surrogate_id="next").unique().join(lines, on="surrogate_id", how="anti")
    db.put("place_above", above)
    names = {"persons_home": PERSONS_HOME, "part_of": _PART_OF}
    return db.frame("homes_above", ID_SCHEMA, names)["surrogate_id"]


def _parts_of(homes: pl.Series, links: pl.DataFrame) -> pl.Series:
    """All places that a chain of links leads from to a home; a circle of places ends like any other."""
    inside = homes.clear()
    found = homes
    while not found.is_empty():
        found = links.filter(pl.col("next").is_in(found.implode()) & ~pl.col("from").is_in(inside.implode()))["from"]
        found = found.unique()
        inside = pl.concat([inside, found])
    return inside


def _is_among(places: pl.Series) -> pl.Expr:
    return pl.col("surrogate_id").is_in(places.implode())
